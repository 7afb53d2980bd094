// What the VMM's core asks of an architecture. One folder below arch/ implements this; nothing else in the VMM knows which one it is.
//
// Calls come in this order: arch_host_probe() once; arch_memory_layout(), [the core registers the memory], arch_vm_create(),
// [the core creates the vCPUs]; then either arch_boot() or arch_load(); then the vCPUs run. arch_save() needs them stopped.
#pragma once

#include "base/error.h"
#include "vmm/memory.h"
#include "vmm/state_file.h"

#include <stdbool.h>
#include <stdint.h>

struct vm;
struct vcpu;

// What this host's KVM offers, asked once when the VMM starts, so that nothing of it is on the way of a restore.
struct arch_host;

// Fixed places in every guest of this architecture.
struct arch_layout {
	uint32_t architecture;    // enum stasis_architecture
	uint64_t mmio_base;       // first virtio device's registers; one page per device
	unsigned device_line;     // first virtio device's interrupt line; one per device
	unsigned device_lines;    // how many there are
	unsigned serial_line;     //
	unsigned generation_line; // says that the generation ID changed
	uint64_t generation_page; // guest physical address of the generation ID
	uint64_t memory_min;      // bytes
	uint64_t memory_max;
};
extern const struct arch_layout arch_layout;

int arch_host_probe(int kvm_fd, struct arch_host **ret, struct error *e);

// Fills guest addresses and sizes of the regions for `size` bytes of RAM.
void arch_memory_layout(uint64_t size, struct memory *ret);

// Interrupt controller and what else belongs to a VM. The core has registered the memory.
int arch_vm_create(struct vm *vm, struct error *e);
void arch_vm_destroy(struct vm *vm);
// VMM_PREPARE: does in advance what a boot or a restore is likely to need.
int arch_vcpu_prepare(struct vcpu *vcpu, struct error *e);

// Loads kernel and initrd (a descriptor of an empty file: none), writes the tables that describe the VM, and sets the first vCPU at the
// kernel's entry.
int arch_boot(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, struct error *e);

int arch_save(struct vm *vm, struct state_writer *w, struct error *e);
// Refuses what this host cannot run before it changes anything of the VM.
int arch_load(struct vm *vm, const struct state_file *f, struct error *e);

// Called when the vCPUs are about to go on after a pause of that length.
void arch_resume(struct vm *vm, uint64_t paused_ns);
// Called when the vCPUs have stopped.
void arch_pause(struct vm *vm);

// An exit of KVM_RUN that the core does not know. Returns false when this architecture does not know it either.
bool arch_handle_exit(struct vcpu *vcpu);
// An MMIO access outside the virtio devices' pages. Returns false when nothing is there.
bool arch_mmio_read(struct vm *vm, uint64_t address, unsigned size, uint64_t *ret);
bool arch_mmio_write(struct vm *vm, uint64_t address, unsigned size, uint64_t value);
// Where the vCPU stands, for messages about guests that ended.
void arch_describe(struct vcpu *vcpu, char *to, size_t room);

// An edge on an interrupt line; any thread, with or without the device lock.
void arch_interrupt(struct vm *vm, unsigned line);
