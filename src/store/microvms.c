// Records of microVMs.
#include "store/db.h"

#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void store_microvm_clear(struct store_microvm *r) {
	free(r->config);
	r->config = NULL;
}

#define COLUMNS                                                                                                                      \
	"id, account, endpoint, image_uuid, image_arn, version, state, state_reason, started_ms, terminated_ms, maximum_duration_s," \
	" has_idle_policy, max_idle_s, suspended_s, auto_resume, suspended_at_ms, vmm, config, seq, tokens_since_ms"

static int read_microvm(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_microvm *r = record;
	*r = (struct store_microvm){
		.started_ms = sqlite3_column_int64(st, 8),
		.terminated_ms = sqlite3_column_int64(st, 9),
		.maximum_duration_s = sqlite3_column_int64(st, 10),
		.has_idle_policy = sqlite3_column_int(st, 11) != 0,
		.max_idle_s = sqlite3_column_int64(st, 12),
		.suspended_s = sqlite3_column_int64(st, 13),
		.auto_resume = sqlite3_column_int(st, 14) != 0,
		.suspended_at_ms = sqlite3_column_int64(st, 15),
		.tokens_since_ms = sqlite3_column_int64(st, 19),
	};
	db_text(st, 0, r->id, sizeof(r->id));
	db_text(st, 1, r->account, sizeof(r->account));
	db_text(st, 2, r->endpoint, sizeof(r->endpoint));
	db_text(st, 3, r->image_uuid, sizeof(r->image_uuid));
	db_text(st, 4, r->image_arn, sizeof(r->image_arn));
	db_text(st, 5, r->version, sizeof(r->version));
	db_text(st, 6, r->state, sizeof(r->state));
	db_text(st, 7, r->state_reason, sizeof(r->state_reason));
	db_text(st, 16, r->vmm, sizeof(r->vmm));
	*seq = sqlite3_column_int64(st, 18);
	r->config = db_text_copy(st, 17);
	return r->config == NULL ? -ENOMEM : 0;
}

// The condition is part of the insertion, so that no deletion and no deactivation comes in between.
static int insert(struct store *s, const struct store_microvm *r, struct error *e) {
	int n = db_exec(s, e,
			"INSERT INTO microvms(id, account, endpoint, image_uuid, image_arn, version, state, state_reason, started_ms, "
			"terminated_ms,"
			" maximum_duration_s, has_idle_policy, max_idle_s, suspended_s, auto_resume, suspended_at_ms, vmm, config)"
			" SELECT ?1,?2,?3,?4,?5,?6,?7,?8,?9,?10,?11,?12,?13,?14,?15,?16,?17,?18 WHERE EXISTS (SELECT 1 FROM versions"
			" JOIN images ON uuid = image_uuid WHERE image_uuid=?4 AND version=?6 AND versions.state = 'SUCCESSFUL' AND status "
			"= 'ACTIVE'"
			" AND images.state NOT IN ('DELETING', 'DELETE_FAILED'))",
			"ssssssssiiiiiiiiss", r->id, r->account, r->endpoint, r->image_uuid, r->image_arn, r->version, r->state,
			r->state_reason, r->started_ms, r->terminated_ms, r->maximum_duration_s, (int64_t)r->has_idle_policy, r->max_idle_s,
			r->suspended_s, (int64_t)r->auto_resume, r->suspended_at_ms, r->vmm, r->config == NULL ? "{}" : r->config);
	if (n == 0)
		return error_set(e, -ENOENT, "there is no active version %s of the image %s", r->version, r->image_arn);
	return n < 0 ? n : 0;
}

int store_add_microvm(struct store *s, const struct store_microvm *r, const struct store_token *token, struct error *e) {
	DB_LOCKED(s);
	if (token == NULL)
		return insert(s, r, e);
	int done = db_begin(s, e);
	if (done < 0)
		return done;
	done = insert(s, r, e);
	if (done >= 0)
		done = token_add(s, token, e);
	done = db_end(s, done, e);
	return done < 0 ? done : 0;
}

static int update(struct store *s, const struct store_microvm *r, struct error *e) {
	int n = db_exec(s, e,
			"UPDATE microvms SET state=?, state_reason=?, started_ms=?, terminated_ms=?, suspended_at_ms=?, vmm=? WHERE id=?",
			"ssiiiss", r->state, r->state_reason, r->started_ms, r->terminated_ms, r->suspended_at_ms, r->vmm, r->id);
	if (n < 0)
		return n;
	return n == 0 ? error_set(e, -ENOENT, "no such microVM: %s", r->id) : 0;
}

int store_update_microvm(struct store *s, const struct store_microvm *r, struct error *e) {
	DB_LOCKED(s);
	return update(s, r, e);
}

int store_update_microvm_soon(struct store *s, const struct store_microvm *r, struct error *e) {
	DB_LOCKED(s);
	int result = db_set_flush(s, false, e);
	if (result < 0)
		return result;
	result = update(s, r, e);
	int flush = db_set_flush(s, true, result < 0 ? NULL : e);
	return result < 0 ? result : flush;
}

int store_set_tokens_since(struct store *s, const char *id, int64_t since_ms, struct error *e) {
	DB_LOCKED(s);
	int n = db_exec(s, e, "UPDATE microvms SET tokens_since_ms=? WHERE id=?", "is", since_ms, id);
	if (n < 0)
		return n;
	return n == 0 ? error_set(e, -ENOENT, "no such microVM: %s", id) : 0;
}

static int get(struct store *s, const char *sql, const char *types, const char *a, const char *b, struct store_microvm *ret,
	       struct error *e) {
	s = db_reader(s);
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, types, a, b);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such microVM: %s", b == NULL ? a : b);
	r = read_microvm(st, ret, &seq);
	return r < 0 ? error_set(e, r, "out of memory reading a microVM") : 0;
}

int store_get_microvm(struct store *s, const char *id, struct store_microvm *ret, struct error *e) {
	return get(s, "SELECT " COLUMNS " FROM microvms WHERE id=?", "s", id, NULL, ret, e);
}
int store_get_microvm_by_endpoint(struct store *s, const char *endpoint, struct store_microvm *ret, struct error *e) {
	return get(s, "SELECT " COLUMNS " FROM microvms WHERE endpoint=?", "s", endpoint, NULL, ret, e);
}

// The condition that narrows most comes first and has its own statement, so that each uses its index; the others are tested per record.
static int start_list(struct store *s, const struct store_microvm_filter *f, int64_t after, sqlite3_stmt **st, struct error *e) {
	if (f->image_arn != NULL)
		return db_query(s, st, e,
				"SELECT " COLUMNS
				" FROM microvms INDEXED BY microvms_by_image WHERE image_arn=?1 AND seq < ?2 AND (?3 IS NULL OR account=?3)"
				" AND (?4 IS NULL OR version=?4) AND (NOT ?5 OR state <> 'TERMINATED') ORDER BY seq DESC",
				"sissi", f->image_arn, after, f->account, f->version, (int64_t)f->living);
	if (f->living)
		return db_query(s, st, e,
				"SELECT " COLUMNS " FROM microvms INDEXED BY microvms_living WHERE state <> 'TERMINATED' AND seq < ?1"
				" AND (?2 IS NULL OR account=?2) AND (?3 IS NULL OR version=?3) ORDER BY seq DESC",
				"iss", after, f->account, f->version);
	if (f->account != NULL)
		return db_query(s, st, e,
				"SELECT " COLUMNS
				" FROM microvms WHERE account=?1 AND seq < ?2 AND (?3 IS NULL OR version=?3) ORDER BY seq DESC",
				"sis", f->account, after, f->version);
	return db_query(s, st, e, "SELECT " COLUMNS " FROM microvms WHERE seq < ?1 AND (?2 IS NULL OR version=?2) ORDER BY seq DESC", "is",
			after, f->version);
}

int store_list_microvms(struct store *s, const struct store_microvm_filter *f, const char *after, size_t limit,
			int (*each)(const struct store_microvm *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e) {
	struct db_page page = {.record_size = sizeof(struct store_microvm), .limit = limit, .read = read_microvm};
	int r = db_page_start(&page, after, next, e);
	if (r < 0)
		return r;
	s = db_reader(s);
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		r = start_list(s, f, page.after, &st, e);
		if (r >= 0)
			r = db_page_read(s, st, &page, next, e);
	}
	struct store_microvm *found = page.records;
	for (size_t i = 0; i < page.count && r >= 0; i++)
		if (each(&found[i], arg) != 0)
			break;
	for (size_t i = 0; i < page.count; i++)
		store_microvm_clear(&found[i]);
	free(found);
	return r;
}
