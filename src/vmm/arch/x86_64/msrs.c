// The model-specific registers of a vCPU: which belong to its state, and in which order they are put back.
#include "base/cleanup.h"
#include "vmm/arch/x86_64/x86.h"

#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define MSR_TSC 0x10
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_MTRR_DEFAULT 0x2ff
#define MTRR_ENABLED_WRITE_BACK 0x806
#define KVM_WALL_CLOCK_OLD 0x11
#define KVM_SYSTEM_TIME_OLD 0x12

struct range {
	uint32_t first, last;
};

// In KVM's list, but not of our guests' state: what CPUID hides from them, what the host's CPU says about itself, and older
// names of what is saved anyway.
static const struct range left_out[] = {
	{KVM_WALL_CLOCK_OLD, KVM_SYSTEM_TIME_OLD},
	{0x34, 0x34}, // SMI count
	{0x9e, 0x9e}, // SMBASE: no system management mode
	{0xc1, 0xc8}, // performance counters
	{0x186, 0x18d},
	{0x1db, 0x1de}, // last branch and exception, read only
	{0x309, 0x30c},
	{0x345, 0x345},
	{0x38d, 0x390},
	{0x3f1, 0x3f1},
	{0x480, 0x493}, // VMX capabilities
	{0x4c1, 0x4c8},
	{0x560, 0x587}, // processor trace
	{0x600, 0x600},
	{0x1c4, 0x1c5},           // AMX
	{0x40000000, 0x400001ff}, // Hyper-V
	{0x4b564d07, 0x4b564d07}, // KVM_ASYNC_PF_ACK: not a state
	{0xc0000104, 0xc0000104}, // TSC ratio of nested guests
	{0xc0000300, 0xc0000303},
	{0xc0010000, 0xc0010007},
	{0xc0010117, 0xc0010117}, // host save area of nested guests
	{0xc0010200, 0xc001020b},
};

// Not in KVM's list: memory types (MTRR).
static const struct range added[] = {{0x200, 0x20f}, {0x250, 0x250}, {0x258, 0x259}, {0x268, 0x26f}, {MSR_MTRR_DEFAULT, MSR_MTRR_DEFAULT}};

// Put back behind everything else, in this order: what needs others to be there before it.
static const uint32_t last[] = {
	0x4b564d00,       // KVM_WALL_CLOCK_NEW
	0x4b564d01,       // KVM_SYSTEM_TIME_NEW
	0x4b564d06,       // KVM_ASYNC_PF_INT, before async page faults are enabled
	0x4b564d02,       // KVM_ASYNC_PF_EN: wakes whoever waited for a page
	0x4b564d03,       // KVM_STEAL_TIME
	0x4b564d04,       // KVM_PV_EOI_EN
	0x4b564d05,       // KVM_POLL_CONTROL
	MSR_TSC_DEADLINE, // after TSC and local APIC
};
#define LAST (sizeof(last) / sizeof(last[0]))

static bool is_left_out(uint32_t index) {
	for (size_t i = 0; i < sizeof(left_out) / sizeof(left_out[0]); i++)
		if (index >= left_out[i].first && index <= left_out[i].last)
			return true;
	return false;
}

static bool is_last(uint32_t index) {
	for (size_t i = 0; i < LAST; i++)
		if (last[i] == index)
			return true;
	return false;
}

static bool contains(const struct kvm_msr_list *l, uint32_t index) {
	for (uint32_t i = 0; i < l->nmsrs; i++)
		if (l->indices[i] == index)
			return true;
	return false;
}

static void add(struct kvm_msr_list *l, uint32_t index) {
	if (l->nmsrs < MSRS_MAX && !contains(l, index))
		l->indices[l->nmsrs++] = index;
}

static struct kvm_msr_list *list_new(void) {
	return calloc(1, sizeof(struct kvm_msr_list) + MSRS_MAX * sizeof(uint32_t));
}

int msrs_list(int kvm_fd, struct kvm_msr_list **ret, struct error *e) {
	cleanup_free struct kvm_msr_list *all = list_new();
	struct kvm_msr_list *l = list_new();
	*ret = l;
	if (all == NULL || l == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	all->nmsrs = MSRS_MAX;
	if (ioctl(kvm_fd, KVM_GET_MSR_INDEX_LIST, all) < 0)
		return error_errno(e, "KVM_GET_MSR_INDEX_LIST");
	add(l, MSR_TSC);
	for (size_t i = 0; i < sizeof(added) / sizeof(added[0]); i++)
		for (uint32_t n = added[i].first; n <= added[i].last; n++)
			add(l, n);
	for (uint32_t i = 0; i < all->nmsrs; i++)
		if (!is_left_out(all->indices[i]) && !is_last(all->indices[i]))
			add(l, all->indices[i]);
	for (size_t i = 0; i < LAST; i++)
		if (contains(all, last[i]))
			add(l, last[i]);
	return 0;
}

static struct kvm_msrs *msrs_new(void) {
	return calloc(1, sizeof(struct kvm_msrs) + MSRS_MAX * sizeof(struct kvm_msr_entry));
}

void msrs_save(int vcpu_fd, const struct kvm_msr_list *list, struct writer *w) {
	cleanup_free struct kvm_msrs *m = msrs_new();
	uint8_t *count_at = write_space(w, sizeof(uint32_t));
	if (m == NULL || count_at == NULL) {
		w->bad = true;
		return;
	}
	uint32_t count = 0;
	for (uint32_t at = 0; at < list->nmsrs;) {
		m->nmsrs = list->nmsrs - at;
		for (uint32_t i = 0; i < m->nmsrs; i++)
			m->entries[i].index = list->indices[at + i];
		int got = ioctl(vcpu_fd, KVM_GET_MSRS, m);
		got = got < 0 ? 0 : got;
		for (int i = 0; i < got; i++) {
			write_u32(w, m->entries[i].index);
			write_u64(w, m->entries[i].data);
		}
		count += (uint32_t)got;
		at += (uint32_t)got + 1; // the one behind those is one that this vCPU does not have
	}
	memcpy(count_at, &count, sizeof(count));
}

int msrs_parse(struct reader *r, const uint8_t **ret_entries, uint32_t *ret_count) {
	*ret_count = read_u32(r);
	if (r->bad || *ret_count > MSRS_MAX)
		return -EBADMSG;
	*ret_entries = read_bytes(r, (size_t)*ret_count * 12);
	return r->bad ? -EBADMSG : 0;
}

int msrs_load(int vcpu_fd, const uint8_t *entries, uint32_t count, struct error *e) {
	cleanup_free struct kvm_msrs *m = msrs_new();
	if (m == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	for (uint32_t at = 0; at < count;) {
		m->nmsrs = count - at;
		struct reader r = reader_over(entries + (size_t)at * 12, (size_t)m->nmsrs * 12);
		for (uint32_t i = 0; i < m->nmsrs; i++) {
			m->entries[i] = (struct kvm_msr_entry){.index = read_u32(&r)};
			m->entries[i].data = read_u64(&r);
		}
		int set = ioctl(vcpu_fd, KVM_SET_MSRS, m);
		if (set < 0)
			return error_errno(e, "KVM_SET_MSRS");
		at += (uint32_t)set;
		// One that cannot be set does no harm when it was zero: then the guest has not used it.
		if (at < count && m->entries[set].data != 0)
			return error_set(e, -ENOTSUP, "this host's KVM cannot set MSR 0x%x to 0x%llx, as the snapshot has it",
					 m->entries[set].index, (unsigned long long)m->entries[set].data);
		at++;
	}
	return 0;
}

int msrs_set_boot(int vcpu_fd, struct error *e) {
	cleanup_free struct kvm_msrs *m = msrs_new();
	if (m == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	m->nmsrs = 1;
	m->entries[0] = (struct kvm_msr_entry){.index = MSR_MTRR_DEFAULT, .data = MTRR_ENABLED_WRITE_BACK};
	return ioctl(vcpu_fd, KVM_SET_MSRS, m) < 0 ? error_errno(e, "KVM_SET_MSRS") : 0;
}
