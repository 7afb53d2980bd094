// A session with a microVM: the WebSocket of /_stasis/exec at its endpoint (docs/endpoint.md), over TLS by libcurl, frames by base/websocket.
#pragma once

#include "base/websocket.h"
#include "cli/cli.h"

#include <curl/curl.h>

#define SESSION_CHUNK 16384
#define SESSION_TEXT_MAX 8192

enum session_kind {
	SESSION_OUTPUT = 1,
	SESSION_ERROR_OUTPUT = 2,
	SESSION_EXIT = 3, // number: the exit code
	SESSION_FAILED = 4,
};

struct session_message {
	enum session_kind kind;
	const void *data; // of output; until the next call
	size_t size;
	int number;
	char code[48]; // SESSION_FAILED
	char text[ERROR_MESSAGE_MAX];
};

struct session {
	CURL *handle;
	int fd;
	struct ws_reader reader;
	uint8_t in[SESSION_CHUNK];
	size_t in_at, in_used;
	uint8_t channel; // of the binary message under way; 0: none
	char text[SESSION_TEXT_MAX];
	size_t text_used;
	bool over; // the last message has come
	// Called with what comes while bytes are being sent.
	void (*meanwhile)(void *arg, const struct session_message *m);
	void *arg;
};

// Mints a token, connects, and sends the request (a session's, docs/agent-protocol.md; the reference stays the caller's).
int session_open(const struct cli *c, const char *id, const json_t *request, struct session *s, struct error *e);
void session_close(struct session *s);

// Sends input, or a control message.
int session_send(struct session *s, const void *data, size_t size, struct error *e);
int session_send_json(struct session *s, json_t *message, struct error *e); // takes the reference
// The next message. Returns 1; 0: none has come yet (never with `wait`); -ENOTCONN behind the last one; or another negative errno.
int session_receive(struct session *s, bool wait, struct session_message *ret, struct error *e);
// The error of a session that ended with SESSION_FAILED; returns its code.
int session_failed(const struct session_message *m, struct error *e);
