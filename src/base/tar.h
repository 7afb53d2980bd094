// tar archives (POSIX.1-2017 pax interchange format): the part of them that files, folders and links need. No files are touched here; see tree.h.
//
// The reader takes the archive as it comes, however it is cut, and understands ustar, pax (path, linkpath, size) and GNU's long names. It refuses
// what it does not carry (devices, FIFOs, sparse files, several volumes) and what is malformed.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TAR_BLOCK 512
#define TAR_PATH_MAX 4095
#define TAR_HEAD_MAX (20 * TAR_BLOCK) // of one entry, its pax header included
#define TAR_META_MAX 16384            // bytes of one pax or long-name header

enum tar_type { TAR_FILE, TAR_FOLDER, TAR_SYMLINK, TAR_HARDLINK };

struct tar_entry {
	enum tar_type type;
	char path[TAR_PATH_MAX + 1], target[TAR_PATH_MAX + 1]; // target: of links
	uint64_t size;                                         // of files, else 0
	uint32_t mode;                                         // permissions, at most 07777
	int64_t mtime;                                         // seconds since the epoch
};

// Writes an entry's head to `to`; its content, and zeros up to a whole block, follow. Returns the size. Path and target are not empty where they
// count. The end of an archive is two blocks of zeros.
size_t tar_write_head(const struct tar_entry *t, uint8_t to[static TAR_HEAD_MAX]);

// How many zeros follow content of that size.
static inline size_t tar_padding(uint64_t size) {
	return (size_t)(-size % TAR_BLOCK);
}

enum tar_event {
	TAR_MORE,    // go on
	TAR_ENTRY,   // r->entry is complete; its content follows
	TAR_CONTENT, // a piece of it
	TAR_END,     // the archive's end; what follows is padding
};

struct tar_reader {
	struct tar_entry entry;
	int phase;
	uint8_t block[TAR_BLOCK];
	size_t used;    // of block or meta
	uint64_t left;  // content bytes to come
	size_t padding; // bytes to come behind them
	char meta_type; // 'x', 'g', 'L', 'K'
	size_t meta_size;
	bool zero_block;                     // the last block was one of zeros
	bool has_path, has_target, has_size; // set for the next entry by a header of its own
	uint64_t next_size;
	char next_path[TAR_PATH_MAX + 1], next_target[TAR_PATH_MAX + 1];
	char meta[TAR_META_MAX];
};

// *r is zeroed before the first call. Looks at `size` bytes; returns how many were consumed and what happened in *ret, with the piece of content in
// *content (in the caller's buffer) of *content_size bytes. -EBADMSG: malformed; -ENOTSUP: something that is not carried. Never consumes
// nothing unless size is 0 or the end has come.
ssize_t tar_read(struct tar_reader *r, const void *data, size_t size, enum tar_event *ret, const void **content, size_t *content_size,
		 struct error *e);
