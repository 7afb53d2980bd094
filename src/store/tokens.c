// Client tokens: what a call with one answered, kept together with what it made and longer than that, so that the call can be repeated.
//
// An account's tokens are a queue: new ones come to its end, and each takes a few that are older than the retention from the front. `position`
// counts bytes, so the two ends say how much the account keeps.
#include "store/db.h"

#include "base/clock.h"

#include <string.h>

#define RETENTION_MS (INT64_C(24) * 3600 * 1000)
#define ACCOUNT_BYTES_MAX (INT64_C(256) << 20)
#define ROW_BYTES 256  // of a token besides its texts
#define EXPIRED_MAX 16 // removed at a time: more than come in

static int64_t row_bytes(const struct store_token *t) {
	return (int64_t)(ROW_BYTES + strlen(t->token) + strlen(t->answer));
}

static int read_number(struct store *s, const char *sql, const char *account, int64_t *ret, struct error *e) {
	db_statement st = NULL;
	int r = db_query(s, &st, e, sql, "s", account);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r > 0)
		*ret = sqlite3_column_int64(st, 0);
	return r < 0 ? r : 0;
}

int token_add(struct store *s, const struct store_token *t, struct error *e) {
	int64_t now = (int64_t)realtime_ms(), size = row_bytes(t), begin = 0, end = 0;
	int r = db_exec(s, e,
			"DELETE FROM client_tokens WHERE account=?1 AND created_ms < ?2 AND position IN (SELECT position FROM client_tokens"
			" WHERE account=?1 ORDER BY position LIMIT ?3)",
			"sii", t->account, now - RETENTION_MS, (int64_t)EXPIRED_MAX);
	if (r >= 0)
		r = read_number(s, "SELECT position FROM client_tokens WHERE account=? ORDER BY position LIMIT 1", t->account, &begin, e);
	if (r >= 0)
		r = read_number(s, "SELECT position + size FROM client_tokens WHERE account=? ORDER BY position DESC LIMIT 1", t->account,
				&end, e);
	if (r < 0)
		return r;
	if (end - begin + size > ACCOUNT_BYTES_MAX)
		return error_named(e, -EDQUOT, "ThrottlingException",
				   "The account has used too many client tokens within 24 hours: try later, or without a client token");
	r = db_exec(
		s, e,
		"INSERT INTO client_tokens(account, position, size, operation, token, digest, answer, created_ms) VALUES(?,?,?,?,?,?,?,?)",
		"siissssi", t->account, end, size, t->operation, t->token, t->digest, t->answer, now);
	return r < 0 ? r : 0;
}

int store_get_token(struct store *s, const char *account, const char *operation, const char *token, char digest[STORE_DIGEST],
		    char **ret_answer, struct error *e) {
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT digest, answer FROM client_tokens WHERE account=? AND operation=? AND token=?", "sss", account,
			 operation, token);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_set(e, -ENOENT, "the client token is new");
	db_text(st, 0, digest, STORE_DIGEST);
	*ret_answer = db_text_copy(st, 1);
	return *ret_answer == NULL ? error_set(e, -ENOMEM, "out of memory reading a client token") : 0;
}
