// Damaged, cut off and foreign snapshots: each is refused with a message that says what is wrong, and none ends or confuses the VMM.
#include "vm_test.h"

#include "base/io.h"
#include "stasis/snapshot.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

static struct snapshot image;
static uint8_t *state_bytes, *layer_bytes;
static size_t state_size, layer_table;

static uint8_t *bytes_of(int fd, size_t *ret) {
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	*ret = (size_t)st.st_size;
	uint8_t *data = malloc(*ret);
	assert_non_null(data);
	assert_int_equal(pread_full(fd, data, *ret, 0), 0);
	return data;
}

static int make_image(void **state) {
	struct vmm v;
	size_t from = 0, size;
	start_guest(&v, 64, 1, "restored");
	if (!console_wait(&v, "ready\n", &from))
		return -1;
	image = take_snapshot(&v, 0);
	state_bytes = bytes_of(image.state, &state_size);
	layer_bytes = bytes_of(image.memory, &size);
	struct stasis_layer_header h;
	memcpy(&h, layer_bytes, sizeof(h));
	layer_table = sizeof(h) + h.extent_count * sizeof(struct stasis_layer_extent);
	return 0;
}

static int restore_bytes(struct vmm *v, const void *data, size_t size, struct vmm_reply *reply) {
	int fd = memory_file("state");
	assert_int_equal(write_full(fd, data, size), 0);
	int r = vmm_restore_call(v, fd, &image.memory, 1, VMM_RESTORE_PAUSED, reply);
	close(fd);
	return r;
}

static void fix_checksum(uint8_t *data, size_t size) {
	size_t at = offsetof(struct stasis_state_header, checksum);
	memset(data + at, 0, 8);
	uint64_t sum = XXH3_64bits(data, size);
	memcpy(data + at, &sum, 8);
}

// A bit of every byte, in one VMM: what is refused because of its checksum has touched nothing.
static void test_every_byte_flipped(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	for (size_t i = 0; i < state_size; i++) {
		state_bytes[i] ^= (uint8_t)(1u << i % 8);
		int r = restore_bytes(&v, state_bytes, state_size, &reply);
		state_bytes[i] ^= (uint8_t)(1u << i % 8);
		if (r != -EBADMSG && r != -EPROTONOSUPPORT && r != -ENOEXEC)
			fail_msg("byte %zu: %d %s", i, r, reply.text);
		assert_true(reply.text[0] != '\0');
	}
	assert_int_equal(restore_bytes(&v, state_bytes, state_size, &reply), 0);
	vmm_end(&v);
}

static void test_every_length(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	for (size_t size = 0; size < state_size; size += size < 64 ? 1 : 61) {
		assert_int_equal(restore_bytes(&v, state_bytes, size, &reply), -EBADMSG);
		assert_non_null(strstr(reply.text, "cut off"));
	}
	uint8_t *longer = calloc(1, state_size + 8);
	memcpy(longer, state_bytes, state_size);
	assert_int_equal(restore_bytes(&v, longer, state_size + 8, &reply), -EBADMSG);
	free(longer);
	vmm_end(&v);
}

// Restores the state after a change that keeps its checksum right.
static int restore_changed(size_t at, const void *with, size_t size, struct vmm_reply *reply) {
	struct vmm v;
	uint8_t *copy = malloc(state_size);
	memcpy(copy, state_bytes, state_size);
	memcpy(copy + at, with, size);
	fix_checksum(copy, state_size);
	assert_int_equal(vmm_spawn(&v, vmm_program, -1, -1), 0);
	int r = restore_bytes(&v, copy, state_size, reply);
	assert_true(vmm_alive(&v));
	vmm_end(&v);
	free(copy);
	return r;
}

static size_t section_at(uint32_t tag, size_t *ret_size) {
	for (size_t at = sizeof(struct stasis_state_header); at < state_size;) {
		struct stasis_section s;
		memcpy(&s, state_bytes + at, sizeof(s));
		if (s.tag == tag) {
			if (ret_size != NULL)
				*ret_size = s.bytes;
			return at;
		}
		at += sizeof(s) + (s.bytes + 7) / 8 * 8;
	}
	fail_msg("the state has no such section");
	return 0;
}

static void test_newer_version(void **state) {
	struct vmm_reply reply;
	uint32_t version = STASIS_STATE_VERSION + 1;
	assert_int_equal(restore_changed(offsetof(struct stasis_state_header, version), &version, 4, &reply), -EPROTONOSUPPORT);
	assert_non_null(strstr(reply.text, "newer Stasis"));
}

static void test_other_architecture(void **state) {
	struct vmm_reply reply;
	uint32_t arm = STASIS_ARCHITECTURE_ARM64;
	assert_int_equal(restore_changed(offsetof(struct stasis_state_header, architecture), &arm, 4, &reply), -ENOEXEC);
	assert_non_null(strstr(reply.text, "arm64"));
}

static void test_unknown_section(void **state) {
	struct vmm_reply reply;
	assert_int_equal(restore_changed(section_at(STASIS_SECTION_SERIAL, NULL), "ABCD", 4, &reply), -ENOTSUP);
	assert_non_null(strstr(reply.text, "'ABCD'"));
}

static void test_missing_sections(void **state) {
	static const uint32_t tags[] = {STASIS_SECTION_MEMORY, STASIS_SECTION_DEVICES, STASIS_SECTION_VIRTIO, STASIS_SECTION_SERIAL,
					STASIS_SECTION_CPUID,  STASIS_SECTION_CLOCK,   STASIS_SECTION_IOAPIC, STASIS_SECTION_VCPU};
	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		struct vmm_reply reply;
		uint32_t instance = 77;
		assert_int_equal(restore_changed(section_at(tags[i], NULL) + 4, &instance, 4, &reply), -ENODATA);
		assert_non_null(strstr(reply.text, "has no section"));
	}
}

static void test_sections_cut_off(void **state) {
	static const uint32_t tags[] = {STASIS_SECTION_MEMORY, STASIS_SECTION_DEVICES, STASIS_SECTION_VIRTIO, STASIS_SECTION_SERIAL,
					STASIS_SECTION_CPUID,  STASIS_SECTION_CLOCK,   STASIS_SECTION_IOAPIC, STASIS_SECTION_VCPU};
	for (size_t i = 0; i < sizeof(tags) / sizeof(tags[0]); i++) {
		struct vmm_reply reply;
		size_t size = 0, at = section_at(tags[i], &size);
		// Shorter by up to the padding: the frames still fit, the content does not.
		uint64_t less = size % 8 == 0 ? size - 7 : size - size % 8 + 1;
		if (less >= size)
			continue;
		int r = restore_changed(at + 8, &less, 8, &reply);
		if (r >= 0)
			fail_msg("section %zu: %s", i, reply.text);
		assert_true(reply.text[0] != '\0');
	}
}

static void test_cpu_without_a_feature(void **state) {
	static const struct {
		uint32_t function, reg, bit;
		const char *name;
	} cases[] = {{0x1, 2, 5, "cpuid 0x1"}, {0x80000001, 2, 2, "cpuid 0x80000001"}, {0x80000007, 3, 8, "cpuid 0x80000007"}};
	size_t at = section_at(STASIS_SECTION_CPUID, NULL) + sizeof(struct stasis_section);
	uint32_t count;
	memcpy(&count, state_bytes + at, 4);
	for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
		// What the VMM never shows stands for what another CPU has.
		for (uint32_t i = 0; i < count; i++) {
			uint32_t entry[7];
			size_t entry_at = at + 4 + i * sizeof(entry);
			memcpy(entry, state_bytes + entry_at, sizeof(entry));
			if (entry[0] != cases[c].function)
				continue;
			struct vmm_reply reply;
			entry[3 + cases[c].reg] |= 1u << cases[c].bit;
			assert_int_equal(restore_changed(entry_at, entry, sizeof(entry), &reply), -ENOTSUP);
			assert_non_null(strstr(reply.text, cases[c].name));
		}
	}
}

static void test_other_vendor(void **state) {
	size_t at = section_at(STASIS_SECTION_CPUID, NULL) + sizeof(struct stasis_section) + 4;
	struct vmm_reply reply;
	uint32_t entry[7];
	memcpy(entry, state_bytes + at, sizeof(entry));
	assert_int_equal(entry[0], 0); // leaf 0 comes first
	memcpy(&entry[4], "Some", 4);
	assert_int_equal(restore_changed(at, entry, sizeof(entry), &reply), -ENOTSUP);
	assert_non_null(strstr(reply.text, "made on a CPU of Some"));
}

// Well-formed, but random content: whatever KVM makes of it, the VMM lives and answers.
static void test_random_vcpu_state(void **state) {
	size_t size = 0, at = section_at(STASIS_SECTION_VCPU, &size) + sizeof(struct stasis_section);
	unsigned seed = 1;
	for (int i = 0; i < 60; i++) {
		uint8_t junk[8];
		for (size_t n = 0; n < sizeof(junk); n++)
			junk[n] = (uint8_t)rand_r(&seed);
		struct vmm_reply reply;
		restore_changed(at + (size_t)rand_r(&seed) % (size - sizeof(junk)), junk, sizeof(junk), &reply);
	}
}

static void test_damaged_layer(void **state) {
	for (size_t i = 0; i < layer_table; i += i < 96 ? 1 : 7) {
		struct vmm v;
		struct vmm_reply reply;
		int copy = copy_file(image.memory);
		uint8_t byte = layer_bytes[i] ^ (uint8_t)(1u << i % 8);
		assert_int_equal(pwrite_full(copy, &byte, 1, i), 0);
		struct snapshot damaged = {.state = image.state, .memory = copy};
		int r = restore_into(&v, &damaged, NULL, VMM_RESTORE_PAUSED, &reply);
		if (r >= 0)
			fail_msg("byte %zu of the memory layer", i);
		assert_non_null(strstr(reply.text, "memory layer"));
		assert_true(vmm_alive(&v));
		vmm_end(&v);
		close(copy);
	}
}

static void test_cut_off_layer(void **state) {
	struct stat st;
	assert_int_equal(fstat(image.memory, &st), 0);
	const off_t sizes[] = {0, 1, 79, 80, (off_t)layer_table - 1, (off_t)layer_table, 4096, st.st_size - 4096, st.st_size - 1};
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct vmm v;
		struct vmm_reply reply;
		int copy = copy_file(image.memory);
		assert_int_equal(ftruncate(copy, sizes[i]), 0);
		struct snapshot damaged = {.state = image.state, .memory = copy};
		assert_int_equal(restore_into(&v, &damaged, NULL, VMM_RESTORE_PAUSED, &reply), -EBADMSG);
		assert_non_null(strstr(reply.text, "cut off"));
		vmm_end(&v);
		close(copy);
	}
}

static void test_disk_full(void **state) {
	struct vmm v;
	struct vmm_reply reply;
	assert_int_equal(restore_into(&v, &image, NULL, VMM_RESTORE_PAUSED, &reply), 0);
	// A descriptor that cannot be written stands for a disk that is full.
	int a = memory_file("state"), b = memory_file("memory");
	char path[64];
	snprintf(path, sizeof(path), "/proc/self/fd/%d", b);
	int read_only = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(read_only >= 0);
	assert_true(vmm_snapshot_call(&v, 0, a, read_only, &reply) < 0);
	assert_non_null(strstr(reply.text, "memory layer"));
	assert_int_equal(vmm_snapshot_call(&v, 0, a, b, &reply), 0); // it can be tried again
	assert_int_equal(vmm_simple(&v, VMM_RESUME, &reply), 0);
	expect_exit(&v, VMM_EXIT_POWEROFF);
	vmm_end(&v);
	close(a);
	close(b);
	close(read_only);
}

int main(int argc, char **argv) {
	vm_test_start(argc, argv);
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_byte_flipped), cmocka_unit_test(test_every_length),
		cmocka_unit_test(test_newer_version),      cmocka_unit_test(test_other_architecture),
		cmocka_unit_test(test_unknown_section),    cmocka_unit_test(test_missing_sections),
		cmocka_unit_test(test_sections_cut_off),   cmocka_unit_test(test_cpu_without_a_feature),
		cmocka_unit_test(test_other_vendor),       cmocka_unit_test(test_random_vcpu_state),
		cmocka_unit_test(test_damaged_layer),      cmocka_unit_test(test_cut_off_layer),
		cmocka_unit_test(test_disk_full),
	};
	return cmocka_run_group_tests(tests, make_image, NULL);
}
