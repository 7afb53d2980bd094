// stasisd's end of the pair with stasis-launch (src/launch/launch.h): takes slots, ends them, lists them.
//
// Any number of threads may ask at once; replies are matched by sequence number on the watcher's thread.
#pragma once

#include "base/error.h"
#include "launch/launch.h"
#include "microvms/watcher.h"

#include <stdint.h>

struct launcher;

struct launcher_events {
	void (*ended)(void *arg, const char *vmm, int wait_status); // a VMM process ended by itself
	void (*lost)(void *arg);                                    // the connection is gone: stasis-launch ended
	void *arg;
};

// Takes over the descriptor. The callbacks run on the watcher's thread.
int launcher_open(int fd, struct watcher *w, struct launcher **ret, struct error *e);
void launcher_listen(struct launcher *l, const struct launcher_events *events);
void launcher_close(struct launcher *l);

// Gives a slot: its name goes to `vmm`. Blocks.
int launcher_take(struct launcher *l, const struct egress *egress, uint32_t vcpus, uint64_t memory_bytes, char vmm[LAUNCH_VMM_MAX],
		  struct error *e);

// Kills the slot's VMM and waits until everything of the slot is gone. A slot that is gone already is fine. Blocks.
int launcher_end(struct launcher *l, const char *vmm, struct error *e);

// Calls `each` for every living slot that stasis-launch knows (also slots that wait in its pool, if it names them). Blocks.
int launcher_list(struct launcher *l, void (*each)(void *arg, const char *vmm), void *arg, struct error *e);
