// The edge: the proxy in front of all endpoints. It ends TLS, checks each request's token, wakes the microVM when it sleeps, and carries the
// request over the microVM's vsock to the application's port on loopback.
#pragma once

#include "base/error.h"
#include "edge/token.h"

struct engine;

// Makes or reads the keys and certificates in the state folder, and starts to listen on config.edge_listen. Sets en->edge. Call it once the
// microvms module has started, on the loop thread (before or while the loop runs); it takes some milliseconds of disk and cryptography.
int edge_start(struct engine *en, struct error *e);

// Stops listening and closes all connections; idle ones at once, busy ones in mid-request. Returns at once; handles close as the loop
// runs on, and en->edge is NULL afterwards. [loop thread]
void edge_stop(struct engine *en);

// The certificate of the authority that clients must trust, in PEM; valid until edge_stop(). [any]
const char *edge_ca_pem(const struct engine *en);

// Mints a token for an endpoint with the edge's keys (CreateMicrovmAuthToken). [any]
int edge_mint_token(const struct engine *en, const struct token_claims *c, char to[static TOKEN_ROOM], struct error *e);

// New tokens are sealed with a new key; old tokens stay valid. [worker: blocks on the disk]
int edge_rotate_token_keys(const struct engine *en, struct error *e);

// The TCP port that the edge listens on (of interest when config.edge_listen says port 0). [loop thread]
int edge_port(const struct engine *en);
