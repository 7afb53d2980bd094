// File trees: merging one layer of an image into a folder.
#pragma once

#include "base/error.h"

#include <stdint.h>

// Merges the tree at `from` (the upper folder of an overlay mount: a device node 0:0 removes a name, the attribute
// trusted.overlay.opaque empties a folder first) into the folder `to`. Owner, mode, times, extended attributes (capabilities among
// them), hard links within the layer, device nodes and holes are kept. Nothing below `to` is followed through a symbolic link. Folders
// deeper than 1000 are refused (-ELOOP).
int tree_merge(const char *from, const char *to, struct error *e);
