// Changes of images, versions and builds. Each is one transaction that checks and changes, so that no two of them, and no launch, come into
// each other's way; see store.h.
#include "store/db.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int insert_version(struct store *s, const char *account, const struct store_version *v, struct error *e) {
	return db_exec(s, e,
		       "INSERT INTO versions(image_uuid, version, state, status, state_reason, created_ms, updated_ms, config, account)"
		       " VALUES(?,?,?,?,?,?,?,?,?)",
		       "sssssiiss", v->image_uuid, v->version, v->state, v->status, v->state_reason, v->created_ms, v->updated_ms,
		       v->config == NULL ? "{}" : v->config, account);
}

static int insert_build(struct store *s, const struct store_build *b, struct error *e) {
	return db_exec(
		s, e,
		"INSERT INTO builds(build_id, image_uuid, version, state, architecture, state_reason, created_ms, ended_ms, memory_bytes,"
		" code_bytes, disk_bytes) VALUES(?,?,?,?,?,?,?,?,?,?,?)",
		"ssssssiiiii", b->build_id, b->image_uuid, b->version, b->state, b->architecture, b->state_reason, b->created_ms,
		b->ended_ms, b->memory_bytes, b->code_bytes, b->disk_bytes);
}

// A statement that must have changed exactly one record.
static int one(int r, struct error *e, const char *what, const char *which) {
	if (r < 0)
		return r;
	return r == 0 ? error_set(e, -ENOENT, "no such %s: %s", what, which) : 0;
}

static int add_image(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		     const struct store_token *token, struct error *e) {
	int r = db_exec(s, e,
			"INSERT INTO images(uuid, account, name, arn, state, latest_active, latest_failed, created_ms, updated_ms, tags)"
			" VALUES(?,?,?,?,?,?,?,?,?,?)",
			"sssssssiis", i->uuid, i->account, i->name, i->arn, i->state, i->latest_active_version, i->latest_failed_version,
			i->created_ms, i->updated_ms, i->tags == NULL ? "{}" : i->tags);
	if (r >= 0)
		r = insert_version(s, i->account, v, e);
	if (r >= 0)
		r = insert_build(s, b, e);
	return r < 0 || token == NULL ? r : token_add(s, token, e);
}

int store_add_image(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		    const struct store_token *token, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = db_end(s, add_image(s, i, v, b, token, e), e);
	return r < 0 ? r : 0;
}

// What the checks look at.
struct standing {
	char account[13], arn[ARN_MAX];
	int64_t last_version;
};

static int look(struct store *s, const char *uuid, char state[STATE_TEXT], struct standing *ret, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT state, account, arn, last_version FROM images WHERE uuid=?", "s", uuid);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_set(e, -ENOENT, "no such image: %s", uuid);
	db_text(st, 0, state, STATE_TEXT);
	db_text(st, 1, ret->account, sizeof(ret->account));
	db_text(st, 2, ret->arn, sizeof(ret->arn));
	ret->last_version = sqlite3_column_int64(st, 3);
	return 0;
}

static int require_rest(const char *state, struct error *e) {
	static const char *const rest[] = {"CREATED", "CREATE_FAILED", "UPDATED", "UPDATE_FAILED"};
	for (size_t i = 0; i < sizeof(rest) / sizeof(rest[0]); i++)
		if (strcmp(state, rest[i]) == 0)
			return 0;
	return error_set(e, -EBUSY, "the image is %s", state);
}

static int set_image_state(struct store *s, const char *uuid, const char *state, int64_t now_ms, struct error *e) {
	return one(db_exec(s, e, "UPDATE images SET state=?, updated_ms=? WHERE uuid=?", "sis", state, now_ms, uuid), e, "image", uuid);
}

// After every change of a version.
static int refresh_latest(struct store *s, const char *uuid, struct error *e) {
	return one(
		db_exec(s, e,
			"UPDATE images SET latest_active = coalesce((SELECT version FROM versions WHERE image_uuid=?1 AND"
			" state='SUCCESSFUL' AND status='ACTIVE' ORDER BY seq DESC LIMIT 1), ''), latest_failed = coalesce((SELECT version"
			" FROM versions WHERE image_uuid=?1 AND state='FAILED' ORDER BY seq DESC LIMIT 1), '') WHERE uuid=?1",
			"s", uuid),
		e, "image", uuid);
}

static int add_version(struct store *s, const struct store_version *v, const struct store_build *b, const struct store_token *token,
		       char state[STATE_TEXT], struct error *e) {
	struct standing i;
	int r = look(s, v->image_uuid, state, &i, e);
	if (r == 0)
		r = require_rest(state, e);
	if (r == 0 && strtoll(v->version, NULL, 10) != i.last_version + 1)
		r = error_set(e, -EAGAIN, "the image has had %lld versions, %s is not the next", (long long)i.last_version, v->version);
	if (r == 0)
		r = insert_version(s, i.account, v, e);
	if (r >= 0)
		r = insert_build(s, b, e);
	if (r >= 0)
		r = db_exec(s, e, "UPDATE images SET state='UPDATING', last_version = last_version + 1, updated_ms=? WHERE uuid=?", "is",
			    v->created_ms, v->image_uuid);
	return r < 0 || token == NULL ? r : token_add(s, token, e);
}

int store_add_version(struct store *s, const struct store_version *v, const struct store_build *b, const struct store_token *token,
		      char state[STATE_TEXT], struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = db_end(s, add_version(s, v, b, token, state, e), e);
	return r < 0 ? r : 0;
}

int store_patch_image_tags(struct store *s, const char *uuid, const char *patch, struct error *e) {
	DB_LOCKED(s);
	int r = db_exec(
		s, e,
		"UPDATE images SET tags = json_patch(tags, ?1) WHERE uuid=?2 AND (SELECT count(*) FROM json_each(json_patch(tags, ?1)))"
		" <= ?3",
		"ssi", patch, uuid, (int64_t)STORE_TAGS_MAX);
	if (r != 0)
		return r < 0 ? r : 0;
	char state[STATE_TEXT];
	struct standing i;
	r = look(s, uuid, state, &i, e);
	return r < 0 ? r : error_set(e, -E2BIG, "an image can have %d tags", STORE_TAGS_MAX);
}

static int read_version_state(struct store *s, const char *image_uuid, const char *version, char ret[STATE_TEXT], struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT state FROM versions WHERE image_uuid=? AND version=?", "ss", image_uuid, version);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_set(e, -ENOENT, "no such version: %s", version);
	db_text(st, 0, ret, STATE_TEXT);
	return 0;
}

static int set_status(struct store *s, const char *image_uuid, const char *version, const char *status, int64_t now_ms,
		      char state[STATE_TEXT], struct error *e) {
	struct standing i;
	char of_version[STATE_TEXT];
	int r = look(s, image_uuid, state, &i, e);
	if (r == 0)
		r = read_version_state(s, image_uuid, version, of_version, e);
	if (r == 0)
		r = require_rest(state, e);
	if (r == 0 && strcmp(status, "ACTIVE") == 0 && strcmp(of_version, "SUCCESSFUL") != 0)
		r = error_set(e, -EINVAL, "the version is %s", of_version);
	if (r == 0)
		r = db_exec(s, e, "UPDATE versions SET status=?, updated_ms=? WHERE image_uuid=? AND version=?", "siss", status, now_ms,
			    image_uuid, version);
	return r < 0 ? r : refresh_latest(s, image_uuid, e);
}

int store_set_version_status(struct store *s, const char *image_uuid, const char *version, const char *status, int64_t now_ms,
			     char state[STATE_TEXT], struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	return r < 0 ? r : db_end(s, set_status(s, image_uuid, version, status, now_ms, state, e), e);
}

// Builds --------------------------------------------------------------------------------------------------------------------------

static int update_version(struct store *s, const struct store_version *r, struct error *e) {
	return one(db_exec(s, e, "UPDATE versions SET state=?, status=?, state_reason=?, updated_ms=? WHERE image_uuid=? AND version=?",
			   "sssiss", r->state, r->status, r->state_reason, r->updated_ms, r->image_uuid, r->version),
		   e, "version", r->version);
}

static int update_build(struct store *s, const struct store_build *r, struct error *e) {
	return one(db_exec(s, e,
			   "UPDATE builds SET state=?, state_reason=?, ended_ms=?, memory_bytes=?, code_bytes=?, disk_bytes=? WHERE "
			   "build_id=?",
			   "ssiiiis", r->state, r->state_reason, r->ended_ms, r->memory_bytes, r->code_bytes, r->disk_bytes, r->build_id),
		   e, "build", r->build_id);
}

int store_begin_build(struct store *s, const struct store_version *v, const struct store_build *b, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = update_version(s, v, e);
	if (r >= 0)
		r = update_build(s, b, e);
	return db_end(s, r, e);
}

int store_finish_build(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		       struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = set_image_state(s, i->uuid, i->state, i->updated_ms, e);
	if (r >= 0)
		r = update_version(s, v, e);
	if (r >= 0)
		r = update_build(s, b, e);
	if (r >= 0)
		r = refresh_latest(s, i->uuid, e);
	return db_end(s, r, e);
}

// Deletion ------------------------------------------------------------------------------------------------------------------------

// -ETXTBSY when a living microVM is of the image, or of that version of it.
static int require_unused(struct store *s, const char *uuid, const char *version, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e,
			 "SELECT id FROM microvms INDEXED BY microvms_living WHERE state <> 'TERMINATED' AND image_uuid=?1 AND"
			 " (?2 IS NULL OR version=?2) LIMIT 1",
			 "ss", uuid, version);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r <= 0)
		return r;
	char id[48];
	db_text(st, 0, id, sizeof(id));
	return error_set(e, -ETXTBSY, "the MicroVM %s is running", id);
}

static int begin_delete_image(struct store *s, const char *uuid, int64_t now_ms, char state[STATE_TEXT], struct error *e) {
	struct standing i;
	int r = look(s, uuid, state, &i, e);
	if (r == 0 && strcmp(state, "DELETING") == 0)
		r = error_set(e, -EALREADY, "the image is being deleted");
	if (r == 0 && strcmp(state, "DELETE_FAILED") != 0)
		r = require_rest(state, e);
	if (r == 0)
		r = require_unused(s, uuid, NULL, e);
	return r < 0 ? r : set_image_state(s, uuid, "DELETING", now_ms, e);
}

int store_begin_delete_image(struct store *s, const char *uuid, int64_t now_ms, char state[STATE_TEXT], struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	return r < 0 ? r : db_end(s, begin_delete_image(s, uuid, now_ms, state, e), e);
}

int store_delete_image(struct store *s, const char *uuid, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	// '0' follows '/' in ASCII: the range holds exactly the subjects "<uuid>/…".
	r = db_exec(s, e, "DELETE FROM stages WHERE subject >= ?1 || '/' AND subject < ?1 || '0'", "s", uuid);
	if (r >= 0)
		r = one(db_exec(s, e, "DELETE FROM images WHERE uuid=?", "s", uuid), e, "image", uuid);
	r = db_end(s, r, e);
	if (r >= 0)
		public_ports_forget_image(s, uuid);
	return r;
}

static int count_versions(struct store *s, const char *uuid, int64_t *ret, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT count(*) FROM versions WHERE image_uuid=?", "s", uuid);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r > 0)
		*ret = sqlite3_column_int64(st, 0);
	return r < 0 ? r : 0;
}

static int set_version_state(struct store *s, const char *image_uuid, const char *version, const char *state, const char *reason,
			     int64_t now_ms, struct error *e) {
	int r = one(db_exec(s, e, "UPDATE versions SET state=?, state_reason=?, updated_ms=? WHERE image_uuid=? AND version=?", "ssiss",
			    state, reason, now_ms, image_uuid, version),
		    e, "version", version);
	return r < 0 ? r : refresh_latest(s, image_uuid, e);
}

static int begin_delete_version(struct store *s, const char *uuid, const char *version, int64_t now_ms, char state[STATE_TEXT],
				struct error *e) {
	struct standing i;
	int64_t versions = 0;
	char of_version[STATE_TEXT];
	int r = look(s, uuid, state, &i, e);
	if (r == 0)
		r = read_version_state(s, uuid, version, of_version, e);
	if (r == 0 && strcmp(of_version, "DELETING") == 0)
		r = error_set(e, -EALREADY, "the version is being deleted");
	if (r == 0)
		r = require_rest(state, e);
	if (r == 0)
		r = count_versions(s, uuid, &versions, e);
	if (r == 0 && versions == 1)
		r = error_set(e, -EPERM, "the image has no other version");
	if (r == 0)
		r = require_unused(s, uuid, version, e);
	if (r == 0)
		r = set_version_state(s, uuid, version, "DELETING", "", now_ms, e);
	return r < 0 ? r : set_image_state(s, uuid, "UPDATING", now_ms, e);
}

int store_begin_delete_version(struct store *s, const char *image_uuid, const char *version, int64_t now_ms, char state[STATE_TEXT],
			       struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	return r < 0 ? r : db_end(s, begin_delete_version(s, image_uuid, version, now_ms, state, e), e);
}

int store_delete_version(struct store *s, const char *image_uuid, const char *version, int64_t now_ms, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = db_exec(s, e, "DELETE FROM stages WHERE subject = ?1 || '/' || ?2", "ss", image_uuid, version);
	if (r >= 0)
		r = one(db_exec(s, e, "DELETE FROM versions WHERE image_uuid=? AND version=?", "ss", image_uuid, version), e, "version",
			version);
	if (r >= 0)
		r = set_image_state(s, image_uuid, "UPDATED", now_ms, e);
	if (r >= 0)
		r = refresh_latest(s, image_uuid, e);
	return db_end(s, r, e);
}

int store_fail_delete(struct store *s, const char *image_uuid, const char *version, const char *reason, int64_t now_ms, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = version == NULL ? 0 : set_version_state(s, image_uuid, version, "DELETE_FAILED", reason, now_ms, e);
	if (r >= 0)
		r = set_image_state(s, image_uuid, version == NULL ? "DELETE_FAILED" : "UPDATE_FAILED", now_ms, e);
	return db_end(s, r, e);
}
