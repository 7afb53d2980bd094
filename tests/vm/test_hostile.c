// Guests that misbehave: they may become slow or end, but the VMM answers, can pause them, and outlives them.
#include "vm_test.h"

#include "base/clock.h"

#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static void test_endless_loop_can_be_paused(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	size_t from = 0;
	start_guest(&v, 64, 1, "spin");
	assert_true(console_wait(&v, "spinning\n", &from));
	uint64_t start = monotonic_ms();
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	assert_true(monotonic_ms() - start < 1000);
	struct snapshot s = take_snapshot(&v, 0);
	assert_int_equal(restore_into(&v, &s, NULL, 0, &reply), 0);
	usleep(20000);
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	vmm_end(&v);
	snapshot_close(&s);
}

// Every port, every register of every virtio device and the IOAPIC, with nonsense, all sizes.
static void test_storm(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 64, 1, "storm 20000");
	for (int i = 0; i < 20; i++) {
		uint64_t start = monotonic_ms();
		assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
		assert_true(monotonic_ms() - start < 2000);
	}
	// Pauses meet accesses that are half done.
	for (int i = 0; i < 100 && vmm_simple(&v, VMM_PAUSE, &reply) == 0; i++)
		if (vmm_simple(&v, VMM_RESUME, &reply) != 0)
			break;
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "stormed"), 20000);
	vmm_end(&v);
}

static void test_snapshot_in_a_storm(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 64, 1, "storm 20000");
	for (int i = 0; i < 5; i++) {
		usleep(20000);
		struct snapshot s = take_snapshot(&v, 0);
		assert_int_equal(restore_into(&v, &s, NULL, 0, &reply), 0);
		snapshot_close(&s);
	}
	expect_exit(&v, VMM_EXIT_POWEROFF);
	assert_int_equal(guest_value(&v, "stormed"), 20000);
	vmm_end(&v);
}

static void test_triple_fault_of_one_of_many(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	start_guest(&v, 64, 4, "fault");
	expect_exit(&v, VMM_EXIT_TRIPLE_FAULT);
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	usleep(50000);
	uint64_t before = v.stats.vcpu_run_ns;
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	assert_int_equal(v.stats.vcpu_run_ns, before); // nothing runs any more
	assert_int_equal(vmm_simple(&v, VMM_QUIT, &reply), 0);
	vmm_end(&v);
}

// Clients that send junk, never read, or come in crowds.
static void test_bad_clients(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	struct sockaddr_un a;
	socklen_t size = sizeof(a);
	start_guest(&v, 64, 1, "spin");
	assert_int_equal(getpeername(v.sock, (struct sockaddr *)&a, &size), 0);
	int socks[20];
	char junk[9000];
	memset(junk, 0x5a, sizeof(junk));
	for (int i = 0; i < 20; i++) {
		socks[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		assert_true(socks[i] >= 0);
		(void)connect(socks[i], (struct sockaddr *)&a, size);
		(void)send(socks[i], junk, sizeof(junk), MSG_NOSIGNAL);
		(void)send(socks[i], junk, 3, MSG_NOSIGNAL);
	}
	struct vmm_header h = {.magic = VMM_CONTROL_MAGIC, .kind = VMM_STATS};
	for (int n = 0; n < 2000; n++) // never reads the replies
		(void)send(socks[0], &h, sizeof(h), MSG_NOSIGNAL);
	assert_int_equal(vmm_simple(&v, VMM_PAUSE, &reply), 0);
	for (int i = 0; i < 20; i++)
		close(socks[i]);
	assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
	struct vmm again = {.sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0)};
	assert_int_equal(connect(again.sock, (struct sockaddr *)&a, size), 0);
	assert_int_equal(vmm_simple(&again, VMM_STATS, &reply), 0);
	close(again.sock);
	vmm_end(&v);
}

// The client goes away: the guest runs on, and the next client takes over.
static void test_client_goes_away(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	struct sockaddr_un a;
	socklen_t size = sizeof(a);
	start_guest(&v, 64, 1, "spin");
	assert_int_equal(getpeername(v.sock, (struct sockaddr *)&a, &size), 0);
	close(v.sock);
	usleep(50000);
	v.sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_int_equal(connect(v.sock, (struct sockaddr *)&a, size), 0);
	assert_int_equal(vmm_simple(&v, VMM_STATS, &reply), 0);
	assert_int_equal(reply.state, VMM_STATE_RUNNING);
	vmm_end(&v);
}

int main(int argc, char **argv) {
	vm_test_start(argc, argv);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_endless_loop_can_be_paused),
		cmocka_unit_test(test_storm),
		cmocka_unit_test(test_snapshot_in_a_storm),
		cmocka_unit_test(test_triple_fault_of_one_of_many),
		cmocka_unit_test(test_bad_clients),
		cmocka_unit_test(test_client_goes_away),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
