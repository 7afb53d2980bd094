// stasis-launch's checks: messages from stasisd, networks on its command line.
#include "launch/messages.h"
#include "launch/options.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// cmocka needs those above
#include <cmocka.h>

static struct launch_take good_take(void) {
	return (struct launch_take){
		.header = {LAUNCH_MAGIC, LAUNCH_TAKE, 7}, .egress = LAUNCH_EGRESS_INTERNET, .vcpus = 2, .memory_bytes = 1ull << 31};
}

static int parse(const void *data, size_t size) {
	union launch_request q;
	struct error e;
	// A copy of exactly that size, so that a read beyond its end is seen.
	void *copy = malloc(size == 0 ? 1 : size);
	memcpy(copy, data, size);
	int r = launch_request_parse(copy, size, &q, &e);
	free(copy);
	return r;
}

static void test_good_messages(void **state) {
	struct launch_take t = good_take();
	struct launch_end end = {.header = {LAUNCH_MAGIC, LAUNCH_END, 8}, .vmm = "6f1c3f0e-52ab-4b6e-9a3b-0123456789ab"};
	struct launch_header list = {LAUNCH_MAGIC, LAUNCH_LIST, 9};
	assert_int_equal(parse(&t, sizeof(t)), 0);
	assert_int_equal(parse(&end, sizeof(end)), 0);
	assert_int_equal(parse(&list, sizeof(list)), 0);
}

static void test_every_cut_is_refused(void **state) {
	struct launch_take t = good_take();
	for (size_t size = 0; size < sizeof(t); size++)
		assert_int_equal(parse(&t, size), -EBADMSG);
	char longer[sizeof(t) + 1] = {0};
	memcpy(longer, &t, sizeof(t));
	assert_int_equal(parse(longer, sizeof(longer)), -EBADMSG);
}

static void test_values_out_of_range(void **state) {
	struct launch_take t = good_take();
	t.header.magic++;
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	t = good_take();
	t.header.kind = 4;
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	t = good_take();
	t.egress = 2;
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	static const uint32_t vcpus[] = {0, 65, UINT32_MAX};
	for (size_t i = 0; i < 3; i++) {
		t = good_take();
		t.vcpus = vcpus[i];
		assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	}
	static const uint64_t memory[] = {0, (1 << 20) - 1, LAUNCH_MEMORY_MAX + 1, UINT64_MAX};
	for (size_t i = 0; i < 4; i++) {
		t = good_take();
		t.memory_bytes = memory[i];
		assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	}
}

static void test_names(void **state) {
	static const char *const bad[] = {"",
					  ".",
					  "..",
					  "../../etc",
					  "6f1c3f0e-52ab-4b6e-9a3b-0123456789a",
					  "6F1C3F0E-52AB-4B6E-9A3B-0123456789AB",
					  "6f1c3f0e-52ab-4b6e-9a3b-0123456789abc",
					  "6f1c3f0e/52ab-4b6e-9a3b-0123456789ab"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct launch_end end = {.header = {LAUNCH_MAGIC, LAUNCH_END, 8}};
		snprintf(end.vmm, sizeof(end.vmm), "%s", bad[i]);
		assert_int_equal(parse(&end, sizeof(end)), -EBADMSG);
	}
	struct launch_end open_end = {.header = {LAUNCH_MAGIC, LAUNCH_END, 8}};
	memset(open_end.vmm, 'a', sizeof(open_end.vmm));
	assert_int_equal(parse(&open_end, sizeof(open_end)), -EBADMSG);
}

static void test_networks(void **state) {
	struct network n;
	assert_int_equal(network_parse("10.0.2.0/24", &n), 0);
	assert_int_equal(n.address, 0x0a000200);
	assert_int_equal(n.prefix, 24);
	assert_int_equal(network_parse("10.0.2.3", &n), 0);
	assert_int_equal(n.prefix, 32);
	assert_int_equal(network_parse("0.0.0.0/0", &n), 0);
	static const char *const bad[] = {"",
					  "10.0.2",
					  "10.0.2.1/24",
					  "10.0.2.0/33",
					  "10.0.2.0/",
					  "10.0.2.0/-1",
					  "10.0.2.0/2x",
					  "::1",
					  "1000.0.0.0",
					  "10.0.2.0/240000000000000000"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(network_parse(bad[i], &n), -EINVAL);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_messages),
		cmocka_unit_test(test_every_cut_is_refused),
		cmocka_unit_test(test_values_out_of_range),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_networks),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
