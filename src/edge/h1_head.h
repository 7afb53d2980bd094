// HTTP/1.1 heads as a proxy rewrites them: pure functions over parsed heads.
//
// Hop-by-hop headers (RFC 9110 section 7.6.1) go, framing is written anew from what was understood, and nothing that the parser did not
// understand reaches the other side.
#pragma once

#include "base/http1.h"
#include "base/wire.h"
#include "edge/gate.h"

#define H1_HEAD_ADDED_MAX 512 // bytes that a rewritten head may have more than the original

// Collects what the gate wants to know, of a WebSocket handshake also what its subprotocols say. False when the request names two
// authorities or a handshake's list of subprotocols is malformed.
bool h1_gate_request(const struct http_head *h, struct gate_request *ret);

// Whether the request asks for another protocol and may: not for another version of HTTP, which would smuggle requests past the gate, and
// not with a body.
bool h1_may_upgrade(const struct http_head *h);

// Whether the request is a WebSocket's handshake (RFC 6455 section 4.1) and may be.
bool h1_is_websocket(const struct http_head *h);
// Whether a handshake offers the edge's subprotocol, so that the answer must name one.
bool h1_offers_subprotocol(const struct http_head *h);

// Whether the application is to be spoken to in HTTP/2 (X-aws-proxy-force-h2: true). Upgrades exist in HTTP/1.1 only.
bool h1_forces_h2(const struct http_head *h);

// Methods that may be sent again when nothing is known of the first time (RFC 9110 section 9.2.2).
bool h1_is_idempotent(struct slice method);

// The head for the application.
void h1_write_request(struct writer *w, const struct http_head *h, const char *request_id);

enum h1_framing { H1_FRAMING_NONE, H1_FRAMING_LENGTH, H1_FRAMING_CHUNKED, H1_FRAMING_CLOSE };

// The headers for the client, of any response (1xx included), without what says how the body is framed on the way: slices of the original.
// Returns how many; at most H1_HEADERS_MAX. `framing`: NONE and LENGTH keep Content-Length; see below. `offered`: see h1_offers_subprotocol().
#define H1_HEADERS_MAX (HTTP_HEADERS_MAX + 1)
size_t h1_response_headers(const struct http_head *h, enum h1_framing framing, bool offered, struct http_header *ret);

// The head for the client. `framing` is how the body is going to be sent; NONE: as the original says about a body that does not follow
// (HEAD, 304). `keep`: the connection stays; `old_client`: it speaks HTTP/1.0.
void h1_write_response(struct writer *w, const struct http_head *h, enum h1_framing framing, bool keep, bool old_client);
// A 1xx response, 101 included. `offered`: see h1_offers_subprotocol().
void h1_write_interim(struct writer *w, const struct http_head *h, bool offered);

// An answer of the edge's own. An empty text gives an empty body.
#define H1_ANSWER_HEADERS 4
struct h1_answer {
	char date[40], length[24];
	struct http_header headers[H1_ANSWER_HEADERS];
	size_t count;
};
void h1_make_answer(struct h1_answer *a, int status, const char *text, int64_t now_s);
void h1_write_answer(struct writer *w, int status, const char *text, bool to_head, bool keep, int64_t now_s);

// The trailer section without what may not be in it (framing, routing, authentication), and its empty line.
void h1_write_trailers(struct writer *w, const struct http_header *headers, size_t count);
