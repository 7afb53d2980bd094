// The guest's RAM as the VMM sees it: at most two regions (below and above the hole under 4 GiB), and the one checked way to it.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PAGE_BYTES 4096u

struct memory_region {
	uint64_t guest; // guest physical address of its first byte
	uint64_t size;
	uint8_t *host;
};

struct memory {
	struct memory_region regions[2];
	unsigned count;
	uint64_t size; // sum
};

// The host address of `size` bytes of guest RAM at guest physical address `guest`, or NULL when any of them is not RAM of one region.
// Everything that takes an address from the guest goes through here. The guest may change the bytes at any time: copy before checking.
static inline void *memory_at(const struct memory *m, uint64_t guest, uint64_t size) {
	for (unsigned i = 0; i < m->count; i++) {
		const struct memory_region *r = &m->regions[i];
		if (guest >= r->guest && guest - r->guest <= r->size && size <= r->size - (guest - r->guest))
			return r->host + (guest - r->guest);
	}
	return NULL;
}
