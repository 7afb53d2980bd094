// A slot of stasis-launch in use: its name, its sockets, and a connection to its VMM. What both microVMs and builds run in.
#pragma once

#include "base/error.h"
#include "launch/launch.h"
#include "microvms/vmm_client.h"

#include <stdbool.h>

struct engine;

#define SOCKET_PATH 128

struct slot {
	char vmm[LAUNCH_VMM_MAX]; // empty: none
	char control[SOCKET_PATH], vsock[SOCKET_PATH];
	struct vmm client;
};

// A slot that holds nothing; slot_end() of it does nothing.
#define SLOT_NONE ((struct slot){.client.fd = -1})

// Takes a slot from stasis-launch and connects to its VMM. On failure nothing is left behind. [worker]
int slot_take(struct engine *en, const struct egress *egress, uint32_t vcpus, uint32_t memory_mib, struct slot *ret, struct error *e);

// Connects to the VMM of a slot that was taken earlier (by a stasisd before this one). [worker]
int slot_attach(struct engine *en, const char *vmm, struct slot *ret, struct error *e);

// Ends the slot and waits until it is gone; leaves SLOT_NONE. [worker]
void slot_end(struct engine *en, struct slot *s);
// The same behind the caller's back: tearing down a VM takes its time.
void slot_end_later(struct engine *en, struct slot *s);

// What a microVM of an image is restored from, and where its own files lie.
struct slot_restore {
	const char *image_folder; // system.ext4, disk.ext4, memory, state; working-set, when it was recorded
	const char *own_folder;   // layer (made when missing), console.log; with `own_memory` also memory and the state file
	const char *own_state;    // name of the state file in own_folder
	bool record;              // its working set, instead of using the image's
	bool own_memory;          // it was suspended before: its own state, and its memory above the image's
};

// Opens the files and has the VMM restore them. Lets the vCPUs go. [worker]
int slot_restore_image(struct engine *en, struct slot *s, const struct slot_restore *r, struct error *e);

// The devices that every microVM of an image has. layer == -1: the image's disk is written in place (while it is made).
void slot_image_devices(struct vmm_devices *d, int system, int disk, int layer, int *fds, size_t *nfds);

#define CONSOLE_LIMIT (1024 * 1024)
