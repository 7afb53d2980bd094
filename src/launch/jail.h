// The jail of a VMM, and its start in it.
#pragma once

#include "base/error.h"

#include <sys/types.h>

struct jail {
	int program;                  // stasis-vmm, opened for execution
	int control, vsock, kvm, tap; // become the descriptors of src/vmm/control.h
	int netns;
	int cgroup;       // folder of the slot's group
	uid_t uid;        // of the VMM alone; its group has the same number
	const char *root; // an existing empty folder, where the VMM's root is mounted (in its own mount namespace)
};

// Starts the VMM: new PID, mount, IPC and UTS namespaces, the given network namespace and cgroup, an empty read-only root with nothing but
// /proc of its own, its own uid, no capabilities, no way to new privileges, limits. Returns the pid; *ret_pidfd refers to it.
pid_t jail_start(const struct jail *j, int *ret_pidfd, struct error *e);
