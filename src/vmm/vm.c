// The shell of a VM: KVM's VM with memory, interrupt controller and vCPUs, before anything is loaded into it. The part that depends on nothing,
// KVM's empty VM and the first vCPU's thread, is made when the process starts.
//
// The order matters. Registering memory waits for a grace period of KVM's (SRCU) once an interrupt controller exists, which takes
// milliseconds; before, it takes a tenth of one. So: VM, memory, interrupt controller, vCPUs.
#include "vmm/vm.h"

#include "base/log.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_PAGE (UINT64_C(2) << 20)

void vm_init(struct vm *vm, struct vm_host *host) {
	*vm = (struct vm){.host = host, .fd = -1, .exited_fd = -1, .state = VMM_STATE_EMPTY, .console = {.fd = -1}};
	pthread_mutex_init(&vm->device_lock, NULL);
	pthread_mutex_init(&vm->run_lock, NULL);
	pthread_mutex_init(&vm->exit_lock, NULL);
	pthread_cond_init(&vm->run_changed, NULL);
	pthread_cond_init(&vm->parked_changed, NULL);
}

void vm_lock(void *vm) {
	pthread_mutex_lock(&((struct vm *)vm)->device_lock);
}

void vm_unlock(void *vm) {
	pthread_mutex_unlock(&((struct vm *)vm)->device_lock);
}

// Address space aligned for huge pages. Nothing of it exists until the guest touches it.
static uint8_t *reserve(uint64_t size) {
	uint8_t *p = mmap(NULL, (size_t)(size + HUGE_PAGE), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return NULL;
	uint64_t skip = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
	if (skip > 0)
		munmap(p, (size_t)skip);
	munmap(p + skip + size, (size_t)(HUGE_PAGE - skip));
	return p + skip;
}

static int create_memory(struct vm *vm, uint64_t size, struct error *e) {
	arch_memory_layout(size, &vm->memory);
	for (unsigned i = 0; i < vm->memory.count; i++) {
		struct memory_region *r = &vm->memory.regions[i];
		r->host = reserve(r->size);
		if (r->host == NULL)
			return error_errno(e, "cannot reserve %llu MiB of guest memory", (unsigned long long)r->size >> 20);
		madvise(r->host, (size_t)r->size, MADV_DONTDUMP);
		struct kvm_userspace_memory_region k = {
			.slot = i, .guest_phys_addr = r->guest, .memory_size = r->size, .userspace_addr = (uintptr_t)r->host};
		if (ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &k) < 0)
			return error_errno(e, "KVM_SET_USER_MEMORY_REGION of %llu MiB", (unsigned long long)r->size >> 20);
	}
	return 0;
}

static int create_vcpu(struct vm *vm, unsigned index, struct error *e) {
	struct vcpu *v = &vm->vcpus[index];
	v->fd = ioctl(vm->fd, KVM_CREATE_VCPU, index);
	if (v->fd < 0)
		return error_errno(e, "KVM_CREATE_VCPU %u", index);
	void *run = mmap(NULL, vm->host->run_size, PROT_READ | PROT_WRITE, MAP_SHARED, v->fd, 0);
	if (run == MAP_FAILED)
		return error_errno(e, "cannot map struct kvm_run of vCPU %u", index);
	v->run = run;
	return 0;
}

static int check_size(uint32_t memory_mib, uint32_t vcpus, struct error *e) {
	uint64_t size = (uint64_t)memory_mib << 20;
	if (size < arch_layout.memory_min || size > arch_layout.memory_max)
		return error_set(e, -EINVAL, "a microVM cannot have %u MiB of memory: from %llu to %llu are possible", memory_mib,
				 (unsigned long long)arch_layout.memory_min >> 20, (unsigned long long)arch_layout.memory_max >> 20);
	if (vcpus == 0 || vcpus > VM_VCPUS_MAX)
		return error_set(e, -EINVAL, "a microVM cannot have %u vCPUs: from 1 to %u are possible", vcpus, VM_VCPUS_MAX);
	return 0;
}

int vm_create_empty(struct vm *vm, struct error *e) {
	for (unsigned i = 0; i < VM_VCPUS_MAX; i++)
		vm->vcpus[i] = (struct vcpu){.vm = vm, .index = i, .fd = -1, .parked = true};
	vm->fd = ioctl(vm->host->kvm_fd, KVM_CREATE_VM, 0);
	if (vm->fd < 0)
		return error_errno(e, "KVM_CREATE_VM");
	return vcpu_start(&vm->vcpus[0], e);
}

int vm_create_shell(struct vm *vm, uint32_t memory_mib, uint32_t vcpus, struct error *e) {
	int r = check_size(memory_mib, vcpus, e);
	if (r < 0)
		return r;
	if (vm->memory.size != 0)
		return error_set(e, -EALREADY, "this VMM has a VM already; a VMM serves one, once");
	r = create_memory(vm, (uint64_t)memory_mib << 20, e);
	if (r == 0)
		r = arch_vm_create(vm, e);
	for (unsigned i = 0; i < vcpus && r == 0; i++) {
		vm->vcpu_count = i + 1;
		r = create_vcpu(vm, i, e);
	}
	for (unsigned i = 1; i < vcpus && r == 0; i++)
		r = vcpu_start(&vm->vcpus[i], e);
	return r;
}

void vm_guest_ended(struct vm *vm, enum vmm_exit exit, const char *format, ...) {
	pthread_mutex_lock(&vm->exit_lock);
	if (vm->exit == VMM_EXIT_NONE) {
		va_list ap;
		va_start(ap, format);
		vsnprintf(vm->exit_text, sizeof(vm->exit_text), format, ap);
		va_end(ap);
		vm->exit = exit;
		uint64_t one = 1;
		if (write(vm->exited_fd, &one, sizeof(one)) < 0)
			log_error("vmm.exit", LOG_S("message", "cannot wake the main thread"));
	}
	pthread_mutex_unlock(&vm->exit_lock);
}
