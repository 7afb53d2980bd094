// Inside src/vmm/virtio/: the parts of the block device.
//
// block.c speaks virtio; block_worker.c is the thread that does what may block; block_disk.c reads and writes a disk in its three modes;
// block_layer.c is the copy-on-write layer's file format.
#pragma once

#include "vmm/virtio/device.h"

#define SECTOR_BYTES 512u

// A copy-on-write layer over a read-only base; see block_layer.c.
struct layer;

struct disk {
	int base_fd;
	uint64_t base_bytes; // of the base file; beyond them there are zeros
	uint64_t size;       // that the guest sees; a multiple of SECTOR_BYTES
	bool read_only;
	struct layer *layer; // NULL: none
	int layer_fd;
};

// Takes the descriptors over in any case. `size` 0: that of the base file, rounded up to whole sectors (down for a disk that is written in place).
int disk_open(struct disk *k, const struct vmm_block *config, int base_fd, int layer_fd, struct error *e);
void disk_close(struct disk *k);

// Move `bytes` between the segments and the disk. The caller has checked that [offset, offset + bytes) lies within the disk and that the
// segments hold as many. `flags`: RWF_NOWAIT gives -EAGAIN (or -EOPNOTSUPP) where it would have to wait for a device; segments may have been
// written to then. Reading may go on on one thread while another one (only one) writes.
int disk_read(struct disk *k, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes, int flags);
int disk_write(struct disk *k, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes);
// Makes a range read as zeros; `discard`: its content may also stay what it is.
int disk_zero(struct disk *k, uint64_t offset, uint64_t bytes, bool discard);
// Makes everything durable that was written before.
int disk_flush(struct disk *k);

// Files: whole transfers at an offset, with slices of segment lists. Reading beyond the end gives zeros.
int file_read(int fd, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes, int flags);
int file_write(int fd, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes);

// Opens the layer in `fd` (which stays the caller's), or makes one of an empty file. `base`: for the layer's identity check and for copying up.
int layer_open(struct layer **ret, int fd, const struct disk *base, const char *name, struct error *e);
void layer_close(struct layer *l);
int layer_read(struct layer *l, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes, int flags);
int layer_write(struct layer *l, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes);
int layer_zero(struct layer *l, uint64_t offset, uint64_t bytes, bool discard);
int layer_flush(struct layer *l);

#define BLOCK_SEGMENTS_MAX 128u
#define BLOCK_RANGES_MAX 16u // of one discard or write-zeroes request

struct block_range {
	uint64_t offset, bytes;
};

struct block_job {
	struct block_job *next;
	uint16_t head;
	uint32_t type;  // VIRTIO_BLK_T_…
	uint8_t status; // VIRTIO_BLK_S_…
	uint8_t *status_at;
	uint64_t offset;
	uint32_t bytes; // of data
	unsigned segment_count, range_count;
	struct block_range ranges[BLOCK_RANGES_MAX];
	struct iovec segments[BLOCK_SEGMENTS_MAX];
};

// One thread that runs jobs in their order.
struct block_worker;

// `run` is called on the thread. `done_fd` (an eventfd of the worker's) becomes readable when jobs are done.
int worker_start(struct block_worker **ret, void (*run)(void *arg, struct block_job *job), void *arg, struct error *e);
void worker_end(struct block_worker *w); // waits for the jobs
int worker_done_fd(const struct block_worker *w);
void worker_submit(struct block_worker *w, struct block_job *first, struct block_job *last); // a list
struct block_job *worker_take_done(struct block_worker *w);                                  // a list, oldest first; or NULL
void worker_wait_idle(struct block_worker *w);
