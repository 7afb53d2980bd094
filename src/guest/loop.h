// The agent's event loop: one epoll set, level-triggered, and a list of timers on CLOCK_MONOTONIC. One thread.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/epoll.h>

#define LOOP_BATCH 64

// Something to wait for; embedded in its owner (container_of below). Set `fd` and `ready` before loop_watch().
struct source {
	int fd;
	uint32_t events; // what the set holds now; 0: not in the set
	void (*ready)(struct source *s, uint32_t events);
};

struct timer {
	uint64_t at_ns;
	void (*fire)(struct timer *t);
	struct timer *previous, *next;
	bool armed;
};

struct loop {
	int epoll_fd;
	struct timer *first, *last; // by time
	struct epoll_event batch[LOOP_BATCH];
	int batch_at, batch_count;
};

#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr)-offsetof(type, member)))

int loop_init(struct loop *l, struct error *e);
void loop_end(struct loop *l);

// Adds, changes or (events 0) removes the source; nothing when the set is that way already. A removed source gets no more calls, not
// even those of the events that were fetched already, so its owner may be freed at once. Returns 0 or a negative errno.
int loop_watch(struct loop *l, struct source *s, uint32_t events);

// Removes the source and closes its descriptor (-1 afterwards). Fine when it has none.
void loop_close_source(struct loop *l, struct source *s);

// Arms (or re-arms) a timer at a time of CLOCK_MONOTONIC; it fires once, never early.
void loop_arm(struct loop *l, struct timer *t, uint64_t at_ns);
void loop_disarm(struct loop *l, struct timer *t);

// Waits for at most max_wait_ms (-1: without end) and handles what is due. Returns 0 or a negative errno.
int loop_step(struct loop *l, int max_wait_ms);
