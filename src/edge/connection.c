// A client's connection: TLS over TCP, a buffer of ciphertext out, and a session for what the client has agreed on; see connection.h.
#include "edge/connection.h"

#include "base/log.h"
#include "edge/h1_session.h"
#include "edge/h2_session.h"
#include "edge/tls.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>

struct client {
	struct connection base; // first: the one is cast to the other
	TAILQ_ENTRY(client) link;
	uv_tcp_t tcp;
	uv_write_t write;
	uv_shutdown_t shutdown;
	struct tls tls;
	bool reading, writing;
	bool linger;       // see connection_finish()
	bool settled;      // the socket's handle is being closed
	size_t write_size; // ciphertext under way in `write`
	unsigned pins;     // libuv callbacks under way that point here
	uint64_t write_since_ms;
};

static struct client *client_of(struct connection *c) {
	return (struct client *)(void *)c;
}

static void free_if_unused(struct client *cl) {
	if (cl->pins > 0)
		return;
	struct edge *ed = cl->base.edge;
	free(cl);
	edge_let_go(ed);
}

static void on_closed(uv_handle_t *handle) {
	struct client *cl = handle->data;
	cl->pins--;
	free_if_unused(cl);
}

// Takes apart what has ended.
static void settle(struct client *cl) {
	struct connection *c = &cl->base;
	if (c->phase != CONNECTION_OPEN && c->ops != NULL) {
		c->ops->end(c);
		c->ops = NULL;
	}
	if (c->phase != CONNECTION_CLOSED || cl->settled)
		return;
	cl->settled = true;
	edge_forget_later(c->edge, c);
	tls_clear(&cl->tls);
	buffer_release(&c->edge->buffers, &c->in);
	TAILQ_REMOVE(&c->edge->clients, cl, link);
	c->edge->client_count--;
	uv_close((uv_handle_t *)&cl->tcp, on_closed);
}

static void close_now(struct client *cl) {
	cl->base.phase = CONNECTION_CLOSED;
	if (!cl->base.pumping)
		settle(cl);
}

void connection_set_deadline(struct connection *c, uint64_t ms) {
	c->deadline_ms = ms == 0 ? 0 : uv_now(c->edge->engine->loop) + ms;
}

static void set_idle(struct connection *c, bool idle) {
	// Idle connections are kept in the order in which they became idle, so that the first one found is the one to go.
	if (idle && !c->idle) {
		TAILQ_REMOVE(&c->edge->clients, client_of(c), link);
		TAILQ_INSERT_TAIL(&c->edge->clients, client_of(c), link);
	}
	c->idle = idle;
}

void connection_consume(struct connection *c, size_t n) {
	buffer_consume(&c->edge->buffers, &c->in, n);
	c->again = true;
	if (c->transport->consumed != NULL)
		c->transport->consumed(c, n);
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
static void send_out(struct client *cl) {
	struct buffer *out = &cl->tls.out;
	while (!cl->writing && buffer_used(out) > 0) {
		uv_buf_t buf = uv_buf_init(buffer_bytes(out), (unsigned)buffer_used(out));
		int n = uv_try_write((uv_stream_t *)&cl->tcp, &buf, 1);
		if (n == UV_EAGAIN) {
			if (uv_write(&cl->write, (uv_stream_t *)&cl->tcp, &buf, 1, on_written) < 0) {
				close_now(cl);
				return;
			}
			cl->write.data = cl;
			cl->writing = true;
			cl->write_since_ms = uv_now(cl->base.edge->engine->loop);
			// on_written() consumes exactly this much; more may be appended behind it meanwhile.
			cl->write_size = buf.len;
			return;
		}
		if (n < 0) {
			close_now(cl);
			return;
		}
		buffer_consume(&cl->base.edge->buffers, out, (size_t)n);
	}
}

static void on_written(uv_write_t *request, int status) {
	struct client *cl = request->data;
	cl->writing = false;
	if (cl->base.phase == CONNECTION_CLOSED)
		return;
	if (status < 0) {
		close_now(cl);
		return;
	}
	buffer_consume(&cl->base.edge->buffers, &cl->tls.out, cl->write_size);
	connection_pump(&cl->base);
}

static void abort_now(struct connection *c) {
	if (c->phase == CONNECTION_OPEN)
		send_out(client_of(c)); // as far as it goes
	close_now(client_of(c));
}

static size_t write_plain(struct connection *c, const void *data, size_t size) {
	struct client *cl = client_of(c);
	size_t done = 0;
	while (done < size && c->phase == CONNECTION_OPEN && !c->half_closed) {
		ssize_t n = tls_write(&cl->tls, (const char *)data + done, size - done);
		if (n < 0) {
			close_now(cl);
			break;
		}
		done += (size_t)n;
		if (n == 0 || buffer_used(&cl->tls.out) >= TLS_RECORD_MAX / 2) {
			size_t before = buffer_used(&cl->tls.out);
			send_out(cl);
			if (n == 0 && (c->phase != CONNECTION_OPEN || buffer_used(&cl->tls.out) == before))
				break;
		}
	}
	c->blocked = done < size && !c->half_closed;
	return done;
}

// What follows the peer's close_notify is not looked at.
static bool input_waits(const struct connection *c) {
	const struct client *cl = (const struct client *)(const void *)c;
	return !cl->tls.ended && (cl->tls.fresh_size > 0 || buffer_used(&cl->tls.kept) > 0 || SSL_pending(cl->tls.ssl) > 0);
}

// Decrypts while there is room.
static void pull(struct client *cl) {
	struct connection *c = &cl->base;
	while (!cl->tls.ended && (input_waits(c) || !cl->tls.ready)) {
		if (!buffer_want(&c->edge->buffers, &c->in, BUFFER_SMALL)) {
			close_now(cl);
			return;
		}
		if (buffer_room(&c->in) == 0)
			buffer_compact(&c->in);
		size_t room = buffer_room(&c->in);
		if (room == 0)
			break;
		ssize_t n = tls_read(&cl->tls, c->in.data + c->in.end, room);
		if (n < 0) {
			send_out(cl); // the alert, as far as it goes
			close_now(cl);
			return;
		}
		if (n == 0)
			break;
		c->in.end += (uint32_t)n;
	}
	if (buffer_used(&c->in) == 0)
		buffer_release(&c->edge->buffers, &c->in);
	c->eof |= cl->tls.ended;
}

static void on_shutdown(uv_shutdown_t *request, int status) {
	struct client *cl = request->data;
	cl->pins--;
	if (cl->base.phase == CONNECTION_CLOSED)
		free_if_unused(cl);
	else if (status < 0)
		close_now(cl);
}

static void shut_socket(struct client *cl) {
	cl->shutdown.data = cl;
	if (uv_shutdown(&cl->shutdown, (uv_stream_t *)&cl->tcp, on_shutdown) == 0)
		cl->pins++;
}

// Once the last bytes are out.
static void finish_on(struct client *cl) {
	if (cl->writing || buffer_used(&cl->tls.out) > 0)
		return;
	if (!cl->linger || cl->base.eof) {
		// A peer whose bytes were all read gets a FIN from the close itself.
		close_now(cl);
		return;
	}
	cl->base.phase = CONNECTION_LINGERING;
	connection_set_deadline(&cl->base, EDGE_LINGER_MS);
	if (!cl->base.half_closed)
		shut_socket(cl);
}

static void alloc_read(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
	struct client *cl = handle->data;
	struct edge *ed = cl->base.edge;
	*ret = uv_buf_init(ed->read_buffer, sizeof(ed->read_buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
	struct client *cl = stream->data;
	struct connection *c = &cl->base;
	if (n == 0 || c->phase == CONNECTION_CLOSED)
		return;
	if (n < 0 && n != UV_EOF) {
		close_now(cl);
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
		cl->reading = false;
		uv_read_stop(stream);
	} else {
		tls_offer(&cl->tls, buf->base, (size_t)n);
	}
	connection_pump(c);
}

// Reads when the bytes would find room, and to notice the end; not while the session lets them lie.
static void update_reading(struct client *cl) {
	struct connection *c = &cl->base;
	// A buffer that was grown for a long head is to be filled.
	size_t most = c->in.capacity > BUFFER_SMALL ? c->in.capacity : BUFFER_SMALL;
	bool want = !c->eof && (c->phase != CONNECTION_OPEN || (!input_waits(c) && buffer_used(&c->in) < most));
	if (want == cl->reading)
		return;
	if (want && uv_read_start((uv_stream_t *)&cl->tcp, alloc_read, on_read) < 0) {
		close_now(cl);
		return;
	}
	if (!want)
		uv_read_stop((uv_stream_t *)&cl->tcp);
	cl->reading = want;
}

static void pump(struct connection *c) {
	struct client *cl = client_of(c);
	c->again = true;
	if (c->pumping || c->phase == CONNECTION_CLOSED)
		return;
	c->pumping = true;
	while (c->again && c->phase == CONNECTION_OPEN) {
		c->again = c->blocked = false;
		pull(cl);
		if (c->phase == CONNECTION_OPEN)
			c->ops->run(c);
		if (c->phase != CONNECTION_OPEN)
			break;
		send_out(cl);
		// What was held back finds room now. (Input that was consumed has asked for another round by itself.)
		if (c->blocked && buffer_used(&cl->tls.out) == 0)
			c->again = true;
	}
	if (c->phase == CONNECTION_OPEN && tls_keep(&cl->tls) < 0)
		close_now(cl);
	if (c->phase == CONNECTION_FINISHING || c->phase == CONNECTION_LINGERING) {
		tls_offer(&cl->tls, NULL, 0);
		send_out(cl);
		if (c->phase == CONNECTION_FINISHING)
			finish_on(cl);
		else if (c->eof)
			close_now(cl);
	}
	if (c->phase != CONNECTION_CLOSED)
		update_reading(cl);
	c->pumping = false;
	settle(cl);
}

static void finish(struct connection *c, bool linger) {
	struct client *cl = client_of(c);
	if (c->phase != CONNECTION_OPEN)
		return;
	if (!c->half_closed)
		tls_end(&cl->tls);
	cl->linger = linger;
	c->phase = CONNECTION_FINISHING;
	c->deadline_ms = 0;
	c->idle = false;
}

static void half_close(struct connection *c) {
	struct client *cl = client_of(c);
	if (c->phase != CONNECTION_OPEN || c->half_closed)
		return;
	tls_end(&cl->tls);
	send_out(cl);
	if (c->phase != CONNECTION_OPEN)
		return;
	c->half_closed = true;
	shut_socket(cl); // libuv sends what is queued first
}

static const struct transport_ops tls_transport = {
	.write = write_plain,
	.waits = input_waits,
	.idle = set_idle,
	.pump = pump,
	.finish = finish,
	.half_close = half_close,
	.abort = abort_now,
};

// The session before the handshake is over: it makes way for the one that client and edge have agreed on (ALPN). -------------------

static void handshake_run(struct connection *c) {
	struct client *cl = client_of(c);
	if (cl->tls.ready) {
		int r = tls_speaks(&cl->tls, "h2") ? h2_session_start(c) : h1_session_start(c);
		if (r < 0)
			close_now(cl);
		else
			c->ops->run(c);
	} else if (c->eof) {
		close_now(cl);
	}
}

static void handshake_expired(struct connection *c) {
	connection_abort(c);
}

static void handshake_end(struct connection *c) {
}

static const struct session_ops handshake = {.run = handshake_run, .expired = handshake_expired, .end = handshake_end};

// Clocks. -----------------------------------------------------------------------------------------------------------------------

// While nothing is read, a client that has gone is seen only by asking the kernel.
static bool peer_has_closed(struct client *cl) {
	uv_os_fd_t fd;
	struct tcp_info info;
	socklen_t size = sizeof(info);
	return uv_fileno((uv_handle_t *)&cl->tcp, &fd) == 0 && getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0 &&
	       info.tcpi_state != TCP_ESTABLISHED;
}

static void sweep(struct client *cl, uint64_t now_ms) {
	struct connection *c = &cl->base;
	if (cl->writing && now_ms - cl->write_since_ms >= EDGE_STALL_MS) {
		log_info("edge.stalled", LOG_S("message", "a client took nothing for five minutes and was cut off"));
		close_now(cl);
		return;
	}
	if (c->deadline_ms != 0 && now_ms >= c->deadline_ms) {
		c->deadline_ms = 0;
		if (c->phase == CONNECTION_OPEN && c->ops != NULL) {
			c->ops->expired(c);
			connection_pump(c);
		} else {
			close_now(cl);
		}
		return;
	}
	if (c->phase == CONNECTION_OPEN && c->ops->sweep != NULL)
		c->ops->sweep(c, now_ms);
	else if (c->watch_peer && !cl->reading && !c->eof && peer_has_closed(cl)) {
		c->eof = true;
		connection_pump(c);
	}
}

void connections_sweep(struct edge *ed, uint64_t now_ms) {
	struct client *cl = TAILQ_FIRST(&ed->clients), *next;
	for (; cl != NULL; cl = next) {
		next = TAILQ_NEXT(cl, link);
		sweep(cl, now_ms);
	}
}

void connections_abort(struct edge *ed) {
	struct client *cl;
	while ((cl = TAILQ_FIRST(&ed->clients)) != NULL)
		abort_now(&cl->base);
}

// Closes the connection that has been idle for longest. False when all are busy.
static bool make_room(struct edge *ed) {
	struct client *cl;
	TAILQ_FOREACH(cl, &ed->clients, link) {
		if (cl->base.idle) {
			connection_finish(&cl->base, false);
			connection_pump(&cl->base);
			// Whoever does not take its close_notify at once does without.
			close_now(cl);
			return true;
		}
	}
	return false;
}

static void on_refused(uv_handle_t *handle) {
	struct edge *ed = ((struct client *)handle->data)->base.edge;
	free(handle->data);
	edge_let_go(ed);
}

void connection_accept(struct edge *ed) {
	struct client *cl = calloc(1, sizeof(*cl));
	if (cl == NULL)
		return; // the client stays in the backlog until another event
	struct connection *c = &cl->base;
	c->edge = ed;
	c->transport = &tls_transport;
	c->ops = &handshake;
	cl->tcp.data = cl;
	if (uv_tcp_init(ed->engine->loop, &cl->tcp) < 0) {
		free(cl);
		return;
	}
	edge_hold(ed);
	bool room = ed->client_count < EDGE_CONNECTIONS_MAX || make_room(ed);
	if (uv_accept((uv_stream_t *)&ed->listener, (uv_stream_t *)&cl->tcp) < 0 || !room ||
	    tls_start(&cl->tls, ed->tls, &ed->buffers) < 0) {
		if (!room && ed->refused++ % 1000 == 0)
			log_warn("edge.full", LOG_U("connections", ed->client_count), LOG_U("refused", ed->refused));
		uv_close((uv_handle_t *)&cl->tcp, on_refused);
		return;
	}
	uv_tcp_nodelay(&cl->tcp, 1);
	uv_tcp_keepalive(&cl->tcp, 1, 60); // so that a silent stream whose client is gone ends
	cl->pins = 1;
	c->idle = true;
	ed->client_count++;
	TAILQ_INSERT_TAIL(&ed->clients, cl, link);
	edge_watch(ed);
	connection_set_deadline(c, EDGE_HEAD_MS);
	update_reading(cl);
}
