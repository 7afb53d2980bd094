// Inside src/vmm/virtio/: what the transport (mmio.c), the queues (queue.c) and the devices share.
//
// A device embeds `struct virtio_device` as its first member and fills in its operations. Everything runs with the VM's device lock held,
// except what a device does on threads of its own.
#pragma once

#include "vmm/virtio/virtio.h"

#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <sys/uio.h>

#define QUEUE_SIZE_MAX 256u // descriptors of a queue; also the longest chain and the longest indirect table
#define QUEUES_MAX 4u
#define CONFIG_MAX 64u // bytes of a device's configuration space

struct virtio_device;

// One split virtqueue (virtio 1.2, section 2.7). The guest may write to all three areas at any time.
struct virtio_queue {
	struct virtio_device *device;
	unsigned index;
	unsigned size_max;
	int notify_fd;
	struct loop_handler handler;

	// As the driver wrote them (virtio 1.2, section 4.2.2).
	bool ready;
	uint32_t size;
	uint64_t descriptor_address, available_address, used_address;

	// Where they lie in this process; valid while ready.
	const uint8_t *descriptors;
	uint8_t *available, *used;

	uint16_t next_available; // index of the next available entry to take
	uint16_t next_used;      // our copy of used->idx: what the guest writes there is never read
	uint16_t signalled_used; // next_used when the driver was last interrupted
	bool signalled_valid;
};

// A chain of descriptors: first what the driver wrote for us, then what we may write. Zero-length descriptors are left out.
struct chain {
	uint16_t head;
	unsigned readable_count, writable_count;
	uint32_t readable_bytes, writable_bytes;
	struct iovec iov[QUEUE_SIZE_MAX]; // readable ones first
};

struct virtio_ops {
	const char *name;
	// The driver may have made buffers available; called only for a live device and a ready queue.
	void (*notify)(struct virtio_device *d, unsigned queue);
	// The device became live: DRIVER_OK, or resumed while it was set. Every ready queue is notified soon after.
	void (*start)(struct virtio_device *d);
	// Ends all work on guest memory before it returns: reset, queue taken away, protocol breach. May push what is complete.
	void (*stop)(struct virtio_device *d);
	// The driver has reset the device: forget what the driver knew.
	void (*reset)(struct virtio_device *d);
	// The driver wrote to configuration space; d->config has the new bytes (only where config_writable says so).
	void (*config_written)(struct virtio_device *d);
	int (*quiesce)(struct virtio_device *d, struct error *e); // behind stop(): before the device becomes quiet
	void (*resume)(struct virtio_device *d);                  // not quiet any more; also called when no driver is there
	void (*save)(struct virtio_device *d, struct writer *w);
	int (*load)(struct virtio_device *d, struct reader *r, struct error *e);
	int (*flush)(struct virtio_device *d, struct error *e);
	void (*stats)(const struct virtio_device *d, struct vmm_stats *s);
	void (*destroy)(struct virtio_device *d); // everything of the device's own, and the memory of d
};

struct virtio_device {
	const struct virtio_ops *ops;
	struct virtio_host host;
	unsigned line;
	uint32_t id; // VIRTIO_ID_…
	uint64_t offered, accepted;
	uint32_t status;
	uint32_t isr;
	uint32_t generation; // of the configuration space
	uint32_t device_features_select, driver_features_select, queue_select;
	bool quiet;
	uint64_t breaches; // of the protocol by the guest
	unsigned queue_count;
	struct virtio_queue queues[QUEUES_MAX];
	unsigned config_size;
	unsigned config_writable_from, config_writable_to; // byte range that the driver may write
	uint8_t config[CONFIG_MAX];
};

// device.c

// Common part of the constructors: queues with their eventfds, watched by the loop. On failure nothing is left behind.
int device_init(struct virtio_device *d, const struct virtio_host *host, unsigned line, uint32_t id, const struct virtio_ops *ops,
		const unsigned *queue_sizes, unsigned queue_count, struct error *e);
// The counterpart: what device_init() made. Safe on a device whose device_init() failed.
void device_fini(struct virtio_device *d);

// Whether the driver is up and the device may touch guest memory.
static inline bool device_is_live(const struct virtio_device *d) {
	return (d->status & (VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED)) ==
		       VIRTIO_CONFIG_S_DRIVER_OK &&
	       !d->quiet;
}
static inline bool device_accepted(const struct virtio_device *d, unsigned feature) {
	return (d->accepted >> feature & 1) != 0;
}
void device_interrupt(struct virtio_device *d, uint32_t why); // VIRTIO_MMIO_INT_…
void device_config_changed(struct virtio_device *d);
// The guest broke the protocol (virtio 1.2, section 2.1.2): DEVICE_NEEDS_RESET, and nothing is served until it resets. Returns -EPROTO.
int device_break(struct virtio_device *d, const char *what);
void device_reset(struct virtio_device *d);
void device_start(struct virtio_device *d);

// queue.c

// Checks the addresses and the size that the driver gave, and makes the queue ready. False: something is wrong with them.
bool queue_enable(struct virtio_queue *q);
void queue_clear(struct virtio_queue *q);

// Takes the next available chain. Returns 1, 0 when there is none (the driver is then asked to notify the next one), or a negative errno
// when the driver broke the protocol (the device needs a reset then).
int queue_pop(struct virtio_queue *q, struct chain *ret);
// Puts the chain that was popped last back, as if it had not been popped. At most once per pop, and before any other push.
void queue_unpop(struct virtio_queue *q);
// Returns a chain to the driver; `written` counts the bytes written to it.
void queue_push(struct virtio_queue *q, uint16_t head, uint32_t written);
// Interrupts the driver if it wants to know of what was pushed since the last call (virtio 1.2, section 2.7.7).
void queue_signal(struct virtio_queue *q);
// Makes the loop call notify() for this queue again.
void queue_kick(struct virtio_queue *q);
// The driver's available index as it is now, and the wish to be notified of the next change.
uint16_t queue_watch(struct virtio_queue *q);

// iov.c: scattered bytes. All stay within the segments and return how many bytes they moved.

size_t iov_read(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t n);
size_t iov_write(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t n);
size_t iov_zero(const struct iovec *iov, unsigned count, size_t offset, size_t n);
// The segments of `n` bytes from `offset` on, in `to` (room for `count`). Returns their number.
unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t n, struct iovec *to);
