// The guest agent's sessions as an application that speaks WebSocket: shells (spec section 6) and programs (docs/endpoint.md). A translator
// between the WebSocket of a client and the frames of a SESSION stream (docs/agent-protocol.md). Private to application.c.
#pragma once

#include "edge/application.h"

// Over an upstream of UPSTREAM_SESSION that is open. Returns 0 or -ENOMEM.
int shell_start(struct upstream *u, struct application_side **ret);
