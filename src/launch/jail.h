// Starting a VMM in its jail. See jail.c.
#pragma once

#include "base/error.h"

#include <sys/types.h>

struct jail {
	int program;                  // stasis-vmm, O_PATH
	int control, vsock, kvm, tap; // become descriptors 3 to 6 of the VMM (vmm/control.h)
	int log;                      // becomes its standard error
	int cgroup;                   // folder of its cgroup
	const char *folder;           // an empty folder to mount the jail's root on; the same for all, nothing of it is visible outside
	uid_t uid;                    // uid and gid
};

// Starts the VMM as a child of the caller's parent, in the caller's network namespace, in new namespaces otherwise. Returns its pid when
// it has executed stasis-vmm, and its pidfd in *ret_pidfd; a negative errno and the reason when it could not.
pid_t jail_start(const struct jail *j, int *ret_pidfd, struct error *e);
