// The artifact store: buckets and objects for `s3://bucket/key`, kept on disk, and reading of artifacts wherever they lie.
//
// Metadata (bucket, key, size, ETag, headers) lies in the store's database; the bytes lie in <state>/artifacts/<bucket>/<uuid>, a file
// name that no client chooses, so that keys may be any text. An object appears only when its bytes are on the disk, all at once, and
// replaces the one before it in the same transaction. Files that no record names (a crash in between) are removed at the next start.
//
// Errors carry S3's names in struct error.name: NoSuchBucket, NoSuchKey, NoSuchUpload, BucketAlreadyOwnedByYou, BucketAlreadyExists,
// BucketNotEmpty, InvalidBucketName, TooManyBuckets, KeyTooLongError, InvalidPart, InvalidPartOrder, EntityTooSmall, EntityTooLarge,
// PreconditionFailed, TooManyMultipartUploads, BadDigest; QuotaExceeded (the store's own limit), InsufficientStorage (the disk is full),
// ServiceUnavailable (it is read-only). Functions are thread-safe and block on the disk: [worker].
#pragma once

#include "base/error.h"
#include "base/uuid.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct store;
struct artifacts; // opaque

#define BUCKET_MAX 64 // 63 characters and NUL
#define OBJECT_KEY_MAX 1024
#define ETAG_MAX 48

// Opens the artifact store below `state_folder`; `limit` is the largest object in bytes.
int artifacts_start(struct store *s, const char *state_folder, uint64_t limit, struct artifacts **ret, struct error *e);
void artifacts_stop(struct artifacts *a);
// How many bytes all objects and parts together may take; 0, the beginning: as many as the disk holds.
void artifacts_limit_total(struct artifacts *a, uint64_t bytes);

// Opens an artifact named by a build for reading: from the built-in store, when the account has the bucket there or the configuration has no
// s3Endpoint, otherwise from that (into an unnamed temporary file). *ret_fd is the caller's. Errors are named as the service names them: S3_NO_SUCH_BUCKET, S3_NO_SUCH_KEY,
// S3_ACCESS_DENIED, S3_INVALID_OBJECT, INTERNAL_PLATFORM_ERROR. `account`: whose bucket it must be; NULL: anybody's. [worker]
int artifacts_open_for(struct engine *en, const char *account, const char *uri, int *ret_fd, uint64_t *ret_size, struct error *e);
int artifacts_open(struct engine *en, const char *uri, int *ret_fd, uint64_t *ret_size, struct error *e);

// Whether the text is s3://<bucket>/<key>; splits it. The key is what stands there, not decoded.
bool artifacts_parse_uri(const char *uri, char bucket[BUCKET_MAX], const char **ret_key);
bool artifacts_bucket_name_is_valid(const char *name);

// Buckets. -------------------------------------------------------------------------------------------------------------------
struct bucket {
	char name[BUCKET_MAX];
	char account[13];
	int64_t created_ms;
};
int artifacts_create_bucket(struct artifacts *a, const char *account, const char *name, struct error *e);
int artifacts_delete_bucket(struct artifacts *a, const char *account, const char *name, struct error *e);
// Also refuses (AccessDenied) a bucket of somebody else, unless account is NULL.
int artifacts_get_bucket(struct artifacts *a, const char *account, const char *name, struct bucket *ret, struct error *e);
// By name, those behind `from` ("" starts), until each() returns non-zero.
int artifacts_list_buckets(struct artifacts *a, const char *account, const char *from, int (*each)(const struct bucket *, void *),
			   void *arg, struct error *e);

// Objects. -------------------------------------------------------------------------------------------------------------------
struct object {
	char key[OBJECT_KEY_MAX + 1];
	char etag[ETAG_MAX]; // without quotes
	uint64_t size;
	int64_t modified_ms;
	char file[UUID_TEXT];
	char *headers; // JSON object: content-type, x-amz-meta-*, …, as GetObject gives them back; released by object_clear()
};
void object_clear(struct object *o);

// When a write or a deletion may happen: checked in the transaction that makes it.
struct object_condition {
	char if_match[ETAG_MAX]; // the object must have this ETag ("*": any); "": no condition
	bool if_none_match;      // there must be no such object
};

// Writing: start, write any number of times, then finish (which makes it visible) or abort. The writer hashes as it goes.
struct object_writer;
int artifacts_write_start(struct artifacts *a, const char *bucket, struct object_writer **ret, struct error *e);
int artifacts_write(struct object_writer *w, const void *data, size_t size, struct error *e); // EntityTooLarge beyond the limit
const char *artifacts_write_etag(struct object_writer *w);                                    // hex MD5 of all that was written
int artifacts_write_finish(struct object_writer *w, const char *key, const char *headers_json,
			   struct error *e); // releases w, whatever it returns
void artifacts_write_abort(struct object_writer *w);
void artifacts_write_only_if(struct object_writer *w, const struct object_condition *c);
// Writes `size` bytes of a file that an object or somebody else has, from `offset` on.
int artifacts_copy(struct object_writer *w, int fd, uint64_t offset, uint64_t size, struct error *e);

int artifacts_get_object(struct artifacts *a, const char *bucket, const char *key, struct object *ret, struct error *e);
// Opens the bytes of the object for reading; ret may be NULL.
int artifacts_open_object(struct artifacts *a, const char *bucket, const char *key, int *ret_fd, struct object *ret, struct error *e);
// A missing one is fine unless the condition (NULL: none) asks for it.
int artifacts_delete_object(struct artifacts *a, const char *bucket, const char *key, const struct object_condition *c, struct error *e);

// Lists keys that start with `prefix`, in byte order, those behind `after` ("" starts). With a delimiter, keys that have it behind the
// prefix are folded: each() gets the common prefix and object == NULL. Stops behind `limit` entries; *ret_more says whether there are
// more, and `last` (the key or common prefix given last) is what to continue after.
struct object_list {
	const char *bucket, *prefix, *delimiter, *after;
	size_t limit;
};
int artifacts_list(struct artifacts *a, const struct object_list *q, int (*each)(const char *key, const struct object *o, void *),
		   void *arg, bool *ret_more, char last[OBJECT_KEY_MAX + 1], struct error *e);

// Multipart uploads. An upload that is a week old is forgotten. --------------------------------------------------------------------
#define UPLOAD_KEPT_MS (7LL * 24 * 3600 * 1000)

int artifacts_upload_start(struct artifacts *a, const char *bucket, const char *key, const char *headers_json, char id[UUID_TEXT],
			   struct error *e);
int artifacts_upload_check(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e);
// Like artifacts_write_finish(), but the bytes become part `number` (1 to 10000) of an upload. Releases w.
int artifacts_upload_part(struct object_writer *w, const char *key, const char *id, int number, struct error *e);
struct upload_part {
	int number;
	char etag[ETAG_MAX]; // without quotes
	uint64_t size;       // what follows is for lists only
	int64_t modified_ms;
};
struct upload_end {
	const char *bucket, *key, *id;
	const struct upload_part *parts; // what the client says that they are
	size_t count;
	const struct object_condition *condition; // NULL: none
	const char *sum_kind, *sum_value;         // a checksum of the whole ("crc32c", base64); NULL: none was given
};
int artifacts_upload_complete(struct artifacts *a, const struct upload_end *q, char etag[ETAG_MAX], struct error *e);
int artifacts_upload_abort(struct artifacts *a, const char *bucket, const char *key, const char *id, struct error *e);

// The parts of an upload behind number `after`, at most `limit`. *ret_more: there are more.
int artifacts_list_parts(struct artifacts *a, const char *bucket, const char *key, const char *id, int after, size_t limit,
			 int (*each)(const struct upload_part *, void *), void *arg, bool *ret_more, struct error *e);
struct upload {
	char key[OBJECT_KEY_MAX + 1];
	char id[UUID_TEXT];
	int64_t created_ms;
};
// The uploads of keys that start with `prefix`, by key and id, behind the pair (after_key, after_id), until each() returns non-zero.
int artifacts_list_uploads(struct artifacts *a, const char *bucket, const char *prefix, const char *after_key, const char *after_id,
			   int (*each)(const struct upload *, void *), void *arg, struct error *e);
