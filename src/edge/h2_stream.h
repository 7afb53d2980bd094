// One stream of an HTTP/2 connection as the connection of an HTTP/1.1 session. Private to h2_session.c and h2_stream.c.
#pragma once

#include "edge/connection.h"
#include "edge/ws_key.h"

#include <nghttp2/nghttp2.h>

#define H2_STREAMS_MAX 128                 // open at once on one connection
#define H2_STREAM_WINDOW (64 * 1024)       // bytes of a request's content that may wait
#define H2_CONNECTION_WINDOW (1024 * 1024) // … of all requests of a connection
#define H2_HEADS_MAX (512 * 1024)          // bytes of heads that may wait on a connection
#define H2_FIELDS_MAX 256                  // header fields of one head; cookies come in many
#define H2_WAITING_MAX 4                   // buffers of content behind the one that the session reads from

// A header block that is being received: fields, with nghttp2's own references.
struct h2_block {
	size_t count, bytes;
	bool too_large;
	struct {
		nghttp2_rcbuf *name, *value;
	} fields[H2_FIELDS_MAX];
};

TAILQ_HEAD(h2_streams, h2_stream);

struct h2 {
	struct connection *c;
	nghttp2_session *ng;
	struct h2_streams streams;
	struct h2_streams ready; // those whose session is to be run
	size_t open, busy;       // streams; those that have passed the gate
	size_t head_bytes;       // of heads that wait
	bool in_block, expired;
	uint64_t block_since_ms;
	struct buffer out; // frames for the client
	struct h2_block block;
};

struct h2_stream {
	struct connection base; // first: the one is cast to the other
	struct h2 *h2;
	TAILQ_ENTRY(h2_stream) link, ready_link;
	int32_t id;
	bool ready;
	struct buffer waiting[H2_WAITING_MAX]; // content behind base.in
	size_t waiting_count;
	size_t head_left;     // bytes of the head in base.in, which cost no window
	size_t owed;          // bytes of content that wait, and that the client's windows lack
	struct buffer in_end; // the request's trailer section
	struct buffer out;    // content of the response
	struct buffer trailers;
	bool ended;    // nothing follows what is in `out`, except trailers
	bool broken;   // … and it breaks off there
	bool answered; // the response's head is on its way
	bool deferred; // nghttp2 waits for more content
	bool end_sent;
	uint64_t stop_ms;            // when the client is to be told that nobody wants the rest of its request; 0: never
	uint64_t blocked_since_ms;   // content waits and none has gone since; 0: none waits
	char accept[WS_ACCEPT_TEXT]; // what a WebSocket's handshake must be answered with; empty: it is none
};

// A new stream, in both places: nghttp2's and ours. NULL when out of memory.
struct h2_stream *h2_stream_new(struct h2 *h2, int32_t id);
// Takes the stream apart; its session ends.
void h2_stream_free(struct h2_stream *st);
// Makes the stream's head of the block, and a session for it. `ends`: no content follows.
void h2_stream_begin(struct h2_stream *st, const struct h2_block *b, bool ends);
// Content and end of the request. False when out of memory.
bool h2_stream_input(struct h2_stream *st, const uint8_t *data, size_t size);
bool h2_stream_input_end(struct h2_stream *st, const struct h2_block *trailers);
void h2_stream_run(struct h2_stream *st);
void h2_stream_ready(struct h2_stream *st);
// Looks at the stream's clocks. Returns whether something is to be done now.
bool h2_stream_sweep(struct h2_stream *st, uint64_t now_ms);

// For nghttp2: how much content is there, as the result of its read callback; it has taken so much; the last frame is on its way.
ssize_t h2_stream_read(struct h2_stream *st, size_t room, uint32_t *flags);
void h2_stream_sent(struct h2_stream *st, size_t n);
void h2_stream_end_sent(struct h2_stream *st);
