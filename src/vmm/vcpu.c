// A vCPU's thread: runs the guest, serves its exits, and parks when told to.
//
// Stopping: the main thread sets `immediate_exit` in struct kvm_run and sends a signal. Either interrupts KVM_RUN or keeps it from
// starting; before it returns EINTR, KVM completes the access that the exit before was about (Documentation/virt/kvm/api.rst, KVM_RUN), so a
// thread parks only after an EINTR and its state is whole then.
#include "vmm/vm.h"

#include "base/clock.h"

#include <errno.h>
#include <limits.h>
#include <linux/kvm.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>

#define KICK_SIGNAL SIGUSR1

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define STACK_BYTES (1u << 20)
#else
#define STACK_BYTES (64u << 10)
#endif

static void kicked(int signal) {
	(void)signal;
}

int vcpus_install_signal(struct error *e) {
	struct sigaction a = {.sa_handler = kicked}; // without SA_RESTART: KVM_RUN has to return
	return sigaction(KICK_SIGNAL, &a, NULL) < 0 ? error_errno(e, "sigaction") : 0;
}

static void guest_error(struct vcpu *v, enum vmm_exit exit, const char *what) {
	char where[200];
	arch_describe(v, where, sizeof(where));
	vm_guest_ended(v->vm, exit, "%s (vCPU %u, %s)", what, v->index, where);
}

static void internal_error(struct vcpu *v) {
	char text[160];
	const struct kvm_run *run = v->run;
	if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
		snprintf(text, sizeof(text), "KVM cannot emulate an instruction of the guest");
	else
		snprintf(text, sizeof(text), "KVM failed with internal error %u", run->internal.suberror);
	guest_error(v, VMM_EXIT_INTERNAL, text);
}

static void system_event(struct vcpu *v) {
	switch (v->run->system_event.type) {
	case KVM_SYSTEM_EVENT_SHUTDOWN:
		vm_guest_ended(v->vm, VMM_EXIT_POWEROFF, "the guest powered itself off");
		return;
	case KVM_SYSTEM_EVENT_RESET:
		vm_guest_ended(v->vm, VMM_EXIT_RESET, "the guest rebooted");
		return;
	default:
		guest_error(v, VMM_EXIT_GUEST_ERROR, "the guest crashed");
	}
}

// Returns false when the guest has ended.
static bool handle_exit(struct vcpu *v) {
	struct kvm_run *run = v->run;
	char text[160];
	switch (run->exit_reason) {
	case KVM_EXIT_MMIO:
		mmio_access(v->vm, run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
		return true;
	case KVM_EXIT_INTR:
		return true;
	case KVM_EXIT_SHUTDOWN:
		guest_error(v, VMM_EXIT_TRIPLE_FAULT, "triple fault");
		return false;
	case KVM_EXIT_SYSTEM_EVENT:
		system_event(v);
		return false;
	case KVM_EXIT_INTERNAL_ERROR:
		internal_error(v);
		return false;
	case KVM_EXIT_FAIL_ENTRY:
		snprintf(text, sizeof(text), "the CPU refused to enter the guest: reason 0x%llx",
			 (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
		guest_error(v, VMM_EXIT_INTERNAL, text);
		return false;
	default:
		if (arch_handle_exit(v))
			return atomic_load_explicit(&v->vm->exit, memory_order_relaxed) == VMM_EXIT_NONE;
		snprintf(text, sizeof(text), "KVM returned with exit reason %u, which this VMM does not know", run->exit_reason);
		guest_error(v, VMM_EXIT_INTERNAL, text);
		return false;
	}
}

// Runs the guest until it has ended or the vCPU shall park.
static void run_guest(struct vcpu *v) {
	for (;;) {
		int r = ioctl(v->fd, KVM_RUN, 0);
		if (r < 0 && errno == EINTR) {
			if (!atomic_load_explicit(&v->vm->run_wanted, memory_order_acquire))
				return;
			continue;
		}
		if (r < 0 && errno == EAGAIN) // a vCPU that waits to be started by another
			continue;
		if (r < 0) {
			char text[160];
			snprintf(text, sizeof(text), "KVM_RUN: %s", strerror(errno));
			guest_error(v, VMM_EXIT_INTERNAL, text);
			return;
		}
		atomic_fetch_add_explicit(&v->exits, 1, memory_order_relaxed);
		if (!handle_exit(v))
			return;
	}
}

static void *vcpu_thread(void *arg) {
	struct vcpu *v = arg;
	struct vm *vm = v->vm;
	pthread_mutex_lock(&vm->run_lock);
	for (;;) {
		while (v->parked)
			pthread_cond_wait(&vm->run_changed, &vm->run_lock);
		pthread_mutex_unlock(&vm->run_lock);
		run_guest(v);
		pthread_mutex_lock(&vm->run_lock);
		v->parked = true;
		pthread_cond_signal(&vm->parked_changed);
	}
	return NULL;
}

int vcpu_start(struct vcpu *v, struct error *e) {
	pthread_attr_t attr;
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, STACK_BYTES);
	int r = pthread_create(&v->thread, &attr, vcpu_thread, v);
	pthread_attr_destroy(&attr);
	if (r != 0)
		return error_set(e, -r, "cannot start the thread of vCPU %u: %s", v->index, strerror(r));
	v->started = true;
	return 0;
}

void vcpus_run(struct vm *vm) {
	pthread_mutex_lock(&vm->run_lock);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		vm->vcpus[i].run->immediate_exit = 0;
		vm->vcpus[i].parked = false;
	}
	atomic_store_explicit(&vm->run_wanted, true, memory_order_release);
	pthread_mutex_unlock(&vm->run_lock);
	pthread_cond_broadcast(&vm->run_changed); // after the lock: who wakes needs it
}

void vcpus_stop(struct vm *vm) {
	pthread_mutex_lock(&vm->run_lock);
	atomic_store_explicit(&vm->run_wanted, false, memory_order_release);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		struct vcpu *v = &vm->vcpus[i];
		if (v->parked || !v->started)
			continue;
		__atomic_store_n(&v->run->immediate_exit, 1, __ATOMIC_RELEASE);
		pthread_kill(v->thread, KICK_SIGNAL);
	}
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		while (!vm->vcpus[i].parked)
			pthread_cond_wait(&vm->parked_changed, &vm->run_lock);
	pthread_mutex_unlock(&vm->run_lock);
}

uint64_t vcpus_cpu_ns(struct vm *vm) {
	uint64_t sum = 0;
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		clockid_t clock;
		if (vm->vcpus[i].started && pthread_getcpuclockid(vm->vcpus[i].thread, &clock) == 0)
			sum += clock_ns(clock);
	}
	return sum;
}
