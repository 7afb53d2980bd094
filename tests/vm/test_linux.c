// A distribution's kernel in a microVM: test_vm_linux <stasis-vmm> <bzImage> <initrd with linux_init> [test name pattern]. Needs a KVM that runs ordinary kernels; linux.sh
// makes the initrd and calls this.
#include "vm_test.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Inside the machine a boot takes some seconds, on a busy one half a minute.
#define WAITS 6

static int kernel, initrd;

static void boot(struct vmm *v, uint32_t memory_mib, uint32_t vcpus, const char *test) {
	struct vmm_reply reply = {.text = ""};
	char cmdline[256];
	snprintf(cmdline, sizeof(cmdline), "console=ttyS0 panic=-1 loglevel=6 %s", test);
	assert_int_equal(vmm_spawn(v, vmm_program, -1, -1), 0);
	int r = vmm_boot_call(v, kernel, initrd, memory_mib, vcpus, cmdline, &reply);
	if (r < 0)
		fail_msg("boot: %s", reply.text);
}

static void wait_for(struct vmm *v, const char *text, size_t *from) {
	for (int i = 0; i < WAITS; i++)
		if (console_wait(v, text, from))
			return;
	console_print(v);
	vmm_end(v);
	fail_msg("the guest has not said '%s'", text);
}

static void wait_for_end(struct vmm *v, uint32_t exit) {
	struct vmm_reply reply;
	if (vmm_wait_exited(v, &reply, WAITS * CLIENT_WAIT_MS) < 0) {
		console_print(v);
		vmm_end(v);
		fail_msg("the guest has not ended");
	}
	if (reply.exit != exit)
		console_print(v);
	assert_int_equal(reply.exit, exit);
}

static void test_boot_and_power_off(void **state) {
	struct vmm v;
	boot(&v, 512, 2, "test=poweroff");
	wait_for_end(&v, VMM_EXIT_POWEROFF);
	size_t from = 0;
	wait_for(&v, "clock source kvm-clock", &from);
	assert_int_equal(guest_value(&v, "cpus"), 2);
	assert_int_equal(guest_value(&v, "virtio"), 3); // vsock, rng, balloon
	vmm_end(&v);
}

static void test_reboot(void **state) {
	struct vmm v;
	boot(&v, 256, 1, "test=reboot");
	wait_for_end(&v, VMM_EXIT_RESET);
	vmm_end(&v);
}

static void test_panic(void **state) {
	struct vmm v;
	boot(&v, 256, 2, "test=panic");
	wait_for_end(&v, VMM_EXIT_RESET);
	size_t from = 0;
	wait_for(&v, "Kernel panic", &from);
	vmm_end(&v);
}

static void test_memory_above_hole(void **state) {
	struct vmm v;
	boot(&v, 4096, 1, "test=poweroff");
	wait_for_end(&v, VMM_EXIT_POWEROFF);
	assert_true(guest_value(&v, "memory_mib") > 3800);
	vmm_end(&v);
}

// All CPUs tick, memory is whole, time does not jump. *from: where the last tick on the console ended.
static void expect_ticks(struct vmm *v, int count, uint32_t vcpus, size_t *from) {
	for (int i = 0; i < count; i++) {
		wait_for(v, "end of tick", from);
		assert_int_equal(guest_value(v, "alive"), vcpus);
		assert_int_equal(guest_value(v, "wrong"), 0);
		assert_true(guest_value(v, "step_ms") < 20000);
	}
}

static void test_lives(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	boot(&v, 512, 2, "test=loop");
	expect_ticks(&v, 4, 2, &from);
	struct snapshot base = take_snapshot(&v, 0), before = {.state = -1};
	for (int life = 1; life <= 3; life++) {
		int r = restore_into(&v, &base, life == 1 ? NULL : &before, VMM_RESTORE_CLONE, &reply);
		if (r < 0)
			fail_msg("restore: %s", reply.text);
		from = 0;
		wait_for(&v, "reseeded due to virtual machine fork", &from);
		expect_ticks(&v, 4, 2, &from);
		struct snapshot own = take_snapshot(&v, VMM_SNAPSHOT_DIFFERENCE);
		if (life > 1)
			snapshot_close(&before);
		before = own;
	}
	snapshot_close(&before);
	snapshot_close(&base);
}

static void test_pause(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	boot(&v, 256, 2, "test=loop");
	expect_ticks(&v, 2, 2, &from);
	for (int i = 0; i < 20; i++) {
		assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
		usleep(20000);
		assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
		usleep(20000);
	}
	expect_ticks(&v, 2, 2, &from);
	vmm_end(&v);
}

int main(int argc, char **argv) {
	if (argc != 4 && argc != 5) {
		fprintf(stderr, "usage: %s <stasis-vmm> <bzImage> <initrd> [pattern]\n", argv[0]);
		return 2;
	}
	vmm_program = argv[1];
	kernel = open(argv[2], O_RDONLY | O_CLOEXEC);
	initrd = open(argv[3], O_RDONLY | O_CLOEXEC);
	if (kernel < 0 || initrd < 0) {
		fprintf(stderr, "cannot open kernel or initrd\n");
		return 2;
	}
	if (argc == 5)
		cmocka_set_test_filter(argv[4]);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_boot_and_power_off), cmocka_unit_test(test_reboot), cmocka_unit_test(test_panic),
		cmocka_unit_test(test_memory_above_hole),  cmocka_unit_test(test_lives),  cmocka_unit_test(test_pause),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
