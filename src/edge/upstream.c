// A byte stream to an application; see upstream.h.
#include "edge/upstream.h"

#include "edge/secure.h"
#include "edge/way.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STREAM_PORT 1025 // the agent's, docs/agent-protocol.md
#define AGAIN_MS 5
#define READS_AT_ONCE 4
#define MOVING_MS 5000 // bytes that waited as the microVM was halted wake it when others had gone this short a time ago

static void on_closed(uv_handle_t *handle) {
	struct upstream *u = handle->data;
	struct edge *ed = u->edge;
	free(u);
	edge_let_go(ed);
}

// The loop is to come by: to connect again, to read the rest, to tell.
static void poke(struct upstream *u, uint64_t ms);

void upstream_answered(struct upstream *u) {
	if (u->asked)
		microvm_route_answered(u->way->route);
	u->asked = false;
}

void upstream_asked(struct upstream *u) {
	if (!u->asked && !u->eof) {
		microvm_route_asked(u->way->route);
		u->asked = true;
	}
}

static void leave_idle(struct upstream *u) {
	if (!u->idle)
		return;
	TAILQ_REMOVE(&u->edge->idle_upstreams, u, link);
	u->edge->idle_upstream_count--;
	u->idle = false;
}

// Everything but the guest's end of the stream.
static void let_go(struct upstream *u) {
	leave_idle(u);
	upstream_answered(u);
	u->changed = NULL;
	buffer_release(&u->edge->buffers, &u->in);
	buffer_release(&u->edge->buffers, &u->out);
	wire_close(u->rest);
	u->rest = NULL;
	if (u->tls != NULL)
		tls_clear(u->tls);
	free(u->tls);
	u->tls = NULL;
}

static void close_now(struct upstream *u) {
	struct way *w = u->way;
	let_go(u);
	u->closed = true;
	wire_close(u->wire);
	u->wire = NULL;
	uv_close((uv_handle_t *)&u->again, on_closed);
	way_pin(w);
	way_remove(u);
	if (!u->edge->stopping)
		way_serve(w); // it may have made room
	way_unpin(w);
}

// Whether the guest has an end of this stream that only a later VMM can close.
static bool sleeps(const struct upstream *u) {
	return u->phase != UPSTREAM_FAILED && u->host_port != 0 && (u->wire == NULL || u->attaching) &&
	       microvm_route_latest(u->way->route) != MICROVM_ENDS;
}

void upstream_close(struct upstream *u) {
	if (u->closed || u->forsaken)
		return;
	if (!sleeps(u) || u->edge->stopping) {
		close_now(u);
		return;
	}
	u->forsaken = true;
	u->lost = false;
	let_go(u);
	if (u->place == &u->way->settled) {
		way_put(u, &u->way->waiting, true);
		way_serve(u->way);
	}
}

static void tell(struct upstream *u) {
	if (u->idle)
		upstream_close(u); // whatever a kept stream has to say, it is of no use any more
	else if (u->changed != NULL)
		u->changed(u->arg);
}

static void fail(struct upstream *u, const char *reason) {
	u->phase = UPSTREAM_FAILED;
	u->broken = u->eof = true;
	snprintf(u->reason, sizeof(u->reason), "%s", reason);
	for (char *p = u->reason; *p != '\0'; p++)
		if (*p < 0x20 || *p > 0x7e)
			*p = '?';
	wire_close(u->wire);
	u->wire = NULL;
	way_put(u, &u->way->settled, false);
}

// Reading. --------------------------------------------------------------------------------------------------------------------

static bool has_room(const struct upstream *u) {
	// One that was full waits until half a buffer is free: less would make many small reads.
	size_t room = u->in.capacity - buffer_used(&u->in);
	return u->in.data == NULL || room >= BUFFER_SMALL / 2 || (room > 0 && !u->filled);
}

static void rewatch(struct upstream *u) {
	if (u->wire == NULL)
		return;
	bool greeting = u->place == &u->way->greeting;
	bool readable = greeting || (!u->eof && u->rest == NULL && has_room(u));
	bool writable = u->full && !greeting && way_is_awake(u->way);
	wire_watch(u->wire, (readable ? UV_READABLE : 0) | (writable ? UV_WRITABLE : 0));
}

// Reads from `from` into `in`. As wire_read(); -ENOBUFS: there is no room for it now. *ret_more: it was as much as was asked for.
static ssize_t read_some(struct upstream *u, struct wire *from, bool *ret_more) {
	*ret_more = false;
	if (!buffer_want(&u->edge->buffers, &u->in, BUFFER_SMALL))
		return -ENOBUFS;
	if (buffer_room(&u->in) == 0)
		buffer_compact(&u->in);
	if (buffer_room(&u->in) == 0)
		return -ENOBUFS;
	// One TLS record's worth: what is left over would become a small record, and a write, of its own.
	size_t room = buffer_used(&u->in) == 0 ? TLS_RECORD_MAX : buffer_room(&u->in);
	char *to = u->in.data + u->in.end;
	ssize_t n = u->tls == NULL ? wire_read(from, to, room) : secure_read(u->tls, from, u->edge->application_buffer, to, room);
	if (n > 0) {
		*ret_more = (size_t)n == room || (u->tls != NULL && secure_has(u->tls));
		u->in.end += (uint32_t)n;
		u->filled = buffer_used(&u->in) == u->in.capacity;
		u->read_ms = uv_now(u->edge->engine->loop);
		if (!u->framed)
			upstream_answered(u);
	} else if (buffer_used(&u->in) == 0) {
		buffer_release(&u->edge->buffers, &u->in);
	}
	return n;
}

// The application gave no TLS, or no valid one.
static void blame_tls(struct upstream *u) {
	if (!u->tls->ready)
		snprintf(u->reason, sizeof(u->reason), "no TLS handshake at port %u, which STASIS_TLS of the image names", u->port);
}

// True when there is probably more to read at once.
static bool read_wire(struct upstream *u) {
	bool more = false;
	if (u->eof || u->rest != NULL)
		return false;
	ssize_t n = read_some(u, u->wire, &more);
	if (n > 0 || n == -EAGAIN || n == -ENOBUFS)
		return more;
	u->eof = true;
	if (u->tls != NULL)
		blame_tls(u);
	u->broken |= n < 0;
	u->reset |= n < 0;
	upstream_answered(u);
	return false;
}

// The VMM before the sleep has ended or will never write again: what there is is all.
static void read_rest(struct upstream *u) {
	while (u->rest != NULL && has_room(u)) {
		bool more;
		ssize_t n = read_some(u, u->rest, &more);
		if (n == -ENOBUFS) {
			poke(u, AGAIN_MS);
			return;
		}
		if (n > 0)
			continue;
		wire_close(u->rest);
		u->rest = NULL;
	}
	u->eof |= u->tls != NULL && u->tls->ended;
	if (u->rest == NULL && u->lost) {
		u->eof = u->reset = true;
		upstream_answered(u);
	}
}

void upstream_update(struct upstream *u) {
	if (u->closed || u->phase == UPSTREAM_FAILED)
		return;
	if (has_room(u) && (u->rest != NULL || (u->tls != NULL && secure_has(u->tls))))
		poke(u, 0);
	if (u->in.data != NULL && buffer_room(&u->in) == 0)
		buffer_compact(&u->in);
	rewatch(u);
}

// Connecting. -----------------------------------------------------------------------------------------------------------------

static bool start_tls(struct upstream *u) {
	u->tls = calloc(1, sizeof(*u->tls));
	if (u->tls != NULL && tls_start_client(u->tls, u->edge->application_tls, &u->edge->buffers, u->h2) == 0)
		return true;
	free(u->tls);
	u->tls = NULL;
	return false;
}

static void greeted(struct upstream *u) {
	u->attaching = false;
	u->phase = UPSTREAM_OPEN;
	u->wants = false;
	way_put(u, &u->way->settled, false);
	if (u->forsaken) {
		close_now(u);
		return;
	}
	if (u->secure && u->tls == NULL && !start_tls(u)) {
		u->eof = u->reset = u->broken = true;
		return;
	}
	if (u->ended)
		wire_end(u->wire); // perhaps not for the first time
	upstream_flush(u);
	if (!u->eof && u->rest == NULL)
		read_wire(u); // what came with the answer
	rewatch(u);
}

// Puts it in line, before new ones: it goes on when its turn comes, or starts anew when nothing of it has reached the application.
static void requeue(struct upstream *u, bool anew) {
	wire_close(u->wire);
	u->wire = NULL;
	u->full = u->attaching = false;
	u->answer_used = 0;
	u->begun_ms = 0;
	if (anew || u->host_port == 0) {
		u->phase = UPSTREAM_CONNECTING;
		u->host_port = u->answers = 0;
	}
	way_put(u, &u->way->waiting, true);
}

// A stream that was to be taken over does not exist any more: what it carried is lost.
static void refused(struct upstream *u, const char *reason) {
	enum microvm_news latest = microvm_route_latest(u->way->route);
	if (latest == MICROVM_HALTS || latest == MICROVM_SLEEPS) {
		requeue(u, false); // whatever the VMM says as it goes
	} else if (u->forsaken) {
		u->lost = true;
		poke(u, 0);
	} else if (u->attaching && u->phase == UPSTREAM_OPEN) {
		upstream_lose(u, reason);
	} else if (u->attaching) {
		requeue(u, true);
	} else {
		fail(u, reason);
		poke(u, 0);
	}
}

// Reads the answers `OK …` of VMM and agent, or of the VMM to ATTACH; anything else is the end. True when there was news.
static bool greet(struct upstream *u) {
	for (;;) {
		int r = wire_read_line(u->wire, u->answer, sizeof(u->answer), &u->answer_used);
		if (r == 0)
			return false;
		u->answer_used = 0;
		bool fine = r == 1 && strncmp(u->answer, "OK", 2) == 0 && (u->answer[2] == '\0' || u->answer[2] == ' ');
		if (!fine) {
			bool said = r == 1 && strncmp(u->answer, "ERR ", 4) == 0;
			refused(u, said ? u->answer + 4 : r == -ECONNRESET ? "closed" : "malformed answer");
			return true;
		}
		if (u->attaching) {
			u->attaching = false;
			if (u->answers == 2 || u->forsaken) {
				greeted(u);
				return true;
			}
			continue; // the agent's answer is still to come
		}
		if (u->answers == 0)
			u->host_port = (uint32_t)strtoul(u->answer + 2, NULL, 10);
		else
			u->secure = strcmp(u->answer, "OK tls") == 0;
		if (++u->answers == 2) {
			greeted(u);
			return true;
		}
	}
}

static void on_ready(void *arg) {
	struct upstream *u = arg;
	if (u->place == &u->way->greeting) {
		if (!greet(u) || u->closed)
			return;
		way_serve(u->way);
		tell(u);
		return;
	}
	u->full = false;
	upstream_flush(u);
	// While all of it is passed on at once, some more; then others get their turn.
	for (int i = 0; i < READS_AT_ONCE; i++) {
		bool more = read_wire(u);
		if (u->tls != NULL)
			upstream_flush(u); // what the handshake wants to say
		rewatch(u);
		tell(u);
		if (!more || u->closed || u->wire == NULL || u->place == &u->way->greeting || buffer_used(&u->in) > 0)
			return;
	}
}

void upstream_begin(struct upstream *u) {
	char lines[64];
	if (u->begun_ms == 0)
		u->begun_ms = uv_now(u->edge->engine->loop);
	int r = wire_connect(u->edge->engine->loop, microvm_route_vsock(u->way->route), on_ready, u, &u->wire);
	if (r == -EAGAIN) {
		// Many at once can fill the socket's backlog faster than the VMM takes them.
		poke(u, AGAIN_MS);
		return;
	}
	u->attaching = u->host_port != 0;
	u->answer_used = 0;
	int n;
	if (u->attaching)
		n = snprintf(lines, sizeof(lines), "ATTACH %u\n", u->host_port);
	else if (u->port == UPSTREAM_SESSION)
		n = snprintf(lines, sizeof(lines), "CONNECT %d\nSESSION\n", STREAM_PORT);
	else
		n = snprintf(lines, sizeof(lines), "CONNECT %d\nTCP %u\n", STREAM_PORT, u->port);
	if (r == 0 && wire_write(u->wire, lines, (size_t)n) != n)
		r = -EPIPE;
	if (r < 0) {
		refused(u, uv_err_name(r));
		return;
	}
	if (!u->attaching)
		u->phase = UPSTREAM_GREETING;
	rewatch(u);
}

static void on_again(uv_timer_t *timer) {
	struct upstream *u = timer->data;
	if (u->forsaken && u->lost) {
		close_now(u);
		return;
	}
	if (u->place == &u->way->greeting && u->wire == NULL) {
		upstream_begin(u);
		return;
	}
	read_rest(u);
	if (u->tls != NULL && u->wire != NULL && u->place == &u->way->settled && has_room(u))
		read_wire(u);
	rewatch(u);
	tell(u);
}

static void poke(struct upstream *u, uint64_t ms) {
	uv_timer_start(&u->again, on_again, ms, 0);
}

struct upstream *upstream_connect(struct edge *ed, struct microvm_route *route, uint16_t port, void (*changed)(void *arg), void *arg) {
	struct upstream *u = calloc(1, sizeof(*u));
	struct way *w = u == NULL ? NULL : way_of(ed, route);
	if (w == NULL) {
		free(u);
		return NULL;
	}
	u->edge = ed;
	u->way = w;
	u->port = port;
	u->changed = changed;
	u->arg = arg;
	uv_timer_init(ed->engine->loop, &u->again);
	u->again.data = u;
	edge_hold(ed);
	way_put(u, &w->waiting, false);
	way_serve(w);
	edge_watch(ed);
	if (microvm_route_latest(route) == MICROVM_ENDS)
		upstream_lose(u, "the microVM has ended");
	else if (!way_is_awake(w))
		microvm_route_wake(route);
	return u;
}

// Writing. --------------------------------------------------------------------------------------------------------------------

// Bytes on their way to the application, encrypted or not.
static size_t waiting(const struct upstream *u) {
	return buffer_used(&u->out) + (u->tls != NULL ? buffer_used(&u->tls->out) : 0);
}

static bool can_write(const struct upstream *u) {
	return u->wire != NULL && u->place == &u->way->settled && way_is_awake(u->way);
}

void upstream_flush(struct upstream *u) {
	if (u->closed)
		return;
	if (!can_write(u) && !u->broken) {
		if (u->phase == UPSTREAM_OPEN && waiting(u) > u->held && !u->wants) {
			u->wants = true;
			microvm_route_wake(u->way->route);
		}
		return;
	}
	bool wrote = false;
	while (!u->broken && !u->full && (buffer_used(&u->out) > 0 || (u->tls != NULL && secure_waits(u->tls)))) {
		size_t used = buffer_used(&u->out);
		const char *bytes = used == 0 ? NULL : buffer_bytes(&u->out);
		ssize_t n = u->tls == NULL ? wire_write(u->wire, bytes, used) : secure_write(u->tls, u->wire, bytes, used);
		if (n == -EINPROGRESS)
			break;
		u->full = n == -EAGAIN;
		u->broken = n < 0 && !u->full;
		if (n > 0) {
			buffer_consume(&u->edge->buffers, &u->out, (size_t)n);
			wrote = true;
		}
	}
	if (wrote) {
		u->wrote_ms = uv_now(u->edge->engine->loop);
		if (!u->framed)
			upstream_asked(u);
	}
	if (u->broken)
		buffer_release(&u->edge->buffers, &u->out);
	if (u->ending && !u->ended && !u->broken && buffer_used(&u->out) == 0) {
		if (u->tls != NULL && u->tls->ready) {
			tls_end(u->tls);
			(void)secure_write(u->tls, u->wire, NULL, 0);
		}
		u->ended = true;
		wire_end(u->wire);
	}
	rewatch(u);
}

void upstream_end(struct upstream *u) {
	u->ending = true;
	upstream_flush(u);
}

// Sleep. ----------------------------------------------------------------------------------------------------------------------

static bool presses(const struct upstream *u) {
	uint64_t last_ms = u->wrote_ms > u->read_ms ? u->wrote_ms : u->read_ms, silent_ms = uv_now(u->edge->engine->loop) - last_ms;
	switch (u->waits) {
	case UPSTREAM_WAIT_HEAD:
		return silent_ms < 50000;
	case UPSTREAM_WAIT_REST:
		return silent_ms < MOVING_MS;
	case UPSTREAM_WAIT_REPLIES:
		return u->asked && silent_ms < 10000;
	default:
		return false;
	}
}

void upstream_halt(struct upstream *u) {
	if (u->idle) {
		close_now(u);
		return;
	}
	// Bytes that wait for an application that takes none for long do not wake it; those of a transfer do.
	u->held = (uint32_t)waiting(u);
	bool greets = u->tls != NULL && !u->tls->ready;
	u->wants = u->held > 0 && (greets || uv_now(u->edge->engine->loop) - u->wrote_ms < MOVING_MS);
	u->presses = !u->eof && presses(u);
	if (u->place == &u->way->greeting && u->wire == NULL) {
		uv_timer_stop(&u->again);
		requeue(u, false);
	}
	rewatch(u);
}

void upstream_detach(struct upstream *u) {
	// The VMM may have answered by now.
	if (u->wire != NULL && u->place == &u->way->greeting && greet(u) && !u->closed)
		poke(u, 0);
	if (u->closed || u->wire == NULL || u->phase == UPSTREAM_FAILED)
		return;
	if (u->place == &u->way->settled && wire_hung_up(u->wire)) {
		u->broken = true; // the application has ended the stream; what it had said before is read as ever
		return;
	}
	if (u->place == &u->way->settled && !u->eof) {
		wire_watch(u->wire, 0);
		u->rest = u->wire;
		u->wire = NULL;
		poke(u, 0);
	}
	requeue(u, false);
}

void upstream_go_on(struct upstream *u) {
	u->wants = false;
	upstream_flush(u);
}

void upstream_lose(struct upstream *u, const char *reason) {
	if (u->phase != UPSTREAM_OPEN) {
		fail(u, reason);
	} else {
		wire_close(u->wire);
		u->wire = NULL;
		u->attaching = false;
		u->broken = true;
		buffer_release(&u->edge->buffers, &u->out);
		way_put(u, &u->way->settled, false);
	}
	u->lost = true;
	poke(u, 0);
}

bool upstream_presses(const struct upstream *u) {
	return !u->forsaken && u->presses && u->phase == UPSTREAM_OPEN;
}

bool upstream_wants(const struct upstream *u) {
	return !u->forsaken && (u->wants || u->phase == UPSTREAM_CONNECTING);
}

// Kept streams. ---------------------------------------------------------------------------------------------------------------

struct upstream *upstream_take(struct edge *ed, struct microvm_route *route, uint16_t port, uint64_t max_idle_ms,
			       void (*changed)(void *arg), void *arg) {
	uint64_t now = uv_now(ed->engine->loop);
	struct upstream *u = TAILQ_FIRST(&ed->idle_upstreams), *next;
	for (; u != NULL && now - u->idle_since_ms <= max_idle_ms; u = next) {
		next = TAILQ_NEXT(u, link);
		if (u->port != port || u->way->route != route || !way_is_awake(u->way))
			continue;
		if (u->eof || u->broken || buffer_used(&u->in) > 0 || !wire_is_quiet(u->wire)) {
			upstream_close(u);
			continue;
		}
		leave_idle(u);
		u->reused = true;
		u->changed = changed;
		u->arg = arg;
		return u;
	}
	return NULL;
}

void upstream_keep(struct upstream *u) {
	struct edge *ed = u->edge;
	bool fine = u->phase == UPSTREAM_OPEN && !u->eof && !u->broken && !u->ending && can_write(u) && u->rest == NULL &&
		    buffer_used(&u->in) == 0 && buffer_used(&u->out) == 0 && (u->tls == NULL || !secure_waits(u->tls)) && !ed->stopping;
	if (!fine) {
		upstream_close(u);
		return;
	}
	if (ed->idle_upstream_count >= EDGE_UPSTREAMS_IDLE_MAX)
		upstream_close(TAILQ_LAST(&ed->idle_upstreams, upstream_list));
	upstream_answered(u);
	u->waits = UPSTREAM_WAIT_NOTHING;
	u->idle = true;
	u->changed = NULL;
	u->idle_since_ms = uv_now(ed->engine->loop);
	TAILQ_INSERT_HEAD(&ed->idle_upstreams, u, link);
	ed->idle_upstream_count++;
	upstream_update(u);
	edge_watch(ed);
}

static void sweep_greeting(struct way *w, uint64_t now_ms) {
	struct upstream *u = TAILQ_FIRST(&w->greeting), *next;
	for (; u != NULL; u = next) {
		next = TAILQ_NEXT(u, way_link);
		if (now_ms - u->begun_ms >= EDGE_CONNECT_MS)
			refused(u, "it could not be reached in time");
	}
	way_serve(w);
}

void upstream_sweep(struct edge *ed, uint64_t now_ms, bool all) {
	struct upstream *u;
	while ((u = TAILQ_LAST(&ed->idle_upstreams, upstream_list)) != NULL && (all || now_ms - u->idle_since_ms >= EDGE_UPSTREAM_IDLE_MS))
		upstream_close(u);
	struct way *w = TAILQ_FIRST(&ed->ways), *next;
	for (; w != NULL; w = next) {
		next = TAILQ_NEXT(w, link);
		way_pin(w);
		if (all) {
			while ((u = way_any(w)) != NULL)
				close_now(u);
		} else {
			sweep_greeting(w, now_ms);
		}
		way_unpin(w);
	}
}

size_t upstream_room(const struct upstream *u) {
	return buffer_used(&u->out) >= EDGE_READ_SIZE ? 0 : u->out.data == NULL ? BUFFER_SMALL : buffer_room(&u->out);
}

bool upstream_reserve(struct upstream *u, uint32_t capacity) {
	return buffer_want(&u->edge->buffers, &u->out, capacity);
}

void upstream_append(struct upstream *u, const void *data, size_t size) {
	buffer_append(&u->out, data, size);
}

void upstream_consume(struct upstream *u, size_t n) {
	buffer_consume(&u->edge->buffers, &u->in, n);
}

bool upstream_grow_input(struct upstream *u) {
	buffer_compact(&u->in);
	u->filled = false;
	return buffer_room(&u->in) > 0 || (u->in.capacity < BUFFER_LARGE && buffer_want(&u->edge->buffers, &u->in, BUFFER_LARGE));
}
