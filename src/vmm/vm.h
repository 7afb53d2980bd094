// One virtual machine, as the parts of the VMM's core see it. The public face of this folder is vmm.h.
//
// Threads. The main thread runs the event loop, the control socket and everything that changes the VM as a whole; each vCPU has a
// thread. `device_lock` is held by whoever touches devices: a vCPU thread during an access, the main thread during its handlers.
// `run_lock` guards only whether the vCPUs should run (`run_wanted`, `parked`); nothing else is taken while it is held.
#pragma once

#include "base/error.h"
#include "vmm/arch.h"
#include "vmm/console.h"
#include "vmm/control.h"
#include "vmm/layer.h"
#include "vmm/loop.h"
#include "vmm/memory.h"
#include "vmm/serial.h"
#include "vmm/virtio/virtio.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define VM_VCPUS_MAX 32
#define VM_DEVICES_MAX (VMM_BLOCKS_MAX + 4) // and net, vsock, rng, balloon

struct vm;
struct kvm_run;
struct arch_vm;

struct vcpu {
	struct vm *vm;
	unsigned index;
	int fd;
	struct kvm_run *run;
	pthread_t thread;
	bool started;
	bool parked; // under run_lock: the thread is out of KVM_RUN with no access left half-done
	_Atomic uint64_t exits;
};

enum vm_device_kind { VM_DEVICE_BLOCK = 1, VM_DEVICE_NET, VM_DEVICE_VSOCK, VM_DEVICE_RNG, VM_DEVICE_BALLOON };

struct vm_device {
	struct virtio_device *virtio;
	uint32_t kind; // enum vm_device_kind
	uint32_t flags;
	uint64_t size; // of a block device
	char serial[VMM_SERIAL_MAX];
};

// Descriptors and facts that the process started with.
struct vm_host {
	int kvm_fd;
	int tap_fd;
	int vsock_fd;
	int pagemap_fd;     // -1: there was no /proc
	int statm_fd;       // likewise
	bool can_pre_fault; // KVM_CAP_PRE_FAULT_MEMORY
	size_t run_size;    // of struct kvm_run's mapping
	struct arch_host *arch;
	struct loop *loop;
};

struct vm {
	struct vm_host *host;
	int fd;
	struct memory memory;
	struct layers layers;
	unsigned vcpu_count;
	struct vcpu vcpus[VM_VCPUS_MAX];
	struct arch_vm *arch;

	pthread_mutex_t device_lock;
	struct vm_device devices[VM_DEVICES_MAX];
	unsigned device_count;
	struct serial serial;
	struct console console;

	pthread_mutex_t run_lock;
	pthread_cond_t run_changed, parked_changed;
	_Atomic bool run_wanted;
	bool spoiled;        // a boot or restore has failed half-way
	bool quiesced;       // devices are quiet since a snapshot
	bool recording;      // the working set
	bool generation_due; // the guest has not been told yet that its generation ID changed
	uint64_t paused_at;  // monotonic_ns; 0: never

	enum vmm_state state;
	int exited_fd; // eventfd: a vCPU thread has set `exit`
	pthread_mutex_t exit_lock;
	_Atomic uint32_t exit; // enum vmm_exit; the first reason counts
	char exit_text[VMM_REPLY_TEXT_MAX];
};

// vm.c: the shell of a VM
void vm_init(struct vm *vm, struct vm_host *host);
// KVM's VM, still without anything, and the first vCPU's thread.
int vm_create_empty(struct vm *vm, struct error *e);
// Gives it memory, interrupt controller and vCPUs, whose threads are parked. Sizes are checked. A half-made shell is unusable: the process
// has to end.
int vm_create_shell(struct vm *vm, uint32_t memory_mib, uint32_t vcpus, struct error *e);
void vm_lock(void *vm);
void vm_unlock(void *vm);
// Records why the guest ended (the first call counts) and wakes the main thread; any thread.
void vm_guest_ended(struct vm *vm, enum vmm_exit exit, const char *format, ...) __attribute__((format(printf, 3, 4)));

// vcpu.c
int vcpu_start(struct vcpu *vcpu, struct error *e);
void vcpus_run(struct vm *vm);
// Returns when all vCPUs are parked. The caller must not hold the device lock.
void vcpus_stop(struct vm *vm);
// CPU time that the vCPU threads have used.
uint64_t vcpus_cpu_ns(struct vm *vm);
int vcpus_install_signal(struct error *e);

// prefetch.c: brings in the pages of the working set in `fd`, before the vCPUs run.
int vm_prefetch(struct vm *vm, int fd, struct error *e);

// devices.c
struct vm_device_fds {
	const int *fds; // in the order of control.h; become the devices' once devices_create() has been called
	size_t count;
};
int devices_create(struct vm *vm, const struct vmm_devices *config, const struct vm_device_fds *fds, struct error *e);
void devices_resume(struct vm *vm);
int devices_quiesce(struct vm *vm, struct error *e);
int devices_flush(struct vm *vm, struct error *e);
int devices_save(struct vm *vm, struct state_writer *w, struct error *e);
int devices_load(struct vm *vm, const struct state_file *f, bool clone, struct error *e);
// MMIO of a vCPU: up to 8 bytes, little-endian.
void mmio_access(struct vm *vm, uint64_t address, uint8_t *data, unsigned size, bool write);
