// The builder's disks, known by their virtio serials.
#pragma once

#include "base/error.h"

#include <stdint.h>

#define DISK_PATH_MAX 256

struct disk {
	char path[DISK_PATH_MAX]; // of the block device
	uint64_t size;            // bytes
};

// Finds the block device whose virtio serial is `serial`. -ENODEV when there is none.
int disk_find(const char *serial, struct disk *ret, struct error *e);

// Makes an ext4 file system on a blank disk (one that reads as zeros): nothing that is zero already is written. `label` has at most 16
// characters; `options` are further arguments of mke2fs, NULL-terminated, or NULL.
int disk_format(const struct disk *d, const char *label, const char *const options[], struct error *e);

// Writes the data of a sparse file at the start of a blank disk: holes are left alone.
int disk_write_template(const struct disk *d, int template, struct error *e);

// Lets the ext4 file system that is mounted at `folder` grow to `size` bytes.
int disk_grow(const char *folder, uint64_t size, struct error *e);
