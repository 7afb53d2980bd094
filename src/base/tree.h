// File trees to and from tar archives, for trees and archives of strangers: nothing is written outside of the folder that was named, whatever
// paths, links and races there are, and nothing but files, folders and links is read or made.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct tree_options {
	// The archive: where it comes from (as read(2), but a negative errno) or goes to (0 or a negative errno).
	ssize_t (*read)(void *arg, void *to, size_t room);
	int (*write)(void *arg, const void *data, size_t size);
	void (*notice)(void *arg, const char *text); // something was left out; or NULL
	void *arg;
	const char *top;    // unpacking: the name of the one tree in the archive, in place of its own; NULL: names as they are
	uint32_t mode_mask; // unpacking: permissions that may be set; folders get u+rwx all the same
	bool own;           // unpacking: what is made belongs to uid and gid
	uid_t uid;
	gid_t gid;
	uint64_t bytes_max; // unpacking: of content; 0: no limit
};

// Unpacks below the folder. A file or link takes the place of a file or link of its name at once, when it is complete; folders are filled. What
// was complete stays after a failure.
int tree_unpack(int folder, const struct tree_options *o, struct error *e);

// Packs the file or folder `path`, which may be a link to it, under the last part of its name. Links below are packed as links; other kinds of files, and other
// file systems mounted below, are left out with a notice; hard links become files.
int tree_pack(const char *path, const struct tree_options *o, struct error *e);
