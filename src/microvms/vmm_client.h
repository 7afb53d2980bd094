// A client of one VMM's control socket (src/vmm/control.h): blocking requests with time-outs, for worker threads.
//
// A `struct vmm` is one connection. It is used by one thread at a time; between operations its descriptor may be watched for the EXITED
// event (vmm_look()).
#pragma once

#include "base/error.h"
#include "vmm/control.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vmm {
	int fd; // -1: not connected
	uint64_t sequence;
	bool ended; // the EXITED event came, a reply said so, or the connection is gone
	enum vmm_exit exit;
	char reason[VMM_REPLY_TEXT_MAX]; // of the end, for people
	uint32_t state;                  // enum vmm_state of the last reply
	uint64_t nanoseconds;            // that the VMM spent on the last request
	char text[VMM_REPLY_TEXT_MAX];   // what it said about the last request: how a restore's time was spent
};

// Milliseconds for requests that only turn a switch, and for those that move memory.
#define VMM_SHORT_MS 10000
#define VMM_LONG_MS 300000

int vmm_connect(const char *control_path, struct vmm *ret, struct error *e);
void vmm_close(struct vmm *v);

// Each sends one request and waits for its reply. -ETIMEDOUT: no reply in time; -ECONNRESET: the VMM is gone; otherwise the VMM's own error,
// with its text in e. The descriptors stay the caller's; they are in the order of src/vmm/control.h.
int vmm_boot(struct vmm *v, struct vmm_boot *request, const int *fds, size_t nfds, struct error *e);
int vmm_restore(struct vmm *v, struct vmm_restore *request, const int *fds, size_t nfds, struct error *e);
int vmm_pause(struct vmm *v, struct error *e);
int vmm_resume(struct vmm *v, struct error *e);
int vmm_snapshot(struct vmm *v, uint32_t flags, int state_fd, int memory_fd, struct error *e);
// Of a VM that was restored with VMM_RESTORE_RECORD: writes its working set to fd.
int vmm_working_set(struct vmm *v, int fd, struct error *e);
int vmm_stats(struct vmm *v, struct vmm_stats *ret, struct error *e);

// Reads what the VMM said by itself without blocking. Returns true when the guest or the VMM has ended: see v->exit, v->reason.
bool vmm_look(struct vmm *v);

// Puts a block device into a device list and its descriptors behind those that are there. `layer` is -1 for devices without one.
void vmm_add_block(struct vmm_devices *d, const char *serial, uint32_t flags, uint64_t size, int base, int layer, int *fds, size_t *nfds);
