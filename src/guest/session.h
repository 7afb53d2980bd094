// SESSION streams (docs/agent-protocol.md): a program in the application's container (a shell on a terminal, any program, or the packing and
// unpacking of files), with its input, output and end carried in frames over one stream of the host.
#pragma once

#include "guest/application.h"
#include "guest/loop.h"

#include <stddef.h>

struct sessions {
	struct loop *loop;
	struct children *children;
	const struct application *application;
	struct session *first;
	size_t count;
};

void sessions_init(struct sessions *all, struct loop *l, struct children *c, const struct application *a);
// Kills what runs and waits for its end.
void sessions_end(struct sessions *all);

// Answers "OK\n" (or "ERR EMFILE\n") on `host` (non-blocking, owned from now on) and serves. `early`: what came behind the request line.
void session_start(struct sessions *all, int host, const void *early, size_t early_size);
