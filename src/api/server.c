// The HTTP server; see server.h.
//
// A connection goes through: HEAD (collecting a request's head), BODY (its body), ANSWER (the handler works or the answer is being written),
// then HEAD again; or DRAIN, when it is to end: the answer is out and what the client still sends is thrown away for a moment, so that a
// reset does not take the answer away from it.
//
// An exchange is shared by the connection (loop thread) and the handler (worker); it has a reference count and a lock. What the handler wants
// written is copied into an `output` that is posted to the loop. When the connection dies, the exchange learns it (`broken`) and every
// blocking call of the handler ends.
#include "api/server.h"

#include "api/exchange.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "stasisd/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INPUT_MAX (2 * HTTP_HEAD_MAX)
#define HEAD_MS 10000
#define BODY_MS 30000
#define STREAM_MS 30000
#define STREAM_LEAST 4096 // bytes in STREAM_MS
#define ANSWER_MS 30000
#define IDLE_MS 75000
#define DRAIN_MS 2000
#define DRAIN_BYTES (4u << 20)
#define STOP_MS 5000
#define TICK_LEAST_MS 100         // so that many deadlines close together cost one look
#define COLLECTED_MAX (64u << 20) // bytes of collected bodies of one server

enum connection_state { HEAD, BODY, ANSWER, DRAIN };

struct connection {
	struct server *s;
	uv_tcp_t tcp;
	struct connection *prev, *next;
	enum connection_state state;
	char *in;
	size_t in_size;
	struct exchange *x;   // BODY, ANSWER
	uint64_t deadline_ms; // 0: none
	size_t window;        // bytes of a streamed body in this STREAM_MS
	size_t drained;
	bool reading, closing;
	bool ended;   // the client will send nothing more
	bool refused; // the last answer of this connection is on its way, and no handler runs
	uv_shutdown_t shutdown;
};

struct server {
	struct engine *en;
	struct server_options o;
	uv_tcp_t listener;
	uv_timer_t tick;
	uint64_t tick_ms; // when it fires
	int port;
	struct connection *connections;
	size_t connection_count, collected;
	size_t running, quick_running;           // handlers
	struct exchange *waiting, *waiting_last; // for a free handler
	bool stopping, listener_closed, tick_closed;
	uint64_t stop_ms;
	void (*stopped)(void *arg);
	void *stopped_arg;
};

_Static_assert(INPUT_MAX <= EXCHANGE_ROOM_LEAST, "what lies in a connection's buffer must fit an exchange that has room");

static void on_tick(uv_timer_t *t);
static void process(struct connection *c);
static void connection_close(struct connection *c);

// Exchanges and handlers ------------------------------------------------------------------------------------------------------------

static void handler_done(void *arg);

static void handler_run(void *arg) {
	struct exchange *x = arg;
	x->s->o.handle(x, x->s->o.arg);
	if (!x->begun)
		exchange_reply(x, 500, "", 0);
	loop_submit(x->s->en, handler_done, x);
}

static void start_handler(struct exchange *x, bool quick) {
	struct server *s = x->s;
	x->quick = quick;
	(*(quick ? &s->quick_running : &s->running))++;
	int r = quick ? reader_submit(handler_run, x) : worker_submit(handler_run, x);
	if (r < 0) {
		log_error("server.worker", LOG_S("server", s->o.name), LOG_U("errno", -r));
		exchange_reply(x, 503, "", 0);
		loop_submit(s->en, handler_done, x);
	}
}

static void start_waiting(struct server *s) {
	while (s->waiting != NULL && s->running < s->o.handlers_max) {
		struct exchange *x = s->waiting;
		s->waiting = x->next_waiting;
		if (s->waiting == NULL)
			s->waiting_last = NULL;
		start_handler(x, false);
	}
}

static void maybe_stopped(struct server *s);

static void handler_done(void *arg) {
	struct exchange *x = arg;
	struct server *s = x->s;
	(*(x->quick ? &s->quick_running : &s->running))--;
	// A handler that stopped in mid-answer: the length that it announced will not come.
	if (x->c != NULL && !exchange_is_complete(x))
		connection_close(x->c);
	exchange_release(x);
	start_waiting(s);
	maybe_stopped(s);
}

static void dispatch(struct exchange *x) {
	struct server *s = x->s;
	exchange_hold(x);
	// Quick ones do not queue behind those that wait for guests; each connection has one at most.
	if (s->o.is_quick != NULL && s->o.is_quick(exchange_head(x))) {
		start_handler(x, true);
		return;
	}
	x->next_waiting = NULL;
	if (s->waiting_last == NULL)
		s->waiting = x;
	else
		s->waiting_last->next_waiting = x;
	s->waiting_last = x;
	start_waiting(s);
}

// Closing ---------------------------------------------------------------------------------------------------------------------------

// Parts the connection from its exchange; the handler may go on and will notice.
static void let_go(struct connection *c, int why) {
	struct exchange *x = c->x;
	if (x == NULL)
		return;
	c->x = NULL;
	x->c = NULL;
	c->s->collected -= x->collected;
	x->collected = 0;
	exchange_break(x, why);
	exchange_release(x);
}

static void on_closed(uv_handle_t *h) {
	struct connection *c = h->data;
	struct server *s = c->s;
	if (c->prev != NULL)
		c->prev->next = c->next;
	else
		s->connections = c->next;
	if (c->next != NULL)
		c->next->prev = c->prev;
	__atomic_sub_fetch(&s->connection_count, 1, __ATOMIC_RELAXED);
	free(c->in);
	free(c);
	if (s->connections == NULL && !s->stopping)
		uv_timer_stop(&s->tick);
	maybe_stopped(s);
}

static void connection_close(struct connection *c) {
	if (c->closing)
		return;
	c->closing = true;
	let_go(c, -ECONNRESET);
	uv_close((uv_handle_t *)&c->tcp, on_closed);
}

// One timer per server. It is set to the first deadline, and not moved when that moves away: it fires, looks at all, and is set anew. So an idle
// connection costs no wake-up before its time.
static void wake_at(struct server *s, uint64_t at_ms) {
	uint64_t now = uv_now(s->en->loop), wait = at_ms <= now ? 0 : at_ms - now;
	bool active = uv_is_active((uv_handle_t *)&s->tick);
	if (!active || at_ms < s->tick_ms) {
		s->tick_ms = at_ms;
		uv_timer_start(&s->tick, on_tick, wait < TICK_LEAST_MS ? TICK_LEAST_MS : wait, 0);
	}
}

static void set_deadline(struct connection *c, uint64_t in_ms) {
	c->deadline_ms = uv_now(c->s->en->loop) + in_ms;
	wake_at(c->s, c->deadline_ms);
}

static void on_tick(uv_timer_t *t) {
	struct server *s = t->data;
	uint64_t now = uv_now(s->en->loop), next_ms = s->stopping ? s->stop_ms : UINT64_MAX;
	for (struct connection *c = s->connections, *next; c != NULL; c = next) {
		next = c->next;
		if (!c->closing && c->deadline_ms > now && c->deadline_ms < next_ms)
			next_ms = c->deadline_ms;
		if (c->closing || ((c->deadline_ms == 0 || now < c->deadline_ms) && (!s->stopping || now < s->stop_ms)))
			continue;
		bool streaming = c->state == BODY && s->o.stream && c->x != NULL && !c->refused && !exchange_answered(c->x);
		if (streaming && !s->stopping && (c->window >= STREAM_LEAST || !c->reading)) {
			c->window = 0;
			set_deadline(c, STREAM_MS);
			continue;
		}
		if (c->state == BODY && c->x != NULL)
			let_go(c, -ETIMEDOUT);
		connection_close(c);
	}
	if (next_ms != UINT64_MAX && next_ms > now)
		wake_at(s, next_ms);
}

// Reading ---------------------------------------------------------------------------------------------------------------------------

static void on_alloc(uv_handle_t *h, size_t wanted, uv_buf_t *buf) {
	struct connection *c = h->data;
	(void)wanted;
	if (c->in == NULL)
		c->in = malloc(INPUT_MAX);
	*buf = c->in == NULL ? uv_buf_init(NULL, 0) : uv_buf_init(c->in + c->in_size, (unsigned)(INPUT_MAX - c->in_size));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf);

static void set_reading(struct connection *c, bool on) {
	if (c->closing || c->ended || c->reading == on)
		return;
	c->reading = on;
	if (on)
		uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
	else
		uv_read_stop((uv_stream_t *)&c->tcp);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf) {
	struct connection *c = stream->data;
	(void)buf;
	if (n == 0 || c->closing)
		return;
	if (n < 0) {
		set_reading(c, false);
		c->ended = true;
		// A client may close its side and still wait for the answer, but not for one without end.
		if (n != UV_EOF || c->state != ANSWER || (c->x != NULL && exchange_is_endless(c->x)))
			connection_close(c);
		return;
	}
	if (c->state == DRAIN) {
		c->drained += (size_t)n;
		if (c->drained > DRAIN_BYTES)
			connection_close(c);
		return;
	}
	if (c->state == HEAD && c->in_size == 0)
		set_deadline(c, HEAD_MS);
	c->in_size += (size_t)n;
	process(c);
}

static void consume(struct connection *c, size_t n) {
	memmove(c->in, c->in + n, c->in_size - n);
	c->in_size -= n;
}

// Writing ---------------------------------------------------------------------------------------------------------------------------

struct output {
	uv_write_t write;
	struct exchange *x;
	size_t size;
	bool last;
	char data[];
};

static void on_shut(uv_shutdown_t *q, int status) {
	struct connection *c = q->data;
	if (status < 0)
		connection_close(c);
}

// The answer is out. On to the next request, or to the end.
static void answered(struct connection *c) {
	struct exchange *x = c->x;
	bool whole = c->state == ANSWER && !c->refused && !x->close_after && !c->s->stopping && !c->ended;
	let_go(c, -ECONNRESET);
	if (whole) {
		c->state = HEAD;
		set_deadline(c, c->in_size > 0 ? HEAD_MS : IDLE_MS);
		if (c->in_size == 0) {
			free(c->in);
			c->in = NULL;
		}
		set_reading(c, true);
		process(c);
		return;
	}
	c->state = DRAIN;
	c->in_size = 0;
	set_deadline(c, DRAIN_MS);
	c->shutdown.data = c;
	if (c->ended || uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shut) < 0)
		connection_close(c);
	else
		set_reading(c, true);
}

static void on_written(uv_write_t *w, int status) {
	struct output *o = w->data;
	struct exchange *x = o->x;
	struct connection *c = x->c;
	exchange_written(x, o->size);
	if (c != NULL) {
		set_deadline(c, ANSWER_MS);
		if (status < 0)
			connection_close(c);
		else if (o->last)
			answered(c);
		else if (c->state == ANSWER && exchange_idle(x))
			c->deadline_ms = 0; // the handler works on the rest
	}
	exchange_release(x);
	free(o);
}

static void send_output(void *arg) {
	struct output *o = arg;
	struct connection *c = o->x->c;
	if (c != NULL && (c->ended || c->s->stopping) && exchange_is_endless(o->x))
		connection_close(c);
	if (c == NULL || c->closing) {
		exchange_written(o->x, o->size);
		exchange_release(o->x);
		free(o);
		return;
	}
	set_deadline(c, ANSWER_MS);
	o->write.data = o;
	uv_buf_t buf = uv_buf_init(o->data, (unsigned)o->size);
	if (uv_write(&o->write, (uv_stream_t *)&c->tcp, &buf, 1, on_written) < 0) {
		exchange_written(o->x, o->size);
		connection_close(c);
		exchange_release(o->x);
		free(o);
	}
}

int exchange_post(struct exchange *x, const void *a, size_t a_size, const void *b, size_t b_size, bool last) {
	struct output *o = malloc(sizeof(*o) + a_size + b_size);
	if (o == NULL)
		return -ENOMEM;
	*o = (struct output){.x = x, .size = a_size + b_size, .last = last};
	if (a_size > 0)
		memcpy(o->data, a, a_size);
	if (b_size > 0)
		memcpy(o->data + a_size, b, b_size);
	exchange_hold(x);
	loop_submit(x->s->en, send_output, o);
	return 0;
}

static void resume_reading(void *arg) {
	struct exchange *x = arg;
	if (x->c != NULL)
		process(x->c);
	exchange_release(x);
}

void exchange_post_room(struct exchange *x) {
	exchange_hold(x);
	loop_submit(x->s->en, resume_reading, x);
}

static void send_continue(struct connection *c) {
	static char text[] = "HTTP/1.1 100 Continue\r\n\r\n";
	uv_buf_t buf = uv_buf_init(text, sizeof(text) - 1);
	// Small enough for an empty socket buffer; a client that does not even take this gets its answer without it.
	uv_try_write((uv_stream_t *)&c->tcp, &buf, 1);
}

static void continue_on_loop(void *arg) {
	struct exchange *x = arg;
	if (x->c != NULL && !x->c->closing)
		send_continue(x->c);
	exchange_release(x);
}

void exchange_post_continue(struct exchange *x) {
	exchange_hold(x);
	loop_submit(x->s->en, continue_on_loop, x);
}

// Requests --------------------------------------------------------------------------------------------------------------------------

// Answers without a handler, and ends the connection.
static void refuse(struct connection *c, int status, const char *why) {
	struct server *s = c->s;
	log_debug("server.refused", LOG_S("server", s->o.name), LOG_U("status", status), LOG_S("why", why));
	if (c->x == NULL && (c->x = exchange_new(s, c)) == NULL) {
		connection_close(c);
		return;
	}
	c->refused = true;
	set_reading(c, false);
	c->x->close_after = true;
	const char *type = NULL, *body = s->o.refusal == NULL ? NULL : s->o.refusal(status, &type);
	if (type != NULL)
		exchange_header(c->x, "content-type", "%s", type);
	exchange_reply(c->x, status, body, body == NULL ? 0 : strlen(body));
}

static bool start_request(struct connection *c, size_t head_size) {
	struct server *s = c->s;
	struct exchange *x = exchange_new(s, c);
	if (x == NULL || exchange_take_head(x, c->in, head_size) < 0) {
		exchange_release(x);
		connection_close(c);
		return false;
	}
	c->x = x;
	consume(c, head_size);
	const struct http_head *h = exchange_head(x);
	if (!h->keep_alive)
		x->close_after = true;
	if (x->body.done) { // there is none, or it is empty
		x->body_done = true;
		c->state = ANSWER;
		c->deadline_ms = 0;
		dispatch(x);
		return true;
	}
	if (!s->o.stream && h->body == HTTP_BODY_LENGTH && h->content_length > s->o.body_limit) {
		refuse(c, 413, "body too large");
		return false;
	}
	c->state = BODY;
	c->window = 0;
	set_deadline(c, s->o.stream ? STREAM_MS : BODY_MS);
	if (s->o.stream) {
		x->wants_continue = h->expect_continue;
		dispatch(x);
	} else if (h->expect_continue) {
		send_continue(c);
	}
	return true;
}

static bool read_head(struct connection *c) {
	struct http_head h;
	struct error e = {0};
	ssize_t n = http_parse_request(c->in, c->in_size, &h, &e);
	if (n > 0)
		return start_request(c, (size_t)n);
	if (n == -E2BIG)
		refuse(c, 431, e.message);
	else if (n == -EPROTONOSUPPORT)
		refuse(c, 505, e.message);
	else if (n < 0)
		refuse(c, 400, e.message);
	else if (c->in_size >= HTTP_HEAD_MAX)
		refuse(c, 431, "head too large");
	return false;
}

// Returns false when more bytes, or more room, are needed first.
static bool read_body(struct connection *c) {
	struct server *s = c->s;
	struct exchange *x = c->x;
	if (s->o.stream && exchange_room(x) == 0) {
		set_reading(c, false);
		return false;
	}
	struct slice content;
	struct error e = {0};
	ssize_t n = http_body_feed(&x->body, c->in, c->in_size, &content, &e);
	if (n < 0) {
		if (!s->o.stream) {
			refuse(c, 400, e.message);
			return false;
		}
		x->close_after = true;
		exchange_break_body(x, -EBADMSG);
		c->state = DRAIN; // until the handler has answered
		c->deadline_ms = 0;
		set_reading(c, false);
		return false;
	}
	if (content.size > 0) {
		if (!s->o.stream && (x->collected + content.size > s->o.body_limit || s->collected + content.size > COLLECTED_MAX)) {
			refuse(c, x->collected + content.size > s->o.body_limit ? 413 : 503, "body too large");
			return false;
		}
		if (exchange_add_body(x, content.data, content.size) < 0) {
			refuse(c, 503, "out of memory");
			return false;
		}
		if (!s->o.stream) {
			x->collected += content.size;
			s->collected += content.size;
		}
		c->window += content.size;
	}
	consume(c, (size_t)n);
	if (x->body.done) {
		c->state = ANSWER;
		c->deadline_ms = 0;
		exchange_end_body(x);
		if (!s->o.stream)
			dispatch(x);
		return true;
	}
	return n > 0;
}

static void process(struct connection *c) {
	while (!c->closing && !c->refused && c->in_size > 0 && c->state != ANSWER && c->state != DRAIN) {
		if (!(c->state == HEAD ? read_head(c) : read_body(c)))
			break;
	}
	if (c->closing || c->refused || c->state == DRAIN)
		return;
	bool room = c->in_size < INPUT_MAX;
	if (c->state == BODY && c->s->o.stream)
		room = room && exchange_room(c->x) > 0;
	set_reading(c, room);
}

// Listening -------------------------------------------------------------------------------------------------------------------------

static void on_connection(uv_stream_t *listener, int status) {
	struct server *s = listener->data;
	struct connection *c = status < 0 ? NULL : calloc(1, sizeof(*c));
	if (c == NULL)
		return;
	c->s = s;
	c->tcp.data = c;
	if (uv_tcp_init(s->en->loop, &c->tcp) < 0) {
		free(c);
		return;
	}
	c->next = s->connections;
	if (c->next != NULL)
		c->next->prev = c;
	s->connections = c;
	size_t count = __atomic_add_fetch(&s->connection_count, 1, __ATOMIC_RELAXED);
	if (uv_accept(listener, (uv_stream_t *)&c->tcp) < 0 || count > s->o.connections_max || s->stopping) {
		connection_close(c);
		return;
	}
	uv_tcp_nodelay(&c->tcp, 1);
	set_deadline(c, HEAD_MS);
	set_reading(c, true);
}

static int parse_address(const char *text, struct sockaddr_storage *ret, struct error *e) {
	char host[64];
	const char *colon = strrchr(text, ':');
	char *end = NULL;
	long port = colon == NULL ? -1 : strtol(colon + 1, &end, 10);
	if (colon == NULL || end == colon + 1 || *end != '\0' || port < 0 || port > 65535 || (size_t)(colon - text) >= sizeof(host))
		return error_set(e, -EINVAL, "%s is not <address>:<port>", text);
	snprintf(host, sizeof(host), "%.*s", (int)(colon - text), text);
	size_t n = strlen(host);
	if (n > 2 && host[0] == '[' && host[n - 1] == ']') {
		host[n - 1] = '\0';
		if (uv_ip6_addr(host + 1, (int)port, (struct sockaddr_in6 *)ret) == 0)
			return 0;
	} else if (uv_ip4_addr(host, (int)port, (struct sockaddr_in *)ret) == 0) {
		return 0;
	}
	return error_set(e, -EINVAL, "%s is not <IP address>:<port>; an IPv6 address stands in brackets", text);
}

static void on_server_closed(uv_handle_t *h) {
	struct server *s = h->data;
	if (h == (uv_handle_t *)&s->listener)
		s->listener_closed = true;
	else
		s->tick_closed = true;
	maybe_stopped(s);
}

int server_start(struct engine *en, const struct server_options *o, struct server **ret, struct error *e) {
	struct sockaddr_storage address = {0};
	int r = parse_address(o->listen, &address, e);
	if (r < 0)
		return r;
	struct server *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the %s server", o->name);
	s->en = en;
	s->o = *o;
	s->listener.data = s->tick.data = s;
	uv_tcp_init(en->loop, &s->listener);
	uv_timer_init(en->loop, &s->tick);
	r = uv_tcp_bind(&s->listener, (struct sockaddr *)&address, 0);
	if (r == 0)
		r = uv_listen((uv_stream_t *)&s->listener, 256, on_connection);
	struct sockaddr_storage bound = {0};
	int size = sizeof(bound);
	if (r == 0)
		r = uv_tcp_getsockname(&s->listener, (struct sockaddr *)&bound, &size);
	if (r < 0) {
		error_set(e, r, "cannot listen on %s: %s; choose another address in the configuration, or end what uses it", o->listen,
			  uv_strerror(r));
		server_stop(s, NULL, NULL);
		return r;
	}
	s->port =
		ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port : ((struct sockaddr_in *)&bound)->sin_port);
	*ret = s;
	return 0;
}

int server_port(const struct server *s) {
	return s->port;
}

size_t server_connections(const struct server *s) {
	return __atomic_load_n(&s->connection_count, __ATOMIC_RELAXED);
}

static void maybe_stopped(struct server *s) {
	if (!s->stopping || s->connections != NULL || s->running + s->quick_running > 0 || s->waiting != NULL)
		return;
	if (!uv_is_closing((uv_handle_t *)&s->tick))
		uv_close((uv_handle_t *)&s->tick, on_server_closed);
	if (!s->listener_closed || !s->tick_closed)
		return;
	void (*stopped)(void *) = s->stopped;
	void *arg = s->stopped_arg;
	free(s);
	if (stopped != NULL)
		stopped(arg);
}

void server_stop(struct server *s, void (*done)(void *arg), void *arg) {
	s->stopping = true;
	s->stopped = done;
	s->stopped_arg = arg;
	s->stop_ms = uv_now(s->en->loop) + STOP_MS;
	if (s->connections != NULL)
		wake_at(s, s->stop_ms);
	uv_close((uv_handle_t *)&s->listener, on_server_closed);
	for (struct connection *c = s->connections, *next; c != NULL; c = next) {
		next = c->next;
		if (c->state == HEAD || c->state == DRAIN || (c->x != NULL && exchange_is_endless(c->x)))
			connection_close(c);
	}
	maybe_stopped(s);
}
