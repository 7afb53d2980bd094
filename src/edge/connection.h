// A client's connection: TCP and TLS, a buffer of plain bytes in, a buffer of ciphertext out, and a session that makes sense of it.
//
// Everything that happens to a connection, its session or the session's upstream ends in connection_pump(), which moves bytes as far as they
// go: decrypt, run the session, encrypt, send, until nothing moves. Sessions are therefore written as machines that look at the present
// state, not at events. A connection that is ended in the midst of this is taken apart only when the pump is done, so that a session may
// always look at it.
#pragma once

#include "edge/buffer.h"
#include "edge/state.h"
#include "edge/tls.h"

struct session_ops {
	// Something may have changed: move on as far as possible.
	void (*run)(struct connection *c);
	// c->deadline_ms has passed.
	void (*expired)(struct connection *c);
	// The connection is going away: let go of everything.
	void (*end)(struct connection *c);
};

enum connection_phase {
	CONNECTION_OPEN,
	CONNECTION_FINISHING, // the last bytes and the close_notify are being sent
	CONNECTION_LINGERING, // what the client still sends is thrown away
	CONNECTION_CLOSED,
};

struct connection {
	struct edge *edge;
	TAILQ_ENTRY(connection) link;
	uv_tcp_t tcp;
	uv_write_t write;
	uv_shutdown_t shutdown;
	struct tls tls;
	struct buffer in; // plain bytes that the session has not consumed
	enum connection_phase phase;
	bool pumping, again;
	bool reading, writing;
	size_t write_size;    // ciphertext under way in `write`
	bool linger;          // see connection_finish()
	bool half_closed;     // our side has ended, theirs goes on
	bool blocked;         // the session has more to write than there was room for
	bool eof;             // the client will send nothing more
	bool idle;            // no request that has passed the gate: may be closed to make room
	bool watch_peer;      // look for a close even while nothing is read
	bool settled;         // the socket's handle is being closed
	unsigned pins;        // libuv callbacks under way that point here
	uint64_t deadline_ms; // loop time (uv_now); 0: none
	uint64_t write_since_ms;

	const struct session_ops *ops;
	void *session;
};

// Takes a new client from the listener. Nothing is left behind when it fails.
void connection_accept(struct edge *ed);

void connection_pump(struct connection *c);

// For sessions. ---------------------------------------------------------------------------------------------------------------

// Encrypts; returns how many bytes were taken, which may be fewer than asked for. The session is run again when there is room.
size_t connection_write(struct connection *c, const void *data, size_t size);
// The client will send nothing more, and everything that it sent has been consumed.
// Something that the client sent is not decrypted yet.
bool connection_input_waits(const struct connection *c);
bool connection_input_ended(const struct connection *c);
void connection_consume(struct connection *c, size_t n);
// Makes room for a long head; false when it is as large as it gets.
bool connection_grow_input(struct connection *c);
void connection_set_deadline(struct connection *c, uint64_t ms); // from now; 0: none
void connection_set_idle(struct connection *c, bool idle);

// Ends in order: sends what was written, then close_notify and FIN. `linger`: the client may still be sending, and must not get a reset
// before it has read the answer.
void connection_finish(struct connection *c, bool linger);
// Ends our side only; the client's bytes keep coming.
void connection_half_close(struct connection *c);
// Ends at once, without a close_notify, so that the client knows that something is missing.
void connection_abort(struct connection *c);

// For the edge. ---------------------------------------------------------------------------------------------------------------

void connection_sweep(struct connection *c, uint64_t now_ms);
