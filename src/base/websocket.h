// WebSocket frames (RFC 6455 section 5), strictly, for either side: the edge reads what clients send, the command line what the edge sends.
//
// The reader takes bytes as they come, however they are cut, and hands out the payload of messages in place, piece by piece, so a message
// may be of any size; control frames, which are small, come whole. It refuses what the RFC forbids: wrong masking, reserved bits and opcodes,
// lengths that are not minimal, fragmented or long control frames, interleaved messages, text that is not UTF-8, malformed close frames.
// Extensions are not supported.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum ws_opcode { WS_NOTHING = 0, WS_TEXT = 1, WS_BINARY = 2, WS_CLOSE = 8, WS_PING = 9, WS_PONG = 10 };

// Close codes (RFC 6455 section 7.4.1)
#define WS_CODE_NORMAL 1000
#define WS_CODE_PROTOCOL_ERROR 1002
#define WS_CODE_NONE 1005 // never on the wire: the close frame had no code
#define WS_CODE_NOT_UTF8 1007
#define WS_CODE_POLICY 1008
#define WS_CODE_TOO_BIG 1009
#define WS_CODE_INTERNAL 1011

#define WS_CONTROL_MAX 125 // bytes of a control frame's payload
#define WS_HEAD_MAX 14

struct ws_reader {
	bool from_client; // its frames must be masked; a server's must not
	uint16_t failure; // after -EBADMSG: the close code that says why
	uint8_t head[WS_HEAD_MAX];
	uint8_t head_used;
	bool in_payload, fin;
	uint8_t opcode;  // of the frame; 0: continuation
	uint8_t message; // opcode of the message that is under way; 0: none
	uint64_t left;   // payload bytes of the frame still to come
	uint8_t mask[4], mask_at;
	uint8_t utf8_left, utf8_low, utf8_high; // continuation bytes to come, and the range of the next one
	uint8_t control[WS_CONTROL_MAX], control_used;
	bool closed; // a close frame has come; nothing may follow
};

struct ws_piece {
	enum ws_opcode kind;
	bool last;           // WS_TEXT, WS_BINARY: the message ends with these bytes
	const uint8_t *data; // in the caller's buffer, or (control frames) in the reader
	size_t size;         // WS_CLOSE: of the reason, behind the code
	uint16_t code;       // WS_CLOSE
};

// Looks at `size` bytes; unmasks payload in place. Returns how many were consumed, at least one of a non-empty input, and fills *ret (kind
// WS_NOTHING: go on). -EBADMSG: the peer breaks the protocol, r->failure says how. Consumes nothing behind a close frame.
ssize_t ws_read(struct ws_reader *r, void *data, size_t size, struct ws_piece *ret);

// Writes a frame's head. `mask`: 4 bytes (clients), or NULL. Returns its size.
size_t ws_write_head(uint8_t to[static WS_HEAD_MAX], enum ws_opcode opcode, bool fin, uint64_t size, const uint8_t *mask);
// Masks (or unmasks) payload whose first byte is the `at`-th of its frame.
void ws_mask(void *data, size_t size, const uint8_t mask[static 4], size_t at);
