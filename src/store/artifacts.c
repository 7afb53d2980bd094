// Buckets, objects and multipart uploads on the local disk; see artifacts.h.
//
// The bytes of an object or part lie in a file with a random name, written and flushed before the record that names it is committed. Replacing
// or deleting commits first and unlinks afterwards. So a record always has its bytes, and what a crash leaves is files without a
// record, which artifacts_start() removes.
#include "store/artifacts.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hex.h"
#include "base/io.h"
#include "store/artifact_files.h"
#include "store/db.h"

#include <dirent.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define UPLOAD_KEPT_MS (7LL * 24 * 3600 * 1000)
#define PART_MINIMUM (5u << 20) // of all parts but the last, as S3 asks

bool artifacts_bucket_name_is_valid(const char *name) {
	size_t n = strlen(name);
	if (n < 3 || n > 63)
		return false;
	for (size_t i = 0; i < n; i++) {
		bool edge = i == 0 || i == n - 1;
		bool letter = (name[i] >= 'a' && name[i] <= 'z') || (name[i] >= '0' && name[i] <= '9');
		if (!letter && (edge || (name[i] != '-' && name[i] != '.') || (name[i] == '.' && name[i - 1] == '.')))
			return false;
	}
	return true;
}

bool artifacts_parse_uri(const char *uri, char bucket[BUCKET_MAX], const char **ret_key) {
	if (strncmp(uri, "s3://", 5) != 0)
		return false;
	const char *slash = strchr(uri + 5, '/');
	if (slash == NULL || slash[1] == '\0' || (size_t)(slash - uri - 5) >= BUCKET_MAX || strlen(slash + 1) > OBJECT_KEY_MAX)
		return false;
	memcpy(bucket, uri + 5, (size_t)(slash - uri - 5));
	bucket[slash - uri - 5] = '\0';
	*ret_key = slash + 1;
	return artifacts_bucket_name_is_valid(bucket);
}

void artifact_path(const struct artifacts *a, const char *bucket, const char *file, char to[ARTIFACT_PATH_MAX]) {
	snprintf(to, ARTIFACT_PATH_MAX, "%s/%s%s%s", a->folder, bucket, file == NULL ? "" : "/", file == NULL ? "" : file);
}

static void unlink_file(const struct artifacts *a, const char *bucket, const char *file) {
	char path[ARTIFACT_PATH_MAX];
	artifact_path(a, bucket, file, path);
	unlink(path);
}

// Start -----------------------------------------------------------------------------------------------------------------------------

static int file_is_known(struct artifacts *a, const char *file, struct error *e) {
	struct store *s = a->store;
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT 1 FROM objects WHERE file=?1 UNION ALL SELECT 1 FROM parts WHERE file=?1", "s", file);
	return r < 0 ? r : db_step(s, st, e);
}

// Removes the files that no record names, bucket by bucket.
static int sweep(struct artifacts *a, struct error *e) {
	DB_LOCKED(a->store);
	int r = db_exec(a->store, e, "DELETE FROM uploads WHERE created_ms < ?", "i", (int64_t)realtime_ms() - UPLOAD_KEPT_MS);
	if (r < 0)
		return r;
	cleanup_dir DIR *buckets = opendir(a->folder);
	if (buckets == NULL)
		return error_errno(e, "cannot read %s", a->folder);
	for (const struct dirent *b; (b = readdir(buckets)) != NULL;) {
		if (!artifacts_bucket_name_is_valid(b->d_name))
			continue;
		char path[ARTIFACT_PATH_MAX];
		artifact_path(a, b->d_name, NULL, path);
		cleanup_dir DIR *files = opendir(path);
		if (files == NULL)
			continue;
		for (const struct dirent *f; (f = readdir(files)) != NULL;) {
			if (!uuid_is_valid(f->d_name))
				continue;
			r = file_is_known(a, f->d_name, e);
			if (r < 0)
				return r;
			if (r == 0)
				unlink_file(a, b->d_name, f->d_name);
		}
	}
	return 0;
}

int artifacts_start(struct store *s, const char *state_folder, uint64_t limit, struct artifacts **ret, struct error *e) {
	struct artifacts *a = calloc(1, sizeof(*a));
	if (a == NULL)
		return error_set(e, -ENOMEM, "out of memory opening the artifact store");
	a->store = s;
	a->limit = limit;
	snprintf(a->folder, sizeof(a->folder), "%s/artifacts", state_folder);
	int r = make_folders(a->folder, 0700, e);
	if (r >= 0)
		r = sweep(a, e);
	if (r < 0) {
		free(a);
		return r;
	}
	*ret = a;
	return 0;
}

void artifacts_stop(struct artifacts *a) {
	free(a);
}

// Buckets ---------------------------------------------------------------------------------------------------------------------------

static int find_bucket(struct artifacts *a, const char *account, const char *name, struct bucket *ret, struct error *e) {
	struct store *s = a->store;
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT name, account, created_ms FROM buckets WHERE name=?", "s", name);
	if (r >= 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_named(e, -ENOENT, "NoSuchBucket", "The specified bucket does not exist");
	*ret = (struct bucket){.created_ms = sqlite3_column_int64(st, 2)};
	db_text(st, 0, ret->name, sizeof(ret->name));
	db_text(st, 1, ret->account, sizeof(ret->account));
	if (account != NULL && strcmp(account, ret->account) != 0)
		return error_named(e, -EACCES, "AccessDenied", "Access Denied");
	return 0;
}

int artifacts_get_bucket(struct artifacts *a, const char *account, const char *name, struct bucket *ret, struct error *e) {
	DB_LOCKED(a->store);
	return find_bucket(a, account, name, ret, e);
}

int artifacts_create_bucket(struct artifacts *a, const char *account, const char *name, struct error *e) {
	if (!artifacts_bucket_name_is_valid(name))
		return error_named(e, -EINVAL, "InvalidBucketName", "The specified bucket is not valid.");
	DB_LOCKED(a->store);
	struct bucket b;
	int r = find_bucket(a, NULL, name, &b, e);
	if (r == 0) {
		if (strcmp(b.account, account) == 0)
			return error_named(e, -EEXIST, "BucketAlreadyOwnedByYou",
					   "Your previous request to create the named bucket succeeded and you already own it.");
		return error_named(e, -EEXIST, "BucketAlreadyExists",
				   "The requested bucket name is not available. Select a different name and try again.");
	}
	if (r != -ENOENT)
		return r;
	char path[ARTIFACT_PATH_MAX];
	artifact_path(a, name, NULL, path);
	r = make_folders(path, 0700, e);
	if (r >= 0)
		r = sync_folder(a->folder, e);
	if (r >= 0)
		r = db_exec(a->store, e, "INSERT INTO buckets(name, account, created_ms) VALUES(?,?,?)", "ssi", name, account,
			    (int64_t)realtime_ms());
	return r < 0 ? r : 0;
}

int artifacts_delete_bucket(struct artifacts *a, const char *account, const char *name, struct error *e) {
	DB_LOCKED(a->store);
	struct bucket b;
	int r = find_bucket(a, account, name, &b, e);
	if (r < 0)
		return r;
	r = db_begin(a->store, e);
	if (r < 0)
		return r;
	r = db_exec(a->store, e, "DELETE FROM uploads WHERE bucket=?", "s", name);
	if (r >= 0)
		r = db_exec(a->store, e, "DELETE FROM buckets WHERE name=?", "s", name);
	// Objects refer to their bucket, so that the database itself refuses.
	if (r == -ENOENT)
		error_named(e, r, "BucketNotEmpty", "The bucket you tried to delete is not empty");
	r = db_end(a->store, r, e);
	if (r < 0)
		return r;
	char path[ARTIFACT_PATH_MAX];
	artifact_path(a, name, NULL, path);
	return remove_tree(path, e);
}

int artifacts_list_buckets(struct artifacts *a, const char *account, int (*each)(const struct bucket *, void *), void *arg,
			   struct error *e) {
	char after[BUCKET_MAX] = "";
	for (;;) {
		struct bucket b = {.created_ms = 0};
		{
			DB_LOCKED(a->store);
			db_statement st = NULL;
			int r = db_query(a->store, &st, e,
					 "SELECT name, account, created_ms FROM buckets WHERE name > ? AND account=? ORDER BY name LIMIT 1",
					 "ss", after, account);
			if (r >= 0)
				r = db_step(a->store, st, e);
			if (r <= 0)
				return r;
			db_text(st, 0, b.name, sizeof(b.name));
			db_text(st, 1, b.account, sizeof(b.account));
			b.created_ms = sqlite3_column_int64(st, 2);
		}
		memcpy(after, b.name, sizeof(after));
		if (each(&b, arg) != 0)
			return 0;
	}
}

// Writing ---------------------------------------------------------------------------------------------------------------------------

struct object_writer {
	struct artifacts *a;
	char bucket[BUCKET_MAX], file[UUID_TEXT], etag[ETAG_MAX];
	int fd;
	uint64_t size;
	EVP_MD_CTX *md5; // NULL once the ETag is known
	bool kept;       // a record names the file
};

void artifacts_write_abort(struct object_writer *w) {
	if (w == NULL)
		return;
	if (w->fd >= 0)
		close(w->fd);
	if (!w->kept && w->file[0] != '\0')
		unlink_file(w->a, w->bucket, w->file);
	EVP_MD_CTX_free(w->md5);
	free(w);
}

int artifacts_write_start(struct artifacts *a, const char *bucket, struct object_writer **ret, struct error *e) {
	struct object_writer *w = calloc(1, sizeof(*w));
	if (w == NULL)
		return error_set(e, -ENOMEM, "out of memory writing an object");
	w->a = a;
	w->fd = -1;
	snprintf(w->bucket, sizeof(w->bucket), "%s", bucket);
	w->md5 = EVP_MD_CTX_new();
	if (w->md5 == NULL || EVP_DigestInit_ex(w->md5, EVP_md5(), NULL) != 1) {
		artifacts_write_abort(w);
		return error_set(e, -EIO, "MD5 is not available in this OpenSSL; the artifact store needs it for ETags");
	}
	char file[UUID_TEXT], path[ARTIFACT_PATH_MAX];
	uuid_new(file);
	artifact_path(a, bucket, file, path);
	w->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (w->fd < 0) {
		int r = errno == ENOENT ? error_named(e, -ENOENT, "NoSuchBucket", "The specified bucket does not exist")
					: error_errno(e, "cannot create %s", path);
		artifacts_write_abort(w);
		return r;
	}
	memcpy(w->file, file, sizeof(file));
	*ret = w;
	return 0;
}

int artifacts_write(struct object_writer *w, const void *data, size_t size, struct error *e) {
	if (size > w->a->limit || w->size > w->a->limit - size)
		return error_named(e, -EFBIG, "EntityTooLarge",
				   "Your proposed upload exceeds the maximum allowed size of %llu bytes (artifactLimitBytes)",
				   (unsigned long long)w->a->limit);
	int r = write_full(w->fd, data, size);
	if (r < 0)
		return error_set(e, r, "cannot write to the artifact store: %s", strerror(-r));
	w->size += size;
	EVP_DigestUpdate(w->md5, data, size);
	return 0;
}

const char *artifacts_write_etag(struct object_writer *w) {
	if (w->md5 != NULL) {
		unsigned char digest[EVP_MAX_MD_SIZE];
		unsigned n = 0;
		EVP_DigestFinal_ex(w->md5, digest, &n);
		EVP_MD_CTX_free(w->md5);
		w->md5 = NULL;
		hex_encode(digest, n, w->etag);
	}
	return w->etag;
}

// Puts the written bytes, and the file's name, on the disk.
static int flush(struct object_writer *w, struct error *e) {
	char folder[ARTIFACT_PATH_MAX];
	artifact_path(w->a, w->bucket, NULL, folder);
	if (fsync(w->fd) < 0)
		return error_errno(e, "cannot write to the artifact store");
	return sync_folder(folder, e);
}

// Inside a transaction: makes the file the object's content. `old` gets the name of the file that it replaces, or "".
static int put_object(struct artifacts *a, const char *bucket, const char *key, const char *file, uint64_t size, const char *etag,
		      const char *headers, char old[UUID_TEXT], struct error *e) {
	struct store *s = a->store;
	old[0] = '\0';
	{
		db_statement st = NULL;
		int r = db_query(s, &st, e, "SELECT file FROM objects WHERE bucket=? AND key=?", "ss", bucket, key);
		if (r >= 0)
			r = db_step(s, st, e);
		if (r < 0)
			return r;
		if (r > 0)
			db_text(st, 0, old, UUID_TEXT);
	}
	int r = db_exec(s, e, "INSERT OR REPLACE INTO objects(bucket, key, file, size, etag, modified_ms, headers) VALUES(?,?,?,?,?,?,?)",
			"sssisis", bucket, key, file, (int64_t)size, etag, (int64_t)realtime_ms(), headers == NULL ? "{}" : headers);
	if (r == -ENOENT)
		return error_named(e, r, "NoSuchBucket", "The specified bucket does not exist");
	return r;
}

int artifacts_write_finish(struct object_writer *w, const char *key, const char *headers_json, struct error *e) {
	struct artifacts *a = w->a;
	char old[UUID_TEXT] = "";
	int r = flush(w, e);
	if (r >= 0) {
		DB_LOCKED(a->store);
		r = db_begin(a->store, e);
		if (r >= 0) {
			r = put_object(a, w->bucket, key, w->file, w->size, artifacts_write_etag(w), headers_json, old, e);
			r = db_end(a->store, r, e);
		}
	}
	w->kept = r >= 0;
	if (r >= 0 && old[0] != '\0')
		unlink_file(a, w->bucket, old);
	artifacts_write_abort(w);
	return r < 0 ? r : 0;
}

// Objects ---------------------------------------------------------------------------------------------------------------------------

void object_clear(struct object *o) {
	free(o->headers);
	o->headers = NULL;
}

#define OBJECT_COLUMNS "key, etag, size, modified_ms, file, headers"

static int read_object(sqlite3_stmt *st, struct object *o, struct error *e) {
	*o = (struct object){.size = (uint64_t)sqlite3_column_int64(st, 2), .modified_ms = sqlite3_column_int64(st, 3)};
	db_text(st, 0, o->key, sizeof(o->key));
	db_text(st, 1, o->etag, sizeof(o->etag));
	db_text(st, 4, o->file, sizeof(o->file));
	o->headers = db_text_copy(st, 5);
	return o->headers == NULL ? error_set(e, -ENOMEM, "out of memory reading an object") : 0;
}

int artifacts_get_object(struct artifacts *a, const char *bucket, const char *key, struct object *ret, struct error *e) {
	DB_LOCKED(a->store);
	db_statement st = NULL;
	int r = db_query(a->store, &st, e, "SELECT " OBJECT_COLUMNS " FROM objects WHERE bucket=? AND key=?", "ss", bucket, key);
	if (r >= 0)
		r = db_step(a->store, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return error_named(e, -ENOENT, "NoSuchKey", "The specified key does not exist.");
	return read_object(st, ret, e);
}

int artifacts_open_object(struct artifacts *a, const char *bucket, const char *key, int *ret_fd, struct object *ret, struct error *e) {
	// Between finding the record and opening its file the object may be replaced: then there is another record to find.
	for (int attempt = 0; attempt < 16; attempt++) {
		struct object o;
		int r = artifacts_get_object(a, bucket, key, &o, e);
		if (r < 0)
			return r;
		char path[ARTIFACT_PATH_MAX];
		artifact_path(a, bucket, o.file, path);
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd >= 0) {
			*ret_fd = fd;
			if (ret != NULL)
				*ret = o;
			else
				object_clear(&o);
			return 0;
		}
		object_clear(&o);
		if (errno != ENOENT)
			return error_errno(e, "cannot open %s", path);
	}
	return error_set(e, -EIO, "the bytes of s3://%s/%s are missing from the artifact store: upload it again", bucket, key);
}

int artifacts_delete_object(struct artifacts *a, const char *bucket, const char *key, struct error *e) {
	char file[UUID_TEXT] = "";
	{
		DB_LOCKED(a->store);
		db_statement st = NULL;
		int r = db_query(a->store, &st, e, "DELETE FROM objects WHERE bucket=? AND key=? RETURNING file", "ss", bucket, key);
		if (r >= 0)
			r = db_step(a->store, st, e);
		if (r <= 0)
			return r;
		db_text(st, 0, file, sizeof(file));
		// RETURNING gives its rows first; the statement is committed when it has been stepped to its end.
		r = db_step(a->store, st, e);
		if (r < 0)
			return r;
	}
	unlink_file(a, bucket, file);
	return 0;
}

// Listing ---------------------------------------------------------------------------------------------------------------------------

// The first object whose key is greater than `after` (or equal, with `or_equal`). 1: found, 0: none.
static int next_object(struct artifacts *a, const char *bucket, const char *after, bool or_equal, struct object *o, struct error *e) {
	DB_LOCKED(a->store);
	db_statement st = NULL;
	int r = db_query(a->store, &st, e,
			 or_equal ? "SELECT " OBJECT_COLUMNS " FROM objects WHERE bucket=? AND key >= ? ORDER BY key LIMIT 1"
				  : "SELECT " OBJECT_COLUMNS " FROM objects WHERE bucket=? AND key > ? ORDER BY key LIMIT 1",
			 "ss", bucket, after);
	if (r >= 0)
		r = db_step(a->store, st, e);
	if (r <= 0)
		return r;
	r = read_object(st, o, e);
	return r < 0 ? r : 1;
}

// The least text that is greater than everything which starts with `prefix`; false when there is none (all bytes 0xff, which UTF-8 lacks).
static bool successor(char *prefix) {
	for (size_t n = strlen(prefix); n > 0; n--) {
		if ((unsigned char)prefix[n - 1] < 0xff) {
			prefix[n - 1] = (char)((unsigned char)prefix[n - 1] + 1);
			prefix[n] = '\0';
			return true;
		}
	}
	return false;
}

int artifacts_list(struct artifacts *a, const struct object_list *q, int (*each)(const char *key, const struct object *o, void *),
		   void *arg, bool *ret_more, char last[OBJECT_KEY_MAX + 1], struct error *e) {
	size_t prefix_size = strlen(q->prefix), given = 0;
	char from[OBJECT_KEY_MAX + 1];
	bool or_equal = false;
	*ret_more = false;
	last[0] = '\0';
	snprintf(from, sizeof(from), "%s", q->after);
	if (prefix_size > OBJECT_KEY_MAX)
		return 0;
	if (strcmp(from, q->prefix) < 0) {
		snprintf(from, sizeof(from), "%s", q->prefix);
		or_equal = true;
	}
	// A start behind a common prefix that was given already (a continuation) skips all that it folds.
	if (q->delimiter[0] != '\0' && strncmp(from, q->prefix, prefix_size) == 0 && strlen(from) > prefix_size) {
		const char *cut = strstr(from + prefix_size, q->delimiter);
		if (cut != NULL && cut[strlen(q->delimiter)] == '\0') {
			if (!successor(from))
				return 0;
			or_equal = true;
		}
	}
	for (;;) {
		struct object o;
		int r = next_object(a, q->bucket, from, or_equal, &o, e);
		if (r <= 0)
			return r;
		if (strncmp(o.key, q->prefix, prefix_size) != 0) {
			object_clear(&o);
			return 0;
		}
		if (given == q->limit) {
			*ret_more = true;
			object_clear(&o);
			return 0;
		}
		const char *cut = q->delimiter[0] == '\0' ? NULL : strstr(o.key + prefix_size, q->delimiter);
		if (cut != NULL)
			o.key[(size_t)(cut - o.key) + strlen(q->delimiter)] = '\0';
		memcpy(from, o.key, sizeof(from));
		memcpy(last, o.key, sizeof(from));
		given++;
		int stop = each(o.key, cut == NULL ? &o : NULL, arg);
		object_clear(&o);
		if (stop != 0)
			return 0;
		or_equal = cut != NULL;
		if (cut != NULL && !successor(from))
			return 0;
	}
}

// Multipart uploads -----------------------------------------------------------------------------------------------------------------

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

int artifacts_upload_start(struct artifacts *a, const char *bucket, const char *key, const char *headers_json, char id[UUID_TEXT],
			   struct error *e) {
	DB_LOCKED(a->store);
	uuid_new(id);
	int r = db_exec(a->store, e, "INSERT INTO uploads(id, bucket, key, created_ms, headers) VALUES(?,?,?,?,?)", "sssis", id, bucket,
			key, (int64_t)realtime_ms(), headers_json);
	if (r == -ENOENT)
		return error_named(e, r, "NoSuchBucket", "The specified bucket does not exist");
	return r < 0 ? r : 0;
}

int artifacts_upload_check(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e) {
	DB_LOCKED(a->store);
	return find_upload(a, bucket, key, id, NULL, e);
}

int artifacts_upload_part(struct object_writer *w, const char *key, const char *id, int number, struct error *e) {
	struct artifacts *a = w->a;
	struct store *s = a->store;
	char old[UUID_TEXT] = "";
	int r = flush(w, e);
	if (r >= 0) {
		DB_LOCKED(s);
		r = db_begin(s, e);
		if (r >= 0) {
			r = find_upload(a, w->bucket, key, id, NULL, e);
			if (r >= 0) {
				db_statement st = NULL;
				r = db_query(s, &st, e, "SELECT file FROM parts WHERE upload=? AND number=?", "si", id, (int64_t)number);
				if (r >= 0 && (r = db_step(s, st, e)) > 0)
					db_text(st, 0, old, sizeof(old));
			}
			if (r >= 0)
				r = db_exec(s, e, "INSERT OR REPLACE INTO parts(upload, number, file, size, etag) VALUES(?,?,?,?,?)",
					    "sisis", id, (int64_t)number, w->file, (int64_t)w->size, artifacts_write_etag(w));
			r = db_end(s, r, e);
		}
	}
	w->kept = r >= 0;
	if (r >= 0 && old[0] != '\0')
		unlink_file(a, w->bucket, old);
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
	for (uint64_t left = size; left > 0;) {
		ssize_t n = copy_file_range(from, NULL, w->fd, NULL, left, 0);
		if (n <= 0)
			return n == 0 ? error_set(e, -EIO, "a part in the artifact store is shorter than recorded: upload it again")
				      : error_errno(e, "cannot write to the artifact store");
		left -= (uint64_t)n;
	}
	w->size += size;
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

// Takes the upload's record away; the names of its files are handed to forget() afterwards by the caller's sweep of `files`.
static int take_upload(struct artifacts *a, const char *id, char (**files)[UUID_TEXT], size_t *n, struct error *e) {
	struct store *s = a->store;
	{
		db_statement st = NULL;
		int r = db_query(s, &st, e, "SELECT file FROM parts WHERE upload=?", "s", id);
		if (r < 0)
			return r;
		while ((r = db_step(s, st, e)) > 0) {
			char(*more)[UUID_TEXT] = realloc(*files, (*n + 1) * sizeof(**files));
			if (more == NULL)
				return error_set(e, -ENOMEM, "out of memory ending an upload");
			*files = more;
			db_text(st, 0, more[(*n)++], UUID_TEXT);
		}
		if (r < 0)
			return r;
	}
	return db_exec(s, e, "DELETE FROM uploads WHERE id=?", "s", id);
}

int artifacts_upload_complete(struct artifacts *a, const char *bucket, const char *key, const char *id, const struct upload_part *parts,
			      size_t n, char etag[ETAG_MAX], struct error *e) {
	cleanup_free struct part *found = calloc(n + 1, sizeof(*found));
	cleanup_free char *headers = NULL;
	if (found == NULL)
		return error_set(e, -ENOMEM, "out of memory completing an upload");
	{
		DB_LOCKED(a->store);
		int r = find_upload(a, bucket, key, id, &headers, e);
		if (r >= 0)
			r = find_parts(a, id, parts, n, found, e);
		if (r < 0)
			return r;
	}
	struct object_writer *w = NULL;
	int r = artifacts_write_start(a, bucket, &w, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n && r >= 0; i++)
		r = append_file(w, found[i].file, found[i].size, e);
	if (r >= 0)
		r = flush(w, e);
	join_etags(found, n, etag);
	char old[UUID_TEXT] = "";
	cleanup_free char(*files)[UUID_TEXT] = NULL;
	size_t file_count = 0;
	if (r >= 0) {
		DB_LOCKED(a->store);
		r = db_begin(a->store, e);
		if (r >= 0) {
			// Again, in the transaction: only one of two completions may win.
			r = find_upload(a, bucket, key, id, NULL, e);
			if (r >= 0)
				r = put_object(a, bucket, key, w->file, w->size, etag, headers, old, e);
			if (r >= 0)
				r = take_upload(a, id, &files, &file_count, e);
			r = db_end(a->store, r, e);
		}
	}
	w->kept = r >= 0;
	artifacts_write_abort(w);
	if (r < 0)
		return r;
	if (old[0] != '\0')
		unlink_file(a, bucket, old);
	for (size_t i = 0; i < file_count; i++)
		unlink_file(a, bucket, files[i]);
	return 0;
}

int artifacts_upload_abort(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e) {
	cleanup_free char(*files)[UUID_TEXT] = NULL;
	size_t n = 0;
	{
		DB_LOCKED(a->store);
		int r = db_begin(a->store, e);
		if (r < 0)
			return r;
		r = find_upload(a, bucket, key, id, NULL, e);
		if (r >= 0)
			r = take_upload(a, id, &files, &n, e);
		r = db_end(a->store, r, e);
		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < n; i++)
		unlink_file(a, bucket, files[i]);
	return 0;
}
