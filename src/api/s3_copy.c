// Copies inside the artifact store: CopyObject and UploadPartCopy. The bytes are read and written anew, so that the copy has the ETag of its
// content and nothing in common with its source.
#include "api/s3.h"
#include "api/xml.h"
#include "base/cleanup.h"
#include "base/clock.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BODY_MAX 4096 // a copy has no body; one that is sent all the same is checked and dropped

struct source {
	char bucket[BUCKET_MAX];
	char key[OBJECT_KEY_MAX + 1];
	int fd;
	struct object object;
};

bool s3_parse_source(struct slice text, char bucket[BUCKET_MAX], char key[OBJECT_KEY_MAX + 1]) {
	const char *question = text.size == 0 ? NULL : memchr(text.data, '?', text.size);
	if (question != NULL) {
		size_t n = (size_t)(question - text.data);
		if (!slice_equals((struct slice){question + 1, text.size - n - 1}, "versionId=null"))
			return false;
		text.size = n;
	}
	cleanup_free char *plain = malloc(text.size + 1);
	ssize_t n = plain == NULL ? -1 : percent_decode(text.data, text.size, plain);
	if (n < 0 || memchr(plain, '\0', (size_t)n) != NULL)
		return false;
	plain[n] = '\0';
	const char *name = plain + (plain[0] == '/'), *slash = strchr(name, '/');
	size_t size = slash == NULL ? 0 : (size_t)(slash - name);
	if (size == 0 || size >= BUCKET_MAX || slash[1] == '\0' || strlen(slash + 1) > OBJECT_KEY_MAX)
		return false;
	snprintf(bucket, BUCKET_MAX, "%.*s", (int)size, name);
	snprintf(key, OBJECT_KEY_MAX + 1, "%s", slash + 1);
	return artifacts_bucket_name_is_valid(bucket) && s3_is_utf8(key);
}

// Opens what is to be copied. False: failed and answered.
static bool open_source(struct s3_call *c, struct source *s) {
	struct error e = {0};
	struct text none = {0};
	int r = s3_take_text(c, BODY_MAX, &none);
	free(none.data);
	if (r < 0 || !s3_own_bucket(c) || !s3_accept_write(c))
		return false;
	if (!s3_parse_source(http_find(c->head, "x-amz-copy-source")->value, s->bucket, s->key)) {
		s3_fail(c, "InvalidArgument",
			"Copy Source must mention the source bucket and key: sourcebucket/sourcekey, percent-encoded, "
			"without a version");
		return false;
	}
	if (!s3_is_own(c, s->bucket, "x-amz-source-expected-bucket-owner"))
		return false;
	if (artifacts_open_object(c->en->artifacts, s->bucket, s->key, &s->fd, &s->object, &e) < 0) {
		s3_fail_with(c, &e);
		return false;
	}
	if (s3_read_condition(c, "x-amz-copy-source-", &s->object) == S3_CONDITION_MET)
		return true;
	s3_fail(c, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold");
	return false;
}

static void close_source(struct source *s) {
	if (s->fd >= 0)
		close(s->fd);
	object_clear(&s->object);
}

static struct object_writer *copy_bytes(struct s3_call *c, const struct source *s, uint64_t offset, uint64_t size) {
	struct object_writer *w = NULL;
	struct error e = {0};
	int r = artifacts_write_start(c->en->artifacts, c->bucket, &w, &e);
	if (r >= 0)
		r = artifacts_copy(w, s->fd, offset, size, &e);
	if (r >= 0)
		return w;
	artifacts_write_abort(w);
	s3_fail_with(c, &e);
	return NULL;
}

static void answer_copied(struct s3_call *c, const char *root, const char *etag) {
	char modified[32];
	cleanup_text t = {0};
	s3_time((int64_t)realtime_ms(), modified);
	text_format(&t, "<%s xmlns=\"" S3_NAMESPACE "\">", root);
	xml_element(&t, "LastModified", modified);
	text_format(&t, "<ETag>&quot;%s&quot;</ETag></%s>", etag, root);
	s3_answer_xml(c, 200, &t);
}

static bool is_directive(const struct s3_call *c, const char *name, const char *value) {
	const struct http_header *h = http_find(c->head, name);
	return h != NULL && slice_equals_nocase(h->value, value);
}

static void copy_object(struct s3_call *c, const struct source *s) {
	struct error e = {0};
	struct object_condition condition;
	bool replace = is_directive(c, "x-amz-metadata-directive", "REPLACE");
	if (!replace && strcmp(s->bucket, c->bucket) == 0 && strcmp(s->key, c->object) == 0) {
		s3_fail(c, "InvalidRequest",
			"This copy request is illegal because it is trying to copy an object to itself without changing the object's "
			"metadata, "
			"storage class, website redirect location or encryption attributes.");
		return;
	}
	if (!s3_write_condition(c, &condition))
		return;
	cleanup_free char *headers = replace ? s3_kept_headers(c, NULL) : strdup(s->object.headers);
	if (headers == NULL)
		return;
	struct object_writer *w = copy_bytes(c, s, 0, s->object.size);
	if (w == NULL)
		return;
	char etag[ETAG_MAX];
	snprintf(etag, sizeof(etag), "%s", artifacts_write_etag(w));
	artifacts_write_only_if(w, &condition);
	if (artifacts_write_finish(w, c->object, headers, &e) < 0)
		s3_fail_with(c, &e);
	else
		answer_copied(c, "CopyObjectResult", etag);
}

void s3_copy_object(struct s3_call *c) {
	struct source s = {.fd = -1};
	if (open_source(c, &s))
		copy_object(c, &s);
	close_source(&s);
}

// "bytes=first-last", both of them and inside the source.
static bool copy_range(struct s3_call *c, const struct source *s, uint64_t *first, uint64_t *size) {
	const struct http_header *h = http_find(c->head, "x-amz-copy-source-range");
	*first = 0;
	*size = s->object.size;
	if (h == NULL)
		return true;
	struct slice v = h->value;
	const char *dash = v.size < 7 || strncmp(v.data, "bytes=", 6) != 0 ? NULL : memchr(v.data, '-', v.size);
	uint64_t last = 0;
	if (dash != NULL && s3_parse_number((struct slice){v.data + 6, (size_t)(dash - v.data) - 6}, first) &&
	    s3_parse_number((struct slice){dash + 1, v.size - (size_t)(dash - v.data) - 1}, &last) && *first <= last &&
	    last < s->object.size) {
		*size = last - *first + 1;
		return true;
	}
	s3_fail(c, "InvalidArgument",
		"The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based "
		"offsets of the first and last bytes to copy, inside the source");
	return false;
}

static void copy_part(struct s3_call *c, const struct source *s) {
	struct error e = {0};
	uint64_t first, size;
	cleanup_free char *id = s3_query(c, "uploadId");
	int number = s3_part_number(c);
	if (number == 0 || !copy_range(c, s, &first, &size))
		return;
	if (artifacts_upload_check(c->en->artifacts, c->bucket, c->object, id, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	struct object_writer *w = copy_bytes(c, s, first, size);
	if (w == NULL)
		return;
	char etag[ETAG_MAX];
	snprintf(etag, sizeof(etag), "%s", artifacts_write_etag(w));
	if (artifacts_upload_part(w, c->object, id, number, &e) < 0)
		s3_fail_with(c, &e);
	else
		answer_copied(c, "CopyPartResult", etag);
}

void s3_copy_part(struct s3_call *c) {
	struct source s = {.fd = -1};
	if (open_source(c, &s))
		copy_part(c, &s);
	close_source(&s);
}
