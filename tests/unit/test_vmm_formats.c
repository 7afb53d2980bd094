// The VMM's file formats without KVM: memory layers written from and mapped into plain memory, state files, the console log, the serial port.
// clang-format off
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
// clang-format on

#include "base/io.h"
#include "vmm/console.h"
#include "vmm/layer.h"
#include "vmm/page_set.h"
#include "vmm/serial.h"
#include "vmm/state_file.h"
#include "vmm/working_set.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define LOW_PAGES 4096
#define HIGH_PAGES 2048
#define HIGH_AT (UINT64_C(1) << 32)

static int pagemap;

static struct memory memory_new(void) {
	struct memory m = {.count = 2, .size = (LOW_PAGES + HIGH_PAGES) * (uint64_t)PAGE_BYTES};
	m.regions[0] = (struct memory_region){.guest = 0, .size = LOW_PAGES * (uint64_t)PAGE_BYTES};
	m.regions[1] = (struct memory_region){.guest = HIGH_AT, .size = HIGH_PAGES * (uint64_t)PAGE_BYTES};
	for (int i = 0; i < 2; i++) {
		void *p = mmap(NULL, m.regions[i].size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		assert_true(p != MAP_FAILED);
		m.regions[i].host = p;
	}
	return m;
}

static void memory_end(struct memory *m, struct layers *l) {
	for (int i = 0; i < 2; i++)
		munmap(m->regions[i].host, m->regions[i].size);
	free(l->base);
	free(l->own);
	*l = (struct layers){.count = 0};
}

static uint64_t *page_of(const struct memory *m, uint64_t index) {
	uint64_t at;
	const struct memory_region *r = page_region(m, index, &at);
	return (uint64_t *)(void *)(r->host + at * PAGE_BYTES);
}

static int file_new(void) {
	int fd = memfd_create("layer", MFD_CLOEXEC);
	assert_true(fd >= 0);
	return fd;
}

static off_t size_of(int fd) {
	struct stat st;
	assert_int_equal(fstat(fd, &st), 0);
	return st.st_size;
}

struct model {
	uint64_t words[LOW_PAGES + HIGH_PAGES]; // first word of each page; 0: the page is zero
};

static void change(struct memory *m, struct model *model, unsigned *seed, int writes) {
	for (int i = 0; i < writes; i++) {
		uint64_t first = (uint64_t)rand_r(seed) % (LOW_PAGES + HIGH_PAGES),
			 count = 1 + (uint64_t)rand_r(seed) % (i % 7 == 0 ? 100 : 3);
		for (uint64_t p = first; p < first + count && p < LOW_PAGES + HIGH_PAGES; p++) {
			uint64_t word = rand_r(seed) % 4 == 0 ? 0 : (uint64_t)rand_r(seed) + 1;
			*page_of(m, p) = model->words[p] = word;
		}
	}
}

static void expect_model(const struct memory *m, const struct model *model) {
	for (uint64_t p = 0; p < LOW_PAGES + HIGH_PAGES; p++)
		if (*page_of(m, p) != model->words[p])
			fail_msg("page %llu is 0x%llx instead of 0x%llx", (unsigned long long)p, (unsigned long long)*page_of(m, p),
				 (unsigned long long)model->words[p]);
}

// Image, then life after life: write at random, take the difference, map both, compare every page.
static void test_layers_over_many_lives(void **state) {
	for (unsigned run = 1; run <= 10; run++) {
		unsigned seed = run;
		struct error e = {.message = ""};
		static struct model model;
		memset(&model, 0, sizeof(model));
		struct memory m = memory_new();
		struct layers l = {.count = 0};
		uint8_t ids[2][STASIS_ID_BYTES];
		change(&m, &model, &seed, run == 1 ? 0 : 60);
		int base = file_new(), own = -1;
		assert_int_equal(memory_layer_write(&l, &m, pagemap, base, false, ids[0], &e), 0);
		memory_end(&m, &l);
		for (int life = 0; life < 5; life++) {
			m = memory_new();
			int fds[2] = {base, own};
			int r = memory_layers_restore(&l, &m, fds, own < 0 ? 1 : 2, ids, &e);
			if (r < 0)
				fail_msg("%s", e.message);
			if (life % 2 == 0)
				expect_model(&m, &model);
			change(&m, &model, &seed, life == 3 ? 0 : 30);
			int next = file_new();
			r = memory_layer_write(&l, &m, pagemap, next, true, ids[1], &e);
			if (r < 0)
				fail_msg("%s", e.message);
			expect_model(&m, &model);
			if (own >= 0)
				close(own);
			own = next;
			memory_end(&m, &l);
		}
		// What a full layer of the last life says is the same.
		m = memory_new();
		int fds[2] = {base, own}, full = file_new();
		assert_int_equal(memory_layers_restore(&l, &m, fds, 2, ids, &e), 0);
		assert_int_equal(memory_layer_write(&l, &m, pagemap, full, false, ids[0], &e), 0);
		memory_end(&m, &l);
		m = memory_new();
		assert_int_equal(memory_layers_restore(&l, &m, &full, 1, ids, &e), 0);
		expect_model(&m, &model);
		memory_end(&m, &l);
		close(base);
		close(own);
		close(full);
	}
}

static void test_untouched_memory_takes_nothing(void **state) {
	struct memory m = memory_new();
	struct layers l = {.count = 0};
	uint8_t id[1][STASIS_ID_BYTES];
	int fd = file_new();
	assert_int_equal(memory_layer_write(&l, &m, pagemap, fd, false, id[0], NULL), 0);
	assert_true(size_of(fd) <= PAGE_BYTES);
	// Looking has not made it exist.
	uint64_t entries[LOW_PAGES];
	assert_int_equal(pread_full(pagemap, entries, sizeof(entries), (uintptr_t)m.regions[0].host / PAGE_BYTES * 8), 0);
	for (int i = 0; i < LOW_PAGES; i++)
		assert_int_equal(entries[i] >> 62, 0);
	assert_int_equal(memory_layers_restore(&l, &m, &fd, 1, id, NULL), 0);
	memory_end(&m, &l);
	close(fd);
}

static void test_full_memory(void **state) {
	struct memory m = memory_new();
	struct layers l = {.count = 0};
	uint8_t id[1][STASIS_ID_BYTES];
	int fd = file_new();
	for (int i = 0; i < 2; i++)
		memset(m.regions[i].host, 0x5a, m.regions[i].size);
	assert_int_equal(memory_layer_write(&l, &m, pagemap, fd, false, id[0], NULL), 0);
	struct stasis_layer_header h;
	struct stasis_layer_extent *x;
	assert_int_equal(memory_layer_read_table(fd, &m, &h, &x, NULL), 0);
	assert_int_equal(h.extent_count, 2); // never across the hole
	assert_int_equal(x[1].first_page, HIGH_AT / PAGE_BYTES);
	free(x);
	memory_end(&m, &l);
	close(fd);
}

// The worst case for extents: every other page. An image's layer closes the gaps; the difference keeps within its bound.
static void test_every_other_page(void **state) {
	struct memory m = memory_new();
	struct layers l = {.count = 0};
	uint8_t ids[2][STASIS_ID_BYTES];
	int base = file_new(), own = file_new();
	for (uint64_t p = 0; p < LOW_PAGES; p += 2)
		*page_of(&m, p) = p + 1;
	assert_int_equal(memory_layer_write(&l, &m, pagemap, base, false, ids[0], NULL), 0);
	memory_end(&m, &l);
	m = memory_new();
	assert_int_equal(memory_layers_restore(&l, &m, &base, 1, ids, NULL), 0);
	assert_true(l.base_count <= 32);
	for (uint64_t p = 1; p < LOW_PAGES; p += 2)
		*page_of(&m, p) = p + 1;
	for (uint64_t p = 0; p < LOW_PAGES; p += 4)
		*page_of(&m, p) = 0;
	assert_int_equal(memory_layer_write(&l, &m, pagemap, own, true, ids[1], NULL), 0);
	memory_end(&m, &l);
	m = memory_new();
	assert_int_equal(memory_layers_restore(&l, &m, (int[]){base, own}, 2, ids, NULL), 0);
	for (uint64_t p = 0; p < LOW_PAGES; p++)
		assert_int_equal(*page_of(&m, p), p % 4 == 0 ? 0 : p + 1);
	memory_end(&m, &l);
	close(base);
	close(own);
}

static void test_without_pagemap(void **state) {
	struct memory m = memory_new();
	struct layers l = {.count = 0};
	struct error e;
	uint8_t id[1][STASIS_ID_BYTES];
	int fd = file_new();
	*page_of(&m, 17) = 1;
	assert_int_equal(memory_layer_write(&l, &m, -1, fd, false, id[0], &e), 0);
	assert_int_equal(memory_layer_write(&l, &m, -1, fd, true, id[0], &e), -EINVAL);
	assert_int_equal(memory_layers_restore(&l, &m, &fd, 1, id, &e), 0);
	assert_int_equal(*page_of(&m, 17), 1);
	assert_int_equal(memory_layer_write(&l, &m, -1, fd, true, id[0], &e), -ENOTSUP);
	assert_non_null(strstr(e.message, "/proc/self/pagemap"));
	memory_end(&m, &l);
	close(fd);
}

static void test_state_file(void **state) {
	struct state_writer w;
	state_writer_init(&w, STASIS_ARCHITECTURE_X86_64);
	struct writer p = state_open(&w, STASIS_SECTION_CLOCK, 0, 8);
	write_u64(&p, 42);
	assert_int_equal(state_close(&w, &p), 0);
	p = state_open(&w, STASIS_SECTION_SERIAL, 0, 4); // too little room: taken back
	write_u64(&p, 1);
	assert_int_equal(state_close(&w, &p), -ENOSPC);
	p = state_open(&w, STASIS_SECTION_VCPU, 3, 100000); // larger than the buffer was
	for (int i = 0; i < 99999; i++)
		write_u8(&p, (uint8_t)i);
	assert_int_equal(state_close(&w, &p), 0);
	int fd = file_new();
	struct error e;
	assert_int_equal(state_write(&w, fd, &e), 0);
	state_writer_free(&w);
	struct state_file f;
	struct reader r;
	assert_int_equal(state_read(fd, STASIS_ARCHITECTURE_X86_64, &f, &e), 0);
	assert_int_equal(f.count, 2);
	assert_int_equal(state_find(&f, STASIS_SECTION_CLOCK, 0, &r, &e), 0);
	assert_int_equal(read_u64(&r), 42);
	assert_int_equal(r.left, 0);
	assert_int_equal(state_find(&f, STASIS_SECTION_VCPU, 3, &r, &e), 0);
	assert_int_equal(r.left, 99999);
	assert_int_equal(state_find(&f, STASIS_SECTION_VCPU, 0, &r, &e), -ENODATA);
	assert_int_equal(state_find(&f, STASIS_SECTION_SERIAL, 0, &r, &e), -ENODATA);
	state_file_free(&f);
	assert_int_equal(state_read(fd, STASIS_ARCHITECTURE_ARM64, &f, &e), -ENOEXEC);
	close(fd);
}

static void test_state_twice_the_same_section(void **state) {
	struct state_writer w;
	struct error e;
	state_writer_init(&w, STASIS_ARCHITECTURE_X86_64);
	for (int i = 0; i < 2; i++) {
		struct writer p = state_open(&w, STASIS_SECTION_CLOCK, 0, 8);
		write_u64(&p, 42);
		assert_int_equal(state_close(&w, &p), 0);
	}
	int fd = file_new();
	assert_int_equal(state_write(&w, fd, &e), 0);
	state_writer_free(&w);
	struct state_file f;
	assert_int_equal(state_read(fd, STASIS_ARCHITECTURE_X86_64, &f, &e), -EBADMSG);
	assert_non_null(strstr(e.message, "twice"));
	close(fd);
}

static void test_console(void **state) {
	struct console c;
	int fd = file_new();
	char line[64], text[8192];
	console_open(&c, fd, 0); // the least: 4096
	for (int i = 0; i < 1000; i++) {
		int n = snprintf(line, sizeof(line), "line %d\n", i);
		for (int k = 0; k < n; k++)
			console_put(&c, (uint8_t)line[k]);
		assert_true(size_of(fd) <= 4096);
	}
	console_put(&c, 'x');
	console_flush(&c);
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);
	assert_true(n >= 2000);
	text[n] = '\0';
	assert_non_null(strstr(text, "line 999\nx"));
	assert_int_equal(c.total, 8891);
	// Another VMM goes on at its end.
	console_open(&c, fd, 4096);
	console_put(&c, 'y');
	console_flush(&c);
	assert_int_equal(pread(fd, line, 2, c.size - 2), 2);
	assert_memory_equal(line, "xy", 2);
	// Nowhere to write to is fine.
	console_open(&c, -1, 4096);
	console_put(&c, '\n');
	close(fd);
}

static void test_serial(void **state) {
	struct serial s = {.scratch = 0}, loaded;
	struct console c = {.fd = -1};
	assert_int_equal(serial_read(&s, 5), 0x60);
	assert_false(serial_write(&s, &c, 0, 'a'));
	assert_int_equal(c.total, 1);
	assert_true(serial_write(&s, &c, 1, 2)); // the transmitter is empty: interrupt at once
	assert_int_equal(serial_read(&s, 2), 2);
	assert_int_equal(serial_read(&s, 2), 1); // reading has cleared it
	assert_true(serial_write(&s, &c, 0, 'b'));
	serial_write(&s, &c, 3, 0x83); // divisor latch
	assert_false(serial_write(&s, &c, 0, 12));
	assert_int_equal(c.total, 2);
	assert_int_equal(serial_read(&s, 0), 12);
	serial_write(&s, &c, 3, 3);
	serial_write(&s, &c, 4, 0x1f); // loop-back: nothing gets out
	serial_write(&s, &c, 0, 'c');
	assert_int_equal(c.total, 2);
	assert_int_equal(serial_read(&s, 6), 0xf0);
	uint8_t room[SERIAL_SAVE_BYTES];
	struct writer w = writer_over(room, sizeof(room));
	serial_save(&s, &w);
	assert_false(w.bad);
	struct reader r = reader_over(room, sizeof(room));
	assert_true(serial_load(&loaded, &r));
	assert_memory_equal(&loaded, &s, sizeof(s));
	r = reader_over(room, sizeof(room) - 1);
	assert_false(serial_load(&loaded, &r));
}

// Pages that are read one by one, as by a guest, and pages that are written: exactly those, although the kernel maps more around a read.
static void test_working_set(void **state) {
	struct error e = {.message = ""};
	struct memory m = memory_new();
	struct layers l = {.count = 0};
	uint8_t ids[1][STASIS_ID_BYTES];
	for (uint64_t p = 0; p < 600; p++)
		*page_of(&m, p) = p + 1;
	int base = file_new(), file = file_new();
	assert_int_equal(memory_layer_write(&l, &m, pagemap, base, false, ids[0], &e), 0);
	memory_end(&m, &l);
	m = memory_new();
	assert_int_equal(memory_layers_restore(&l, &m, &base, 1, ids, &e), 0);
	assert_int_equal(working_set_record(&l, &m, &e), 0);
	const uint64_t used[] = {3, 17, 18, 19, 300, LOW_PAGES + 5};
	for (size_t i = 0; i < sizeof(used) / sizeof(used[0]); i++)
		assert_int_equal(*(volatile uint64_t *)page_of(&m, used[i]), used[i] < 600 ? used[i] + 1 : 0);
	*page_of(&m, 19) = 7;
	*page_of(&m, LOW_PAGES - 1) = 7;
	assert_int_equal(working_set_write(&l, &m, pagemap, file, &e), 0);
	struct stasis_working_set_run *runs;
	uint32_t count;
	if (working_set_read(file, &l, &m, &runs, &count, &e) < 0)
		fail_msg("%s", e.message);
	static const struct stasis_working_set_run expected[] = {{3, 1, 0}, {17, 2, 0}, {19, 1, 1}, {300, 1, 0}, {LOW_PAGES - 1, 1, 1}};
	assert_int_equal(count, 6);
	assert_memory_equal(runs, expected, sizeof(expected));
	assert_ptr_equal(memory_at(&m, runs[5].first_page * PAGE_BYTES, PAGE_BYTES), page_of(&m, LOW_PAGES + 5));
	free(runs);

	struct layers other = l;
	other.ids[0][0] ^= 1;
	assert_int_equal(working_set_read(file, &other, &m, &runs, &count, &e), -ESTALE);
	assert_int_equal(ftruncate(file, size_of(file) - 1), 0);
	assert_int_equal(working_set_read(file, &l, &m, &runs, &count, &e), -EBADMSG);
	assert_int_equal(ftruncate(file, 40), 0);
	assert_int_equal(working_set_read(file, &l, &m, &runs, &count, &e), -EBADMSG);
	assert_int_equal(ftruncate(file, 0), 0);
	assert_int_equal(working_set_write(&l, &m, pagemap, file, &e), 0);
	uint8_t byte;
	assert_int_equal(pread(file, &byte, 1, 60), 1);
	byte ^= 1;
	assert_int_equal(pwrite(file, &byte, 1, 60), 1);
	assert_int_equal(working_set_read(file, &l, &m, &runs, &count, &e), -EBADMSG);
	assert_int_equal(working_set_write(&l, &m, -1, file, &e), -ENOTSUP);
	memory_end(&m, &l);
	close(base);
	close(file);
}

int main(void) {
	pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		return 77;
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_layers_over_many_lives),
		cmocka_unit_test(test_untouched_memory_takes_nothing),
		cmocka_unit_test(test_full_memory),
		cmocka_unit_test(test_every_other_page),
		cmocka_unit_test(test_without_pagemap),
		cmocka_unit_test(test_working_set),
		cmocka_unit_test(test_state_file),
		cmocka_unit_test(test_state_twice_the_same_section),
		cmocka_unit_test(test_console),
		cmocka_unit_test(test_serial),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
