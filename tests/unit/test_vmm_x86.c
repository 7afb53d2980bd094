// The VMM's x86-64 parts that need no KVM: AML and ACPI tables, CPUID, the I/O interrupt controller.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "base/io.h"
#include "vmm/arch/x86_64/aml.h"
#include "vmm/arch/x86_64/x86.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static uint8_t sum(const uint8_t *data, size_t n) {
	uint8_t s = 0;
	for (size_t i = 0; i < n; i++)
		s = (uint8_t)(s + data[i]);
	return s;
}

static void test_dsdt_is_well_formed(void **state) {
	uint8_t table[8192];
	for (unsigned devices = 0; devices <= 18; devices++) {
		int n = acpi_make_dsdt(table, sizeof(table), devices);
		assert_true(n > 36);
		uint32_t length;
		memcpy(&length, table + 4, 4);
		assert_int_equal(length, n);
		assert_int_equal(sum(table, (size_t)n), 0);
		assert_int_equal(acpi_make_dsdt(table, (size_t)n, devices), n);
		assert_true(acpi_make_dsdt(table, (size_t)n - 1, devices) < 0);
	}
}

static void test_dsdt_disassembles(void **state) {
	if (system("iasl -v >/dev/null 2>&1") != 0)
		skip();
	uint8_t table[8192];
	char folder[] = "/tmp/stasis-dsdt-XXXXXX", path[64], command[256], *text;
	size_t size;
	assert_non_null(mkdtemp(folder));
	snprintf(path, sizeof(path), "%s/dsdt.aml", folder);
	int n = acpi_make_dsdt(table, sizeof(table), 12);
	assert_int_equal(write_file_durably(path, table, (size_t)n, 0600, NULL), 0);
	snprintf(command, sizeof(command), "cd %s && iasl -d dsdt.aml >log 2>&1 && iasl -f dsdt.dsl >>log 2>&1", folder);
	int r = system(command);
	snprintf(path, sizeof(path), "%s/dsdt.dsl", folder);
	assert_int_equal(read_file(path, 1 << 20, &text, &size, NULL), 0);
	static const char *const wanted[] = {"LNRO0005",
					     "0xD000B000",
					     "PNP0501",
					     "VM_Gen_Counter",
					     "0x0009F000",
					     "ACPI0013",
					     "Notify (\\_SB.VGEN, 0x80)",
					     "Edge, ActiveHigh, Exclusive",
					     "_S5"};
	for (size_t i = 0; i < sizeof(wanted) / sizeof(wanted[0]); i++)
		if (strstr(text, wanted[i]) == NULL)
			fail_msg("the disassembly lacks %s:\n%s", wanted[i], text);
	free(text);
	remove_tree(folder, NULL);
	assert_int_equal(r, 0);
}

static void test_aml_lengths(void **state) {
	static uint8_t room[70000];
	static const size_t contents[] = {0, 62, 63, 64, 4093, 4094, 4095, 4096, 60000};
	for (size_t i = 0; i < sizeof(contents) / sizeof(contents[0]); i++) {
		struct aml a;
		aml_init(&a, room, sizeof(room));
		aml_package(&a, 0); // op, length, count
		for (size_t n = 0; n < contents[i]; n++)
			aml_integer(&a, 0);
		aml_end(&a);
		assert_false(a.bad);
		size_t length = room[1] >> 6 == 0
					? room[1]
					: (size_t)(room[1] & 15) | (size_t)room[2] << 4 | (room[1] >> 6 == 2 ? (size_t)room[3] << 12 : 0);
		assert_int_equal(length, a.size - 1);
	}
	struct aml a;
	aml_init(&a, room, 16);
	aml_string(&a, "longer than the room");
	assert_true(a.bad);
	aml_init(&a, room, sizeof(room));
	aml_end(&a); // nothing is open
	assert_true(a.bad);
}

static struct kvm_cpuid_entry2 *entry(struct kvm_cpuid2 *c, uint32_t function, uint32_t index) {
	return (struct kvm_cpuid_entry2 *)(uintptr_t)cpuid_find(c, function, index);
}

static struct kvm_cpuid2 *sample_cpuid(const char *vendor) {
	struct kvm_cpuid2 *c = cpuid_new();
	uint32_t v[3];
	memcpy(v, vendor, 12);
	const struct kvm_cpuid_entry2 entries[] = {
		{.function = 0, .eax = 0x1f, .ebx = v[0], .edx = v[1], .ecx = v[2]},
		{.function = 1, .ebx = 0x07100800, .ecx = 0xffffffff, .edx = 0xffffffff},
		{.function = 4, .index = 0, .flags = 1, .eax = 0x1c004121},
		{.function = 4, .index = 3, .flags = 1, .eax = 0x1c03c163},
		{.function = 7, .index = 0, .flags = 1, .ebx = 0xffffffff, .ecx = 0xffffffff, .edx = 0xffffffff},
		{.function = 0xa, .eax = 0x07300802},
		{.function = 0xb, .index = 0, .flags = 1, .edx = 9},
		{.function = 0xd, .index = 0, .flags = 1, .eax = 0x600e7, .ebx = 0x2b00, .ecx = 0x2b00},
		{.function = 0xd, .index = 2, .flags = 1, .eax = 0x100, .ebx = 0x240},
		{.function = 0xd, .index = 18, .flags = 1, .eax = 0x2000, .ebx = 0xb00},
		{.function = 0x40000001, .eax = 0x01007efb},
		{.function = 0x80000001, .ecx = 0xffffffff, .edx = 0xffffffff},
		{.function = 0x80000007, .edx = 0x100},
		{.function = 0x80000008, .eax = 0x3030, .ecx = 0x5007},
		{.function = 0x8000001e, .eax = 9},
	};
	c->nent = sizeof(entries) / sizeof(entries[0]);
	memcpy(c->entries, entries, sizeof(entries));
	return c;
}

static void test_cpuid_filter(void **state) {
	struct kvm_cpuid2 *c = sample_cpuid("GenuineIntel");
	cpuid_filter(c, true);
	assert_int_equal(entry(c, 1, 0)->ecx & (1u << 5 | 1u << 3 | 1u << 15 | 1u << 27), 0); // VMX, MONITOR, PDCM, OSXSAVE
	assert_int_equal(entry(c, 1, 0)->ecx >> 31, 1);
	assert_int_equal(entry(c, 1, 0)->ecx >> 24 & 1, 1);
	assert_int_equal(entry(c, 0x80000007, 0)->edx, 0);          // invariant TSC
	assert_int_equal(entry(c, 0x80000001, 0)->ecx >> 2 & 1, 0); // SVM
	assert_null(entry(c, 0xa, 0));
	assert_null(entry(c, 0xd, 18));
	assert_int_equal(entry(c, 0xd, 0)->eax, 0xe7);
	assert_int_equal(entry(c, 0xd, 0)->ecx, 0x340); // without AMX
	// The CPU that it was asked on does not show.
	assert_int_equal(entry(c, 1, 0)->ebx >> 24, 0);
	assert_int_equal(entry(c, 0xb, 0)->edx, 0);
	free(c);
}

static void test_cpuid_topology(void **state) {
	for (uint32_t vcpus = 1; vcpus <= 32; vcpus++) {
		struct kvm_cpuid2 *c = sample_cpuid("AuthenticAMD");
		cpuid_filter(c, false);
		uint32_t last = vcpus - 1;
		cpuid_set_topology(c, last, vcpus);
		assert_int_equal(entry(c, 1, 0)->ebx >> 24, last);
		assert_int_equal(entry(c, 1, 0)->edx >> 28 & 1, vcpus > 1);
		assert_int_equal(entry(c, 1, 0)->ecx >> 24 & 1, 0);
		assert_int_equal(entry(c, 4, 0)->eax >> 14 & 0xfff, 0);
		assert_int_equal(entry(c, 4, 3)->eax >> 14 & 0xfff, last);
		assert_int_equal(entry(c, 0xb, 0)->ebx, 1);
		assert_int_equal(entry(c, 0xb, 1)->ebx, vcpus);
		assert_true(1u << entry(c, 0xb, 1)->eax >= vcpus);
		assert_int_equal(entry(c, 0xb, 1)->edx, last);
		assert_int_equal(entry(c, 0x80000008, 0)->ecx & 0xff, last);
		assert_int_equal(entry(c, 0x8000001e, 0)->eax, last);
		// Twice is once.
		uint32_t n = c->nent;
		cpuid_set_topology(c, last, vcpus);
		assert_int_equal(c->nent, n);
		free(c);
	}
}

static void test_cpuid_check(void **state) {
	struct error e;
	struct kvm_cpuid2 *saved = sample_cpuid("GenuineIntel"), *host = sample_cpuid("GenuineIntel"), *amd = sample_cpuid("AuthenticAMD");
	assert_int_equal(cpuid_check(saved, host, &e), 0);
	assert_int_equal(cpuid_check(saved, amd, &e), -ENOTSUP);
	assert_non_null(strstr(e.message, "GenuineIntel"));
	static const struct {
		uint32_t function, index, bit;
		char reg;
		const char *name;
	} cases[] = {{1, 0, 28, 'c', "'avx'"},
		     {7, 0, 5, 'b', "'avx2'"},
		     {7, 0, 16, 'b', "'avx512f'"},
		     {0x80000001, 0, 5, 'c', "'abm'"},
		     {0xd, 0, 2, 'a', "'avx state'"},
		     {0x40000001, 0, 3, 'a', "'kvm-clock'"},
		     {7, 0, 31, 'c', "cpuid 0x7.0 ecx bit 31"}};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvm_cpuid_entry2 *x = entry(host, cases[i].function, cases[i].index);
		uint32_t *reg = cases[i].reg == 'a' ? &x->eax : cases[i].reg == 'b' ? &x->ebx : &x->ecx;
		*reg &= ~(1u << cases[i].bit);
		assert_int_equal(cpuid_check(saved, host, &e), -ENOTSUP);
		if (strstr(e.message, cases[i].name) == NULL)
			fail_msg("%s: %s", cases[i].name, e.message);
		assert_int_equal(cpuid_check(host, saved, &e), 0); // more than needed is fine
		*reg |= 1u << cases[i].bit;
	}
	free(saved);
	free(host);
	free(amd);
}

static void test_cpuid_round_trip(void **state) {
	struct kvm_cpuid2 *c = sample_cpuid("GenuineIntel"), *loaded = cpuid_new();
	uint8_t room[4 + CPUID_ENTRIES_MAX * 28];
	struct writer w = writer_over(room, sizeof(room));
	cpuid_save(c, &w);
	size_t size = sizeof(room) - w.left;
	struct reader r = reader_over(room, size);
	assert_int_equal(cpuid_load(loaded, &r), 0);
	assert_int_equal(loaded->nent, c->nent);
	assert_memory_equal(loaded->entries, c->entries, c->nent * sizeof(c->entries[0]));
	for (size_t n = 0; n < size; n++) {
		r = reader_over(room, n);
		assert_true(cpuid_load(loaded, &r) < 0);
	}
	uint32_t too_many = CPUID_ENTRIES_MAX + 1;
	memcpy(room, &too_many, 4);
	r = reader_over(room, sizeof(room));
	assert_true(cpuid_load(loaded, &r) < 0);
	free(c);
	free(loaded);
}

static void select_write(struct ioapic *a, uint32_t index, uint32_t value) {
	ioapic_write(a, 0, index);
	ioapic_write(a, 0x10, value);
}

static uint32_t select_read(struct ioapic *a, uint32_t index) {
	ioapic_write(a, 0, index);
	return ioapic_read(a, 0x10);
}

static void test_ioapic(void **state) {
	struct ioapic a, b;
	ioapic_init(&a, -1); // no VM: what it delivers goes nowhere
	assert_int_equal(select_read(&a, 1), 0x170011);
	for (uint32_t pin = 0; pin < IOAPIC_PINS; pin++)
		assert_int_equal(select_read(&a, 0x10 + 2 * pin), 0x10000);
	// A pulse on a masked line waits for the unmasking.
	ioapic_pulse(&a, 5);
	ioapic_pulse(&a, 99);
	assert_int_equal(a.pending, 1u << 5);
	select_write(&a, 0x10 + 11, 0x03000000);
	select_write(&a, 0x10 + 10, 0x10050);
	assert_int_equal(a.pending, 1u << 5);
	select_write(&a, 0x10 + 10, 0x50);
	assert_int_equal(a.pending, 0);
	assert_int_equal(select_read(&a, 0x10 + 10), 0x50);
	assert_int_equal(select_read(&a, 0x10 + 11), 0x03000000);
	// Read-only bits, and registers that are not there.
	select_write(&a, 0x10, 0xffffffff);
	assert_int_equal(select_read(&a, 0x10), 0xffffffff & ~(1u << 12 | 1u << 14));
	select_write(&a, 0xff, 0xffffffff);
	assert_int_equal(select_read(&a, 0xff), 0);
	assert_int_equal(ioapic_read(&a, 0x20), 0);
	uint8_t room[16 + IOAPIC_PINS * 8];
	struct writer w = writer_over(room, sizeof(room));
	ioapic_save(&a, &w);
	assert_true(!w.bad && w.left == 0);
	ioapic_init(&b, -1);
	struct reader r = reader_over(room, sizeof(room));
	assert_true(ioapic_load(&b, &r));
	assert_memory_equal(a.redirections, b.redirections, sizeof(a.redirections));
	r = reader_over(room, sizeof(room) - 1);
	assert_false(ioapic_load(&b, &r));
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_dsdt_is_well_formed), cmocka_unit_test(test_dsdt_disassembles),
		cmocka_unit_test(test_aml_lengths),         cmocka_unit_test(test_cpuid_filter),
		cmocka_unit_test(test_cpuid_topology),      cmocka_unit_test(test_cpuid_check),
		cmocka_unit_test(test_cpuid_round_trip),    cmocka_unit_test(test_ioapic),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
