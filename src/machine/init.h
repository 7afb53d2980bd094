// The rooms of stasis-machine-init, PID 1 of the machine (see init.c).
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <sys/types.h>

#define INIT_STATE "/var/lib/stasis"
#define INIT_PROGRAM "/program"
#define INIT_CONFIG "/etc/stasis"

// What the kernel's command line says to us: `stasis.uid=`, `stasis.pool=`.
struct init_options {
	uid_t uid;     // of user stasis
	unsigned pool; // slots that stasis-launch keeps ready; 0: its default
};

void init_options_read(struct init_options *ret);

// Loads /modules/*.ko as /modules/modules.txt says. A module that fails is reported and skipped: what needs it fails with a reason.
// Returns the process that still loads KVM's modules, to be waited for before the engine starts, or -1. [init_root.c]
pid_t init_modules(void);

// Mounts /proc, /sys and /dev of the initramfs. [init_root.c]
int init_early_mounts(struct error *e);

// Builds the machine's root in a tmpfs (/usr, /program and the configuration from the host, /etc of its own), and makes it the root. [init_root.c]
int init_root(const struct init_options *o, struct error *e);

// Checks (when it needs it) and mounts the state disk. [init_root.c]
int init_state_disk(const struct init_options *o, struct error *e);

// lo, eth0 with the addresses of QEMU's user network, forwarding, sysctls. [init_net.c]
int init_network(struct error *e);

int init_write(const char *path, const char *text);
