// Entropy device (virtio 1.2, section 5.4): fills the driver's buffers from the host's generator.
//
// A request gets at most RANDOM_MAX bytes (a device may give fewer than asked for, section 5.4.6.2), so that no guest can keep the loop busy.
#include "vmm/virtio/device.h"

#include <stdlib.h>
#include <sys/random.h>

#define RANDOM_MAX 1024u
#define CHAINS_PER_WAKE 32u

static uint32_t fill(const struct chain *c) {
	uint32_t done = 0;
	const struct iovec *iov = c->iov + c->readable_count;
	for (unsigned i = 0; i < c->writable_count && done < RANDOM_MAX; i++) {
		size_t n = iov[i].iov_len < RANDOM_MAX - done ? iov[i].iov_len : RANDOM_MAX - done;
		ssize_t got = getrandom(iov[i].iov_base, n, 0);
		if (got <= 0)
			break;
		done += (uint32_t)got;
	}
	return done;
}

static void rng_notify(struct virtio_device *d, unsigned queue) {
	struct virtio_queue *q = &d->queues[queue];
	struct chain c;
	unsigned served = 0;
	while (served < CHAINS_PER_WAKE && queue_pop(q, &c) == 1) {
		queue_push(q, c.head, fill(&c));
		served++;
	}
	queue_signal(q);
	if (served == CHAINS_PER_WAKE)
		queue_kick(q);
}

static void rng_destroy(struct virtio_device *d) {
	free(d);
}

static const struct virtio_ops rng_ops = {.name = "rng", .notify = rng_notify, .destroy = rng_destroy};

int virtio_rng_create(const struct virtio_host *host, unsigned line, struct virtio_device **ret, struct error *e) {
	struct virtio_device *d = calloc(1, sizeof(*d));
	if (d == NULL)
		return error_set(e, -ENOMEM, "rng: no memory");
	int r = device_init(d, host, line, VIRTIO_ID_RNG, &rng_ops, (const unsigned[]){64}, 1, e);
	if (r < 0) {
		free(d);
		return r;
	}
	*ret = d;
	return 0;
}
