// The EVENTS stream (docs/agent-protocol.md): what the application and the build write, and what happens to them, kept until somebody on the
// host takes it.
#pragma once

#include "guest/guest.h"
#include "guest/loop.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define EVENTS_BUFFER 65536

struct events {
	struct loop *loop;
	uint8_t *ring; // GUEST_EVENTS_KEPT bytes; touched only as far as it was filled since it was last empty
	size_t head, used;
	uint64_t dropped; // bytes of frames that had to go, not told yet
	struct source subscriber;
	uint8_t *buffer; // whole frames on their way to the subscriber
	size_t buffer_used, buffer_sent;
};

int events_init(struct events *v, struct loop *l, struct error *e);
void events_end(struct events *v);

// Appends one frame (or several when size exceeds GUEST_EVENT_BYTES_MAX). The oldest ones go when there is no room. Sends what it can at once.
void events_push(struct events *v, enum guest_event_kind kind, const void *data, size_t size);
void events_push_json(struct events *v, const char *text);

// Whether a producer that can wait should: a subscriber is there and is behind.
bool events_is_behind(const struct events *v);

// The newest connection takes over; the descriptor (non-blocking) is owned by the hub from now on. What the one before was sent only a part
// of is sent again, whole frames only. Answers "OK\n" first.
void events_attach(struct events *v, int fd);

// Forgets everything that was not sent yet.
void events_clear(struct events *v);
