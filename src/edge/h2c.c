// HTTP/2 towards an application; see h2c.h.
//
// Request: the session writes a head, content in its framing and trailers into side.out; the head is parsed with the one parser and submitted,
// content is decoded when nghttp2 asks for it. Response: frames are fed to nghttp2 only while side.in has room for what they may
// become, so that its windows open no faster than the client takes the content.
#include "edge/h2c.h"

#include "base/log.h"
#include "edge/h2_fields.h"

#include <nghttp2/nghttp2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FEED_MAX 4096                                 // bytes of frames at a time
#define FEED_ROOM (FEED_MAX + HTTP_TRAILER_MAX + 256) // what they may become, a head apart
#define FIELDS_ROOM 64                                // what a head has besides its fields
#define WINDOW (64 * 1024)

struct h2c {
	struct application_side side; // first
	struct upstream *u;
	nghttp2_session *ng;
	int32_t id;                    // of the stream; 0: the head has not come yet
	struct http_body request_body; // as the session frames it
	bool deferred;
	bool answered;      // a final head has come
	bool chunked;       // content goes on in chunks
	bool complete;      // the response is over
	struct buffer head; // header lines of the block that is coming
	char status[4];
	bool has_length, too_large;
};

static struct edge *edge_of(struct h2c *h) {
	return h->u->edge;
}

static void fail(struct h2c *h) {
	h->side.eof = h->side.broken = true;
	h->side.reset |= !h->complete;
}

// The response. ---------------------------------------------------------------------------------------------------------------

static bool want_in(struct h2c *h, size_t room) {
	if (!buffer_want(&edge_of(h)->buffers, &h->side.in, BUFFER_LARGE))
		return false;
	if (buffer_room(&h->side.in) < room)
		buffer_compact(&h->side.in);
	return buffer_room(&h->side.in) >= room;
}

static void put(struct h2c *h, const char *text) {
	buffer_append(&h->side.in, text, strlen(text));
}

static int on_begin_headers(nghttp2_session *ng, const nghttp2_frame *frame, void *arg) {
	struct h2c *h = arg;
	buffer_release(&edge_of(h)->buffers, &h->head);
	h->has_length = h->too_large = false;
	return 0;
}

static int on_header(nghttp2_session *ng, const nghttp2_frame *frame, const uint8_t *name, size_t name_size, const uint8_t *value,
		     size_t value_size, uint8_t flags, void *arg) {
	struct h2c *h = arg;
	if (name_size == 7 && memcmp(name, ":status", 7) == 0 && value_size == 3)
		memcpy(h->status, value, 3);
	if (name_size == 0 || name[0] == ':')
		return 0;
	h->has_length |= name_size == 14 && memcmp(name, "content-length", 14) == 0;
	if (!buffer_want(&edge_of(h)->buffers, &h->head, BUFFER_LARGE) ||
	    buffer_used(&h->head) + name_size + value_size + 4 > HTTP_HEAD_MAX - FIELDS_ROOM) {
		h->too_large = true;
		return 0;
	}
	buffer_append(&h->head, name, name_size);
	buffer_append(&h->head, ": ", 2);
	buffer_append(&h->head, value, value_size);
	buffer_append(&h->head, "\r\n", 2);
	return 0;
}

// An empty line ends the header lines that have come.
static bool put_lines(struct h2c *h, const char *before, const char *after) {
	if (h->too_large || !want_in(h, buffer_used(&h->head) + FIELDS_ROOM))
		return false;
	put(h, before);
	if (buffer_used(&h->head) > 0)
		buffer_append(&h->side.in, buffer_bytes(&h->head), buffer_used(&h->head));
	put(h, after);
	buffer_release(&edge_of(h)->buffers, &h->head);
	return true;
}

static bool take_head(struct h2c *h, bool ends) {
	char line[32];
	snprintf(line, sizeof(line), "HTTP/1.1 %.3s \r\n", h->status);
	bool final = h->status[0] != '1';
	h->answered = final;
	h->complete = final && ends;
	h->chunked = final && !ends && !h->has_length;
	// A response that is over with its head is known to be empty, unless it says what a body would have been (HEAD, 304).
	bool empty = h->complete && !h->has_length && memcmp(h->status, "204", 3) != 0 && memcmp(h->status, "304", 3) != 0;
	return put_lines(h, line, empty ? "content-length: 0\r\n\r\n" : h->chunked ? "transfer-encoding: chunked\r\n\r\n" : "\r\n");
}

static bool take_end(struct h2c *h, bool with_trailers) {
	h->complete = true;
	if (!h->chunked)
		return true;
	if (with_trailers)
		return buffer_used(&h->head) <= HTTP_TRAILER_MAX - 2 && put_lines(h, "0\r\n", "\r\n");
	if (!want_in(h, FIELDS_ROOM))
		return false;
	put(h, "0\r\n\r\n");
	return true;
}

static int on_frame(nghttp2_session *ng, const nghttp2_frame *frame, void *arg) {
	struct h2c *h = arg;
	bool ends = (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) != 0, fine = true;
	if (frame->hd.stream_id == 0 || frame->hd.stream_id != h->id)
		return 0;
	if (frame->hd.type == NGHTTP2_HEADERS || ends)
		upstream_answered(h->u);
	if (frame->hd.type == NGHTTP2_HEADERS && !h->answered)
		fine = take_head(h, ends);
	else if (frame->hd.type == NGHTTP2_HEADERS && ends)
		fine = take_end(h, true);
	else if (frame->hd.type == NGHTTP2_DATA && ends)
		fine = take_end(h, false);
	return fine ? 0 : NGHTTP2_ERR_CALLBACK_FAILURE;
}

static int on_data(nghttp2_session *ng, uint8_t flags, int32_t id, const uint8_t *data, size_t size, void *arg) {
	struct h2c *h = arg;
	char line[32];
	upstream_answered(h->u);
	if (!want_in(h, size + sizeof(line)))
		return NGHTTP2_ERR_CALLBACK_FAILURE;
	if (h->chunked && size > 0) {
		snprintf(line, sizeof(line), "%zx\r\n", size);
		put(h, line);
	}
	buffer_append(&h->side.in, data, size);
	if (h->chunked && size > 0)
		put(h, "\r\n");
	return 0;
}

static int on_stream_close(nghttp2_session *ng, int32_t id, uint32_t code, void *arg) {
	if (id == ((struct h2c *)arg)->id)
		fail(arg);
	return 0;
}

// Feeds nghttp2 while there is room for what comes of it.
static bool pull(struct h2c *h) {
	struct upstream *u = h->u;
	bool moved = false;
	while (buffer_used(&u->in) > 0 && !h->side.eof) {
		// A head may take the whole buffer; behind content only trailers come.
		if (!h->answered && buffer_used(&h->side.in) > 0)
			break;
		if (!want_in(h, FEED_ROOM))
			break;
		size_t n = buffer_used(&u->in) < FEED_MAX ? buffer_used(&u->in) : FEED_MAX;
		ssize_t taken = nghttp2_session_mem_recv(h->ng, (const uint8_t *)buffer_bytes(&u->in), n);
		if (taken < 0) {
			log_debug("edge.h2c_failed", LOG_S("why", nghttp2_strerror((int)taken)));
			fail(h);
			break;
		}
		upstream_consume(u, (size_t)taken);
		moved = true;
	}
	if (buffer_used(&h->side.in) == 0)
		buffer_release(&edge_of(h)->buffers, &h->side.in);
	if (u->eof && buffer_used(&u->in) == 0)
		fail(h);
	if (!nghttp2_session_want_read(h->ng) && !nghttp2_session_want_write(h->ng))
		fail(h);
	return moved;
}

// The request. ----------------------------------------------------------------------------------------------------------------

static bool submit_trailers(struct h2c *h, const char *text, size_t size) {
	struct http_header headers[HTTP_HEADERS_MAX];
	nghttp2_nv nv[HTTP_HEADERS_MAX];
	ssize_t count = http_parse_trailers(text, size, headers, HTTP_HEADERS_MAX, NULL);
	if (count <= 0)
		return false;
	struct h2_names names = h2_names_in(edge_of(h));
	for (ssize_t i = 0; i < count; i++) {
		if (!h2_lower(&names, &headers[i].name))
			return false;
		nv[i] = h2_field(headers[i].name, headers[i].value);
	}
	return nghttp2_submit_trailer(h->ng, h->id, nv, (size_t)count) == 0;
}

// The last of side.out: a whole trailer section, since the session writes it in one piece.
static void end_of_content(struct h2c *h, uint32_t *flags) {
	struct slice none;
	struct buffer *out = &h->side.out;
	ssize_t n = http_body_feed(&h->request_body, buffer_bytes(out), buffer_used(out), &none, NULL);
	if (n < 0 || !h->request_body.done)
		return;
	*flags |= NGHTTP2_DATA_FLAG_EOF;
	if (n > 2 && submit_trailers(h, buffer_bytes(out), (size_t)n))
		*flags |= NGHTTP2_DATA_FLAG_NO_END_STREAM;
	buffer_consume(&edge_of(h)->buffers, out, (size_t)n);
}

static ssize_t on_read(nghttp2_session *ng, int32_t id, uint8_t *to, size_t room, uint32_t *flags, nghttp2_data_source *source, void *arg) {
	struct h2c *h = arg;
	struct buffer *out = &h->side.out;
	size_t done = 0;
	while (done < room && buffer_used(out) > 0 && !h->request_body.done && !http_body_in_trailers(&h->request_body)) {
		struct slice content;
		size_t size = buffer_used(out) < room - done ? buffer_used(out) : room - done;
		ssize_t n = http_body_feed(&h->request_body, buffer_bytes(out), size, &content, NULL);
		if (n < 0)
			return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
		memcpy(to + done, content.data, content.size);
		done += content.size;
		buffer_consume(&edge_of(h)->buffers, out, (size_t)n);
	}
	if (h->request_body.done)
		*flags |= NGHTTP2_DATA_FLAG_EOF;
	else if (buffer_used(out) > 0 && http_body_in_trailers(&h->request_body))
		end_of_content(h, flags);
	if (done == 0 && (*flags & NGHTTP2_DATA_FLAG_EOF) == 0) {
		h->deferred = true;
		return NGHTTP2_ERR_DEFERRED;
	}
	upstream_asked(h->u);
	return (ssize_t)done;
}

// The head that the session has written, as a request of HTTP/2.
static bool submit(struct h2c *h) {
	struct http_head *head = &edge_of(h)->head;
	struct buffer *out = &h->side.out;
	nghttp2_nv nv[HTTP_HEADERS_MAX + 5];
	ssize_t size = http_parse_request(buffer_bytes(out), buffer_used(out), head, NULL);
	if (size <= 0)
		return false;
	const struct http_header *host = http_find(head, "host");
	size_t n = 0;
	nv[n++] = h2_field(SLICE(":method"), head->method);
	nv[n++] = h2_field(SLICE(":scheme"), SLICE("http"));
	nv[n++] = h2_field(SLICE(":authority"), host != NULL ? host->value : SLICE("localhost"));
	nv[n++] = h2_field(SLICE(":path"), head->target);
	struct h2_names names = h2_names_in(edge_of(h));
	for (size_t i = 0; i < head->header_count; i++) {
		struct slice name = head->headers[i].name;
		if (slice_equals_nocase(name, "host") || slice_equals_nocase(name, "connection") || slice_equals_nocase(name, "upgrade") ||
		    slice_equals_nocase(name, "transfer-encoding"))
			continue;
		if (!h2_lower(&names, &name))
			return false;
		nv[n++] = h2_field(name, head->headers[i].value);
	}
	nv[n++] = h2_field(SLICE("te"), SLICE("trailers")); // the edge passes them on; gRPC servers insist
	http_body_start(&h->request_body, head);
	nghttp2_data_provider provider = {.read_callback = on_read};
	h->id = nghttp2_submit_request(h->ng, NULL, nv, n, h->request_body.done ? NULL : &provider, NULL);
	buffer_consume(&edge_of(h)->buffers, out, (size_t)size);
	upstream_asked(h->u);
	return h->id > 0;
}

static ssize_t on_send(nghttp2_session *ng, const uint8_t *data, size_t size, int flags, void *arg) {
	struct upstream *u = ((struct h2c *)arg)->u;
	size_t room = upstream_reserve(u, BUFFER_SMALL) ? upstream_room(u) : 0, n = size < room ? size : room;
	if (n == 0)
		return NGHTTP2_ERR_WOULDBLOCK;
	upstream_append(u, data, n);
	return (ssize_t)n;
}

static void push(struct h2c *h) {
	if (h->side.broken)
		return;
	if (h->id == 0 && buffer_used(&h->side.out) > 0 && !submit(h)) {
		fail(h);
		return;
	}
	if (h->deferred && buffer_used(&h->side.out) > 0) {
		h->deferred = false;
		nghttp2_session_resume_data(h->ng, h->id);
	}
	if (nghttp2_session_send(h->ng) != 0)
		fail(h);
	upstream_flush(h->u);
}

static void advance(struct application_side *side) {
	struct h2c *h = (struct h2c *)(void *)side;
	do
		push(h);
	while (pull(h));
	if (!h->side.eof)
		push(h);
	upstream_update(h->u);
}

static void let_go(struct application_side *side) {
	struct h2c *h = (struct h2c *)(void *)side;
	buffer_release(&edge_of(h)->buffers, &h->side.in);
	buffer_release(&edge_of(h)->buffers, &h->side.out);
	buffer_release(&edge_of(h)->buffers, &h->head);
	nghttp2_session_del(h->ng);
	free(h);
}

int h2c_start(struct upstream *u, struct application_side **ret) {
	static const struct translator_ops ops = {.advance = advance, .free = let_go};
	static nghttp2_session_callbacks *callbacks; // made once, on the loop thread, for as long as the program runs
	static const nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
							  {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, WINDOW},
							  {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, HTTP_HEAD_MAX}};
	if (callbacks == NULL && nghttp2_session_callbacks_new(&callbacks) == 0) {
		nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers);
		nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
		nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame);
		nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
		nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
		nghttp2_session_callbacks_set_send_callback(callbacks, on_send);
	}
	struct h2c *h = callbacks != NULL ? calloc(1, sizeof(*h)) : NULL;
	if (h == NULL)
		return -ENOMEM;
	h->side.ops = &ops;
	h->u = u;
	u->framed = true;
	if (nghttp2_session_client_new(&h->ng, callbacks, h) != 0 ||
	    nghttp2_submit_settings(h->ng, NGHTTP2_FLAG_NONE, settings, sizeof(settings) / sizeof(settings[0])) != 0) {
		let_go(&h->side);
		return -ENOMEM;
	}
	*ret = &h->side;
	return 0;
}
