// A small client of stasis-vmm for tests and benchmarks: starts one, talks to its control socket, and makes bootable guests.
#pragma once

#include "base/error.h"
#include "vmm/control.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CLIENT_WAIT_MS 20000

struct vmm {
	pid_t pid;
	int sock;
	int console; // memory file with the console log
	uint64_t sequence;
	bool has_event;
	struct vmm_reply event; // EXITED, when it came while another reply was awaited
	struct vmm_stats stats; // of the last VMM_STATS
};

// Starts a VMM with its descriptors. `vsock` may be -1. Returns 0 or a negative errno.
int vmm_spawn(struct vmm *v, const char *program, int tap, int vsock);
// Kills it if it still runs.
void vmm_end(struct vmm *v);
// Whether the process is alive.
bool vmm_alive(const struct vmm *v);

// Sends a request whose header is filled in here, and waits for its reply. Returns the reply's result; -ETIMEDOUT, -EPIPE when there is none.
int vmm_call(struct vmm *v, uint32_t kind, void *request, size_t size, const int *fds, size_t nfds, struct vmm_reply *ret);
int vmm_send(struct vmm *v, uint32_t kind, void *request, size_t size, const int *fds, size_t nfds);
int vmm_receive(struct vmm *v, struct vmm_reply *ret, int timeout_ms);

int vmm_simple(struct vmm *v, uint32_t kind, struct vmm_reply *ret); // PAUSE, RESUME, STATS, QUIT
int vmm_prepare_call(struct vmm *v, uint32_t memory_mib, uint32_t vcpus, struct vmm_reply *ret);
// A tiny guest, without disks.
int vmm_boot_call(struct vmm *v, int kernel, int initrd, uint32_t memory_mib, uint32_t vcpus, const char *cmdline, struct vmm_reply *ret);
int vmm_restore_call(struct vmm *v, int state, const int *layers, uint32_t layer_count, uint32_t flags, struct vmm_reply *ret);
int vmm_snapshot_call(struct vmm *v, uint32_t flags, int state, int memory, struct vmm_reply *ret);
// Waits for the EXITED event.
int vmm_wait_exited(struct vmm *v, struct vmm_reply *ret, int timeout_ms);

// Waits until the console log has `text` behind offset *from (or anywhere, when from is NULL) and advances *from behind it.
bool console_wait(const struct vmm *v, const char *text, size_t *from);
// The number behind the last "name=" of the console log.
bool console_value(const struct vmm *v, const char *name, uint64_t *ret);
void console_print(const struct vmm *v);

int memory_file(const char *name);
int copy_file(int from);
// A bzImage around a flat guest: what the VMM's kernel loader expects. Returns a descriptor.
int guest_image(const char *path);
