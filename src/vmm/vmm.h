// The VMM: what can be done with the one VM of this process. The control socket (control_server.h) is its only user; src/vmm/vm.h is for
// the parts behind it.
//
// All functions run on the main thread with the device lock held (vmm_pause() lets go of it while it waits for the vCPUs). Descriptors given
// become the VMM's, also when the call fails.
#pragma once

#include "base/error.h"
#include "vmm/control.h"

#include <stddef.h>
#include <stdint.h>

struct vm;

int vmm_prepare(struct vm *vm, uint32_t memory_mib, uint32_t vcpus, struct error *e);

// fds: kernel, initrd, console log, then the disks'.
int vmm_boot(struct vm *vm, const struct vmm_boot *request, int *fds, size_t fd_count, struct error *e);

// fds: state, memory layers, console log, then the disks'. On success `timing` has one line that says where the time went.
int vmm_restore(struct vm *vm, const struct vmm_restore *request, int *fds, size_t fd_count, char *timing, size_t timing_room,
		struct error *e);

// Both are fine when there is nothing to do.
int vmm_pause(struct vm *vm, struct error *e);
int vmm_resume(struct vm *vm, struct error *e);

// Writes a snapshot of the paused VM. The files are not synced, the disks are.
int vmm_snapshot(struct vm *vm, uint32_t flags, int state_fd, int memory_fd, struct error *e);
// Writes which pages the guest has used since it was restored for a recording. The descriptor becomes the callee's.
int vmm_working_set(struct vm *vm, int file_fd, struct error *e);

void vmm_stats(struct vm *vm, struct vmm_stats *ret);

// Stops the vCPUs after the guest has ended. To be called when vm->exited_fd is readable.
void vmm_guest_has_ended(struct vm *vm);

// Stops the vCPUs and makes the disks durable; the process ends after it.
int vmm_finish(struct vm *vm, struct error *e);
