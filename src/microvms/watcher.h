// One thread that waits for many descriptors: what VMMs, guests and stasis-launch say by themselves.
//
// A callback runs on the watcher's thread with the watcher's lock held, one at a time; it must not block for long, and it may add and
// remove watches, its own included. watch_remove() returns when the callback is not running and will not run again. So: never call
// watch_remove() while holding a lock that the callback takes.
#pragma once

#include "base/error.h"

#include <stdint.h>

struct watcher;

typedef void (*watch_ready)(void *arg, uint32_t events); // EPOLLIN, EPOLLHUP, …

int watcher_start(struct watcher **ret, struct error *e);
void watcher_stop(struct watcher *w); // all watches must have been removed

// Begins to watch. *ret, the watch's number, is set before the first callback can run. The descriptor stays the caller's and must stay open
// until watch_remove(). Returns 0 or a negative errno.
int watch_add(struct watcher *w, int fd, uint32_t events, watch_ready ready, void *arg, int64_t *ret);
void watch_remove(struct watcher *w, int64_t watch);
