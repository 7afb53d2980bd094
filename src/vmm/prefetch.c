// Bringing in the pages that a restored guest will use; see working_set.h.
//
// In two steps: the pages come into the VMM's own mapping, copied when the guest will write to them, and then KVM maps them for
// the guest, where it can do that in advance (Linux 6.11). A page that fails either step is left to the guest's own fault, which reports what is wrong.
#include "vmm/vm.h"

#include "base/cleanup.h"
#include "vmm/kvm_new.h"
#include "vmm/page_set.h"
#include "vmm/working_set.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

// Longer runs of the microVM's own layer are mapped, not read (layer_read.c).
#define OWN_RUN_MAX 16

static void populate(const struct memory *m, const struct stasis_working_set_run *x) {
#ifdef MADV_POPULATE_WRITE
	uint64_t bytes = (uint64_t)x->page_count * PAGE_BYTES;
	madvise(memory_at(m, x->first_page * PAGE_BYTES, bytes), (size_t)bytes, x->written ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
#endif
}

static void map_for_guest(const struct vm *vm, uint64_t first_page, uint64_t pages) {
	if (!vm->host->can_pre_fault)
		return;
	struct kvm_pre_fault_memory x = {.gpa = first_page * PAGE_BYTES, .size = pages * PAGE_BYTES};
	while (x.size > 0 && (ioctl(vm->vcpus[0].fd, KVM_PRE_FAULT_MEMORY, &x) == 0 || errno == EINTR || errno == EAGAIN))
		;
}

static void map_own(const struct vm *vm) {
	uint64_t index = 0;
	for (unsigned i = 0; i < vm->memory.count; i++) {
		const struct memory_region *r = &vm->memory.regions[i];
		uint64_t pages = r->size / PAGE_BYTES, start = 0;
		for (uint64_t n = 0; n <= pages; n++) {
			if (n < pages && page_set_has(vm->layers.own, index + n))
				continue;
			if (n > start && n - start <= OWN_RUN_MAX)
				map_for_guest(vm, r->guest / PAGE_BYTES + start, n - start);
			start = n + 1;
		}
		index += pages;
	}
}

int vm_prefetch(struct vm *vm, int fd, struct error *e) {
	cleanup_free struct stasis_working_set_run *runs = NULL;
	uint32_t count;
	int r = working_set_read(fd, &vm->layers, &vm->memory, &runs, &count, e);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < count; i++)
		populate(&vm->memory, &runs[i]);
	for (uint32_t i = 0; i < count; i++)
		map_for_guest(vm, runs[i].first_page, runs[i].page_count);
	if (vm->layers.own != NULL)
		map_own(vm);
	return 0;
}
