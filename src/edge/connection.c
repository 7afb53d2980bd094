// A client's connection; see connection.h.
#include "edge/connection.h"

#include "base/log.h"
#include "edge/h1_session.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>

static void free_if_unused(struct connection *c) {
	if (c->pins > 0)
		return;
	struct edge *ed = c->edge;
	free(c);
	edge_let_go(ed);
}

static void on_closed(uv_handle_t *handle) {
	struct connection *c = handle->data;
	c->pins--;
	free_if_unused(c);
}

// Takes apart what has ended.
static void settle(struct connection *c) {
	if (c->phase != CONNECTION_OPEN && c->ops != NULL) {
		c->ops->end(c);
		c->ops = NULL;
	}
	if (c->phase != CONNECTION_CLOSED || c->settled)
		return;
	c->settled = true;
	tls_clear(&c->tls);
	buffer_release(&c->edge->buffers, &c->in);
	TAILQ_REMOVE(&c->edge->connections, c, link);
	c->edge->connection_count--;
	uv_close((uv_handle_t *)&c->tcp, on_closed);
}

static void close_now(struct connection *c) {
	c->phase = CONNECTION_CLOSED;
	if (!c->pumping)
		settle(c);
}

void connection_set_deadline(struct connection *c, uint64_t ms) {
	c->deadline_ms = ms == 0 ? 0 : uv_now(c->edge->engine->loop) + ms;
}

void connection_set_idle(struct connection *c, bool idle) {
	// Idle connections are kept in the order in which they became idle, so that the first one found is the one to go.
	if (idle && !c->idle) {
		TAILQ_REMOVE(&c->edge->connections, c, link);
		TAILQ_INSERT_TAIL(&c->edge->connections, c, link);
	}
	c->idle = idle;
}

void connection_consume(struct connection *c, size_t n) {
	buffer_consume(&c->edge->buffers, &c->in, n);
	c->again = true;
}

bool connection_grow_input(struct connection *c) {
	buffer_compact(&c->in);
	if (buffer_room(&c->in) == 0) {
		if (c->in.capacity >= BUFFER_LARGE || !buffer_want(&c->edge->buffers, &c->in, BUFFER_LARGE))
			return false;
	}
	c->again = true;
	return true;
}

static void on_written(uv_write_t *request, int status);

// Sends as much ciphertext as the socket takes; the rest when it takes more.
static void send_out(struct connection *c) {
	struct buffer *out = &c->tls.out;
	while (!c->writing && buffer_used(out) > 0) {
		uv_buf_t buf = uv_buf_init(buffer_bytes(out), (unsigned)buffer_used(out));
		int n = uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
		if (n == UV_EAGAIN) {
			if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written) < 0) {
				close_now(c);
				return;
			}
			c->write.data = c;
			c->writing = true;
			c->write_since_ms = uv_now(c->edge->engine->loop);
			// on_written() consumes exactly this much; more may be appended behind it meanwhile.
			c->write_size = buf.len;
			return;
		}
		if (n < 0) {
			close_now(c);
			return;
		}
		buffer_consume(&c->edge->buffers, out, (size_t)n);
	}
}

static void on_written(uv_write_t *request, int status) {
	struct connection *c = request->data;
	c->writing = false;
	if (c->phase == CONNECTION_CLOSED)
		return;
	if (status < 0) {
		close_now(c);
		return;
	}
	buffer_consume(&c->edge->buffers, &c->tls.out, c->write_size);
	connection_pump(c);
}

void connection_abort(struct connection *c) {
	if (c->phase == CONNECTION_OPEN)
		send_out(c); // as far as it goes
	close_now(c);
}

size_t connection_write(struct connection *c, const void *data, size_t size) {
	size_t done = 0;
	while (done < size && c->phase == CONNECTION_OPEN && !c->half_closed) {
		ssize_t n = tls_write(&c->tls, (const char *)data + done, size - done);
		if (n < 0) {
			close_now(c);
			break;
		}
		done += (size_t)n;
		if (n == 0 || buffer_used(&c->tls.out) >= TLS_RECORD_MAX / 2) {
			size_t before = buffer_used(&c->tls.out);
			send_out(c);
			if (n == 0 && (c->phase != CONNECTION_OPEN || buffer_used(&c->tls.out) == before))
				break;
		}
	}
	c->blocked = done < size && !c->half_closed;
	return done;
}

// Decrypts while there is room.
static void pull(struct connection *c) {
	while (!c->tls.ended) {
		if (!buffer_want(&c->edge->buffers, &c->in, BUFFER_SMALL)) {
			close_now(c);
			return;
		}
		if (buffer_room(&c->in) == 0)
			buffer_compact(&c->in);
		size_t room = buffer_room(&c->in);
		if (room == 0)
			break;
		ssize_t n = tls_read(&c->tls, c->in.data + c->in.end, room);
		if (n < 0) {
			send_out(c); // the alert, as far as it goes
			close_now(c);
			return;
		}
		if (n == 0)
			break;
		c->in.end += (uint32_t)n;
	}
	if (buffer_used(&c->in) == 0)
		buffer_release(&c->edge->buffers, &c->in);
	c->eof |= c->tls.ended;
}

bool connection_input_waits(const struct connection *c) {
	return c->tls.fresh_size > 0 || buffer_used(&c->tls.kept) > 0 || SSL_pending(c->tls.ssl) > 0;
}

bool connection_input_ended(const struct connection *c) {
	return c->eof && buffer_used(&c->in) == 0 && (c->tls.ended || !connection_input_waits(c));
}

static void on_shutdown(uv_shutdown_t *request, int status) {
	struct connection *c = request->data;
	c->pins--;
	if (c->phase == CONNECTION_CLOSED)
		free_if_unused(c);
	else if (status < 0)
		close_now(c);
}

static void shut_socket(struct connection *c) {
	c->shutdown.data = c;
	if (uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shutdown) == 0)
		c->pins++;
}

// Once the last bytes are out.
static void finish_on(struct connection *c) {
	if (c->writing || buffer_used(&c->tls.out) > 0)
		return;
	if (!c->linger || c->eof) {
		// A peer whose bytes were all read gets a FIN from the close itself.
		close_now(c);
		return;
	}
	c->phase = CONNECTION_LINGERING;
	connection_set_deadline(c, EDGE_LINGER_MS);
	if (!c->half_closed)
		shut_socket(c);
}

static void alloc_read(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
	struct connection *c = handle->data;
	*ret = uv_buf_init(c->edge->read_buffer, sizeof(c->edge->read_buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
	struct connection *c = stream->data;
	if (n == 0 || c->phase == CONNECTION_CLOSED)
		return;
	if (n < 0 && n != UV_EOF) {
		close_now(c);
		return;
	}
	if (c->phase == CONNECTION_LINGERING || c->phase == CONNECTION_FINISHING) {
		if (n < 0) {
			c->eof = true;
			connection_pump(c);
		}
		return;
	}
	if (n < 0) {
		c->eof = true;
		c->reading = false;
		uv_read_stop(stream);
	} else {
		tls_offer(&c->tls, buf->base, (size_t)n);
	}
	connection_pump(c);
}

// Reads when the bytes would find room, and to notice the end; not while the session lets them lie.
static void update_reading(struct connection *c) {
	bool want = !c->eof && (c->phase != CONNECTION_OPEN || (!connection_input_waits(c) && buffer_used(&c->in) < BUFFER_SMALL));
	if (want == c->reading)
		return;
	if (want && uv_read_start((uv_stream_t *)&c->tcp, alloc_read, on_read) < 0) {
		close_now(c);
		return;
	}
	if (!want)
		uv_read_stop((uv_stream_t *)&c->tcp);
	c->reading = want;
}

void connection_pump(struct connection *c) {
	c->again = true;
	if (c->pumping || c->phase == CONNECTION_CLOSED)
		return;
	c->pumping = true;
	while (c->again && c->phase == CONNECTION_OPEN) {
		c->again = c->blocked = false;
		pull(c);
		if (c->phase == CONNECTION_OPEN)
			c->ops->run(c);
		if (c->phase != CONNECTION_OPEN)
			break;
		send_out(c);
		// What was held back finds room now. (Input that was consumed has asked for another round by itself.)
		if (c->blocked && buffer_used(&c->tls.out) == 0)
			c->again = true;
	}
	if (c->phase == CONNECTION_OPEN && tls_keep(&c->tls) < 0)
		close_now(c);
	if (c->phase == CONNECTION_FINISHING || c->phase == CONNECTION_LINGERING) {
		tls_offer(&c->tls, NULL, 0);
		send_out(c);
		if (c->phase == CONNECTION_FINISHING)
			finish_on(c);
		else if (c->eof)
			close_now(c);
	}
	if (c->phase != CONNECTION_CLOSED)
		update_reading(c);
	c->pumping = false;
	settle(c);
}

void connection_finish(struct connection *c, bool linger) {
	if (c->phase != CONNECTION_OPEN)
		return;
	if (!c->half_closed)
		tls_end(&c->tls);
	c->linger = linger;
	c->phase = CONNECTION_FINISHING;
	c->deadline_ms = 0;
	c->idle = false;
}

void connection_half_close(struct connection *c) {
	if (c->phase != CONNECTION_OPEN || c->half_closed)
		return;
	tls_end(&c->tls);
	send_out(c);
	if (c->phase != CONNECTION_OPEN)
		return;
	c->half_closed = true;
	shut_socket(c); // libuv sends what is queued first
}

// While nothing is read, a client that has gone is seen only by asking the kernel.
static bool peer_has_closed(struct connection *c) {
	uv_os_fd_t fd;
	struct tcp_info info;
	socklen_t size = sizeof(info);
	return uv_fileno((uv_handle_t *)&c->tcp, &fd) == 0 && getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
	       info.tcpi_state != TCP_ESTABLISHED;
}

void connection_sweep(struct connection *c, uint64_t now_ms) {
	if (c->writing && now_ms - c->write_since_ms >= EDGE_STALL_MS) {
		log_info("edge.stalled", LOG_S("message", "a client took nothing for five minutes and was cut off"));
		close_now(c);
		return;
	}
	if (c->deadline_ms != 0 && now_ms >= c->deadline_ms) {
		c->deadline_ms = 0;
		if (c->phase == CONNECTION_OPEN && c->ops != NULL) {
			c->ops->expired(c);
			connection_pump(c);
		} else {
			close_now(c);
		}
		return;
	}
	if (c->watch_peer && !c->reading && !c->eof && peer_has_closed(c)) {
		c->eof = true;
		connection_pump(c);
	}
}

// Closes the connection that has been idle for longest. False when all are busy.
static bool make_room(struct edge *ed) {
	struct connection *c;
	TAILQ_FOREACH(c, &ed->connections, link) {
		if (c->idle) {
			connection_finish(c, false);
			connection_pump(c);
			// Whoever does not take its close_notify at once does without.
			close_now(c);
			return true;
		}
	}
	return false;
}

static void on_refused(uv_handle_t *handle) {
	struct edge *ed = ((struct connection *)handle->data)->edge;
	free(handle->data);
	edge_let_go(ed);
}

void connection_accept(struct edge *ed) {
	struct connection *c = calloc(1, sizeof(*c));
	if (c == NULL)
		return; // the client stays in the backlog until another event
	c->edge = ed;
	c->tcp.data = c;
	if (uv_tcp_init(ed->engine->loop, &c->tcp) < 0) {
		free(c);
		return;
	}
	edge_hold(ed);
	bool room = ed->connection_count < EDGE_CONNECTIONS_MAX || make_room(ed);
	if (uv_accept((uv_stream_t *)&ed->listener, (uv_stream_t *)&c->tcp) < 0 || !room || tls_start(&c->tls, ed->tls, &ed->buffers) < 0) {
		if (!room && ed->refused++ % 1000 == 0)
			log_warn("edge.full", LOG_U("connections", ed->connection_count), LOG_U("refused", ed->refused));
		uv_close((uv_handle_t *)&c->tcp, on_refused);
		return;
	}
	uv_tcp_nodelay(&c->tcp, 1);
	c->pins = 1;
	c->idle = true;
	ed->connection_count++;
	TAILQ_INSERT_TAIL(&ed->connections, c, link);
	edge_watch(ed);
	if (h1_session_start(c) < 0) {
		close_now(c);
		return;
	}
	update_reading(c);
}
