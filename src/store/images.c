// Records of images, versions and builds: reading them. What changes them is in image_changes.c.
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

#define IMAGE_COLUMNS "uuid, account, name, arn, state, latest_active, latest_failed, created_ms, updated_ms, tags, last_version, seq"
#define VERSION_COLUMNS "image_uuid, version, state, status, state_reason, created_ms, updated_ms, config, seq"
#define BUILD_COLUMNS                                                                                                                    \
	"build_id, image_uuid, version, state, architecture, state_reason, created_ms, ended_ms, memory_bytes, code_bytes, disk_bytes, " \
	"seq"

static int read_image(sqlite3_stmt *st, void *record, int64_t *seq) {
	struct store_image *r = record;
	*r = (struct store_image){.created_ms = sqlite3_column_int64(st, 7),
				  .updated_ms = sqlite3_column_int64(st, 8),
				  .last_version = sqlite3_column_int64(st, 10)};
	db_text(st, 0, r->uuid, sizeof(r->uuid));
	db_text(st, 1, r->account, sizeof(r->account));
	db_text(st, 2, r->name, sizeof(r->name));
	db_text(st, 3, r->arn, sizeof(r->arn));
	db_text(st, 4, r->state, sizeof(r->state));
	db_text(st, 5, r->latest_active_version, sizeof(r->latest_active_version));
	db_text(st, 6, r->latest_failed_version, sizeof(r->latest_failed_version));
	*seq = sqlite3_column_int64(st, 11);
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

static int get_image(struct store *s, const char *sql, const char *by, struct store_image *ret, struct error *e) {
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

int store_get_version(struct store *s, const char *image_uuid, const char *version, struct store_version *ret, struct error *e) {
	DB_LOCKED(s);
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT " VERSION_COLUMNS " FROM versions WHERE image_uuid=? AND version=?", "ss", image_uuid, version);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	int64_t seq;
	if (r == 0)
		return error_set(e, -ENOENT, "no such version: %s", version);
	r = read_version(st, ret, &seq);
	return r < 0 ? error_set(e, r, "out of memory reading a version") : 0;
}

int store_get_build(struct store *s, const char *image_uuid, const char *version, const char *build_id, struct store_build *ret,
		    struct error *e) {
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
