// Who may pass: the decision about one request, whatever protocol brought it. Nothing here wakes a microVM or tells whether one exists.
#pragma once

#include "base/http1.h"
#include "edge/state.h"

#define GATE_DEFAULT_PORT 8080

// What a request shows. Sessions collect it: HTTP/1.1 from headers, others from where their protocol has it.
struct gate_request {
	struct slice authority; // Host, or the target's own
	struct slice token;     // X-aws-proxy-auth; empty when there is none, or more than one
	struct slice port;      // X-aws-proxy-port
	unsigned ports;         // how many of these there were
	bool websocket;         // it is a WebSocket's handshake
};

struct gate_verdict {
	int status;       // 0: may pass; otherwise the answer's status
	const char *text; // and its body
	char endpoint[UUID_TEXT];
	char microvm[TOKEN_MICROVM_MAX + 1]; // of the token; empty when it could not be opened
	uint16_t port;
	bool shell; // to the guest agent's sessions rather than a port
};

void gate_decide(struct edge *ed, const struct gate_request *r, struct gate_verdict *ret);

// The endpoint's UUID: the first label of an authority, in lower case. False when there is none.
bool gate_endpoint(struct slice authority, char ret[static UUID_TEXT]);
// A port in decimal; 0 when it is none.
uint16_t gate_port(struct slice text);
