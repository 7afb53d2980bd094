// Files of a root file system that somebody else filled: names are resolved inside of it, whatever links lie there.
#pragma once

#include "base/error.h"

#include <stddef.h>

// Reads a regular file of at most `limit` bytes, with symbolic links resolved as if `root` were "/" and no way out of it. The caller frees
// *ret (NUL-terminated beyond *size). -ENOENT when there is none, -EFBIG when it is larger.
int rootfs_read(const char *root, const char *path, size_t limit, char **ret, size_t *size, struct error *e);
