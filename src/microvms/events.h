// Follows what a guest says on its own: the EVENTS stream of port 1025 (docs/agent-protocol.md). Output goes to a bounded log; events are
// reported. All streams are served by the watcher's thread.
#pragma once

#include "base/error.h"
#include "microvms/output_log.h"
#include "microvms/watcher.h"

#include <jansson.h>

struct events;

struct events_handler {
	void (*exited)(void *arg, int exit_code);         // the application ended
	void (*suspend)(void *arg);                       // it asks to be suspended now; may be NULL
	void (*progress)(void *arg, const json_t *event); // may be NULL
	void *arg;
};

// Connects and begins. The log (may be NULL) stays the caller's and must live until events_stop(). Callbacks run on the watcher's thread.
int events_start(struct watcher *w, const char *vsock_path, struct output_log *log, const struct events_handler *h, struct events **ret,
		 struct error *e);

// Reads what has arrived already, then ends. NULL is fine.
void events_stop(struct events *s);

// How many bytes of output came so far, and whether the stream ended by itself.
bool events_ended(struct events *s);
