// The command line of the machine's QEMU, and what the host must have for it. See qemu.c.
#pragma once

#include "machine/machine.h"

#define QEMU_ARGUMENTS_MAX 96
#define QEMU_PATH_MAX 1024

struct qemu_command {
	char *argv[QEMU_ARGUMENTS_MAX]; // NULL-terminated; allocated
	size_t count;
	bool overflow; // out of room or memory
};

// Builds the command: memory_mib and cpus of `o` are final here. `kernel` and `initrd` are paths. 0 or a negative errno.
int qemu_command_build(const struct machine_options *o, const char *qemu, const char *kernel, const char *initrd, struct qemu_command *ret,
		       struct error *e);
void qemu_command_free(struct qemu_command *c);

// Path of qemu-system-x86_64 into to[QEMU_PATH_MAX].
int qemu_find(char *to, struct error *e);

// Major version of that program, 0 when it does not say.
int qemu_major_version(const char *qemu);

// From this version on, KVM inside the machine is reliable: 7.2 loses the inner processor's state in about every second image build (the outer
// kernel then runs on the guest's GS base and panics); 10.0 very seldom does.
#define QEMU_MAJOR_RELIABLE 10

// The first of the names that is an executable in $PATH, /usr/sbin or /sbin.
int find_executable(const char *name, char *to, size_t size);

// MiB of memory for the machine on a host that has this much available. 0 when that is too little.
unsigned machine_default_memory(uint64_t available_mib);
