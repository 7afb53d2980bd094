// One stream of an HTTP/2 connection as the connection of an HTTP/1.1 session; see h2_stream.h.
//
// The request: a block of fields becomes the text of a head in base.in, content follows it there and, when that is full, in up to four
// buffers behind it. The client's window is opened again only by what the session has consumed, so that no more than H2_STREAM_WINDOW can wait.
// The response: the head goes to nghttp2 at once, content waits in one buffer until nghttp2 takes it, trailers until content has gone.
#include "edge/h2_stream.h"

#include "base/clock.h"
#include "base/log.h"
#include "edge/h1_head.h"
#include "edge/h1_session.h"
#include "edge/h2_fields.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define COMPOSED_MAX 256 // bytes that a composed head may have besides the fields
#define STOP_MS 500      // a client may go on sending after its response

static struct h2_stream *stream_of(struct connection *c) {
	return (struct h2_stream *)(void *)c;
}

static struct buffer_pool *pool_of(struct h2_stream *st) {
	return &st->base.edge->buffers;
}

void h2_stream_ready(struct h2_stream *st) {
	if (st->ready)
		return;
	st->ready = true;
	TAILQ_INSERT_TAIL(&st->h2->ready, st, ready_link);
}

// The response. ---------------------------------------------------------------------------------------------------------------

static void resume(struct h2_stream *st) {
	if (!st->deferred)
		return;
	st->deferred = false;
	nghttp2_session_resume_data(st->h2->ng, st->id);
}

static void reset(struct h2_stream *st, uint32_t code) {
	nghttp2_submit_rst_stream(st->h2->ng, NGHTTP2_FLAG_NONE, st->id, code);
}

// Fields as nghttp2 wants them, valid until the next call. Returns how many, or -E2BIG.
static ssize_t make_fields(struct h2_stream *st, const struct http_header *headers, size_t count, nghttp2_nv *ret) {
	struct h2_names names = h2_names_in(st->base.edge);
	for (size_t i = 0; i < count; i++) {
		struct slice name = headers[i].name;
		if (!h2_lower(&names, &name))
			return -E2BIG;
		ret[i] = h2_field(name, headers[i].value);
	}
	return (ssize_t)count;
}

static ssize_t on_read(nghttp2_session *ng, int32_t id, uint8_t *to, size_t room, uint32_t *flags, nghttp2_data_source *source, void *arg) {
	return h2_stream_read(source->ptr, room, flags);
}

// A WebSocket over HTTP/2 is open with 200 where HTTP/1.1 says 101 (RFC 8441 section 5), and so any other success of the application's would
// pass for one.
static bool judge_handshake(struct h2_stream *st, int *status, const struct http_header *headers, size_t count) {
	if (*status != 101)
		return st->accept[0] == '\0' || *status < 200 || *status >= 300;
	*status = 200;
	for (size_t i = 0; st->accept[0] != '\0' && i < count; i++)
		if (slice_equals_nocase(headers[i].name, "sec-websocket-accept"))
			return slice_equals(headers[i].value, st->accept);
	return false;
}

static bool put_head(struct connection *c, int status, const struct http_header *headers, size_t count, bool ends) {
	struct h2_stream *st = stream_of(c);
	bool switching = status == 101;
	char text[12];
	nghttp2_nv nv[H1_HEADERS_MAX + 3];
	if (!judge_handshake(st, &status, headers, count))
		return false;
	snprintf(text, sizeof(text), "%03d", status);
	nv[0] = h2_field(SLICE(":status"), (struct slice){text, 3});
	ssize_t n = make_fields(st, headers, count, nv + 1);
	if (n < 0)
		return false;
	size_t fields = 1;
	for (ssize_t i = 1; i <= n; i++)
		if (!switching || nv[i].namelen != 20 || memcmp(nv[i].name, "sec-websocket-accept", 20) != 0)
			nv[fields++] = nv[i];
	if (status < 200)
		return nghttp2_submit_headers(st->h2->ng, NGHTTP2_FLAG_NONE, st->id, NULL, nv, fields, NULL) == 0;
	nghttp2_data_provider provider = {.source.ptr = st, .read_callback = on_read};
	st->answered = nghttp2_submit_response(st->h2->ng, st->id, nv, fields, ends ? NULL : &provider) == 0;
	st->ended |= st->answered && ends;
	return st->answered;
}

static size_t put_content(struct connection *c, const void *data, size_t size) {
	struct h2_stream *st = stream_of(c);
	if (c->phase != CONNECTION_OPEN || c->half_closed || size == 0)
		return 0;
	size_t n = 0;
	if (buffer_want(pool_of(st), &st->out, BUFFER_SMALL)) {
		if (buffer_room(&st->out) < size)
			buffer_compact(&st->out);
		n = size < buffer_room(&st->out) ? size : buffer_room(&st->out);
		buffer_append(&st->out, data, n);
	}
	c->blocked = n < size;
	if (st->blocked_since_ms == 0)
		st->blocked_since_ms = uv_now(c->edge->engine->loop);
	resume(st);
	return n;
}

static bool put_end(struct connection *c, const struct http_header *trailers, size_t count) {
	struct h2_stream *st = stream_of(c);
	if (count > 0) {
		if (!buffer_want(pool_of(st), &st->trailers, BUFFER_SMALL))
			return false;
		struct writer w = writer_over(st->trailers.data, st->trailers.capacity);
		h1_write_trailers(&w, trailers, count);
		if (w.bad)
			return false;
		st->trailers.end = st->trailers.capacity - (uint32_t)w.left;
		if (buffer_used(&st->trailers) <= 2)
			buffer_release(pool_of(st), &st->trailers);
	}
	st->ended = true;
	resume(st);
	return true;
}

static bool submit_trailers(struct h2_stream *st) {
	struct http_header headers[HTTP_HEADERS_MAX];
	nghttp2_nv nv[HTTP_HEADERS_MAX];
	ssize_t count = http_parse_trailers(buffer_bytes(&st->trailers), buffer_used(&st->trailers), headers, HTTP_HEADERS_MAX, NULL);
	ssize_t n = count < 0 ? count : make_fields(st, headers, (size_t)count, nv);
	return n >= 0 && nghttp2_submit_trailer(st->h2->ng, st->id, nv, (size_t)n) == 0;
}

ssize_t h2_stream_read(struct h2_stream *st, size_t room, uint32_t *flags) {
	size_t used = buffer_used(&st->out), n = used < room ? used : room;
	if (n == 0 && !st->ended) {
		st->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	if (n == 0 && st->broken)
		return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE; // resets the stream
	*flags |= NGHTTP2_DATA_FLAG_NO_COPY;
	if (n == used && st->ended && !st->broken) {
		*flags |= NGHTTP2_DATA_FLAG_EOF;
		if (buffer_used(&st->trailers) > 0) {
			*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
			if (!submit_trailers(st))
				return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
		}
	}
	return (ssize_t)n;
}

void h2_stream_sent(struct h2_stream *st, size_t n) {
	buffer_consume(pool_of(st), &st->out, n);
	st->blocked_since_ms = buffer_used(&st->out) > 0 ? uv_now(st->base.edge->engine->loop) : 0;
	if (st->base.blocked)
		h2_stream_ready(st);
}

// The whole response is sent, and the client still sends: what comes is dropped, and after a moment it is told to stop (RFC 9113 section 8.1). Not
// at once: clients such as curl 7.88 take a reset while they send for an error, and never look at the response.
static void stop_soon(struct h2_stream *st) {
	if (st->stop_ms == 0)
		st->stop_ms = uv_now(st->base.edge->engine->loop) + STOP_MS;
}

void h2_stream_end_sent(struct h2_stream *st) {
	st->end_sent = true;
	// What the client still sends is of no use to anybody (RFC 9113 section 8.1).
	if (!st->base.eof && st->base.phase != CONNECTION_OPEN)
		stop_soon(st);
}

// The transport. --------------------------------------------------------------------------------------------------------------

static bool input_waits(const struct connection *c) {
	return ((const struct h2_stream *)(const void *)c)->waiting_count > 0;
}

// Opens the client's windows by what has been consumed.
static void credit(struct h2_stream *st, size_t n) {
	st->owed -= n;
	nghttp2_session_consume(st->h2->ng, st->id, n);
}

static void consumed(struct connection *c, size_t n) {
	struct h2_stream *st = stream_of(c);
	size_t of_head = n < st->head_left ? n : st->head_left;
	st->head_left -= of_head;
	st->h2->head_bytes -= of_head;
	if (n > of_head)
		credit(st, n - of_head);
	if (buffer_used(&c->in) == 0 && st->waiting_count > 0) {
		c->in = st->waiting[0];
		memmove(&st->waiting[0], &st->waiting[1], --st->waiting_count * sizeof(st->waiting[0]));
		st->waiting[st->waiting_count] = (struct buffer){0};
	}
}

static void set_idle(struct connection *c, bool idle) {
	struct h2 *h2 = stream_of(c)->h2;
	if (c->idle == idle)
		return;
	c->idle = idle;
	h2->busy = idle ? h2->busy - 1 : h2->busy + 1;
	connection_set_idle(h2->c, h2->busy == 0);
}

static void pump(struct connection *c) {
	c->again = true;
	h2_stream_ready(stream_of(c));
	edge_pump_later(c->edge, stream_of(c)->h2->c);
}

static void finish(struct connection *c, bool linger) {
	struct h2_stream *st = stream_of(c);
	if (c->phase != CONNECTION_OPEN)
		return;
	c->phase = CONNECTION_FINISHING;
	c->deadline_ms = 0;
	if (!st->answered) {
		reset(st, NGHTTP2_INTERNAL_ERROR);
	} else if (!st->ended) {
		st->ended = true;
		resume(st);
	} else if (st->end_sent && !c->eof) {
		stop_soon(st);
	}
}

static void half_close(struct connection *c) {
	struct h2_stream *st = stream_of(c);
	c->half_closed = st->ended = true;
	resume(st);
}

static void abort_now(struct connection *c) {
	struct h2_stream *st = stream_of(c);
	if (c->phase == CONNECTION_CLOSED)
		return;
	c->phase = CONNECTION_CLOSED;
	if (!st->answered) {
		reset(st, NGHTTP2_INTERNAL_ERROR);
	} else if (!st->ended) {
		// What has come so far is the client's; then it sees the break.
		st->ended = st->broken = true;
		resume(st);
	} else if (st->end_sent && !c->eof) {
		stop_soon(st);
	}
}

static struct slice request_trailers(const struct connection *c) {
	const struct buffer *b = &((const struct h2_stream *)(const void *)c)->in_end;
	return buffer_used(b) > 0 ? (struct slice){buffer_bytes(b), buffer_used(b)} : SLICE("\r\n");
}

static const struct transport_ops stream_transport = {
	.write = put_content,
	.waits = input_waits,
	.consumed = consumed,
	.idle = set_idle,
	.pump = pump,
	.finish = finish,
	.half_close = half_close,
	.abort = abort_now,
	.head = put_head,
	.end = put_end,
	.trailers = request_trailers,
};

// Once the session has ended: what it had not consumed is given back.
static void settle(struct h2_stream *st) {
	struct connection *c = &st->base;
	if (c->phase == CONNECTION_OPEN)
		return;
	if (c->ops != NULL) {
		c->ops->end(c);
		c->ops = NULL;
	}
	set_idle(c, true);
	buffer_release(pool_of(st), &c->in);
	while (st->waiting_count > 0)
		buffer_release(pool_of(st), &st->waiting[--st->waiting_count]);
	buffer_release(pool_of(st), &st->in_end);
	st->h2->head_bytes -= st->head_left;
	st->head_left = 0;
	if (st->owed > 0)
		credit(st, st->owed);
}

void h2_stream_run(struct h2_stream *st) {
	struct connection *c = &st->base;
	do {
		c->again = c->blocked = false;
		if (c->phase == CONNECTION_OPEN && c->ops != NULL)
			c->ops->run(c);
	} while (c->again && c->phase == CONNECTION_OPEN);
	settle(st);
}

struct h2_stream *h2_stream_new(struct h2 *h2, int32_t id) {
	struct h2_stream *st = calloc(1, sizeof(*st));
	if (st == NULL)
		return NULL;
	st->base = (struct connection){.edge = h2->c->edge, .transport = &stream_transport, .framed = true, .idle = true};
	st->h2 = h2;
	st->id = id;
	TAILQ_INSERT_TAIL(&h2->streams, st, link);
	h2->open++;
	return st;
}

void h2_stream_free(struct h2_stream *st) {
	struct h2 *h2 = st->h2;
	st->base.phase = CONNECTION_CLOSED;
	settle(st);
	edge_forget_later(h2->c->edge, &st->base);
	buffer_release(pool_of(st), &st->out);
	buffer_release(pool_of(st), &st->trailers);
	if (st->ready)
		TAILQ_REMOVE(&h2->ready, st, ready_link);
	TAILQ_REMOVE(&h2->streams, st, link);
	h2->open--;
	free(st);
}

bool h2_stream_sweep(struct h2_stream *st, uint64_t now_ms) {
	struct connection *c = &st->base;
	if (st->blocked_since_ms != 0 && now_ms - st->blocked_since_ms >= EDGE_STALL_MS) {
		log_info("edge.stalled", LOG_S("message", "a client took nothing of a stream for five minutes; it was reset"));
		st->blocked_since_ms = 0;
		reset(st, NGHTTP2_CANCEL);
		return true;
	}
	if (st->stop_ms != 0 && now_ms >= st->stop_ms) {
		st->stop_ms = 0;
		reset(st, NGHTTP2_NO_ERROR);
		return true;
	}
	if (c->deadline_ms == 0 || now_ms < c->deadline_ms)
		return false;
	c->deadline_ms = 0;
	if (c->phase == CONNECTION_OPEN && c->ops != NULL)
		c->ops->expired(c);
	h2_stream_ready(st);
	return true;
}

// The request. ----------------------------------------------------------------------------------------------------------------

// An answer of our own to a head that is not worth a session.
static void refuse(struct h2_stream *st, int status, const char *text) {
	struct h1_answer a;
	h1_make_answer(&a, status, text, (int64_t)(realtime_ms() / 1000));
	if (put_head(&st->base, status, a.headers, a.count, false) && put_content(&st->base, text, strlen(text)) == strlen(text))
		put_end(&st->base, NULL, 0);
	log_info("edge.request", LOG_S("microvmId", ""), LOG_S("method", "-"), LOG_U("status", status));
	finish(&st->base, false);
	h2_stream_ready(st);
}

static struct slice text_of(nghttp2_rcbuf *b) {
	nghttp2_vec v = nghttp2_rcbuf_get_buf(b);
	return (struct slice){(const char *)v.base, v.len};
}

// What a head is made of; nghttp2 has checked that pseudo-header fields come first and once.
struct parts {
	struct slice method, path, authority, protocol, host;
	size_t hosts, cookies;
	bool forbidden;
};

static bool is_cookie(struct slice name) {
	return slice_equals(name, "cookie");
}

// Fields that say how HTTP/1.1 frames messages have no place in HTTP/2 (RFC 9113 section 8.2.2).
static bool is_forbidden(struct slice name) {
	static const char *const names[] = {"connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (slice_equals_nocase(name, names[i]))
			return true;
	return false;
}

// No space, no control character: nothing that could end a line or a word in the text of the head.
static bool is_one_word(struct slice s) {
	for (size_t i = 0; i < s.size; i++)
		if ((unsigned char)s.data[i] <= ' ' || s.data[i] == 0x7f)
			return false;
	return true;
}

static bool has_line_break(struct slice s) {
	for (size_t i = 0; i < s.size; i++)
		if (s.data[i] == '\r' || s.data[i] == '\n' || s.data[i] == '\0')
			return true;
	return false;
}

static struct parts take_apart(const struct h2_block *b) {
	struct parts p = {0};
	for (size_t i = 0; i < b->count; i++) {
		struct slice name = text_of(b->fields[i].name), value = text_of(b->fields[i].value);
		p.forbidden |= has_line_break(value) || is_forbidden(name);
		if (slice_equals(name, ":method"))
			p.method = value;
		else if (slice_equals(name, ":path"))
			p.path = value;
		else if (slice_equals(name, ":authority"))
			p.authority = value;
		else if (slice_equals(name, ":protocol"))
			p.protocol = value;
		else if (slice_equals(name, "host")) {
			p.host = value;
			p.hosts++;
		} else if (is_cookie(name))
			p.cookies++;
		else if (name.size == 0 || (name.data[0] != ':' && !slice_is_token(name)))
			p.forbidden = true;
	}
	return p;
}

static bool in_order(const struct parts *p) {
	bool same_host = p->hosts == 0 ||
			 (p->hosts == 1 && (p->authority.size == 0 || (p->host.size == p->authority.size &&
								       strncasecmp(p->host.data, p->authority.data, p->host.size) == 0)));
	bool path = p->path.size > 0 && (p->path.data[0] == '/' || slice_equals(p->path, "*"));
	return !p->forbidden && same_host && path && is_one_word(p->method) && is_one_word(p->path) && is_one_word(p->authority);
}

static void put(struct writer *w, const char *text) {
	write_bytes(w, text, strlen(text));
}

static void put_line(struct writer *w, const char *name, struct slice value) {
	put(w, name);
	put(w, ": ");
	write_bytes(w, value.data, value.size);
	put(w, "\r\n");
}

// Cookies that came in pieces become one field (RFC 9113 section 8.2.3).
static void put_cookies(struct writer *w, const struct h2_block *b) {
	const char *before = "cookie: ";
	for (size_t i = 0; i < b->count; i++) {
		if (!is_cookie(text_of(b->fields[i].name)))
			continue;
		struct slice value = text_of(b->fields[i].value);
		put(w, before);
		write_bytes(w, value.data, value.size);
		before = "; ";
	}
	put(w, "\r\n");
}

// The handshake of HTTP/1.1 has a key of its own (RFC 6455 section 4.2.2), which is ours to make and to check.
static bool put_handshake(struct h2_stream *st, struct writer *w) {
	char key[WS_KEY_TEXT];
	if (!ws_key_new(key) || !ws_key_accept(key, strlen(key), st->accept))
		return false;
	put(w, "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: ");
	put(w, key);
	put(w, "\r\n");
	return true;
}

static bool compose(struct h2_stream *st, const struct h2_block *b, const struct parts *p, bool ends, struct writer *w) {
	bool websocket = p->protocol.size > 0, length = false;
	write_bytes(w, websocket ? "GET" : p->method.data, websocket ? 3 : p->method.size);
	put(w, " ");
	write_bytes(w, p->path.data, p->path.size);
	put(w, " HTTP/1.1\r\n");
	put_line(w, "host", p->authority.size > 0 ? p->authority : p->host);
	for (size_t i = 0; i < b->count; i++) {
		struct slice name = text_of(b->fields[i].name), value = text_of(b->fields[i].value);
		if (name.data[0] == ':' || slice_equals(name, "host") || is_cookie(name) ||
		    (websocket && (slice_equals(name, "sec-websocket-key") || slice_equals(name, "content-length"))))
			continue;
		length |= slice_equals(name, "content-length");
		write_bytes(w, name.data, name.size);
		put(w, ": ");
		write_bytes(w, value.data, value.size);
		put(w, "\r\n");
	}
	if (p->cookies > 0)
		put_cookies(w, b);
	if (websocket && !put_handshake(st, w))
		return false;
	if (!websocket && !ends && !length)
		put(w, "transfer-encoding: chunked\r\n");
	put(w, "\r\n");
	return !w->bad;
}

void h2_stream_begin(struct h2_stream *st, const struct h2_block *b, bool ends) {
	struct connection *c = &st->base;
	c->eof = ends;
	size_t need = b->bytes + COMPOSED_MAX;
	if (b->too_large || need > HTTP_HEAD_MAX) {
		refuse(st, 431, "Request header fields too large");
		return;
	}
	struct parts p = take_apart(b);
	bool connect = slice_equals(p.method, "CONNECT"), websocket = connect && slice_equals(p.protocol, "websocket");
	if (!in_order(&p) || connect != websocket) {
		refuse(st, 400, "Bad request");
		return;
	}
	uint32_t capacity = need <= BUFFER_TINY ? BUFFER_TINY : need <= BUFFER_SMALL ? BUFFER_SMALL : BUFFER_LARGE;
	if (st->h2->head_bytes + need > H2_HEADS_MAX || !buffer_want(pool_of(st), &c->in, capacity)) {
		reset(st, NGHTTP2_REFUSED_STREAM); // may be tried again
		return;
	}
	struct writer w = writer_over(c->in.data, c->in.capacity);
	if (!compose(st, b, &p, ends, &w) || h1_session_start(c) < 0) {
		reset(st, NGHTTP2_INTERNAL_ERROR);
		return;
	}
	c->in.end = c->in.capacity - (uint32_t)w.left;
	st->head_left = buffer_used(&c->in);
	st->h2->head_bytes += st->head_left;
	h2_stream_ready(st);
}

bool h2_stream_input(struct h2_stream *st, const uint8_t *data, size_t size) {
	struct connection *c = &st->base;
	st->owed += size;
	if (c->phase != CONNECTION_OPEN || c->ops == NULL) {
		credit(st, size);
		return true;
	}
	while (size > 0) {
		struct buffer *to = st->waiting_count > 0 ? &st->waiting[st->waiting_count - 1] : &c->in;
		if (to->data != NULL && buffer_room(to) == 0) {
			if (st->waiting_count == H2_WAITING_MAX)
				return false; // the client has sent more than its window
			to = &st->waiting[st->waiting_count++];
		}
		if (to->data == NULL && !buffer_want(pool_of(st), to, BUFFER_SMALL))
			return false;
		size_t n = size < buffer_room(to) ? size : buffer_room(to);
		buffer_append(to, data, n);
		data += n;
		size -= n;
	}
	h2_stream_ready(st);
	return true;
}

bool h2_stream_input_end(struct h2_stream *st, const struct h2_block *trailers) {
	struct connection *c = &st->base;
	c->eof = true;
	h2_stream_ready(st);
	if (trailers == NULL || c->phase != CONNECTION_OPEN)
		return true;
	if (trailers->too_large || trailers->bytes > HTTP_TRAILER_MAX || !buffer_want(pool_of(st), &st->in_end, BUFFER_SMALL))
		return false;
	struct writer w = writer_over(st->in_end.data, st->in_end.capacity);
	for (size_t i = 0; i < trailers->count; i++) {
		struct slice name = text_of(trailers->fields[i].name), value = text_of(trailers->fields[i].value);
		if (!slice_is_token(name) || has_line_break(value))
			return false;
		write_bytes(&w, name.data, name.size);
		put(&w, ": ");
		write_bytes(&w, value.data, value.size);
		put(&w, "\r\n");
	}
	put(&w, "\r\n");
	st->in_end.end = st->in_end.capacity - (uint32_t)w.left;
	return !w.bad;
}
