// HTTP/2 with a client; see h2_session.h.
//
// nghttp2 keeps the state of the protocol: it is fed with what was decrypted, and its frames are collected in one buffer, so that many small
// ones share a TLS record. Its callbacks only note what has happened; sessions of streams are run between feeding and sending.
//
// What a client may do to us is bounded: by SETTINGS (streams, size of heads), by windows that open only as content is consumed, by
// nghttp2 (resets, settings, pings and continuations in a row) and by the clocks in sweep().
#include "edge/h2_session.h"

#include "base/log.h"
#include "edge/h2_stream.h"

#include <stdlib.h>
#include <string.h>

#define FRAME_HEAD 9
#define ACKS_WAITING_MAX 128 // answers to PING and SETTINGS that a client may leave lying

// Fields. ---------------------------------------------------------------------------------------------------------------------

static void forget_block(struct h2 *h2) {
	struct h2_block *b = &h2->block;
	for (size_t i = 0; i < b->count; i++) {
		nghttp2_rcbuf_decref(b->fields[i].name);
		nghttp2_rcbuf_decref(b->fields[i].value);
	}
	b->count = b->bytes = 0;
	b->too_large = false;
	h2->in_block = false;
}

static int on_begin_headers(nghttp2_session *ng, const nghttp2_frame *frame, void *arg) {
	struct h2 *h2 = arg;
	forget_block(h2);
	h2->in_block = true;
	h2->block_since_ms = uv_now(h2->c->edge->engine->loop);
	if (frame->headers.cat != NGHTTP2_HCAT_REQUEST)
		return 0;
	struct h2_stream *st = h2_stream_new(h2, frame->hd.stream_id);
	if (st == NULL)
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	nghttp2_session_set_stream_user_data(ng, frame->hd.stream_id, st);
	return 0;
}

static int on_header(nghttp2_session *ng, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags, void *arg) {
	struct h2 *h2 = arg;
	struct h2_block *b = &h2->block;
	b->bytes += nghttp2_rcbuf_get_buf(name).len + nghttp2_rcbuf_get_buf(value).len + 4;
	if (b->count == H2_FIELDS_MAX || b->bytes > HTTP_HEAD_MAX) {
		b->too_large = true;
		return 0;
	}
	nghttp2_rcbuf_incref(name);
	nghttp2_rcbuf_incref(value);
	b->fields[b->count].name = name;
	b->fields[b->count++].value = value;
	return 0;
}

static int on_invalid_header(nghttp2_session *ng, const nghttp2_frame *frame, nghttp2_rcbuf *name, nghttp2_rcbuf *value, uint8_t flags,
			     void *arg) {
	nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_PROTOCOL_ERROR);
	return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
}

// Frames. ---------------------------------------------------------------------------------------------------------------------

static int on_frame(nghttp2_session *ng, const nghttp2_frame *frame, void *arg) {
	struct h2 *h2 = arg;
	bool ends = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0, fine = true;
	if (frame->hd.type != NGHTTP2_HEADERS && frame->hd.type != NGHTTP2_DATA)
		return 0;
	struct h2_stream *st = nghttp2_session_get_stream_user_data(ng, frame->hd.stream_id);
	if (frame->hd.type == NGHTTP2_HEADERS) {
		if (st != NULL && frame->headers.cat == NGHTTP2_HCAT_REQUEST)
			h2_stream_begin(st, &h2->block, ends);
		else if (st != NULL && ends)
			fine = h2_stream_input_end(st, &h2->block);
		forget_block(h2);
	} else if (st != NULL && ends) {
		fine = h2_stream_input_end(st, NULL);
	}
	if (!fine)
		nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_INTERNAL_ERROR);
	return 0;
}

static int on_data(nghttp2_session *ng, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *arg) {
	struct h2_stream *st = nghttp2_session_get_stream_user_data(ng, id);
	if (st == NULL)
		nghttp2_session_consume(ng, id, size);
	else if (!h2_stream_input(st, data, size))
		nghttp2_submit_rst_stream(ng, NGHTTP2_FLAG_NONE, id, NGHTTP2_FLOW_CONTROL_ERROR);
	return 0;
}

static int on_stream_close(nghttp2_session *ng, int32_t id, uint32_t code, void *arg) {
	struct h2 *h2 = arg;
	struct h2_stream *st = nghttp2_session_get_stream_user_data(ng, id);
	if (st != NULL)
		h2_stream_free(st);
	if (h2->open == 0)
		connection_set_deadline(h2->c, EDGE_KEEP_ALIVE_MS);
	return 0;
}

static int on_frame_sent(nghttp2_session *ng, const nghttp2_frame *frame, void *arg) {
	bool content = frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA;
	if (!content || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0)
		return 0;
	struct h2_stream *st = nghttp2_session_get_stream_user_data(ng, frame->hd.stream_id);
	if (st != NULL)
		h2_stream_end_sent(st);
	return 0;
}

// Sending. --------------------------------------------------------------------------------------------------------------------

static bool has_room(struct h2 *h2, size_t n) {
	if (!buffer_want(&h2->c->edge->buffers, &h2->out, BUFFER_SMALL))
		return false;
	if (buffer_room(&h2->out) < n)
		buffer_compact(&h2->out);
	return buffer_room(&h2->out) >= n;
}

static ssize_t on_send(nghttp2_session *ng, const uint8_t *data, size_t size, int flags, void *arg) {
	struct h2 *h2 = arg;
	size_t n = has_room(h2, 1) ? buffer_room(&h2->out) : 0;
	if (n == 0)
		return NGHTTP2_ERR_WOULDBLOCK;
	n = size < n ? size : n;
	buffer_append(&h2->out, data, n);
	return (ssize_t)n;
}

static int on_send_data(nghttp2_session *ng, nghttp2_frame *frame, const uint8_t *head, size_t size, nghttp2_data_source *source,
			void *arg) {
	struct h2 *h2 = arg;
	struct h2_stream *st = source->ptr;
	if (!has_room(h2, FRAME_HEAD + size))
		return NGHTTP2_ERR_WOULDBLOCK;
	buffer_append(&h2->out, head, FRAME_HEAD);
	if (size > 0) {
		buffer_append(&h2->out, buffer_bytes(&st->out), size);
		h2_stream_sent(st, size);
	}
	return 0;
}

// Encrypts what waits. True when all of it is gone.
static bool drain(struct h2 *h2) {
	while (buffer_used(&h2->out) > 0) {
		size_t n = connection_write(h2->c, buffer_bytes(&h2->out), buffer_used(&h2->out));
		if (n == 0)
			return false;
		buffer_consume(&h2->c->edge->buffers, &h2->out, n);
	}
	return true;
}

// The machine. ----------------------------------------------------------------------------------------------------------------

static bool feed(struct h2 *h2) {
	struct connection *c = h2->c;
	size_t size = buffer_used(&c->in);
	if (size == 0)
		return false;
	ssize_t n = nghttp2_session_mem_recv(h2->ng, (const uint8_t *)buffer_bytes(&c->in), size);
	if (n < 0) {
		log_info("edge.h2_failed", LOG_S("why", nghttp2_strerror((int)n)));
		connection_abort(c);
		return false;
	}
	connection_consume(c, (size_t)n);
	if (h2->open > 0)
		connection_set_deadline(c, 0);
	return true;
}

static bool run_ready(struct h2 *h2) {
	struct h2_stream *st;
	bool moved = false;
	while ((st = TAILQ_FIRST(&h2->ready)) != NULL) {
		TAILQ_REMOVE(&h2->ready, st, ready_link);
		st->ready = false;
		h2_stream_run(st);
		moved = true;
	}
	return moved;
}

static bool send_frames(struct h2 *h2) {
	do {
		if (nghttp2_session_send(h2->ng) != 0) {
			connection_abort(h2->c);
			return false;
		}
		if (buffer_used(&h2->out) == 0)
			return true;
	} while (drain(h2) && h2->c->phase == CONNECTION_OPEN);
	return false;
}

static void run(struct connection *c) {
	struct h2 *h2 = c->session;
	bool moved = true;
	while (moved && c->phase == CONNECTION_OPEN) {
		moved = feed(h2);
		moved |= c->phase == CONNECTION_OPEN && run_ready(h2);
		if (c->phase == CONNECTION_OPEN)
			send_frames(h2);
	}
	if (c->phase != CONNECTION_OPEN)
		return;
	bool over = !nghttp2_session_want_read(h2->ng) && !nghttp2_session_want_write(h2->ng);
	if (buffer_used(&h2->out) == 0 && (over || connection_input_ended(c)))
		connection_finish(c, false);
	else if (connection_input_ended(c))
		connection_abort(c);
}

// Nothing is under way, and has not been for a while; or the client has never begun.
static void expired(struct connection *c) {
	struct h2 *h2 = c->session;
	nghttp2_session_terminate_session(h2->ng, NGHTTP2_NO_ERROR);
	connection_set_deadline(c, EDGE_LINGER_MS);
	if (h2->expired)
		connection_abort(c);
	h2->expired = true;
}

static void sweep(struct connection *c, uint64_t now_ms) {
	struct h2 *h2 = c->session;
	if (h2->in_block && now_ms - h2->block_since_ms >= EDGE_HEAD_MS) {
		connection_abort(c);
		return;
	}
	struct h2_stream *st = TAILQ_FIRST(&h2->streams), *next;
	bool any = false;
	// Sweeping marks streams only; the pump below runs them, and may free any of them.
	for (; st != NULL; st = next) {
		next = TAILQ_NEXT(st, link);
		any |= h2_stream_sweep(st, now_ms);
	}
	if (any)
		connection_pump(c);
}

static void end(struct connection *c) {
	struct h2 *h2 = c->session;
	c->session = NULL;
	while (!TAILQ_EMPTY(&h2->streams))
		h2_stream_free(TAILQ_FIRST(&h2->streams));
	forget_block(h2);
	buffer_release(&c->edge->buffers, &h2->out);
	nghttp2_session_del(h2->ng);
	free(h2);
}

// Beginning. ------------------------------------------------------------------------------------------------------------------

static nghttp2_session_callbacks *make_callbacks(void) {
	nghttp2_session_callbacks *k;
	if (nghttp2_session_callbacks_new(&k) != 0)
		return NULL;
	nghttp2_session_callbacks_set_on_begin_headers_callback(k, on_begin_headers);
	nghttp2_session_callbacks_set_on_header_callback2(k, on_header);
	nghttp2_session_callbacks_set_on_invalid_header_callback2(k, on_invalid_header);
	nghttp2_session_callbacks_set_on_frame_recv_callback(k, on_frame);
	nghttp2_session_callbacks_set_on_data_chunk_recv_callback(k, on_data);
	nghttp2_session_callbacks_set_on_stream_close_callback(k, on_stream_close);
	nghttp2_session_callbacks_set_on_frame_send_callback(k, on_frame_sent);
	nghttp2_session_callbacks_set_send_callback(k, on_send);
	nghttp2_session_callbacks_set_send_data_callback(k, on_send_data);
	return k;
}

static int make_session(struct h2 *h2) {
	static nghttp2_session_callbacks *callbacks; // made once, on the loop thread, for as long as the program runs
	static nghttp2_option *options;
	if (callbacks == NULL)
		callbacks = make_callbacks();
	if (options == NULL && nghttp2_option_new(&options) == 0) {
		nghttp2_option_set_no_auto_window_update(options, 1);
		nghttp2_option_set_no_closed_streams(options, 1);
		nghttp2_option_set_max_outbound_ack(options, ACKS_WAITING_MAX);
	}
	static const nghttp2_settings_entry settings[] = {
		{NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, H2_STREAMS_MAX},
		{NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, H2_STREAM_WINDOW},
		{NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HTTP_HEAD_MAX},
		{NGHTTP2_SETTINGS_ENABLE_CONNECT_PROTOCOL, 1},
	};
	if (callbacks == NULL || options == NULL || nghttp2_session_server_new2(&h2->ng, callbacks, h2, options) != 0)
		return -ENOMEM;
	return nghttp2_submit_settings(h2->ng, NGHTTP2_FLAG_NONE, settings, sizeof(settings) / sizeof(settings[0])) == 0 &&
			       nghttp2_session_set_local_window_size(h2->ng, NGHTTP2_FLAG_NONE, 0, H2_CONNECTION_WINDOW) == 0
		       ? 0
		       : -ENOMEM;
}

int h2_session_start(struct connection *c) {
	static const struct session_ops ops = {.run = run, .expired = expired, .end = end, .sweep = sweep};
	struct h2 *h2 = calloc(1, sizeof(*h2));
	if (h2 == NULL)
		return -ENOMEM;
	h2->c = c;
	TAILQ_INIT(&h2->streams);
	TAILQ_INIT(&h2->ready);
	if (make_session(h2) < 0) {
		nghttp2_session_del(h2->ng);
		free(h2);
		return -ENOMEM;
	}
	c->session = h2;
	c->ops = &ops;
	return 0;
}
