// The machine: a QEMU virtual machine in which Stasis's engine runs on hosts whose own KVM is of no use (docs/machine.md).
//
// QEMU emulates (TCG) an AMD processor with SVM and nested paging, so that KVM is real inside. It runs as an ordinary process of the user.
// Everything of it lies in `<home>/machine/`: `state.ext4` (state disk), `console.log` (kernel and engine; bounded), `qmp.sock`,
// `exec.sock` (src/machine/exec.h), `pid`, `lock`. What the machine sees of the host, read-only: /usr, the program's folder, and
// `<home>/engine`, where the caller has put the engine's config.json.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define MACHINE_MEMORY_LEAST_MIB 4096u   // what the default never goes below
#define MACHINE_MEMORY_MOST_MIB 16384u   // … nor above
#define MACHINE_CPUS 1u                  // more is faster under load, but not reliable: docs/machine.md
#define MACHINE_DISK_BYTES (64ull << 30) // sparse

struct machine_options {
	const char *home;                                               // $STASIS_HOME; has engine/config.json already
	const char *program;                                            // folder with the programs and assets/
	unsigned memory_mib;                                            // 0: 60 % of what the host has free, within the limits above
	unsigned cpus;                                                  // 0: MACHINE_CPUS; at most 32
	unsigned pool;                                                  // slots that stasis-launch keeps ready; 0: its default
	uint16_t api_port, artifacts_port, edge_port;                   // on the host's 127.0.0.1
	uint16_t guest_api_port, guest_artifacts_port, guest_edge_port; // where the engine listens inside, on all addresses
};

typedef void (*machine_progress)(void *arg, const char *what);

// Starts the machine and returns when its init has started the engine (a few seconds); whether the engine answers is for the caller to
// ask. Creates the state disk the first time. `progress` (may be NULL) is called with what is being done. Errors: -EALREADY it runs; -ENOENT QEMU or an
// asset is missing; -EADDRINUSE a port is taken; -ENOMEM too little memory; -EBUSY the state disk is used by somebody else; others as they come.
int machine_start(const struct machine_options *o, machine_progress progress, void *arg, struct error *e);

// Presses the power button (the engine suspends its microVMs and ends, the state disk is unmounted), and waits; after 150 s, or when the machine
// does not listen, ends QEMU. Fine when it does not run.
int machine_stop(const char *home, struct error *e);

bool machine_is_running(const char *home);

struct machine_status {
	bool running;
	pid_t pid;           // of QEMU
	char state[32];      // QEMU's word for it: "running", "paused", "guest-panicked", …; empty when it does not say
	uint64_t disk_bytes; // that the state disk occupies on the host
	uint64_t memory_kib; // resident
};

int machine_status(const char *home, struct machine_status *ret, struct error *e);
