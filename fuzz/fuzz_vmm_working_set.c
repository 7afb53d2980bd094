// A working set's file, for a guest of 16 MiB below the hole and 16 MiB above it, with a checksum that is right. What is accepted has to be usable as it
// is: inside RAM, sorted.
#include "vmm/working_set.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define REGION_BYTES (UINT64_C(16) << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static uint8_t ram;
	static const uint8_t id[STASIS_ID_BYTES];
	struct memory m = {.count = 2, .size = 2 * REGION_BYTES};
	m.regions[0] = (struct memory_region){.guest = 0, .size = REGION_BYTES, .host = &ram};
	m.regions[1] = (struct memory_region){.guest = UINT64_C(1) << 32, .size = REGION_BYTES, .host = &ram};
	struct stasis_working_set_header h;
	struct error e;
	uint8_t *copy = malloc(size + 1);
	if (copy == NULL)
		return 0;
	if (size > 0)
		memcpy(copy, data, size);
	if (size >= sizeof(h)) {
		memcpy(&h, copy, sizeof(h));
		h.checksum = 0;
		memcpy(copy, &h, sizeof(h));
		h.checksum = XXH3_64bits(copy, size);
		memcpy(copy, &h, sizeof(h));
	}
	if (working_set_check(copy, size, id, &m, &e) == 0) {
		uint64_t next = 0;
		for (uint32_t i = 0; i < h.run_count; i++) {
			struct stasis_working_set_run x;
			memcpy(&x, copy + sizeof(h) + i * sizeof(x), sizeof(x));
			if (x.first_page < next || memory_at(&m, x.first_page * PAGE_BYTES, (uint64_t)x.page_count * PAGE_BYTES) == NULL)
				abort();
			next = x.first_page + x.page_count;
		}
	}
	free(copy);
	return 0;
}
