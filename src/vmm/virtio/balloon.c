// Memory balloon (virtio 1.2, section 5.5): gives back to the host what the guest does not use.
//
// Free page reporting (section 5.5.6.7) does the work: the guest names ranges of free pages, and their memory is dropped at once. The balloon
// proper is there for drivers that use it: what is put into it is dropped as well, taking out needs nothing. The host asks for no pages.
//
// Linux and QEMU number queues that exist, leaving out those of features that are not offered; so reporting is queue 2 here, for there is
// neither a statistics nor a free page hint queue.
#include "vmm/virtio/device.h"

#include <linux/virtio_balloon.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_REPORTING, QUEUE_COUNT };

#define PFNS_MAX 1024u // of one request that are looked at: Linux sends 256 at most
#define CHAINS_PER_WAKE 64u

struct balloon {
	struct virtio_device device;
	uint64_t reported_bytes;
};

_Static_assert(1u << VIRTIO_BALLOON_PFN_SHIFT == PAGE_BYTES, "a PFN is a page");

static struct balloon *balloon_of(struct virtio_device *d) {
	return (struct balloon *)d;
}

// Drops whole pages within [at, at + size) of guest memory.
static uint64_t drop(uint8_t *at, uint64_t size) {
	uintptr_t from = ((uintptr_t)at + PAGE_BYTES - 1) & ~(uintptr_t)(PAGE_BYTES - 1);
	uintptr_t to = ((uintptr_t)at + size) & ~(uintptr_t)(PAGE_BYTES - 1);
	if (from >= to)
		return 0;
	uint64_t bytes = to - from;
	return madvise(at + (from - (uintptr_t)at), bytes, MADV_DONTNEED) == 0 ? bytes : 0;
}

static void inflate(struct virtio_device *d, const struct chain *c) {
	size_t count = c->readable_bytes / sizeof(uint32_t);
	if (count > PFNS_MAX)
		count = PFNS_MAX;
	uint64_t first = 0, pages = 0;
	for (size_t i = 0; i < count; i++) {
		uint32_t pfn;
		iov_read(c->iov, c->readable_count, i * sizeof(pfn), &pfn, sizeof(pfn));
		if (pages > 0 && pfn == first + pages) {
			pages++;
			continue;
		}
		uint8_t *at = memory_at(d->host.memory, first * PAGE_BYTES, pages * PAGE_BYTES);
		if (at != NULL)
			drop(at, pages * PAGE_BYTES);
		first = pfn;
		pages = 1;
	}
	uint8_t *at = memory_at(d->host.memory, first * PAGE_BYTES, pages * PAGE_BYTES);
	if (at != NULL)
		drop(at, pages * PAGE_BYTES);
}

static void report(struct balloon *b, const struct chain *c) {
	for (unsigned i = 0; i < c->writable_count; i++) {
		const struct iovec *range = &c->iov[c->readable_count + i];
		b->reported_bytes += drop(range->iov_base, range->iov_len);
	}
}

static void balloon_notify(struct virtio_device *d, unsigned queue) {
	struct virtio_queue *q = &d->queues[queue];
	struct chain c;
	unsigned served = 0;
	while (served < CHAINS_PER_WAKE && queue_pop(q, &c) == 1) {
		if (queue == QUEUE_INFLATE)
			inflate(d, &c);
		else if (queue == QUEUE_REPORTING)
			report(balloon_of(d), &c);
		queue_push(q, c.head, 0);
		served++;
	}
	queue_signal(q);
	if (served == CHAINS_PER_WAKE)
		queue_kick(q);
}

static void balloon_reset(struct virtio_device *d) {
	memset(d->config, 0, d->config_size);
}

static void balloon_save(struct virtio_device *d, struct writer *w) {
	write_bytes(w, d->config, d->config_size);
	write_u64(w, balloon_of(d)->reported_bytes);
}

static int balloon_load(struct virtio_device *d, struct reader *r, struct error *e) {
	read_copy(r, d->config, d->config_size);
	balloon_of(d)->reported_bytes = read_u64(r);
	return 0;
}

static void balloon_stats(const struct virtio_device *d, struct vmm_stats *s) {
	s->balloon_reported_bytes += ((const struct balloon *)d)->reported_bytes;
}

static void balloon_destroy(struct virtio_device *d) {
	free(balloon_of(d));
}

static const struct virtio_ops balloon_ops = {
	.name = "balloon",
	.notify = balloon_notify,
	.reset = balloon_reset,
	.save = balloon_save,
	.load = balloon_load,
	.stats = balloon_stats,
	.destroy = balloon_destroy,
};

int virtio_balloon_create(const struct virtio_host *host, unsigned line, struct virtio_device **ret, struct error *e) {
	struct balloon *b = calloc(1, sizeof(*b));
	if (b == NULL)
		return error_set(e, -ENOMEM, "balloon: no memory");
	struct virtio_device *d = &b->device;
	int r = device_init(d, host, line, VIRTIO_ID_BALLOON, &balloon_ops, (const unsigned[]){128, 128, 128}, QUEUE_COUNT, e);
	if (r < 0) {
		free(b);
		return r;
	}
	d->offered |= 1ull << VIRTIO_BALLOON_F_DEFLATE_ON_OOM | 1ull << VIRTIO_BALLOON_F_REPORTING;
	// num_pages and actual (section 5.5.4); the driver writes actual.
	d->config_size = 8;
	d->config_writable_from = offsetof(struct virtio_balloon_config, actual);
	d->config_writable_to = d->config_writable_from + 4;
	*ret = d;
	return 0;
}
