// What of stasis-launch needs no privileges: messages of stasisd, the command line, the table of slots, records of slots, the host's rules.
#include "launch/firewall.h"
#include "launch/messages.h"
#include "launch/networks.h"
#include "launch/options.h"
#include "launch/record.h"
#include "launch/slots.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
// cmocka needs those above
#include <cmocka.h>

static struct launch_take good_take(void) {
	return (struct launch_take){.header = {LAUNCH_MAGIC, LAUNCH_TAKE, 7},
				    .egress = {.base = LAUNCH_EGRESS_INTERNET},
				    .vcpus = 2,
				    .memory_bytes = 1ull << 31};
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
	t.egress.network_count = LAUNCH_NETWORKS_MAX;
	for (int i = 0; i < LAUNCH_NETWORKS_MAX; i++)
		snprintf(t.egress.networks[i], LAUNCH_NETWORK_MAX, "subnet-%d", i);
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
	t.egress.base = 2;
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	static const uint32_t vcpus[] = {0, LAUNCH_VCPUS_MAX + 1, UINT32_MAX};
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

static void test_egress_messages(void **state) {
	static const char *const bad[] = {"", "subnet-", "subnet-A", "subnet-1,subnet-2", "subnet-\n", "vpc-1", "../x"};
	struct launch_take t = good_take();
	t.egress.network_count = 1;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		snprintf(t.egress.networks[0], LAUNCH_NETWORK_MAX, "%s", bad[i]);
		assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	}
	memset(t.egress.networks[0], 'a', LAUNCH_NETWORK_MAX);
	memcpy(t.egress.networks[0], "subnet-", 7);
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
	t = good_take();
	t.egress.network_count = LAUNCH_NETWORKS_MAX + 1;
	assert_int_equal(parse(&t, sizeof(t)), -EBADMSG);
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

// Parses a command line given as one text; words are separated by one space.
static int options(const char *line, struct options *ret, struct error *e) {
	static char copy[2048];
	char *argv[64], *rest = NULL;
	int argc = 0;
	snprintf(copy, sizeof(copy), "%s", line);
	for (char *word = strtok_r(copy, " ", &rest); word != NULL && argc < 63; word = strtok_r(NULL, " ", &rest))
		argv[argc++] = word;
	argv[argc] = NULL;
	return options_parse(argc, argv, ret, e);
}

static void test_options(void **state) {
	struct options o;
	struct error e;
	assert_int_equal(
		options("l --program /p --config /c --user 990 --pool 3 --range 100.64.0.0/24 --resolvers 1.1.1.1,9.9.9.9 --closed "
			"10.0.2.0/24,10.1.0.0/16 --closed 10.9.0.0/16 -- --verbose x",
			&o, &e),
		0);
	assert_string_equal(o.program, "/p");
	assert_string_equal(o.run, "/run/stasis");
	assert_int_equal(o.uid, 990);
	assert_int_equal(o.pool, 3);
	assert_int_equal(o.slots, 64);
	assert_int_equal(o.resolver_count, 2);
	assert_int_equal(o.closed_count, 3);
	assert_int_equal(o.argument_count, 2);
	assert_int_equal(slot_host_address(&o, 63), 0x644000fd);
	assert_int_equal(slot_inner_address(&o, 63), 0x644000fe);
	assert_int_equal(options("l --program /p --config /c --user 990 --range 100.64.0.0/10", &o, &e), 0);
	assert_int_equal(o.slots, LAUNCH_SLOTS_MAX);
	assert_int_equal(options("l --help", &o, &e), 1);
}

static void test_bad_options(void **state) {
	static const char *const bad[] = {
		"l",
		"l --program /p",
		"l --program p --config /c --user 990",
		"l --program /p --config /c --user 0",
		"l --program /p --config /c --user root",
		"l --program /p --config /c --user nobody-of-that-name",
		"l --program /p --config /c --user 990 --pool -1",
		"l --program /p --config /c --user 990 --pool 257",
		"l --program /p --config /c --user 990 --pool 2x",
		"l --program /p --config /c --user 990 --range 100.64.0.0/29",
		"l --program /p --config /c --user 990 --range 100.64.0.1/24",
		"l --program /p --config /c --user 990 --resolvers 1.1.1.0/24",
		"l --program /p --config /c --user 990 --closed 10.0.0.0/8,,x",
		"l --program /p --config /c --user 990 --what",
		"l --program /p --config /c --user 990 --uid-base 0",
		"l --program /p --config",
	};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct options o;
		struct error e = {.message = ""};
		assert_true(options(bad[i], &o, &e) < 0);
		assert_true(e.message[0] != '\0');
	}
}

static void test_too_many_networks(void **state) {
	char line[4096] = "l --program /p --config /c --user 990 --resolvers 1.0.0.1";
	for (int i = 0; i < OPTIONS_ADDRESSES_MAX; i++)
		strcat(line, ",1.0.0.1");
	struct options o;
	struct error e;
	assert_int_equal(options(line, &o, &e), -EINVAL);
}

static void test_resolv_conf(void **state) {
	struct options o = {.resolver_count = 0};
	options_add_resolvers(&o, "# nameserver 9.9.9.9\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 10.0.2.3\nsearch x\nnameserver "
				  "1.1.1.1 # y\nnameserver");
	assert_int_equal(o.resolver_count, 2);
	assert_int_equal(o.resolvers[0], 0x0a000203);
	assert_int_equal(o.resolvers[1], 0x01010101);
}

static int read_networks(const char *text, struct options *o, struct error *e) {
	*o = (struct options){.range = {0x64400000, 16}};
	return networks_read(text, strlen(text), o, e);
}

static void test_configured_networks(void **state) {
	struct options o;
	struct error e = {.message = ""};
	assert_int_equal(read_networks("{}", &o, &e), 0);
	assert_int_equal(o.network_count, 0);
	static const char good[] = "{\"region\":\"x\",\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.20.0.0/16\",\"10.0.2.2\"],\"interface\":"
				   "\"vlan20\",\"dns\":true},\"subnet-b\":{\"cidrs\":[\"0.0.0.0/0\"]}}}";
	assert_int_equal(read_networks(good, &o, &e), 0);
	assert_int_equal(o.network_count, 2);
	assert_string_equal(o.networks[0].name, "subnet-a");
	assert_int_equal(o.networks[0].cidr_count, 2);
	assert_string_equal(o.networks[0].interface, "vlan20");
	assert_true(o.networks[0].dns && !o.networks[1].dns);
	uint32_t bits = 0;
	struct egress g = {.network_count = 2, .networks = {"subnet-b", "subnet-a"}};
	assert_int_equal(networks_find(&o, &g, &bits, &e), 0);
	assert_int_equal(bits, 3);
	memcpy(g.networks[0], "subnet-c", 9);
	assert_int_equal(networks_find(&o, &g, &bits, &e), -ENOENT);
	assert_non_null(strstr(e.message, "subnet-c"));
	static const char *const bad[] = {
		"",
		"[]",
		"{\"networks\":[]}",
		"{\"networks\":{\"a\":{\"cidrs\":[\"10.0.0.0/8\"]}}}",
		"{\"networks\":{\"subnet-A\":{\"cidrs\":[\"10.0.0.0/8\"]}}}",
		"{\"networks\":{\"subnet-a\":[]}}",
		"{\"networks\":{\"subnet-a\":{}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[1]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.1/8\"]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"127.0.0.1\"]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"169.254.169.254\"]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"239.0.0.0/8\"]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"100.64.9.0/24\"]}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"],\"dns\":1}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"],\"what\":1}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"],\"interface\":\"\"}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"],\"interface\":\"x\\\" accept\"}}}",
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"],\"interface\":\"longer-than-fifteen\"}}}"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		e.message[0] = '\0';
		assert_int_equal(read_networks(bad[i], &o, &e), -EINVAL);
		assert_true(e.message[0] != '\0');
	}
}

static char *rules_of(const struct options *o, const struct firewall_members *members) {
	char *text = firewall_host_rules(o, members);
	assert_non_null(text);
	return text;
}

static void test_host_rules(void **state) {
	struct options o;
	struct error e;
	const struct firewall_members nobody = {NULL, 0};
	assert_int_equal(options("l --program /p --config /c --user 990 --resolvers 10.0.2.3 --closed 10.0.2.0/24", &o, &e), 0);
	char *text = rules_of(&o, &nobody);
	assert_non_null(strstr(text, "10.0.2.0/24"));
	assert_non_null(strstr(text, "set resolvers { type ipv4_addr; elements = { 10.0.2.3 }; }"));
	assert_non_null(strstr(text, "ip saddr 100.64.0.0/16 oifname != \"stasis-*\" masquerade"));
	assert_non_null(strstr(text, "set confined { type ipv4_addr; }"));
	free(text);
	static const char config[] = "{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.20.0.0/16\",\"10.0.2.2\"],\"interface\":\"vlan20\"}}}";
	assert_int_equal(networks_read(config, strlen(config), &o, &e), 0);
	const struct firewall_member members[] = {{.address = slot_inner_address(&o, 3), .networks = 1, .confined = true},
						  {.address = slot_inner_address(&o, 4), .networks = 1}};
	text = rules_of(&o, &(struct firewall_members){members, 2});
	assert_non_null(strstr(text, "set confined { type ipv4_addr; elements = { 100.64.0.14 }; }"));
	assert_non_null(strstr(text, "set members_0 { type ipv4_addr; elements = { 100.64.0.14, 100.64.0.18 }; }"));
	// What lies in a closed network was named on purpose; nothing else opens one.
	assert_non_null(strstr(text, "chain network_0 {\n oifname \"vlan20\" ip daddr 10.0.2.2 accept\n ip daddr @closed return\n"
				     " oifname \"vlan20\" ip daddr 10.20.0.0/16 accept\n}"));
	free(text);
}

static void test_slots(void **state) {
	struct slots s;
	char name[LAUNCH_VMM_MAX];
	assert_int_equal(slots_create(&s, 5), 0);
	for (int i = 0; i < 5; i++) {
		snprintf(name, sizeof(name), "slot-%d", i);
		assert_int_equal(slots_reserve(&s, name), i);
	}
	assert_int_equal(slots_reserve(&s, "one too many"), -1);
	assert_int_equal(s.in_state[SLOT_MAKING], 5);
	slot_set_state(&s, 2, SLOT_READY);
	slot_set_state(&s, 4, SLOT_READY);
	assert_int_equal(slots_first(&s, SLOT_READY, -1), 2);
	assert_int_equal(slots_first(&s, SLOT_READY, 2), 4);
	assert_int_equal(slots_first(&s, SLOT_READY, 4), -1);
	assert_int_equal(slots_first(&s, SLOT_TAKEN, -1), -1);
	assert_int_equal(slots_find(&s, "slot-3"), 3);
	slot_set_state(&s, 3, SLOT_FREE);
	assert_int_equal(slots_find(&s, "slot-3"), -1);
	assert_int_equal(s.at[3].pidfd, -1);
	slot_set_state(&s, 0, SLOT_FREE);
	// Round and round: 0 was the next number, and 3 follows it.
	assert_int_equal(slots_reserve(&s, "again"), 0);
	assert_int_equal(slots_reserve(&s, "again"), 3);
	assert_int_equal(slots_claim(&s, 3, "taken"), -1);
	assert_int_equal(slots_claim(&s, 5, "outside"), -1);
	assert_int_equal(slots_claim(&s, UINT32_MAX, "outside"), -1);
	slots_free(&s);
}

static void test_wanted(void **state) {
	struct slots s;
	assert_int_equal(slots_create(&s, 6), 0);
	assert_int_equal(slots_wanted(&s, 0, 2, true), 2);
	assert_int_equal(slots_wanted(&s, 0, 2, false), 0);
	assert_int_equal(slots_wanted(&s, 3, 2, false), 3);
	assert_int_equal(slots_wanted(&s, 100, 2, true), 6);
	slots_reserve(&s, "a");
	slots_reserve(&s, "b");
	assert_int_equal(slots_wanted(&s, 0, 2, true), 0);
	assert_int_equal(slots_wanted(&s, 1, 2, true), 1);
	slot_set_state(&s, 0, SLOT_TAKEN);
	assert_int_equal(slots_wanted(&s, 0, 2, true), 1);
	slots_free(&s);
}

static void test_takes(void **state) {
	struct takes *t = calloc(1, sizeof(*t));
	struct launch_take take = good_take(), got;
	assert_false(takes_pop(t, &got));
	for (uint64_t round = 0; round < 2; round++) {
		for (uint64_t i = 0; i < LAUNCH_SLOTS_MAX; i++) {
			take.header.sequence = round << 32 | i;
			assert_true(takes_push(t, &take));
		}
		assert_false(takes_push(t, &take));
		for (uint64_t i = 0; i < LAUNCH_SLOTS_MAX - round; i++) {
			assert_true(takes_pop(t, &got));
			assert_int_equal(got.header.sequence, round << 32 | i);
		}
	}
	assert_int_equal(t->count, 1);
	free(t);
}

static void test_records(void **state) {
	struct record r;
	assert_int_equal(record_parse("slot 12 pid 3456 started 99887766 taken 1\n", &r), 0);
	assert_int_equal(r.number, 12);
	assert_int_equal(r.pid, 3456);
	assert_int_equal(r.started, 99887766);
	assert_true(r.taken);
	assert_int_equal(r.egress.network_count, 0);
	assert_int_equal(record_parse("slot 1 pid 2 started 3 taken 1 egress 1 networks subnet-a,subnet-b\n", &r), 0);
	assert_int_equal(r.egress.base, LAUNCH_EGRESS_INTERNET);
	assert_int_equal(r.egress.network_count, 2);
	assert_string_equal(r.egress.networks[1], "subnet-b");
	static const char *const bad[] = {"",
					  "slot",
					  "slot 1 pid 2 started 3 taken 1",
					  "slot 1 pid 2 started 3 taken 2\n",
					  "slot 1 pid 1 started 3 taken 0\n",
					  "slot 1 pid -7 started 3 taken 0\n",
					  "slot 1 pid 2 started 3 taken 0\nmore",
					  "slot x pid 2 started 3 taken 0\n",
					  "slot 1 pid 2 started 3 taken 1 egress 2 networks subnet-a\n",
					  "slot 1 pid 2 started 3 taken 1 egress 0 networks \n",
					  "slot 1 pid 2 started 3 taken 1 egress 0 networks subnet-a subnet-b\n",
					  "slot 1 pid 2 started 3 taken 1 egress 0 networks vpc-1\n"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(record_parse(bad[i], &r), -EBADMSG);
}

static void test_records_are_kept(void **state) {
	char run[] = "/tmp/test-launch-XXXXXX", path[96];
	static const char vmm[] = "6f1c3f0e-52ab-4b6e-9a3b-0123456789ab";
	struct record r = {.number = 7, .pid = 4711, .started = 99, .taken = true, .egress.network_count = LAUNCH_NETWORKS_MAX}, got;
	for (int i = 0; i < LAUNCH_NETWORKS_MAX; i++)
		snprintf(r.egress.networks[i], LAUNCH_NETWORK_MAX, "subnet-%040d", i);
	assert_non_null(mkdtemp(run));
	snprintf(path, sizeof(path), "%s/vm", run);
	assert_int_equal(mkdir(path, 0700), 0);
	snprintf(path, sizeof(path), "%s/vm/%s", run, vmm);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(record_write(run, vmm, &r), 0);
	assert_int_equal(record_read(run, vmm, &got), 0);
	assert_memory_equal(&got, &r, sizeof(r));
	record_remove_folder(run, vmm);
	assert_int_equal(access(path, F_OK), -1);
	snprintf(path, sizeof(path), "%s/vm", run);
	rmdir(path);
	rmdir(run);
}

static void test_process_start(void **state) {
	assert_int_equal(process_started_parse("7 (a b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9"), 4711);
	assert_int_equal(process_started_parse(""), 0);
	assert_int_equal(process_started_parse("7 (x) S 1 2"), 0);
	assert_true(process_started(getpid()) > 0);
	assert_int_equal(process_started(0x7ffffff0), 0);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_good_messages),
		cmocka_unit_test(test_every_cut_is_refused),
		cmocka_unit_test(test_values_out_of_range),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_egress_messages),
		cmocka_unit_test(test_networks),
		cmocka_unit_test(test_options),
		cmocka_unit_test(test_bad_options),
		cmocka_unit_test(test_too_many_networks),
		cmocka_unit_test(test_resolv_conf),
		cmocka_unit_test(test_configured_networks),
		cmocka_unit_test(test_host_rules),
		cmocka_unit_test(test_slots),
		cmocka_unit_test(test_wanted),
		cmocka_unit_test(test_takes),
		cmocka_unit_test(test_records),
		cmocka_unit_test(test_records_are_kept),
		cmocka_unit_test(test_process_start),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
