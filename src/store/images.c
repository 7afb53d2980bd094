// Records of images, versions and builds.
#include "store/db.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void store_image_clear(struct store_image *r) {
	free(r->tags);
	r->tags = NULL;
}
void store_version_clear(struct store_version *r) {
	free(r->config);
	r->config = NULL;
}
void store_build_clear(struct store_build *r) {
	(void)r; // nothing of it is allocated; here so that all records are treated alike
}

#define IMAGE_COLUMNS "uuid, account, name, arn, state, latest_active, latest_failed, created_ms, updated_ms, tags, seq"
#define VERSION_COLUMNS "image_uuid, version, state, status, state_reason, created_ms, updated_ms, config, seq"
#define BUILD_COLUMNS                                                                                                                    \
	"build_id, image_uuid, version, state, architecture, state_reason, created_ms, ended_ms, memory_bytes, code_bytes, disk_bytes, " \
	"seq"

static int read_image(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_image *r = record;
	*r = (struct store_image){.created_ms = sqlite3_column_int64(st, 7), .updated_ms = sqlite3_column_int64(st, 8)};
	db_text(st, 0, r->uuid, sizeof(r->uuid));
	db_text(st, 1, r->account, sizeof(r->account));
	db_text(st, 2, r->name, sizeof(r->name));
	db_text(st, 3, r->arn, sizeof(r->arn));
	db_text(st, 4, r->state, sizeof(r->state));
	db_text(st, 5, r->latest_active_version, sizeof(r->latest_active_version));
	db_text(st, 6, r->latest_failed_version, sizeof(r->latest_failed_version));
	*seq = sqlite3_column_int64(st, 10);
	r->tags = db_text_copy(st, 9);
	return r->tags == NULL ? -ENOMEM : 0;
}

static int read_version(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_version *r = record;
	*r = (struct store_version){.created_ms = sqlite3_column_int64(st, 5), .updated_ms = sqlite3_column_int64(st, 6)};
	db_text(st, 0, r->image_uuid, sizeof(r->image_uuid));
	db_text(st, 1, r->version, sizeof(r->version));
	db_text(st, 2, r->state, sizeof(r->state));
	db_text(st, 3, r->status, sizeof(r->status));
	db_text(st, 4, r->state_reason, sizeof(r->state_reason));
	*seq = sqlite3_column_int64(st, 8);
	r->config = db_text_copy(st, 7);
	return r->config == NULL ? -ENOMEM : 0;
}

static int read_build(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_build *r = record;
	*r = (struct store_build){
		.created_ms = sqlite3_column_int64(st, 6),
		.ended_ms = sqlite3_column_int64(st, 7),
		.memory_bytes = sqlite3_column_int64(st, 8),
		.code_bytes = sqlite3_column_int64(st, 9),
		.disk_bytes = sqlite3_column_int64(st, 10),
	};
	db_text(st, 0, r->build_id, sizeof(r->build_id));
	db_text(st, 1, r->image_uuid, sizeof(r->image_uuid));
	db_text(st, 2, r->version, sizeof(r->version));
	db_text(st, 3, r->state, sizeof(r->state));
	db_text(st, 4, r->architecture, sizeof(r->architecture));
	db_text(st, 5, r->state_reason, sizeof(r->state_reason));
	*seq = sqlite3_column_int64(st, 11);
	return 0;
}

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

int store_add_image(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		    struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = db_exec(s, e,
		    "INSERT INTO images(uuid, account, name, arn, state, latest_active, latest_failed, created_ms, updated_ms, tags)"
		    " VALUES(?,?,?,?,?,?,?,?,?,?)",
		    "sssssssiis", i->uuid, i->account, i->name, i->arn, i->state, i->latest_active_version, i->latest_failed_version,
		    i->created_ms, i->updated_ms, i->tags == NULL ? "{}" : i->tags);
	if (r >= 0)
		r = insert_version(s, i->account, v, e);
	if (r >= 0)
		r = insert_build(s, b, e);
	r = db_end(s, r, e);
	return r < 0 ? r : 0;
}

// A statement that must have changed exactly one record.
static int one(int r, struct error *e, const char *what, const char *which) {
	if (r < 0)
		return r;
	return r == 0 ? error_set(e, -ENOENT, "no such %s: %s", what, which) : 0;
}

static int update_image(struct store *s, const struct store_image *r, struct error *e) {
	return one(db_exec(s, e, "UPDATE images SET state=?, latest_active=?, latest_failed=?, updated_ms=?, tags=? WHERE uuid=?", "sssiss",
			   r->state, r->latest_active_version, r->latest_failed_version, r->updated_ms, r->tags == NULL ? "{}" : r->tags,
			   r->uuid),
		   e, "image", r->uuid);
}

static int update_version(struct store *s, const struct store_version *r, struct error *e) {
	return one(db_exec(s, e,
			   "UPDATE versions SET state=?, status=?, state_reason=?, updated_ms=?, config=coalesce(?, config) WHERE "
			   "image_uuid=? AND version=?",
			   "sssisss", r->state, r->status, r->state_reason, r->updated_ms, r->config, r->image_uuid, r->version),
		   e, "version", r->version);
}

static int update_build(struct store *s, const struct store_build *r, struct error *e) {
	return one(db_exec(s, e,
			   "UPDATE builds SET state=?, state_reason=?, ended_ms=?, memory_bytes=?, code_bytes=?, disk_bytes=? WHERE "
			   "build_id=?",
			   "ssiiiis", r->state, r->state_reason, r->ended_ms, r->memory_bytes, r->code_bytes, r->disk_bytes, r->build_id),
		   e, "build", r->build_id);
}

int store_update_image(struct store *s, const struct store_image *r, struct error *e) {
	DB_LOCKED(s);
	return update_image(s, r, e);
}
int store_update_version(struct store *s, const struct store_version *r, struct error *e) {
	DB_LOCKED(s);
	return update_version(s, r, e);
}
int store_update_build(struct store *s, const struct store_build *r, struct error *e) {
	DB_LOCKED(s);
	return update_build(s, r, e);
}

int store_finish_build(struct store *s, const struct store_image *i, const struct store_version *v, const struct store_build *b,
		       struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = update_image(s, i, e);
	if (r >= 0)
		r = update_version(s, v, e);
	if (r >= 0)
		r = update_build(s, b, e);
	r = db_end(s, r, e);
	return r < 0 ? r : 0;
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
	return r < 0 ? r : 0;
}

static int get_image(struct store *s, const char *sql, const char *by, struct store_image *ret, struct error *e) {
	s = db_reader(s);
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, "s", by);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such image: %s", by);
	r = read_image(st, ret, &seq);
	return r < 0 ? error_set(e, r, "out of memory reading an image") : 0;
}

int store_get_image_by_arn(struct store *s, const char *arn, struct store_image *ret, struct error *e) {
	return get_image(s, "SELECT " IMAGE_COLUMNS " FROM images WHERE arn=?", arn, ret, e);
}
int store_get_image(struct store *s, const char *uuid, struct store_image *ret, struct error *e) {
	return get_image(s, "SELECT " IMAGE_COLUMNS " FROM images WHERE uuid=?", uuid, ret, e);
}

static int get_version(struct store *s, const char *sql, const char *a, const char *b, struct store_version *ret, struct error *e) {
	s = db_reader(s);
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, "ss", a, b);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such version: %s", b);
	r = read_version(st, ret, &seq);
	return r < 0 ? error_set(e, r, "out of memory reading a version") : 0;
}

int store_get_version(struct store *s, const char *image_uuid, const char *version, struct store_version *ret, struct error *e) {
	return get_version(s, "SELECT " VERSION_COLUMNS " FROM versions WHERE image_uuid=? AND version=?", image_uuid, version, ret, e);
}
int store_get_version_by_token(struct store *s, const char *account, const char *token, struct store_version *ret, struct error *e) {
	return get_version(s, "SELECT " VERSION_COLUMNS " FROM versions WHERE account=? AND client_token=?", account, token, ret, e);
}

int store_get_build(struct store *s, const char *image_uuid, const char *version, const char *build_id, struct store_build *ret,
		    struct error *e) {
	s = db_reader(s);
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT " BUILD_COLUMNS " FROM builds WHERE image_uuid=? AND version=? AND build_id=?", "sss",
			 image_uuid, version, build_id);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such build: %s", build_id);
	return read_build(st, ret, &seq);
}

// Lists ---------------------------------------------------------------------------------------------------------------------------

int store_list_images(struct store *s, const char *account, const char *after, size_t limit,
		      int (*each)(const struct store_image *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e) {
	struct db_page page = {.record_size = sizeof(struct store_image), .limit = limit, .read = read_image};
	int r = db_page_start(&page, after, next, e);
	if (r < 0)
		return r;
	s = db_reader(s);
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		if (account == NULL)
			r = db_query(s, &st, e, "SELECT " IMAGE_COLUMNS " FROM images WHERE seq < ? ORDER BY seq DESC", "i", page.after);
		else
			r = db_query(s, &st, e, "SELECT " IMAGE_COLUMNS " FROM images WHERE account=? AND seq < ? ORDER BY seq DESC", "si",
				     account, page.after);
		if (r >= 0)
			r = db_page_read(s, st, &page, next, e);
	}
	struct store_image *found = page.records;
	for (size_t i = 0; i < page.count && r >= 0; i++)
		if (each(&found[i], arg) != 0)
			break;
	for (size_t i = 0; i < page.count; i++)
		store_image_clear(&found[i]);
	free(found);
	return r;
}

int store_list_versions(struct store *s, const char *image_uuid, const char *after, size_t limit,
			int (*each)(const struct store_version *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e) {
	struct db_page page = {.record_size = sizeof(struct store_version), .limit = limit, .read = read_version};
	int r = db_page_start(&page, after, next, e);
	if (r < 0)
		return r;
	s = db_reader(s);
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		r = db_query(s, &st, e, "SELECT " VERSION_COLUMNS " FROM versions WHERE image_uuid=? AND seq < ? ORDER BY seq DESC", "si",
			     image_uuid, page.after);
		if (r >= 0)
			r = db_page_read(s, st, &page, next, e);
	}
	struct store_version *found = page.records;
	for (size_t i = 0; i < page.count && r >= 0; i++)
		if (each(&found[i], arg) != 0)
			break;
	for (size_t i = 0; i < page.count; i++)
		store_version_clear(&found[i]);
	free(found);
	return r;
}

int store_list_builds(struct store *s, const char *image_uuid, const char *version, const char *after, size_t limit,
		      int (*each)(const struct store_build *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e) {
	struct db_page page = {.record_size = sizeof(struct store_build), .limit = limit, .read = read_build};
	int r = db_page_start(&page, after, next, e);
	if (r < 0)
		return r;
	s = db_reader(s);
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		r = db_query(s, &st, e,
			     "SELECT " BUILD_COLUMNS " FROM builds WHERE image_uuid=? AND version=? AND seq < ? ORDER BY seq DESC", "ssi",
			     image_uuid, version, page.after);
		if (r >= 0)
			r = db_page_read(s, st, &page, next, e);
	}
	struct store_build *found = page.records;
	for (size_t i = 0; i < page.count && r >= 0; i++)
		if (each(&found[i], arg) != 0)
			break;
	free(found);
	return r;
}
