// Multipart uploads: parts are files of their own until the upload is completed, which joins them into one; see artifacts.h.
#include "store/artifact_files.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/io.h"
#include "store/checksum.h"
#include "store/db.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PART_MINIMUM (5u << 20) // of all parts but the last, as S3 asks
#define UPLOADS_MAX 10000       // under way at once
#define SUM_PIECE (64u << 10)

struct file_list {
	struct artifact_file *list;
	size_t count;
};

static void unlink_all(struct artifacts *a, const char *bucket, struct file_list *l) {
	for (size_t i = 0; i < l->count; i++)
		artifact_unlink(a, bucket, &l->list[i]);
	free(l->list);
}

static int find_upload(struct artifacts *a, const char *bucket, const char *key, const char *id, char **ret_headers, struct error *e) {
	struct store *s = a->store;
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT headers FROM uploads WHERE id=? AND bucket=? AND key=?", "sss", id, bucket, key);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_named(e, -ENOENT, "NoSuchUpload",
				   "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
				   "or completed.");
	if (ret_headers != NULL && (*ret_headers = db_text_copy(st, 0)) == NULL)
		return error_set(e, -ENOMEM, "out of memory reading an upload");
	return 0;
}

// Takes the upload's record away, and lists its files, which the caller removes once that is committed.
static int take_upload(struct artifacts *a, const char *id, struct file_list *files, struct error *e) {
	struct store *s = a->store;
	{
		db_statement st = NULL;
		int r = db_query(s, &st, e, "SELECT file, size FROM parts WHERE upload=?", "s", id);
		if (r < 0)
			return r;
		while ((r = db_step(s, st, e)) > 0) {
			struct artifact_file *more = realloc(files->list, (files->count + 1) * sizeof(*more));
			if (more == NULL)
				return error_set(e, -ENOMEM, "out of memory ending an upload");
			files->list = more;
			db_text(st, 0, more[files->count].name, UUID_TEXT);
			more[files->count++].size = (uint64_t)sqlite3_column_int64(st, 1);
		}
		if (r < 0)
			return r;
	}
	return db_exec(s, e, "DELETE FROM uploads WHERE id=?", "s", id);
}

// Forgets the oldest upload when it is too old. 1: it was; 0: there is none.
static int expire_one(struct artifacts *a, struct error *e) {
	struct file_list files = {.count = 0};
	char bucket[BUCKET_MAX], id[UUID_TEXT];
	{
		DB_LOCKED(a->store);
		{
			db_statement st = NULL;
			int r = db_query(a->store, &st, e,
					 "SELECT bucket, id FROM uploads WHERE created_ms < ? ORDER BY created_ms LIMIT 1", "i",
					 (int64_t)realtime_ms() - UPLOAD_KEPT_MS);
			if (r >= 0)
				r = db_step(a->store, st, e);
			if (r <= 0)
				return r;
			db_text(st, 0, bucket, sizeof(bucket));
			db_text(st, 1, id, sizeof(id));
		}
		int r = db_begin(a->store, e);
		if (r < 0)
			return r;
		r = db_end(a->store, take_upload(a, id, &files, e), e);
		if (r < 0) {
			free(files.list);
			return r;
		}
	}
	unlink_all(a, bucket, &files);
	return 1;
}

static int count_uploads(struct artifacts *a, struct error *e) {
	db_statement st = NULL;
	int r = db_query(a->store, &st, e, "SELECT COUNT(*) FROM uploads", "");
	if (r >= 0)
		r = db_step(a->store, st, e);
	return r <= 0 ? r : sqlite3_column_int(st, 0);
}

int artifacts_upload_start(struct artifacts *a, const char *bucket, const char *key, const char *headers_json, char id[UUID_TEXT],
			   struct error *e) {
	int r;
	while ((r = expire_one(a, e)) > 0)
		;
	if (r < 0)
		return r;
	DB_LOCKED(a->store);
	r = count_uploads(a, e);
	if (r >= UPLOADS_MAX)
		return error_named(e, -EDQUOT, "TooManyMultipartUploads",
				   "There are %d multipart uploads under way: complete or abort some (ListMultipartUploads shows them)", r);
	uuid_new(id);
	if (r >= 0)
		r = db_exec(a->store, e, "INSERT INTO uploads(id, bucket, key, created_ms, headers) VALUES(?,?,?,?,?)", "sssis", id, bucket,
			    key, (int64_t)realtime_ms(), headers_json);
	if (r == -ENOENT)
		return error_named(e, r, "NoSuchBucket", "The specified bucket does not exist");
	return r < 0 ? r : 0;
}

int artifacts_upload_check(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e) {
	DB_LOCKED(a->store);
	return find_upload(a, bucket, key, id, NULL, e);
}

// Inside a transaction. `old`: the file of the part that it replaces.
static int put_part(struct object_writer *w, const char *key, const char *id, int number, struct artifact_file *old, struct error *e) {
	struct store *s = w->a->store;
	int r = find_upload(w->a, w->bucket, key, id, NULL, e);
	if (r < 0)
		return r;
	{
		db_statement st = NULL;
		r = db_query(s, &st, e, "SELECT file, size FROM parts WHERE upload=? AND number=?", "si", id, (int64_t)number);
		if (r >= 0 && (r = db_step(s, st, e)) > 0) {
			db_text(st, 0, old->name, sizeof(old->name));
			old->size = (uint64_t)sqlite3_column_int64(st, 1);
		}
		if (r < 0)
			return r;
	}
	return db_exec(s, e, "INSERT OR REPLACE INTO parts(upload, number, file, size, etag, modified_ms) VALUES(?,?,?,?,?,?)", "sisisi",
		       id, (int64_t)number, w->file, (int64_t)w->size, artifacts_write_etag(w), (int64_t)realtime_ms());
}

int artifacts_upload_part(struct object_writer *w, const char *key, const char *id, int number, struct error *e) {
	struct artifacts *a = w->a;
	struct artifact_file old = {.size = 0};
	int r = artifact_flush(w, e);
	if (r >= 0) {
		DB_LOCKED(a->store);
		r = db_begin(a->store, e);
		if (r >= 0)
			r = db_end(a->store, put_part(w, key, id, number, &old, e), e);
	}
	w->kept = r >= 0;
	if (r >= 0)
		artifact_unlink(a, w->bucket, &old);
	artifacts_write_abort(w);
	return r < 0 ? r : 0;
}

struct part {
	char file[UUID_TEXT], etag[ETAG_MAX];
	uint64_t size;
};

// Looks the parts that the client named up and checks them as S3 does.
static int find_parts(struct artifacts *a, const char *id, const struct upload_part *named, size_t n, struct part *ret, struct error *e) {
	struct store *s = a->store;
	uint64_t total = 0;
	for (size_t i = 1; i < n; i++)
		if (named[i].number <= named[i - 1].number)
			return error_named(e, -EINVAL, "InvalidPartOrder",
					   "The list of parts was not in ascending order. Parts must be ordered by part number.");
	for (size_t i = 0; i < n; i++) {
		db_statement st = NULL;
		int r = db_query(s, &st, e, "SELECT file, size, etag FROM parts WHERE upload=? AND number=?", "si", id,
				 (int64_t)named[i].number);
		if (r >= 0)
			r = db_step(s, st, e);
		if (r < 0)
			return r;
		if (r > 0) {
			db_text(st, 0, ret[i].file, sizeof(ret[i].file));
			db_text(st, 2, ret[i].etag, sizeof(ret[i].etag));
			ret[i].size = (uint64_t)sqlite3_column_int64(st, 1);
		}
		if (r == 0 || strcmp(ret[i].etag, named[i].etag) != 0)
			return error_named(e, -EINVAL, "InvalidPart",
					   "One or more of the specified parts could not be found. The part may not have been uploaded, or "
					   "the specified "
					   "entity tag may not match the part's entity tag.");
		if (i + 1 < n && ret[i].size < PART_MINIMUM)
			return error_named(e, -EINVAL, "EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size");
		total += ret[i].size;
		if (total > a->limit)
			return error_named(e, -EFBIG, "EntityTooLarge",
					   "Your proposed upload exceeds the maximum allowed size of %llu bytes (artifactLimitBytes)",
					   (unsigned long long)a->limit);
	}
	return 0;
}

static int append_file(struct object_writer *w, const char *file, uint64_t size, struct error *e) {
	char path[ARTIFACT_PATH_MAX];
	artifact_path(w->a, w->bucket, file, path);
	cleanup_close int from = open(path, O_RDONLY | O_CLOEXEC);
	if (from < 0) // completed or aborted by somebody else meanwhile
		return error_named(e, -ENOENT, "NoSuchUpload",
				   "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted "
				   "or completed.");
	// The parts go when the object is there: for the moment the store may hold more than its limit, the disk never less than its reserve.
	int r = artifact_reserve(w, size, false, e);
	if (r < 0)
		return r;
	for (uint64_t left = size; left > 0;) {
		ssize_t n = copy_file_range(from, NULL, w->fd, NULL, left, 0);
		if (n < 0)
			return artifact_disk_error(-errno, e);
		if (n == 0)
			return error_set(e, -EIO, "a part in the artifact store is shorter than recorded: upload it again");
		left -= (uint64_t)n;
	}
	return 0;
}

// The ETag of a multipart object: the MD5 of the parts' binary MD5s, and their number.
static void join_etags(const struct part *parts, size_t n, char etag[ETAG_MAX]) {
	EVP_MD_CTX *md5 = EVP_MD_CTX_new();
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned size = 0;
	EVP_DigestInit_ex(md5, EVP_md5(), NULL);
	for (size_t i = 0; i < n; i++) {
		ssize_t got = hex_decode(parts[i].etag, strlen(parts[i].etag), digest, sizeof(digest));
		if (got > 0)
			EVP_DigestUpdate(md5, digest, (size_t)got);
	}
	EVP_DigestFinal_ex(md5, digest, &size);
	EVP_MD_CTX_free(md5);
	hex_encode(digest, size, etag);
	snprintf(etag + 32, ETAG_MAX - 32, "-%zu", n);
}

// Checks the joined bytes against what the client says that their checksum is.
static int check_sum(struct object_writer *w, const struct upload_end *q, struct error *e) {
	struct checksum sum;
	char computed[CHECKSUM_TEXT];
	if (q->sum_kind == NULL)
		return 0;
	cleanup_free char *piece = malloc(SUM_PIECE);
	if (piece == NULL || !checksum_start(&sum, checksum_find(q->sum_kind, strlen(q->sum_kind))))
		return error_set(e, -ENOMEM, "out of memory completing an upload");
	int r = 0;
	for (uint64_t done = 0; done < w->size && r == 0;) {
		size_t n = w->size - done < SUM_PIECE ? (size_t)(w->size - done) : SUM_PIECE;
		r = pread_full(w->fd, piece, n, done);
		checksum_add(&sum, piece, n);
		done += n;
	}
	checksum_finish(&sum, computed);
	if (r < 0)
		return error_set(e, r, "cannot read from the artifact store: %s", strerror(-r));
	return strcmp(computed, q->sum_value) == 0
		       ? 0
		       : error_named(e, -EBADMSG, "BadDigest", "The %s you specified did not match the calculated checksum.", q->sum_kind);
}

// Joins the parts' bytes into the writer's file.
static int join(struct object_writer *w, const struct upload_end *q, const struct part *parts, struct error *e) {
	int r = 0;
	for (size_t i = 0; i < q->count && r >= 0; i++)
		r = append_file(w, parts[i].file, parts[i].size, e);
	if (r >= 0)
		r = check_sum(w, q, e);
	return r < 0 ? r : artifact_flush(w, e);
}

// Makes the joined file the object, and the upload's end. Only one of two completions wins.
static int publish(struct object_writer *w, const struct upload_end *q, const char *etag, const char *headers, struct error *e) {
	struct artifacts *a = w->a;
	struct artifact_file old = {.size = 0};
	struct file_list files = {.count = 0};
	int r;
	if (q->condition != NULL)
		artifacts_write_only_if(w, q->condition);
	{
		DB_LOCKED(a->store);
		r = db_begin(a->store, e);
		if (r < 0)
			return r;
		r = find_upload(a, q->bucket, q->key, q->id, NULL, e);
		if (r >= 0)
			r = artifact_put(w, q->key, etag, headers, &old, e);
		if (r >= 0)
			r = take_upload(a, q->id, &files, e);
		r = db_end(a->store, r, e);
	}
	w->kept = r >= 0;
	if (r < 0) {
		free(files.list);
		return r;
	}
	artifact_unlink(a, q->bucket, &old);
	unlink_all(a, q->bucket, &files);
	return 0;
}

int artifacts_upload_complete(struct artifacts *a, const struct upload_end *q, char etag[ETAG_MAX], struct error *e) {
	cleanup_free struct part *found = calloc(q->count + 1, sizeof(*found));
	cleanup_free char *headers = NULL;
	if (found == NULL)
		return error_set(e, -ENOMEM, "out of memory completing an upload");
	{
		DB_LOCKED(a->store);
		int r = find_upload(a, q->bucket, q->key, q->id, &headers, e);
		if (r >= 0)
			r = find_parts(a, q->id, q->parts, q->count, found, e);
		if (r < 0)
			return r;
	}
	struct object_writer *w = NULL;
	int r = artifacts_write_start(a, q->bucket, &w, e);
	if (r < 0)
		return r;
	r = join(w, q, found, e);
	join_etags(found, q->count, etag);
	if (r >= 0)
		r = publish(w, q, etag, headers, e);
	artifacts_write_abort(w);
	return r < 0 ? r : 0;
}

int artifacts_upload_abort(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e) {
	struct file_list files = {.count = 0};
	{
		DB_LOCKED(a->store);
		int r = db_begin(a->store, e);
		if (r < 0)
			return r;
		r = find_upload(a, bucket, key, id, NULL, e);
		if (r >= 0)
			r = take_upload(a, id, &files, e);
		r = db_end(a->store, r, e);
		if (r < 0) {
			free(files.list);
			return r;
		}
	}
	unlink_all(a, bucket, &files);
	return 0;
}

// Lists -----------------------------------------------------------------------------------------------------------------------------

static int next_part(struct artifacts *a, const char *id, int after, struct upload_part *ret, struct error *e) {
	DB_LOCKED(a->store);
	db_statement st = NULL;
	int r = db_query(a->store, &st, e,
			 "SELECT number, etag, size, modified_ms FROM parts WHERE upload=? AND number > ? ORDER BY number LIMIT 1", "si",
			 id, (int64_t)after);
	if (r >= 0)
		r = db_step(a->store, st, e);
	if (r <= 0)
		return r;
	*ret = (struct upload_part){.number = sqlite3_column_int(st, 0),
				    .size = (uint64_t)sqlite3_column_int64(st, 2),
				    .modified_ms = sqlite3_column_int64(st, 3)};
	db_text(st, 1, ret->etag, sizeof(ret->etag));
	return 1;
}

int artifacts_list_parts(struct artifacts *a, const char *bucket, const char *key, const char *id, int after, size_t limit,
			 int (*each)(const struct upload_part *, void *), void *arg, bool *ret_more, struct error *e) {
	*ret_more = false;
	int r = artifacts_upload_check(a, bucket, key, id, e);
	if (r < 0)
		return r;
	for (size_t given = 0;; given++) {
		struct upload_part p;
		r = next_part(a, id, after, &p, e);
		if (r <= 0)
			return r;
		if (given == limit) {
			*ret_more = true;
			return 0;
		}
		after = p.number;
		if (each(&p, arg) != 0)
			return 0;
	}
}

static int next_upload(struct artifacts *a, const char *bucket, const char *after_key, const char *after_id, struct upload *ret,
		       struct error *e) {
	DB_LOCKED(a->store);
	db_statement st = NULL;
	int r = db_query(a->store, &st, e,
			 "SELECT key, id, created_ms FROM uploads WHERE bucket=? AND (key, id) > (?, ?) ORDER BY key, id LIMIT 1", "sss",
			 bucket, after_key, after_id);
	if (r >= 0)
		r = db_step(a->store, st, e);
	if (r <= 0)
		return r;
	*ret = (struct upload){.created_ms = sqlite3_column_int64(st, 2)};
	db_text(st, 0, ret->key, sizeof(ret->key));
	db_text(st, 1, ret->id, sizeof(ret->id));
	return 1;
}

int artifacts_list_uploads(struct artifacts *a, const char *bucket, const char *prefix, const char *after_key, const char *after_id,
			   int (*each)(const struct upload *, void *), void *arg, struct error *e) {
	struct upload u = {.key = ""};
	size_t prefix_size = strlen(prefix);
	bool before = strcmp(after_key, prefix) < 0;
	snprintf(u.key, sizeof(u.key), "%s", before ? prefix : after_key);
	snprintf(u.id, sizeof(u.id), "%s", before ? "" : after_id);
	for (;;) {
		int r = next_upload(a, bucket, u.key, u.id, &u, e);
		if (r <= 0)
			return r;
		if (strncmp(u.key, prefix, prefix_size) != 0 || each(&u, arg) != 0)
			return 0;
	}
}
