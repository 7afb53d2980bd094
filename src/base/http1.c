// HTTP/1.1 messages; see http1.h.
//
// A head is read line by line; a line is looked at when its LF has come, and the meaning of all of them together (framing, Host,
// connection options) is judged at the empty line. So the answer does not depend on how the bytes were cut. The body decoder is a machine that
// takes one byte of framing at a time and content in one piece.
#include "base/http1.h"

#include <string.h>
#include <strings.h>

// Characters of a token (RFC 9110 section 5.6.2).
static const bool token_char[256] = {
	['!'] = true, ['#'] = true, ['$'] = true, ['%'] = true,         ['&'] = true,         ['\''] = true,
	['*'] = true, ['+'] = true, ['-'] = true, ['.'] = true,         ['^'] = true,         ['_'] = true,
	['`'] = true, ['|'] = true, ['~'] = true, ['0' ... '9'] = true, ['A' ... 'Z'] = true, ['a' ... 'z'] = true,
};

// Characters of a field value or a reason phrase (RFC 9110 section 5.5): HTAB, SP, VCHAR, obs-text.
static bool text_char(unsigned char c) {
	return c == '\t' || (c >= 0x20 && c != 0x7f);
}

// Characters of a Host value or an authority (RFC 3986 section 3.2, without user information).
static bool host_char(unsigned char c) {
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') ||
	       (c != '\0' && strchr("-._~%!$&'()*+,;=:[]", c) != NULL);
}

bool slice_is_token(struct slice s) {
	for (size_t i = 0; i < s.size; i++)
		if (!token_char[(unsigned char)s.data[i]])
			return false;
	return s.size > 0;
}

// Whether one of eight characters is below 0x20 or 0x7f, or may be: HTAB counts, and so do some neighbours of the true ones.
static bool may_be_control(const char *p) {
	const uint64_t ones = 0x0101010101010101u, highs = 0x8080808080808080u;
	uint64_t v, del;
	memcpy(&v, p, sizeof(v));
	del = v ^ (ones * 0x7f);
	return (((v - ones * 0x20) & ~v) & highs) != 0 || (((del - ones) & ~del) & highs) != 0;
}

static bool is_text(struct slice s) {
	size_t i = 0;
	while (i < s.size) {
		if (s.size - i >= 8 && !may_be_control(s.data + i))
			i += 8;
		else if (text_char((unsigned char)s.data[i]))
			i++;
		else
			return false;
	}
	return true;
}

static bool is_host(struct slice s) {
	for (size_t i = 0; i < s.size; i++)
		if (!host_char((unsigned char)s.data[i]))
			return false;
	return true;
}

static bool starts_nocase(struct slice s, const char *prefix) {
	size_t n = strlen(prefix);
	return s.size >= n && strncasecmp(s.data, prefix, n) == 0;
}

struct slice slice_trim(struct slice s) {
	while (s.size > 0 && (s.data[0] == ' ' || s.data[0] == '\t'))
		s = (struct slice){s.data + 1, s.size - 1};
	while (s.size > 0 && (s.data[s.size - 1] == ' ' || s.data[s.size - 1] == '\t'))
		s.size--;
	return s;
}

static unsigned char lower(unsigned char c) {
	return c >= 'A' && c <= 'Z' ? c | 0x20 : c;
}

bool slice_same_nocase(const char *a, const char *b, size_t size) {
	for (size_t i = 0; i < size; i++)
		if (a[i] != b[i] && lower((unsigned char)a[i]) != lower((unsigned char)b[i]))
			return false;
	return true;
}

bool slice_has_token(struct slice list, const char *token) {
	while (list.size > 0) {
		const char *comma = memchr(list.data, ',', list.size);
		size_t n = comma != NULL ? (size_t)(comma - list.data) : list.size;
		if (slice_equals_nocase(slice_trim((struct slice){list.data, n}), token))
			return true;
		size_t step = comma != NULL ? n + 1 : n;
		list = (struct slice){list.data + step, list.size - step};
	}
	return false;
}

const struct http_header *http_find(const struct http_head *h, const char *name) {
	for (size_t i = 0; i < h->header_count; i++)
		if (slice_equals_nocase(h->headers[i].name, name))
			return &h->headers[i];
	return NULL;
}

// Takes the next line, without its CRLF, from data[*at…size). Returns 1, 0 when there is no LF yet, or -EBADMSG when a bare CR or LF is in it.
static int next_line(const char *data, size_t size, size_t *at, struct slice *ret, struct error *e) {
	const char *lf = *at < size ? memchr(data + *at, '\n', size - *at) : NULL;
	if (lf == NULL)
		return 0;
	size_t n = (size_t)(lf - data) - *at;
	if (n == 0 || lf[-1] != '\r')
		return error_set(e, -EBADMSG, "HTTP head: a line ends with a bare LF; lines end with CR LF");
	*ret = (struct slice){data + *at, n - 1};
	if (memchr(ret->data, '\r', ret->size) != NULL)
		return error_set(e, -EBADMSG, "HTTP head: a CR stands within a line");
	*at += n + 1;
	return 1;
}

static int parse_version(struct slice s, int *minor, struct error *e) {
	if (s.size != 8 || memcmp(s.data, "HTTP/", 5) != 0 || s.data[5] < '0' || s.data[5] > '9' || s.data[6] != '.' || s.data[7] < '0' ||
	    s.data[7] > '9')
		return error_set(e, -EBADMSG, "HTTP head: the start line has no HTTP version");
	if (s.data[5] != '1' || s.data[7] > '1')
		return error_set(e, -EPROTONOSUPPORT, "HTTP head: version %.3s is not supported; use HTTP/1.1", s.data + 5);
	*minor = s.data[7] - '0';
	return 0;
}

// The four forms of RFC 9112 section 3.2.
static int check_target(struct slice method, struct slice target, struct error *e) {
	for (size_t i = 0; i < target.size; i++)
		if (target.data[i] <= 0x20 || target.data[i] >= 0x7f || target.data[i] == '#')
			return error_set(e, -EBADMSG, "HTTP head: the request target has a character that must be percent-encoded");
	bool fine;
	if (slice_equals(method, "CONNECT")) {
		fine = target.size > 0 && is_host(target) && memchr(target.data, ':', target.size) != NULL;
	} else if (slice_equals(target, "*")) {
		fine = slice_equals(method, "OPTIONS");
	} else if (starts_nocase(target, "http://") || starts_nocase(target, "https://")) {
		const char *from = (const char *)memchr(target.data, ':', target.size) + 3;
		size_t left = target.size - (size_t)(from - target.data), n = 0;
		while (n < left && from[n] != '/' && from[n] != '?')
			n++;
		fine = n > 0 && is_host((struct slice){from, n});
	} else {
		fine = target.size > 0 && target.data[0] == '/';
	}
	return fine ? 0 : error_set(e, -EBADMSG, "HTTP head: the request target has none of the forms of RFC 9112 section 3.2");
}

static int parse_request_line(struct slice line, struct http_head *h, struct error *e) {
	const char *sp = memchr(line.data, ' ', line.size);
	if (sp == NULL)
		return error_set(e, -EBADMSG, "HTTP head: the request line has no target");
	h->method = (struct slice){line.data, (size_t)(sp - line.data)};
	struct slice rest = {sp + 1, line.size - h->method.size - 1};
	sp = memchr(rest.data, ' ', rest.size);
	if (sp == NULL)
		return error_set(e, -EBADMSG, "HTTP head: the request line has no version");
	h->target = (struct slice){rest.data, (size_t)(sp - rest.data)};
	if (!slice_is_token(h->method))
		return error_set(e, -EBADMSG, "HTTP head: the method is not a token");
	int r = parse_version((struct slice){sp + 1, rest.size - h->target.size - 1}, &h->minor_version, e);
	return r < 0 ? r : check_target(h->method, h->target, e);
}

static int parse_status_line(struct slice line, struct http_head *h, struct error *e) {
	int r = parse_version((struct slice){line.data, line.size < 8 ? line.size : 8}, &h->minor_version, e);
	if (r < 0)
		return r;
	if (line.size < 12 || line.data[8] != ' ' || (line.size > 12 && line.data[12] != ' '))
		return error_set(e, -EBADMSG, "HTTP head: the status line is malformed");
	for (size_t i = 9; i < 12; i++) {
		if (line.data[i] < '0' || line.data[i] > '9')
			return error_set(e, -EBADMSG, "HTTP head: the status is not a number of three digits");
		h->status = h->status * 10 + (line.data[i] - '0');
	}
	if (h->status < 100)
		return error_set(e, -EBADMSG, "HTTP head: the status is below 100");
	if (line.size > 13)
		h->reason = (struct slice){line.data + 13, line.size - 13};
	return is_text(h->reason) ? 0 : error_set(e, -EBADMSG, "HTTP head: the reason has a control character");
}

static int parse_header(struct slice line, struct http_header *ret, struct error *e) {
	const char *colon = memchr(line.data, ':', line.size);
	if (colon == NULL)
		return error_set(e, -EBADMSG, "HTTP head: a header line has no colon");
	ret->name = (struct slice){line.data, (size_t)(colon - line.data)};
	// Also refuses obs-fold (white space first) and white space before the colon.
	if (!slice_is_token(ret->name))
		return error_set(e, -EBADMSG, "HTTP head: a header name is not a token");
	ret->value = slice_trim((struct slice){colon + 1, line.size - ret->name.size - 1});
	return is_text(ret->value) ? 0 : error_set(e, -EBADMSG, "HTTP head: a header value has a control character");
}

// Reads header lines up to and including the empty one. Returns 1 when it came, 0 when not, or a negative errno.
static int parse_headers(const char *data, size_t size, size_t *at, struct http_header *ret, size_t room, size_t *count, struct error *e) {
	for (;;) {
		struct slice line;
		int r = next_line(data, size, at, &line, e);
		if (r <= 0 || line.size == 0)
			return r;
		if (*count == room)
			return error_set(e, -E2BIG, "HTTP head: more than %zu headers", room);
		r = parse_header(line, &ret[(*count)++], e);
		if (r < 0)
			return r;
	}
}

static int parse_content_length(struct slice s, uint64_t *ret, struct error *e) {
	uint64_t v = 0;
	bool fine = s.size > 0 && s.size <= 19;
	for (size_t i = 0; fine && i < s.size; i++) {
		fine = s.data[i] >= '0' && s.data[i] <= '9';
		v = v * 10 + (uint64_t)(s.data[i] - '0');
	}
	if (!fine || v > INT64_MAX)
		return error_set(e, -EBADMSG, "HTTP head: Content-Length is not one decimal number");
	*ret = v;
	return 0;
}

// What the headers mean together: connection options, and the framing that both kinds of message share. Leaves h->body at LENGTH,
// CHUNKED or, when no header says anything, NONE.
static int judge_headers(struct http_head *h, struct error *e) {
	bool close = false, keep = false, option_upgrade = false, has_upgrade = false, has_length = false, has_encoding = false;
	for (size_t i = 0; i < h->header_count; i++) {
		struct slice name = h->headers[i].name, value = h->headers[i].value;
		if (name.size < 6)
			continue;
		if (slice_equals_nocase(name, "connection")) {
			h->connection = true;
			close |= slice_has_token(value, "close");
			keep |= slice_has_token(value, "keep-alive");
			option_upgrade |= slice_has_token(value, "upgrade");
		} else if (slice_equals_nocase(name, "upgrade")) {
			has_upgrade |= value.size > 0;
		} else if (slice_equals_nocase(name, "content-length")) {
			if (has_length)
				return error_set(e, -EBADMSG, "HTTP head: more than one Content-Length");
			has_length = true;
			int r = parse_content_length(value, &h->content_length, e);
			if (r < 0)
				return r;
		} else if (slice_equals_nocase(name, "transfer-encoding")) {
			if (has_encoding || !slice_equals_nocase(value, "chunked"))
				return error_set(e, -EBADMSG, "HTTP head: Transfer-Encoding is not exactly chunked");
			has_encoding = true;
		} else if (slice_equals_nocase(name, "expect")) {
			h->expect_continue |= h->minor_version == 1 && slice_equals_nocase(value, "100-continue");
		}
	}
	if (has_encoding && has_length)
		return error_set(e, -EBADMSG, "HTTP head: both Content-Length and Transfer-Encoding");
	if (has_encoding && h->minor_version == 0)
		return error_set(e, -EBADMSG, "HTTP head: Transfer-Encoding in an HTTP/1.0 message");
	h->body = has_encoding ? HTTP_BODY_CHUNKED : has_length ? HTTP_BODY_LENGTH : HTTP_BODY_NONE;
	h->keep_alive = !close && (h->minor_version == 1 || keep);
	h->upgrade = h->minor_version == 1 && option_upgrade && has_upgrade;
	return 0;
}

static int judge_request(struct http_head *h, struct error *e) {
	int r = judge_headers(h, e);
	if (r < 0)
		return r;
	size_t hosts = 0;
	for (size_t i = 0; i < h->header_count; i++) {
		if (!slice_equals_nocase(h->headers[i].name, "host"))
			continue;
		hosts++;
		if (!is_host(h->headers[i].value))
			return error_set(e, -EBADMSG, "HTTP head: the Host is malformed");
	}
	if (hosts > 1 || (hosts == 0 && h->minor_version == 1))
		return error_set(e, -EBADMSG, "HTTP head: %zu Host headers instead of one", hosts);
	return 0;
}

// RFC 9112 section 6.3.
static int judge_response(struct http_head *h, bool to_head, struct error *e) {
	int r = judge_headers(h, e);
	if (r < 0)
		return r;
	if (to_head || h->status < 200 || h->status == 204 || h->status == 304) {
		h->body = HTTP_BODY_NONE;
	} else if (h->body == HTTP_BODY_NONE) {
		h->body = HTTP_BODY_UNTIL_CLOSE;
		h->keep_alive = false;
	}
	return 0;
}

static ssize_t parse_head(const char *data, size_t size, bool request, bool to_head, struct http_head *h, struct error *e) {
	*h = (struct http_head){0};
	size_t at = 0;
	bool full = size >= HTTP_HEAD_MAX;
	if (full)
		size = HTTP_HEAD_MAX;
	struct slice line;
	int r = next_line(data, size, &at, &line, e);
	// RFC 9112 section 2.2: one empty line before a request is ignored.
	if (r > 0 && request && line.size == 0)
		r = next_line(data, size, &at, &line, e);
	if (r > 0) {
		r = request ? parse_request_line(line, h, e) : parse_status_line(line, h, e);
		if (r == 0)
			r = parse_headers(data, size, &at, h->headers, HTTP_HEADERS_MAX, &h->header_count, e);
	}
	if (r < 0)
		return r;
	if (r == 0)
		return full ? error_set(e, -E2BIG, "HTTP head: longer than %d bytes", HTTP_HEAD_MAX) : 0;
	r = request ? judge_request(h, e) : judge_response(h, to_head, e);
	return r < 0 ? r : (ssize_t)at;
}

ssize_t http_parse_request(const char *data, size_t size, struct http_head *ret, struct error *e) {
	return parse_head(data, size, true, false, ret, e);
}

ssize_t http_parse_response(const char *data, size_t size, bool to_head, struct http_head *ret, struct error *e) {
	return parse_head(data, size, false, to_head, ret, e);
}

ssize_t http_parse_trailers(const char *data, size_t size, struct http_header *ret, size_t room, struct error *e) {
	size_t at = 0, count = 0;
	int r = parse_headers(data, size, &at, ret, room, &count, e);
	if (r < 0)
		return r;
	if (r == 0 || at != size)
		return error_set(e, -EBADMSG, "HTTP trailers: the section does not end with an empty line");
	return (ssize_t)count;
}

// States of the chunked decoder, named for what comes next (RFC 9112 section 7.1).
enum chunk_state {
	CHUNK_SIZE_FIRST, // first digit of a size
	CHUNK_SIZE,
	CHUNK_EXTENSION_SPACE, // white space before a semicolon
	CHUNK_EXTENSION,
	CHUNK_SIZE_LF,
	CHUNK_DATA,
	CHUNK_DATA_CR,
	CHUNK_DATA_LF,
	TRAILER_FIRST, // first character of a trailer line
	TRAILER_NAME,
	TRAILER_VALUE,
	TRAILER_LF,
	TRAILER_END_LF, // LF of the empty line
};

#define CHUNK_DIGITS_MAX 15 // keeps every size below 2^60

void http_body_start(struct http_body *b, const struct http_head *h) {
	*b = (struct http_body){.kind = h->body, .state = CHUNK_SIZE_FIRST};
	if (b->kind == HTTP_BODY_LENGTH)
		b->left = h->content_length;
	b->done = b->kind == HTTP_BODY_NONE || (b->kind == HTTP_BODY_LENGTH && b->left == 0);
}

bool http_body_in_trailers(const struct http_body *b) {
	return b->kind == HTTP_BODY_CHUNKED && !b->done && b->state >= TRAILER_FIRST;
}

static int hex_digit(unsigned char c) {
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// b->trailer_bytes counts the digits of the size or the bytes of its extensions first, and the trailer's bytes in the end.
static int feed_size(struct http_body *b, unsigned char c) {
	int digit = hex_digit(c);
	if (digit >= 0 && (b->state == CHUNK_SIZE_FIRST || b->state == CHUNK_SIZE)) {
		if (b->state == CHUNK_SIZE_FIRST) {
			b->left = 0;
			b->trailer_bytes = 0;
		}
		b->left = b->left << 4 | (uint64_t)digit;
		return ++b->trailer_bytes > CHUNK_DIGITS_MAX ? -EBADMSG : CHUNK_SIZE;
	}
	if (b->state == CHUNK_SIZE_FIRST)
		return -EBADMSG;
	if (c == '\r')
		return b->state == CHUNK_EXTENSION_SPACE ? -EBADMSG : CHUNK_SIZE_LF;
	if (b->state == CHUNK_SIZE)
		b->trailer_bytes = 0;
	if (++b->trailer_bytes > HTTP_CHUNK_EXTENSION_MAX)
		return -EBADMSG;
	if (b->state == CHUNK_EXTENSION)
		return text_char(c) ? CHUNK_EXTENSION : -EBADMSG;
	return c == ';' ? CHUNK_EXTENSION : c == ' ' || c == '\t' ? CHUNK_EXTENSION_SPACE : -EBADMSG;
}

static int feed_trailer(struct http_body *b, unsigned char c) {
	if (++b->trailer_bytes > HTTP_TRAILER_MAX)
		return -E2BIG;
	switch (b->state) {
	case TRAILER_FIRST:
		return c == '\r' ? TRAILER_END_LF : token_char[c] ? TRAILER_NAME : -EBADMSG;
	case TRAILER_NAME:
		return c == ':' ? TRAILER_VALUE : token_char[c] ? TRAILER_NAME : -EBADMSG;
	case TRAILER_VALUE:
		return c == '\r' ? TRAILER_LF : text_char(c) ? TRAILER_VALUE : -EBADMSG;
	case TRAILER_LF:
		return c == '\n' ? TRAILER_FIRST : -EBADMSG;
	default:
		b->done = c == '\n';
		return b->done ? TRAILER_END_LF : -EBADMSG;
	}
}

// Takes one byte of framing and returns the next state, or a negative errno.
static int feed_framing(struct http_body *b, unsigned char c) {
	switch (b->state) {
	case CHUNK_SIZE_LF:
		b->trailer_bytes = 0;
		return c != '\n' ? -EBADMSG : b->left > 0 ? CHUNK_DATA : TRAILER_FIRST;
	case CHUNK_DATA_CR:
		return c == '\r' ? CHUNK_DATA_LF : -EBADMSG;
	case CHUNK_DATA_LF:
		return c == '\n' ? CHUNK_SIZE_FIRST : -EBADMSG;
	default:
		return b->state >= TRAILER_FIRST ? feed_trailer(b, c) : feed_size(b, c);
	}
}

static ssize_t take_content(struct http_body *b, const char *data, size_t size, struct slice *ret) {
	size_t n = size < b->left ? size : (size_t)b->left;
	*ret = (struct slice){data, n};
	b->left -= n;
	return (ssize_t)n;
}

ssize_t http_body_feed(struct http_body *b, const char *data, size_t size, struct slice *ret, struct error *e) {
	*ret = (struct slice){data, 0};
	if (b->done)
		return 0;
	if (b->kind == HTTP_BODY_UNTIL_CLOSE) {
		ret->size = size;
		return (ssize_t)size;
	}
	if (b->kind == HTTP_BODY_LENGTH) {
		ssize_t n = take_content(b, data, size, ret);
		b->done = b->left == 0;
		return n;
	}
	size_t at = 0;
	while (at < size && !b->done) {
		if (b->state == CHUNK_DATA) {
			at += (size_t)take_content(b, data + at, size - at, ret);
			if (b->left == 0)
				b->state = CHUNK_DATA_CR;
			break;
		}
		bool before = b->state < TRAILER_FIRST;
		int next = feed_framing(b, (unsigned char)data[at++]);
		if (next == -E2BIG)
			return error_set(e, -E2BIG, "HTTP body: trailers longer than %d bytes", HTTP_TRAILER_MAX);
		if (next < 0)
			return error_set(e, -EBADMSG, "HTTP body: malformed chunked coding");
		b->state = next;
		if (before && next == TRAILER_FIRST)
			break;
	}
	return (ssize_t)at;
}
