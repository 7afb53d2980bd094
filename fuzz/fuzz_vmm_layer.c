// A memory layer's header and table, for a guest of 16 MiB below the hole and 16 MiB above it. What is accepted has to be usable as it is: inside
// RAM, inside the file, sorted.
#include "vmm/layer.h"

#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

#define REGION_BYTES (UINT64_C(16) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static uint8_t ram;
	struct memory m = {.count = 2, .size = 2 * REGION_BYTES};
	m.regions[0] = (struct memory_region){.guest = 0, .size = REGION_BYTES, .host = &ram};
	m.regions[1] = (struct memory_region){.guest = UINT64_C(1) << 32, .size = REGION_BYTES, .host = &ram};
	struct stasis_layer_header h;
	struct error e;
	if (size < sizeof(h))
		return memory_layer_check_table(data, size, size, &m, &e) < 0 ? 0 : (abort(), 0);
	uint8_t *copy = malloc(size);
	if (copy == NULL)
		return 0;
	memcpy(copy, data, size);
	memcpy(&h, copy, sizeof(h));
	uint64_t extents = (size - sizeof(h)) / sizeof(struct stasis_layer_extent);
	size_t table = sizeof(h) + extents * sizeof(struct stasis_layer_extent);
	h.extent_count = extents;
	h.checksum = 0;
	memcpy(copy, &h, sizeof(h));
	h.checksum = XXH3_64bits(copy, table);
	memcpy(copy, &h, sizeof(h));
	if (memory_layer_check_table(copy, table, h.file_bytes, &m, &e) == 0)
		for (uint64_t i = 0; i < extents; i++) {
			struct stasis_layer_extent x;
			memcpy(&x, copy + sizeof(h) + i * sizeof(x), sizeof(x));
			if (memory_at(&m, x.first_page * PAGE_BYTES, x.page_count * PAGE_BYTES) == NULL ||
			    (x.kind == STASIS_EXTENT_DATA && x.offset + x.page_count * PAGE_BYTES > h.file_bytes))
				abort();
		}
	free(copy);
	return 0;
}
