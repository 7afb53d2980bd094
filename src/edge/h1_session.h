// HTTP/1.1 with a client.
#pragma once

struct connection;

// Makes a session for a new connection and sets c->ops and c->session. Returns 0 or -ENOMEM.
int h1_session_start(struct connection *c);
