// What a request to the artifact store needs to be allowed. Source: "Actions defined by Amazon S3" in the Service Authorization Reference.
#include "api/access.h"
#include "api/s3.h"

#include <stdio.h>
#include <string.h>

#define COPY_SOURCE "x-amz-copy-source"

int s3_allowed(struct s3_call *c, const char *action, const char *bucket, const char *key, struct error *e) {
	char resource[1500];
	if (bucket == NULL)
		snprintf(resource, sizeof(resource), "*");
	else
		snprintf(resource, sizeof(resource), "arn:aws:s3:::%.255s%s%.1100s", bucket, key == NULL ? "" : "/",
			 key == NULL ? "" : key);
	int r = access_decide(&c->key, c->principal, action, resource, e);
	// S3 has a name of its own for it.
	return r < 0 ? (snprintf(e->name, sizeof(e->name), "AccessDenied"), r) : 0;
}

static bool is_method(const struct s3_call *c, const char *method) {
	return slice_equals(c->head->method, method);
}

static const char *bucket_action(const struct s3_call *c) {
	if (is_method(c, "PUT"))
		return "s3:CreateBucket";
	if (is_method(c, "DELETE"))
		return "s3:DeleteBucket";
	if (s3_has_query(c, "location"))
		return "s3:GetBucketLocation";
	if (s3_has_query(c, "versioning"))
		return "s3:GetBucketVersioning";
	return s3_has_query(c, "uploads") ? "s3:ListBucketMultipartUploads" : "s3:ListBucket";
}

static const char *object_action(const struct s3_call *c) {
	bool upload = s3_has_query(c, "uploadId");
	if (is_method(c, "PUT") || is_method(c, "POST"))
		return "s3:PutObject";
	if (is_method(c, "DELETE"))
		return upload ? "s3:AbortMultipartUpload" : "s3:DeleteObject";
	return upload ? "s3:ListMultipartUploadParts" : "s3:GetObject";
}

// A copy also reads. What cannot be read as a source is refused by the operation, which reads it by the same function.
static int source_allowed(struct s3_call *c, struct error *e) {
	const struct http_header *h = http_find(c->head, COPY_SOURCE);
	char bucket[BUCKET_MAX], key[OBJECT_KEY_MAX + 1];
	if (h == NULL || !s3_parse_source(h->value, bucket, key))
		return 0;
	return s3_allowed(c, "s3:GetObject", bucket, key, e);
}

bool s3_check_access(struct s3_call *c) {
	struct error e;
	int r;
	if (c->bucket[0] == '\0')
		r = s3_allowed(c, "s3:ListAllMyBuckets", NULL, NULL, &e);
	else if (c->object[0] != '\0')
		r = s3_allowed(c, object_action(c), c->bucket, c->object, &e);
	else if (is_method(c, "POST"))
		r = 0; // DeleteObjects is checked key by key
	else
		r = s3_allowed(c, bucket_action(c), c->bucket, NULL, &e);
	if (r == 0)
		r = source_allowed(c, &e);
	if (r < 0)
		s3_fail_with(c, &e);
	return r == 0;
}
