// The x86-64 microVM as a whole: layout, interrupt controller, first vCPU at boot, and its part of a snapshot; see vmm/arch.h.
#include "base/cleanup.h"
#include "vmm/arch/x86_64/x86.h"
#include "vmm/vm.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#define TSS_ADDRESS 0xfffbd000u // where Intel CPUs without "unrestricted guest" need three pages
#define CLOCK_JUMP_MAX_NS UINT64_C(60000000000)

const struct arch_layout arch_layout = {
	.architecture = STASIS_ARCHITECTURE_X86_64,
	.mmio_base = MMIO_BASE,
	.device_line = DEVICE_LINE,
	.device_lines = IOAPIC_PINS - DEVICE_LINE,
	.serial_line = SERIAL_LINE,
	.generation_line = GENERATION_LINE,
	.generation_page = GENERATION_PAGE,
	.memory_min = UINT64_C(4) << 20,
	.memory_max = UINT64_C(1) << 40,
};
_Static_assert(VM_DEVICES_MAX <= IOAPIC_PINS - DEVICE_LINE, "every device has a line of its own");

void arch_memory_layout(uint64_t size, struct memory *ret) {
	uint64_t low = size < LOW_MEMORY_MAX ? size : LOW_MEMORY_MAX;
	*ret = (struct memory){.count = size > low ? 2 : 1, .size = size};
	ret->regions[0] = (struct memory_region){.guest = 0, .size = low};
	ret->regions[1] = (struct memory_region){.guest = HIGH_MEMORY, .size = size - low};
}

int arch_vm_create(struct vm *vm, struct error *e) {
	vm->arch = calloc(1, sizeof(*vm->arch));
	if (vm->arch == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	ioapic_init(&vm->arch->ioapic, vm->fd);
	if (ioctl(vm->fd, KVM_SET_TSS_ADDR, (unsigned long)TSS_ADDRESS) < 0)
		return error_errno(e, "KVM_SET_TSS_ADDR");
	struct kvm_enable_cap split = {.cap = KVM_CAP_SPLIT_IRQCHIP, .args = {IOAPIC_PINS}};
	if (ioctl(vm->fd, KVM_ENABLE_CAP, &split) < 0)
		return error_errno(e, "KVM_CAP_SPLIT_IRQCHIP");
	return 0;
}

void arch_vm_destroy(struct vm *vm) {
	free(vm->arch);
	vm->arch = NULL;
}

static int set_cpuid(struct vcpu *v, const struct kvm_cpuid2 *table, struct error *e) {
	cleanup_free struct kvm_cpuid2 *c = cpuid_new();
	if (c == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	memcpy(c, table, sizeof(*c) + table->nent * sizeof(table->entries[0]));
	cpuid_set_topology(c, v->index, v->vm->vcpu_count);
	if (ioctl(v->fd, KVM_SET_CPUID2, c) < 0)
		return error_errno(e, "KVM_SET_CPUID2 of vCPU %u", v->index);
	return 0;
}

static bool same_cpuid(const struct kvm_cpuid2 *a, const struct kvm_cpuid2 *b) {
	return a->nent == b->nent && memcmp(a->entries, b->entries, a->nent * sizeof(a->entries[0])) == 0;
}

// A snapshot that was made on a host like this one shows the same; then this need not be done again.
int arch_vcpu_prepare(struct vcpu *v, struct error *e) {
	struct arch_vm *arch = v->vm->arch;
	arch->has_host_cpuid = true;
	if (arch->tsc_khz == 0 && v->vm->host->arch->has_tsc_khz)
		arch->tsc_khz = ioctl(v->fd, KVM_GET_TSC_KHZ, 0);
	return set_cpuid(v, v->vm->host->arch->cpuid, e);
}

// Intel SDM volume 3, section 4.5: identity mapping of the first 4 GiB with pages of 2 MiB.
static void write_page_tables(uint8_t *tables) {
	enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80, TABLES = 6 };
	uint64_t entries[512];
	memset(tables, 0, (size_t)TABLES * PAGE_BYTES);
	uint64_t top = (BOOT_PAGE_TABLES + PAGE_BYTES) | PRESENT | WRITABLE;
	memcpy(tables, &top, sizeof(top));
	for (uint64_t gib = 0; gib < 4; gib++) {
		uint64_t directory = (BOOT_PAGE_TABLES + (2 + gib) * PAGE_BYTES) | PRESENT | WRITABLE;
		memcpy(tables + PAGE_BYTES + gib * sizeof(directory), &directory, sizeof(directory));
		for (uint64_t i = 0; i < 512; i++)
			entries[i] = (gib << 30 | i << 21) | PRESENT | WRITABLE | LARGE;
		memcpy(tables + (2 + gib) * PAGE_BYTES, entries, sizeof(entries));
	}
}

static struct kvm_segment flat_segment(uint16_t selector, uint8_t type, bool code) {
	return (struct kvm_segment){
		.base = 0, .limit = 0xffffffff, .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .l = code, .db = !code};
}

// Long mode with paging, as the 64-bit boot protocol wants it.
static void set_boot_sregs(struct kvm_sregs *s) {
	enum { CR0_PE = 1, CR0_ET = 0x10, CR0_NE = 0x20 };
	const uint64_t cr0_paging = UINT64_C(1) << 31, cr4_pae = 0x20, efer_lme_lma = 0x500;
	s->cs = flat_segment(0x10, 0xb, true);
	s->ds = flat_segment(0x18, 0x3, false);
	s->es = s->fs = s->gs = s->ss = s->ds;
	s->tr = (struct kvm_segment){.limit = 0xffff, .selector = 0x20, .type = 0xb, .present = 1};
	s->gdt.base = BOOT_GDT;
	s->gdt.limit = 6 * 8 - 1;
	s->idt.limit = 0;
	s->cr0 = CR0_PE | CR0_ET | CR0_NE | cr0_paging;
	s->cr3 = BOOT_PAGE_TABLES;
	s->cr4 = cr4_pae;
	s->efer = efer_lme_lma;
}

static int set_first_vcpu(struct vm *vm, const struct kernel_info *k, struct error *e) {
	static const uint64_t gdt[6] = {0, 0, UINT64_C(0x00af9b000000ffff), UINT64_C(0x00cf93000000ffff), UINT64_C(0x00008b000000ffff), 0};
	struct vcpu *v = &vm->vcpus[0];
	struct kvm_sregs sregs;
	struct kvm_regs regs = {.rip = k->entry, .rsi = BOOT_PARAMS, .rsp = BOOT_STACK, .rflags = 2};
	uint8_t *low = memory_at(&vm->memory, 0, LOW_RAM_END);
	if (low == NULL)
		return error_set(e, -ENOMEM, "there is too little memory");
	memcpy(low + BOOT_GDT, gdt, sizeof(gdt));
	write_page_tables(low + BOOT_PAGE_TABLES);
	if (ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0)
		return error_errno(e, "KVM_GET_SREGS");
	set_boot_sregs(&sregs);
	if (ioctl(v->fd, KVM_SET_SREGS, &sregs) < 0)
		return error_errno(e, "KVM_SET_SREGS");
	return ioctl(v->fd, KVM_SET_REGS, &regs) < 0 ? error_errno(e, "KVM_SET_REGS") : 0;
}

// Linux takes a hardware-reduced machine for one with EFI, finds none, and reboots by a jump to the BIOS in real mode (arch/x86/kernel/reboot.c,
// BOOT_BIOS). What it finds there writes the reset register.
static int write_reset_code(struct vm *vm, struct error *e) {
	static const uint8_t code[] = {
		0xba,
		PORT_RESET & 0xff,
		PORT_RESET >> 8, // mov dx, PORT_RESET
		0xb0,
		RESET_VALUE, // mov al, RESET_VALUE
		0xee,        // out dx, al
		0xf4,
		0xeb,
		0xfd, // 1: hlt; jmp 1b
	};
	void *at = memory_at(&vm->memory, BIOS_ENTRY, sizeof(code));
	if (at == NULL)
		return error_set(e, -ENOMEM, "there is too little memory");
	memcpy(at, code, sizeof(code));
	return 0;
}

int arch_boot(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, struct error *e) {
	uint64_t rsdp;
	struct kernel_info k;
	int r = 0;
	for (unsigned i = 0; i < vm->vcpu_count && r == 0; i++) {
		r = set_cpuid(&vm->vcpus[i], vm->host->arch->cpuid, e);
		if (r == 0)
			r = msrs_set_boot(vm->vcpus[i].fd, e);
	}
	if (r == 0)
		r = write_reset_code(vm, e);
	if (r == 0)
		r = acpi_write(vm, &rsdp, e);
	if (r == 0)
		r = kernel_load(vm, kernel_fd, initrd_fd, cmdline, rsdp, &k, e);
	if (r == 0) {
		vm->arch->cpuid = cpuid_new();
		if (vm->arch->cpuid == NULL)
			return error_set(e, -ENOMEM, "out of memory");
		memcpy(vm->arch->cpuid, vm->host->arch->cpuid,
		       sizeof(struct kvm_cpuid2) + vm->host->arch->cpuid->nent * sizeof(struct kvm_cpuid_entry2));
		r = set_first_vcpu(vm, &k, e);
	}
	return r;
}

int arch_save(struct vm *vm, struct state_writer *w, struct error *e) {
	const struct kvm_cpuid2 *c = vm->arch->cpuid;
	struct writer p = state_open(w, STASIS_SECTION_CPUID, 0, 4 + c->nent * 28);
	cpuid_save(c, &p);
	state_close(w, &p);
	p = state_open(w, STASIS_SECTION_CLOCK, 0, 8);
	write_u64(&p, vm->arch->clock_ns);
	state_close(w, &p);
	p = state_open(w, STASIS_SECTION_IOAPIC, 0, 16 + IOAPIC_PINS * 8);
	ioapic_save(&vm->arch->ioapic, &p);
	int r = state_close(w, &p);
	if (r < 0)
		return error_set(e, r, "cannot put the state together");
	for (unsigned i = 0; i < vm->vcpu_count && r == 0; i++)
		r = vcpu_state_save(&vm->vcpus[i], w, e);
	return r;
}

static int set_clock(struct vm *vm, struct error *e) {
	struct kvm_clock_data clock = {.clock = vm->arch->clock_ns};
	return ioctl(vm->fd, KVM_SET_CLOCK, &clock) < 0 ? error_errno(e, "KVM_SET_CLOCK") : 0;
}

static int load_cpuid(struct vm *vm, const struct state_file *f, struct error *e) {
	struct reader p;
	int r = state_find(f, STASIS_SECTION_CPUID, 0, &p, e);
	if (r < 0)
		return r;
	vm->arch->cpuid = cpuid_new();
	if (vm->arch->cpuid == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	if (cpuid_load(vm->arch->cpuid, &p) < 0)
		return state_malformed(STASIS_SECTION_CPUID, 0, e);
	return cpuid_check(vm->arch->cpuid, vm->host->arch->cpuid, e);
}

static int load_platform(struct vm *vm, const struct state_file *f, struct error *e) {
	struct reader p;
	int r = state_find(f, STASIS_SECTION_IOAPIC, 0, &p, e);
	if (r < 0)
		return r;
	if (!ioapic_load(&vm->arch->ioapic, &p))
		return state_malformed(STASIS_SECTION_IOAPIC, 0, e);
	r = state_find(f, STASIS_SECTION_CLOCK, 0, &p, e);
	if (r < 0)
		return r;
	vm->arch->clock_ns = read_u64(&p);
	return p.bad || p.left != 0 ? state_malformed(STASIS_SECTION_CLOCK, 0, e) : 0;
}

static int load_vcpu(struct vcpu *v, const struct state_file *f, struct error *e) {
	struct reader p;
	struct vcpu_state s;
	int r = state_find(f, STASIS_SECTION_VCPU, v->index, &p, e);
	if (r < 0)
		return r;
	if (vcpu_state_parse(&p, &s) < 0)
		return state_malformed(STASIS_SECTION_VCPU, v->index, e);
	struct arch_vm *arch = v->vm->arch;
	if (!arch->has_host_cpuid || !same_cpuid(arch->cpuid, v->vm->host->arch->cpuid))
		r = set_cpuid(v, arch->cpuid, e);
	return r < 0 ? r : vcpu_state_load(v, &s, e);
}

int arch_load(struct vm *vm, const struct state_file *f, struct error *e) {
	int r = load_cpuid(vm, f, e);
	if (r == 0)
		r = load_platform(vm, f, e);
	for (unsigned i = 0; i < vm->vcpu_count && r == 0; i++)
		r = load_vcpu(&vm->vcpus[i], f, e);
	// After the TSCs: only then KVM knows whether they go together.
	return r < 0 ? r : set_clock(vm, e);
}

void arch_pause(struct vm *vm) {
	struct kvm_clock_data clock = {.clock = 0};
	if (ioctl(vm->fd, KVM_GET_CLOCK, &clock) == 0)
		vm->arch->clock_ns = clock.clock;
}

// The guest's clock goes on through a short pause. After a long one it goes on where it was: Linux before 6.13 loses its
// time when CLOCK_MONOTONIC jumps by more than some minutes.
void arch_resume(struct vm *vm, uint64_t paused_ns) {
	if (paused_ns > CLOCK_JUMP_MAX_NS)
		(void)set_clock(vm, NULL);
	// Tells the guest's watchdogs. It fails when the guest has no kvm-clock, which is fine.
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		(void)ioctl(vm->vcpus[i].fd, KVM_KVMCLOCK_CTRL, 0);
}

bool arch_handle_exit(struct vcpu *v) {
	switch (v->run->exit_reason) {
	case KVM_EXIT_IO:
		ports_access(v);
		return true;
	case KVM_EXIT_IOAPIC_EOI: // no line is level-triggered
	case KVM_EXIT_SET_TPR:
	case KVM_EXIT_IRQ_WINDOW_OPEN:
	case KVM_EXIT_X86_BUS_LOCK:
	case KVM_EXIT_NOTIFY:
		return true;
	default:
		return false;
	}
}

bool arch_mmio_read(struct vm *vm, uint64_t address, unsigned size, uint64_t *ret) {
	if (address < IOAPIC_BASE || address - IOAPIC_BASE >= IOAPIC_BYTES)
		return false;
	*ret = ioapic_read(&vm->arch->ioapic, address - IOAPIC_BASE);
	return true;
}

bool arch_mmio_write(struct vm *vm, uint64_t address, unsigned size, uint64_t value) {
	if (address < IOAPIC_BASE || address - IOAPIC_BASE >= IOAPIC_BYTES)
		return false;
	ioapic_write(&vm->arch->ioapic, address - IOAPIC_BASE, (uint32_t)value);
	return true;
}

void arch_describe(struct vcpu *v, char *to, size_t room) {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	if (ioctl(v->fd, KVM_GET_REGS, &regs) < 0 || ioctl(v->fd, KVM_GET_SREGS, &sregs) < 0) {
		snprintf(to, room, "registers unknown");
		return;
	}
	snprintf(to, room, "rip 0x%" PRIx64 " rsp 0x%" PRIx64 " cr0 0x%" PRIx64 " cr2 0x%" PRIx64 " cr3 0x%" PRIx64, (uint64_t)regs.rip,
		 (uint64_t)regs.rsp, (uint64_t)sregs.cr0, (uint64_t)sregs.cr2, (uint64_t)sregs.cr3);
}

void arch_interrupt(struct vm *vm, unsigned line) {
	ioapic_pulse(&vm->arch->ioapic, line);
}
