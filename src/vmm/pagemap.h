// What /proc/self/pagemap says about guest memory (Documentation/admin-guide/mm/pagemap.rst).
#pragma once

#include "base/error.h"
#include "vmm/memory.h"

#include <stdint.h>

#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_SWAPPED (UINT64_C(1) << 62)
#define PAGEMAP_FILE (UINT64_C(1) << 61) // of the file behind the mapping: a page of a private mapping that was written is not

// Calls `look` for every page of guest RAM, by its place in its region, until it returns a negative errno. fd == -1: every page counts as present.
int pagemap_each(const struct memory *m, int fd, int (*look)(void *arg, const struct memory_region *r, uint64_t page, uint64_t entry),
		 void *arg, struct error *e);
