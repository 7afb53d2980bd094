// Shells and programs over WebSocket; see shell.h.
//
// First comes the text of the handshake, which is answered with 101 or refused. Then each side's bytes are taken as far as the other side has
// room: a piece of a WebSocket message becomes a frame for the guest, a piece of a frame becomes a message for the client. Only what is small
// and must be whole (control messages, the end) is collected. So a session needs the buffers that it has and nothing else.
//
//                 /shell                                    /_stasis/exec
//     client →    binary: typed                             text, first: the request; binary: standard input
//                 text: {"type":"resize",…} or typed        text: resize, end, signal
//     → client    text: session_init; binary: shown         text: session_init, exit, failed; binary: 1 or 2, then output or error output
#include "edge/shell.h"

#include "base/json.h"
#include "base/uuid.h"
#include "base/websocket.h"
#include "edge/ws_key.h"
#include "guest/guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONTROL_TEXT_MAX 256 // bytes of a control message; a longer text of a shell's client is typed
#define LAST_MAX 4096        // bytes of the guest's last frame
#define ANSWER_ROOM 1024     // that the side's buffer must have for what the edge says itself
#define INPUT_ROOM (GUEST_SESSION_HEADER + CONTROL_TEXT_MAX + 2 * GUEST_SESSION_HEADER) // more than what one piece may become

enum shell_phase { SHELL_HANDSHAKE, SHELL_OPEN, SHELL_CLOSING, SHELL_OVER };

struct shell {
	struct application_side side; // first
	struct upstream *u;
	enum shell_phase phase; // CLOSING: our close frame is written, the client's has not come
	bool program;           // /_stasis/exec
	bool requested;         // its request is complete
	struct ws_reader reader;
	char text[CONTROL_TEXT_MAX]; // a text message that may be a control message
	size_t text_used;
	bool typing; // the text message under way is typed: it was too long for another meaning
	// The guest's frame under way.
	uint32_t left; // bytes to come
	uint8_t kind;  // 0: none
	uint8_t last[LAST_MAX];
	size_t last_used;
};

static struct buffer_pool *pool_of(const struct shell *s) {
	return &s->u->edge->buffers;
}

// To the client. --------------------------------------------------------------------------------------------------------------

static bool has_room(struct shell *s, size_t n) {
	struct buffer *in = &s->side.in;
	if (!buffer_want(pool_of(s), in, BUFFER_SMALL))
		return false;
	if (buffer_room(in) < n)
		buffer_compact(in);
	return buffer_room(in) >= n;
}

// A whole frame; the caller has made sure of room. `before`: 0, or a byte to put before the data.
static void say(struct shell *s, enum ws_opcode opcode, uint8_t before, const void *data, size_t size) {
	uint8_t head[WS_HEAD_MAX];
	size_t extra = before != 0 ? 1 : 0, n = ws_write_head(head, opcode, true, size + extra, NULL);
	buffer_append(&s->side.in, head, n);
	if (extra > 0)
		buffer_append(&s->side.in, &before, 1);
	if (size > 0)
		buffer_append(&s->side.in, data, size);
}

static void say_text(struct shell *s, const char *text) {
	say(s, WS_TEXT, 0, text, strlen(text));
}

// Our close frame; nothing of ours follows it.
static void close_with(struct shell *s, uint16_t code, const char *reason) {
	uint8_t data[WS_CONTROL_MAX];
	if (s->phase >= SHELL_CLOSING)
		return;
	data[0] = (uint8_t)(code >> 8);
	data[1] = (uint8_t)code;
	int n = snprintf((char *)data + 2, sizeof(data) - 2, "%s", reason);
	n = n < (int)sizeof(data) - 3 ? n : (int)sizeof(data) - 3;
	say(s, WS_CLOSE, 0, data, 2 + (size_t)n);
	s->phase = SHELL_CLOSING;
	s->side.eof = true;
	upstream_end(s->u);
}

// To the guest. ---------------------------------------------------------------------------------------------------------------

static size_t guest_room(struct shell *s) {
	return upstream_reserve(s->u, BUFFER_SMALL) ? upstream_room(s->u) : 0;
}

// A frame; the caller has made sure of room.
static void send_frame(struct shell *s, enum guest_session_in kind, const void *data, size_t size) {
	uint8_t head[GUEST_SESSION_HEADER];
	uint32_t length = (uint32_t)size + 1;
	memcpy(head, &length, sizeof(length));
	head[4] = (uint8_t)kind;
	upstream_append(s->u, head, sizeof(head));
	if (size > 0)
		upstream_append(s->u, data, size);
}

// The handshake. --------------------------------------------------------------------------------------------------------------

static void put(struct shell *s, const char *text) {
	buffer_append(&s->side.in, text, strlen(text));
}

static void refuse(struct shell *s, const char *status, const char *more, const char *text) {
	char head[256];
	snprintf(head, sizeof(head), "HTTP/1.1 %s\r\n%scontent-type: text/plain\r\ncontent-length: %zu\r\n\r\n", status, more,
		 strlen(text));
	put(s, head);
	put(s, text);
	s->phase = SHELL_OVER;
	s->side.eof = true;
}

static bool path_is(struct slice target, const char *path) {
	const char *query = memchr(target.data, '?', target.size);
	return slice_equals((struct slice){target.data, query != NULL ? (size_t)(query - target.data) : target.size}, path);
}

static void open_channel(struct shell *s, const char *accept) {
	static const char shell_request[] = "{\"op\":\"shell\"}";
	char text[128], id[UUID_TEXT];
	put(s, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-accept: ");
	put(s, accept);
	put(s, "\r\n\r\n");
	uuid_new(id);
	snprintf(text, sizeof(text), "{\"type\":\"session_init\",\"session_id\":\"%s\"}", id);
	say_text(s, text);
	s->phase = SHELL_OPEN;
	s->reader.from_client = true;
	if (s->program)
		return;
	send_frame(s, GUEST_SESSION_REQUEST, shell_request, sizeof(shell_request) - 1);
	send_frame(s, GUEST_SESSION_BEGIN, NULL, 0);
	s->requested = true;
}

// The session has written the request's head as a whole, and has checked that it asks for a WebSocket.
static bool take_handshake(struct shell *s) {
	struct buffer *out = &s->side.out;
	struct http_head *h = &s->u->edge->head;
	char accept[WS_ACCEPT_TEXT];
	if (buffer_used(out) == 0 || !has_room(s, ANSWER_ROOM) || guest_room(s) < INPUT_ROOM)
		return false;
	ssize_t size = http_parse_request(buffer_bytes(out), buffer_used(out), h, NULL);
	if (size <= 0) {
		s->side.eof = s->side.broken = true;
		return false;
	}
	const struct http_header *version = http_find(h, "sec-websocket-version"), *key = http_find(h, "sec-websocket-key");
	s->program = path_is(h->target, "/_stasis/exec");
	if (version == NULL || !slice_equals(version->value, "13"))
		refuse(s, "426 Upgrade Required", "sec-websocket-version: 13\r\n", "WebSocket version not supported");
	else if (key == NULL || !ws_key_accept(key->value.data, key->value.size, accept))
		refuse(s, "400 Bad Request", "", "Bad request");
	else if (!s->program && !path_is(h->target, "/shell") && !path_is(h->target, "/"))
		refuse(s, "404 Not Found", "", "A shell's token opens /shell and /_stasis/exec");
	else
		open_channel(s, accept);
	buffer_consume(pool_of(s), out, (size_t)size);
	return true;
}

// From the client. ------------------------------------------------------------------------------------------------------------

static bool send_size(struct shell *s, const json_t *o) {
	int64_t columns = 0, rows = 0;
	uint16_t size[2];
	if (member_integer(o, "cols", MEMBER_REQUIRED, 0, UINT16_MAX, &columns, NULL) < 0 ||
	    member_integer(o, "rows", MEMBER_REQUIRED, 0, UINT16_MAX, &rows, NULL) < 0)
		return false;
	size[0] = (uint16_t)columns;
	size[1] = (uint16_t)rows;
	send_frame(s, GUEST_SESSION_RESIZE, size, sizeof(size));
	return true;
}

static bool send_signal(struct shell *s, const json_t *o) {
	int64_t number = 0;
	if (member_integer(o, "signal", MEMBER_REQUIRED, 1, 31, &number, NULL) < 0)
		return false;
	uint8_t byte = (uint8_t)number;
	send_frame(s, GUEST_SESSION_SIGNAL, &byte, 1);
	return true;
}

// Whether the text was a control message of this channel.
static bool act_on(struct shell *s) {
	cleanup_json json_t *o = json_parse_object(s->text, s->text_used, sizeof(s->text), "the message", NULL);
	const char *type = o != NULL ? json_string_value(json_object_get(o, "type")) : NULL;
	if (type == NULL)
		return false;
	if (strcmp(type, "resize") == 0)
		return send_size(s, o);
	if (!s->program)
		return false;
	if (strcmp(type, "signal") == 0)
		return send_signal(s, o);
	if (strcmp(type, "end") != 0)
		return false;
	send_frame(s, GUEST_SESSION_INPUT_END, NULL, 0);
	return true;
}

static void take_text(struct shell *s, const struct ws_piece *p) {
	bool fits = !s->typing && s->text_used + p->size <= sizeof(s->text);
	if (fits && p->size > 0)
		memcpy(s->text + s->text_used, p->data, p->size);
	s->text_used += fits ? p->size : 0;
	if (fits && !p->last)
		return;
	bool known = fits && act_on(s);
	if (!known && s->program) {
		close_with(s, WS_CODE_POLICY, "unknown message: expected resize, signal or end");
		return;
	}
	// Typed as it is: what was collected, and this piece if it was not collected too.
	if (!known && s->text_used > 0)
		send_frame(s, GUEST_SESSION_INPUT, s->text, s->text_used);
	if (!fits && p->size > 0)
		send_frame(s, GUEST_SESSION_INPUT, p->data, p->size);
	s->text_used = 0;
	s->typing = !p->last;
}

static void take_request(struct shell *s, const struct ws_piece *p) {
	if (p->kind != WS_TEXT) {
		close_with(s, WS_CODE_POLICY, "the first message must be the request");
		return;
	}
	if (p->size > 0)
		send_frame(s, GUEST_SESSION_REQUEST, p->data, p->size);
	if (!p->last)
		return;
	send_frame(s, GUEST_SESSION_BEGIN, NULL, 0);
	s->requested = true;
}

static void take_piece(struct shell *s, const struct ws_piece *p) {
	switch (p->kind) {
	case WS_PING:
		if (s->phase == SHELL_OPEN)
			say(s, WS_PONG, 0, p->data, p->size);
		return;
	case WS_CLOSE:
		close_with(s, p->code == WS_CODE_NONE ? WS_CODE_NORMAL : p->code, "");
		s->phase = SHELL_OVER;
		s->side.broken = true; // nothing more is taken
		return;
	case WS_TEXT:
	case WS_BINARY:
		if (s->phase != SHELL_OPEN)
			return;
		if (!s->requested)
			take_request(s, p);
		else if (p->kind == WS_TEXT)
			take_text(s, p);
		else if (p->size > 0)
			send_frame(s, GUEST_SESSION_INPUT, p->data, p->size);
		return;
	default:
		return;
	}
}

// Takes a piece of what the client has sent. False when nothing can be done now.
static bool pull_client(struct shell *s) {
	struct buffer *out = &s->side.out;
	size_t used = buffer_used(out), room = s->phase == SHELL_OPEN ? guest_room(s) : BUFFER_SMALL;
	if (used == 0 || s->phase < SHELL_OPEN || s->phase == SHELL_OVER || !has_room(s, ANSWER_ROOM) || room < 2 * INPUT_ROOM)
		return false;
	room -= INPUT_ROOM;
	if (room > GUEST_SESSION_BYTES_MAX)
		room = GUEST_SESSION_BYTES_MAX;
	struct ws_piece p;
	ssize_t n = ws_read(&s->reader, buffer_bytes(out), used < room ? used : room, &p);
	if (n < 0) {
		close_with(s, s->reader.failure, s->reader.failure == WS_CODE_NOT_UTF8 ? "text that is not UTF-8" : "malformed frame");
		s->phase = SHELL_OVER;
		s->side.broken = true;
		return false;
	}
	take_piece(s, &p);
	buffer_consume(pool_of(s), out, (size_t)n);
	return true;
}

// From the guest. -------------------------------------------------------------------------------------------------------------

static void take_exit(struct shell *s) {
	char text[64];
	int32_t code = 0;
	memcpy(&code, s->last, s->last_used < sizeof(code) ? s->last_used : sizeof(code));
	snprintf(text, sizeof(text), "{\"type\":\"exit\",\"exitCode\":%d}", (int)code);
	if (s->program)
		say_text(s, text);
	close_with(s, WS_CODE_NORMAL, s->program ? "program exited" : "shell exited");
}

// {"code", "message"}, of the guest's making: parsed, and written anew.
static void take_failure(struct shell *s) {
	cleanup_json json_t *o = json_parse_object(s->last, s->last_used, sizeof(s->last), "the failure", NULL);
	const char *code = json_string_value(json_object_get(o, "code")), *message = json_string_value(json_object_get(o, "message"));
	char shown[ANSWER_ROOM / 2];
	code = code != NULL ? code : "INTERNAL";
	message = message != NULL ? message : "the guest agent gave no reason";
	if (s->program) {
		cleanup_json json_t *answer = json_pack("{s:s, s:s, s:s}", "type", "failed", "code", code, "message", message);
		char text[LAST_MAX];
		size_t n = answer != NULL ? json_dumpb(answer, text, sizeof(text), JSON_COMPACT) : 0;
		if (n > 0 && n <= sizeof(text))
			say(s, WS_TEXT, 0, text, n);
	} else {
		int n = snprintf(shown, sizeof(shown), "%.400s\r\n", message);
		say(s, WS_BINARY, 0, shown, (size_t)n);
	}
	// A reason is text, so a code that is none is not passed on.
	char reason[48];
	snprintf(reason, sizeof(reason), "%.40s", code);
	for (char *c = reason; *c != '\0'; c++)
		if ((*c < 'A' || *c > 'Z') && *c != '_')
			*c = '_';
	close_with(s, WS_CODE_INTERNAL, reason);
}

static void broken_off(struct shell *s, const char *why) {
	if (has_room(s, ANSWER_ROOM))
		close_with(s, WS_CODE_INTERNAL, why);
}

static bool begin_frame(struct shell *s) {
	struct buffer *in = &s->u->in;
	uint32_t length;
	if (buffer_used(in) < GUEST_SESSION_HEADER)
		return false;
	memcpy(&length, buffer_bytes(in), sizeof(length));
	s->kind = (uint8_t)buffer_bytes(in)[4];
	if (length < 1 || length > GUEST_SESSION_BYTES_MAX + 1 || s->kind < GUEST_SESSION_OUTPUT || s->kind > GUEST_SESSION_FAILED ||
	    (s->kind >= GUEST_SESSION_EXIT && length > LAST_MAX)) {
		broken_off(s, "the guest agent sent a malformed frame");
		return false;
	}
	s->left = length - 1;
	upstream_consume(s->u, GUEST_SESSION_HEADER);
	if (s->left == 0 && s->kind < GUEST_SESSION_EXIT)
		s->kind = 0;
	return true;
}

static void end_frame(struct shell *s) {
	if (s->kind == GUEST_SESSION_EXIT)
		take_exit(s);
	else if (s->kind == GUEST_SESSION_FAILED)
		take_failure(s);
	s->kind = 0;
}

// Takes a piece of what the guest has sent. False when nothing can be done now.
static bool pull_guest(struct shell *s) {
	struct buffer *in = &s->u->in;
	if (s->phase != SHELL_OPEN || !has_room(s, 2 * ANSWER_ROOM))
		return false;
	if (s->kind == 0) {
		if (begin_frame(s))
			return true;
		if (s->u->eof && s->phase == SHELL_OPEN)
			broken_off(s, "the session broke off");
		return false;
	}
	// What comes of the last frame, and the close frame behind it, must fit.
	if (s->kind >= GUEST_SESSION_EXIT && !has_room(s, LAST_MAX + 2 * ANSWER_ROOM))
		return false;
	size_t n = buffer_used(in) < s->left ? buffer_used(in) : s->left, room = buffer_room(&s->side.in) - ANSWER_ROOM - WS_HEAD_MAX - 1;
	n = n < room ? n : room;
	if (n == 0 && s->left > 0) {
		if (s->u->eof)
			broken_off(s, "the session broke off");
		return false;
	}
	if (s->kind >= GUEST_SESSION_EXIT) {
		if (n > 0)
			memcpy(s->last + s->last_used, buffer_bytes(in), n);
		s->last_used += n;
	} else {
		say(s, WS_BINARY, s->program ? s->kind : 0, buffer_bytes(in), n);
	}
	if (n > 0)
		upstream_consume(s->u, n);
	s->left -= (uint32_t)n;
	if (s->left == 0)
		end_frame(s);
	return true;
}

// ------------------------------------------------------------------------------------------------------------------------------

static void advance(struct application_side *side) {
	struct shell *s = (struct shell *)(void *)side;
	if (s->phase == SHELL_HANDSHAKE)
		take_handshake(s);
	bool moved = true;
	while (moved) {
		moved = false;
		while (pull_client(s))
			moved = true;
		while (pull_guest(s))
			moved = true;
		upstream_flush(s->u);
	}
	if (buffer_used(&s->side.in) == 0)
		buffer_release(pool_of(s), &s->side.in);
	upstream_update(s->u);
}

static void let_go(struct application_side *side) {
	struct shell *s = (struct shell *)(void *)side;
	buffer_release(pool_of(s), &s->side.in);
	buffer_release(pool_of(s), &s->side.out);
	free(s);
}

int shell_start(struct upstream *u, struct application_side **ret) {
	static const struct translator_ops ops = {.advance = advance, .free = let_go};
	struct shell *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return -ENOMEM;
	s->side.ops = &ops;
	s->u = u;
	*ret = &s->side;
	return 0;
}
