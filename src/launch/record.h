// What is written down about a slot, in its folder, so that the next stasis-launch can take it over. See record.c.
#pragma once

#include "launch/launch.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct record {
	unsigned number;
	pid_t pid;
	uint64_t started; // of the process, in ticks since boot: tells it from a later one with the same pid
	bool taken;
	struct egress egress; // of a taken one, when it has networks
};

int record_write(const char *run, const char *vmm, const struct record *r);
int record_read(const char *run, const char *vmm, struct record *ret);
int record_parse(const char *text, struct record *ret); // 0 or -EBADMSG

// Start time of a process (field 22 of /proc/<pid>/stat), 0 when there is none.
uint64_t process_started(pid_t pid);
uint64_t process_started_parse(const char *stat);

void record_remove_folder(const char *run, const char *vmm);
