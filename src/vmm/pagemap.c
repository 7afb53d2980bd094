// Reading /proc/self/pagemap; see pagemap.h.
#include "vmm/pagemap.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <stdlib.h>
#include <string.h>

#define CHUNK 4096

static int each_of_region(const struct memory_region *r, int fd, uint64_t *entries,
			  int (*look)(void *arg, const struct memory_region *r, uint64_t page, uint64_t entry), void *arg,
			  struct error *e) {
	uint64_t pages = r->size / PAGE_BYTES;
	for (uint64_t at = 0; at < pages; at += CHUNK) {
		uint64_t n = pages - at < CHUNK ? pages - at : CHUNK;
		uint64_t offset = ((uintptr_t)r->host / PAGE_BYTES + at) * sizeof(uint64_t);
		int got = fd < 0 ? 0 : pread_full(fd, entries, n * sizeof(uint64_t), offset);
		if (got < 0)
			return error_set(e, got, "cannot read /proc/self/pagemap: %s", strerror(-got));
		for (uint64_t i = 0; i < n; i++) {
			int done = look(arg, r, at + i, fd < 0 ? PAGEMAP_PRESENT : entries[i]);
			if (done < 0)
				return done;
		}
	}
	return 0;
}

int pagemap_each(const struct memory *m, int fd, int (*look)(void *arg, const struct memory_region *r, uint64_t page, uint64_t entry),
		 void *arg, struct error *e) {
	cleanup_free uint64_t *entries = malloc(CHUNK * sizeof(uint64_t));
	if (entries == NULL)
		return error_set(e, -ENOMEM, "out of memory reading /proc/self/pagemap");
	for (unsigned i = 0; i < m->count; i++) {
		int r = each_of_region(&m->regions[i], fd, entries, look, arg, e);
		if (r < 0)
			return r;
	}
	return 0;
}
