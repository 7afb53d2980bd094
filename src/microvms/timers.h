// Deadlines in a heap: who is due next. The clock is the caller's; thread-safe.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct timer {
	int64_t due;  // in the caller's milliseconds
	size_t place; // in the heap, from 1; 0: not set
};

struct timers {
	pthread_mutex_t lock;
	struct timer **heap;
	size_t count, room;
};

void timers_init(struct timers *t);
void timers_free(struct timers *t);

// Sets or moves a timer. *ret_earlier says whether it is the next one now, so that whoever sleeps until the next must be woken. Returns 0
// or -ENOMEM (the timer is as it was).
int timers_set(struct timers *t, struct timer *x, int64_t due, bool *ret_earlier);
void timers_clear(struct timers *t, struct timer *x);

// Takes out one timer that is due, or returns NULL.
struct timer *timers_take(struct timers *t, int64_t now);
// When the next one is due; -1: there is none.
int64_t timers_next(struct timers *t);
