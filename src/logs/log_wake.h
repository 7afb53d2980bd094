// Those who wait for a log to grow or to end: its writer wakes them, so that nobody looks again and again.
#pragma once

#include "logs/log_files.h"

#include <pthread.h>
#include <stdbool.h>

#define LOG_WAITERS_MAX 64 // each keeps a thread

struct log_wait {
	struct log_wait *next;
	char folder[LOG_FOLDER_MAX];
	pthread_cond_t changed;
	bool woken, stopped;
};

// Begins to listen: what the writer does from now on is not missed. -EAGAIN: too many wait already.
int log_wait_begin(struct log_wait *w, const char *folder);
// Waits until the log has changed since the last call returned (or since the beginning). False: log_wait_stop() was called. [worker]
bool log_wait_next(struct log_wait *w);
void log_wait_stop(struct log_wait *w); // [any]
void log_wait_end(struct log_wait *w);

// The log has grown or ended. Cheap when nobody waits. [any]
void log_wake(const char *folder);
