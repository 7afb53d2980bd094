// Buckets and objects on the local disk; see artifacts.h. Multipart uploads are in artifact_uploads.c.
//
// The bytes of an object or part lie in a file with a random name, written and flushed before the record that names it is committed. Replacing
// or deleting commits first and unlinks afterwards. So a record always has its bytes, and what a crash leaves is files without a
// record, which artifacts_start() removes.
//
// Every byte is counted before it is written: against the limit of its object, that of the store, and the disk, of which DISK_RESERVE bytes
// are left to what stasisd must always be able to write, its records above all.
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
#include <sys/statvfs.h>

#define DISK_RESERVE (64u << 20)
#define DISK_LOOK_BYTES (8u << 20) // written between two looks at the disk's free space
#define BUCKETS_PER_ACCOUNT 1000
#define COPY_PIECE (256u << 10)

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

static void release(struct artifacts *a, uint64_t size) {
	pthread_mutex_lock(&a->lock);
	a->used -= size < a->used ? size : a->used;
	pthread_mutex_unlock(&a->lock);
}

void artifact_unlink(struct artifacts *a, const char *bucket, const struct artifact_file *file) {
	if (file->name[0] == '\0')
		return;
	unlink_file(a, bucket, file->name);
	release(a, file->size);
}

int artifact_disk_error(int code, struct error *e) {
	if (code == -ENOSPC || code == -EDQUOT)
		return error_named(e, code, "InsufficientStorage",
				   "The disk of the artifact store is full: remove objects, images or microVMs, or give it more room");
	if (code == -EROFS)
		return error_named(e, code, "ServiceUnavailable", "The disk of the artifact store cannot be written: it is read-only");
	return error_set(e, code, "cannot write to the artifact store: %s", strerror(-code));
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
	{
		db_statement st = NULL;
		r = db_query(a->store, &st, e, "SELECT (SELECT TOTAL(size) FROM objects) + (SELECT TOTAL(size) FROM parts)", "");
		if (r >= 0)
			r = db_step(a->store, st, e);
		if (r < 0)
			return r;
		a->used = (uint64_t)sqlite3_column_double(st, 0);
	}
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
	pthread_mutex_init(&a->lock, NULL);
	snprintf(a->folder, sizeof(a->folder), "%s/artifacts", state_folder);
	int r = make_folders(a->folder, 0700, e);
	if (r >= 0)
		r = sweep(a, e);
	if (r < 0) {
		artifacts_stop(a);
		return r;
	}
	*ret = a;
	return 0;
}

void artifacts_stop(struct artifacts *a) {
	if (a != NULL)
		pthread_mutex_destroy(&a->lock);
	free(a);
}

void artifacts_limit_total(struct artifacts *a, uint64_t bytes) {
	pthread_mutex_lock(&a->lock);
	a->total_limit = bytes;
	pthread_mutex_unlock(&a->lock);
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

static int count_buckets(struct artifacts *a, const char *account, struct error *e) {
	db_statement st = NULL;
	int r = db_query(a->store, &st, e, "SELECT COUNT(*) FROM buckets WHERE account=?", "s", account);
	if (r >= 0)
		r = db_step(a->store, st, e);
	return r <= 0 ? r : sqlite3_column_int(st, 0);
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
	r = count_buckets(a, account, e);
	if (r < 0)
		return r;
	if (r >= BUCKETS_PER_ACCOUNT)
		return error_named(e, -EDQUOT, "TooManyBuckets", "You have attempted to create more buckets than allowed (%d)",
				   BUCKETS_PER_ACCOUNT);
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
	uint64_t parts = 0;
	{
		db_statement st = NULL;
		r = db_query(a->store, &st, e, "SELECT TOTAL(size) FROM parts WHERE upload IN (SELECT id FROM uploads WHERE bucket=?)", "s",
			     name);
		if (r >= 0 && (r = db_step(a->store, st, e)) > 0)
			parts = (uint64_t)sqlite3_column_double(st, 0);
		if (r < 0)
			return r;
	}
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
	release(a, parts);
	char path[ARTIFACT_PATH_MAX];
	artifact_path(a, name, NULL, path);
	return remove_tree(path, e);
}

int artifacts_list_buckets(struct artifacts *a, const char *account, const char *from, int (*each)(const struct bucket *, void *),
			   void *arg, struct error *e) {
	char after[BUCKET_MAX] = "";
	snprintf(after, sizeof(after), "%s", from);
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

void artifacts_write_abort(struct object_writer *w) {
	if (w == NULL)
		return;
	if (w->fd >= 0)
		close(w->fd);
	if (!w->kept)
		release(w->a, w->size);
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
					: artifact_disk_error(-errno, e);
		artifacts_write_abort(w);
		return r;
	}
	memcpy(w->file, file, sizeof(file));
	*ret = w;
	return 0;
}

static bool disk_has_room(struct object_writer *w, uint64_t size) {
	struct statvfs disk;
	if (w->size > 0 && w->size + size - w->looked_at < DISK_LOOK_BYTES)
		return true;
	w->looked_at = w->size + size;
	return fstatvfs(w->fd, &disk) < 0 || (uint64_t)disk.f_bavail * disk.f_frsize >= DISK_RESERVE + size;
}

int artifact_reserve(struct object_writer *w, uint64_t size, bool limited, struct error *e) {
	struct artifacts *a = w->a;
	if (!disk_has_room(w, size))
		return artifact_disk_error(-ENOSPC, e);
	pthread_mutex_lock(&a->lock);
	uint64_t limit = a->total_limit;
	bool fits = !limited || limit == 0 || (a->used <= limit && size <= limit - a->used);
	if (fits)
		a->used += size;
	pthread_mutex_unlock(&a->lock);
	if (!fits)
		return error_named(
			e, -EDQUOT, "QuotaExceeded",
			"The artifact store holds as much as it may, %llu bytes (artifactStoreLimitBytes): remove objects, or raise "
			"the limit",
			(unsigned long long)limit);
	w->size += size;
	return 0;
}

void artifacts_write_only_if(struct object_writer *w, const struct object_condition *c) {
	w->condition = *c;
}

int artifacts_copy(struct object_writer *w, int fd, uint64_t offset, uint64_t size, struct error *e) {
	cleanup_free char *piece = malloc(COPY_PIECE);
	if (piece == NULL)
		return error_set(e, -ENOMEM, "out of memory copying an object");
	for (uint64_t done = 0; done < size;) {
		size_t n = size - done < COPY_PIECE ? (size_t)(size - done) : COPY_PIECE;
		int r = pread_full(fd, piece, n, offset + done);
		if (r < 0)
			return error_set(e, r, "cannot read from the artifact store: %s", strerror(-r));
		r = artifacts_write(w, piece, n, e);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

int artifacts_write(struct object_writer *w, const void *data, size_t size, struct error *e) {
	if (size > w->a->limit || w->size > w->a->limit - size)
		return error_named(e, -EFBIG, "EntityTooLarge",
				   "Your proposed upload exceeds the maximum allowed size of %llu bytes (artifactLimitBytes)",
				   (unsigned long long)w->a->limit);
	int r = artifact_reserve(w, size, true, e);
	if (r < 0)
		return r;
	r = write_full(w->fd, data, size);
	if (r < 0)
		return artifact_disk_error(r, e);
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

int artifact_flush(struct object_writer *w, struct error *e) {
	char folder[ARTIFACT_PATH_MAX];
	artifact_path(w->a, w->bucket, NULL, folder);
	if (fsync(w->fd) < 0)
		return artifact_disk_error(-errno, e);
	return sync_folder(folder, e);
}

static int check_condition(const struct object_condition *c, bool exists, const char *etag, struct error *e) {
	static const char failed[] = "At least one of the pre-conditions you specified did not hold";
	if (c->if_none_match && exists)
		return error_named(e, -ECANCELED, "PreconditionFailed", "%s", failed);
	if (c->if_match[0] != '\0' && !exists)
		return error_named(e, -ENOENT, "NoSuchKey", "The specified key does not exist.");
	if (c->if_match[0] != '\0' && strcmp(c->if_match, "*") != 0 && strcmp(c->if_match, etag) != 0)
		return error_named(e, -ECANCELED, "PreconditionFailed", "%s", failed);
	return 0;
}

// Inside a transaction: the file and ETag of an object that may be there, checked against a condition.
static int look_up(struct artifacts *a, const char *bucket, const char *key, const struct object_condition *c, struct artifact_file *ret,
		   struct error *e) {
	char etag[ETAG_MAX] = "";
	*ret = (struct artifact_file){.size = 0};
	db_statement st = NULL;
	int r = db_query(a->store, &st, e, "SELECT file, size, etag FROM objects WHERE bucket=? AND key=?", "ss", bucket, key);
	if (r >= 0)
		r = db_step(a->store, st, e);
	if (r < 0)
		return r;
	if (r > 0) {
		db_text(st, 0, ret->name, sizeof(ret->name));
		ret->size = (uint64_t)sqlite3_column_int64(st, 1);
		db_text(st, 2, etag, sizeof(etag));
	}
	return check_condition(c, r > 0, etag, e);
}

int artifact_put(struct object_writer *w, const char *key, const char *etag, const char *headers, struct artifact_file *old,
		 struct error *e) {
	int r = look_up(w->a, w->bucket, key, &w->condition, old, e);
	if (r < 0)
		return r;
	r = db_exec(w->a->store, e,
		    "INSERT OR REPLACE INTO objects(bucket, key, file, size, etag, modified_ms, headers) VALUES(?,?,?,?,?,?,?)", "sssisis",
		    w->bucket, key, w->file, (int64_t)w->size, etag, (int64_t)realtime_ms(), headers == NULL ? "{}" : headers);
	if (r == -ENOENT)
		return error_named(e, r, "NoSuchBucket", "The specified bucket does not exist");
	return r;
}

int artifacts_write_finish(struct object_writer *w, const char *key, const char *headers_json, struct error *e) {
	struct artifacts *a = w->a;
	struct artifact_file old = {.size = 0};
	int r = artifact_flush(w, e);
	if (r >= 0) {
		DB_LOCKED(a->store);
		r = db_begin(a->store, e);
		if (r >= 0) {
			r = artifact_put(w, key, artifacts_write_etag(w), headers_json, &old, e);
			r = db_end(a->store, r, e);
		}
	}
	w->kept = r >= 0;
	if (r >= 0)
		artifact_unlink(a, w->bucket, &old);
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

int artifacts_delete_object(struct artifacts *a, const char *bucket, const char *key, const struct object_condition *c, struct error *e) {
	struct artifact_file file;
	{
		DB_LOCKED(a->store);
		int r = db_begin(a->store, e);
		if (r < 0)
			return r;
		r = look_up(a, bucket, key, c == NULL ? &(struct object_condition){.if_none_match = false} : c, &file, e);
		if (r >= 0 && file.name[0] != '\0')
			r = db_exec(a->store, e, "DELETE FROM objects WHERE bucket=? AND key=?", "ss", bucket, key);
		r = db_end(a->store, r, e);
		if (r < 0)
			return r;
	}
	artifact_unlink(a, bucket, &file);
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
