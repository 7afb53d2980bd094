// A byte stream to an application; see upstream.h.
#include "edge/upstream.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define STREAM_PORT 1025 // the agent's, docs/agent-protocol.md
#define GREETING_LINE_MAX 64
#define AGAIN_MS 5

static void free_if_unused(struct upstream *u) {
	if (u->pins > 0)
		return;
	struct edge *ed = u->edge;
	free(u);
	edge_let_go(ed);
}

static void unpin(struct upstream *u) {
	u->pins--;
	if (u->closed)
		free_if_unused(u);
}

static void on_closed(uv_handle_t *handle) {
	struct upstream *u = handle->data;
	unpin(u);
}

void upstream_close(struct upstream *u) {
	if (u->closed)
		return;
	if (u->idle) {
		TAILQ_REMOVE(&u->edge->idle_upstreams, u, link);
		u->edge->idle_upstream_count--;
		u->idle = false;
	}
	u->closed = true;
	u->changed = NULL;
	buffer_release(&u->edge->buffers, &u->in);
	// A write under way still points into the buffer; libuv cancels it before it calls on_closed().
	if (!u->writing)
		buffer_release(&u->edge->buffers, &u->out);
	if (!u->reopening)
		uv_close((uv_handle_t *)&u->pipe, on_closed);
	uv_close((uv_handle_t *)&u->again, on_closed);
}

static void tell(struct upstream *u) {
	if (u->idle)
		upstream_close(u); // whatever a kept stream has to say, it is of no use any more
	else if (u->changed != NULL)
		u->changed(u->arg);
}

static void fail(struct upstream *u, const char *reason, size_t size) {
	u->phase = UPSTREAM_FAILED;
	u->broken = true;
	snprintf(u->reason, sizeof(u->reason), "%.*s", (int)size, reason);
	for (char *p = u->reason; *p != '\0'; p++)
		if (*p < 0x20 || *p > 0x7e)
			*p = '?';
}

static void fail_uv(struct upstream *u, int code) {
	fail(u, uv_err_name(code), strlen(uv_err_name(code)));
}

// Reads the two lines `OK …` that VMM and agent answer with; anything else is the end.
static void greet(struct upstream *u) {
	while (u->phase == UPSTREAM_GREETING) {
		size_t used = buffer_used(&u->in);
		const char *line = buffer_bytes(&u->in);
		const char *lf = used > 0 ? memchr(line, '\n', used) : NULL;
		if (lf == NULL) {
			if (used > GREETING_LINE_MAX)
				fail(u, "malformed answer", 16);
			else if (u->eof)
				fail(u, "closed", 6);
			return;
		}
		size_t n = (size_t)(lf - line);
		bool fine = n <= GREETING_LINE_MAX && n >= 2 && memcmp(line, "OK", 2) == 0 && (n == 2 || line[2] == ' ');
		if (!fine) {
			bool said = n > 4 && n <= GREETING_LINE_MAX && memcmp(line, "ERR ", 4) == 0;
			fail(u, said ? line + 4 : "malformed answer", said ? n - 4 : 16);
			return;
		}
		upstream_consume(u, n + 1);
		if (++u->answers == 2)
			u->phase = UPSTREAM_OPEN;
	}
}

static void alloc_read(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
	struct upstream *u = handle->data;
	*ret = uv_buf_init(NULL, 0);
	if (u->closed || !buffer_want(&u->edge->buffers, &u->in, BUFFER_SMALL))
		return;
	if (buffer_room(&u->in) == 0)
		buffer_compact(&u->in);
	*ret = uv_buf_init(u->in.data + u->in.end, (unsigned)buffer_room(&u->in));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
	struct upstream *u = stream->data;
	if (u->closed)
		return;
	if (n > 0) {
		u->in.end += (uint32_t)n;
	} else if (buffer_used(&u->in) == 0) {
		buffer_release(&u->edge->buffers, &u->in);
	}
	if (n == 0)
		return;
	if (n < 0) {
		uv_read_stop(stream);
		u->reading = false;
		u->eof = true;
		if (n != UV_EOF)
			u->broken = u->reset = true;
	}
	if (u->phase == UPSTREAM_GREETING)
		greet(u);
	if (u->reading && buffer_room(&u->in) == 0 && u->in.start == 0 && u->in.data != NULL) {
		uv_read_stop(stream);
		u->reading = false;
	}
	tell(u);
}

void upstream_update(struct upstream *u) {
	if (u->closed || u->phase == UPSTREAM_CONNECTING || u->phase == UPSTREAM_FAILED)
		return;
	// Half a buffer is worth a read; less would make many small ones.
	bool want = !u->eof && (u->in.data == NULL || u->in.capacity - buffer_used(&u->in) >= BUFFER_SMALL / 2);
	if (!want || u->reading)
		return;
	buffer_compact(&u->in);
	int r = uv_read_start((uv_stream_t *)&u->pipe, alloc_read, on_read);
	u->reading = r == 0;
	u->eof |= r < 0;
}

static void on_written(uv_write_t *request, int status) {
	struct upstream *u = request->data;
	u->writing = false;
	if (u->closed) {
		buffer_release(&u->edge->buffers, &u->out);
		return;
	}
	if (status < 0) {
		u->broken = true;
		buffer_release(&u->edge->buffers, &u->out);
	} else {
		buffer_consume(&u->edge->buffers, &u->out, u->write_size);
		upstream_flush(u);
	}
	tell(u);
}

static void on_shutdown(uv_shutdown_t *request, int status) {
	struct upstream *u = request->data;
	unpin(u);
}

void upstream_flush(struct upstream *u) {
	if (u->closed || u->phase == UPSTREAM_CONNECTING)
		return;
	while (!u->writing && !u->broken && buffer_used(&u->out) > 0) {
		uv_buf_t buf = uv_buf_init(buffer_bytes(&u->out), (unsigned)buffer_used(&u->out));
		int n = uv_try_write((uv_stream_t *)&u->pipe, &buf, 1);
		if (n == UV_EAGAIN) {
			u->write.data = u;
			u->write_size = buf.len;
			u->writing = uv_write(&u->write, (uv_stream_t *)&u->pipe, &buf, 1, on_written) == 0;
			u->broken = !u->writing;
		} else if (n < 0) {
			u->broken = true;
		} else {
			buffer_consume(&u->edge->buffers, &u->out, (size_t)n);
		}
	}
	if (u->broken && !u->writing)
		buffer_release(&u->edge->buffers, &u->out);
	if (u->ending && !u->ended && !u->broken && !u->writing && buffer_used(&u->out) == 0) {
		u->ended = true;
		u->shutdown.data = u;
		if (uv_shutdown(&u->shutdown, (uv_stream_t *)&u->pipe, on_shutdown) == 0)
			u->pins++;
	}
}

void upstream_end(struct upstream *u) {
	u->ending = true;
	upstream_flush(u);
}

static void on_connected(uv_connect_t *request, int status);

static void connect_now(struct upstream *u) {
	uv_pipe_connect(&u->connect, &u->pipe, u->path, on_connected);
}

static void on_again(uv_timer_t *timer) {
	connect_now(timer->data);
}

// A pipe that failed to connect cannot be connected once more; a new one can.
static void on_reopen(uv_handle_t *handle) {
	struct upstream *u = handle->data;
	u->reopening = false;
	if (u->closed) {
		unpin(u);
		return;
	}
	uv_pipe_init(u->edge->engine->loop, &u->pipe, 0);
	u->pipe.data = u;
	uv_timer_start(&u->again, on_again, AGAIN_MS, 0);
}

static void on_connected(uv_connect_t *request, int status) {
	struct upstream *u = request->data;
	if (u->closed)
		return;
	// Many requests at once can fill the socket's backlog faster than the VMM takes them. The session's deadline ends this.
	if (status == UV_EAGAIN) {
		u->reopening = true;
		uv_close((uv_handle_t *)&u->pipe, on_reopen);
		return;
	}
	if (status < 0) {
		fail_uv(u, status);
	} else {
		u->phase = UPSTREAM_GREETING;
		upstream_flush(u);
		upstream_update(u);
		if (u->broken || u->eof)
			fail(u, "closed", 6);
	}
	tell(u);
}

struct upstream *upstream_connect(struct edge *ed, const char *vsock, uint16_t port, void (*changed)(void *arg), void *arg) {
	struct upstream *u = calloc(1, sizeof(*u));
	if (u == NULL)
		return NULL;
	u->edge = ed;
	u->port = port;
	u->changed = changed;
	u->arg = arg;
	if (!upstream_reserve(u, BUFFER_SMALL)) {
		free(u);
		return NULL;
	}
	uv_pipe_init(ed->engine->loop, &u->pipe, 0); // cannot fail
	uv_timer_init(ed->engine->loop, &u->again);
	u->pipe.data = u->connect.data = u->again.data = u;
	u->pins = 2;
	edge_hold(ed);
	if (snprintf(u->path, sizeof(u->path), "%s", vsock) >= (int)sizeof(u->path)) {
		fail_uv(u, UV_ENAMETOOLONG);
		return u;
	}
	char lines[GREETING_LINE_MAX];
	int n = port == UPSTREAM_SESSION ? snprintf(lines, sizeof(lines), "CONNECT %d\nSESSION\n", STREAM_PORT)
					 : snprintf(lines, sizeof(lines), "CONNECT %d\nTCP %u\n", STREAM_PORT, port);
	upstream_append(u, lines, (size_t)n);
	connect_now(u);
	return u;
}

// Whether nothing has come on a kept stream, not even its end.
static bool is_quiet(struct upstream *u) {
	uv_os_fd_t fd;
	char byte;
	return !u->eof && !u->broken && buffer_used(&u->in) == 0 && uv_fileno((uv_handle_t *)&u->pipe, &fd) == 0 &&
	       recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

struct upstream *upstream_take(struct edge *ed, const char *vsock, uint16_t port, uint64_t max_idle_ms, void (*changed)(void *arg),
			       void *arg) {
	uint64_t now = uv_now(ed->engine->loop);
	struct upstream *u = TAILQ_FIRST(&ed->idle_upstreams), *next;
	for (; u != NULL && now - u->idle_since_ms <= max_idle_ms; u = next) {
		next = TAILQ_NEXT(u, link);
		if (u->port != port || strcmp(u->path, vsock) != 0)
			continue;
		if (!is_quiet(u)) {
			upstream_close(u);
			continue;
		}
		TAILQ_REMOVE(&ed->idle_upstreams, u, link);
		ed->idle_upstream_count--;
		u->idle = false;
		u->reused = true;
		u->changed = changed;
		u->arg = arg;
		return u;
	}
	return NULL;
}

void upstream_keep(struct upstream *u) {
	struct edge *ed = u->edge;
	bool fine = u->phase == UPSTREAM_OPEN && !u->eof && !u->broken && !u->ending && !u->writing && buffer_used(&u->in) == 0 &&
		    buffer_used(&u->out) == 0 && !ed->stopping;
	if (!fine) {
		upstream_close(u);
		return;
	}
	if (ed->idle_upstream_count >= EDGE_UPSTREAMS_IDLE_MAX)
		upstream_close(TAILQ_LAST(&ed->idle_upstreams, upstream_list));
	u->idle = true;
	u->changed = NULL;
	u->idle_since_ms = uv_now(ed->engine->loop);
	TAILQ_INSERT_HEAD(&ed->idle_upstreams, u, link);
	ed->idle_upstream_count++;
	upstream_update(u);
	edge_watch(ed);
}

void upstream_sweep(struct edge *ed, uint64_t now_ms, bool all) {
	struct upstream *u;
	while ((u = TAILQ_LAST(&ed->idle_upstreams, upstream_list)) != NULL && (all || now_ms - u->idle_since_ms >= EDGE_UPSTREAM_IDLE_MS))
		upstream_close(u);
}

size_t upstream_room(const struct upstream *u) {
	return buffer_used(&u->out) >= EDGE_READ_SIZE ? 0 : u->out.data == NULL ? BUFFER_SMALL : buffer_room(&u->out);
}

bool upstream_reserve(struct upstream *u, uint32_t capacity) {
	// A block that a write under way points into must not move.
	if (u->writing && (u->out.data == NULL || u->out.capacity < capacity))
		return false;
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
	return buffer_room(&u->in) > 0 || (u->in.capacity < BUFFER_LARGE && buffer_want(&u->edge->buffers, &u->in, BUFFER_LARGE));
}
