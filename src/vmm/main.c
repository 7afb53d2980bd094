// stasis-vmm: the process that runs one microVM.
//
// It is started with the descriptors of control.h, asks KVM what it offers, closes itself in (seccomp), and then serves the control
// socket. It ends when it is told to quit or is killed, never because of what its guest does.
#include "base/log.h"
#include "vmm/control.h"
#include "vmm/control_server.h"
#include "vmm/kvm_new.h"
#include "vmm/seccomp.h"
#include "vmm/vm.h"
#include "vmm/vmm.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <malloc.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

static struct vm vm;
static struct vm_host host;
static struct control_server control;

#define TOUCHED_STACK 32768
#define TOUCHED_HEAP 65536

// Set by tests that run under a sanitizer, whose run-time calls what the filter forbids.
#define NO_SECCOMP "STASIS_VMM_WITHOUT_SECCOMP"

static int check_kvm(struct error *e) {
	int version = ioctl(VMM_FD_KVM, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION)
		return version < 0 ? error_errno(e, "descriptor %d is not /dev/kvm", VMM_FD_KVM)
				   : error_set(e, -ENOTSUP, "/dev/kvm has API version %d instead of %d", version, KVM_API_VERSION);
	int size = ioctl(VMM_FD_KVM, KVM_GET_VCPU_MMAP_SIZE, 0);
	if (size < (int)sizeof(struct kvm_run))
		return error_set(e, -ENOTSUP, "KVM_GET_VCPU_MMAP_SIZE says %d", size);
	if (ioctl(VMM_FD_KVM, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) <= 0)
		return error_set(e, -ENOTSUP, "this host's KVM is too old: it lacks KVM_CAP_IMMEDIATE_EXIT");
	host.run_size = (size_t)size;
	return 0;
}

// What a restore will touch for the first time, program text, stack and heap, it shall find there: page faults would be a good part of it.
static void touch_what_is_needed(void) {
	extern char __executable_start[], etext[];
	uintptr_t from = (uintptr_t)__executable_start / PAGE_BYTES * PAGE_BYTES;
#ifdef MADV_POPULATE_READ
	madvise((void *)from, (uintptr_t)etext - from, MADV_POPULATE_READ); // fails before Linux 5.14: then it is slower
#endif
	volatile uint8_t stack[TOUCHED_STACK];
	for (size_t i = 0; i < sizeof(stack); i += PAGE_BYTES)
		stack[i] = 0;
	mallopt(M_TRIM_THRESHOLD, 4 * TOUCHED_HEAP);
	mallopt(M_TOP_PAD, TOUCHED_HEAP);
	uint8_t *heap = malloc(TOUCHED_HEAP);
	if (heap != NULL)
		memset(heap, 0, TOUCHED_HEAP);
	__asm__ volatile("" : : "r"(heap) : "memory"); // or the compiler leaves all of it out
	free(heap);
}

static int start(struct error *e) {
	// First: the jail may lose its /proc later. These stay valid, for they belong to this process's memory as it is after exec.
	host.pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	host.statm_fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
	host.kvm_fd = VMM_FD_KVM;
	host.tap_fd = VMM_FD_TAP;
	host.vsock_fd = VMM_FD_VSOCK;
	host.can_pre_fault = ioctl(VMM_FD_KVM, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) > 0;
	signal(SIGPIPE, SIG_IGN);
	mallopt(M_ARENA_MAX, 1);
	prctl(PR_SET_DUMPABLE, 0); // guest memory has no business in a core file
	int r = check_kvm(e);
	if (r == 0)
		r = vcpus_install_signal(e);
	if (r == 0)
		r = arch_host_probe(VMM_FD_KVM, &host.arch, e);
	if (r == 0)
		r = loop_create(&host.loop, e);
	if (r < 0)
		return r;
	vm_init(&vm, &host);
	vm.exited_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (vm.exited_fd < 0)
		return error_errno(e, "eventfd");
	r = vm_create_empty(&vm, e);
	if (r < 0)
		return r;
	touch_what_is_needed();
	r = control_start(&control, &vm, host.loop, VMM_FD_CONTROL, e);
	if (r == 0 && getenv(NO_SECCOMP) == NULL)
		r = seccomp_enter(e);
	return r;
}

int main(void) {
	struct error e = {.message = ""};
	if (start(&e) < 0) {
		log_error("vmm.start", LOG_S("message", e.message));
		return 1;
	}
	while (!control.quit) {
		int r = loop_run_once(host.loop, -1, vm_lock, vm_unlock, &vm);
		if (r < 0) {
			log_error("vmm.loop", LOG_S("message", strerror(-r)));
			return 1;
		}
	}
	vm_lock(&vm);
	if (vmm_finish(&vm, &e) < 0)
		log_error("vmm.finish", LOG_S("message", e.message));
	// Without unwinding: the kernel takes down everything at once, faster.
	_exit(0);
}
