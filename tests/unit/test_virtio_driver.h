// A driver for virtio devices, for tests: it does to a device what Linux does, through its registers and rings in memory of its own, and it can
// do wrong what a hostile guest would. The device behind is the real one, with a real event loop.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "vmm/virtio/virtio.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdbool.h>

#define RIG_LOW_BYTES (16ull << 20)
#define RIG_HIGH_BYTES (4ull << 20)
#define RIG_HIGH (4ull << 30) // guest address of the second region

struct rig {
	uint8_t *low, *high;
	struct memory memory;
	struct loop *loop;
	int locked; // for checking that the lock is held once
	unsigned interrupts;
	struct virtio_host host;
	struct virtio_device *device;
	uint64_t next; // guest address of the next free byte
	uint64_t features;
};

struct vq {
	struct rig *rig;
	unsigned index, size;
	uint64_t descriptors, available, used; // guest addresses
	uint16_t available_index, used_index;
	uint16_t free_count;
	uint16_t free_list[256];
	uint16_t lengths[256]; // of the chain that starts there
	bool event_idx;
};

// One piece of a chain.
struct piece {
	uint64_t address;
	uint32_t size;
	bool writable;
};

void rig_open(struct rig *r);
void rig_close(struct rig *r); // destroys the device as well
void *rig_at(struct rig *r, uint64_t guest);
uint64_t rig_alloc(struct rig *r, uint64_t bytes, uint64_t alignment);
void rig_run(struct rig *r, int timeout_ms);

uint32_t reg_read(struct rig *r, uint64_t offset);
void reg_write(struct rig *r, uint64_t offset, uint32_t value);

// Reset, features (those of `wanted` that are offered, and VERSION_1), FEATURES_OK.
void driver_begin(struct rig *r, uint64_t wanted);
void driver_queue(struct rig *r, struct vq *q, unsigned index, unsigned size);
void driver_ok(struct rig *r);
// Goes on with another device of the same kind, loaded from the state of the first.
void driver_moved(struct rig *r, struct virtio_device *d);
bool driver_needs_reset(struct rig *r);

// Makes a chain available; returns its head. Does not notify.
uint16_t vq_add(struct vq *q, const struct piece *pieces, unsigned count);
uint16_t vq_add_indirect(struct vq *q, const struct piece *pieces, unsigned count);
void vq_kick(struct vq *q);
// Takes a used chain: its head, or -1 when there is none.
int vq_take(struct vq *q, uint32_t *length);
// The same, and waits for it (fails the test after some seconds).
uint16_t vq_wait(struct vq *q, uint32_t *length);
// Raw access, for breaking rules.
void vq_write_descriptor(struct vq *q, unsigned index, uint64_t address, uint32_t size, uint16_t flags, uint16_t next);
void vq_publish(struct vq *q, uint16_t head);
