// Objects: PutObject, UploadPart, GetObject, HeadObject, GetObjectTagging, DeleteObject.
#include "api/s3.h"
#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PIECE (64u << 10)

static int write_piece(void *arg, const void *data, size_t size, struct error *e) {
	return artifacts_write(arg, data, size, e);
}

// Reads the body into a new file. NULL: failed and answered.
static struct object_writer *take_object(struct s3_call *c, struct s3_checksum *sum) {
	struct object_writer *w = NULL;
	struct error e = {0};
	if (artifacts_write_start(c->en->artifacts, c->bucket, &w, &e) < 0) {
		s3_fail_with(c, &e);
		return NULL;
	}
	if (s3_take_body(c, write_piece, w, sum) < 0) {
		artifacts_write_abort(w);
		return NULL;
	}
	return w;
}

static void answer_written(struct s3_call *c, const char *etag, const struct s3_checksum *sum) {
	exchange_header(c->x, "etag", "\"%s\"", etag);
	if (sum->header[0] != '\0')
		exchange_header(c->x, sum->header, "%s", sum->value);
	exchange_reply(c->x, 200, NULL, 0);
}

void s3_put_object(struct s3_call *c) {
	struct s3_checksum sum;
	struct error e = {0};
	struct object_condition condition;
	if (!s3_own_bucket(c) || !s3_accept_write(c) || !s3_write_condition(c, &condition))
		return;
	struct object_writer *w = take_object(c, &sum);
	if (w == NULL)
		return;
	artifacts_write_only_if(w, &condition);
	cleanup_free char *headers = s3_kept_headers(c, &sum);
	if (headers == NULL) {
		artifacts_write_abort(w);
		return;
	}
	char etag[ETAG_MAX];
	snprintf(etag, sizeof(etag), "%s", artifacts_write_etag(w));
	if (artifacts_write_finish(w, c->object, headers, &e) < 0)
		s3_fail_with(c, &e);
	else
		answer_written(c, etag, &sum);
}

void s3_upload_part(struct s3_call *c) {
	struct s3_checksum sum;
	struct error e = {0};
	cleanup_free char *id = s3_query(c, "uploadId");
	int n = s3_part_number(c);
	if (n == 0 || !s3_own_bucket(c) || !s3_accept_write(c))
		return;
	if (artifacts_upload_check(c->en->artifacts, c->bucket, c->object, id, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	struct object_writer *w = take_object(c, &sum);
	if (w == NULL)
		return;
	char etag[ETAG_MAX];
	snprintf(etag, sizeof(etag), "%s", artifacts_write_etag(w));
	if (artifacts_upload_part(w, c->object, id, n, &e) < 0)
		s3_fail_with(c, &e);
	else
		answer_written(c, etag, &sum);
}

void s3_delete_object(struct s3_call *c) {
	struct error e = {0};
	struct object_condition condition;
	if (!s3_own_bucket(c) || !s3_write_condition(c, &condition))
		return;
	if (artifacts_delete_object(c->en->artifacts, c->bucket, c->object, &condition, &e) < 0)
		s3_fail_with(c, &e);
	else
		exchange_reply(c->x, 204, NULL, 0);
}

// Get, head ---------------------------------------------------------------------------------------------------------------------------

struct range {
	uint64_t first, length;
	bool partial;
};

static bool parse_number(const char **at, const char *end, uint64_t *ret) {
	const char *from = *at;
	*ret = 0;
	for (; *at < end && **at >= '0' && **at <= '9'; (*at)++) {
		if (*at - from == 18)
			return false;
		*ret = *ret * 10 + (uint64_t)(**at - '0');
	}
	return *at > from;
}

// RFC 9110 section 14. One range; several, or what cannot be read, are ignored, which the section allows. False: not satisfiable.
static bool parse_range(const struct http_header *h, uint64_t size, struct range *ret) {
	*ret = (struct range){0, size, false};
	if (h == NULL || h->value.size < 7 || strncasecmp(h->value.data, "bytes=", 6) != 0)
		return true;
	const char *at = h->value.data + 6, *end = h->value.data + h->value.size;
	uint64_t first = 0, last = 0;
	bool has_first = parse_number(&at, end, &first);
	if (at == end || *at != '-')
		return true;
	at++;
	bool has_last = parse_number(&at, end, &last);
	if (at != end || (!has_first && !has_last) || (has_first && has_last && last < first))
		return true;
	if (!has_first) {
		if (last == 0 || size == 0)
			return false;
		first = last >= size ? 0 : size - last;
		last = size - 1;
	} else if (first >= size) {
		return false;
	} else if (!has_last || last >= size) {
		last = size - 1;
	}
	*ret = (struct range){first, last - first + 1, true};
	return true;
}

// Headers of the object, and of the query's response-* parameters, which override them.
static void add_headers(struct s3_call *c, const struct object *o, bool whole) {
	static const char *const overridden[] = {"content-type",  "content-language",    "expires",
						 "cache-control", "content-disposition", "content-encoding"};
	char modified[40];
	s3_http_time(o->modified_ms, modified);
	exchange_header(c->x, "etag", "\"%s\"", o->etag);
	exchange_header(c->x, "last-modified", "%s", modified);
	exchange_header(c->x, "accept-ranges", "bytes");
	json_t *kept = json_loads(o->headers, 0, NULL), *value;
	for (size_t i = 0; i < sizeof(overridden) / sizeof(overridden[0]); i++) {
		char name[40];
		snprintf(name, sizeof(name), "response-%s", overridden[i]);
		char *override = s3_query(c, name);
		if (override != NULL)
			json_object_set_new(kept, overridden[i], json_string(override));
		free(override);
	}
	if (json_object_get(kept, "content-type") == NULL)
		exchange_header(c->x, "content-type", "binary/octet-stream");
	const struct http_header *mode = http_find(c->head, "x-amz-checksum-mode");
	bool checksums = whole && mode != NULL && slice_equals_nocase(mode->value, "enabled");
	const char *name;
	json_object_foreach(kept, name, value) {
		if (checksums || strncmp(name, "x-amz-checksum-", 15) != 0)
			exchange_header(c->x, name, "%s", json_string_value(value));
	}
	json_decref(kept);
}

static void send_bytes(struct s3_call *c, int fd, const struct range *range) {
	cleanup_free char *piece = malloc(PIECE);
	if (piece == NULL || exchange_begin(c->x, range->partial ? 206 : 200, range->length) < 0 || slice_equals(c->head->method, "HEAD"))
		return;
	for (uint64_t done = 0; done < range->length;) {
		size_t n = range->length - done < PIECE ? (size_t)(range->length - done) : PIECE;
		// An answer that breaks off here ends the connection, and the client sees that it is not whole.
		if (pread_full(fd, piece, n, range->first + done) < 0 || exchange_write(c->x, piece, n) < 0)
			return;
		done += n;
	}
}

static void answer_object(struct s3_call *c, int fd, const struct object *o) {
	struct range range;
	char modified[40];
	switch (s3_read_condition(c, "", o)) {
	case S3_CONDITION_FAILED:
		s3_fail(c, "PreconditionFailed", "At least one of the pre-conditions you specified did not hold");
		return;
	case S3_NOT_MODIFIED:
		s3_http_time(o->modified_ms, modified);
		exchange_header(c->x, "etag", "\"%s\"", o->etag);
		exchange_header(c->x, "last-modified", "%s", modified);
		exchange_reply(c->x, 304, NULL, 0);
		return;
	case S3_CONDITION_MET:
		break;
	}
	if (!parse_range(http_find(c->head, "range"), o->size, &range)) {
		exchange_header(c->x, "content-range", "bytes */%llu", (unsigned long long)o->size);
		s3_fail(c, "InvalidRange", "The requested range is not satisfiable");
		return;
	}
	add_headers(c, o, !range.partial);
	if (range.partial)
		exchange_header(c->x, "content-range", "bytes %llu-%llu/%llu", (unsigned long long)range.first,
				(unsigned long long)(range.first + range.length - 1), (unsigned long long)o->size);
	send_bytes(c, fd, &range);
}

void s3_get_object(struct s3_call *c) {
	struct object o;
	struct error e = {0};
	cleanup_close int fd = -1;
	if (!s3_own_bucket(c))
		return;
	if (s3_has_query(c, "partNumber")) {
		s3_fail(c, "NotImplemented", "The artifact store does not give back single parts: ask for a Range");
		return;
	}
	if (artifacts_open_object(c->en->artifacts, c->bucket, c->object, &fd, &o, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	answer_object(c, fd, &o);
	object_clear(&o);
}

// There are no tags: none can be set. Clients that copy large objects ask for them all the same.
void s3_get_tags(struct s3_call *c) {
	struct object o;
	struct error e = {0};
	if (!s3_own_bucket(c))
		return;
	if (artifacts_get_object(c->en->artifacts, c->bucket, c->object, &o, &e) < 0) {
		s3_fail_with(c, &e);
		return;
	}
	object_clear(&o);
	cleanup_text t = {0};
	text_puts(&t, "<Tagging xmlns=\"" S3_NAMESPACE "\"><TagSet></TagSet></Tagging>");
	s3_answer_xml(c, 200, &t);
}
