// HTTP/2 without TLS towards an application (RFC 9113 section 3.3, prior knowledge), by nghttp2: one request on one stream, translated from
// and to the text of HTTP/1.1. Private to application.c.
#pragma once

#include "edge/application.h"

struct h2c; // begins with a struct application_side

// Over an upstream that is open. Returns 0 or -ENOMEM.
int h2c_start(struct upstream *u, struct h2c **ret);
void h2c_free(struct h2c *h); // NULL is fine

// Moves on as far as possible, both ways, and asks the upstream to send and to read on.
void h2c_advance(struct h2c *h);
// Makes sure that side.out has a block of at least `capacity`.
bool h2c_reserve(struct h2c *h, uint32_t capacity);
