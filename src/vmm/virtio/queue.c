// Split virtqueues (virtio 1.2, section 2.7): the one way to the descriptors that a guest wrote.
//
// The guest is assumed to change every byte at every moment. Each descriptor is copied once and judged by the copy; addresses become
// pointers only through memory_at(); chains are bounded in steps, so that a loop ends; of the used ring nothing is read back. A breach
// makes the device need a reset. The addresses of the three areas were checked when the queue became ready, and guest memory does not move.
#include "vmm/virtio/device.h"

#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <unistd.h>

// Offsets within the areas (virtio 1.2, sections 2.7.6 and 2.7.8).
#define RING_FLAGS 0u
#define RING_INDEX 2u
#define RING_ENTRIES 4u

static uint16_t load16(const uint8_t *p) {
	return __atomic_load_n((const uint16_t *)(const void *)p, __ATOMIC_RELAXED);
}
static void store16(uint8_t *p, uint16_t v) {
	__atomic_store_n((uint16_t *)(void *)p, v, __ATOMIC_RELAXED);
}

static uint8_t *used_event(const struct virtio_queue *q) {
	return q->available + RING_ENTRIES + 2 * (size_t)q->size;
}
static uint8_t *available_event(const struct virtio_queue *q) {
	return q->used + RING_ENTRIES + sizeof(struct vring_used_elem) * (size_t)q->size;
}

bool queue_enable(struct virtio_queue *q) {
	const struct memory *m = q->device->host.memory;
	uint32_t size = q->size;
	if (size == 0 || size > q->size_max || (size & (size - 1)) != 0)
		return false;
	// Alignments: virtio 1.2, section 2.7.
	if (q->descriptor_address % 16 != 0 || q->available_address % 2 != 0 || q->used_address % 4 != 0)
		return false;
	const uint8_t *descriptors = memory_at(m, q->descriptor_address, sizeof(struct vring_desc) * (uint64_t)size);
	uint8_t *available = memory_at(m, q->available_address, RING_ENTRIES + 2 * (uint64_t)size + 2);
	uint8_t *used = memory_at(m, q->used_address, RING_ENTRIES + sizeof(struct vring_used_elem) * (uint64_t)size + 2);
	if (descriptors == NULL || available == NULL || used == NULL)
		return false;
	q->descriptors = descriptors;
	q->available = available;
	q->used = used;
	q->ready = true;
	q->signalled_used = q->next_used;
	q->signalled_valid = true;
	return true;
}

void queue_clear(struct virtio_queue *q) {
	q->ready = false;
	q->size = 0;
	q->descriptor_address = q->available_address = q->used_address = 0;
	q->descriptors = NULL;
	q->available = q->used = NULL;
	q->next_available = q->next_used = q->signalled_used = 0;
	q->signalled_valid = false;
}

uint16_t queue_watch(struct virtio_queue *q) {
	uint16_t index = load16(q->available + RING_INDEX);
	for (unsigned tries = 0;; tries++) {
		if (device_accepted(q->device, VIRTIO_RING_F_EVENT_IDX))
			store16(available_event(q), index);
		// The driver writes its index, then reads the event index; we the other way round: one of the two sees the other's.
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
		uint16_t again = load16(q->available + RING_INDEX);
		if (again == index || tries == 3) // a guest that counts on and on only cheats itself
			return index;
		index = again;
	}
}

// How many chains wait. When none do, the driver was told to notify the next one, and then none waited still.
static int waiting(struct virtio_queue *q) {
	uint16_t n = (uint16_t)(load16(q->available + RING_INDEX) - q->next_available);
	if (n == 0) {
		if (device_accepted(q->device, VIRTIO_RING_F_EVENT_IDX)) {
			store16(available_event(q), q->next_available);
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
			n = (uint16_t)(load16(q->available + RING_INDEX) - q->next_available);
		}
	}
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (n > q->size)
		return device_break(q->device, "available index jumped");
	return n;
}

// Adds one descriptor to the chain.
static int add(struct virtio_queue *q, struct chain *c, const struct vring_desc *desc) {
	bool writable = (desc->flags & VRING_DESC_F_WRITE) != 0;
	if (!writable && c->writable_count > 0)
		return device_break(q->device, "readable descriptor behind a writable one");
	if (desc->len == 0)
		return 0;
	if (c->readable_count + c->writable_count == QUEUE_SIZE_MAX)
		return device_break(q->device, "chain too long");
	void *at = memory_at(q->device->host.memory, desc->addr, desc->len);
	if (at == NULL)
		return device_break(q->device, "descriptor outside of memory");
	// All of a chain is below 4 GiB (virtio 1.2, section 2.7.4.2).
	uint64_t sum = (uint64_t)c->readable_bytes + c->writable_bytes + desc->len;
	if (sum > UINT32_MAX)
		return device_break(q->device, "chain of 4 GiB or more");
	c->iov[c->readable_count + c->writable_count] = (struct iovec){.iov_base = at, .iov_len = desc->len};
	if (writable) {
		c->writable_count++;
		c->writable_bytes += desc->len;
	} else {
		c->readable_count++;
		c->readable_bytes += desc->len;
	}
	return 0;
}

static struct vring_desc copy_descriptor(const uint8_t *table, uint32_t index) {
	struct vring_desc desc;
	memcpy(&desc, table + sizeof(desc) * (size_t)index, sizeof(desc));
	__asm__ volatile("" ::: "memory"); // the copy counts: no second fetch
	return desc;
}

static int walk(struct virtio_queue *q, struct chain *c) {
	const uint8_t *table = q->descriptors;
	uint32_t table_size = q->size, index = c->head;
	bool indirect = false;
	for (unsigned steps = 0;; steps++) {
		if (index >= table_size)
			return device_break(q->device, "descriptor index beyond the table");
		if (steps >= (indirect ? 2 * QUEUE_SIZE_MAX : q->size))
			return device_break(q->device, "chain too long");
		struct vring_desc desc = copy_descriptor(table, index);
		if ((desc.flags & VRING_DESC_F_INDIRECT) != 0) {
			// virtio 1.2, section 2.7.5.3: only the last of the direct ones, and not within an indirect table.
			if (indirect || !device_accepted(q->device, VIRTIO_RING_F_INDIRECT_DESC) || (desc.flags & VRING_DESC_F_NEXT) != 0)
				return device_break(q->device, "indirect descriptor where none may be");
			table_size = desc.len / (uint32_t)sizeof(desc);
			if (desc.len % sizeof(desc) != 0 || table_size == 0 || table_size > QUEUE_SIZE_MAX)
				return device_break(q->device, "bad length of an indirect table");
			table = memory_at(q->device->host.memory, desc.addr, desc.len);
			if (table == NULL)
				return device_break(q->device, "indirect table outside of memory");
			indirect = true;
			index = 0;
			continue;
		}
		int r = add(q, c, &desc);
		if (r < 0)
			return r;
		if ((desc.flags & VRING_DESC_F_NEXT) == 0)
			return 0;
		index = desc.next;
	}
}

int queue_pop(struct virtio_queue *q, struct chain *ret) {
	if (!q->ready || !device_is_live(q->device))
		return 0;
	int n = waiting(q);
	if (n <= 0)
		return n;
	ret->head = load16(q->available + RING_ENTRIES + 2 * (size_t)(q->next_available & (q->size - 1)));
	ret->readable_count = ret->writable_count = 0;
	ret->readable_bytes = ret->writable_bytes = 0;
	if (ret->head >= q->size)
		return device_break(q->device, "head beyond the table");
	int r = walk(q, ret);
	if (r < 0)
		return r;
	q->next_available++;
	return 1;
}

void queue_unpop(struct virtio_queue *q) {
	q->next_available--;
}

void queue_push(struct virtio_queue *q, uint16_t head, uint32_t written) {
	if (!q->ready)
		return;
	struct vring_used_elem element = {.id = head, .len = written};
	memcpy(q->used + RING_ENTRIES + sizeof(element) * (size_t)(q->next_used & (q->size - 1)), &element, sizeof(element));
	q->next_used++;
	__atomic_store_n((uint16_t *)(void *)(q->used + RING_INDEX), q->next_used, __ATOMIC_RELEASE);
}

void queue_signal(struct virtio_queue *q) {
	if (!q->ready || (q->signalled_valid && q->signalled_used == q->next_used))
		return;
	// Our index must be seen before we look at what the driver wishes.
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	bool wanted;
	if (device_accepted(q->device, VIRTIO_RING_F_EVENT_IDX))
		wanted = !q->signalled_valid || vring_need_event(load16(used_event(q)), q->next_used, q->signalled_used);
	else
		wanted = (load16(q->available + RING_FLAGS) & VRING_AVAIL_F_NO_INTERRUPT) == 0;
	q->signalled_used = q->next_used;
	q->signalled_valid = true;
	if (wanted)
		device_interrupt(q->device, VIRTIO_MMIO_INT_VRING);
}

void queue_kick(struct virtio_queue *q) {
	uint64_t one = 1;
	// Cannot fail: the counter is far from its end, for every event adds one.
	if (write(q->notify_fd, &one, sizeof(one)) < 0)
		return;
}
