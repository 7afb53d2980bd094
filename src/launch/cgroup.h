// Control groups (v2): /sys/fs/cgroup/stasis/<vmm> for each slot.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

// Makes the parent group with the controllers that are needed. Refuses hosts without cgroup v2.
int cgroup_start(struct error *e);
// Makes the slot's group; returns a descriptor of its folder (for CLONE_INTO_CGROUP).
int cgroup_make(const char *vmm, struct error *e);
int cgroup_limit(const char *vmm, uint64_t memory_bytes, uint32_t cpus, struct error *e);
// Kills everything in it. A missing group is fine.
int cgroup_kill(const char *vmm);
// Whether a process lives in it.
bool cgroup_is_populated(const char *vmm);
// Returns -EBUSY while a process is still in it; a missing group is fine.
int cgroup_remove(const char *vmm);
