// HTTP/1.1 with a client: one request after the other, each checked, held until its microVM is awake, and exchanged with the application.
// A stream of an HTTP/2 connection has such a session too, with one request: its transport turns heads from and into its own form, and knows
// where messages end (c->framed).
//
// The session is a machine that run() pushes as far as it goes. A request's head stays in the connection's buffer, and is parsed again
// when it is needed, until the request can no longer be sent a second time: until the first byte of its body is sent or the first byte of
// its response has come. Bytes wait in at most one buffer here (`out`, plain bytes for the client); whatever does not fit stays with the
// upstream or the connection, which then stop reading.
#include "edge/h1_session.h"

#include "base/clock.h"
#include "base/log.h"
#include "edge/application.h"
#include "edge/connection.h"
#include "edge/gate.h"
#include "edge/h1_head.h"
#include "edge/share.h"
#include "microvms/microvms.h"
#include "stasisd/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MIN 1024     // less room than that is not worth a step
#define CHUNK_FRAMING 32  // size line and CR LF of a chunk
#define HELD_GONE_MS 1000 // a client that ends its side before its request was delivered

enum h1_state {
	H1_READ,     // waiting for a head
	H1_HELD,     // waiting for microvm_open()
	H1_OPENED,   // it has answered
	H1_CONNECT,  // reaching the application
	H1_EXCHANGE, // request and response under way
	H1_TUNNEL,   // another protocol
	H1_ANSWERED, // an answer of our own is being sent
};

enum response_phase { RESPONSE_HEAD, RESPONSE_BODY, RESPONSE_DONE };

struct h1 {
	struct connection *c; // NULL: gone, and only microvm_open()'s callback is awaited
	enum h1_state state;
	struct buffer out; // plain bytes for the client
	size_t scanned;    // bytes of the head that have no LF among them, or were judged

	// The request.
	bool active; // one is under way
	bool to_head, idempotent, keep, old_client, may_upgrade, offers, force_h2, expects, body_began, request_done;
	size_t head_size;        // bytes of its head in c->in; 0: consumed
	size_t request_trailers; // bytes of its trailer section in c->in
	bool chunked;
	struct http_body request_body;

	// The way to the application.
	bool opening;
	enum microvm_open_result open_result;
	struct microvm_route *route;
	struct upstream *upstream;
	struct application app; // over it, once it is open
	bool retried;
	bool leaving; // the client ended its side while we were connecting
	struct gate_verdict gate;
	struct share_user share;

	// The response.
	enum response_phase response;
	enum h1_framing framing;
	bool upstream_keep;
	unsigned interims;
	size_t response_trailers; // bytes of its trailer section at the start of what the application sent
	struct http_body response_body;

	// What the log says.
	char method[16];
	char why[112];
	int status;
	uint64_t bytes_in, bytes_out, started_ms, open_ms, held_ms;
};

static struct edge *edge_of(struct h1 *s) {
	return s->c->edge;
}

// Requests begin and end. -----------------------------------------------------------------------------------------------------

static void log_request(struct h1 *s) {
	uint64_t ms = monotonic_ms() - s->started_ms;
	metrics_request(s->gate.microvm, s->status, s->bytes_in, s->bytes_out, ms, s->held_ms);
	log_info("edge.request", LOG_S("microvmId", s->gate.microvm), LOG_S("method", s->method), LOG_U("status", s->status),
		 LOG_U("bytesIn", s->bytes_in), LOG_U("bytesOut", s->bytes_out), LOG_U("ms", ms), LOG_U("heldMs", s->held_ms),
		 LOG_S("why", s->why));
}

static void let_upstream_go(struct h1 *s, bool keep) {
	if (s->upstream == NULL)
		return;
	keep = keep && s->app.side == NULL;
	application_end(&s->app);
	if (keep)
		upstream_keep(s->upstream);
	else
		upstream_close(s->upstream);
	s->upstream = NULL;
}

// Forgets the request; what it held is free again.
static void end_request(struct h1 *s, bool keep_upstream) {
	if (s->active)
		log_request(s);
	let_upstream_go(s, keep_upstream);
	share_leave(edge_of(s), &s->share);
	if (s->route != NULL)
		microvm_route_release(s->route);
	*s = (struct h1){.c = s->c, .out = s->out, .opening = s->opening};
}

static void next_request(struct h1 *s, bool keep_upstream) {
	end_request(s, keep_upstream);
	connection_set_idle(s->c, true);
	connection_set_deadline(s->c, EDGE_KEEP_ALIVE_MS);
}

// The client has ended its side and may be gone. The end of a message says nothing of that kind: a client of HTTP/2 that leaves resets its stream.
static bool may_have_left(const struct h1 *s) {
	return s->c->eof && !s->c->framed;
}

static void active(struct h1 *s) {
	microvm_route_active(s->route);
	// A client that may have left, or whose request outlasts its response, is given up only when nothing moves any more.
	if (may_have_left(s) || s->response == RESPONSE_DONE)
		connection_set_deadline(s->c, EDGE_GONE_MS);
}

// Sends what is in `out`. True when all of it is gone.
static bool drain(struct h1 *s) {
	while (buffer_used(&s->out) > 0) {
		size_t n = connection_write(s->c, buffer_bytes(&s->out), buffer_used(&s->out));
		if (n == 0)
			return false;
		buffer_consume(&edge_of(s)->buffers, &s->out, n);
	}
	return true;
}

// Puts an answer of our own into `out`, or hands it to the transport.
static bool put_answer(struct h1 *s, int status, const char *text) {
	int64_t now_s = (int64_t)(realtime_ms() / 1000);
	if (s->c->framed) {
		struct h1_answer a;
		h1_make_answer(&a, status, text, now_s);
		bool ends = s->to_head || text[0] == '\0';
		const struct transport_ops *t = s->c->transport;
		return t->head(s->c, status, a.headers, a.count, ends) &&
		       (ends || (t->write(s->c, text, strlen(text)) == strlen(text) && t->end(s->c, NULL, 0)));
	}
	if (!buffer_want(&edge_of(s)->buffers, &s->out, BUFFER_SMALL))
		return false;
	buffer_compact(&s->out);
	struct writer w = writer_over(s->out.data + s->out.end, buffer_room(&s->out));
	h1_write_answer(&w, status, text, s->to_head, s->keep, now_s);
	if (!w.bad)
		s->out.end = s->out.capacity - (uint32_t)w.left;
	return !w.bad;
}

static void give_up(struct h1 *s, const char *why) {
	if (s->why[0] == '\0')
		snprintf(s->why, sizeof(s->why), "%s", why);
	if (s->status == 0)
		s->status = 499;
	// What has come so far is the client's, as far as it goes.
	drain(s);
	connection_abort(s->c);
}

static void forget_head(struct h1 *s) {
	if (s->head_size > 0)
		connection_consume(s->c, s->head_size);
	s->head_size = 0;
}

// An answer of our own in place of a response.
static void answer(struct h1 *s, int status, const char *text) {
	if (s->response != RESPONSE_HEAD) {
		give_up(s, "the response was cut off");
		return;
	}
	s->status = status;
	s->c->watch_peer = false;
	s->keep = s->keep && s->request_done;
	s->state = H1_ANSWERED;
	if (!put_answer(s, status, text)) {
		give_up(s, "no room for an answer");
		return;
	}
	forget_head(s);
	let_upstream_go(s, false);
	connection_set_deadline(s->c, 0);
}

static void bad_gateway(struct h1 *s, const char *why) {
	if (s->why[0] == '\0')
		snprintf(s->why, sizeof(s->why), "%s", why);
	answer(s, 502, "");
}

// The head. -------------------------------------------------------------------------------------------------------------------

static void opened(void *arg, enum microvm_open_result result, struct microvm_route *route, const char *why) {
	struct h1 *s = arg;
	s->opening = false;
	if (s->c == NULL) {
		if (route != NULL)
			microvm_route_release(route);
		free(s);
		return;
	}
	s->route = route;
	s->open_result = result;
	s->held_ms = monotonic_ms() - s->open_ms;
	if (result != MICROVM_OPEN_OK)
		snprintf(s->why, sizeof(s->why), "%s", why != NULL ? why : "");
	s->state = H1_OPENED;
	connection_pump(s->c);
}

static void judge_request(struct h1 *s, const struct http_head *h) {
	s->to_head = slice_equals(h->method, "HEAD");
	s->idempotent = h1_is_idempotent(h->method);
	s->keep = h->keep_alive;
	s->old_client = h->minor_version == 0;
	s->may_upgrade = h1_may_upgrade(h);
	s->offers = h1_offers_subprotocol(h);
	s->force_h2 = h1_forces_h2(h);
	s->expects = h->expect_continue;
	s->chunked = h->body == HTTP_BODY_CHUNKED;
	http_body_start(&s->request_body, h);
	// Content of a length that is not known ends where the transport says.
	if (s->c->framed && s->chunked)
		s->request_body.kind = HTTP_BODY_UNTIL_CLOSE;
	s->request_done = s->request_body.done;
	snprintf(s->method, sizeof(s->method), "%.*s", (int)(h->method.size < 15 ? h->method.size : 15), h->method.data);
}

static bool take_share(struct h1 *s) {
	switch (share_enter(edge_of(s), s->gate.endpoint, s->c, &s->share)) {
	case SHARE_FINE:
		return true;
	case SHARE_CONNECTIONS:
		answer(s, 429, "Too many connections");
		return false;
	case SHARE_REQUESTS:
		answer(s, 429, "Too many requests");
		return false;
	default:
		bad_gateway(s, "out of memory");
		return false;
	}
}

static void begin_request(struct h1 *s, const struct http_head *h) {
	judge_request(s, h);
	struct gate_request shown;
	if (!h1_gate_request(h, &shown) || slice_equals(h->method, "CONNECT")) {
		answer(s, 400, "Bad request");
		return;
	}
	gate_decide(edge_of(s), &shown, &s->gate);
	if (s->gate.status != 0) {
		answer(s, s->gate.status, s->gate.text);
		return;
	}
	if (!take_share(s))
		return;
	connection_set_idle(s->c, false);
	s->open_ms = monotonic_ms();
	connection_set_deadline(s->c, 0);
	s->c->watch_peer = true;
	s->route = microvm_open_now(edge_of(s)->engine, s->gate.endpoint);
	if (s->route != NULL) {
		s->open_result = MICROVM_OPEN_OK;
		s->state = H1_OPENED;
		return;
	}
	s->state = H1_HELD;
	s->opening = true;
	microvm_open(edge_of(s)->engine, s->gate.endpoint, opened, s);
}

static void refuse_head(struct h1 *s, int code) {
	snprintf(s->method, sizeof(s->method), "-");
	s->keep = false;
	if (code == -E2BIG)
		answer(s, 431, "Request header fields too large");
	else if (code == -EPROTONOSUPPORT)
		answer(s, 505, "HTTP version not supported");
	else
		answer(s, 400, "Bad request");
}

static bool read_head(struct h1 *s) {
	struct connection *c = s->c;
	size_t used = buffer_used(&c->in);
	if (connection_input_ended(c)) {
		connection_finish(c, false);
		return false;
	}
	if (used == 0)
		return false;
	if (!s->active) {
		s->active = true;
		s->started_ms = monotonic_ms();
		connection_set_deadline(c, EDGE_HEAD_MS);
	}
	// Bytes that come one by one are not worth parsing until a line is complete.
	bool full = used >= HTTP_HEAD_MAX;
	if (!full && memchr(buffer_bytes(&c->in) + s->scanned, '\n', used - s->scanned) == NULL) {
		s->scanned = used;
	} else {
		struct http_head *h = &edge_of(s)->head;
		ssize_t n = http_parse_request(buffer_bytes(&c->in), used, h, NULL);
		s->scanned = used;
		if (n < 0) {
			refuse_head(s, (int)n);
			return true;
		}
		if (n > 0) {
			s->head_size = (size_t)n;
			begin_request(s, h);
			return true;
		}
	}
	if (buffer_room(&c->in) == 0 && !connection_grow_input(c))
		refuse_head(s, -E2BIG);
	else if (c->eof && !connection_input_waits(c))
		connection_finish(c, false); // half a head, and no more to come
	return s->state != H1_READ;
}

// The way to the application. -------------------------------------------------------------------------------------------------

static void upstream_changed(void *arg) {
	struct h1 *s = arg;
	connection_pump(s->c);
}

static void find_upstream(struct h1 *s, bool fresh) {
	struct edge *ed = edge_of(s);
	// A kept stream may end at the moment it is used. A request that must not be sent twice takes one only when that is next to
	// impossible, and no request with a body that cannot be had again does.
	uint64_t age = s->idempotent && s->request_done ? EDGE_UPSTREAM_IDLE_MS : EDGE_UPSTREAM_FRESH_MS;
	s->upstream = fresh || s->may_upgrade || s->force_h2 ? NULL : upstream_take(ed, s->route, s->gate.port, age, upstream_changed, s);
	if (s->upstream == NULL)
		s->upstream = upstream_connect(ed, s->route, s->gate.port, upstream_changed, s);
	if (s->upstream != NULL && s->force_h2)
		s->upstream->h2 = true;
	if (s->upstream == NULL) {
		bad_gateway(s, "out of memory");
		return;
	}
	s->state = H1_CONNECT;
	connection_set_deadline(s->c, 0); // the upstream has its own
}

static bool after_open(struct h1 *s) {
	if (s->open_result == MICROVM_OPEN_OK)
		find_upstream(s, false);
	else if (s->open_result == MICROVM_OPEN_UNKNOWN)
		answer(s, 403, "Token authentication failed");
	else
		bad_gateway(s, "the microVM cannot be reached");
	return true;
}

static void send_head(struct h1 *s) {
	struct http_head *h = &edge_of(s)->head;
	char id[UUID_TEXT];
	edge_request_id(edge_of(s), id);
	struct application *a = &s->app;
	uint32_t need = s->head_size + H1_HEAD_ADDED_MAX <= BUFFER_SMALL ? BUFFER_SMALL : BUFFER_LARGE;
	ssize_t n = http_parse_request(buffer_bytes(&s->c->in), s->head_size, h, NULL);
	if (n != (ssize_t)s->head_size || !application_reserve(a, need)) {
		bad_gateway(s, "out of memory");
		return;
	}
	struct buffer *out = application_out(a);
	struct writer w = writer_over(out->data + out->end, buffer_room(out));
	h1_write_request(&w, h, id);
	if (w.bad) {
		bad_gateway(s, "the head outgrew its buffer");
		return;
	}
	out->end = out->capacity - (uint32_t)w.left;
	s->upstream->waits = s->gate.shell ? UPSTREAM_WAIT_REPLIES : UPSTREAM_WAIT_HEAD;
	application_flush(a);
	connection_set_deadline(s->c, 0);
	s->state = H1_EXCHANGE;
	s->c->watch_peer = false;
	s->scanned = 0;
	active(s);
}

static bool connect_step(struct h1 *s) {
	if (s->upstream->phase == UPSTREAM_FAILED) {
		char why[112];
		snprintf(why, sizeof(why), "port %u: %s", s->gate.port, s->upstream->reason);
		if (s->gate.shell && strcmp(s->upstream->reason, "EMFILE") == 0)
			answer(s, 429, "Too many sessions");
		else
			bad_gateway(s, why);
		return true;
	}
	if (s->upstream->phase != UPSTREAM_OPEN) {
		// A client that is gone needs no connection; one that has only ended its side gets the time that connecting usually takes.
		if (may_have_left(s) && !s->leaving)
			connection_set_deadline(s->c, HELD_GONE_MS);
		s->leaving = may_have_left(s);
		return false;
	}
	enum application_protocol protocol = s->gate.shell ? APPLICATION_SHELL : s->force_h2 ? APPLICATION_HTTP2 : APPLICATION_HTTP1;
	if (application_begin(&s->app, s->upstream, protocol) < 0) {
		bad_gateway(s, "out of memory");
		return true;
	}
	send_head(s);
	return true;
}

// Bodies. ---------------------------------------------------------------------------------------------------------------------

static void put_chunk(struct buffer *to, struct slice content, bool chunked) {
	char line[CHUNK_FRAMING];
	if (content.size == 0)
		return;
	if (chunked) {
		int n = snprintf(line, sizeof(line), "%zx\r\n", content.size);
		buffer_append(to, line, (size_t)n);
	}
	buffer_append(to, content.data, content.size);
	if (chunked)
		buffer_append(to, "\r\n", 2);
}

// Writes the last chunk and the trailers; the caller has checked that there is room for HTTP_TRAILER_MAX and some more.
static bool put_last_chunk(struct buffer *to, const char *trailers, size_t size) {
	struct http_header headers[HTTP_HEADERS_MAX];
	ssize_t count = http_parse_trailers(trailers, size, headers, HTTP_HEADERS_MAX, NULL);
	if (count < 0)
		return false;
	struct writer w = writer_over(to->data + to->end, buffer_room(to));
	write_bytes(&w, "0\r\n", 3);
	h1_write_trailers(&w, headers, (size_t)count);
	if (w.bad)
		return false;
	to->end = to->capacity - (uint32_t)w.left;
	return true;
}

#define LAST_CHUNK_ROOM (HTTP_TRAILER_MAX + HTTP_HEADERS_MAX + 64)

static void bad_request_body(struct h1 *s) {
	s->keep = false;
	if (s->response == RESPONSE_HEAD)
		answer(s, 400, "Bad request");
	else
		give_up(s, "malformed request body");
}

// The transport has said that the request is over. False when there is no room yet.
static bool framed_request_ends(struct h1 *s) {
	struct application *a = &s->app;
	if (!application_reserve(a, BUFFER_SMALL) || application_room(a) < LAST_CHUNK_ROOM)
		return false;
	forget_head(s);
	struct slice trailers = s->c->transport->trailers(s->c);
	if (put_last_chunk(application_out(a), trailers.data, trailers.size))
		s->request_done = true;
	else
		bad_request_body(s);
	return true;
}

// Takes the next piece of the request's body out of c->in. False when nothing can be done now.
static bool request_piece(struct h1 *s) {
	struct connection *c = s->c;
	struct application *a = &s->app;
	size_t have = buffer_used(&c->in), seen = s->head_size + s->request_trailers;
	if (have <= seen) {
		if (!c->eof || connection_input_waits(c))
			return false;
		if (s->request_body.kind == HTTP_BODY_UNTIL_CLOSE)
			return framed_request_ends(s);
		give_up(s, "the client ended in the midst of its request");
		return true;
	}
	bool in_trailers = http_body_in_trailers(&s->request_body);
	size_t room = share_may_pass(edge_of(s), &s->share) && application_reserve(a, BUFFER_SMALL) ? application_room(a) : 0;
	if (room < (in_trailers ? LAST_CHUNK_ROOM : ROOM_MIN))
		return false;
	forget_head(s);
	s->body_began = true;
	struct slice content;
	size_t size = buffer_used(&c->in) - s->request_trailers;
	if (!in_trailers && size > room - CHUNK_FRAMING)
		size = room - CHUNK_FRAMING;
	ssize_t n = http_body_feed(&s->request_body, buffer_bytes(&c->in) + s->request_trailers, size, &content, NULL);
	if (n < 0) {
		bad_request_body(s);
		return true;
	}
	put_chunk(application_out(a), content, s->chunked);
	s->bytes_in += content.size;
	share_passed(edge_of(s), &s->share, content.size);
	if (in_trailers)
		s->request_trailers += (size_t)n;
	else
		connection_consume(c, (size_t)n);
	active(s);
	if (!s->request_body.done)
		return true;
	if (s->chunked && !put_last_chunk(application_out(a), buffer_bytes(&c->in), s->request_trailers)) {
		bad_request_body(s);
		return true;
	}
	if (s->request_trailers > 0)
		connection_consume(c, s->request_trailers);
	s->request_trailers = 0;
	s->request_done = true;
	return true;
}

static bool pump_request(struct h1 *s) {
	bool moved = false;
	while (s->state == H1_EXCHANGE && s->c->phase == CONNECTION_OPEN && !s->request_done && !application_broken(&s->app) &&
	       request_piece(s)) {
		moved = true;
		// A buffer that is half full, or all that there is: off with it.
		if (s->state == H1_EXCHANGE &&
		    (s->request_done || application_room(&s->app) < BUFFER_SMALL / 2 || buffer_used(&s->c->in) == 0))
			application_flush(&s->app);
	}
	if (s->state == H1_EXCHANGE && s->upstream != NULL)
		application_flush(&s->app);
	return moved;
}

// The response. ---------------------------------------------------------------------------------------------------------------

static void begin_tunnel(struct h1 *s) {
	s->state = H1_TUNNEL;
	s->keep = false;
	connection_set_deadline(s->c, 0);
}

// No response will come on this stream.
static void no_response(struct h1 *s) {
	bool again = s->upstream->reused && s->head_size > 0 && s->idempotent && !s->retried && s->interims == 0;
	if (!again) {
		bool said = s->upstream->reason[0] != '\0';
		bad_gateway(s, said ? s->upstream->reason : "the application closed the connection without a response");
		return;
	}
	s->retried = true;
	let_upstream_go(s, false);
	find_upstream(s, true);
}

// How the body goes to the client, and whether the client's connection can go on afterwards.
static void choose_framing(struct h1 *s, const struct http_head *h) {
	http_body_start(&s->response_body, h);
	s->upstream_keep = h->keep_alive;
	if (h->body == HTTP_BODY_NONE)
		s->framing = H1_FRAMING_NONE;
	else if (h->body == HTTP_BODY_LENGTH)
		s->framing = H1_FRAMING_LENGTH;
	else
		s->framing = s->old_client || s->c->framed ? H1_FRAMING_CLOSE : H1_FRAMING_CHUNKED;
	if (s->framing == H1_FRAMING_CLOSE && !s->c->framed)
		s->keep = false;
	// The application does not want the rest of the request, or the client will not send it: say that the connection ends here.
	if (!s->request_done && (h->status >= 400 || !h->keep_alive || (s->expects && !s->body_began)))
		s->keep = false;
}

static bool put_framed_head(struct h1 *s, const struct http_head *h) {
	struct http_header headers[H1_HEADERS_MAX + 1];
	char length[24];
	size_t count = h1_response_headers(h, s->framing, s->offers, headers);
	if (h->status >= 200 && s->framing == H1_FRAMING_LENGTH) {
		int n = snprintf(length, sizeof(length), "%llu", (unsigned long long)h->content_length);
		headers[count++] = (struct http_header){SLICE("content-length"), {length, (size_t)n}};
	}
	return s->c->transport->head(s->c, h->status, headers, count, h->status >= 200 && s->response_body.done);
}

// Writes a rewritten head into `out`, or hands it to the transport.
static bool put_head(struct h1 *s, const struct http_head *h, size_t size) {
	if (s->c->framed)
		return put_framed_head(s, h);
	uint32_t need = size + H1_HEAD_ADDED_MAX <= BUFFER_SMALL ? BUFFER_SMALL : BUFFER_LARGE;
	if (!buffer_want(&edge_of(s)->buffers, &s->out, need))
		return false;
	struct writer w = writer_over(s->out.data + s->out.end, buffer_room(&s->out));
	if (h->status < 200)
		h1_write_interim(&w, h, s->offers);
	else
		h1_write_response(&w, h, s->framing, s->keep, s->old_client);
	if (w.bad)
		return false;
	s->out.end = s->out.capacity - (uint32_t)w.left;
	return true;
}

// A body that may go on for as long as both sides like, silent for most of the time.
static bool is_endless(const struct http_head *h) {
	static const char *const types[] = {"text/event-stream", "application/grpc", "multipart/x-mixed-replace"};
	const struct http_header *type = http_find(h, "content-type");
	for (size_t i = 0; type != NULL && i < sizeof(types) / sizeof(types[0]); i++)
		if (type->value.size >= strlen(types[i]) && strncasecmp(type->value.data, types[i], strlen(types[i])) == 0)
			return true;
	return false;
}

static void take_response_head(struct h1 *s, struct http_head *h, size_t size) {
	bool final = h->status >= 200, switching = h->status == 101;
	if ((switching && !s->may_upgrade) || (!final && ++s->interims > EDGE_INTERIM_MAX)) {
		bad_gateway(s, switching ? "the application switches protocols unasked" : "too many interim responses");
		return;
	}
	forget_head(s);
	if (final)
		choose_framing(s, h);
	bool wanted = final || switching || !s->old_client;
	if (wanted && !put_head(s, h, size)) {
		bad_gateway(s, "the response cannot be passed on");
		return;
	}
	if (final || switching)
		s->upstream->waits = switching || is_endless(h) ? UPSTREAM_WAIT_REPLIES : UPSTREAM_WAIT_REST;
	if (final || switching)
		s->status = h->status;
	application_consume(&s->app, size);
	s->scanned = 0;
	active(s);
	if (switching)
		begin_tunnel(s);
	if (final)
		s->response = s->response_body.done ? RESPONSE_DONE : RESPONSE_BODY;
}

// Why what came is no response: an application that speaks TLS says so to plain text with an alert (RFC 8446, section 5.1).
static const char *why_no_head(const struct h1 *s, const char *usual) {
	const struct buffer *in = application_in(&s->app);
	bool alert = buffer_used(in) >= 2 && memcmp(buffer_bytes(in), "\x15\x03", 2) == 0;
	return alert ? "the application speaks TLS at this port: its image can say so with STASIS_TLS" : usual;
}

static bool response_head(struct h1 *s) {
	struct application *a = &s->app;
	if (!drain(s))
		return false;
	size_t used = buffer_used(application_in(a));
	bool full = used >= HTTP_HEAD_MAX;
	if (full || (used > s->scanned && memchr(buffer_bytes(application_in(a)) + s->scanned, '\n', used - s->scanned) != NULL)) {
		struct http_head *h = &edge_of(s)->head;
		ssize_t n = http_parse_response(buffer_bytes(application_in(a)), used, s->to_head, h, NULL);
		if (n < 0) {
			bad_gateway(s, n == -E2BIG ? "the response's head is too long" : why_no_head(s, "malformed response"));
			return true;
		}
		if (n > 0) {
			take_response_head(s, h, (size_t)n);
			return true;
		}
	}
	s->scanned = used;
	if (application_eof(a) && used == 0)
		no_response(s);
	else if (application_eof(a))
		bad_gateway(s, why_no_head(s, "the application closed the connection within a response's head"));
	else if (used > 0 && buffer_room(application_in(a)) == 0 && !application_grow_input(a))
		bad_gateway(s, "the response's head is too long");
	else
		return false;
	return true;
}

static void response_ends(struct h1 *s) {
	struct application *a = &s->app;
	bool any = s->response_trailers > 0, fine = true;
	const char *trailers = any ? buffer_bytes(application_in(a)) : "\r\n";
	size_t size = any ? s->response_trailers : 2;
	if (s->c->framed) {
		struct http_header headers[HTTP_HEADERS_MAX] = {0};
		ssize_t count = any ? http_parse_trailers(trailers, size, headers, HTTP_HEADERS_MAX, NULL) : 0;
		fine = count >= 0 && s->c->transport->end(s->c, headers, (size_t)count);
	} else if (s->framing == H1_FRAMING_CHUNKED) {
		fine = put_last_chunk(&s->out, trailers, size);
	}
	if (any)
		application_consume(a, size);
	s->response_trailers = 0;
	s->response = RESPONSE_DONE;
	if (!fine)
		give_up(s, "malformed trailers");
}

// Content that needs no framing of ours goes to the client's side as it is, except what finds room behind a head that waits.
static bool goes_straight(const struct h1 *s) {
	return s->framing != H1_FRAMING_CHUNKED && buffer_used(&s->out) == 0;
}

// Room for the next piece of the response's body.
static size_t response_room(struct h1 *s, bool in_trailers) {
	if (goes_straight(s))
		return SIZE_MAX;
	size_t need = in_trailers && s->framing == H1_FRAMING_CHUNKED ? LAST_CHUNK_ROOM : ROOM_MIN;
	if (!buffer_want(&edge_of(s)->buffers, &s->out, BUFFER_SMALL) || buffer_room(&s->out) < need)
		return 0;
	return in_trailers ? SIZE_MAX : buffer_room(&s->out) - CHUNK_FRAMING;
}

// Hands on what the application sent next, and takes it out of there. Returns the number of bytes, or a negative errno; 0: no room.
static ssize_t pass_response(struct h1 *s, size_t size, bool in_trailers) {
	struct application *a = &s->app;
	struct http_body before = s->response_body;
	struct slice content;
	ssize_t n = http_body_feed(&s->response_body, buffer_bytes(application_in(a)) + s->response_trailers, size, &content, NULL);
	if (n < 0)
		return n;
	if (!goes_straight(s)) {
		put_chunk(&s->out, content, s->framing == H1_FRAMING_CHUNKED);
	} else if (content.size > 0) {
		size_t taken = connection_write(s->c, content.data, content.size);
		if (taken < content.size) {
			// Decode again as much as was taken, and no more.
			s->response_body = before;
			size_t upto = (size_t)(content.data - (buffer_bytes(application_in(a)) + s->response_trailers)) + taken;
			n = upto == 0 || taken == 0
				    ? 0
				    : http_body_feed(&s->response_body, buffer_bytes(application_in(a)), upto, &content, NULL);
		}
		content.size = taken;
	}
	s->bytes_out += content.size;
	share_passed(edge_of(s), &s->share, content.size);
	if (in_trailers)
		s->response_trailers += (size_t)n;
	else if (n > 0)
		application_consume(a, (size_t)n);
	return n;
}

// Takes the next piece of the response's body. False when nothing can be done now.
static bool response_piece(struct h1 *s) {
	struct application *a = &s->app;
	size_t have = buffer_used(application_in(a)) - s->response_trailers;
	bool ends = s->response_body.kind == HTTP_BODY_UNTIL_CLOSE && application_eof(a) && !application_reset(a) && have == 0;
	if (have == 0 && !ends) {
		if (application_eof(a))
			give_up(s, "the application closed the connection within a response's body");
		return application_eof(a);
	}
	bool in_trailers = ends || http_body_in_trailers(&s->response_body);
	size_t room = ends || share_may_pass(edge_of(s), &s->share) ? response_room(s, in_trailers) : 0;
	if (room == 0)
		return false;
	if (ends) {
		response_ends(s);
		return true;
	}
	ssize_t n = pass_response(s, have < room ? have : room, in_trailers);
	if (n < 0) {
		give_up(s, "malformed response body");
		return true;
	}
	if (n == 0)
		return false;
	active(s);
	if (s->response_body.done)
		response_ends(s);
	return true;
}

static bool response_body(struct h1 *s) {
	bool moved = false;
	for (;;) {
		while (s->response == RESPONSE_BODY && s->c->phase == CONNECTION_OPEN && response_piece(s))
			moved = true;
		if (s->c->phase != CONNECTION_OPEN || s->response != RESPONSE_BODY)
			break;
		bool waits = buffer_used(&s->out) > 0;
		if (!drain(s) || !waits)
			break;
	}
	application_update(&s->app);
	return moved;
}

static bool response_done(struct h1 *s) {
	if (!drain(s))
		return false;
	struct connection *c = s->c;
	if (!s->request_done && s->keep && !application_broken(&s->app) && !application_eof(&s->app)) {
		// The application answered before the request was over, and both want to go on: so the rest is carried to it.
		if (c->deadline_ms == 0)
			connection_set_deadline(c, EDGE_GONE_MS);
		return false;
	}
	bool keep = s->keep && s->request_done, linger = !s->request_done, keep_upstream = s->upstream_keep && s->request_done;
	if (keep && !c->framed) {
		next_request(s, keep_upstream);
		return true;
	}
	end_request(s, keep_upstream);
	connection_finish(c, linger);
	return false;
}

static bool exchange_step(struct h1 *s) {
	if (may_have_left(s) && s->c->deadline_ms == 0)
		connection_set_deadline(s->c, EDGE_GONE_MS);
	bool moved = pump_request(s);
	if (s->state != H1_EXCHANGE || s->c->phase != CONNECTION_OPEN)
		return true;
	switch (s->response) {
	case RESPONSE_HEAD:
		return response_head(s) || moved;
	case RESPONSE_BODY:
		return response_body(s) || moved;
	default:
		return response_done(s) || moved;
	}
}

// Tunnels. --------------------------------------------------------------------------------------------------------------------

static bool tunnel_up(struct h1 *s) {
	struct connection *c = s->c;
	struct application *a = &s->app;
	bool moved = false;
	while (buffer_used(&c->in) > 0 && !application_broken(a) && share_may_pass(edge_of(s), &s->share) &&
	       application_reserve(a, BUFFER_SMALL) && application_room(a) > 0) {
		size_t n = buffer_used(&c->in) < application_room(a) ? buffer_used(&c->in) : application_room(a);
		buffer_append(application_out(a), buffer_bytes(&c->in), n);
		connection_consume(c, n);
		application_flush(a);
		s->bytes_in += n;
		share_passed(edge_of(s), &s->share, n);
		moved = true;
	}
	if (connection_input_ended(c) && !s->upstream->ending)
		application_end_output(a);
	return moved;
}

static bool tunnel_down(struct h1 *s) {
	struct connection *c = s->c;
	struct application *a = &s->app;
	bool moved = false;
	if (!drain(s))
		return false;
	while (buffer_used(application_in(a)) > 0 && share_may_pass(edge_of(s), &s->share)) {
		size_t n = connection_write(c, buffer_bytes(application_in(a)), buffer_used(application_in(a)));
		if (n == 0)
			break;
		application_consume(a, n);
		s->bytes_out += n;
		share_passed(edge_of(s), &s->share, n);
		moved = true;
	}
	application_update(a);
	if (application_eof(a) && buffer_used(application_in(a)) == 0)
		connection_half_close(c);
	return moved;
}

static bool tunnel_step(struct h1 *s) {
	struct connection *c = s->c;
	bool up = tunnel_up(s), down = tunnel_down(s), moved = up || down;
	if (moved)
		microvm_route_active(s->route);
	if (c->phase != CONNECTION_OPEN)
		return false;
	bool up_over = connection_input_ended(c) || application_broken(&s->app), down_over = c->half_closed;
	if (up_over && down_over) {
		end_request(s, false);
		connection_finish(c, false);
	} else if ((up_over || down_over) && (moved || c->deadline_ms == 0)) {
		connection_set_deadline(c, EDGE_GONE_MS);
	}
	return moved;
}

// The machine. ----------------------------------------------------------------------------------------------------------------

static bool answered(struct h1 *s) {
	if (!drain(s))
		return false;
	bool linger = !s->request_done;
	if (s->keep && !s->c->framed) {
		next_request(s, false);
		return true;
	}
	end_request(s, false);
	connection_finish(s->c, linger);
	return false;
}

static bool step(struct h1 *s) {
	switch (s->state) {
	case H1_READ:
		return read_head(s);
	case H1_HELD:
		if (may_have_left(s) && s->c->deadline_ms == 0)
			connection_set_deadline(s->c, HELD_GONE_MS);
		return false;
	case H1_OPENED:
		return after_open(s);
	case H1_CONNECT:
		return connect_step(s);
	case H1_EXCHANGE:
		return exchange_step(s);
	case H1_TUNNEL:
		return tunnel_step(s);
	default:
		return answered(s);
	}
}

static void run(struct connection *c) {
	struct h1 *s = c->session;
	if (s->app.u != NULL)
		application_advance(&s->app);
	while (c->phase == CONNECTION_OPEN && step(s))
		;
	if (s->app.u != NULL) {
		application_flush(&s->app);
		application_update(&s->app);
	} else if (s->upstream != NULL) {
		upstream_flush(s->upstream);
		upstream_update(s->upstream);
	}
}

static void expired(struct connection *c) {
	struct h1 *s = c->session;
	switch (s->state) {
	case H1_READ:
		if (!s->active) {
			connection_finish(c, false);
		} else {
			snprintf(s->method, sizeof(s->method), "-");
			s->keep = false;
			answer(s, 408, "Request timeout");
		}
		break;
	default:
		give_up(s, s->state == H1_HELD ? "the client left while its request was held" : "the client left");
		break;
	}
}

static void end(struct connection *c) {
	struct h1 *s = c->session;
	c->session = NULL;
	if (s->active && s->status == 0)
		s->status = 499;
	buffer_release(&c->edge->buffers, &s->out);
	end_request(s, false);
	s->c = NULL;
	if (!s->opening)
		free(s);
}

int h1_session_start(struct connection *c) {
	static const struct session_ops ops = {.run = run, .expired = expired, .end = end};
	struct h1 *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return -ENOMEM;
	s->c = c;
	c->session = s;
	c->ops = &ops;
	return 0;
}
