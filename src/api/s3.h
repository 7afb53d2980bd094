// Inside src/api/ only: one call of the artifact store's S3 operations. s3.c reads the request and answers, s3_body.c takes bodies, s3_object.c,
// s3_copy.c, s3_bucket.c, s3_list.c and s3_upload.c are the operations.
#pragma once

#include "api/access.h"
#include "api/server.h"
#include "api/sigv4.h"
#include "api/text.h"
#include "base/error.h"
#include "stasisd/engine.h"
#include "store/artifacts.h"

#define S3_NAMESPACE "http://s3.amazonaws.com/doc/2006-03-01/"

struct s3_call {
	struct engine *en;
	struct exchange *x;
	const struct http_head *head;
	struct store_key key;
	char principal[PRINCIPAL_MAX]; // whose key it is
	struct sigv4 signature;
	char payload[64 + 1]; // what stands for the body in the signature
	char bucket[256];     // "" for the service itself
	char *object;         // the key, decoded; NULL or "" for the bucket itself
	struct slice path, query;
};

// Answers with an error; its status goes with its name (InternalError for an unknown or empty one). Returns -1.
int s3_fail(struct s3_call *c, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
int s3_fail_with(struct s3_call *c, const struct error *e);
// Answers with an XML document, to which the declaration is put in front.
void s3_answer_xml(struct s3_call *c, int status, const struct text *body);
// Whether the bucket is there, the caller's, and its owner the one that the header names (when it is sent). False: failed and answered.
bool s3_is_own(struct s3_call *c, const char *bucket, const char *owner_header);
bool s3_own_bucket(struct s3_call *c); // of the request's address
bool s3_is_utf8(const char *s);
// The decoded value of a query parameter, or NULL. The caller frees it.
char *s3_query(const struct s3_call *c, const char *name);
bool s3_has_query(const struct s3_call *c, const char *name); // with or without a value
// A whole number of a query parameter or header, at most 18 digits. False: it is none.
bool s3_parse_number(struct slice text, uint64_t *ret);
// The same of a parameter that may be absent (*ret stays), at most `most`, for which a larger one is taken. False: failed and answered.
bool s3_query_number(struct s3_call *c, const char *name, uint64_t most, uint64_t *ret);
void s3_time(int64_t ms, char to[static 32]);      // 2026-01-02T03:04:05.678Z
void s3_http_time(int64_t ms, char to[static 40]); // Fri, 02 Jan 2026 03:04:05 GMT

// Access, s3_access.c. Whether the caller may do what the request asks for. False: failed and answered.
bool s3_check_access(struct s3_call *c);
// One action on a bucket or, with a key, an object; without a bucket on "*". 0 or -EACCES, with *e named for an answer.
int s3_allowed(struct s3_call *c, const char *action, const char *bucket, const char *key, struct error *e);

// Bodies. ------------------------------------------------------------------------------------------------------------------------
struct s3_checksum {
	char header[40]; // "x-amz-checksum-crc32"; "" when the client sent none
	char value[48];  // base64
};
// Reads the whole body, decoded, and checks everything that the client said about it: the signed hash or the chunks' signatures, the
// length, Content-MD5, checksums in headers or trailers. What `take` was given counts only when this returns 0; otherwise the call is answered.
int s3_take_body(struct s3_call *c, int (*take)(void *arg, const void *data, size_t size, struct error *e), void *arg,
		 struct s3_checksum *ret);
// The same, into memory.
int s3_take_text(struct s3_call *c, size_t limit, struct text *ret);
// The same for a document that comes with the checksum of an object, which is not the document's: it is handed out unchecked.
int s3_take_document(struct s3_call *c, size_t limit, struct text *ret, struct s3_checksum *of_object);
// How many bytes of content the client announces, or 0.
uint64_t s3_announced_size(const struct s3_call *c);
// What GetObject gives back: JSON of the headers to keep. NULL: failed and answered. The caller frees it.
char *s3_kept_headers(struct s3_call *c, const struct s3_checksum *sum);

// Conditions. --------------------------------------------------------------------------------------------------------------------
// What the client asks of the object that is to be replaced or deleted. False: failed and answered.
bool s3_write_condition(struct s3_call *c, struct object_condition *ret);
// The four conditions on an object that is read; header names are put behind `prefix` ("" or "x-amz-copy-source-").
enum s3_verdict { S3_CONDITION_MET, S3_NOT_MODIFIED, S3_CONDITION_FAILED };
enum s3_verdict s3_read_condition(const struct s3_call *c, const char *prefix, const struct object *o);
// Refuses headers that ask for what the store does not do (encryption, tags, grants, …), and sizes beyond the limit. False: answered.
bool s3_accept_write(struct s3_call *c);
// The parameter of a part's number. 0: failed and answered.
int s3_part_number(struct s3_call *c);

// Operations. ----------------------------------------------------------------------------------------------------------------------
void s3_list_buckets(struct s3_call *c);
void s3_create_bucket(struct s3_call *c);
void s3_delete_bucket(struct s3_call *c);
void s3_head_bucket(struct s3_call *c);
void s3_get_location(struct s3_call *c);
void s3_get_versioning(struct s3_call *c);
void s3_list_objects(struct s3_call *c);
void s3_list_uploads(struct s3_call *c);
void s3_list_parts(struct s3_call *c);
void s3_delete_objects(struct s3_call *c);
void s3_put_object(struct s3_call *c);
void s3_get_object(struct s3_call *c); // and HeadObject
void s3_get_tags(struct s3_call *c);
void s3_copy_object(struct s3_call *c);
void s3_copy_part(struct s3_call *c);
void s3_delete_object(struct s3_call *c);
void s3_create_upload(struct s3_call *c);
void s3_upload_part(struct s3_call *c);
void s3_complete_upload(struct s3_call *c);
void s3_abort_upload(struct s3_call *c);

// What the two documents that clients send mean; they return 0 or -EBADMSG. For the fuzzer, apart from the calls.
struct s3_delete_request {
	char *keys[1000];
	size_t count;
	bool quiet;
};
int s3_parse_delete(const char *data, size_t size, struct s3_delete_request *ret);
void s3_delete_request_clear(struct s3_delete_request *r);
struct s3_complete_request {
	struct upload_part *parts;
	size_t count;
};
// Where a copy comes from: "[/]bucket/key", percent-encoded, perhaps with "?versionId=null". The key is made in `key`. False: it is not that.
bool s3_parse_source(struct slice text, char bucket[BUCKET_MAX], char key[OBJECT_KEY_MAX + 1]);
int s3_parse_complete(const char *data, size_t size, struct s3_complete_request *ret);
void s3_complete_request_clear(struct s3_complete_request *r);
