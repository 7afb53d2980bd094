// WebSocket frames; see websocket.h.
#include "base/websocket.h"

#include <errno.h>
#include <string.h>

#define FIN 0x80
#define RESERVED 0x70
#define MASKED 0x80

static int fail(struct ws_reader *r, uint16_t code) {
	r->failure = code;
	return -EBADMSG;
}

static bool is_control(uint8_t opcode) {
	return (opcode & 8) != 0;
}

// How many bytes the head takes, as far as its second byte tells.
static size_t head_size(const struct ws_reader *r) {
	if (r->head_used < 2)
		return 2;
	uint8_t length = r->head[1] & 0x7f;
	return 2 + (length == 126 ? 2u : length == 127 ? 8u : 0u) + ((r->head[1] & MASKED) != 0 ? 4u : 0u);
}

static uint64_t read_length(const uint8_t *head) {
	uint64_t v = head[1] & 0x7f;
	size_t n = v == 126 ? 2 : v == 127 ? 8 : 0;
	if (n > 0)
		v = 0;
	for (size_t i = 0; i < n; i++)
		v = v << 8 | head[2 + i];
	return v;
}

// The first two bytes are judged before more is waited for.
static int check_start(struct ws_reader *r) {
	uint8_t opcode = r->head[0] & 0x0f;
	bool known = opcode <= WS_BINARY || (opcode >= WS_CLOSE && opcode <= WS_PONG), fin = (r->head[0] & FIN) != 0;
	if (!known || (r->head[0] & RESERVED) != 0 || ((r->head[1] & MASKED) != 0) != r->from_client)
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	if (is_control(opcode) && (!fin || (r->head[1] & 0x7f) > WS_CONTROL_MAX))
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	// A message goes on with continuations only, and none goes on that was not begun.
	if (!is_control(opcode) && (opcode == 0) != (r->message != 0))
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	return 0;
}

static int begin_payload(struct ws_reader *r) {
	uint8_t length = r->head[1] & 0x7f;
	r->left = read_length(r->head);
	if ((length == 126 && r->left < 126) || (length == 127 && (r->left <= UINT16_MAX || r->left >> 63 != 0)))
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	r->fin = (r->head[0] & FIN) != 0;
	r->opcode = r->head[0] & 0x0f;
	if (r->from_client)
		memcpy(r->mask, r->head + r->head_used - 4, 4);
	r->mask_at = 0;
	r->control_used = 0;
	if (!is_control(r->opcode) && r->opcode != 0)
		r->message = r->opcode;
	r->in_payload = true;
	r->head_used = 0;
	return 0;
}

// The table of well-formed sequences, Unicode 15 section 3.9 (table 3-7).
static bool utf8_begin(struct ws_reader *r, uint8_t c) {
	r->utf8_low = 0x80;
	r->utf8_high = 0xbf;
	if (c < 0x80)
		return true;
	if (c < 0xc2 || c > 0xf4)
		return false;
	r->utf8_left = c < 0xe0 ? 1 : c < 0xf0 ? 2 : 3;
	if (c == 0xe0)
		r->utf8_low = 0xa0;
	else if (c == 0xed)
		r->utf8_high = 0x9f;
	else if (c == 0xf0)
		r->utf8_low = 0x90;
	else if (c == 0xf4)
		r->utf8_high = 0x8f;
	return true;
}

static bool utf8_feed(struct ws_reader *r, const uint8_t *data, size_t size) {
	for (size_t i = 0; i < size; i++) {
		if (r->utf8_left == 0) {
			if (!utf8_begin(r, data[i]))
				return false;
			continue;
		}
		if (data[i] < r->utf8_low || data[i] > r->utf8_high)
			return false;
		r->utf8_left--;
		r->utf8_low = 0x80;
		r->utf8_high = 0xbf;
	}
	return true;
}

static bool is_close_code(uint16_t code) {
	return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

static int take_close(struct ws_reader *r, struct ws_piece *ret) {
	struct ws_reader reason = {0};
	r->closed = true;
	ret->code = WS_CODE_NONE;
	if (ret->size == 0)
		return 0;
	if (ret->size == 1)
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	ret->code = (uint16_t)(ret->data[0] << 8 | ret->data[1]);
	ret->data += 2;
	ret->size -= 2;
	if (!is_close_code(ret->code))
		return fail(r, WS_CODE_PROTOCOL_ERROR);
	return utf8_feed(&reason, ret->data, ret->size) && reason.utf8_left == 0 ? 0 : fail(r, WS_CODE_NOT_UTF8);
}

static int take_control(struct ws_reader *r, const uint8_t *data, size_t size, struct ws_piece *ret) {
	if (size > 0)
		memcpy(r->control + r->control_used, data, size);
	r->control_used += (uint8_t)size;
	if (r->left > 0)
		return 0;
	*ret = (struct ws_piece){.kind = (enum ws_opcode)r->opcode, .last = true, .data = r->control, .size = r->control_used};
	r->in_payload = false;
	return r->opcode == WS_CLOSE ? take_close(r, ret) : 0;
}

static int take_data(struct ws_reader *r, const uint8_t *data, size_t size, struct ws_piece *ret) {
	bool last = r->fin && r->left == 0;
	*ret = (struct ws_piece){.kind = (enum ws_opcode)r->message, .last = last, .data = data, .size = size};
	if (r->message == WS_TEXT && (!utf8_feed(r, data, size) || (last && r->utf8_left > 0)))
		return fail(r, WS_CODE_NOT_UTF8);
	if (r->left == 0)
		r->in_payload = false;
	if (last)
		r->message = 0;
	return 0;
}

static int take_payload(struct ws_reader *r, uint8_t *data, size_t size, struct ws_piece *ret) {
	if (r->from_client) {
		ws_mask(data, size, r->mask, r->mask_at);
		r->mask_at = (uint8_t)((r->mask_at + size) % 4);
	}
	r->left -= size;
	return is_control(r->opcode) ? take_control(r, data, size, ret) : take_data(r, data, size, ret);
}

ssize_t ws_read(struct ws_reader *r, void *bytes, size_t size, struct ws_piece *ret) {
	uint8_t *data = bytes;
	size_t used = 0;
	*ret = (struct ws_piece){0};
	if (r->closed)
		return 0;
	while (!r->in_payload && used < size) {
		r->head[r->head_used++] = data[used++];
		if (r->head_used == 2 && check_start(r) < 0)
			return -EBADMSG;
		if (r->head_used == head_size(r) && begin_payload(r) < 0)
			return -EBADMSG;
	}
	if (!r->in_payload)
		return (ssize_t)used;
	size_t n = size - used < r->left ? size - used : (size_t)r->left;
	// Nothing to hand out yet, unless the frame is empty.
	if (n == 0 && r->left > 0)
		return (ssize_t)used;
	if (take_payload(r, data + used, n, ret) < 0)
		return -EBADMSG;
	return (ssize_t)(used + n);
}

size_t ws_write_head(uint8_t to[static WS_HEAD_MAX], enum ws_opcode opcode, bool fin, uint64_t size, const uint8_t *mask) {
	size_t bytes = size < 126 ? 0 : size <= UINT16_MAX ? 2 : 8, n = 2;
	to[0] = (uint8_t)(opcode | (fin ? FIN : 0));
	to[1] = (uint8_t)((bytes == 0 ? size : bytes == 2 ? 126 : 127) | (mask != NULL ? MASKED : 0));
	for (size_t i = bytes; i-- > 0;)
		to[n++] = (uint8_t)(size >> (8 * i));
	if (mask != NULL) {
		memcpy(to + n, mask, 4);
		n += 4;
	}
	return n;
}

void ws_mask(void *bytes, size_t size, const uint8_t mask[static 4], size_t at) {
	uint8_t *data = bytes, turned[8];
	uint64_t wide, word;
	size_t i = 0;
	for (size_t k = 0; k < 8; k++)
		turned[k] = mask[(at + k) % 4];
	memcpy(&wide, turned, 8);
	for (; i + 8 <= size; i += 8) {
		memcpy(&word, data + i, 8);
		word ^= wide;
		memcpy(data + i, &word, 8);
	}
	for (; i < size; i++)
		data[i] ^= turned[i % 8];
}
