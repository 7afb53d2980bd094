// HTTP/2 with a client (RFC 9113), by nghttp2: each stream gets a session of its own, the same that an HTTP/1.1 connection has.
//
// The stream's head is written down as the HTTP/1.1 head that it means and goes through the one strict parser; its answer comes back as a
// list of headers and content. So what holds for HTTP/1.1 (gate, holding, limits, hop-by-hop headers, smuggling) holds here by the same code.
#pragma once

struct connection;

// Makes a session for a client that has agreed on h2, and sets c->ops and c->session. Returns 0 or -ENOMEM.
int h2_session_start(struct connection *c);
