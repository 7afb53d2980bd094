// Block device (virtio 1.2, section 5.2).
//
// A request is copied out of the queue into a job; its data is moved straight between files and guest memory. Reads that the page cache can
// answer are done at once on the loop's thread (RWF_NOWAIT); everything else goes to the worker, all requests of a wake-up together. Finished
// jobs come back through the worker's eventfd and are returned to the driver on the loop's thread under the device lock.
#include "vmm/virtio/block.h"

#include "base/log.h"

#include <linux/virtio_blk.h>
#include <linux/virtio_mmio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define QUEUE_SIZE 128u
#define INLINE_BYTES_MAX (256u * 1024u) // a read that is tried on the loop's thread
#define REQUESTS_PER_WAKE 256u          // then other descriptors have their turn
#define ZERO_SECTORS_MAX (1u << 22)     // 2 GiB in one range
#define CLUSTER_SECTORS 8u              // 4 KiB, see block_layer.c
#define HEADER_BYTES 16u                // type, reserved, sector
#define MODE_FLAGS (VMM_BLOCK_READ_ONLY | VMM_BLOCK_LAYERED)

struct block {
	struct virtio_device device;
	struct disk disk;
	struct block_worker *worker;
	struct loop_handler done_handler;
	char serial[VMM_SERIAL_MAX + 1];
	uint32_t flags;
	bool no_nowait; // a file system below does not know RWF_NOWAIT
	struct block_job *free_jobs;
	struct block_job *jobs; // QUEUE_SIZE of them
	struct block_job *batch_first, *batch_last;
	uint64_t read_bytes, written_bytes, flushes, errors;
};

static struct block *block_of(struct virtio_device *d) {
	return (struct block *)d;
}

// On the worker's thread.
static int run_job(struct block *b, struct block_job *job) {
	int r = 0;
	switch (job->type) {
	case VIRTIO_BLK_T_IN:
		return disk_read(&b->disk, job->offset, job->segments, job->segment_count, job->bytes, 0);
	case VIRTIO_BLK_T_OUT:
		return disk_write(&b->disk, job->offset, job->segments, job->segment_count, job->bytes);
	case VIRTIO_BLK_T_FLUSH:
		return disk_flush(&b->disk);
	default: // discard, write zeroes
		for (unsigned i = 0; i < job->range_count && r == 0; i++)
			r = disk_zero(&b->disk, job->ranges[i].offset, job->ranges[i].bytes, job->type == VIRTIO_BLK_T_DISCARD);
		return r;
	}
}

static void run(void *arg, struct block_job *job) {
	job->status = run_job(arg, job) == 0 ? VIRTIO_BLK_S_OK : VIRTIO_BLK_S_IOERR;
}

static void count(struct block *b, const struct block_job *job) {
	if (job->status != VIRTIO_BLK_S_OK) {
		b->errors += job->status == VIRTIO_BLK_S_IOERR;
		// A guest can cause these at will: the log shows the first, second, fourth, eighth, … of them.
		if (job->status == VIRTIO_BLK_S_IOERR && (b->errors & (b->errors - 1)) == 0)
			log_warn("block.error", LOG_S("disk", b->serial), LOG_U("type", job->type), LOG_U("offset", job->offset),
				 LOG_U("errors", b->errors));
	} else if (job->type == VIRTIO_BLK_T_IN) {
		b->read_bytes += job->bytes;
	} else if (job->type == VIRTIO_BLK_T_OUT) {
		b->written_bytes += job->bytes;
	} else if (job->type == VIRTIO_BLK_T_FLUSH) {
		b->flushes++;
	}
}

static void complete(struct block *b, struct block_job *job) {
	count(b, job);
	if ((b->device.status & VIRTIO_CONFIG_S_NEEDS_RESET) == 0) {
		bool fills = job->type == VIRTIO_BLK_T_IN || job->type == VIRTIO_BLK_T_GET_ID;
		*job->status_at = job->status;
		queue_push(&b->device.queues[0], job->head, job->status == VIRTIO_BLK_S_OK && fills ? job->bytes + 1 : 1);
	}
	job->next = b->free_jobs;
	b->free_jobs = job;
}

// Whether [sector, sector + bytes) lies within the disk.
static bool within(const struct block *b, uint64_t sector, uint64_t bytes) {
	uint64_t sectors = b->disk.size / SECTOR_BYTES;
	return sector <= sectors && bytes <= (sectors - sector) * SECTOR_BYTES;
}

// The ranges of a discard or write-zeroes request (section 5.2.6.2). Returns the status that the request ends with, or VIRTIO_BLK_S_OK to go on.
static uint8_t read_ranges(const struct block *b, struct block_job *job, const struct chain *c) {
	struct virtio_blk_discard_write_zeroes range;
	uint32_t bytes = c->readable_bytes - HEADER_BYTES;
	if (bytes == 0 || bytes % sizeof(range) != 0 || bytes / sizeof(range) > BLOCK_RANGES_MAX)
		return VIRTIO_BLK_S_IOERR;
	job->range_count = bytes / (uint32_t)sizeof(range);
	for (unsigned i = 0; i < job->range_count; i++) {
		iov_read(c->iov, c->readable_count, HEADER_BYTES + i * sizeof(range), &range, sizeof(range));
		uint32_t allowed = job->type == VIRTIO_BLK_T_WRITE_ZEROES ? VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP : 0;
		if ((range.flags & ~allowed) != 0)
			return VIRTIO_BLK_S_UNSUPP;
		if (range.num_sectors > ZERO_SECTORS_MAX || !within(b, range.sector, (uint64_t)range.num_sectors * SECTOR_BYTES))
			return VIRTIO_BLK_S_IOERR;
		job->ranges[i] =
			(struct block_range){.offset = range.sector * SECTOR_BYTES, .bytes = (uint64_t)range.num_sectors * SECTOR_BYTES};
	}
	return VIRTIO_BLK_S_OK;
}

// Data of a read or write. Returns as read_ranges().
static uint8_t take_data(const struct block *b, struct block_job *job, const struct iovec *iov, unsigned n, size_t skip, uint32_t bytes,
			 uint64_t sector) {
	struct iovec part[QUEUE_SIZE_MAX];
	if (bytes % SECTOR_BYTES != 0 || !within(b, sector, bytes))
		return VIRTIO_BLK_S_IOERR;
	job->offset = sector * SECTOR_BYTES;
	job->bytes = bytes;
	job->segment_count = iov_slice(iov, n, skip, bytes, part);
	if (job->segment_count > BLOCK_SEGMENTS_MAX)
		return VIRTIO_BLK_S_IOERR;
	memcpy(job->segments, part, job->segment_count * sizeof(part[0]));
	return VIRTIO_BLK_S_OK;
}

static uint8_t get_id(const struct block *b, struct block_job *job, const struct chain *c) {
	job->bytes = (uint32_t)iov_write(c->iov + c->readable_count, c->writable_count, 0, b->serial,
					 c->writable_bytes - 1 < VIRTIO_BLK_ID_BYTES ? c->writable_bytes - 1 : VIRTIO_BLK_ID_BYTES);
	return VIRTIO_BLK_S_OK;
}

static bool read_at_once(struct block *b, struct block_job *job) {
	if (b->no_nowait || job->bytes > INLINE_BYTES_MAX)
		return false;
	int r = disk_read(&b->disk, job->offset, job->segments, job->segment_count, job->bytes, RWF_NOWAIT);
	if (r == -EOPNOTSUPP)
		b->no_nowait = true;
	return r == 0;
}

static void hand_over(struct block *b, struct block_job *job) {
	job->next = NULL;
	if (b->batch_first == NULL)
		b->batch_first = job;
	else
		b->batch_last->next = job;
	b->batch_last = job;
}

// Judges a request. True: it is finished, with job->status.
static bool serve(struct block *b, struct block_job *job, const struct chain *c, uint64_t sector) {
	switch (job->type) {
	case VIRTIO_BLK_T_IN:
		job->status = take_data(b, job, c->iov + c->readable_count, c->writable_count, 0, c->writable_bytes - 1, sector);
		return job->status != VIRTIO_BLK_S_OK || read_at_once(b, job);
	case VIRTIO_BLK_T_OUT:
		job->status = b->disk.read_only ? VIRTIO_BLK_S_IOERR
						: take_data(b, job, c->iov, c->readable_count, HEADER_BYTES,
							    c->readable_bytes - HEADER_BYTES, sector);
		return job->status != VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_FLUSH:
		job->status = VIRTIO_BLK_S_OK;
		return b->disk.read_only;
	case VIRTIO_BLK_T_DISCARD:
	case VIRTIO_BLK_T_WRITE_ZEROES:
		job->status = b->disk.read_only ? VIRTIO_BLK_S_UNSUPP : read_ranges(b, job, c);
		return job->status != VIRTIO_BLK_S_OK;
	case VIRTIO_BLK_T_GET_ID:
		job->status = get_id(b, job, c);
		return true;
	default:
		job->status = VIRTIO_BLK_S_UNSUPP;
		return true;
	}
}

// Takes a request from the chain. False: the driver broke the protocol.
static bool accept_request(struct block *b, const struct chain *c) {
	struct virtio_blk_outhdr header; // type, reserved, sector
	if (c->readable_bytes < HEADER_BYTES || c->writable_bytes < 1) {
		device_break(&b->device, "request without header or status");
		return false;
	}
	iov_read(c->iov, c->readable_count, 0, &header, HEADER_BYTES);
	struct block_job *job = b->free_jobs;
	b->free_jobs = job->next;
	const struct iovec *last = &c->iov[c->readable_count + c->writable_count - 1];
	job->head = c->head;
	job->type = header.type;
	job->status_at = (uint8_t *)last->iov_base + last->iov_len - 1;
	job->offset = 0;
	job->bytes = 0;
	job->segment_count = job->range_count = 0;
	if (serve(b, job, c, header.sector))
		complete(b, job);
	else
		hand_over(b, job);
	return true;
}

static void block_notify(struct virtio_device *d, unsigned queue) {
	struct block *b = block_of(d);
	struct virtio_queue *q = &d->queues[queue];
	struct chain c;
	unsigned served = 0;
	// Without a free job the rest waits until some are done; block_done() comes back here.
	while (served < REQUESTS_PER_WAKE && b->free_jobs != NULL && queue_pop(q, &c) == 1 && accept_request(b, &c))
		served++;
	if (b->batch_first != NULL)
		worker_submit(b->worker, b->batch_first, b->batch_last);
	b->batch_first = b->batch_last = NULL;
	queue_signal(q);
	if (served == REQUESTS_PER_WAKE)
		queue_kick(q);
}

static void take_done(struct block *b) {
	for (struct block_job *job = worker_take_done(b->worker), *next; job != NULL; job = next) {
		next = job->next;
		complete(b, job);
	}
	queue_signal(&b->device.queues[0]);
}

static void block_done(void *arg, uint32_t events) {
	struct block *b = arg;
	bool starved = b->free_jobs == NULL;
	take_done(b);
	if (starved && b->device.queues[0].ready && device_is_live(&b->device))
		block_notify(&b->device, 0);
}

static void block_stop(struct virtio_device *d) {
	worker_wait_idle(block_of(d)->worker);
	take_done(block_of(d));
}

static int block_flush(struct virtio_device *d, struct error *e) {
	struct block *b = block_of(d);
	worker_wait_idle(b->worker);
	int r = disk_flush(&b->disk);
	return r < 0 ? error_set(e, r, "disk %s: cannot be made durable: %s", b->serial, strerror(-r)) : 0;
}

static void set_capacity(struct block *b) {
	uint64_t sectors = b->disk.size / SECTOR_BYTES;
	memcpy(b->device.config + offsetof(struct virtio_blk_config, capacity), &sectors, sizeof(sectors));
}

static void block_save(struct virtio_device *d, struct writer *w) {
	const struct block *b = block_of(d);
	write_bytes(w, b->serial, VMM_SERIAL_MAX);
	write_u32(w, b->flags);
	write_u64(w, b->disk.size);
}

static int block_load(struct virtio_device *d, struct reader *r, struct error *e) {
	struct block *b = block_of(d);
	char serial[VMM_SERIAL_MAX];
	read_copy(r, serial, sizeof(serial));
	uint32_t flags = read_u32(r);
	uint64_t size = read_u64(r);
	if (r->bad)
		return error_set(e, -EBADMSG, "disk %s: the device's state is cut off", b->serial);
	if (memcmp(serial, b->serial, sizeof(serial)) != 0 || ((flags ^ b->flags) & VMM_BLOCK_READ_ONLY) != 0)
		return error_set(e, -EINVAL,
				 "disk %s: the snapshot has another disk in its place; give the same disks in the same order and modes",
				 b->serial);
	if (size == b->disk.size)
		return 0;
	if (!b->disk.read_only)
		return error_set(e, -EINVAL, "disk %s: has %llu bytes, but had %llu in the snapshot", b->serial,
				 (unsigned long long)b->disk.size, (unsigned long long)size);
	// Another file lies in the drive: the driver reads the capacity again (section 5.2.5.1).
	device_config_changed(d);
	return 0;
}

static void block_stats(const struct virtio_device *d, struct vmm_stats *s) {
	const struct block *b = (const struct block *)d;
	s->block_read_bytes += b->read_bytes;
	s->block_written_bytes += b->written_bytes;
	s->block_flushes += b->flushes;
}

static void block_destroy(struct virtio_device *d) {
	struct block *b = block_of(d);
	if (b->worker != NULL) {
		loop_remove(d->host.loop, worker_done_fd(b->worker));
		worker_end(b->worker);
	}
	disk_close(&b->disk);
	free(b->jobs);
	free(b);
}

static const struct virtio_ops block_ops = {
	.name = "block",
	.notify = block_notify,
	.stop = block_stop,
	.save = block_save,
	.load = block_load,
	.flush = block_flush,
	.stats = block_stats,
	.destroy = block_destroy,
};

static int start_worker(struct block *b, struct error *e) {
	// Touched as they are used, newest first: an idle disk has few of them in memory.
	b->jobs = calloc(QUEUE_SIZE, sizeof(*b->jobs));
	if (b->jobs == NULL)
		return error_set(e, -ENOMEM, "block: no memory");
	for (unsigned i = QUEUE_SIZE; i-- > 0;) {
		b->jobs[i].next = b->free_jobs;
		b->free_jobs = &b->jobs[i];
	}
	int r = worker_start(&b->worker, run, b, e);
	if (r < 0)
		return r;
	b->done_handler = (struct loop_handler){.ready = block_done, .arg = b};
	r = loop_add(b->device.host.loop, worker_done_fd(b->worker), EPOLLIN | EPOLLET, &b->done_handler);
	return r < 0 ? error_set(e, r, "block: cannot watch the worker: %s", strerror(-r)) : 0;
}

static void describe(struct block *b) {
	struct virtio_device *d = &b->device;
	struct virtio_blk_config config = {
		.seg_max = BLOCK_SEGMENTS_MAX - 2, // with header and status a chain of the queue's size
		.blk_size = SECTOR_BYTES,
		.physical_block_exp = 3, // partial clusters cost a copy
		.min_io_size = CLUSTER_SECTORS,
	};
	d->offered |=
		1ull << VIRTIO_BLK_F_SEG_MAX | 1ull << VIRTIO_BLK_F_BLK_SIZE | 1ull << VIRTIO_BLK_F_TOPOLOGY | 1ull << VIRTIO_BLK_F_FLUSH;
	if (b->disk.read_only) {
		d->offered |= 1ull << VIRTIO_BLK_F_RO;
	} else {
		d->offered |= 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES;
		config.max_discard_sectors = ZERO_SECTORS_MAX;
		config.max_discard_seg = BLOCK_RANGES_MAX;
		config.discard_sector_alignment = CLUSTER_SECTORS;
		config.max_write_zeroes_sectors = ZERO_SECTORS_MAX;
		config.max_write_zeroes_seg = BLOCK_RANGES_MAX;
		config.write_zeroes_may_unmap = 1;
	}
	d->config_size = offsetof(struct virtio_blk_config, max_secure_erase_sectors);
	memcpy(d->config, &config, d->config_size);
	set_capacity(b);
}

int virtio_block_create(const struct virtio_host *host, unsigned line, const struct vmm_block *config, int base_fd, int layer_fd,
			struct virtio_device **ret, struct error *e) {
	struct disk disk;
	int r = disk_open(&disk, config, base_fd, layer_fd, e);
	if (r < 0)
		return r;
	struct block *b = calloc(1, sizeof(*b));
	if (b == NULL) {
		disk_close(&disk);
		return error_set(e, -ENOMEM, "block: no memory");
	}
	b->disk = disk;
	b->flags = config->flags & MODE_FLAGS;
	memcpy(b->serial, config->serial, VMM_SERIAL_MAX);
	r = device_init(&b->device, host, line, VIRTIO_ID_BLOCK, &block_ops, (const unsigned[]){QUEUE_SIZE}, 1, e);
	if (r == 0)
		r = start_worker(b, e);
	if (r < 0) {
		device_fini(&b->device);
		block_destroy(&b->device);
		return r;
	}
	describe(b);
	*ret = &b->device;
	return 0;
}
