// The KVM probe; see probe.h. A forked child makes the VM, runs the guest of probe_guest.c and reports over a pipe; the parent waits for
// the report until the deadline, kills the child, and puts the outcome into words.
#include "machine/probe.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "machine/probe_guest.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define CPUID_ENTRIES 256

// What the child says. Sent twice: before the guest runs (so that a deadline can be explained), and at the end.
struct report {
	enum kvm_probe_state state;
	int code; // errno of the call that failed
	uint32_t exit_reason;
	uint32_t step;
	uint64_t create_ns, run_ns;
	char what[96];
};

static const struct {
	int capability;
	const char *name;
} needed[] = {
	{KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"},
	{KVM_CAP_IRQCHIP, "KVM_CAP_IRQCHIP"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
	{KVM_CAP_IRQFD, "KVM_CAP_IRQFD"},
	{KVM_CAP_IOEVENTFD, "KVM_CAP_IOEVENTFD"},
	{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
	{KVM_CAP_XCRS, "KVM_CAP_XCRS"},
	{KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
	{KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
};

const char *kvm_probe_state_name(enum kvm_probe_state state) {
	static const char *const names[] = {
		[KVM_USABLE] = "usable",   [KVM_ABSENT] = "absent",           [KVM_NO_PERMISSION] = "no-permission",
		[KVM_TOO_OLD] = "too-old", [KVM_PARAVIRTUAL] = "paravirtual", [KVM_TOO_SLOW] = "too-slow",
		[KVM_BROKEN] = "broken",
	};
	return (size_t)state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

static void fail(struct report *r, enum kvm_probe_state state, int code, const char *what) {
	r->state = state;
	r->code = code;
	snprintf(r->what, sizeof(r->what), "%s", what);
}

static void put64(uint8_t *memory, uint32_t at, uint64_t v) {
	memcpy(memory + at, &v, sizeof(v));
}

// Page tables (one 2 MiB page one to one), a GDT with flat 64-bit segments, and an IDT with the one gate for #BP. AMD APM volume 2, 4.8 and 5.3.
static void lay_out(uint8_t *memory) {
	put64(memory, PROBE_PML4, PROBE_PDPT | 3);
	put64(memory, PROBE_PDPT, PROBE_PD | 3);
	put64(memory, PROBE_PD, 0x83);
	put64(memory, PROBE_GDT + PROBE_CODE_SELECTOR, 0x00af9b000000ffffull);
	put64(memory, PROBE_GDT + PROBE_DATA_SELECTOR, 0x00cf93000000ffffull);
	uint64_t handler = PROBE_CODE + (uint64_t)(probe_guest_breakpoint - probe_guest_start);
	put64(memory, PROBE_IDT + 3 * 16,
	      (handler & 0xffff) | (uint64_t)PROBE_CODE_SELECTOR << 16 | 0x8e00ull << 32 | (handler >> 16) << 48);
	put64(memory, PROBE_IDT + 3 * 16 + 8, handler >> 32);
	memcpy(memory + PROBE_CODE, probe_guest_start, (size_t)(probe_guest_end - probe_guest_start));
}

static int set_registers(int vcpu) {
	struct kvm_sregs s;
	if (ioctl(vcpu, KVM_GET_SREGS, &s) < 0)
		return -errno;
	struct kvm_segment code = {.limit = 0xffffffff, .selector = PROBE_CODE_SELECTOR, .type = 11, .present = 1, .l = 1, .s = 1, .g = 1};
	struct kvm_segment data = {.limit = 0xffffffff, .selector = PROBE_DATA_SELECTOR, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
	s.cs = code;
	s.ds = s.es = s.fs = s.gs = s.ss = data;
	s.gdt = (struct kvm_dtable){.base = PROBE_GDT, .limit = 0x17};
	s.idt = (struct kvm_dtable){.base = PROBE_IDT, .limit = 0xfff};
	s.cr3 = PROBE_PML4;
	s.cr0 = 0x80000013 | 0x20; // PG, NE, ET, MP, PE
	s.cr4 = 0x40620;           // OSXSAVE, OSXMMEXCPT, OSFXSR, PAE
	s.efer = 0x500;            // LMA, LME
	if (ioctl(vcpu, KVM_SET_SREGS, &s) < 0)
		return -errno;
	struct kvm_regs r = {.rip = PROBE_CODE, .rsp = PROBE_STACK, .rflags = 2};
	return ioctl(vcpu, KVM_SET_REGS, &r) < 0 ? -errno : 0;
}

static int set_cpuid(int kvm, int vcpu) {
	cleanup_free struct kvm_cpuid2 *c = calloc(1, sizeof(*c) + CPUID_ENTRIES * sizeof(c->entries[0]));
	if (c == NULL)
		return -ENOMEM;
	c->nent = CPUID_ENTRIES;
	if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, c) < 0)
		return -errno;
	return ioctl(vcpu, KVM_SET_CPUID2, c) < 0 ? -errno : 0;
}

static void run_guest(int vcpu, struct kvm_run *run, const uint8_t *memory, struct report *r) {
	uint64_t start = monotonic_ns();
	int result;
	do
		result = ioctl(vcpu, KVM_RUN, 0);
	while (result < 0 && errno == EINTR);
	r->run_ns = monotonic_ns() - start;
	memcpy(&r->step, memory + PROBE_DATA, sizeof(r->step));
	r->exit_reason = run->exit_reason;
	if (result < 0)
		fail(r, KVM_PARAVIRTUAL, errno, "KVM_RUN");
	else if (run->exit_reason != KVM_EXIT_IO || run->io.port != PROBE_PORT || r->step != PROBE_STEP_DONE)
		fail(r, KVM_PARAVIRTUAL, 0, "guest");
	else
		r->state = r->run_ns > KVM_PROBE_SLOW_NS ? KVM_TOO_SLOW : KVM_USABLE;
}

static void probe_in_child(const char *path, int to, struct report *r) {
	uint64_t start = monotonic_ns();
	int kvm = open(path, O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		enum kvm_probe_state s = errno == ENOENT || errno == ENODEV || errno == ENXIO ? KVM_ABSENT : KVM_NO_PERMISSION;
		return fail(r, errno == EACCES || errno == EPERM || s == KVM_ABSENT ? s : KVM_BROKEN, errno, "open");
	}
	int version = ioctl(kvm, KVM_GET_API_VERSION, 0);
	if (version < 0)
		return fail(r, KVM_BROKEN, errno, "KVM_GET_API_VERSION");
	if (version != KVM_API_VERSION)
		return fail(r, KVM_TOO_OLD, 0, "API version 12");
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].capability) <= 0)
			return fail(r, KVM_TOO_OLD, 0, needed[i].name);
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (size < (int)sizeof(struct kvm_run) || vm < 0)
		return fail(r, KVM_BROKEN, errno, "KVM_CREATE_VM");
	uint8_t *memory = mmap(NULL, PROBE_MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		return fail(r, KVM_BROKEN, errno, "mmap");
	lay_out(memory);
	struct kvm_userspace_memory_region region = {.memory_size = PROBE_MEMORY, .userspace_addr = (uintptr_t)memory};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0)
		return fail(r, KVM_BROKEN, errno, "KVM_SET_USER_MEMORY_REGION");
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return fail(r, KVM_BROKEN, errno, "KVM_CREATE_VCPU");
	struct kvm_run *run = mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		return fail(r, KVM_BROKEN, errno, "mmap of the virtual CPU");
	int code = set_cpuid(kvm, vcpu);
	if (code < 0)
		return fail(r, KVM_BROKEN, -code, "KVM_SET_CPUID2");
	code = set_registers(vcpu);
	if (code < 0)
		return fail(r, KVM_BROKEN, -code, "KVM_SET_SREGS");
	r->create_ns = monotonic_ns() - start;
	fail(r, KVM_TOO_SLOW, 0, "deadline");
	write_full(to, r, sizeof(*r));
	r->what[0] = '\0';
	run_guest(vcpu, run, memory, r);
}

// kvm_pvm shows itself as a module, loaded or built in.
static bool has_kvm_pvm(void) {
	struct stat st;
	return stat("/sys/module/kvm_pvm", &st) == 0;
}

static const char *step_name(uint32_t step) {
	static const char *const doing[] = {
		"its first instruction", "cmpxchg16b", "int3 and iretq", "xsave and xrstor", "a loop", "a loop", "its end"};
	return step < sizeof(doing) / sizeof(doing[0]) ? doing[step] : "nothing known";
}

static void explain(const char *path, const struct report *r, struct kvm_probe_result *ret) {
	static const char machine[] =
		"nothing need be done: Stasis runs in a machine of its own (slower). With hardware virtualisation passed "
		"through to this host it runs natively";
	ret->state = r->state;
	ret->create_ns = r->create_ns;
	ret->run_ns = r->run_ns;
	ret->remedy[0] = '\0';
	switch (r->state) {
	case KVM_USABLE:
		snprintf(ret->reason, sizeof(ret->reason), "%s works: a test guest ran in %.2f ms", path, (double)r->run_ns / 1e6);
		return;
	case KVM_ABSENT:
		snprintf(ret->reason, sizeof(ret->reason),
			 "there is no usable %s (%s): no hardware virtualisation, or its kernel module is not loaded", path,
			 strerror(r->code));
		snprintf(ret->remedy, sizeof(ret->remedy),
			 "on hardware: turn on SVM or VT-x in the firmware and load kvm-amd or kvm-intel; otherwise %s", machine);
		return;
	case KVM_NO_PERMISSION:
		snprintf(ret->reason, sizeof(ret->reason), "%s exists but may not be opened by user %u (%s)", path, (unsigned)geteuid(),
			 strerror(r->code));
		snprintf(ret->remedy, sizeof(ret->remedy),
			 "add yourself to the group that owns it (`ls -l %s`; on Debian: `adduser $USER kvm`), or run as root", path);
		return;
	case KVM_TOO_OLD:
		snprintf(ret->reason, sizeof(ret->reason), "KVM of this kernel is too old: %s is missing", r->what);
		snprintf(ret->remedy, sizeof(ret->remedy),
			 "use Linux 6.1 or newer; until then Stasis runs in a machine of its own (slower)");
		return;
	case KVM_PARAVIRTUAL:
		snprintf(ret->reason, sizeof(ret->reason),
			 "%s runs paravirtual guests only%s: an ordinary 64-bit test guest failed at %s (%s %s)", path,
			 has_kvm_pvm() ? " (kvm_pvm)" : "", step_name(r->step), r->code != 0 ? "KVM_RUN:" : "exit reason",
			 r->code != 0                                ? strerror(r->code)
			 : r->exit_reason == KVM_EXIT_INTERNAL_ERROR ? "internal error: cannot emulate"
			 : r->exit_reason == KVM_EXIT_SHUTDOWN       ? "shutdown: triple fault"
			 : r->exit_reason == KVM_EXIT_IO             ? "wrong result"
								     : "unexpected");
		snprintf(ret->remedy, sizeof(ret->remedy), "%s", machine);
		return;
	case KVM_TOO_SLOW:
		if (r->run_ns == 0)
			snprintf(ret->reason, sizeof(ret->reason),
				 "%s is too slow%s: a test guest that needs less than 1 ms on hardware did not end in %d ms", path,
				 has_kvm_pvm() ? " (kvm_pvm interprets its instructions)" : "", KVM_PROBE_DEADLINE_MS);
		else
			snprintf(ret->reason, sizeof(ret->reason),
				 "%s is too slow%s: a test guest that needs less than 1 ms on hardware took %.0f ms", path,
				 has_kvm_pvm() ? " (kvm_pvm interprets its instructions)" : "", (double)r->run_ns / 1e6);
		snprintf(ret->remedy, sizeof(ret->remedy), "%s", machine);
		return;
	case KVM_BROKEN:
		snprintf(ret->reason, sizeof(ret->reason), "%s does not work: %s: %s", path, r->what, strerror(r->code));
		snprintf(ret->remedy, sizeof(ret->remedy),
			 "see `dmesg | grep -i kvm`; until then Stasis runs in a machine of its own (slower)");
		return;
	}
}

// Takes reports until the last one, the end of the pipe, or the deadline. Returns whether *r was filled.
static bool collect(int from, struct report *r) {
	uint64_t end = monotonic_ms() + KVM_PROBE_DEADLINE_MS;
	bool any = false;
	for (;;) {
		uint64_t now = monotonic_ms();
		struct pollfd p = {.fd = from, .events = POLLIN};
		if (now >= end || poll(&p, 1, (int)(end - now)) <= 0)
			return any;
		struct report got;
		if (read_full(from, &got, sizeof(got)) < 0)
			return any;
		*r = got;
		any = true;
	}
}

int kvm_probe_device(const char *path, struct kvm_probe_result *ret) {
	int fds[2];
	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	cleanup_close int from = fds[0];
	cleanup_close int to = fds[1];
	pid_t parent = getpid();
	pid_t child = fork();
	if (child < 0)
		return -errno;
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		struct report r = {.state = KVM_BROKEN};
		if (getppid() == parent)
			probe_in_child(path, to, &r);
		_exit(write_full(to, &r, sizeof(r)) < 0);
	}
	close(take_fd(&to));
	struct report r = {.state = KVM_BROKEN, .code = ETIMEDOUT};
	snprintf(r.what, sizeof(r.what), "making a virtual machine");
	collect(from, &r);
	kill(child, SIGKILL);
	while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
		;
	r.what[sizeof(r.what) - 1] = '\0';
	memset(ret, 0, sizeof(*ret));
	explain(path, &r, ret);
	return 0;
}

int kvm_probe(struct kvm_probe_result *ret) {
	return kvm_probe_device("/dev/kvm", ret);
}
