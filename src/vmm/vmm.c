// What can be done with the VM; see vmm.h.
#include "vmm/vmm.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "vmm/vm.h"
#include "vmm/working_set.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define GENERATION_BYTES 16

static int check_fresh(const struct vm *vm, struct error *e) {
	if (vm->spoiled)
		return error_set(e, -EALREADY, "an earlier request has failed half-way; end this VMM and start another");
	if (vm->state == VMM_STATE_EMPTY || vm->state == VMM_STATE_PREPARED)
		return 0;
	return error_set(e, -EALREADY, "this VMM has a microVM already; a VMM serves one, once");
}

int vmm_prepare(struct vm *vm, uint32_t memory_mib, uint32_t vcpus, struct error *e) {
	if (vm->state != VMM_STATE_EMPTY || vm->spoiled)
		return error_set(e, -EALREADY, "this VMM is prepared already");
	int r = vm_create_shell(vm, memory_mib, vcpus, e);
	for (unsigned i = 0; i < vm->vcpu_count && r == 0; i++)
		r = arch_vcpu_prepare(&vm->vcpus[i], e);
	if (r == 0)
		vm->state = VMM_STATE_PREPARED;
	else
		vm->spoiled = vm->memory.size != 0;
	return r;
}

// The shell that was prepared, if it fits, or a new one.
static int need_shell(struct vm *vm, uint32_t memory_mib, uint32_t vcpus, struct error *e) {
	if (vm->state == VMM_STATE_EMPTY)
		return vm_create_shell(vm, memory_mib, vcpus, e);
	if (vm->memory.size == (uint64_t)memory_mib << 20 && vm->vcpu_count == vcpus)
		return 0;
	return error_set(e, -EINVAL, "this VMM is prepared for %" PRIu64 " MiB and %u vCPUs, the microVM has %u MiB and %u",
			 vm->memory.size >> 20, vm->vcpu_count, memory_mib, vcpus);
}

static void start(struct vm *vm) {
	vm->spoiled = false;
	vm->state = VMM_STATE_RUNNING;
	vcpus_run(vm);
}

int vmm_boot(struct vm *vm, const struct vmm_boot *request, int *fds, size_t fd_count, struct error *e) {
	int r = check_fresh(vm, e);
	if (r == 0 && fd_count < 3)
		r = error_set(e, -EINVAL, "to boot needs kernel, initrd and console log; %zu descriptors came", fd_count);
	if (r == 0 && memchr(request->cmdline, '\0', sizeof(request->cmdline)) == NULL)
		r = error_set(e, -EINVAL, "the kernel's command line has no end");
	if (r == 0)
		r = need_shell(vm, request->memory_mib, request->vcpus, e);
	if (r < 0) {
		close_all(fds, fd_count);
		return r;
	}
	vm->spoiled = true;
	cleanup_close int kernel = fds[0], initrd = fds[1];
	console_open(&vm->console, fds[2], request->devices.console_limit);
	r = devices_create(vm, &request->devices, &(struct vm_device_fds){.fds = fds + 3, .count = fd_count - 3}, e);
	if (r == 0)
		r = arch_boot(vm, kernel, initrd, request->cmdline, e);
	if (r == 0)
		start(vm);
	return r;
}

// A new generation ID, and the interrupt that tells the guest (the guest's kernel reseeds its random generator).
static int new_generation(struct vm *vm, struct error *e) {
	uint8_t id[GENERATION_BYTES];
	void *to = memory_at(&vm->memory, arch_layout.generation_page, sizeof(id));
	if (getrandom(id, sizeof(id), 0) != (ssize_t)sizeof(id))
		return error_errno(e, "cannot make a generation ID");
	memcpy(to, id, sizeof(id));
	return 0;
}

struct saved_memory {
	uint64_t bytes;
	uint32_t vcpus, layers;
	uint8_t ids[LAYERS_MAX][STASIS_ID_BYTES];
};

static int load_memory_section(const struct state_file *f, struct saved_memory *ret, struct error *e) {
	struct reader p;
	int r = state_find(f, STASIS_SECTION_MEMORY, 0, &p, e);
	if (r < 0)
		return r;
	ret->bytes = read_u64(&p);
	ret->vcpus = read_u32(&p);
	ret->layers = read_u32(&p);
	if (p.bad || ret->layers == 0 || ret->layers > LAYERS_MAX || ret->bytes % (1 << 20) != 0 || ret->bytes >> 20 > UINT32_MAX)
		return state_malformed(STASIS_SECTION_MEMORY, 0, e);
	read_copy(&p, ret->ids, ret->layers * sizeof(ret->ids[0]));
	return p.bad || p.left != 0 ? state_malformed(STASIS_SECTION_MEMORY, 0, e) : 0;
}

struct stages {
	uint64_t from, parsed, shell, memory, devices, state, prefetched, done;
};

static void describe_timing(const struct stages *t, char *to, size_t room) {
	snprintf(to, room,
		 "read %" PRIu64 " us, vm %" PRIu64 " us, memory %" PRIu64 " us, devices %" PRIu64 " us, state %" PRIu64
		 " us, prefetch %" PRIu64 " us, start %" PRIu64 " us",
		 (t->parsed - t->from) / 1000, (t->shell - t->parsed) / 1000, (t->memory - t->shell) / 1000,
		 (t->devices - t->memory) / 1000, (t->state - t->devices) / 1000, (t->prefetched - t->state) / 1000,
		 (t->done - t->prefetched) / 1000);
}

struct restore_fds {
	const int *layers, *disks;
	size_t disk_count;
	int console, working_set; // -1: none
};

static int restore_parts(struct vm *vm, const struct vmm_restore *request, const struct state_file *f, const struct restore_fds *fds,
			 struct stages *t, struct error *e) {
	struct saved_memory saved = {.bytes = 0};
	int r = load_memory_section(f, &saved, e);
	if (r == 0 && saved.layers != request->memory_layers)
		r = error_set(e, -EINVAL, "the snapshot has %u memory layers, the request %u", saved.layers, request->memory_layers);
	if (r == 0)
		r = need_shell(vm, (uint32_t)(saved.bytes >> 20), saved.vcpus, e);
	t->shell = monotonic_ns();
	console_open(&vm->console, fds->console, request->devices.console_limit);
	if (r < 0) {
		for (size_t i = 0; i < fds->disk_count; i++)
			close(fds->disks[i]);
		return r;
	}
	r = memory_layers_restore(&vm->layers, &vm->memory, fds->layers, saved.layers, saved.ids, e);
	vm->recording = (request->flags & VMM_RESTORE_RECORD) != 0;
	if (r == 0 && vm->recording)
		r = working_set_record(&vm->layers, &vm->memory, e);
	t->memory = monotonic_ns();
	int made = devices_create(vm, &request->devices, &(struct vm_device_fds){.fds = fds->disks, .count = fds->disk_count},
				  r < 0 ? NULL : e);
	if (r == 0)
		r = made;
	if (r == 0)
		r = devices_load(vm, f, (request->flags & VMM_RESTORE_CLONE) != 0, e);
	t->devices = monotonic_ns();
	if (r == 0)
		r = arch_load(vm, f, e);
	if (r == 0)
		r = new_generation(vm, e);
	t->state = monotonic_ns();
	if (r == 0 && fds->working_set >= 0)
		r = vm_prefetch(vm, fds->working_set, e);
	t->prefetched = monotonic_ns();
	return r;
}

int vmm_restore(struct vm *vm, const struct vmm_restore *request, int *fds, size_t fd_count, char *timing, size_t timing_room,
		struct error *e) {
	struct stages t = {.from = monotonic_ns()};
	int r = check_fresh(vm, e);
	if (r == 0 && (request->memory_layers == 0 || request->memory_layers > LAYERS_MAX))
		r = error_set(e, -EINVAL, "a microVM has 1 to %u memory layers, not %u", LAYERS_MAX, request->memory_layers);
	const uint32_t prefetch = (request->flags & VMM_RESTORE_PREFETCH) != 0;
	if (r == 0 && fd_count < request->memory_layers + prefetch + 2)
		r = error_set(e, -EINVAL, "to restore needs state, %u memory layers,%s and console log; %zu descriptors came",
			      request->memory_layers, prefetch ? " working set" : "", fd_count);
	if (r == 0 &&
	    (request->flags & ~(uint32_t)(VMM_RESTORE_CLONE | VMM_RESTORE_PAUSED | VMM_RESTORE_RECORD | VMM_RESTORE_PREFETCH)) != 0)
		r = error_set(e, -EINVAL, "the request has unknown flags 0x%x", request->flags);
	__attribute__((cleanup(state_file_free))) struct state_file f = {.owned = NULL};
	if (r == 0)
		r = state_read(fds[0], arch_layout.architecture, &f, e);
	t.parsed = monotonic_ns();
	if (r < 0) {
		close_all(fds, fd_count);
		return r;
	}
	uint32_t memory = request->memory_layers + prefetch; // descriptors
	struct restore_fds parts = {.layers = fds + 1,
				    .working_set = prefetch ? fds[memory] : -1,
				    .console = fds[memory + 1],
				    .disks = fds + memory + 2,
				    .disk_count = fd_count - memory - 2};
	vm->spoiled = true;
	r = restore_parts(vm, request, &f, &parts, &t, e);
	close_all(fds, memory + 1);
	if (r < 0)
		return r;
	if ((request->flags & VMM_RESTORE_PAUSED) != 0) {
		vm->state = VMM_STATE_PAUSED;
		vm->spoiled = false;
	} else {
		devices_resume(vm);
		arch_interrupt(vm, arch_layout.generation_line);
		start(vm);
	}
	vm->generation_due = (request->flags & VMM_RESTORE_PAUSED) != 0;
	t.done = monotonic_ns();
	describe_timing(&t, timing, timing_room);
	return 0;
}

static int check_alive(const struct vm *vm, struct error *e) {
	if (vm->state == VMM_STATE_RUNNING || vm->state == VMM_STATE_PAUSED)
		return 0;
	if (vm->state == VMM_STATE_EXITED)
		return error_set(e, -ESRCH, "the guest has ended: %s", vm->exit_text);
	return error_set(e, -EINVAL, "this VMM has no microVM yet");
}

static void stop(struct vm *vm) {
	vm_unlock(vm);
	vcpus_stop(vm);
	vm_lock(vm);
	console_flush(&vm->console);
}

int vmm_pause(struct vm *vm, struct error *e) {
	int r = check_alive(vm, e);
	if (r < 0 || vm->state == VMM_STATE_PAUSED)
		return r;
	stop(vm);
	arch_pause(vm);
	vm->paused_at = monotonic_ns();
	vm->state = VMM_STATE_PAUSED;
	return 0;
}

int vmm_resume(struct vm *vm, struct error *e) {
	int r = check_alive(vm, e);
	if (r < 0 || vm->state == VMM_STATE_RUNNING)
		return r;
	if (vm->quiesced)
		devices_resume(vm);
	if (vm->generation_due)
		arch_interrupt(vm, arch_layout.generation_line);
	vm->generation_due = false;
	arch_resume(vm, vm->paused_at == 0 ? 0 : monotonic_ns() - vm->paused_at);
	start(vm);
	return 0;
}

static int save_memory_section(struct vm *vm, struct state_writer *w, bool difference, const uint8_t *id) {
	struct writer p = state_open(w, STASIS_SECTION_MEMORY, 0, 16 + LAYERS_MAX * STASIS_ID_BYTES);
	write_u64(&p, vm->memory.size);
	write_u32(&p, vm->vcpu_count);
	write_u32(&p, difference ? 2 : 1);
	if (difference)
		write_bytes(&p, vm->layers.ids[0], STASIS_ID_BYTES);
	write_bytes(&p, id, STASIS_ID_BYTES);
	return state_close(w, &p);
}

int vmm_snapshot(struct vm *vm, uint32_t flags, int state_fd, int memory_fd, struct error *e) {
	cleanup_close int state = state_fd, memory = memory_fd;
	bool difference = (flags & VMM_SNAPSHOT_DIFFERENCE) != 0;
	if (vm->state != VMM_STATE_PAUSED)
		return check_alive(vm, e) < 0 ? -ESRCH : error_set(e, -EBUSY, "the microVM runs: pause it before a snapshot");
	if ((flags & ~(uint32_t)VMM_SNAPSHOT_DIFFERENCE) != 0)
		return error_set(e, -EINVAL, "the request has unknown flags 0x%x", flags);
	uint8_t id[STASIS_ID_BYTES];
	int r = devices_quiesce(vm, e);
	if (r == 0)
		r = memory_layer_write(&vm->layers, &vm->memory, vm->host->pagemap_fd, memory, difference, id, e);
	__attribute__((cleanup(state_writer_free))) struct state_writer w;
	state_writer_init(&w, arch_layout.architecture);
	if (r == 0)
		r = save_memory_section(vm, &w, difference, id);
	if (r == 0)
		r = devices_save(vm, &w, e);
	if (r == 0)
		r = arch_save(vm, &w, e);
	if (r == 0)
		r = state_write(&w, state, e);
	if (r == 0)
		r = devices_flush(vm, e);
	return r;
}

int vmm_working_set(struct vm *vm, int file_fd, struct error *e) {
	cleanup_close int fd = file_fd;
	int r = check_alive(vm, e);
	if (r == 0 && !vm->recording)
		r = error_set(e, -EINVAL, "this microVM was not restored to record its working set");
	return r < 0 ? r : working_set_write(&vm->layers, &vm->memory, vm->host->pagemap_fd, fd, e);
}

// Bytes of anonymous memory of this process: what the guest has written, and the little that is the VMM's own.
static uint64_t anonymous_bytes(const struct vm *vm) {
	char text[128];
	ssize_t n = vm->host->statm_fd < 0 ? -1 : pread(vm->host->statm_fd, text, sizeof(text) - 1, 0);
	unsigned long long size, resident, shared;
	if (n <= 0)
		return 0;
	text[n] = '\0';
	if (sscanf(text, "%llu %llu %llu", &size, &resident, &shared) != 3 || shared > resident)
		return 0;
	return (resident - shared) * PAGE_BYTES;
}

void vmm_stats(struct vm *vm, struct vmm_stats *ret) {
	console_flush(&vm->console);
	*ret = (struct vmm_stats){.memory_bytes = vm->memory.size,
				  .resident_bytes = anonymous_bytes(vm),
				  .vcpu_run_ns = vcpus_cpu_ns(vm),
				  .console_bytes = vm->console.total};
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		ret->exits += atomic_load_explicit(&vm->vcpus[i].exits, memory_order_relaxed);
	for (unsigned i = 0; i < vm->device_count; i++)
		virtio_stats(vm->devices[i].virtio, ret);
}

void vmm_guest_has_ended(struct vm *vm) {
	uint64_t count;
	if (read(vm->exited_fd, &count, sizeof(count)) < 0)
		return;
	stop(vm);
	vm->state = VMM_STATE_EXITED;
	// Nobody will answer on the streams any more: whoever waits at their other ends is told by their end.
	for (unsigned i = 0; i < vm->device_count; i++)
		if (vm->devices[i].kind == VM_DEVICE_VSOCK)
			virtio_vsock_transport_reset(vm->devices[i].virtio);
}

int vmm_finish(struct vm *vm, struct error *e) {
	if (vm->state == VMM_STATE_RUNNING)
		stop(vm);
	return devices_flush(vm, e);
}
