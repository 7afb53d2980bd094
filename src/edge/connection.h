// What a session talks to: a client's connection, or something that looks like one. Bytes come in through a buffer of plain bytes; how they
// and the answers travel is the transport's matter. There are two: TLS over TCP (connection.c), and a stream of an HTTP/2 connection
// (h2_stream.c), whose session then is the same as that of an HTTP/1.1 client.
//
// Everything that happens to a connection, its session or the session's upstream ends in connection_pump(), which moves bytes as far as they
// go: take in, run the session, send, until nothing moves. Sessions are therefore written as machines that look at the present
// state, not at events. A connection that is ended in the midst of this is taken apart only when the pump is done, so that a session may
// always look at it.
#pragma once

#include "edge/buffer.h"
#include "edge/state.h"

struct session_ops {
	// Something may have changed: move on as far as possible.
	void (*run)(struct connection *c);
	// c->deadline_ms has passed.
	void (*expired)(struct connection *c);
	// The connection is going away: let go of everything.
	void (*end)(struct connection *c);
	// Once a second; NULL: the session has no clocks of its own.
	void (*sweep)(struct connection *c, uint64_t now_ms);
};

struct transport_ops {
	size_t (*write)(struct connection *c, const void *data, size_t size);
	bool (*waits)(const struct connection *c);
	void (*consumed)(struct connection *c, size_t n);
	void (*idle)(struct connection *c, bool idle);
	void (*pump)(struct connection *c);
	void (*finish)(struct connection *c, bool linger);
	void (*half_close)(struct connection *c);
	void (*abort)(struct connection *c);
	// Of transports that carry messages rather than bytes (c->framed): a response's head (interim ones and 101 included; `ends`: no content
	// follows), and the end of its content; between them write() takes content. False when it cannot be passed on.
	bool (*head)(struct connection *c, int status, const struct http_header *headers, size_t count, bool ends);
	bool (*end)(struct connection *c, const struct http_header *trailers, size_t count);
	// The trailer section of the request, its empty line included, once the client will send nothing more.
	struct slice (*trailers)(const struct connection *c);
};

enum connection_phase {
	CONNECTION_OPEN,
	CONNECTION_FINISHING, // the last bytes and the transport's own end are being sent
	CONNECTION_LINGERING, // what the client still sends is thrown away
	CONNECTION_CLOSED,
};

struct connection {
	struct edge *edge;
	const struct transport_ops *transport;
	const struct session_ops *ops;
	void *session;
	struct buffer in; // plain bytes that the session has not consumed
	TAILQ_ENTRY(connection) later_link;
	enum connection_phase phase;
	bool later;  // edge_pump_later() has been asked for
	bool framed; // the transport carries messages: heads, content and ends are told apart by it
	bool pumping, again;
	bool half_closed;     // our side has ended, theirs goes on
	bool blocked;         // the session has more to write than there was room for
	bool eof;             // the client will send nothing more
	bool idle;            // no request that has passed the gate: may be closed to make room
	bool watch_peer;      // look for a close even while nothing is read
	uint64_t deadline_ms; // loop time (uv_now); 0: none
};

// For sessions. ---------------------------------------------------------------------------------------------------------------

// See above. [loop thread]
static inline void connection_pump(struct connection *c) {
	c->transport->pump(c);
}
// Returns how many bytes were taken, which may be fewer than asked for. The session is run again when there is room.
static inline size_t connection_write(struct connection *c, const void *data, size_t size) {
	return c->transport->write(c, data, size);
}
// More than what is in c->in has come, and finds no room there yet.
static inline bool connection_input_waits(const struct connection *c) {
	return c->transport->waits(c);
}
// The client will send nothing more, and everything that it sent has been consumed.
static inline bool connection_input_ended(const struct connection *c) {
	return c->eof && buffer_used(&c->in) == 0 && !connection_input_waits(c);
}
void connection_consume(struct connection *c, size_t n);
// Makes room for a long head; false when it is as large as it gets.
bool connection_grow_input(struct connection *c);
void connection_set_deadline(struct connection *c, uint64_t ms); // from now; 0: none
static inline void connection_set_idle(struct connection *c, bool idle) {
	c->transport->idle(c, idle);
}
// Ends in order: sends what was written, then the end. `linger`: the client may still be sending, and must not get a reset before it has
// read the answer.
static inline void connection_finish(struct connection *c, bool linger) {
	c->transport->finish(c, linger);
}
// Ends our side only; the client's bytes keep coming.
static inline void connection_half_close(struct connection *c) {
	c->transport->half_close(c);
}
// Ends at once, in a way that tells the client that something is missing.
static inline void connection_abort(struct connection *c) {
	c->transport->abort(c);
}

// For the edge. ---------------------------------------------------------------------------------------------------------------

// Takes a new client from the listener. Nothing is left behind when it fails.
void connection_accept(struct edge *ed);
// Looks at every client's clocks, and closes all of them when `all`.
void connections_sweep(struct edge *ed, uint64_t now_ms);
void connections_abort(struct edge *ed);
