// What accounts, and all of them together, use: the sums that quotas are compared with.
#include "store/db.h"

// Of microVMs whose record says nothing about their memory (they are older than quotas): the service's default.
#define MEMORY "coalesce(sum(coalesce(memory_mib, 2048)), 0)"

int store_get_usage(struct store *s, const char *account, const char *image_uuid, struct store_usage *ret, struct error *e) {
	DB_LOCKED(s);
	db_statement st = NULL;
	*ret = (struct store_usage){0};
	int r = db_query(
		s, &st, e,
		"SELECT (SELECT " MEMORY " FROM microvms WHERE account=?1 AND state <> 'TERMINATED'),"
		" (SELECT count(*) FROM images WHERE account=?1), (SELECT count(*) FROM versions WHERE image_uuid=?2),"
		" (SELECT count(*) FROM builds b JOIN images i ON i.uuid=b.image_uuid WHERE i.account=?1 AND b.state IN ('PENDING', "
		"'IN_PROGRESS'))",
		"ss", account, image_uuid == NULL ? "" : image_uuid);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	ret->memory_mib = sqlite3_column_int64(st, 0);
	ret->images = sqlite3_column_int64(st, 1);
	ret->versions = sqlite3_column_int64(st, 2);
	ret->builds = sqlite3_column_int64(st, 3);
	return 0;
}

int store_get_awake(struct store *s, int64_t *ret_memory_mib, struct error *e) {
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT " MEMORY " FROM microvms WHERE state IN ('PENDING', 'RUNNING', 'SUSPENDING', 'TERMINATING')",
			 "");
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	*ret_memory_mib = sqlite3_column_int64(st, 0);
	return 0;
}
