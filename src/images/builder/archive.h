// The artifact: a zip that a stranger made, unpacked into a folder.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct archive_source {
	// A descriptor (a file or a block device), or bytes in memory when it is negative.
	int fd;
	const uint8_t *data;
	uint64_t size; // bytes of the zip; what lies behind is not looked at
};

struct archive_limits {
	uint64_t bytes;   // sum of the unpacked files
	uint64_t entries; // files, folders and links
};

struct archive_summary {
	uint64_t bytes, entries;
	bool has_dockerfile; // a file or link of exactly that name
	char elsewhere[128]; // the first path whose last part is the Dockerfile's name in any case, or empty
};

// Reads all names, types and declared sizes and refuses what may not be unpacked: absolute names, "..", links that lead out of the
// folder, files that are neither file, folder nor link, encrypted ones, names that are not UTF-8, more than the limits. Errors are
// named ARCHIVE_INVALID (-EBADMSG) with a message for the user. `dockerfile` is the name to look for.
int archive_check(const struct archive_source *s, const struct archive_limits *l, const char *dockerfile, struct archive_summary *ret,
		  struct error *e);

// Unpacks into the current folder, which should be empty, checking everything again. Files belong to root, with the modes that the zip
// says. -ENOSPC is named DISK_STORAGE_FULL.
int archive_unpack(const struct archive_source *s, const struct archive_limits *l, struct archive_summary *ret, struct error *e);

// Whether the name (of an entry, or of the Dockerfile) stays inside the folder: relative, no "..", valid UTF-8, not overlong.
bool archive_name_is_safe(const char *name);

// Whether a link called `name` with this target stays inside.
bool archive_link_is_safe(const char *name, const char *target);
