// x86-64: what the files of this folder share. The core sees only vmm/arch.h.
#pragma once

#include "base/error.h"
#include "vmm/arch.h"
#include "vmm/arch/x86_64/ioapic.h"

#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>

#define CPUID_ENTRIES_MAX 256
#define MSRS_MAX 512

// Guest physical addresses.
#define LOW_MEMORY_MAX UINT64_C(0xc0000000)
#define HIGH_MEMORY UINT64_C(0x100000000)
#define MMIO_BASE UINT64_C(0xd0000000)
#define IOAPIC_BASE UINT64_C(0xfec00000)
#define LAPIC_BASE 0xfee00000u
#define BOOT_GDT 0x500u
#define BOOT_PARAMS 0x7000u
#define BOOT_PAGE_TABLES 0x8000u // 6 pages
#define BOOT_STACK 0x7000u       // downwards; the kernel sets its own at once
#define BOOT_CMDLINE 0x20000u
#define LOW_RAM_END 0x9f000u
#define GENERATION_PAGE 0x9f000u
#define ACPI_TABLES 0xe0000u
#define ACPI_TABLES_BYTES 0x1f000u
#define BIOS_ENTRY 0xffff0u
#define LOW_RESERVED_END 0x100000u
#define KERNEL_BASE 0x100000u

// Interrupt lines (IOAPIC pins).
#define SERIAL_LINE 4
#define GENERATION_LINE 5
#define DEVICE_LINE 6

// Ports.
#define PORT_SERIAL 0x3f8
#define PORT_KEYBOARD_CONTROL 0x64
#define PORT_SLEEP_CONTROL 0x604
#define PORT_SLEEP_STATUS 0x605
#define PORT_RESET 0x606
#define RESET_VALUE 1
#define SLEEP_TYPE_OFF 5

struct vm;
struct vcpu;

struct arch_host {
	struct kvm_cpuid2 *cpuid;  // what KVM supports, filtered: what a guest of ours may see
	struct kvm_msr_list *msrs; // what makes up a vCPU's state, in the order in which it is restored
	uint32_t xsave_bytes;      // of KVM_GET_XSAVE2, or of KVM_GET_XSAVE where that is not known
	bool has_xsave2, has_xcrs, has_debugregs, has_tsc_scaling, has_tsc_khz;
};

struct arch_vm {
	struct ioapic ioapic;
	uint64_t clock_ns;        // kvm-clock when the vCPUs stopped
	struct kvm_cpuid2 *cpuid; // what the guest was shown, before the topology
	int tsc_khz;              // of a fresh vCPU; 0: not asked yet
	bool has_host_cpuid;      // the vCPUs were prepared with the host's
};

// cpuid.c: works on a table of CPUID_ENTRIES_MAX entries.
struct kvm_cpuid2 *cpuid_new(void);
void cpuid_filter(struct kvm_cpuid2 *c, bool tsc_deadline);
void cpuid_set_topology(struct kvm_cpuid2 *c, uint32_t vcpu, uint32_t vcpus);
const struct kvm_cpuid_entry2 *cpuid_find(const struct kvm_cpuid2 *c, uint32_t function, uint32_t index);
// Whether a guest that was shown `saved` can run where `host` is what can be shown; -ENOTSUP names what is missing.
int cpuid_check(const struct kvm_cpuid2 *saved, const struct kvm_cpuid2 *host, struct error *e);
void cpuid_save(const struct kvm_cpuid2 *c, struct writer *w);
int cpuid_load(struct kvm_cpuid2 *c, struct reader *r);

// msrs.c
int msrs_list(int kvm_fd, struct kvm_msr_list **ret, struct error *e);
void msrs_save(int vcpu_fd, const struct kvm_msr_list *list, struct writer *w);
// Checks the section's part; *ret_entries points into it.
int msrs_parse(struct reader *r, const uint8_t **ret_entries, uint32_t *ret_count);
int msrs_load(int vcpu_fd, const uint8_t *entries, uint32_t count, struct error *e);
// What firmware would have set: memory types.
int msrs_set_boot(int vcpu_fd, struct error *e);

// vcpu_state.c
struct vcpu_state {
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_debugregs debugregs;
	struct kvm_xcrs xcrs;
	struct kvm_vcpu_events events;
	struct kvm_mp_state mp_state;
	struct kvm_lapic_state lapic;
	uint32_t tsc_khz;
	const uint8_t *xsave; // lies in the section
	uint32_t xsave_bytes;
	const uint8_t *msrs; // likewise
	uint32_t msr_count;
};
int vcpu_state_save(struct vcpu *v, struct state_writer *w, struct error *e);
int vcpu_state_parse(struct reader *r, struct vcpu_state *ret);
int vcpu_state_load(struct vcpu *v, const struct vcpu_state *s, struct error *e);

// kernel.c
struct kernel_info {
	uint64_t load_at;
	uint64_t entry;
	uint64_t initrd_at, initrd_bytes;
};
int kernel_load(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, uint64_t rsdp, struct kernel_info *ret, struct error *e);

// acpi.c: writes the tables to guest memory and returns the address of the RSDP.
int acpi_write(struct vm *vm, uint64_t *ret_rsdp, struct error *e);
// For tests: the DSDT of a VM with `devices` virtio devices. Returns its size, or -ENOSPC.
int acpi_make_dsdt(uint8_t *to, size_t room, unsigned devices);

// ports.c
void ports_access(struct vcpu *v);
