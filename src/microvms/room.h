// Whether the host has room for one more microVM that is awake: "hostMemoryMib" and "hostReserveMib" (docs/access.md).
//
// Nobody can be admitted twice into the same room: whoever runs a microVM holds the lock from the look until it is recorded, and counts from then on; one
// that is being resumed counts from the look until it is recorded as running or has failed.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct engine;

// For a Run. 1: there is room, and room_unlock() is to be called once the microVM is recorded; 0: there is room, and nothing to be called (no limit is
// configured); or -ENOMEM, InsufficientCapacityException, or what the store says.
int room_lock(struct engine *en, int64_t minimum_mib, struct error *e);
void room_unlock(void);

// For a resume. 0: what is taken is given back with room_give(); or as above.
int room_take(struct engine *en, int64_t minimum_mib, struct error *e);
// `record`, which may be NULL, records it as running; nobody looks between that and the giving back. Returns what it returns.
int room_give(struct engine *en, int64_t minimum_mib, int (*record)(void *arg, struct error *e), void *arg, struct error *e);
