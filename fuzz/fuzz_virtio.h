// What the fuzz targets of virtio devices share: a guest whose memory and register accesses come from the input.
//
// The input is a sequence of operations. A driver may set the device up as it should be (its queues then lie at known places, so that the
// input need not find them) and go on as badly as it likes. Operations are bytes: the number, then the arguments, little-endian.
#pragma once

#include "base/log.h"
#include "base/wire.h"
#include "vmm/virtio/virtio.h"

#include <linux/virtio_config.h>
#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define FUZZ_LOW_BYTES 0x20000u
#define FUZZ_HIGH_BYTES 0x4000u
#define FUZZ_HIGH 0x100000000u
#define FUZZ_QUEUE_SIZE 16u
#define FUZZ_QUEUES_AT 0x1000u // 0x400 for each: descriptors, +0x200 available, +0x300 used

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct fuzz_guest {
	struct memory memory;
	struct loop *loop;
	struct virtio_host host;
	struct virtio_device *device;
	uint16_t available[4];
};

static inline void fuzz_lock(void *arg) {
}
static inline void fuzz_interrupt(void *arg, unsigned line) {
}

// The same memory for every input, zeroed again.
static inline void fuzz_guest_open(struct fuzz_guest *g) {
	static uint8_t *low, *high;
	if (low == NULL) {
		log_set_level(LOG_LEVEL_ERROR);
		low = mmap(NULL, FUZZ_LOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		high = mmap(NULL, FUZZ_HIGH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (low == MAP_FAILED || high == MAP_FAILED)
			abort();
	}
	memset(low, 0, FUZZ_LOW_BYTES);
	memset(high, 0, FUZZ_HIGH_BYTES);
	*g = (struct fuzz_guest){.memory = {.regions = {{.guest = 0, .size = FUZZ_LOW_BYTES, .host = low},
							{.guest = FUZZ_HIGH, .size = FUZZ_HIGH_BYTES, .host = high}},
					    .count = 2,
					    .size = FUZZ_LOW_BYTES + FUZZ_HIGH_BYTES}};
	if (loop_create(&g->loop, NULL) < 0)
		abort();
	g->host = (struct virtio_host){
		.memory = &g->memory, .loop = g->loop, .lock = fuzz_lock, .unlock = fuzz_lock, .interrupt = fuzz_interrupt, .vm = g};
}

static inline void fuzz_guest_close(struct fuzz_guest *g) {
	virtio_destroy(g->device);
	loop_destroy(g->loop);
}

static inline void fuzz_run(struct fuzz_guest *g, unsigned times) {
	for (unsigned i = 0; i < times; i++) {
		if (loop_run_once(g->loop, 0, fuzz_lock, fuzz_lock, g) <= 0)
			break;
	}
}

static inline void fuzz_reg(struct fuzz_guest *g, uint64_t offset, uint32_t value) {
	virtio_mmio_write(g->device, offset, 4, value);
}

// Sets the device up as a driver should, with the features that the mask leaves.
static inline void fuzz_drive(struct fuzz_guest *g, uint32_t mask) {
	fuzz_reg(g, VIRTIO_MMIO_STATUS, 0);
	fuzz_reg(g, VIRTIO_MMIO_STATUS, 3);
	fuzz_reg(g, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	fuzz_reg(g, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	fuzz_reg(g, VIRTIO_MMIO_DRIVER_FEATURES, mask & (uint32_t)virtio_mmio_read(g->device, VIRTIO_MMIO_DEVICE_FEATURES, 4));
	fuzz_reg(g, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	fuzz_reg(g, VIRTIO_MMIO_DRIVER_FEATURES, 1);
	fuzz_reg(g, VIRTIO_MMIO_STATUS, 11);
	for (unsigned i = 0; i < virtio_queue_count(g->device); i++) {
		uint32_t at = FUZZ_QUEUES_AT + 0x400 * i;
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_SEL, i);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_NUM, FUZZ_QUEUE_SIZE);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_DESC_LOW, at);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_DESC_HIGH, 0);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_AVAIL_LOW, at + 0x200);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, 0);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_USED_LOW, at + 0x300);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_USED_HIGH, 0);
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_READY, 1);
		memset(memory_at(&g->memory, at, 0x400), 0, 0x400);
		g->available[i] = 0;
	}
	fuzz_reg(g, VIRTIO_MMIO_STATUS, 15);
}

static inline void fuzz_publish(struct fuzz_guest *g, unsigned queue, uint16_t head) {
	uint8_t *available = memory_at(&g->memory, FUZZ_QUEUES_AT + 0x400 * queue + 0x200, 0x100);
	memcpy(available + 4 + 2 * (g->available[queue]++ % FUZZ_QUEUE_SIZE), &head, 2);
	memcpy(available + 2, &g->available[queue], 2);
}

static inline void fuzz_descriptor(struct fuzz_guest *g, unsigned queue, unsigned index, uint64_t address, uint32_t size, uint16_t flags,
				   uint16_t next) {
	struct vring_desc d = {.addr = address, .len = size, .flags = flags, .next = next};
	memcpy(memory_at(&g->memory, FUZZ_QUEUES_AT + 0x400 * queue + 16 * (index % FUZZ_QUEUE_SIZE), 16), &d, 16);
}

// Snapshot, and on with another device.
static inline void fuzz_move(struct fuzz_guest *g, struct virtio_device *fresh, bool clone) {
	static uint8_t section[1 << 20];
	struct writer w = writer_over(section, sizeof(section));
	if (virtio_quiesce(g->device, NULL) < 0 || virtio_save(g->device, &w) < 0) {
		virtio_resume(g->device);
		virtio_destroy(fresh);
		return;
	}
	struct reader r = reader_over(section, sizeof(section) - w.left);
	struct error e;
	if (virtio_load(fresh, &r, &e) < 0 || r.left != 0)
		abort(); // what was saved can be loaded
	if (clone)
		virtio_vsock_transport_reset(fresh);
	virtio_destroy(g->device);
	g->device = fresh;
	virtio_resume(fresh);
}

// One operation that any device understands; false: the number is one of the target's own.
static inline bool fuzz_operation(struct fuzz_guest *g, uint8_t operation, struct reader *r) {
	uint16_t at;
	uint8_t size, queue;
	switch (operation) {
	case 0:
		at = read_u16(r);
		size = read_u8(r);
		virtio_mmio_write(g->device, at % 0x1100, size, read_u64(r));
		return true;
	case 1:
		at = read_u16(r);
		(void)virtio_mmio_read(g->device, at % 0x1100, read_u8(r));
		return true;
	case 2: {
		uint32_t to = read_u32(r);
		size = read_u8(r);
		void *p = memory_at(&g->memory, to % FUZZ_LOW_BYTES, size);
		const void *from = read_bytes(r, size);
		if (p != NULL && from != NULL)
			memcpy(p, from, size);
		return true;
	}
	case 3:
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, read_u8(r));
		return true;
	case 4:
		fuzz_run(g, 4);
		return true;
	case 5: {
		queue = read_u8(r) % 4;
		uint8_t index = read_u8(r);
		uint64_t address = read_u32(r);
		if ((address & 0x80000000) != 0)
			address = FUZZ_HIGH + (address & 0xffff);
		uint32_t bytes = read_u32(r);
		uint16_t flags = read_u16(r);
		fuzz_descriptor(g, queue, index, address, bytes, flags, read_u16(r));
		return true;
	}
	case 6:
		queue = read_u8(r) % 4;
		fuzz_publish(g, queue, read_u8(r));
		fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, queue);
		return true;
	case 7:
		fuzz_drive(g, read_u32(r));
		return true;
	default:
		return false;
	}
}
