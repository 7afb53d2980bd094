// HTTP/2 without TLS towards an application (RFC 9113 section 3.3, prior knowledge), by nghttp2: one request on one stream, translated from
// and to the text of HTTP/1.1. Private to application.c.
#pragma once

#include "edge/application.h"

// Over an upstream that is open. Returns 0 or -ENOMEM.
int h2c_start(struct upstream *u, struct application_side **ret);
