// A disk in one of its three modes: read-only base, base below a copy-on-write layer, or one file written in place.
#include "vmm/virtio/block.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DISK_MAX (1ull << 46) // 64 TiB: no sum of offsets overflows, and every file system's limit is near

static const uint8_t zeros[PAGE_BYTES];

int file_read(int fd, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes, int flags) {
	struct iovec part[QUEUE_SIZE_MAX];
	uint64_t done = 0;
	while (done < bytes) {
		unsigned parts = iov_slice(iov, count, skip + done, bytes - done, part);
		ssize_t n = preadv2(fd, part, (int)parts, (off_t)(offset + done), flags);
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0) {
			iov_zero(iov, count, skip + done, bytes - done);
			return 0;
		}
		done += (uint64_t)n;
	}
	return 0;
}

int file_write(int fd, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t skip, uint64_t bytes) {
	struct iovec part[QUEUE_SIZE_MAX];
	uint64_t done = 0;
	while (done < bytes) {
		unsigned parts = iov_slice(iov, count, skip + done, bytes - done, part);
		ssize_t n = pwritev(fd, part, (int)parts, (off_t)(offset + done));
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		if (n == 0)
			return -EIO;
		done += (uint64_t)n;
	}
	return 0;
}

static int size_of(int fd, uint64_t *ret) {
	off_t end = lseek(fd, 0, SEEK_END); // of block devices as well
	if (end < 0)
		return -errno;
	*ret = (uint64_t)end;
	return 0;
}

static int open_checked(struct disk *k, const struct vmm_block *config, const char *name, struct error *e) {
	bool layered = (config->flags & VMM_BLOCK_LAYERED) != 0, in_place = !k->read_only && !layered;
	if ((config->flags & ~(uint32_t)(VMM_BLOCK_READ_ONLY | VMM_BLOCK_LAYERED)) != 0 || (k->read_only && layered))
		return error_set(e, -EINVAL, "disk %s: flags %#x are not a mode; give read-only, layered or neither", name, config->flags);
	int r = size_of(k->base_fd, &k->base_bytes);
	if (r < 0)
		return error_set(e, r, "disk %s: cannot find the size of its file: %s", name, strerror(-r));
	uint64_t size = config->size != 0 ? config->size : k->base_bytes;
	if (size > DISK_MAX)
		return error_set(e, -EFBIG, "disk %s: %llu bytes are more than a disk can have", name, (unsigned long long)size);
	// A last, partial sector of what is only read is filled up with zeros; what is written in place must not grow.
	k->size = (in_place ? size : size + SECTOR_BYTES - 1) / SECTOR_BYTES * SECTOR_BYTES;
	if (in_place && k->size > k->base_bytes) {
		if (ftruncate(k->base_fd, (off_t)k->size) < 0)
			return error_errno(e, "disk %s: cannot make its file %llu bytes long", name, (unsigned long long)k->size);
		k->base_bytes = k->size;
	}
	return layered ? layer_open(&k->layer, k->layer_fd, k, name, e) : 0;
}

int disk_open(struct disk *k, const struct vmm_block *config, int base_fd, int layer_fd, struct error *e) {
	*k = (struct disk){.base_fd = base_fd, .layer_fd = layer_fd, .read_only = (config->flags & VMM_BLOCK_READ_ONLY) != 0};
	char name[VMM_SERIAL_MAX + 1] = {0};
	memcpy(name, config->serial, VMM_SERIAL_MAX);
	int r = open_checked(k, config, name, e);
	if (r < 0)
		disk_close(k);
	return r;
}

void disk_close(struct disk *k) {
	layer_close(k->layer);
	k->layer = NULL;
	if (k->base_fd >= 0)
		close(k->base_fd);
	if (k->layer_fd >= 0)
		close(k->layer_fd);
	k->base_fd = k->layer_fd = -1;
}

int disk_read(struct disk *k, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes, int flags) {
	if (k->layer != NULL)
		return layer_read(k->layer, offset, iov, count, bytes, flags);
	return file_read(k->base_fd, offset, iov, count, 0, bytes, flags);
}

int disk_write(struct disk *k, uint64_t offset, const struct iovec *iov, unsigned count, uint64_t bytes) {
	if (k->read_only)
		return -EROFS;
	if (k->layer != NULL)
		return layer_write(k->layer, offset, iov, count, bytes);
	return file_write(k->base_fd, offset, iov, count, 0, bytes);
}

static int write_zeros(int fd, uint64_t offset, uint64_t bytes) {
	struct iovec iov[64];
	for (unsigned i = 0; i < 64; i++)
		iov[i] = (struct iovec){.iov_base = (void *)(uintptr_t)zeros, .iov_len = sizeof(zeros)};
	for (uint64_t done = 0; done < bytes;) {
		uint64_t n = bytes - done < sizeof(zeros) * 64 ? bytes - done : sizeof(zeros) * 64;
		int r = file_write(fd, offset + done, iov, 64, 0, n);
		if (r < 0)
			return r;
		done += n;
	}
	return 0;
}

int disk_zero(struct disk *k, uint64_t offset, uint64_t bytes, bool discard) {
	if (k->read_only)
		return -EROFS;
	if (bytes == 0)
		return 0;
	if (k->layer != NULL)
		return layer_zero(k->layer, offset, bytes, discard);
	if (fallocate(k->base_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) == 0)
		return 0;
	if (discard)
		return 0; // only advice
	return errno == EOPNOTSUPP || errno == ENOSYS ? write_zeros(k->base_fd, offset, bytes) : -errno;
}

int disk_flush(struct disk *k) {
	if (k->read_only)
		return 0;
	if (k->layer != NULL)
		return layer_flush(k->layer);
	return fdatasync(k->base_fd) < 0 ? -errno : 0;
}
