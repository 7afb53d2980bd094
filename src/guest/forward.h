// A forwarded TCP connection: a stream of the host on one side, a socket to the application's loopback port on the other.
#pragma once

#include "guest/loop.h"
#include "guest/tls_ports.h"

#include <stddef.h>
#include <stdint.h>

#define FORWARD_CHUNK 65536

struct forwards {
	struct loop *loop;
	struct forward *first;
	size_t count;
	struct tls_ports tls; // where the application speaks TLS
	uint8_t *scratch;     // FORWARD_CHUNK bytes, shared by all: holds bytes only during one call
};

int forwards_init(struct forwards *f, struct loop *l, struct error *e);
void forwards_end(struct forwards *f);

// Connects to 127.0.0.1:port, then to [::1]:port; answers "OK\n", "OK tls\n" or "ERR <errno name>\n" on `host` (non-blocking, owned from now on); forwards both
// ways. `early`: what the host sent behind its request line; it may lie in forwards.scratch.
void forward_start(struct forwards *f, int host, uint16_t port, const void *early, size_t early_size);
