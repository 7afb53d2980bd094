// Multipart uploads: CreateMultipartUpload, CompleteMultipartUpload, AbortMultipartUpload. (UploadPart is with the objects.)
#include "api/s3.h"
#include "api/xml.h"
#include "base/cleanup.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PARTS_MAX 10000
#define DOCUMENT_MAX (6u << 20)

void s3_create_upload(struct s3_call *c) {
	char id[UUID_TEXT];
	struct error e = {0};
	if (!s3_own_bucket(c) || !s3_accept_write(c))
		return;
	cleanup_free char *headers = s3_kept_headers(c, NULL);
	if (headers == NULL)
		return;
	if (artifacts_upload_start(c->en->artifacts, c->bucket, c->object, headers, id, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	cleanup_text t = {0};
	text_puts(&t, "<InitiateMultipartUploadResult xmlns=\"" S3_NAMESPACE "\">");
	xml_element(&t, "Bucket", c->bucket);
	xml_element(&t, "Key", c->object);
	xml_element(&t, "UploadId", id);
	text_puts(&t, "</InitiateMultipartUploadResult>");
	s3_answer_xml(c, 200, &t);
}

struct complete_reader {
	struct s3_complete_request *r;
	size_t room;
	struct upload_part now;
};

static bool take_complete_element(void *arg, const char *path, const char *value) {
	struct complete_reader *k = arg;
	if (strcmp(path, "CompleteMultipartUpload/Part/PartNumber") == 0) {
		size_t n = strlen(value);
		if (n == 0 || n > 5 || strspn(value, "0123456789") != n)
			return false;
		k->now.number = atoi(value);
	} else if (strcmp(path, "CompleteMultipartUpload/Part/ETag") == 0) {
		size_t n = strlen(value), quoted = n >= 2 && value[0] == '"' && value[n - 1] == '"';
		snprintf(k->now.etag, sizeof(k->now.etag), "%.*s", (int)(n - 2 * quoted), value + quoted);
	} else if (strcmp(path, "CompleteMultipartUpload/Part") == 0) {
		if (k->r->count == PARTS_MAX || k->now.number < 1 || k->now.number > PARTS_MAX)
			return false;
		if (k->r->count == k->room) {
			size_t room = k->room == 0 ? 16 : k->room * 2;
			struct upload_part *more = realloc(k->r->parts, room * sizeof(*more));
			if (more == NULL)
				return false;
			k->r->parts = more;
			k->room = room;
		}
		k->r->parts[k->r->count++] = k->now;
		k->now = (struct upload_part){.number = 0};
	}
	return true;
}

int s3_parse_complete(const char *data, size_t size, struct s3_complete_request *ret) {
	*ret = (struct s3_complete_request){.parts = NULL};
	struct complete_reader k = {.r = ret};
	int r = xml_read(data, size, take_complete_element, &k);
	if (r == 0 && ret->count > 0)
		return 0;
	s3_complete_request_clear(ret);
	return -EBADMSG;
}

void s3_complete_request_clear(struct s3_complete_request *r) {
	free(r->parts);
	r->parts = NULL;
	r->count = 0;
}

static void complete(struct s3_call *c, const char *id, const struct s3_complete_request *r, const struct s3_checksum *sum) {
	char etag[ETAG_MAX];
	struct error e = {0};
	struct object_condition condition;
	if (!s3_write_condition(c, &condition))
		return;
	struct upload_end q = {
		.bucket = c->bucket, .key = c->object, .id = id, .parts = r->parts, .count = r->count, .condition = &condition};
	// A composite checksum, "<sum of sums>-<parts>", says nothing that the parts' own checksums did not.
	if (sum->header[0] != '\0' && strchr(sum->value, '-') == NULL) {
		q.sum_kind = sum->header + strlen("x-amz-checksum-");
		q.sum_value = sum->value;
	}
	if (artifacts_upload_complete(c->en->artifacts, &q, etag, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	cleanup_text t = {0};
	text_puts(&t, "<CompleteMultipartUploadResult xmlns=\"" S3_NAMESPACE "\">");
	text_format(&t, "<Location>/%s/", c->bucket);
	text_encode(&t, c->object, strlen(c->object), true);
	text_puts(&t, "</Location>");
	xml_element(&t, "Bucket", c->bucket);
	xml_element(&t, "Key", c->object);
	text_format(&t, "<ETag>&quot;%s&quot;</ETag></CompleteMultipartUploadResult>", etag);
	s3_answer_xml(c, 200, &t);
}

void s3_complete_upload(struct s3_call *c) {
	cleanup_text document = {0};
	cleanup_free char *id = s3_query(c, "uploadId");
	struct s3_complete_request r;
	struct s3_checksum sum;
	if (!s3_own_bucket(c) || s3_take_document(c, DOCUMENT_MAX, &document, &sum) < 0)
		return;
	if (s3_parse_complete(document.data, document.size, &r) < 0) {
		s3_fail(c, "MalformedXML", "The XML you provided was not well-formed or did not validate against our published schema");
		return;
	}
	complete(c, id, &r, &sum);
	s3_complete_request_clear(&r);
}

void s3_abort_upload(struct s3_call *c) {
	cleanup_free char *id = s3_query(c, "uploadId");
	struct error e = {0};
	if (!s3_own_bucket(c))
		return;
	if (artifacts_upload_abort(c->en->artifacts, c->bucket, c->object, id, &e) < 0)
		s3_fail_with(c, &e);
	else
		exchange_reply(c->x, 204, NULL, 0);
}
