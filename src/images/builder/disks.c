// Disks: found through /sys/block/<name>/serial, formatted, or filled from a template.
//
// A blank disk costs what is written to it, so nothing here writes zeros: mke2fs is told that the storage is zeroed
// (assume_storage_prezeroed, e2fsprogs 1.47), which also marks the inode tables as initialised. Otherwise the kernel would write 128
// MiB of zeros into every microVM's layer later on (its lazy initialisation).

#include "images/builder/disks.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "images/builder/run.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#define SERIAL_MAX 20 // virtio 1.2, 5.2.6: VIRTIO_BLK_ID_BYTES
#define COPY_SIZE (1u << 20)
#ifndef EXT4_IOC_RESIZE_FS
#define EXT4_IOC_RESIZE_FS _IOW('f', 16, uint64_t) // Linux, fs/ext4/ext4.h
#endif

static bool has_serial(const char *name, const char *serial) {
	char path[DISK_PATH_MAX + 32];
	snprintf(path, sizeof(path), "/sys/block/%s/serial", name);
	cleanup_free char *text = NULL;
	size_t size;
	if (read_file(path, SERIAL_MAX + 2, &text, &size, NULL) < 0)
		return false;
	text[strcspn(text, "\n")] = 0;
	return strcmp(text, serial) == 0;
}

static int find_path(const char *serial, char path[static DISK_PATH_MAX], struct error *e) {
	// For the tests, which have no virtio: a folder with block devices named by serial.
	const char *folder = getenv("STASIS_DISKS");
	if (folder != NULL) {
		snprintf(path, DISK_PATH_MAX, "%s/%s", folder, serial);
		return 0;
	}
	cleanup_dir DIR *blocks = opendir("/sys/block");
	if (blocks == NULL)
		return error_errno(e, "cannot list /sys/block to find the disk %s", serial);
	for (const struct dirent *d; (d = readdir(blocks)) != NULL;) {
		if (d->d_name[0] == '.' || strlen(d->d_name) > 32 || !has_serial(d->d_name, serial))
			continue;
		snprintf(path, DISK_PATH_MAX, "/dev/%.32s", d->d_name);
		return 0;
	}
	return error_set(e, -ENODEV, "the builder has no disk with serial %s", serial);
}

int disk_find(const char *serial, struct disk *ret, struct error *e) {
	int r = find_path(serial, ret->path, e);
	if (r < 0)
		return r;
	cleanup_close int fd = open(ret->path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open the disk %s (%s)", serial, ret->path);
	if (ioctl(fd, BLKGETSIZE64, &ret->size) < 0)
		return error_errno(e, "cannot read the size of the disk %s (%s)", serial, ret->path);
	return 0;
}

int disk_format(const struct disk *d, const char *label, const char *const options[], struct error *e) {
	const char *argv[32] = {
		"mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", label, "-E", "assume_storage_prezeroed=1,nodiscard"};
	size_t n = 13;
	for (; options != NULL && *options != NULL && n < 30; options++)
		argv[n++] = *options;
	argv[n] = d->path;
	return run_checked(argv, e);
}

static int copy_extent(int from, int to, uint64_t at, uint64_t end, uint8_t *buffer, struct error *e) {
	while (at < end) {
		size_t n = end - at < COPY_SIZE ? (size_t)(end - at) : COPY_SIZE;
		int r = pread_full(from, buffer, n, at);
		if (r == 0)
			r = pwrite_full(to, buffer, n, at);
		if (r < 0)
			return error_set(e, r, "cannot copy the base image's file system: %s", strerror(-r));
		at += n;
	}
	return 0;
}

int disk_write_template(const struct disk *d, int template, struct error *e) {
	struct stat st;
	if (fstat(template, &st) < 0)
		return error_errno(e, "cannot look at the base image's file system");
	// Straight to the disk: the page cache would be a second copy of everything.
	cleanup_close int to = open(d->path, O_WRONLY | O_CLOEXEC | O_DIRECT);
	if (to < 0)
		return error_errno(e, "cannot open %s", d->path);
	cleanup_free void *buffer = NULL;
	if (posix_memalign(&buffer, 4096, COPY_SIZE) != 0)
		return error_set(e, -ENOMEM, "out of memory");
	for (off_t at = 0; at < st.st_size;) {
		off_t data = lseek(template, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		off_t hole = data < 0 ? -1 : lseek(template, data, SEEK_HOLE);
		if (hole < 0)
			return error_errno(e, "cannot find the data in the base image's file system");
		int r = copy_extent(template, to, (uint64_t)data, (uint64_t)hole, buffer, e);
		if (r < 0)
			return r;
		at = hole;
	}
	if (fsync(to) < 0)
		return error_errno(e, "cannot flush %s", d->path);
	return 0;
}

int disk_grow(const char *folder, uint64_t size, struct error *e) {
	cleanup_close int fd = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct statfs fs;
	if (fd < 0 || fstatfs(fd, &fs) < 0)
		return error_errno(e, "cannot look at the file system at %s", folder);
	uint64_t blocks = size / (uint64_t)fs.f_bsize;
	if (ioctl(fd, EXT4_IOC_RESIZE_FS, &blocks) < 0)
		return error_errno(e, "cannot grow the file system at %s to %ju bytes", folder, (uintmax_t)size);
	return 0;
}
