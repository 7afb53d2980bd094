// A byte stream to a port of an application inside a microVM: the VMM's vsock socket, the guest agent, loopback.
//
// docs/agent-protocol.md, port 1025. The two request lines go out together; the stream is open when both answers are there. Streams that an
// HTTP/1.1 session leaves in order are kept for a few seconds for the next request to the same port of the same VMM; when the microVM is
// suspended, its VMM ends and the kept streams with it.
#pragma once

#include "edge/buffer.h"
#include "edge/state.h"

#include <sys/un.h>

#define UPSTREAM_SESSION 0 // in place of a port: a session with the guest agent itself (docs/agent-protocol.md, SESSION)

enum upstream_phase {
	UPSTREAM_CONNECTING, // to the VMM
	UPSTREAM_GREETING,   // waiting for the answers of VMM and agent
	UPSTREAM_OPEN,
	UPSTREAM_FAILED,
};

struct upstream {
	struct edge *edge;
	TAILQ_ENTRY(upstream) link; // while it is idle
	uv_pipe_t pipe;
	uv_connect_t connect;
	uv_timer_t again; // while the VMM's backlog is full
	uv_write_t write;
	uv_shutdown_t shutdown;
	enum upstream_phase phase;
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
	uint16_t port;
	int answers;     // lines of the greeting that came
	char reason[48]; // why it failed
	struct buffer in, out;
	bool eof;    // the application has ended its side
	bool reset;  // … and not in order
	bool broken; // writing is of no use any more
	bool reused; // it has carried a request before
	bool reading, writing, ending, ended, idle, reopening, closed;
	size_t write_size;
	uint64_t idle_since_ms;
	unsigned pins;
	void (*changed)(void *arg); // called from the loop only, never from within a call of this interface
	void *arg;
};

// A kept stream that was idle for at most max_idle_ms and is still alive, or NULL.
struct upstream *upstream_take(struct edge *ed, const char *vsock, uint16_t port, uint64_t max_idle_ms, void (*changed)(void *arg),
			       void *arg);

// A new one, in UPSTREAM_CONNECTING or already in UPSTREAM_FAILED; NULL when out of memory.
struct upstream *upstream_connect(struct edge *ed, const char *vsock, uint16_t port, void (*changed)(void *arg), void *arg);

// Room for writing. Bytes are appended with upstream_append(), which checks nothing, and sent with upstream_flush().
size_t upstream_room(const struct upstream *u);
bool upstream_reserve(struct upstream *u, uint32_t capacity); // a block for at least that much, before appending
void upstream_append(struct upstream *u, const void *data, size_t size);
void upstream_flush(struct upstream *u);

// Ends our side once everything is sent.
void upstream_end(struct upstream *u);

void upstream_consume(struct upstream *u, size_t n);
// Makes room for a long head; false when it is as large as it gets.
bool upstream_grow_input(struct upstream *u);
// Reads on when there is room. Call after consuming.
void upstream_update(struct upstream *u);

// Hands a stream back: kept for another request, or closed. The pointer is dead afterwards.
void upstream_keep(struct upstream *u);
void upstream_close(struct upstream *u);

// Closes kept streams that were idle for too long, or all of them.
void upstream_sweep(struct edge *ed, uint64_t now_ms, bool all);
