// Sets of guest RAM pages, one bit each. Pages are numbered through RAM without the hole below 4 GiB ("RAM index").
#pragma once

#include "vmm/memory.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>

static inline uint64_t page_count(const struct memory *m) {
	return m->size / PAGE_BYTES;
}
static inline uint64_t *page_set_new(const struct memory *m) {
	return calloc((size_t)((page_count(m) + 63) / 64), sizeof(uint64_t));
}
static inline bool page_set_has(const uint64_t *s, uint64_t i) {
	return s[i / 64] >> (i % 64) & 1;
}
static inline void page_set_add(uint64_t *s, uint64_t i) {
	s[i / 64] |= UINT64_C(1) << (i % 64);
}

// RAM index of a guest physical page number that is known to be RAM, and back.
static inline uint64_t page_index(const struct memory *m, uint64_t guest_page) {
	uint64_t before = 0;
	for (unsigned i = 0; i < m->count; i++) {
		const struct memory_region *r = &m->regions[i];
		uint64_t first = r->guest / PAGE_BYTES, pages = r->size / PAGE_BYTES;
		if (guest_page >= first && guest_page - first < pages)
			return before + guest_page - first;
		before += pages;
	}
	return UINT64_MAX;
}
static inline const struct memory_region *page_region(const struct memory *m, uint64_t index, uint64_t *ret_in_region) {
	for (unsigned i = 0; i < m->count; i++) {
		uint64_t pages = m->regions[i].size / PAGE_BYTES;
		if (index < pages) {
			*ret_in_region = index;
			return &m->regions[i];
		}
		index -= pages;
	}
	return NULL;
}
