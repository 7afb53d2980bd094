// See test_virtio_driver.h.
#include "test_virtio_driver.h"

#include "base/clock.h"

#include <string.h>
#include <sys/mman.h>

static void lock(void *arg) {
	struct rig *r = arg;
	assert_int_equal(r->locked, 0);
	r->locked = 1;
}

static void unlock(void *arg) {
	struct rig *r = arg;
	assert_int_equal(r->locked, 1);
	r->locked = 0;
}

static void interrupt(void *arg, unsigned line) {
	struct rig *r = arg;
	assert_int_equal(line, 5);
	r->interrupts++;
}

void rig_open(struct rig *r) {
	*r = (struct rig){.next = 0x10000};
	r->low = mmap(NULL, RIG_LOW_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	r->high = mmap(NULL, RIG_HIGH_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(r->low != MAP_FAILED && r->high != MAP_FAILED);
	r->memory = (struct memory){
		.regions = {{.guest = 0, .size = RIG_LOW_BYTES, .host = r->low},
			    {.guest = RIG_HIGH, .size = RIG_HIGH_BYTES, .host = r->high}},
		.count = 2,
		.size = RIG_LOW_BYTES + RIG_HIGH_BYTES,
	};
	assert_int_equal(loop_create(&r->loop, NULL), 0);
	r->host = (struct virtio_host){
		.memory = &r->memory, .loop = r->loop, .lock = lock, .unlock = unlock, .interrupt = interrupt, .vm = r};
}

void rig_close(struct rig *r) {
	virtio_destroy(r->device);
	loop_destroy(r->loop);
	munmap(r->low, RIG_LOW_BYTES);
	munmap(r->high, RIG_HIGH_BYTES);
}

void *rig_at(struct rig *r, uint64_t guest) {
	void *p = memory_at(&r->memory, guest, 1);
	assert_non_null(p);
	return p;
}

uint64_t rig_alloc(struct rig *r, uint64_t bytes, uint64_t alignment) {
	uint64_t at = (r->next + alignment - 1) / alignment * alignment;
	r->next = at + bytes;
	assert_true(r->next <= RIG_LOW_BYTES);
	return at;
}

void rig_run(struct rig *r, int timeout_ms) {
	int n = loop_run_once(r->loop, timeout_ms, lock, unlock, r);
	assert_true(n >= 0);
}

uint32_t reg_read(struct rig *r, uint64_t offset) {
	return (uint32_t)virtio_mmio_read(r->device, offset, 4);
}

void reg_write(struct rig *r, uint64_t offset, uint32_t value) {
	virtio_mmio_write(r->device, offset, 4, value);
}

void driver_begin(struct rig *r, uint64_t wanted) {
	assert_int_equal(reg_read(r, VIRTIO_MMIO_MAGIC_VALUE), 0x74726976);
	assert_int_equal(reg_read(r, VIRTIO_MMIO_VERSION), 2);
	reg_write(r, VIRTIO_MMIO_STATUS, 0);
	assert_int_equal(reg_read(r, VIRTIO_MMIO_STATUS), 0);
	reg_write(r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE);
	reg_write(r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER);
	reg_write(r, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 1);
	uint64_t offered = (uint64_t)reg_read(r, VIRTIO_MMIO_DEVICE_FEATURES) << 32;
	reg_write(r, VIRTIO_MMIO_DEVICE_FEATURES_SEL, 0);
	offered |= reg_read(r, VIRTIO_MMIO_DEVICE_FEATURES);
	r->features = offered & (wanted | 1ull << VIRTIO_F_VERSION_1);
	reg_write(r, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg_write(r, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)(r->features >> 32));
	reg_write(r, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 0);
	reg_write(r, VIRTIO_MMIO_DRIVER_FEATURES, (uint32_t)r->features);
	uint32_t status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK;
	reg_write(r, VIRTIO_MMIO_STATUS, status);
	assert_int_equal(reg_read(r, VIRTIO_MMIO_STATUS), status);
}

void driver_queue(struct rig *r, struct vq *q, unsigned index, unsigned size) {
	*q = (struct vq){.rig = r, .index = index, .size = size, .free_count = (uint16_t)size};
	q->event_idx = (r->features >> VIRTIO_RING_F_EVENT_IDX & 1) != 0;
	for (unsigned i = 0; i < size; i++)
		q->free_list[i] = (uint16_t)(size - 1 - i);
	q->descriptors = rig_alloc(r, 16ull * size, 16);
	q->available = rig_alloc(r, 6 + 2ull * size, 2);
	q->used = rig_alloc(r, 6 + 8ull * size, 4);
	reg_write(r, VIRTIO_MMIO_QUEUE_SEL, index);
	assert_int_equal(reg_read(r, VIRTIO_MMIO_QUEUE_READY), 0);
	assert_true(reg_read(r, VIRTIO_MMIO_QUEUE_NUM_MAX) >= size);
	reg_write(r, VIRTIO_MMIO_QUEUE_NUM, size);
	reg_write(r, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)q->descriptors);
	reg_write(r, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(q->descriptors >> 32));
	reg_write(r, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)q->available);
	reg_write(r, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(q->available >> 32));
	reg_write(r, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)q->used);
	reg_write(r, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(q->used >> 32));
	reg_write(r, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(reg_read(r, VIRTIO_MMIO_QUEUE_READY), 1);
}

void driver_ok(struct rig *r) {
	reg_write(r, VIRTIO_MMIO_STATUS, reg_read(r, VIRTIO_MMIO_STATUS) | VIRTIO_CONFIG_S_DRIVER_OK);
}

void driver_moved(struct rig *r, struct virtio_device *d) {
	virtio_destroy(r->device);
	r->device = d;
}

bool driver_needs_reset(struct rig *r) {
	return (reg_read(r, VIRTIO_MMIO_STATUS) & VIRTIO_CONFIG_S_NEEDS_RESET) != 0;
}

void vq_write_descriptor(struct vq *q, unsigned index, uint64_t address, uint32_t size, uint16_t flags, uint16_t next) {
	struct vring_desc d = {.addr = address, .len = size, .flags = flags, .next = next};
	memcpy((uint8_t *)rig_at(q->rig, q->descriptors) + 16 * (size_t)index, &d, sizeof(d));
}

static uint16_t *available(struct vq *q) {
	return rig_at(q->rig, q->available);
}

void vq_publish(struct vq *q, uint16_t head) {
	available(q)[2 + q->available_index % q->size] = head;
	q->available_index++;
	__atomic_store_n(&available(q)[1], q->available_index, __ATOMIC_SEQ_CST);
}

uint16_t vq_add(struct vq *q, const struct piece *pieces, unsigned count) {
	assert_true(count > 0 && count <= q->free_count);
	uint16_t taken[256];
	for (unsigned i = 0; i < count; i++)
		taken[i] = q->free_list[--q->free_count];
	for (unsigned i = 0; i < count; i++) {
		uint16_t flags = (uint16_t)((pieces[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0));
		vq_write_descriptor(q, taken[i], pieces[i].address, pieces[i].size, flags, i + 1 < count ? taken[i + 1] : 0);
	}
	q->lengths[taken[0]] = (uint16_t)count;
	vq_publish(q, taken[0]);
	return taken[0];
}

uint16_t vq_add_indirect(struct vq *q, const struct piece *pieces, unsigned count) {
	uint64_t table = rig_alloc(q->rig, 16ull * count, 16);
	struct vring_desc *d = rig_at(q->rig, table);
	for (unsigned i = 0; i < count; i++) {
		d[i] = (struct vring_desc){.addr = pieces[i].address, .len = pieces[i].size, .next = (uint16_t)(i + 1)};
		d[i].flags = (uint16_t)((pieces[i].writable ? VRING_DESC_F_WRITE : 0) | (i + 1 < count ? VRING_DESC_F_NEXT : 0));
	}
	assert_true(q->free_count > 0);
	uint16_t head = q->free_list[--q->free_count];
	vq_write_descriptor(q, head, table, 16 * count, VRING_DESC_F_INDIRECT, 0);
	q->lengths[head] = 1;
	vq_publish(q, head);
	return head;
}

void vq_kick(struct vq *q) {
	reg_write(q->rig, VIRTIO_MMIO_QUEUE_NOTIFY, q->index);
}

int vq_take(struct vq *q, uint32_t *length) {
	const uint8_t *used = rig_at(q->rig, q->used);
	uint16_t index = __atomic_load_n((const uint16_t *)(const void *)(used + 2), __ATOMIC_SEQ_CST);
	if (index == q->used_index)
		return -1;
	struct vring_used_elem e;
	memcpy(&e, used + 4 + 8 * (size_t)(q->used_index % q->size), sizeof(e));
	q->used_index++;
	if (q->event_idx)
		available(q)[2 + q->size] = q->used_index; // used_event: interrupt with the next one
	assert_true(e.id < q->size);
	if (length != NULL)
		*length = e.len;
	// Give the descriptors back; the order does not matter.
	const struct vring_desc *d = rig_at(q->rig, q->descriptors);
	for (unsigned i = 0, at = e.id; i < q->lengths[e.id]; i++, at = d[at].next)
		q->free_list[q->free_count++] = (uint16_t)at;
	return (int)e.id;
}

uint16_t vq_wait(struct vq *q, uint32_t *length) {
	uint64_t end = monotonic_ms() + 10000;
	for (;;) {
		int head = vq_take(q, length);
		if (head >= 0)
			return (uint16_t)head;
		if (monotonic_ms() > end)
			fail_msg("the device did not answer");
		rig_run(q->rig, 100);
	}
}
