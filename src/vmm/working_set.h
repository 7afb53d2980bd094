// Working sets: which pages of an image's memory its microVMs use as soon as they run (include/stasis/snapshot.h, docs/snapshot-format.md).
//
// A guest that is restored takes one page fault for each page that it uses, and each of them costs a VM exit: a microsecond or two on
// hardware, 170 us where KVM is nested in an emulated processor. So a clone is recorded once, when its image is made; every
// later one gets these pages, and only these, before it runs (prefetch.c).
//
// Recording. /proc/self/pagemap tells which pages a mapping has, but a read fault maps up to 16 pages around it as well. It stays within
// its mapping, however: in a recorded clone every second page has another read-ahead advice, so that each page is a mapping of its own.
#pragma once

#include "base/error.h"
#include "vmm/layer.h"
#include "vmm/memory.h"

// After memory_layers_restore(): the pages that the guest uses from now on can be told.
int working_set_record(const struct layers *l, const struct memory *m, struct error *e);
// Writes the pages that were used since working_set_record() to fd, which must be empty; it is not synced.
int working_set_write(const struct layers *l, const struct memory *m, int pagemap_fd, int fd, struct error *e);

// Reads and checks a working set that belongs to the base layer of `l`. The caller frees *ret_runs.
int working_set_read(int fd, const struct layers *l, const struct memory *m, struct stasis_working_set_run **ret_runs, uint32_t *ret_count,
		     struct error *e);
// The checking alone. `file` is changed (its checksum becomes 0).
int working_set_check(void *file, uint64_t size, const uint8_t base_id[static STASIS_ID_BYTES], const struct memory *m, struct error *e);
