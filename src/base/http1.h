// HTTP/1.1 messages (RFC 9112), strictly: one parser for the API, the edge and the guest agent.
//
// The parser works on a buffer that the caller fills; it neither allocates nor copies, its results are slices of that buffer. It
// accepts what RFC 9112 allows and refuses everything that two parsers could read differently: bare CR or LF, obs-fold, white space before a colon,
// both Content-Length and Transfer-Encoding, repeated or malformed Content-Length, a Transfer-Encoding other than exactly `chunked`, one in
// an HTTP/1.0 message, NUL and other control characters, a request without exactly one Host (HTTP/1.1), a target that is none of the four
// forms of RFC 9112 section 3.2.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

#define HTTP_HEADERS_MAX 100
#define HTTP_HEAD_MAX 32768          // bytes of one head, start line included
#define HTTP_TRAILER_MAX 8192        // bytes of one trailer section
#define HTTP_CHUNK_EXTENSION_MAX 256 // bytes of one chunk's extensions

struct slice {
	const char *data;
	size_t size;
};

#define SLICE_OF(literal) \
	{ (literal), sizeof(literal) - 1 } // as an initialiser
#define SLICE(literal) ((struct slice)SLICE_OF(literal))

struct http_header {
	struct slice name, value; // value without surrounding white space
};

enum http_body_kind { HTTP_BODY_NONE, HTTP_BODY_LENGTH, HTTP_BODY_CHUNKED, HTTP_BODY_UNTIL_CLOSE };

struct http_head {
	struct slice method, target; // requests
	int status;                  // responses
	struct slice reason;
	int minor_version; // HTTP/1.<this>: 0 or 1
	struct http_header headers[HTTP_HEADERS_MAX];
	size_t header_count;
	enum http_body_kind body;
	uint64_t content_length; // HTTP_BODY_LENGTH
	bool keep_alive;         // the connection may carry another message after this one
	bool connection;         // there is a Connection header
	bool upgrade;            // Connection: upgrade with an Upgrade header
	bool expect_continue;
};

// Parse one head at the start of `data`. Return the number of bytes it takes, 0 when it is not complete yet, or -EBADMSG (malformed),
// -E2BIG (longer than HTTP_HEAD_MAX or more than HTTP_HEADERS_MAX headers) or -EPROTONOSUPPORT (not HTTP/1.0 or 1.1). The result depends on
// the bytes alone, not on how they were cut; a line is judged as soon as its LF is there, so a caller that gets bytes in small pieces need
// only ask again when a piece had a LF in it or HTTP_HEAD_MAX is reached.
ssize_t http_parse_request(const char *data, size_t size, struct http_head *ret, struct error *e);

// `to_head`: the response answers a HEAD request and has no body.
ssize_t http_parse_response(const char *data, size_t size, bool to_head, struct http_head *ret, struct error *e);

// The first header of that name (case-insensitive), or NULL.
const struct http_header *http_find(const struct http_head *h, const char *name);

// Inline, so that the length of a literal is known and most comparisons end with it.
bool slice_same_nocase(const char *a, const char *b, size_t size);
static inline bool slice_equals(struct slice s, const char *text) {
	return s.size == strlen(text) && (s.size == 0 || memcmp(s.data, text, s.size) == 0);
}
static inline bool slice_equals_nocase(struct slice s, const char *text) {
	return s.size == strlen(text) && slice_same_nocase(s.data, text, s.size);
}
bool slice_is_token(struct slice s); // RFC 9110 section 5.6.2
// Without white space at its ends.
struct slice slice_trim(struct slice s);
// Whether a comma-separated list value contains the token (case-insensitive).
bool slice_has_token(struct slice list, const char *token);

// Body decoder. Feed it what follows the head; it hands out the content's bytes in place.
struct http_body {
	enum http_body_kind kind;
	uint64_t left; // bytes left of the content or of the current chunk
	int state;
	uint32_t trailer_bytes;
	bool done;
};

void http_body_start(struct http_body *b, const struct http_head *h);

// Looks at `size` bytes. Returns how many were consumed (0: more are needed first), -EBADMSG, or -E2BIG (trailers longer than
// HTTP_TRAILER_MAX); *ret is the slice of content among the consumed ones (it may be empty). Sets b->done behind the last byte of the message,
// trailers included. Call again until all is consumed or done. HTTP_BODY_UNTIL_CLOSE is never done: its end is that of the connection.
ssize_t http_body_feed(struct http_body *b, const char *data, size_t size, struct slice *ret, struct error *e);

// Whether what the next http_body_feed() consumes belongs to the trailer section: a feed never crosses its beginning. A caller that
// wants the trailers keeps those bytes (at most HTTP_TRAILER_MAX) and parses them when b->done is set.
bool http_body_in_trailers(const struct http_body *b);

// Parses a whole trailer section, its empty line included. Returns the number of headers or a negative errno, as for heads.
ssize_t http_parse_trailers(const char *data, size_t size, struct http_header *ret, size_t room, struct error *e);
