// Snapshots with the tiny guest: full and difference, one life after the other, many clones at once, time, the generation ID's interrupt.
#include "vm_test.h"

#include "stasis/snapshot.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static off_t size_of(int fd) {
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_size;
}

static struct snapshot image_of(uint32_t memory_mib, uint32_t vcpus, const char *command, const char *until) {
	struct vmm v;
	size_t from = 0;
	start_guest(&v, memory_mib, vcpus, command);
	assert_true(console_wait(&v, until, &from));
	return take_snapshot(&v, 0);
}

// Each life checks what all lives before have written. Differences stay small, also the third.
static void test_lives(void **state) {
	struct snapshot base = image_of(128, 1, "lives", "life 0\n"), own, before = {.state = -1};
	assert_true(size_of(base.memory) < 8 << 20);
	for (uint64_t life = 1; life <= 4; life++) {
		struct vmm v;
		struct vmm_reply reply;
		size_t from = 0;
		int r = restore_into(&v, &base, life == 1 ? NULL : &before, 0, &reply);
		if (r != 0)
			print_error("%s\n", reply.text);
		assert_int_equal(r, 0);
		assert_true(console_wait(&v, "written\n", &from));
		assert_int_equal(guest_value(&v, "life"), life);
		assert_int_equal(guest_value(&v, "wrong"), 0);
		own = take_snapshot(&v, VMM_SNAPSHOT_DIFFERENCE);
		assert_true(size_of(own.memory) < (off_t)(4 << 20));
		if (life > 1)
			snapshot_close(&before);
		before = own;
	}
	snapshot_close(&before);
	snapshot_close(&base);
}

// A full snapshot of a microVM that was restored from two layers stands alone.
static void test_full_snapshot_of_restored(void **state) {
	struct snapshot base = image_of(128, 1, "lives", "life 0\n");
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	assert_int_equal(restore_into(&v, &base, NULL, 0, &reply), 0);
	assert_true(console_wait(&v, "written\n", &from));
	struct snapshot own = take_snapshot(&v, VMM_SNAPSHOT_DIFFERENCE);
	assert_int_equal(restore_into(&v, &base, &own, 0, &reply), 0);
	from = 0;
	assert_true(console_wait(&v, "written\n", &from));
	struct snapshot full = take_snapshot(&v, 0);
	assert_int_equal(restore_into(&v, &full, NULL, 0, &reply), 0);
	from = 0;
	assert_true(console_wait(&v, "written\n", &from));
	assert_int_equal(guest_value(&v, "life"), 3);
	assert_int_equal(guest_value(&v, "wrong"), 0);
	vmm_end(&v);
	snapshot_close(&full);
	snapshot_close(&own);
	snapshot_close(&base);
}

static void test_snapshot_and_go_on(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	start_guest(&v, 64, 2, "restored");
	assert_true(console_wait(&v, "ready\n", &from));
	for (int i = 0; i < 5; i++) {
		int a = memory_file("state"), b = memory_file("memory");
		assert_int_equal(vmm_snapshot_call(&v, 0, a, b, &reply), -EBUSY);
		assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
		assert_int_equal(vmm_snapshot_call(&v, VMM_SNAPSHOT_DIFFERENCE, a, b, &reply), -EINVAL);
		assert_non_null(strstr(reply.text, "booted"));
		assert_int_equal(vmm_snapshot_call(&v, 0, a, b, &reply), 0);
		assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
		close(a);
		close(b);
	}
	vmm_end(&v);
}

#define CLONES 10
static void test_clones(void **state) {
	struct snapshot base = image_of(128, 1, "clones", "ready\n");
	struct vmm v[CLONES];
	struct vmm_reply reply;
	uint64_t ids[CLONES];
	for (int i = 0; i < CLONES; i++)
		assert_int_equal(restore_into(&v[i], &base, NULL, VMM_RESTORE_CLONE, &reply), 0);
	for (int i = 0; i < CLONES; i++) {
		expect_exit(&v[i], VMM_EXIT_POWEROFF);
		assert_int_equal(guest_value(&v[i], "wrong"), 0);
		ids[i] = guest_value(&v[i], "id");
		for (int j = 0; j < i; j++)
			assert_true(ids[i] != ids[j]);
		vmm_end(&v[i]);
	}
	snapshot_close(&base);
}

static void test_restore_paused(void **state) {
	struct snapshot base = image_of(64, 1, "restored", "ready\n");
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(restore_into(&v, &base, NULL, VMM_RESTORE_PAUSED, &reply), 0);
	assert_int_equal(reply.state, VMM_STATE_PAUSED);
	usleep(50000);
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	assert_int_equal(v.stats.exits, 0);
	// A difference at once is (nearly) empty.
	int a = memory_file("state"), b = memory_file("memory");
	assert_int_equal(vmm_snapshot_call(&v, VMM_SNAPSHOT_DIFFERENCE, a, b, &reply), 0);
	assert_true(size_of(b) <= 64 << 10);
	assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	close(a);
	close(b);
	vmm_end(&v);
	snapshot_close(&base);
}

static void test_restore_prepared(void **state) {
	struct snapshot base = image_of(64, 2, "restored", "ready\n");
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	assert_int_equal(vmm_prepare_call(&v, 64, 2, &reply), 0);
	assert_int_equal(vmm_restore_call(&v, base.state, &base.memory, 1, 0, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	assert_int_equal(vmm_prepare_call(&v, 64, 1, &reply), 0);
	assert_int_equal(vmm_restore_call(&v, base.state, &base.memory, 1, 0, &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "prepared for"));
	vmm_end(&v);
	snapshot_close(&base);
}

static void test_generation_interrupt(void **state) {
	struct snapshot base = image_of(64, 1, "interrupt", "armed\n");
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(restore_into(&v, &base, NULL, 0, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "interrupts"), 1);
	vmm_end(&v);
	snapshot_close(&base);
}

static void test_time_does_not_go_back(void **state) {
	struct snapshot base = image_of(64, 1, "clock", "ready\n");
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(restore_into(&v, &base, NULL, 0, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "back"), 0);
	vmm_end(&v);
	snapshot_close(&base);
}

static void test_memory_above_hole(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	// The state of the paused guest does not matter here: memory on both sides of the hole has to come back, and stay sparse.
	start_guest(&v, 5120, 1, "memory 1");
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
	struct snapshot base = image_of(5120, 1, "restored", "ready\n");
	assert_true(size_of(base.memory) < 1 << 20);
	assert_int_equal(restore_into(&v, &base, NULL, 0, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
	snapshot_close(&base);
}

static void test_wrong_layers(void **state) {
	struct snapshot one = image_of(64, 1, "restored", "ready\n"), two = image_of(64, 1, "restored", "ready\n"),
			big = image_of(128, 1, "restored", "ready\n");
	struct vmm v;
	struct vmm_reply reply;
	struct snapshot mixed = {.state = one.state, .memory = two.memory};
	assert_int_equal(restore_into(&v, &mixed, NULL, 0, &reply), -ESTALE);
	assert_non_null(strstr(reply.text, "wrong memory layer"));
	vmm_end(&v);
	mixed.memory = big.memory;
	assert_int_equal(restore_into(&v, &mixed, NULL, 0, &reply), -EBADMSG);
	assert_non_null(strstr(reply.text, "128 MiB"));
	vmm_end(&v);
	assert_int_equal(restore_into(&v, &one, &two, 0, &reply), -EINVAL); // one layer in the state, two given
	vmm_end(&v);
	// A difference without its base, and over another base.
	assert_int_equal(restore_into(&v, &one, NULL, VMM_RESTORE_PAUSED, &reply), 0);
	struct snapshot own = take_snapshot(&v, VMM_SNAPSHOT_DIFFERENCE);
	assert_int_equal(restore_into(&v, &own, NULL, 0, &reply), -EINVAL);
	vmm_end(&v);
	assert_int_equal(restore_into(&v, &two, &own, 0, &reply), -ESTALE);
	vmm_end(&v);
	assert_int_equal(restore_into(&v, &one, &own, VMM_RESTORE_PAUSED, &reply), 0);
	vmm_end(&v);
	snapshot_close(&own);
	snapshot_close(&one);
	snapshot_close(&two);
	snapshot_close(&big);
}

// Disks: number, serial number and size have to be the snapshot's.
static int boot_with_disk(struct vmm *v, int disk, const char *serial) {
	struct vmm_boot q = {.memory_mib = 64, .vcpus = 1, .devices = {.block_count = 1, .console_limit = 1 << 20}, .cmdline = "restored"};
	struct vmm_reply reply;
	memcpy(q.devices.blocks[0].serial, serial, strlen(serial));
	int none = memory_file("none"), fds[4] = {guest_fd, none, v->console, disk};
	int r = vmm_call(v, VMM_BOOT, &q, sizeof(q), fds, 4, &reply);
	close(none);
	return r;
}
static int restore_with_disk(struct vmm *v, const struct snapshot *s, int disk, const char *serial, struct vmm_reply *reply) {
	struct vmm_restore q = {.memory_layers = 1, .devices = {.block_count = disk < 0 ? 0 : 1, .console_limit = 1 << 20}};
	memcpy(q.devices.blocks[0].serial, serial, strlen(serial));
	int fds[4] = {s->state, s->memory, v->console, disk};
	assert_int_equal(vmm_spawn(v, vmm_program, -1, -1), 0);
	fds[2] = v->console;
	return vmm_call(v, VMM_RESTORE, &q, sizeof(q), fds, disk < 0 ? 3 : 4, reply);
}
static void test_wrong_disks(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	int disk = memory_file("disk"), larger = memory_file("larger");
	assert_int_equal(ftruncate(disk, 1 << 20), 0);
	assert_int_equal(ftruncate(larger, 2 << 20), 0);
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	assert_int_equal(boot_with_disk(&v, disk, "image"), 0);
	size_t from = 0;
	assert_true(console_wait(&v, "ready\n", &from));
	struct snapshot s = take_snapshot(&v, 0);
	assert_int_equal(restore_with_disk(&v, &s, -1, "", &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "wrong devices"));
	vmm_end(&v);
	assert_int_equal(restore_with_disk(&v, &s, disk, "other", &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "wrong disk"));
	vmm_end(&v);
	assert_int_equal(restore_with_disk(&v, &s, larger, "image", &reply), -EINVAL);
	assert_non_null(strstr(reply.text, "wrong disk"));
	vmm_end(&v);
	assert_int_equal(restore_with_disk(&v, &s, disk, "image", &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
	snapshot_close(&s);
	close(disk);
	close(larger);
}

static int restore_with_working_set(struct vmm *v, const struct snapshot *base, const struct snapshot *own, int working_set,
				    struct vmm_reply *ret) {
	struct vmm_restore q = {.flags = VMM_RESTORE_PREFETCH, .memory_layers = own == NULL ? 1 : 2, .devices = {.console_limit = 1 << 20}};
	int fds[5];
	size_t n = 0;
	assert_int_equal(vmm_spawn(v, vmm_program, -1, -1), 0);
	fds[n++] = own == NULL ? base->state : own->state;
	fds[n++] = base->memory;
	if (own != NULL)
		fds[n++] = own->memory;
	fds[n++] = working_set;
	fds[n++] = v->console;
	return vmm_call(v, VMM_RESTORE, &q, sizeof(q), fds, n, ret);
}

// One clone is recorded; the next ones get its pages in advance, find the same in them, and their differences stay small.
static void test_working_set(void **state) {
	struct snapshot base = image_of(128, 1, "lives", "life 0\n"), own;
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	int file = memory_file("working-set");
	assert_int_equal(restore_into(&v, &base, NULL, VMM_RESTORE_RECORD, &reply), 0);
	assert_true(console_wait(&v, "written\n", &from));
	struct vmm_header h;
	assert_int_equal(vmm_call(&v, VMM_WORKING_SET, &h, sizeof(h), &file, 1, &reply), 0);
	assert_true(size_of(file) > (off_t)sizeof(struct stasis_working_set_header));
	assert_int_equal(vmm_call(&v, VMM_WORKING_SET, &h, sizeof(h), NULL, 0, &reply), -EINVAL);
	vmm_end(&v);

	for (uint64_t life = 1; life <= 2; life++) {
		from = 0;
		int r = restore_with_working_set(&v, &base, life == 1 ? NULL : &own, file, &reply);
		if (r != 0)
			print_error("%s\n", reply.text);
		assert_int_equal(r, 0);
		assert_true(console_wait(&v, "written\n", &from));
		assert_int_equal(guest_value(&v, "life"), life);
		assert_int_equal(guest_value(&v, "wrong"), 0);
		assert_int_equal(vmm_call(&v, VMM_WORKING_SET, &h, sizeof(h), &file, 1, &reply), -EINVAL); // it is not recorded
		if (life == 2)
			snapshot_close(&own);
		own = take_snapshot(&v, VMM_SNAPSHOT_DIFFERENCE);
		assert_true(size_of(own.memory) < (off_t)(4 << 20));
	}
	snapshot_close(&own);

	struct snapshot other = image_of(128, 1, "lives", "life 0\n");
	assert_int_equal(restore_with_working_set(&v, &other, NULL, file, &reply), -ESTALE);
	assert_non_null(strstr(reply.text, "another snapshot"));
	vmm_end(&v);
	snapshot_close(&other);
	snapshot_close(&base);
	close(file);
}

int main(int argc, char **argv) {
	vm_test_start(argc, argv);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lives),
		cmocka_unit_test(test_full_snapshot_of_restored),
		cmocka_unit_test(test_snapshot_and_go_on),
		cmocka_unit_test(test_clones),
		cmocka_unit_test(test_restore_paused),
		cmocka_unit_test(test_restore_prepared),
		cmocka_unit_test(test_generation_interrupt),
		cmocka_unit_test(test_time_does_not_go_back),
		cmocka_unit_test(test_memory_above_hole),
		cmocka_unit_test(test_working_set),
		cmocka_unit_test(test_wrong_layers),
		cmocka_unit_test(test_wrong_disks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
