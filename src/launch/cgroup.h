// cgroups v2 of the VMMs: `<folder>/<vmm>`. See cgroup.c; interface files: Documentation/admin-guide/cgroup-v2.rst of Linux.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

// Makes the folder with the controllers cpu, memory and pids for its children. -ENOTSUP with the remedy in the message where there is no
// cgroup v2 or a controller is missing.
int cgroup_start(const char *folder, struct error *e);

// Makes the cgroup of a slot with limits for a VMM that waits. Returns its folder's descriptor.
int cgroup_create(const char *folder, const char *vmm, struct error *e);

// Sets the limits for a guest of that size.
int cgroup_limit(const char *folder, const char *vmm, uint64_t memory_bytes, unsigned vcpus, struct error *e);

int cgroup_kill(const char *folder, const char *vmm);

// 0 when it is gone, -EBUSY while a process of it is still ending.
int cgroup_remove(const char *folder, const char *vmm);

bool cgroup_has(const char *folder, const char *vmm, pid_t pid);

// Calls `each` for every child that is named like a VMM.
void cgroup_list(const char *folder, void (*each)(void *arg, const char *vmm), void *arg);
