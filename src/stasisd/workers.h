// Worker threads and the queue into the loop: what stands behind worker_submit() and loop_submit() of engine.h.
#pragma once

#include "stasisd/engine.h"

#include <stddef.h>

#define WORKERS_MAX 512
#define READERS_MAX 2
#define WORKERS_QUEUE_MAX 65536

// Makes en->queue on en->loop. Call on the loop thread before anything submits. Returns 0 or a negative errno.
int loop_queue_start(struct engine *en, struct error *e);
// Runs what is still queued and closes the handle; the loop must run once more afterwards. [loop thread]
void loop_queue_stop(struct engine *en);

// Waits until no work is queued or running, at most timeout_ms. Returns false when there still is some.
bool workers_wait_idle(int timeout_ms);

// How many threads there are now.
size_t workers_count(void);
