// Virtio devices over MMIO (virtio 1.2, section 4.2, version 2 registers), as the VMM's core uses them.
//
// Threads: a vCPU thread that exits for a register access and the loop thread that serves queues both hold the one device lock of the VM
// while they are in here; nothing in here takes it. Work that blocks (disk) happens on threads of a device's own, without the lock, on
// requests that were copied out of guest memory.
//
// A guest that breaks the protocol sets DEVICE_NEEDS_RESET on the device and is ignored until it resets it; it never ends the VMM.
#pragma once

#include "base/error.h"
#include "base/wire.h"
#include "vmm/control.h"
#include "vmm/loop.h"
#include "vmm/memory.h"

#include <stdbool.h>
#include <stdint.h>

// What the core gives to every device.
struct virtio_host {
	struct memory *memory;
	struct loop *loop;
	void (*lock)(void *vm);
	void (*unlock)(void *vm);
	void (*interrupt)(void *vm, unsigned line); // edge on an interrupt line (GSI); any thread
	void *vm;
};

struct virtio_device; // opaque

// Constructors. `line` is the device's interrupt line. Descriptors become the device's.
int virtio_block_create(const struct virtio_host *host, unsigned line, const struct vmm_block *config, int base_fd, int layer_fd,
			struct virtio_device **ret, struct error *e);
int virtio_net_create(const struct virtio_host *host, unsigned line, int tap_fd, const uint8_t mac[6], struct virtio_device **ret,
		      struct error *e);
int virtio_vsock_create(const struct virtio_host *host, unsigned line, int listen_fd, uint64_t guest_cid, struct virtio_device **ret,
			struct error *e);
int virtio_rng_create(const struct virtio_host *host, unsigned line, struct virtio_device **ret, struct error *e);
int virtio_balloon_create(const struct virtio_host *host, unsigned line, struct virtio_device **ret, struct error *e);
void virtio_destroy(struct virtio_device *d);

// Registers: offset within the device's 4 KiB page; size 1, 2, 4 or 8. Anything else reads as zero and is ignored when written.
uint64_t virtio_mmio_read(struct virtio_device *d, uint64_t offset, unsigned size);
void virtio_mmio_write(struct virtio_device *d, uint64_t offset, unsigned size, uint64_t value);

// The eventfd that, when readable, means QueueNotify was written with `queue` (for KVM_IOEVENTFD at offset 0x50 with that datamatch). The device
// already watches it in the loop. Without an ioeventfd, virtio_mmio_write() of QueueNotify does the same.
int virtio_notify_fd(struct virtio_device *d, unsigned queue);
unsigned virtio_queue_count(const struct virtio_device *d);

// Snapshots. quiesce: called with the vCPUs stopped; waits until no request is under way and nothing but save/load and
// resume follows. The device stays quiet (it serves nothing and injects nothing) until resume. Disks are not made durable by this, see
// virtio_flush(). load needs the guest's memory in place: it checks the queues' addresses.
int virtio_quiesce(struct virtio_device *d, struct error *e);
void virtio_resume(struct virtio_device *d);
int virtio_save(struct virtio_device *d, struct writer *w);                  // the device's section; -ENOSPC
int virtio_load(struct virtio_device *d, struct reader *r, struct error *e); // into a fresh device; everything checked; quiet afterwards

// vsock only: the microVM that goes on is another one than was snapshotted (VMM_RESTORE_CLONE): open streams are reset towards the guest
// (VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, virtio 1.2 section 5.10.6.7), and new connections wait until it has taken notice.
void virtio_vsock_transport_reset(struct virtio_device *d);

// Makes what was written so far durable (block devices; others: nothing).
int virtio_flush(struct virtio_device *d, struct error *e);

// Adds the device's counters to *s.
void virtio_stats(const struct virtio_device *d, struct vmm_stats *s);
