// The files of a snapshot: state file and memory layers. A public format; docs/snapshot-format.md says what each field means and what a
// reader has to check. All integers are little-endian; structures have no padding but what is named.
#pragma once

#include <stdint.h>

#define STASIS_PAGE_BYTES 4096u
#define STASIS_ID_BYTES 16 // a memory layer's identity: random

enum stasis_architecture {
	STASIS_ARCHITECTURE_X86_64 = 1,
	STASIS_ARCHITECTURE_ARM64 = 2,
};

// --- memory layer: header, extent table, zero padding to a page, page data ---

#define STASIS_LAYER_MAGIC "STASISML"
#define STASIS_LAYER_VERSION 1u
#define STASIS_LAYER_EXTENTS_MAX (1u << 20)

struct stasis_layer_header {
	char magic[8];
	uint32_t version;
	uint32_t page_bytes;
	uint64_t memory_bytes; // of the guest
	uint64_t extent_count;
	uint8_t id[STASIS_ID_BYTES];
	uint8_t base_id[STASIS_ID_BYTES]; // of the layer below; all zero: none, pages that are not listed are zero
	uint64_t file_bytes;
	uint64_t checksum; // XXH3-64 of this header, with 0 in this field, and the table behind it
};

enum stasis_extent_kind {
	STASIS_EXTENT_DATA = 1, // the pages' bytes lie at `offset` in this file
	STASIS_EXTENT_ZERO = 2, // the pages are zero, whatever the layer below says; `offset` is 0
};

struct stasis_layer_extent {
	uint64_t first_page; // guest physical address / STASIS_PAGE_BYTES
	uint64_t page_count;
	uint64_t offset;
	uint32_t kind;
	uint32_t reserved; // 0
};

// --- working set: header, then runs of pages in ascending order ---

#define STASIS_WORKING_SET_MAGIC "STASISWS"
#define STASIS_WORKING_SET_VERSION 1u
#define STASIS_WORKING_SET_RUNS_MAX (1u << 18)

struct stasis_working_set_header {
	char magic[8];
	uint32_t version;
	uint32_t run_count;
	uint64_t memory_bytes;            // of the guest
	uint8_t base_id[STASIS_ID_BYTES]; // of the memory layer that it belongs to
	uint64_t checksum;                // XXH3-64 of the whole file with 0 in this field
};

struct stasis_working_set_run {
	uint64_t first_page; // guest physical address / STASIS_PAGE_BYTES
	uint32_t page_count;
	uint32_t written; // 1: the guest writes to these pages, 0: it reads them
};

// --- state file: header, then sections ---

#define STASIS_STATE_MAGIC "STASISVM"
#define STASIS_STATE_VERSION 1u
#define STASIS_STATE_BYTES_MAX (64u << 20)
#define STASIS_SECTIONS_MAX 256

struct stasis_state_header {
	char magic[8];
	uint32_t version;
	uint32_t architecture; // enum stasis_architecture
	uint64_t file_bytes;
	uint64_t checksum; // XXH3-64 of the whole file with 0 in this field
};

struct stasis_section {
	uint32_t tag;
	uint32_t instance; // number of the vCPU or device; 0 where there is only one
	uint64_t bytes;    // of the payload; the next section starts at the next multiple of 8
};

#define STASIS_TAG(a, b, c, d) ((uint32_t)(a) | (uint32_t)(b) << 8 | (uint32_t)(c) << 16 | (uint32_t)(d) << 24)

enum stasis_section_tag {
	STASIS_SECTION_MEMORY = STASIS_TAG('M', 'E', 'M', 'O'),  // memory size, number of vCPUs, the layers' identities
	STASIS_SECTION_DEVICES = STASIS_TAG('D', 'E', 'V', 'S'), // the list of virtio devices
	STASIS_SECTION_VIRTIO = STASIS_TAG('V', 'I', 'R', 'T'),  // one device, by its place in the list
	STASIS_SECTION_SERIAL = STASIS_TAG('U', 'A', 'R', 'T'),
	STASIS_SECTION_CPUID = STASIS_TAG('C', 'P', 'I', 'D'), // x86-64: what CPUID shows to the guest
	STASIS_SECTION_CLOCK = STASIS_TAG('C', 'L', 'O', 'K'),
	STASIS_SECTION_IOAPIC = STASIS_TAG('I', 'O', 'A', 'P'),
	STASIS_SECTION_VCPU = STASIS_TAG('V', 'C', 'P', 'U'),
};

_Static_assert(sizeof(struct stasis_layer_header) == 80, "layer header");
_Static_assert(sizeof(struct stasis_layer_extent) == 32, "layer extent");
_Static_assert(sizeof(struct stasis_working_set_header) == 48, "working set header");
_Static_assert(sizeof(struct stasis_working_set_run) == 16, "working set run");
_Static_assert(sizeof(struct stasis_state_header) == 32, "state header");
_Static_assert(sizeof(struct stasis_section) == 16, "section");
