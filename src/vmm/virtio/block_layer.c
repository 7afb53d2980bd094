// The copy-on-write layer over a read-only base: one sparse file.
//
//     0               header, one cluster: struct layer_header, then zeros
//     4096            map: two bits for each cluster of the disk, cluster n in bits 2(n mod 4) of byte n/4: enum cluster_state
//     data_offset     the disk's clusters, each at its own logical offset
//
// All little-endian. A cluster has 4096 bytes. What was never written is a hole, so the file takes as many bytes as were written, and a
// little of the map. Writing part of a cluster copies the rest of it up from the base.
//
// Crash safety. While the VMM runs, the map lives in memory, and only a flush writes its changed parts, in this order: data made durable, map
// written, map made durable. So the map in the file never names a cluster whose data is not there; what was written after the last flush may be lost, as on
// any disk with a cache. Each entry stands for itself, so a map block that was torn by a power cut has only old and new entries, both valid.
// A header of zeros means that the file was never flushed: nothing in it counts, and it is used like an empty one.
//
// The layer remembers the size of its base and a hash of the base's first 4 KiB (where file systems keep their UUID), and is refused over
// another one.
//
// Threads: the map has one writer at a time (the worker, or somebody while it is idle). Readers elsewhere see each entry whole, and an entry
// changes to DATA only when the data can be read.
#include "vmm/virtio/block.h"

#include "base/io.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CLUSTER_BYTES 4096u
#define MAP_OFFSET CLUSTER_BYTES
#define LAYER_VERSION 1u
#define CLUSTERS_PER_MAP_BLOCK (CLUSTER_BYTES * 4u)

enum cluster_state {
	CLUSTER_BASE = 0, // as in the base
	CLUSTER_DATA = 1, // in this file
	CLUSTER_ZERO = 2, // zeros, whatever lies in this file
};

struct layer_header {
	uint8_t magic[8]; // "STASISLA"
	uint32_t version;
	uint32_t cluster_bytes;
	uint64_t size; // of the disk
	uint64_t base_bytes;
	uint64_t base_hash; // FNV-1a, 64 bits, of the base's first 4096 bytes, zeros behind its end
	uint64_t data_offset;
	uint64_t header_hash; // FNV-1a of the bytes before
};

static const uint8_t layer_magic[8] = "STASISLA";
static const uint8_t zeros[CLUSTER_BYTES];

struct layer {
	int fd, base_fd;
	uint64_t size, base_bytes, data_offset;
	uint64_t clusters, map_bytes; // map_bytes: whole map blocks
	uint8_t *map;
	uint8_t *dirty; // one byte for each map block: differs from the file
	bool any_dirty;
	bool unsynced; // something was written since the last flush
};

static uint64_t fnv1a(const void *data, size_t n) {
	const uint8_t *p = data;
	uint64_t h = 0xcbf29ce484222325u;
	for (size_t i = 0; i < n; i++)
		h = (h ^ p[i]) * 0x100000001b3u;
	return h;
}

static enum cluster_state state_of(const struct layer *l, uint64_t cluster) {
	uint8_t byte = __atomic_load_n(&l->map[cluster / 4], __ATOMIC_ACQUIRE);
	return (enum cluster_state)(byte >> cluster % 4 * 2 & 3);
}

static void set_state(struct layer *l, uint64_t cluster, enum cluster_state state) {
	unsigned shift = (unsigned)(cluster % 4 * 2);
	uint8_t before = l->map[cluster / 4];
	uint8_t after = (uint8_t)((before & ~(3u << shift)) | (unsigned)state << shift);
	if (after == before)
		return;
	__atomic_store_n(&l->map[cluster / 4], after, __ATOMIC_RELEASE);
	l->dirty[cluster / CLUSTERS_PER_MAP_BLOCK] = 1;
	l->any_dirty = true;
}

static struct layer_header header_for(const struct disk *base, uint64_t base_hash, uint64_t data_offset) {
	struct layer_header h = {
		.version = LAYER_VERSION,
		.cluster_bytes = CLUSTER_BYTES,
		.size = base->size,
		.base_bytes = base->base_bytes,
		.base_hash = base_hash,
		.data_offset = data_offset,
	};
	memcpy(h.magic, layer_magic, sizeof(h.magic));
	h.header_hash = fnv1a(&h, offsetof(struct layer_header, header_hash));
	return h;
}

static int check_header(const struct layer_header *h, const struct layer_header *wanted, const char *name, struct error *e) {
	if (memcmp(h->magic, layer_magic, sizeof(h->magic)) != 0)
		return error_set(e, -EBADMSG, "disk %s: its layer file is not a layer; give the microVM's own, or an empty file", name);
	if (h->version != LAYER_VERSION)
		return error_set(e, -EPROTONOSUPPORT, "disk %s: its layer has version %u, this VMM knows %u", name, h->version,
				 LAYER_VERSION);
	if (h->header_hash != fnv1a(h, offsetof(struct layer_header, header_hash)))
		return error_set(e, -EBADMSG, "disk %s: the header of its layer is damaged", name);
	if (h->base_bytes != wanted->base_bytes || h->base_hash != wanted->base_hash)
		return error_set(e, -ESTALE,
				 "disk %s: its layer was made over another base; give the image version that the microVM started from",
				 name);
	if (h->size != wanted->size)
		return error_set(e, -EINVAL, "disk %s: its layer is for a disk of %llu bytes, not %llu", name, (unsigned long long)h->size,
				 (unsigned long long)wanted->size);
	if (memcmp(h, wanted, sizeof(*h)) != 0)
		return error_set(e, -EBADMSG, "disk %s: the header of its layer is damaged", name);
	return 0;
}

// Reads what of the map is not a hole.
static int load_map(struct layer *l, const char *name, struct error *e) {
	off_t at = MAP_OFFSET, end = (off_t)(MAP_OFFSET + l->map_bytes);
	while (at < end) {
		off_t data = lseek(l->fd, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		if (data < 0)
			return error_errno(e, "disk %s: cannot read its layer's map", name);
		if (data >= end)
			break;
		off_t hole = lseek(l->fd, data, SEEK_HOLE);
		if (hole < 0)
			return error_errno(e, "disk %s: cannot read its layer's map", name);
		at = hole < end ? hole : end;
		size_t n = (size_t)(at - data);
		struct iovec iov = {.iov_base = l->map + (data - (off_t)MAP_OFFSET), .iov_len = n};
		int r = file_read(l->fd, (uint64_t)data, &iov, 1, 0, n, 0);
		if (r < 0)
			return error_set(e, r, "disk %s: cannot read its layer's map: %s", name, strerror(-r));
		const uint8_t *read = iov.iov_base;
		for (size_t i = 0; i < n; i++) {
			if ((read[i] & read[i] >> 1 & 0x55) != 0)
				return error_set(e, -EBADMSG, "disk %s: the map of its layer is damaged", name);
		}
	}
	return 0;
}

static int map_memory(struct layer *l) {
	// Anonymous memory: only the parts that are used take any.
	void *p = mmap(NULL, l->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	l->map = p;
	l->dirty = calloc(l->map_bytes / CLUSTER_BYTES, 1);
	return l->dirty == NULL ? -ENOMEM : 0;
}

static bool is_zero(const void *data, size_t n) {
	const uint8_t *p = data;
	return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static int open_layer(struct layer *l, const struct disk *base, const char *name, struct error *e) {
	uint8_t first[CLUSTER_BYTES];
	struct iovec iov = {.iov_base = first, .iov_len = sizeof(first)};
	int r = file_read(l->base_fd, 0, &iov, 1, 0, sizeof(first), 0);
	if (r < 0)
		return error_set(e, r, "disk %s: cannot read its base: %s", name, strerror(-r));
	struct layer_header wanted = header_for(base, fnv1a(first, sizeof(first)), l->data_offset);
	r = file_read(l->fd, 0, &iov, 1, 0, sizeof(first), 0);
	if (r < 0)
		return error_set(e, r, "disk %s: cannot read its layer: %s", name, strerror(-r));
	r = map_memory(l);
	if (r < 0)
		return error_set(e, r, "disk %s: no memory for its layer's map", name);
	struct layer_header found;
	memcpy(&found, first, sizeof(found));
	if (!is_zero(first, sizeof(first))) {
		r = check_header(&found, &wanted, name, e);
		return r < 0 ? r : load_map(l, name, e);
	}
	// Empty, or cut off before its first flush. A map without a header is neither.
	r = load_map(l, name, e);
	if (r < 0)
		return r;
	if (!is_zero(l->map, l->map_bytes))
		return error_set(e, -EBADMSG, "disk %s: its layer has lost its header", name);
	if (ftruncate(l->fd, 0) < 0)
		return error_errno(e, "disk %s: cannot empty its layer", name);
	r = pwrite_full(l->fd, &wanted, sizeof(wanted), 0);
	if (r < 0)
		return error_set(e, r, "disk %s: cannot write its layer: %s", name, strerror(-r));
	l->unsynced = true;
	return 0;
}

int layer_open(struct layer **ret, int fd, const struct disk *base, const char *name, struct error *e) {
	struct layer *l = calloc(1, sizeof(*l));
	if (l == NULL)
		return error_set(e, -ENOMEM, "disk %s: no memory", name);
	l->fd = fd;
	l->base_fd = base->base_fd;
	l->size = base->size;
	l->base_bytes = base->base_bytes;
	l->clusters = (base->size + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
	uint64_t blocks = (l->clusters + CLUSTERS_PER_MAP_BLOCK - 1) / CLUSTERS_PER_MAP_BLOCK;
	l->map_bytes = (blocks == 0 ? 1 : blocks) * CLUSTER_BYTES;
	l->data_offset = MAP_OFFSET + l->map_bytes;
	int r = open_layer(l, base, name, e);
	if (r < 0) {
		layer_close(l);
		return r;
	}
	*ret = l;
	return 0;
}

void layer_close(struct layer *l) {
	if (l == NULL)
		return;
	if (l->map != NULL)
		munmap(l->map, l->map_bytes);
	free(l->dirty);
	free(l);
}

// The end of the run of clusters from `offset` on that have the state of the first one.
static uint64_t run_end(const struct layer *l, uint64_t offset, uint64_t end, enum cluster_state state) {
	uint64_t cluster = offset / CLUSTER_BYTES + 1;
	while (cluster * CLUSTER_BYTES < end && state_of(l, cluster) == state)
		cluster++;
	return cluster * CLUSTER_BYTES < end ? cluster * CLUSTER_BYTES : end;
}

int layer_read(struct layer *l, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes, int flags) {
	uint64_t at = offset, end = offset + bytes;
	while (at < end) {
		enum cluster_state state = state_of(l, at / CLUSTER_BYTES);
		uint64_t stop = run_end(l, at, end, state);
		int r = 0;
		if (state == CLUSTER_DATA)
			r = file_read(l->fd, l->data_offset + at, iov, count, at - offset, stop - at, flags);
		else if (state == CLUSTER_BASE && at < l->base_bytes)
			r = file_read(l->base_fd, at, iov, count, at - offset, stop - at, flags);
		else
			iov_zero(iov, count, at - offset, stop - at);
		if (r < 0)
			return r;
		at = stop;
	}
	return 0;
}

// Writes part of a cluster that is not in this file yet: the whole cluster goes there.
static int copy_up(struct layer *l, uint64_t cluster, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t skip,
		   uint64_t bytes) {
	uint8_t buffer[CLUSTER_BYTES];
	struct iovec whole = {.iov_base = buffer, .iov_len = sizeof(buffer)};
	uint64_t start = cluster * CLUSTER_BYTES;
	if (state_of(l, cluster) == CLUSTER_BASE && start < l->base_bytes) {
		int r = file_read(l->base_fd, start, &whole, 1, 0, sizeof(buffer), 0);
		if (r < 0)
			return r;
	} else {
		memset(buffer, 0, sizeof(buffer));
	}
	iov_read(iov, count, skip, buffer + (offset - start), bytes);
	int r = file_write(l->fd, l->data_offset + start, &whole, 1, 0, sizeof(buffer));
	if (r == 0)
		set_state(l, cluster, CLUSTER_DATA);
	return r;
}

// The end of what can be written from `at` on without copying up: clusters in this file already, and those that are covered wholly.
static uint64_t plain_end(const struct layer *l, uint64_t at, uint64_t end) {
	while (at < end) {
		uint64_t cluster = at / CLUSTER_BYTES, next = (cluster + 1) * CLUSTER_BYTES;
		bool whole = at % CLUSTER_BYTES == 0 && (next <= end || end == l->size);
		if (!whole && state_of(l, cluster) != CLUSTER_DATA)
			break;
		at = next < end ? next : end;
	}
	return at;
}

int layer_write(struct layer *l, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes) {
	uint64_t at = offset, end = offset + bytes;
	l->unsynced = true;
	while (at < end) {
		uint64_t cluster = at / CLUSTER_BYTES, stop = plain_end(l, at, end);
		int r;
		if (stop == at) {
			uint64_t next = (cluster + 1) * CLUSTER_BYTES;
			stop = next < end ? next : end;
			r = copy_up(l, cluster, at, iov, count, at - offset, stop - at);
		} else {
			r = file_write(l->fd, l->data_offset + at, iov, count, at - offset, stop - at);
			for (uint64_t c = cluster; r == 0 && c * CLUSTER_BYTES < stop; c++)
				set_state(l, c, CLUSTER_DATA);
		}
		if (r < 0)
			return r;
		at = stop;
	}
	return 0;
}

// Zeros in a part of one cluster.
static int zero_part(struct layer *l, uint64_t offset, uint64_t bytes) {
	enum cluster_state state = state_of(l, offset / CLUSTER_BYTES);
	if (bytes == 0 || state == CLUSTER_ZERO || (state == CLUSTER_BASE && offset >= l->base_bytes))
		return 0;
	struct iovec iov = {.iov_base = (void *)(uintptr_t)zeros, .iov_len = bytes};
	return layer_write(l, offset, &iov, 1, bytes);
}

// Gives the space of whole clusters back. Their states are ZERO already, so a file system that cannot do it only costs space.
static void punch(struct layer *l, uint64_t first, uint64_t end) {
	if (first < end)
		(void)fallocate(l->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(l->data_offset + first * CLUSTER_BYTES),
				(off_t)((end - first) * CLUSTER_BYTES));
}

static void zero_clusters(struct layer *l, uint64_t first, uint64_t end, bool discard) {
	uint64_t run = first; // start of the clusters that were in this file, up to c
	for (uint64_t c = first; c < end; c++) {
		enum cluster_state state = state_of(l, c);
		if (state == CLUSTER_DATA) {
			set_state(l, c, CLUSTER_ZERO);
			continue;
		}
		punch(l, run, c);
		run = c + 1;
		// Discarding what lies in the base saves nothing.
		if (state == CLUSTER_BASE && !discard && c * CLUSTER_BYTES < l->base_bytes)
			set_state(l, c, CLUSTER_ZERO);
	}
	punch(l, run, end);
}

int layer_zero(struct layer *l, uint64_t offset, uint64_t bytes, bool discard) {
	uint64_t end = offset + bytes;
	uint64_t first = (offset + CLUSTER_BYTES - 1) / CLUSTER_BYTES;
	uint64_t last = end == l->size ? l->clusters : end / CLUSTER_BYTES;
	l->unsynced = true;
	if (first > last) // within one cluster
		return discard ? 0 : zero_part(l, offset, bytes);
	int r = 0;
	if (!discard) {
		r = zero_part(l, offset, first * CLUSTER_BYTES < end ? first * CLUSTER_BYTES - offset : end - offset);
		if (r == 0 && last * CLUSTER_BYTES < end)
			r = zero_part(l, last * CLUSTER_BYTES, end - last * CLUSTER_BYTES);
	}
	if (r == 0)
		zero_clusters(l, first, last, discard);
	return r;
}

static int write_map(struct layer *l) {
	for (uint64_t block = 0; block < l->map_bytes / CLUSTER_BYTES; block++) {
		if (!l->dirty[block])
			continue;
		int r = pwrite_full(l->fd, l->map + block * CLUSTER_BYTES, CLUSTER_BYTES, MAP_OFFSET + block * CLUSTER_BYTES);
		if (r < 0)
			return r;
	}
	return 0;
}

int layer_flush(struct layer *l) {
	if (!l->unsynced)
		return 0;
	if (fdatasync(l->fd) < 0)
		return -errno;
	if (l->any_dirty) {
		int r = write_map(l);
		if (r < 0)
			return r;
		if (fdatasync(l->fd) < 0)
			return -errno;
		memset(l->dirty, 0, l->map_bytes / CLUSTER_BYTES);
		l->any_dirty = false;
	}
	l->unsynced = false;
	return 0;
}
