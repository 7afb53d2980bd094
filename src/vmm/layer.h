// Memory layers: the files that guest memory is mapped from and written to (include/stasis/snapshot.h, docs/snapshot-format.md).
//
// A restore lays the image's layer copy-on-write over the anonymous mapping, extent by extent, so that what is zero is neither stored
// nor read. The microVM's own second layer comes on top: its long extents are mapped as well, its short ones read, many with one call.
//
// Which pages the guest has changed since is asked of /proc/self/pagemap: a page of a private mapping that was written is anonymous
// (Documentation/admin-guide/mm/pagemap.rst: present or swapped, and bit 61 clear).
#pragma once

#include "base/error.h"
#include "stasis/snapshot.h"
#include "vmm/memory.h"

#include <stdbool.h>
#include <stdint.h>

#define LAYERS_MAX 2

struct layers {
	unsigned count; // that the memory was restored from; 0: the VM was booted
	uint8_t ids[LAYERS_MAX][STASIS_ID_BYTES];
	struct stasis_layer_extent *base; // extents of the first layer
	uint64_t base_count;
	uint64_t *own; // bitmap over the guest's RAM pages: told by the second layer; NULL when there is none
};

// Reads and checks a layer's header and table. The caller frees *ret_extents.
int memory_layer_read_table(int fd, const struct memory *m, struct stasis_layer_header *ret, struct stasis_layer_extent **ret_extents,
			    struct error *e);
// The checking alone, over the first `table_size` bytes of a file of `file_bytes` bytes; ret_extents points into `table`.
int memory_layer_check_table(const void *table, uint64_t table_size, uint64_t file_bytes, const struct memory *m, struct error *e);

// Maps the layers (base first) over guest memory that nobody has touched. `ids` are the identities that the state file names.
int memory_layers_restore(struct layers *l, struct memory *m, const int *fds, unsigned count, const uint8_t (*ids)[STASIS_ID_BYTES],
			  struct error *e);

// Writes guest memory to fd: all of it, or, with `difference`, what differs from the first layer. *ret_id becomes the new layer's identity.
// The descriptors that the memory is mapped from are not needed. fd must be empty and may be sparse afterwards; it is not synced.
int memory_layer_write(const struct layers *l, const struct memory *m, int pagemap_fd, int fd, bool difference,
		       uint8_t ret_id[static STASIS_ID_BYTES], struct error *e);
