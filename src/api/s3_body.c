// Bodies of S3 requests: read in pieces, decoded, hashed, and checked against everything that the client said about them.
#include "api/aws_chunked.h"
#include "api/s3.h"
#include "base/base64.h"
#include "base/cleanup.h"
#include "base/hex.h"
#include "store/checksum.h"

#include <jansson.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define PIECE (64u << 10)
#define KEPT_HEADERS_MAX 8192 // bytes of headers that are kept with an object

struct body {
	struct s3_call *c;
	int (*take)(void *arg, const void *data, size_t size, struct error *e);
	void *arg;
	bool chunked;
	struct aws_chunked chunks;
	EVP_MD_CTX *sha256;          // of the raw body, when its hash was signed
	EVP_MD_CTX *md5;             // for Content-MD5
	bool has_sum, sum_of_object; // the checksum is that of an object which the body only speaks of
	struct checksum sum;
	uint64_t size; // of the content
};

static struct slice header(const struct s3_call *c, const char *name) {
	const struct http_header *h = http_find(c->head, name);
	return h == NULL ? (struct slice){NULL, 0} : h->value;
}

uint64_t s3_announced_size(const struct s3_call *c) {
	uint64_t size = 0;
	if (s3_parse_number(header(c, "x-amz-decoded-content-length"), &size))
		return size;
	return c->head->body == HTTP_BODY_LENGTH ? c->head->content_length : 0;
}

// The checksum that the client sends, as a header or announced as a trailer.
static enum checksum_kind sum_kind(const struct s3_call *c) {
	static const char prefix[] = "x-amz-checksum-";
	size_t n = sizeof(prefix) - 1;
	for (size_t i = 0; i < c->head->header_count; i++) {
		struct slice name = c->head->headers[i].name;
		char lower[16] = "";
		if (name.size <= n || name.size - n >= sizeof(lower) || strncasecmp(name.data, prefix, n) != 0)
			continue;
		for (size_t k = 0; k < name.size - n; k++)
			lower[k] = (char)(name.data[n + k] | 0x20);
		enum checksum_kind kind = checksum_find(lower, name.size - n);
		if (kind != CHECKSUM_KINDS)
			return kind;
	}
	struct slice trailer = header(c, "x-amz-trailer");
	if (trailer.size > n && strncasecmp(trailer.data, prefix, n) == 0)
		return checksum_find(trailer.data + n, trailer.size - n);
	return CHECKSUM_KINDS;
}

static int start(struct body *b, struct error *e) {
	struct s3_call *c = b->c;
	int r = 0;
	b->chunked = strncmp(c->payload, "STREAMING-", 10) == 0;
	if (b->chunked) {
		bool is_signed = strncmp(c->payload, "STREAMING-AWS4", 14) == 0;
		r = aws_chunked_start(&b->chunks, is_signed ? &c->signature : NULL, c->key.secret, strstr(c->payload, "TRAILER") != NULL,
				      e);
	} else if (strlen(c->payload) == 64) {
		b->sha256 = EVP_MD_CTX_new();
		r = b->sha256 != NULL && EVP_DigestInit_ex(b->sha256, EVP_sha256(), NULL) == 1 ? 0 : -ENOMEM;
	}
	if (r >= 0 && header(c, "content-md5").data != NULL) {
		b->md5 = EVP_MD_CTX_new();
		r = b->md5 != NULL && EVP_DigestInit_ex(b->md5, EVP_md5(), NULL) == 1 ? 0 : -ENOMEM;
	}
	enum checksum_kind kind = sum_kind(c);
	if (r >= 0 && kind != CHECKSUM_KINDS && !b->sum_of_object) {
		b->has_sum = true;
		r = checksum_start(&b->sum, kind) ? 0 : -ENOMEM;
	}
	return r < 0 ? error_set(e, r, "out of memory reading a body") : 0;
}

static int take(struct body *b, const void *data, size_t size, struct error *e) {
	if (size == 0)
		return 0;
	if (b->md5 != NULL)
		EVP_DigestUpdate(b->md5, data, size);
	if (b->has_sum)
		checksum_add(&b->sum, data, size);
	b->size += size;
	return b->take(b->arg, data, size, e);
}

static int take_raw(struct body *b, const char *data, size_t size, struct error *e) {
	if (b->sha256 != NULL)
		EVP_DigestUpdate(b->sha256, data, size);
	if (!b->chunked)
		return take(b, data, size, e);
	while (size > 0 && !b->chunks.done) {
		struct slice content;
		ssize_t used = aws_chunked_feed(&b->chunks, data, size, &content, e);
		if (used == -EKEYREJECTED)
			return error_named(e, -EBADMSG, "SignatureDoesNotMatch", "%s",
					   "The chunk signature we calculated does not match the signature you provided.");
		if (used < 0) {
			snprintf(e->name, sizeof(e->name), "InvalidRequest");
			return (int)used;
		}
		int r = take(b, content.data, content.size, e);
		if (r < 0)
			return r;
		data += used;
		size -= (size_t)used;
	}
	// Behind the end only the line ends that some clients add.
	for (size_t i = 0; i < size; i++)
		if (data[i] != '\r' && data[i] != '\n')
			return error_named(e, -EBADMSG, "InvalidRequest", "The aws-chunked body goes on behind its end");
	return 0;
}

static int read_all(struct body *b, struct error *e) {
	cleanup_free char *piece = malloc(PIECE);
	if (piece == NULL)
		return error_set(e, -ENOMEM, "out of memory reading a body");
	for (;;) {
		ssize_t n = exchange_read(b->c->x, piece, PIECE);
		if (n == 0)
			return 0;
		if (n == -ETIMEDOUT)
			return error_named(
				e, -ETIMEDOUT, "RequestTimeout",
				"Your socket connection to the server was not read from or written to within the timeout period.");
		if (n < 0)
			return error_named(e, (int)n, "IncompleteBody",
					   "You did not provide the number of bytes specified by the Content-Length HTTP header.");
		int r = take_raw(b, piece, (size_t)n, e);
		if (r < 0)
			return r;
	}
}

static int check_md5(struct body *b, struct error *e) {
	unsigned char digest[EVP_MAX_MD_SIZE], given[32];
	unsigned n = 0;
	if (b->md5 == NULL)
		return 0;
	struct slice text = header(b->c, "content-md5");
	if (base64_decode(given, sizeof(given), text.data, text.size) != 16)
		return error_named(e, -EINVAL, "InvalidDigest", "The Content-MD5 you specified is not valid.");
	EVP_DigestFinal_ex(b->md5, digest, &n);
	if (memcmp(digest, given, 16) != 0)
		return error_named(e, -EBADMSG, "BadDigest", "The Content-MD5 you specified did not match what we received.");
	return 0;
}

static int check_sum(struct body *b, struct s3_checksum *ret, struct error *e) {
	if (!b->has_sum)
		return 0;
	enum checksum_kind kind = b->sum.kind;
	char computed[CHECKSUM_TEXT];
	checksum_finish(&b->sum, computed);
	snprintf(ret->header, sizeof(ret->header), "x-amz-checksum-%s", checksum_name(kind));
	struct slice given = header(b->c, ret->header);
	const char *trailer = b->chunked ? aws_chunked_trailer(&b->chunks, ret->header) : NULL;
	if (given.data == NULL && trailer != NULL)
		given = (struct slice){trailer, strlen(trailer)};
	if (given.data == NULL)
		return error_named(e, -EBADMSG, "InvalidRequest", "The trailer %s was announced and did not come", ret->header);
	if (!slice_equals(given, computed))
		return error_named(e, -EBADMSG, "BadDigest", "The %s you specified did not match the calculated checksum.",
				   checksum_name(kind));
	snprintf(ret->value, sizeof(ret->value), "%s", computed);
	return 0;
}

static int check(struct body *b, struct s3_checksum *ret, struct error *e) {
	uint64_t announced;
	if (b->chunked && !b->chunks.done)
		return error_named(e, -EBADMSG, "IncompleteBody", "The aws-chunked body ends in its middle");
	if (b->chunked && (!s3_parse_number(header(b->c, "x-amz-decoded-content-length"), &announced) || announced != b->size))
		return error_named(e, -EBADMSG, "IncompleteBody",
				   "The body does not have the length that x-amz-decoded-content-length states");
	if (b->sha256 != NULL) {
		unsigned char digest[EVP_MAX_MD_SIZE];
		unsigned n = 0;
		char text[SIGV4_HEX];
		EVP_DigestFinal_ex(b->sha256, digest, &n);
		hex_encode(digest, n, text);
		if (strcmp(text, b->c->payload) != 0)
			return error_named(e, -EBADMSG, "XAmzContentSHA256Mismatch",
					   "The provided 'x-amz-content-sha256' header does not match what was computed.");
	}
	int r = check_md5(b, e);
	return r < 0 ? r : check_sum(b, ret, e);
}

static int take_body(struct body *given, struct s3_checksum *ret) {
	struct body b = *given;
	struct s3_call *c = b.c;
	struct error e = {0};
	*ret = (struct s3_checksum){.header = ""};
	int r = start(&b, &e);
	if (r >= 0)
		r = read_all(&b, &e);
	if (r >= 0)
		r = check(&b, ret, &e);
	aws_chunked_end(&b.chunks);
	checksum_drop(&b.sum);
	EVP_MD_CTX_free(b.sha256);
	EVP_MD_CTX_free(b.md5);
	if (r < 0)
		s3_fail_with(c, &e);
	return r < 0 ? r : 0;
}

int s3_take_body(struct s3_call *c, int (*take_fn)(void *arg, const void *data, size_t size, struct error *e), void *arg,
		 struct s3_checksum *ret) {
	struct body b = {.c = c, .take = take_fn, .arg = arg};
	return take_body(&b, ret);
}

struct collector {
	struct text *to;
	size_t limit;
};

static int collect(void *arg, const void *data, size_t size, struct error *e) {
	struct collector *k = arg;
	if (k->to->size + size > k->limit)
		return error_named(e, -EFBIG, "EntityTooLarge", "The request's document is larger than %zu bytes", k->limit);
	text_add(k->to, data, size);
	return k->to->bad ? error_set(e, -ENOMEM, "out of memory reading a body") : 0;
}

int s3_take_text(struct s3_call *c, size_t limit, struct text *ret) {
	struct collector k = {ret, limit};
	struct s3_checksum sum;
	int r = s3_take_body(c, collect, &k, &sum);
	if (r == 0)
		text_add(ret, "", 0); // so that there is a text even of nothing
	return r;
}

int s3_take_document(struct s3_call *c, size_t limit, struct text *ret, struct s3_checksum *of_object) {
	struct collector k = {ret, limit};
	struct body b = {.c = c, .take = collect, .arg = &k, .sum_of_object = true};
	struct s3_checksum none;
	int r = take_body(&b, &none);
	if (r < 0)
		return r;
	text_add(ret, "", 0);
	*of_object = (struct s3_checksum){.header = ""};
	enum checksum_kind kind = sum_kind(c);
	if (kind == CHECKSUM_KINDS)
		return 0;
	snprintf(of_object->header, sizeof(of_object->header), "x-amz-checksum-%s", checksum_name(kind));
	struct slice value = header(c, of_object->header);
	snprintf(of_object->value, sizeof(of_object->value), "%.*s", (int)(value.size < 47 ? value.size : 47),
		 value.data == NULL ? "" : value.data);
	return 0;
}

// Headers kept with an object -----------------------------------------------------------------------------------------------------------

static bool is_kept(struct slice name) {
	static const char *const kept[] = {"content-type",  "content-language", "content-disposition",
					   "cache-control", "expires",          "x-amz-website-redirect-location"};
	for (size_t i = 0; i < sizeof(kept) / sizeof(kept[0]); i++)
		if (slice_equals_nocase(name, kept[i]))
			return true;
	return name.size > 11 && strncasecmp(name.data, "x-amz-meta-", 11) == 0;
}

static void keep(json_t *o, struct slice name, const char *value, size_t size) {
	char lower[256];
	if (name.size >= sizeof(lower))
		return;
	for (size_t i = 0; i < name.size; i++)
		lower[i] = (char)(name.data[i] >= 'A' && name.data[i] <= 'Z' ? name.data[i] + 32 : name.data[i]);
	lower[name.size] = '\0';
	// A value that is not UTF-8 cannot be kept as JSON text: byte by byte it can.
	json_t *text = json_stringn(value, size);
	if (text == NULL) {
		struct text t = {0};
		for (size_t i = 0; i < size; i++) {
			unsigned char ch = (unsigned char)value[i];
			if (ch < 0x80)
				text_add(&t, value + i, 1);
			else
				text_puts(&t, "?");
		}
		text = json_string(t.data == NULL ? "" : t.data);
		free(t.data);
	}
	json_object_set_new(o, lower, text);
}

// Content-Encoding without the coding of the transfer.
static void keep_encoding(json_t *o, struct slice value) {
	struct text t = {0};
	const char *at = value.data, *end = value.data + value.size;
	while (at < end) {
		const char *comma = memchr(at, ',', (size_t)(end - at));
		struct slice coding = {at, (size_t)((comma == NULL ? end : comma) - at)};
		at += coding.size + 1;
		while (coding.size > 0 && coding.data[0] == ' ')
			coding.data++, coding.size--;
		if (coding.size == 0 || slice_equals_nocase(coding, "aws-chunked"))
			continue;
		if (t.size > 0)
			text_puts(&t, ",");
		text_add(&t, coding.data, coding.size);
	}
	if (t.size > 0)
		keep(o, (struct slice){"content-encoding", 16}, t.data, t.size);
	free(t.data);
}

char *s3_kept_headers(struct s3_call *c, const struct s3_checksum *sum) {
	json_t *o = json_object();
	size_t size = 0;
	for (size_t i = 0; i < c->head->header_count; i++) {
		const struct http_header *h = &c->head->headers[i];
		if (slice_equals_nocase(h->name, "content-encoding")) {
			keep_encoding(o, h->value);
		} else if (is_kept(h->name)) {
			size += h->name.size + h->value.size;
			keep(o, h->name, h->value.data, h->value.size);
		}
	}
	if (sum != NULL && sum->header[0] != '\0')
		json_object_set_new(o, sum->header, json_string(sum->value));
	char *text = size > KEPT_HEADERS_MAX ? NULL : json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (size > KEPT_HEADERS_MAX)
		s3_fail(c, "MetadataTooLarge", "Your metadata headers exceed the maximum allowed metadata size.");
	else if (text == NULL)
		s3_fail(c, "InternalError", "out of memory");
	return text;
}
