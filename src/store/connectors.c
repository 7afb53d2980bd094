// Records of network connectors.
#include "store/db.h"

#include <stdio.h>
#include <stdlib.h>

void store_connector_clear(struct store_connector *r) {
	free(r->config);
	free(r->pending);
	free(r->tags);
	r->config = r->pending = r->tags = NULL;
}

#define COLUMNS                                                                                                                    \
	"id, account, name, arn, state, state_reason, state_code, version, created_ms, modified_ms, update_status, update_reason," \
	" update_code, config, pending, tags, seq"

static int read_connector(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_connector *r = record;
	*r = (struct store_connector){.version = sqlite3_column_int64(st, 7),
				      .created_ms = sqlite3_column_int64(st, 8),
				      .modified_ms = sqlite3_column_int64(st, 9)};
	db_text(st, 0, r->id, sizeof(r->id));
	db_text(st, 1, r->account, sizeof(r->account));
	db_text(st, 2, r->name, sizeof(r->name));
	db_text(st, 3, r->arn, sizeof(r->arn));
	db_text(st, 4, r->state, sizeof(r->state));
	db_text(st, 5, r->state_reason, sizeof(r->state_reason));
	db_text(st, 6, r->state_code, sizeof(r->state_code));
	db_text(st, 10, r->update_status, sizeof(r->update_status));
	db_text(st, 11, r->update_reason, sizeof(r->update_reason));
	db_text(st, 12, r->update_code, sizeof(r->update_code));
	*seq = sqlite3_column_int64(st, 16);
	bool pends = sqlite3_column_type(st, 14) != SQLITE_NULL;
	r->config = db_text_copy(st, 13);
	r->pending = pends ? db_text_copy(st, 14) : NULL;
	r->tags = db_text_copy(st, 15);
	if (r->config != NULL && r->tags != NULL && (!pends || r->pending != NULL))
		return 0;
	store_connector_clear(r);
	return -ENOMEM;
}

// 1: a row with a number, which is *ret; a negative errno.
static int ask_number(struct store *s, int64_t *ret, struct error *e, const char *sql, const char *a, const char *b) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, b == NULL ? "s" : "ss", a, b);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r > 0)
		*ret = sqlite3_column_int64(st, 0);
	return r;
}

int store_add_connector(struct store *s, const struct store_connector *c, int64_t limit, const struct store_token *token, struct error *e) {
	DB_LOCKED(s);
	int64_t count = 0;
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = ask_number(s, &count, e, "SELECT count(*) FROM connectors WHERE account=? AND state <> 'DELETED'", c->account, NULL);
	if (r >= 0 && count >= limit)
		r = error_set(e, -EDQUOT, "the account has %lld network connectors, as many as it may have", (long long)count);
	if (r >= 0)
		r = db_exec(
			s, e,
			"INSERT INTO connectors(id, account, name, arn, state, state_reason, state_code, version, created_ms, modified_ms,"
			" update_status, update_reason, update_code, config, pending, tags) VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
			"sssssssiiissssss", c->id, c->account, c->name, c->arn, c->state, c->state_reason, c->state_code, c->version,
			c->created_ms, c->modified_ms, c->update_status, c->update_reason, c->update_code, c->config, c->pending,
			c->tags == NULL ? "{}" : c->tags);
	if (r >= 0 && token != NULL)
		r = token_add(s, token, e);
	r = db_end(s, r, e);
	return r < 0 ? r : 0;
}

static int update(struct store *s, const struct store_connector *c, struct error *e) {
	int n = db_exec(
		s, e,
		"UPDATE connectors SET state=?, state_reason=?, state_code=?, version=?, modified_ms=?, update_status=?, update_reason=?,"
		" update_code=?, config=?, pending=? WHERE id=?",
		"sssiissssss", c->state, c->state_reason, c->state_code, c->version, c->modified_ms, c->update_status, c->update_reason,
		c->update_code, c->config, c->pending, c->id);
	if (n < 0)
		return n;
	return n == 0 ? error_set(e, -ENOENT, "no such network connector: %s", c->id) : 0;
}

int store_update_connector(struct store *s, const struct store_connector *c, const struct store_token *token, struct error *e) {
	DB_LOCKED(s);
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = update(s, c, e);
	if (r == 0 && token != NULL)
		r = token_add(s, token, e);
	return db_end(s, r, e);
}

int store_patch_connector_tags(struct store *s, const char *id, const char *patch, struct error *e) {
	DB_LOCKED(s);
	int r = db_exec(s, e,
			"UPDATE connectors SET tags = json_patch(tags, ?1) WHERE id=?2 AND state <> 'DELETED'"
			" AND (SELECT count(*) FROM json_each(json_patch(tags, ?1))) <= ?3",
			"ssi", patch, id, (int64_t)STORE_TAGS_MAX);
	int64_t found = 0;
	if (r == 0 && (r = ask_number(s, &found, e, "SELECT 1 FROM connectors WHERE id=? AND state <> 'DELETED'", id, NULL)) == 0)
		return error_set(e, -ENOENT, "no such network connector: %s", id);
	return r < 0 ? r : found > 0 ? error_set(e, -E2BIG, "a network connector can have %d tags", STORE_TAGS_MAX) : 0;
}

static int get(struct store *s, const char *sql, const char *account, const char *by, struct store_connector *ret, struct error *e) {
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, "ss", account, by);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such network connector: %.140s", by);
	r = read_connector(st, ret, &seq);
	return r < 0 ? error_set(e, r, "out of memory reading a network connector") : 0;
}

int store_get_connector(struct store *s, const char *account, const char *id, struct store_connector *ret, struct error *e) {
	return get(s, "SELECT " COLUMNS " FROM connectors WHERE account=? AND id=?", account, id, ret, e);
}
int store_get_connector_by_name(struct store *s, const char *account, const char *name, struct store_connector *ret, struct error *e) {
	return get(s, "SELECT " COLUMNS " FROM connectors WHERE account=? AND name=? AND state <> 'DELETED'", account, name, ret, e);
}

static int check_unused(struct store *s, const struct store_connector *c, struct error *e) {
	int64_t microvms = 0, versions = 0;
	// The cheap test first: configurations are rarely parsed.
	int r = ask_number(s, &microvms, e,
			   "SELECT count(*) FROM microvms INDEXED BY microvms_living WHERE state <> 'TERMINATED' AND account=?1"
			   " AND instr(config, ?2) > 0 AND instr(json_extract(config, '$.egressNetworkConnectors'), ?2) > 0",
			   c->account, c->id);
	if (r >= 0)
		r = ask_number(s, &versions, e,
			       "SELECT count(*) FROM versions WHERE account=?1 AND state NOT IN ('FAILED', 'DELETING', 'DELETED')"
			       " AND instr(config, ?2) > 0 AND instr(json_extract(config, '$.egressNetworkConnectors'), ?2) > 0",
			       c->account, c->id);
	if (r < 0 || microvms + versions == 0)
		return r < 0 ? r : 0;
	return error_set(
		e, -EBUSY,
		"Cannot delete network connector %s: %lld MicroVMs and %lld image versions use it. Terminate and delete them first.",
		c->arn, (long long)microvms, (long long)versions);
}

int store_delete_connector(struct store *s, const struct store_connector *c, struct error *e) {
	DB_LOCKED(s);
	struct store_connector deleting = *c;
	snprintf(deleting.state, sizeof(deleting.state), "DELETING");
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = check_unused(s, c, e);
	if (r == 0)
		r = update(s, &deleting, e);
	r = db_end(s, r, e);
	return r < 0 ? r : 0;
}

int store_bury_connector(struct store *s, const struct store_connector *c, int64_t now_ms, struct error *e) {
	DB_LOCKED(s);
	struct store_connector deleted = *c;
	deleted.modified_ms = now_ms;
	snprintf(deleted.state, sizeof(deleted.state), "DELETED");
	int r = db_begin(s, e);
	if (r < 0)
		return r;
	r = update(s, &deleted, e);
	if (r == 0)
		r = db_exec(s, e,
			    "DELETE FROM connectors WHERE account=?1 AND state='DELETED' AND seq <= (SELECT seq FROM connectors WHERE "
			    "account=?1"
			    " AND state='DELETED' ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
			    "si", c->account, (int64_t)STORE_DELETED_CONNECTORS_MAX);
	r = db_end(s, r, e);
	return r < 0 ? r : 0;
}

int store_list_connectors(struct store *s, const char *account, const char *state, const char *after, size_t limit,
			  int (*each)(const struct store_connector *, void *), void *arg, char next[STORE_CURSOR_MAX], struct error *e) {
	struct db_page page = {.record_size = sizeof(struct store_connector), .limit = limit, .read = read_connector};
	int r = db_page_start(&page, after, next, e);
	if (r < 0)
		return r;
	{
		DB_LOCKED(s);
		db_statement st = NULL;
		if (account == NULL)
			r = db_query(
				s, &st, e,
				"SELECT " COLUMNS
				" FROM connectors WHERE seq < ?1 AND state <> 'DELETED' AND (?2 IS NULL OR state=?2) ORDER BY seq DESC",
				"is", page.after, state);
		else
			r = db_query(s, &st, e,
				     "SELECT " COLUMNS
				     " FROM connectors WHERE account=?1 AND seq < ?2 AND state <> 'DELETED' AND (?3 IS NULL OR state=?3)"
				     " ORDER BY seq DESC",
				     "sis", account, page.after, state);
		if (r >= 0)
			r = db_page_read(s, st, &page, next, e);
	}
	struct store_connector *found = page.records;
	for (size_t i = 0; i < page.count && r >= 0; i++)
		if (each(&found[i], arg) != 0)
			break;
	for (size_t i = 0; i < page.count; i++)
		store_connector_clear(&found[i]);
	free(found);
	return r;
}
