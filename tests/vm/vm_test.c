// Shared steps of the VM tests; see vm_test.h.
#include "vm_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *vmm_program;
int guest_fd;

void vm_test_start(int argc, char **argv) {
	if (argc != 3) {
		fprintf(stderr, "usage: %s <stasis-vmm> <guest>\n", argv[0]);
		exit(2);
	}
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0) {
		fprintf(stderr, "skipped: cannot open /dev/kvm: %s\n", strerror(errno));
		exit(77);
	}
	close(kvm);
	vmm_program = argv[1];
	guest_fd = guest_image(argv[2]);
	if (guest_fd < 0) {
		fprintf(stderr, "cannot read %s\n", argv[2]);
		exit(2);
	}
}

static void expect_ok(struct vmm *v, int r, const struct vmm_reply *reply, const char *what) {
	if (r == 0)
		return;
	console_print(v);
	vmm_end(v);
	fail_msg("%s: %s (%s)", what, strerror(-r), reply->text);
}

void start_guest(struct vmm *v, uint32_t memory_mib, uint32_t vcpus, const char *command) {
	struct vmm_reply reply = {.text = ""};
	expect_ok(v, vmm_spawn(v, vmm_program, -1, -1), &reply, "start of the VMM");
	expect_ok(v, vmm_boot_call(v, guest_fd, -1, memory_mib, vcpus, command, &reply), &reply, "boot");
	assert_int_equal(reply.state, VMM_STATE_RUNNING);
}

void expect_exit(struct vmm *v, uint32_t exit) {
	struct vmm_reply reply;
	expect_ok(v, vmm_wait_exited(v, &reply, CLIENT_WAIT_MS), &reply, "end of the guest");
	if (reply.exit != exit)
		print_error("the guest ended with: %s\n", reply.text);
	assert_int_equal(reply.exit, exit);
	assert_int_equal(reply.state, VMM_STATE_EXITED);
	assert_true(vmm_alive(v)); // it stays, so that the reason can be asked for
}

uint64_t guest_value(struct vmm *v, const char *name) {
	uint64_t value = 0;
	struct vmm_reply reply;
	vmm_simple(v, VMM_STATS, &reply); // writes out the console
	if (!console_value(v, name, &value)) {
		console_print(v);
		vmm_end(v);
		fail_msg("the guest has not said '%s'", name);
	}
	return value;
}

struct snapshot take_snapshot(struct vmm *v, uint32_t flags) {
	struct snapshot s = {.state = memory_file("state"), .memory = memory_file("memory")};
	struct vmm_reply reply;
	expect_ok(v, vmm_simple(v, VMM_PAUSE, &reply), &reply, "pause");
	assert_int_equal(reply.state, VMM_STATE_PAUSED);
	expect_ok(v, vmm_snapshot_call(v, flags, s.state, s.memory, &reply), &reply, "snapshot");
	vmm_end(v);
	return s;
}

void snapshot_close(struct snapshot *s) {
	close(s->state);
	close(s->memory);
}

int restore_into(struct vmm *v, const struct snapshot *base, const struct snapshot *own, uint32_t flags, struct vmm_reply *ret) {
	int layers[2] = {base->memory, own == NULL ? -1 : own->memory};
	int r = vmm_spawn(v, vmm_program, -1, -1);
	return r < 0 ? r : vmm_restore_call(v, own == NULL ? base->state : own->state, layers, own == NULL ? 1 : 2, flags, ret);
}
