// A byte stream to a port of an application inside a microVM: the VMM's vsock socket, the guest agent, loopback.
//
// docs/agent-protocol.md, port 1025. The two request lines go out together; the stream is open when both answers are there. Streams that an
// HTTP/1.1 session leaves in order are kept for a few seconds for the next request to the same port of the same microVM.
//
// A stream outlives the sleep of its microVM, and its user sees nothing but a pause. What the edge has written is in the snapshot or with the
// application; what it is given meanwhile waits in `out`, and wakes the microVM when its policy says so; what the VMM had written is
// read to its end; then the stream is taken over from the new VMM (`ATTACH`). One that was not open yet starts anew. A stream that is closed
// meanwhile is closed in the guest as soon as it is awake.
#pragma once

#include "edge/buffer.h"
#include "edge/state.h"
#include "edge/wire.h"

#define UPSTREAM_SESSION 0 // in place of a port: a session with the guest agent itself (docs/agent-protocol.md, SESSION)

enum upstream_phase {
	UPSTREAM_CONNECTING, // to the VMM; or waiting for it, in line or asleep
	UPSTREAM_GREETING,   // waiting for the answers of VMM and agent
	UPSTREAM_OPEN,
	UPSTREAM_FAILED,
};

// What somebody waits for on an open stream. If bytes went either way so short a time before its microVM was suspended, that is woken again as its
// policy says.
enum upstream_wait {
	UPSTREAM_WAIT_NOTHING,
	UPSTREAM_WAIT_HEAD,    // of a response: 50 s, less than any idle time, so that no idle policy is undone
	UPSTREAM_WAIT_REST,    // of a response that ends by itself: 5 s
	UPSTREAM_WAIT_REPLIES, // on a stream without an end: 10 s, if nothing has come since; silence is usual on these
};

struct microvm_route;
struct way;

struct upstream {
	struct edge *edge;
	struct way *way;
	TAILQ_ENTRY(upstream) link;     // while it is idle
	TAILQ_ENTRY(upstream) way_link; // on `place`
	struct upstream_list *place;    // one of the way's lists; NULL once closed
	struct wire *wire;              // to the VMM; NULL while there is none
	struct wire *rest;              // to the VMM before the sleep, which has ended: what is left to read of it
	uv_timer_t again;               // something is to be done from the loop: see on_again()
	enum upstream_phase phase;
	uint16_t port;
	uint32_t host_port; // the VMM's name for the stream; 0: not known
	unsigned answers;   // lines of the greeting that came
	char answer[64];    // the one that is coming
	size_t answer_used;
	char reason[96]; // why it failed, or what was wrong with its TLS
	struct tls *tls; // of an application that speaks TLS; NULL: it does not, or the stream is not open yet
	bool secure;     // the agent says that it does
	bool h2;         // … and is to be offered HTTP/2; set before it is open
	struct buffer in, out;
	bool eof;    // the application has ended its side
	bool reset;  // … and not in order
	bool filled; // `in` was full when it was last read into
	bool broken; // writing is of no use any more
	bool reused; // it has carried a request before
	bool ending, ended, idle, closed;
	bool full;      // the socket took no more
	bool attaching; // ATTACH was sent, its answer has not come
	bool forsaken;  // closed while its microVM slept
	bool lost;      // once `rest` is read, it is over
	bool wants;     // bytes came after the microVM was halted
	bool presses;   // as the microVM was halted, somebody waited whose patience was not at its end
	bool asked;     // something went to the application, nothing has come since
	bool framed;    // not every byte is such a thing: who reads the frames says which
	uint32_t held;  // bytes in `out` as it was halted
	uint64_t idle_since_ms, begun_ms, wrote_ms, read_ms;
	enum upstream_wait waits;
	void (*changed)(void *arg); // called from the loop only, never from within a call of this interface
	void *arg;
};

// A kept stream that was idle for at most max_idle_ms and is still alive, or NULL.
struct upstream *upstream_take(struct edge *ed, struct microvm_route *route, uint16_t port, uint64_t max_idle_ms,
			       void (*changed)(void *arg), void *arg);

// A new one, in UPSTREAM_CONNECTING or already further; NULL when out of memory. It waits in line for as long as it takes; once it is its
// turn, it fails when the application cannot be reached within EDGE_CONNECT_MS.
struct upstream *upstream_connect(struct edge *ed, struct microvm_route *route, uint16_t port, void (*changed)(void *arg), void *arg);

// Of a framed stream: content went to the application; content has come.
void upstream_asked(struct upstream *u);
void upstream_answered(struct upstream *u);

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

// Ends streams that took too long to be greeted, and closes kept ones that were idle for too long; or, `all`, closes every one.
void upstream_sweep(struct edge *ed, uint64_t now_ms, bool all);
