// A microVM's life with the tiny guest: boot, memory on both sides of the hole, several vCPUs, pause and resume, every way to end.
#include "vm_test.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void test_boot_and_power_off(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	start_guest(&v, 64, 1, "hello");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_true(console_wait(&v, "hello\n", &from));
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), -ESRCH);
	assert_non_null(strstr(reply.text, "powered itself off"));
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	assert_int_equal(v.stats.memory_bytes, 64 << 20);
	assert_int_equal(v.stats.console_bytes, 6);
	assert_true(v.stats.exits >= 7);
	assert_int_equal(vmm_simple(&v, VMM_QUIT, &reply), 0);
	for (int i = 0; i < 2000 && vmm_alive(&v); i++)
		usleep(1000);
	assert_false(vmm_alive(&v));
	vmm_end(&v);
}

static void test_smallest_memory(void **state) {
	struct vmm v;
	start_guest(&v, 4, 1, "hello");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
}

static void test_sizes_out_of_range(void **state) {
	static const struct { uint32_t memory, vcpus; } cases[] = {{0, 1}, {3, 1}, {UINT32_MAX, 1}, {64, 0}, {64, 33}, {64, UINT32_MAX}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct vmm v;
		struct vmm_reply reply;
		assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
		assert_int_equal(vmm_boot_call(&v, guest_fd, -1, cases[i].memory, cases[i].vcpus, "hello", &reply), -EINVAL);
		assert_non_null(strstr(reply.text, "possible"));
		assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 64, 1, "hello", &reply), 0); // nothing was spoiled
		expect_exit(&v, VMM_EXIT_POWEROFF);
		vmm_end(&v);
	}
}

static void test_memory_below_hole(void **state) {
	struct vmm v;
	start_guest(&v, 256, 1, "memory 0");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "wrong"), 0);
	vmm_end(&v);
}

static void test_memory_above_hole(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 5120, 1, "memory 1");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "wrong"), 0);
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	assert_int_equal(v.stats.memory_bytes, UINT64_C(5120) << 20);
	assert_true(v.stats.resident_bytes < 64 << 20); // sparse: only what was touched
	vmm_end(&v);
}

static void test_other_vcpus_start(void **state) {
	for (uint32_t vcpus = 2; vcpus <= 4; vcpus += 2) {
		struct vmm v;
		char command[32];
		snprintf(command, sizeof(command), "smp %u", vcpus - 1);
		start_guest(&v, 64, vcpus, command);
		expect_exit(&v, VMM_EXIT_POWEROFF);
		assert_int_equal(guest_value(&v, "started"), vcpus - 1);
		vmm_end(&v);
	}
}

static void test_most_vcpus(void **state) {
	struct vmm v;
	start_guest(&v, 64, 32, "hello");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
}

static void test_ways_to_end(void **state) {
	static const struct {
		const char *command;
		uint32_t exit;
		const char *text;
	} cases[] = {
		{"reset", VMM_EXIT_RESET, "keyboard controller"},
		{"acpireset", VMM_EXIT_RESET, "reset register"},
		{"fault", VMM_EXIT_TRIPLE_FAULT, "triple fault"},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct vmm v;
		struct vmm_reply reply;
		start_guest(&v, 64, 1, cases[i].command);
		expect_exit(&v, cases[i].exit);
		assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), -ESRCH);
		assert_non_null(strstr(reply.text, cases[i].text));
		vmm_end(&v);
	}
}

static void test_prepared(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	assert_int_equal(vmm_prepare_call(&v, 64, 2, &reply), 0);
	assert_int_equal(reply.state, VMM_STATE_PREPARED);
	assert_int_equal(vmm_prepare_call(&v, 64, 2, &reply), -EALREADY);
	assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 128, 2, "hello", &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "prepared for 64 MiB"));
	assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 64, 2, "hello", &reply), 0);
	assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 64, 2, "hello", &reply), -EALREADY);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
}

static void test_pause_and_resume_many_times(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 64, 2, "spin");
	for (int i = 0; i < 200; i++) {
		assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
		assert_int_equal(reply.state, VMM_STATE_PAUSED);
		assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
		assert_int_equal(reply.state, VMM_STATE_RUNNING);
	}
	// Twice is once.
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
	assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
	vmm_end(&v);
}

static void test_paused_guest_stands_still(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 64, 1, "spin");
	usleep(50000);
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	vmm_simple(&v, VMM_STATS, &reply);
	uint64_t before = v.stats.vcpu_run_ns;
	usleep(100000);
	vmm_simple(&v, VMM_STATS, &reply);
	assert_true(v.stats.vcpu_run_ns - before < 1000000);
	vmm_end(&v);
}

static void test_console_keeps_the_newest(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	struct vmm_boot q = {.memory_mib = 64, .vcpus = 1, .devices = {.console_limit = 8192}, .cmdline = "console 2000"};
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	int none = memory_file("none"), fds[3] = {guest_fd, none, v.console};
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q), fds, 3, &reply), 0);
	close(none);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "line"), 1999);
	assert_int_equal(v.stats.console_bytes, 2000 * 22);
	struct stat st;
	assert_int_equal(fstat(v.console, &st), 0);
	assert_true(st.st_size <= 8192 && st.st_size >= 2048);
	vmm_end(&v);
}

static void test_not_a_kernel(void **state) {
	char junk[8192];
	memset(junk, 'x', sizeof(junk));
	for (size_t size = 0; size <= sizeof(junk); size += 4096) {
		struct vmm v;
		struct vmm_reply reply;
		int fd = memory_file("junk");
		assert_int_equal(write(fd, junk, size), size);
		assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
		assert_int_equal(vmm_boot_call(&v, fd, -1, 64, 1, "hello", &reply), -ENOEXEC);
		assert_non_null(strstr(reply.text, "bzImage"));
		assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 64, 1, "hello", &reply), -EALREADY); // half-way: start another VMM
		vmm_end(&v);
		close(fd);
	}
}

static void test_malformed_requests(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	struct vmm_boot q = {.memory_mib = 64, .vcpus = 1};
	int fds[5] = {guest_fd, guest_fd, guest_fd, guest_fd, guest_fd};
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q) - 1, fds, 3, &reply), -EPROTO);
	assert_int_equal(vmm_call(&v, 99, &q, sizeof(q), fds, 3, &reply), -EPROTO);
	assert_int_equal(vmm_call(&v, VMM_PAUSE, &q, sizeof(q.header), fds, 5, &reply), -EINVAL);
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q), fds, 2, &reply), -EINVAL);
	memset(q.cmdline, 'x', sizeof(q.cmdline));
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q), fds, 3, &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "command line"));
	struct vmm_restore r = {.memory_layers = 9};
	assert_int_equal(vmm_call(&v, VMM_RESTORE, &r, sizeof(r), fds, 3, &reply), -EINVAL);
	r.memory_layers = 1;
	assert_int_equal(vmm_call(&v, VMM_RESTORE, &r, sizeof(r), fds, 2, &reply), -EINVAL);
	struct vmm_snapshot s = {.flags = 0};
	assert_int_equal(vmm_call(&v, VMM_SNAPSHOT, &s, sizeof(s), fds, 2, &reply), -ESRCH);
	assert_true(vmm_alive(&v));
	assert_int_equal(vmm_boot_call(&v, guest_fd, -1, 64, 1, "hello", &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
}

static void test_disks_that_do_not_fit(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	struct vmm_boot q = {.memory_mib = 64, .vcpus = 1, .devices = {.block_count = 9}};
	int fds[4] = {guest_fd, guest_fd, guest_fd, guest_fd};
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q), fds, 3, &reply), -EINVAL);
	vmm_end(&v);
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	q.devices.block_count = 1;
	assert_int_equal(vmm_call(&v, VMM_BOOT, &q, sizeof(q), fds, 3, &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "descriptors"));
	vmm_end(&v);
}

int main(int argc, char **argv) {
	vm_test_start(argc, argv);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_boot_and_power_off),
		cmocka_unit_test(test_smallest_memory),
		cmocka_unit_test(test_sizes_out_of_range),
		cmocka_unit_test(test_memory_below_hole),
		cmocka_unit_test(test_memory_above_hole),
		cmocka_unit_test(test_other_vcpus_start),
		cmocka_unit_test(test_most_vcpus),
		cmocka_unit_test(test_ways_to_end),
		cmocka_unit_test(test_prepared),
		cmocka_unit_test(test_pause_and_resume_many_times),
		cmocka_unit_test(test_paused_guest_stands_still),
		cmocka_unit_test(test_console_keeps_the_newest),
		cmocka_unit_test(test_not_a_kernel),
		cmocka_unit_test(test_malformed_requests),
		cmocka_unit_test(test_disks_that_do_not_fit),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
