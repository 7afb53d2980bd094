// The KVM probe on what a test host surely has: no device, something that is no KVM, and its own /dev/kvm, whatever that is good for. Also
// how much memory the machine gets, and QEMU's command line.
#include "base/clock.h"
#include "machine/probe.h"
#include "machine/qemu.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
// cmocka needs those above
#include <cmocka.h>

static void test_absent(void **state) {
	struct kvm_probe_result r;
	assert_int_equal(kvm_probe_device("/dev/there-is-no-such-device", &r), 0);
	assert_int_equal(r.state, KVM_ABSENT);
	assert_false(kvm_probe_is_usable(&r));
	assert_true(r.reason[0] != '\0' && r.remedy[0] != '\0');
}

static void test_something_else(void **state) {
	struct kvm_probe_result r;
	assert_int_equal(kvm_probe_device("/dev/null", &r), 0);
	assert_int_equal(r.state, KVM_BROKEN);
	assert_string_equal(kvm_probe_state_name(r.state), "broken");
}

static void test_this_host(void **state) {
	struct kvm_probe_result r;
	uint64_t start = monotonic_ms();
	assert_int_equal(kvm_probe(&r), 0);
	assert_true(monotonic_ms() - start < 5 * KVM_PROBE_DEADLINE_MS);
	assert_true(r.reason[0] != '\0');
	assert_int_equal(r.state == KVM_USABLE, r.remedy[0] == '\0');
	if (r.state == KVM_USABLE)
		assert_true(r.run_ns > 0 && r.run_ns <= KVM_PROBE_SLOW_NS);
	print_message("this host's /dev/kvm: %s: %s\n", kvm_probe_state_name(r.state), r.reason);
}

static void test_memory(void **state) {
	assert_int_equal(machine_default_memory(0), 0);
	assert_int_equal(machine_default_memory(4095), 0);
	assert_int_equal(machine_default_memory(4096), 4096);
	assert_int_equal(machine_default_memory(8000), 4800);
	assert_int_equal(machine_default_memory(1ull << 40), 16384);
}

static bool has(const struct qemu_command *c, const char *argument) {
	for (size_t i = 0; i < c->count; i++)
		if (strcmp(c->argv[i], argument) == 0)
			return true;
	return false;
}

// In QEMU's option lists a comma in a path is doubled; a single one would end the path.
static void test_command(void **state) {
	struct machine_options o = {.home = "/h,h",
				    .program = "/p,readonly=off",
				    .memory_mib = 4096,
				    .cpus = 2,
				    .pool = 7,
				    .api_port = 1,
				    .artifacts_port = 2,
				    .edge_port = 3,
				    .guest_api_port = 4,
				    .guest_artifacts_port = 5,
				    .guest_edge_port = 6};
	struct qemu_command c;
	struct error e;
	assert_int_equal(qemu_command_build(&o, "/q", "/k", "/i", &c, &e), 0);
	assert_null(c.argv[c.count]);
	assert_string_equal(c.argv[0], "/q");
	assert_true(has(&c, "local,id=program,path=/p,,readonly=off,security_model=none,readonly=on,multidevs=remap"));
	assert_true(has(&c, "unix:/h,,h/machine/qmp.sock,server=on,wait=off"));
	assert_true(has(&c, "4096"));
	qemu_command_free(&c);
	assert_int_equal(c.count, 0);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_absent), cmocka_unit_test(test_something_else), cmocka_unit_test(test_this_host),
		cmocka_unit_test(test_memory), cmocka_unit_test(test_command),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
