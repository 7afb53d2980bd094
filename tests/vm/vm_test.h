// What the VM test programs share: where stasis-vmm and the tiny guest are, and the steps that most tests take.
#pragma once

// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "client.h"

#include <stdio.h>

extern const char *vmm_program;
extern int guest_fd; // bzImage of the tiny guest

// argv: stasis-vmm, flat guest. Ends the program with 77 (skipped) when there is no /dev/kvm.
void vm_test_start(int argc, char **argv);

// Starts a VMM and boots the tiny guest with that command; fails the test when it does not.
void start_guest(struct vmm *v, uint32_t memory_mib, uint32_t vcpus, const char *command);
// Waits for the end of the guest, which has to be of that kind.
void expect_exit(struct vmm *v, uint32_t exit);
uint64_t guest_value(struct vmm *v, const char *name);

struct snapshot {
	int state, memory; // memory files
};
// Pauses, writes a snapshot, ends the VMM.
struct snapshot take_snapshot(struct vmm *v, uint32_t flags);
void snapshot_close(struct snapshot *s);
// A fresh VMM, restored. `own` may be NULL.
int restore_into(struct vmm *v, const struct snapshot *base, const struct snapshot *own, uint32_t flags, struct vmm_reply *ret);
