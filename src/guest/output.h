// A pipe whose other end a program writes its standard output or error to; what comes goes to the EVENTS hub.
#pragma once

#include "guest/events.h"
#include "guest/loop.h"

#include <stdbool.h>

struct output {
	struct loop *loop;
	struct events *events;
	struct source source;
	struct timer again; // while a producer that may wait is held back
	enum guest_event_kind kind;
	bool may_wait; // rather make the writer wait than lose something while a subscriber is behind
};

// Makes the pipe; the write end goes to *write_end, owned by the caller. Returns 0 or a negative errno.
int output_open(struct output *o, struct loop *l, struct events *v, enum guest_event_kind kind, bool may_wait, int *write_end);

// Takes what lies in the pipe now.
void output_drain(struct output *o);

// Drains and closes; fine when it is closed already.
void output_close(struct output *o);
