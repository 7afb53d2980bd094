// WebSocket authentication by subprotocols (spec section 5): browsers cannot set headers in a handshake, but they can name subprotocols.
//
// Of the names in Sec-WebSocket-Protocol these are the edge's: `lambda-microvms`, `lambda-microvms.authentication.<token>` and
// `lambda-microvms.port.<N>`. The first two together stand for the header X-aws-proxy-auth, the third for X-aws-proxy-port. None of them, nor
// any other name below `lambda-microvms.`, reaches the application; all others are the application's own.
//
// The answer names one subprotocol, or browsers refuse it: the one that the application selected, otherwise `lambda-microvms`.
//
// Pure functions over header values, whatever version of HTTP brought them.
#pragma once

#include "base/http1.h"
#include "base/wire.h"
#include "edge/gate.h"

#define WS_AUTH_HEADER "sec-websocket-protocol"
#define WS_AUTH_NAME "lambda-microvms"

// What a handshake's headers say. Slices of the header values.
struct ws_auth {
	bool malformed; // a name is no token (RFC 9110 section 5.6.2)
	bool offered;   // `lambda-microvms` is among the names
	struct slice token, port;
	unsigned tokens, ports; // how many there were
	unsigned others;        // the application's own subprotocols
};

// Takes in one value of the header; a handshake may have several. *a is zeroed before the first.
void ws_auth_read(struct ws_auth *a, struct slice value);

// Adds what the subprotocols say to what the headers said: the headers win. More than one token counts as none, as with headers.
void ws_auth_apply(const struct ws_auth *a, struct gate_request *r);

// Writes the application's own subprotocols of one value, separated by ", "; nothing when it has none.
void ws_auth_write_others(struct writer *w, struct slice value);

// Whether the edge must name WS_AUTH_NAME in its answer: it was offered, and the application's response selects nothing.
bool ws_auth_must_answer(bool offered, const struct http_head *response);
