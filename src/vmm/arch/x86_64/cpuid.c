// What CPUID shows to a guest: what KVM supports, less what would tie a snapshot to this host or promise what the VMM does not give.
//
// Hidden: invariant TSC (the guest then uses kvm-clock, which survives a change of the TSC's frequency), nested virtualization, performance
// counters, MONITOR, SGX, TSX, AMX and processor trace. Topology: one package, one thread per core, one core per vCPU. The leaves are described in
// the Intel SDM volume 2 (CPUID) and the AMD APM volume 3, appendix E.
#include "vmm/arch/x86_64/x86.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(n) (1u << (n))

enum reg { EAX, EBX, ECX, EDX };

// What a word of features is made of, for hiding and for comparing.
struct word {
	uint32_t function, index;
	enum reg reg;
	uint32_t hidden;
	uint32_t topology; // bits that depend on the number of vCPUs, not on the CPU
};

static const struct word words[] = {
	{0x1, 0, ECX, BIT(2) | BIT(3) | BIT(4) | BIT(5) | BIT(6) | BIT(7) | BIT(8) | BIT(15) | BIT(18) | BIT(27), 0},
	{0x1, 0, EDX, BIT(21) | BIT(22) | BIT(29) | BIT(31), BIT(28)},
	{0x6, 0, EAX, ~BIT(2), 0},
	{0x7, 0, EBX, BIT(2) | BIT(4) | BIT(11) | BIT(12) | BIT(15) | BIT(25), 0},
	{0x7, 0, ECX, BIT(4) | BIT(30), 0},
	{0x7, 0, EDX, BIT(18) | BIT(19) | BIT(22) | BIT(24) | BIT(25), 0},
	{0x7, 1, EAX, BIT(21), 0},
	{0x7, 1, EDX, BIT(8), 0},
	{0x7, 2, EDX, 0, 0},
	{0xd, 0, EAX, BIT(17) | BIT(18), 0},
	{0xd, 1, EAX, BIT(4), 0},
	{0xd, 1, ECX, 0, 0},
	{0x80000001, 0, ECX,
	 BIT(2) | BIT(3) | BIT(10) | BIT(12) | BIT(13) | BIT(15) | BIT(19) | BIT(23) | BIT(24) | BIT(27) | BIT(28) | BIT(29), BIT(1)},
	{0x80000001, 0, EDX, 0, 0},
	{0x80000007, 0, EBX, ~0u, 0},
	{0x80000007, 0, EDX, BIT(8), 0},
	{0x80000008, 0, EBX, 0, 0},
	{0x80000021, 0, EAX, 0, 0},
	{0x40000001, 0, EAX, BIT(16) | BIT(17), 0},
};
#define WORDS (sizeof(words) / sizeof(words[0]))

// Leaves that say nothing to a guest.
static const uint32_t hidden_leaves[] = {
	0x5,  0xa,  0xf,        0x10,       0x12,       0x14,       0x15,       0x16,       0x1d,       0x1e,
	0x1f, 0x23, 0x8000000a, 0x8000001b, 0x8000001c, 0x8000001f, 0x80000020, 0x80000022, 0x80000026, 0x40000010,
};

struct name {
	uint32_t function, index;
	enum reg reg;
	unsigned bit;
	const char *name;
};

static const struct name names[] = {
	{0x1, 0, ECX, 0, "sse3"},
	{0x1, 0, ECX, 1, "pclmulqdq"},
	{0x1, 0, ECX, 9, "ssse3"},
	{0x1, 0, ECX, 12, "fma"},
	{0x1, 0, ECX, 13, "cx16"},
	{0x1, 0, ECX, 17, "pcid"},
	{0x1, 0, ECX, 19, "sse4_1"},
	{0x1, 0, ECX, 20, "sse4_2"},
	{0x1, 0, ECX, 21, "x2apic"},
	{0x1, 0, ECX, 22, "movbe"},
	{0x1, 0, ECX, 23, "popcnt"},
	{0x1, 0, ECX, 24, "tsc_deadline"},
	{0x1, 0, ECX, 25, "aes"},
	{0x1, 0, ECX, 26, "xsave"},
	{0x1, 0, ECX, 28, "avx"},
	{0x1, 0, ECX, 29, "f16c"},
	{0x1, 0, ECX, 30, "rdrand"},
	{0x7, 0, EBX, 0, "fsgsbase"},
	{0x7, 0, EBX, 1, "tsc_adjust"},
	{0x7, 0, EBX, 3, "bmi1"},
	{0x7, 0, EBX, 5, "avx2"},
	{0x7, 0, EBX, 7, "smep"},
	{0x7, 0, EBX, 8, "bmi2"},
	{0x7, 0, EBX, 9, "erms"},
	{0x7, 0, EBX, 10, "invpcid"},
	{0x7, 0, EBX, 16, "avx512f"},
	{0x7, 0, EBX, 17, "avx512dq"},
	{0x7, 0, EBX, 18, "rdseed"},
	{0x7, 0, EBX, 19, "adx"},
	{0x7, 0, EBX, 20, "smap"},
	{0x7, 0, EBX, 21, "avx512ifma"},
	{0x7, 0, EBX, 23, "clflushopt"},
	{0x7, 0, EBX, 24, "clwb"},
	{0x7, 0, EBX, 28, "avx512cd"},
	{0x7, 0, EBX, 29, "sha_ni"},
	{0x7, 0, EBX, 30, "avx512bw"},
	{0x7, 0, EBX, 31, "avx512vl"},
	{0x7, 0, ECX, 1, "avx512vbmi"},
	{0x7, 0, ECX, 2, "umip"},
	{0x7, 0, ECX, 3, "pku"},
	{0x7, 0, ECX, 5, "waitpkg"},
	{0x7, 0, ECX, 6, "avx512_vbmi2"},
	{0x7, 0, ECX, 7, "user_shstk"},
	{0x7, 0, ECX, 8, "gfni"},
	{0x7, 0, ECX, 9, "vaes"},
	{0x7, 0, ECX, 10, "vpclmulqdq"},
	{0x7, 0, ECX, 11, "avx512_vnni"},
	{0x7, 0, ECX, 12, "avx512_bitalg"},
	{0x7, 0, ECX, 14, "avx512_vpopcntdq"},
	{0x7, 0, ECX, 16, "la57"},
	{0x7, 0, ECX, 22, "rdpid"},
	{0x7, 0, ECX, 25, "cldemote"},
	{0x7, 0, ECX, 27, "movdiri"},
	{0x7, 0, ECX, 28, "movdir64b"},
	{0x7, 0, EDX, 4, "fsrm"},
	{0x7, 0, EDX, 8, "avx512_vp2intersect"},
	{0x7, 0, EDX, 10, "md_clear"},
	{0x7, 0, EDX, 14, "serialize"},
	{0x7, 0, EDX, 23, "avx512_fp16"},
	{0x7, 0, EDX, 26, "spec_ctrl"},
	{0x7, 0, EDX, 27, "intel_stibp"},
	{0x7, 0, EDX, 29, "arch_capabilities"},
	{0x7, 0, EDX, 31, "spec_ctrl_ssbd"},
	{0x7, 1, EAX, 4, "avx_vnni"},
	{0x7, 1, EAX, 5, "avx512_bf16"},
	{0xd, 0, EAX, 2, "avx state"},
	{0xd, 0, EAX, 5, "avx512 state"},
	{0xd, 0, EAX, 9, "pku state"},
	{0xd, 1, EAX, 0, "xsaveopt"},
	{0xd, 1, EAX, 1, "xsavec"},
	{0xd, 1, EAX, 2, "xgetbv1"},
	{0xd, 1, EAX, 3, "xsaves"},
	{0x80000001, 0, ECX, 0, "lahf_lm"},
	{0x80000001, 0, ECX, 4, "cr8_legacy"},
	{0x80000001, 0, ECX, 5, "abm"},
	{0x80000001, 0, ECX, 6, "sse4a"},
	{0x80000001, 0, ECX, 8, "3dnowprefetch"},
	{0x80000001, 0, ECX, 22, "topoext"},
	{0x80000001, 0, EDX, 11, "syscall"},
	{0x80000001, 0, EDX, 20, "nx"},
	{0x80000001, 0, EDX, 22, "mmxext"},
	{0x80000001, 0, EDX, 25, "fxsr_opt"},
	{0x80000001, 0, EDX, 26, "pdpe1gb"},
	{0x80000001, 0, EDX, 27, "rdtscp"},
	{0x80000001, 0, EDX, 29, "lm"},
	{0x80000008, 0, EBX, 0, "clzero"},
	{0x80000008, 0, EBX, 2, "xsaveerptr"},
	{0x80000008, 0, EBX, 9, "wbnoinvd"},
	{0x80000008, 0, EBX, 12, "ibpb"},
	{0x80000008, 0, EBX, 14, "ibrs"},
	{0x80000008, 0, EBX, 15, "stibp"},
	{0x80000008, 0, EBX, 24, "ssbd"},
	{0x80000008, 0, EBX, 25, "virt_ssbd"},
	{0x40000001, 0, EAX, 0, "kvm clocksource"},
	{0x40000001, 0, EAX, 3, "kvm-clock"},
	{0x40000001, 0, EAX, 4, "kvm async page faults"},
	{0x40000001, 0, EAX, 5, "kvm steal time"},
	{0x40000001, 0, EAX, 6, "kvm pv eoi"},
	{0x40000001, 0, EAX, 7, "kvm pv unhalt"},
	{0x40000001, 0, EAX, 9, "kvm pv tlb flush"},
	{0x40000001, 0, EAX, 11, "kvm pv send ipi"},
	{0x40000001, 0, EAX, 12, "kvm poll control"},
	{0x40000001, 0, EAX, 13, "kvm pv sched yield"},
	{0x40000001, 0, EAX, 14, "kvm async page fault interrupt"},
	{0x40000001, 0, EAX, 24, "kvm clock stable"},
};

struct kvm_cpuid2 *cpuid_new(void) {
	return calloc(1, sizeof(struct kvm_cpuid2) + CPUID_ENTRIES_MAX * sizeof(struct kvm_cpuid_entry2));
}

const struct kvm_cpuid_entry2 *cpuid_find(const struct kvm_cpuid2 *c, uint32_t function, uint32_t index) {
	for (uint32_t i = 0; i < c->nent; i++) {
		const struct kvm_cpuid_entry2 *x = &c->entries[i];
		if (x->function == function && ((x->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX) == 0 || x->index == index))
			return x;
	}
	return NULL;
}

static uint32_t *reg_of(struct kvm_cpuid_entry2 *x, enum reg reg) {
	uint32_t *const regs[] = {&x->eax, &x->ebx, &x->ecx, &x->edx};
	return regs[reg];
}

static uint32_t value_of(const struct kvm_cpuid2 *c, uint32_t function, uint32_t index, enum reg reg) {
	const struct kvm_cpuid_entry2 *x = cpuid_find(c, function, index);
	if (x == NULL)
		return 0;
	struct kvm_cpuid_entry2 copy = *x;
	return *reg_of(&copy, reg);
}

static bool is_hidden_leaf(const struct kvm_cpuid_entry2 *x) {
	for (size_t i = 0; i < sizeof(hidden_leaves) / sizeof(hidden_leaves[0]); i++)
		if (x->function == hidden_leaves[i])
			return true;
	return x->function == 0xb || (x->function == 0xd && (x->index == 17 || x->index == 18)); // topology is added later; AMX
}

// The size of the XSAVE area for everything that is shown (Intel SDM volume 1, section 13.2).
static void fix_xsave_size(struct kvm_cpuid2 *c) {
	uint32_t features = value_of(c, 0xd, 0, EAX), size = 0x240;
	for (uint32_t i = 2; i < 32; i++)
		if ((features & BIT(i)) != 0) {
			uint32_t end = value_of(c, 0xd, i, EAX) + value_of(c, 0xd, i, EBX);
			size = end > size ? end : size;
		}
	for (uint32_t i = 0; i < c->nent; i++)
		if (c->entries[i].function == 0xd && c->entries[i].index == 0)
			c->entries[i].ecx = size;
}

void cpuid_filter(struct kvm_cpuid2 *c, bool tsc_deadline) {
	uint32_t n = 0;
	for (uint32_t i = 0; i < c->nent; i++)
		if (!is_hidden_leaf(&c->entries[i]))
			c->entries[n++] = c->entries[i];
	c->nent = n;
	for (uint32_t i = 0; i < n; i++) {
		struct kvm_cpuid_entry2 *x = &c->entries[i];
		for (size_t w = 0; w < WORDS; w++)
			if (words[w].function == x->function && words[w].index == x->index)
				*reg_of(x, words[w].reg) &= ~words[w].hidden;
		if (x->function == 0x1)
			x->ecx = (x->ecx & ~BIT(24)) | BIT(31) | (tsc_deadline ? BIT(24) : 0); // running below a hypervisor
		if (x->function == 0x6)
			x->ebx = x->ecx = x->edx = 0;
		x->flags &= KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
	}
	fix_xsave_size(c);
	// KVM gives the topology of the CPU that it was asked on; the table shall be the same whichever that was.
	cpuid_set_topology(c, 0, 1);
}

static unsigned bits_for(uint32_t vcpus) {
	unsigned bits = 0;
	while (1u << bits < vcpus)
		bits++;
	return bits;
}

static void set_cache_sharing(struct kvm_cpuid_entry2 *x, uint32_t vcpus) {
	uint32_t type = x->eax & 0x1f, level = x->eax >> 5 & 7;
	if (type == 0)
		return;
	uint32_t sharing = level >= 3 ? vcpus - 1 : 0;
	x->eax = (x->eax & 0x3fff) | sharing << 14 | (x->function == 0x4 ? (vcpus - 1) << 26 : 0);
}

static void set_leaf_topology(struct kvm_cpuid_entry2 *x, uint32_t vcpu, uint32_t vcpus) {
	switch (x->function) {
	case 0x1:
		x->ebx = (x->ebx & 0xff00) | (vcpus > 1 ? vcpus << 16 : 0) | vcpu << 24;
		x->edx = vcpus > 1 ? x->edx | BIT(28) : x->edx & ~BIT(28);
		break;
	case 0x4:
	case 0x8000001d:
		set_cache_sharing(x, vcpus);
		break;
	case 0x80000001:
		x->ecx &= ~BIT(1);
		break;
	case 0x80000008:
		x->ecx = (vcpus - 1) | bits_for(vcpus) << 12;
		break;
	case 0x8000001e:
		x->eax = vcpu;
		x->ebx = vcpu;
		x->ecx = x->edx = 0;
		break;
	default:
		break;
	}
}

static void add_topology_level(struct kvm_cpuid2 *c, uint32_t level, uint32_t shift, uint32_t count, uint32_t type, uint32_t vcpu) {
	if (c->nent == CPUID_ENTRIES_MAX)
		return;
	c->entries[c->nent++] = (struct kvm_cpuid_entry2){.function = 0xb,
							  .index = level,
							  .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
							  .eax = shift,
							  .ebx = count,
							  .ecx = level | type << 8,
							  .edx = vcpu};
}

void cpuid_set_topology(struct kvm_cpuid2 *c, uint32_t vcpu, uint32_t vcpus) {
	uint32_t n = 0;
	for (uint32_t i = 0; i < c->nent; i++) {
		if (c->entries[i].function == 0xb)
			continue;
		c->entries[n] = c->entries[i];
		set_leaf_topology(&c->entries[n++], vcpu, vcpus);
	}
	c->nent = n;
	if (value_of(c, 0, 0, EAX) < 0xb)
		return;
	add_topology_level(c, 0, 0, 1, 1, vcpu);                   // one thread per core
	add_topology_level(c, 1, bits_for(vcpus), vcpus, 2, vcpu); // cores
	add_topology_level(c, 2, 0, 0, 0, vcpu);
}

static void vendor_text(const struct kvm_cpuid2 *c, char to[static 13]) {
	uint32_t v[3] = {value_of(c, 0, 0, EBX), value_of(c, 0, 0, EDX), value_of(c, 0, 0, ECX)};
	memcpy(to, v, 12);
	for (int i = 0; i < 12; i++)
		to[i] = to[i] > ' ' && to[i] < 0x7f ? to[i] : '?';
	to[12] = '\0';
}

static const char *feature_name(const struct word *w, unsigned bit, char *room, size_t size) {
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].function == w->function && names[i].index == w->index && names[i].reg == w->reg && names[i].bit == bit)
			return names[i].name;
	static const char *const regs[] = {"eax", "ebx", "ecx", "edx"};
	snprintf(room, size, "cpuid 0x%x.%u %s bit %u", w->function, w->index, regs[w->reg], bit);
	return room;
}

int cpuid_check(const struct kvm_cpuid2 *saved, const struct kvm_cpuid2 *host, struct error *e) {
	char was[13], is[13];
	vendor_text(saved, was);
	vendor_text(host, is);
	if (strcmp(was, is) != 0)
		return error_set(e, -ENOTSUP, "the snapshot was made on a CPU of %s, this host has one of %s", was, is);
	for (size_t i = 0; i < WORDS; i++) {
		const struct word *w = &words[i];
		uint32_t missing =
			value_of(saved, w->function, w->index, w->reg) & ~value_of(host, w->function, w->index, w->reg) & ~w->topology;
		if (missing == 0)
			continue;
		char room[64];
		const char *name = feature_name(w, (unsigned)__builtin_ctz(missing), room, sizeof(room));
		return error_set(
			e, -ENOTSUP,
			"this host's CPU (or its KVM) lacks '%s', which the snapshot's guest was shown; restore it on a CPU that has it",
			name);
	}
	return 0;
}

void cpuid_save(const struct kvm_cpuid2 *c, struct writer *w) {
	write_u32(w, c->nent);
	for (uint32_t i = 0; i < c->nent; i++) {
		const struct kvm_cpuid_entry2 *x = &c->entries[i];
		const uint32_t v[7] = {x->function, x->index, x->flags, x->eax, x->ebx, x->ecx, x->edx};
		write_bytes(w, v, sizeof(v));
	}
}

int cpuid_load(struct kvm_cpuid2 *c, struct reader *r) {
	uint32_t n = read_u32(r);
	if (r->bad || n > CPUID_ENTRIES_MAX)
		return -EBADMSG;
	c->nent = n;
	for (uint32_t i = 0; i < n; i++) {
		struct kvm_cpuid_entry2 *x = &c->entries[i];
		x->function = read_u32(r);
		x->index = read_u32(r);
		x->flags = read_u32(r) & KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
		x->eax = read_u32(r);
		x->ebx = read_u32(r);
		x->ecx = read_u32(r);
		x->edx = read_u32(r);
	}
	return r->bad || r->left != 0 ? -EBADMSG : 0;
}
