// The block device through its queue: the three modes, every request, what is refused, errors of the file below, snapshots, and what a power cut
// leaves of a layer. For the last one this program's own fdatasync() stands before the system's and remembers what is durable.
#include "test_virtio_driver.h"

#include "base/wire.h"
#include "vmm/virtio/block.h"

#include <fcntl.h>
#include <linux/virtio_blk.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define ALL (~0ull)
#define HEADERS 0x700000u
#define STATUSES 0x780000u
#define DATA 0x800000u
#define RANGES 0x6f0000u

struct blk {
	struct rig rig;
	struct vq q;
	unsigned turn;
};

static int memory_file(const void *data, size_t size) {
	int fd = memfd_create("disk", MFD_CLOEXEC);
	assert_true(fd >= 0);
	if (size > 0)
		assert_int_equal(pwrite(fd, data, size, 0), size);
	return fd;
}

static int patterned(size_t size, uint8_t seed) {
	uint8_t *p = malloc(size);
	for (size_t i = 0; i < size; i++)
		p[i] = (uint8_t)(i / 512 * 7 + i + seed);
	int fd = memory_file(p, size);
	free(p);
	return fd;
}

static struct virtio_device *make(struct rig *r, uint32_t flags, uint64_t size, int base, int layer) {
	struct vmm_block config = {.serial = "image", .flags = flags, .size = size};
	struct virtio_device *d = NULL;
	struct error e = {0};
	if (virtio_block_create(&r->host, 5, &config, base, layer, &d, &e) < 0)
		fail_msg("%s", e.message);
	return d;
}

static void drive(struct blk *b) {
	driver_begin(&b->rig, ALL);
	driver_queue(&b->rig, &b->q, 0, 128);
	driver_ok(&b->rig);
}

static void open_blk(struct blk *b, uint32_t flags, uint64_t size, int base, int layer) {
	memset(b, 0, sizeof(*b));
	rig_open(&b->rig);
	b->rig.device = make(&b->rig, flags, size, base, layer);
	drive(b);
}

static void start(struct blk *b, uint32_t type, uint64_t sector, uint64_t at, uint32_t bytes, bool reads) {
	unsigned slot = b->turn++ % 128;
	struct virtio_blk_outhdr h = {.type = type, .sector = sector};
	memcpy(rig_at(&b->rig, HEADERS + 16 * slot), &h, 16);
	*(uint8_t *)rig_at(&b->rig, STATUSES + slot) = 0xee;
	// Data in two pieces, so that no request is a single one.
	uint32_t half = bytes / 2;
	struct piece pieces[] = {
		{HEADERS + 16 * slot, 16, false}, {at, half, reads}, {at + half, bytes - half, reads}, {STATUSES + slot, 1, true}};
	vq_add_indirect(&b->q, pieces, 4);
	b->rig.next = b->rig.next - 64; // the table is used up behind vq_wait()
	vq_kick(&b->q);
}

static uint8_t request(struct blk *b, uint32_t type, uint64_t sector, uint64_t at, uint32_t bytes, bool reads) {
	uint32_t n;
	start(b, type, sector, at, bytes, reads);
	vq_wait(&b->q, &n);
	uint8_t status = *(uint8_t *)rig_at(&b->rig, STATUSES + (b->turn - 1) % 128);
	assert_true(n >= 1 && (!reads || status != 0 || n == bytes + 1));
	return status;
}

static uint8_t blk_read(struct blk *b, uint64_t sector, uint32_t bytes) {
	memset(rig_at(&b->rig, DATA), 0x5a, bytes);
	return request(b, VIRTIO_BLK_T_IN, sector, DATA, bytes, true);
}

static uint8_t blk_write(struct blk *b, uint64_t sector, uint32_t bytes, uint8_t with) {
	memset(rig_at(&b->rig, DATA), with, bytes);
	return request(b, VIRTIO_BLK_T_OUT, sector, DATA, bytes, false);
}

static uint8_t blk_flush(struct blk *b) {
	return request(b, VIRTIO_BLK_T_FLUSH, 0, DATA, 0, false);
}

static uint8_t blk_zero(struct blk *b, uint32_t type, uint64_t sector, uint32_t sectors, uint32_t flags) {
	struct virtio_blk_discard_write_zeroes range = {.sector = sector, .num_sectors = sectors, .flags = flags};
	memcpy(rig_at(&b->rig, RANGES), &range, sizeof(range));
	return request(b, type, 0, RANGES, sizeof(range), false);
}

static bool holds(struct blk *b, size_t n, uint8_t value) {
	const uint8_t *p = rig_at(&b->rig, DATA);
	for (size_t i = 0; i < n; i++) {
		if (p[i] != value)
			return false;
	}
	return true;
}

static void test_read_only(void **state) {
	struct blk b;
	// A file that ends within a sector; the disk goes on behind it with zeros.
	open_blk(&b, VMM_BLOCK_READ_ONLY, 16384, patterned(5000, 1), -1);
	assert_true((b.rig.features >> VIRTIO_BLK_F_RO & 1) != 0);
	assert_int_equal(reg_read(&b.rig, VIRTIO_MMIO_CONFIG), 32);
	assert_int_equal(blk_read(&b, 0, 16384), VIRTIO_BLK_S_OK);
	const uint8_t *p = rig_at(&b.rig, DATA);
	for (unsigned i = 0; i < 16384; i++)
		assert_int_equal(p[i], i < 5000 ? (uint8_t)(i / 512 * 7 + i + 1) : 0);
	assert_int_equal(blk_read(&b, 31, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_read(&b, 32, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_read(&b, 31, 1024), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_read(&b, UINT64_MAX, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_read(&b, UINT64_MAX / 512, 512), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_read(&b, 0, 100), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_write(&b, 0, 512, 1), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_flush(&b), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_DISCARD, 0, 8, 0), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(request(&b, 99, 0, DATA, 512, true), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(request(&b, VIRTIO_BLK_T_GET_ID, 0, DATA, 20, true), VIRTIO_BLK_S_OK);
	assert_memory_equal(p, "image\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20);
	assert_false(driver_needs_reset(&b.rig));
	rig_close(&b.rig);
	// An empty file is a disk without sectors.
	open_blk(&b, VMM_BLOCK_READ_ONLY, 0, memory_file("", 0), -1);
	assert_int_equal(reg_read(&b.rig, VIRTIO_MMIO_CONFIG), 0);
	assert_int_equal(blk_read(&b, 0, 512), VIRTIO_BLK_S_IOERR);
	rig_close(&b.rig);
}

static void test_malformed(void **state) {
	struct piece bad[][2] = {
		{{HEADERS, 15, false}, {STATUSES, 1, true}}, // header too short
		{{HEADERS, 16, false}, {STATUSES, 0, true}}, // no status
	};
	for (unsigned i = 0; i < 2; i++) {
		struct blk b;
		open_blk(&b, VMM_BLOCK_READ_ONLY, 0, patterned(8192, 0), -1);
		vq_add(&b.q, bad[i], 2);
		vq_kick(&b.q);
		rig_run(&b.rig, 1000);
		assert_true(driver_needs_reset(&b.rig));
		drive(&b);
		assert_int_equal(blk_read(&b, 0, 8192), VIRTIO_BLK_S_OK);
		rig_close(&b.rig);
	}
}

static void test_in_place(void **state) {
	struct blk b;
	int file = patterned(8192, 3);
	open_blk(&b, 0, 1 << 20, dup(file), -1);
	struct stat st;
	fstat(file, &st);
	assert_int_equal(st.st_size, 1 << 20);
	assert_int_equal(blk_write(&b, 3, 1024, 0x77), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_write(&b, 2047, 512, 0x78), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_write(&b, 2047, 1024, 0x79), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_flush(&b), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_read(&b, 3, 1024), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 1024, 0x77));
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, 4, 1, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_read(&b, 4, 512), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 512, 0));
	assert_int_equal(blk_read(&b, 3, 512), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 512, 0x77));
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_DISCARD, 0, 2048, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_DISCARD, 0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, 8, 2), VIRTIO_BLK_S_UNSUPP);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, 2047, 2, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, UINT64_MAX, 1, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_WRITE_ZEROES, 0, UINT32_MAX, 0), VIRTIO_BLK_S_IOERR);
	assert_int_equal(request(&b, VIRTIO_BLK_T_DISCARD, 0, RANGES, 15, false), VIRTIO_BLK_S_IOERR);
	struct vmm_stats s = {0};
	virtio_stats(b.rig.device, &s);
	assert_int_equal(s.block_written_bytes, 1536);
	assert_int_equal(s.block_flushes, 1);
	rig_close(&b.rig);
	assert_true(fstat(file, &st) == 0 && st.st_size == 1 << 20);
	close(file);
}

static void test_many_at_once(void **state) {
	struct blk b;
	open_blk(&b, 0, 1 << 20, memory_file("", 0), -1);
	// As many as the queue holds, without waiting; then a reset in the middle of the next lot.
	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 128; i++) {
			memset(rig_at(&b.rig, DATA + 4096 * i), (int)(i + round), 4096);
			uint64_t table = b.rig.next;
			start(&b, VIRTIO_BLK_T_OUT, 8 * (uint64_t)i, DATA + 4096 * i, 4096, false);
			b.rig.next = table + 64; // tables of requests under way stay
		}
		for (unsigned i = 0; i < 128; i++)
			vq_wait(&b.q, NULL);
		b.rig.next -= 128 * 64;
		for (unsigned i = 0; i < 128; i++) {
			assert_int_equal(blk_read(&b, 8 * (uint64_t)i, 512), VIRTIO_BLK_S_OK);
			assert_true(holds(&b, 512, (uint8_t)(i + round)));
		}
	}
	for (unsigned i = 0; i < 128; i++) {
		start(&b, VIRTIO_BLK_T_OUT, 8 * (uint64_t)i, DATA, 4096, false);
		b.rig.next += 64;
	}
	rig_run(&b.rig, 100);
	drive(&b);
	assert_int_equal(blk_read(&b, 0, 4096), VIRTIO_BLK_S_OK);
	assert_int_equal(vq_take(&b.q, NULL), -1);
	rig_close(&b.rig);
}

static void test_errors(void **state) {
	struct blk b;
	int base = patterned(1 << 20, 0), layer = memory_file("", 0);
	open_blk(&b, VMM_BLOCK_LAYERED, 0, base, dup(layer));
	struct rlimit before, tight = {.rlim_cur = 300000};
	getrlimit(RLIMIT_FSIZE, &before);
	tight.rlim_max = before.rlim_max;
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &tight), 0);
	assert_int_equal(blk_write(&b, 0, 65536, 1), VIRTIO_BLK_S_OK);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(blk_write(&b, 1024, 65536, 2), VIRTIO_BLK_S_IOERR);
	assert_int_equal(blk_write(&b, 1025, 512, 2), VIRTIO_BLK_S_IOERR);
	setrlimit(RLIMIT_FSIZE, &before);
	// What failed has left what was there; what comes now works.
	assert_int_equal(blk_read(&b, 1024, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(*(uint8_t *)rig_at(&b.rig, DATA), (uint8_t)(1024 * 7));
	assert_int_equal(blk_write(&b, 1024, 65536, 2), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_flush(&b), VIRTIO_BLK_S_OK);
	rig_close(&b.rig);
	close(layer);
	// A descriptor that cannot be written.
	int read_only = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	open_blk(&b, 0, 0, read_only, -1);
	assert_int_equal(blk_read(&b, 0, 4096), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_write(&b, 0, 4096, 0), VIRTIO_BLK_S_IOERR);
	rig_close(&b.rig);
}

static void test_refused_layers(void **state) {
	struct rig r;
	rig_open(&r);
	struct virtio_device *d = NULL;
	struct error e = {0};
	int base = patterned(1 << 20, 0), layer = memory_file("", 0);
	struct vmm_block config = {.serial = "image", .flags = VMM_BLOCK_LAYERED};
	virtio_destroy(make(&r, VMM_BLOCK_LAYERED, 0, dup(base), dup(layer)));
	// Again: an empty layer that has a header.
	virtio_destroy(make(&r, VMM_BLOCK_LAYERED, 0, dup(base), dup(layer)));
	// Another base, of the same size and of another one; another size of the disk.
	assert_int_equal(virtio_block_create(&r.host, 5, &config, patterned(1 << 20, 9), dup(layer), &d, &e), -ESTALE);
	assert_int_equal(virtio_block_create(&r.host, 5, &config, patterned(1 << 19, 0), dup(layer), &d, &e), -ESTALE);
	config.size = 2 << 20;
	assert_int_equal(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e), -EINVAL);
	config.size = 1ull << 60;
	assert_int_equal(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e), -EFBIG);
	config.size = 0;
	config.flags = VMM_BLOCK_LAYERED | VMM_BLOCK_READ_ONLY;
	assert_int_equal(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e), -EINVAL);
	config.flags = VMM_BLOCK_LAYERED;
	// Every bit of the header counts; so do impossible entries of the map, and a header that is lost.
	for (unsigned bit = 0; bit < 56 * 8; bit++) {
		uint8_t byte;
		assert_int_equal(pread(layer, &byte, 1, bit / 8), 1);
		byte ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(pwrite(layer, &byte, 1, bit / 8), 1);
		assert_true(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e) < 0);
		byte ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(pwrite(layer, &byte, 1, bit / 8), 1);
	}
	assert_int_equal(pwrite(layer, "\x0c", 1, 4096), 1);
	assert_int_equal(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e), -EBADMSG);
	assert_int_equal(pwrite(layer, "\x04", 1, 4096), 1);
	assert_int_equal(fallocate(layer, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), 0);
	assert_int_equal(virtio_block_create(&r.host, 5, &config, dup(base), dup(layer), &d, &e), -EBADMSG);
	// Never flushed: zeros where the header should be, some data.
	assert_int_equal(fallocate(layer, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 4096, 4096), 0);
	assert_int_equal(pwrite(layer, "junk", 4, 8192), 4);
	virtio_destroy(make(&r, VMM_BLOCK_LAYERED, 0, dup(base), dup(layer)));
	close(base);
	close(layer);
	rig_close(&r);
}

static void test_large_layer(void **state) {
	struct blk b;
	int base = memory_file("", 0), layer = memory_file("", 0);
	assert_int_equal(ftruncate(base, 1 << 20), 0);
	uint64_t size = 32ull << 30, last = size / 512 - 1;
	open_blk(&b, VMM_BLOCK_LAYERED, size, dup(base), dup(layer));
	assert_int_equal(blk_write(&b, last, 512, 0x11), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_write(&b, last / 2, 65536, 0x12), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_flush(&b), VIRTIO_BLK_S_OK);
	struct stat st;
	fstat(layer, &st);
	assert_true(st.st_blocks * 512 <= 4096 * (1 + 3 + 1 + 17)); // header, map, data
	// Zeros over what is zero already cost nothing.
	for (uint64_t at = 0; at + (1 << 22) <= last; at += 1 << 22)
		assert_int_equal(blk_zero(&b, VIRTIO_BLK_T_DISCARD, at, 1 << 22, 0), VIRTIO_BLK_S_OK);
	assert_int_equal(blk_flush(&b), VIRTIO_BLK_S_OK);
	fstat(layer, &st);
	assert_true(st.st_blocks * 512 <= 4096 * (1 + 3 + 1));
	assert_int_equal(blk_read(&b, last, 512), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 512, 0x11));
	rig_close(&b.rig);
	open_blk(&b, VMM_BLOCK_LAYERED, size, base, layer);
	assert_int_equal(blk_read(&b, last, 512), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 512, 0x11));
	assert_int_equal(blk_read(&b, last / 2, 512), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 512, 0));
	rig_close(&b.rig);
}

// The power cut. A small disk over a base; `cut_image` is the layer's file with every page either as it is durable, or as it was written last.

#define SECTORS 1021u // no whole number of clusters
#define BASE_SECTORS 700u
#define VALUES_MAX 64u
#define FILE_PAGES (2 + SECTORS / 8 + 1)

static int watched_layer = -1; // the descriptor of the device
static uint8_t durable_image[FILE_PAGES * 4096], now_image[FILE_PAGES * 4096];
static unsigned random_state;
static int cuts[8];
static unsigned cut_count;

static unsigned rnd(unsigned below) {
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 8) % below;
}

static void load_image(uint8_t *to) {
	memset(to, 0, sizeof(now_image));
	ssize_t n = pread(watched_layer, to, sizeof(now_image), 0);
	assert_true(n >= 0);
}

// A file as a power cut now could leave it.
static int cut(void) {
	load_image(now_image);
	int fd = memfd_create("cut", MFD_CLOEXEC);
	for (unsigned i = 0; i < FILE_PAGES; i++) {
		const uint8_t *page = (rnd(2) ? durable_image : now_image) + 4096 * i;
		assert_int_equal(pwrite(fd, page, 4096, 4096 * i), 4096);
	}
	return fd;
}

// Stands before the system's: the power may be cut just before it is done.
int fdatasync(int fd) {
	struct stat a, b;
	if (watched_layer >= 0 && fstat(fd, &a) == 0 && fstat(watched_layer, &b) == 0 && a.st_ino == b.st_ino) {
		for (unsigned i = 0; i < 2; i++)
			cuts[cut_count++] = cut();
		load_image(durable_image);
	}
	return (int)syscall(SYS_fdatasync, fd);
}

struct model {
	uint8_t now[SECTORS];
	uint8_t since[SECTORS][VALUES_MAX]; // values since (and at) the last flush
	uint8_t since_count[SECTORS];
	uint8_t base[SECTORS]; // of each sector of the base: one value for all its bytes
};

static void model_set(struct model *m, unsigned sector, uint8_t value) {
	m->now[sector] = value;
	if (m->since_count[sector] < VALUES_MAX)
		m->since[sector][m->since_count[sector]++] = value;
}

static void model_flushed(struct model *m) {
	for (unsigned i = 0; i < SECTORS; i++) {
		m->since[i][0] = m->now[i];
		m->since_count[i] = 1;
	}
}

// What is on the disk in the file `fd` must be values that were written since the last flush, or flushed ones.
static void check_cut(const struct model *m, int fd, int base) {
	struct disk k;
	struct error e = {0};
	struct vmm_block config = {.serial = "image", .flags = VMM_BLOCK_LAYERED, .size = SECTORS * 512};
	if (disk_open(&k, &config, dup(base), fd, &e) < 0)
		fail_msg("after a cut: %s", e.message);
	uint8_t *all = malloc(SECTORS * 512);
	struct iovec iov = {.iov_base = all, .iov_len = SECTORS * 512};
	assert_int_equal(disk_read(&k, 0, &iov, 1, SECTORS * 512, 0), 0);
	for (unsigned s = 0; s < SECTORS; s++) {
		bool fine = false;
		for (unsigned i = 0; i < m->since_count[s] && !fine; i++)
			fine = all[s * 512] == m->since[s][i];
		for (unsigned i = 1; i < 512 && fine; i++)
			fine = all[s * 512 + i] == all[s * 512];
		if (!fine)
			fail_msg("sector %u has %u after a cut", s, all[s * 512]);
	}
	free(all);
	disk_close(&k);
}

static void check_now(struct blk *b, const struct model *m) {
	for (unsigned at = 0; at < SECTORS; at += 128) {
		unsigned n = SECTORS - at < 128 ? SECTORS - at : 128;
		assert_int_equal(blk_read(b, at, n * 512), VIRTIO_BLK_S_OK);
		const uint8_t *p = rig_at(&b->rig, DATA);
		for (unsigned i = 0; i < n * 512; i++) {
			if (p[i] != m->now[at + i / 512])
				fail_msg("sector %u has %u, not %u", at + i / 512, p[i], m->now[at + i / 512]);
		}
	}
}

static void check_cuts(const struct model *m, int base) {
	for (unsigned i = 0; i < cut_count; i++)
		check_cut(m, cuts[i], base);
	cut_count = 0;
}

static void random_operation(struct blk *b, struct model *m, int base, uint8_t value) {
	unsigned first = rnd(SECTORS), n = 1 + rnd(40);
	n = n < SECTORS - first ? n : SECTORS - first;
	switch (rnd(8)) {
	case 0:
	case 1:
	case 2:
	case 3:
		assert_int_equal(blk_write(b, first, n * 512, value), VIRTIO_BLK_S_OK);
		for (unsigned i = 0; i < n; i++)
			model_set(m, first + i, value);
		break;
	case 4:
		assert_int_equal(blk_zero(b, VIRTIO_BLK_T_WRITE_ZEROES, first, n, rnd(2)), VIRTIO_BLK_S_OK);
		for (unsigned i = 0; i < n; i++)
			model_set(m, first + i, 0);
		break;
	case 5:
		assert_int_equal(blk_zero(b, VIRTIO_BLK_T_DISCARD, first, n, 0), VIRTIO_BLK_S_OK);
		assert_int_equal(blk_read(b, first, n * 512), VIRTIO_BLK_S_OK);
		for (unsigned i = 0; i < n; i++) {
			uint8_t there = *(uint8_t *)rig_at(&b->rig, DATA + 512 * i);
			assert_true(there == 0 || there == m->now[first + i]);
			model_set(m, first + i, there);
		}
		break;
	case 6:
		cut_count = 0;
		cuts[cut_count++] = cut();
		check_cuts(m, base);
		break;
	default:
		if (rnd(3) != 0)
			break;
		assert_int_equal(blk_flush(b), VIRTIO_BLK_S_OK);
		check_cuts(m, base); // those from within the flush
		model_flushed(m);
		cuts[cut_count++] = cut();
		check_cuts(m, base);
		break;
	}
}

static void test_power_cuts(void **state) {
	static struct model m;
	uint8_t *content = malloc(BASE_SECTORS * 512);
	for (unsigned seed = 1; seed <= 12; seed++) {
		struct blk b;
		random_state = seed;
		memset(&m, 0, sizeof(m));
		memset(durable_image, 0, sizeof(durable_image));
		for (unsigned i = 0; i < SECTORS; i++) {
			m.now[i] = i < BASE_SECTORS ? (uint8_t)(200 + i % 50) : 0;
			if (i < BASE_SECTORS)
				memset(content + 512 * i, m.now[i], 512);
		}
		model_flushed(&m);
		int base = memory_file(content, BASE_SECTORS * 512), layer = memory_file("", 0);
		cut_count = 0;
		watched_layer = layer;
		open_blk(&b, VMM_BLOCK_LAYERED, SECTORS * 512, dup(base), dup(layer));
		for (unsigned i = 1; i < 400; i++) {
			random_operation(&b, &m, base, (uint8_t)(1 + i % 199));
			if (i % 50 == 0)
				check_now(&b, &m);
			if (i % 100 == 0) {
				// An orderly end, and the next VMM.
				assert_int_equal(virtio_flush(b.rig.device, NULL), 0);
				check_cuts(&m, base);
				model_flushed(&m);
				rig_close(&b.rig);
				open_blk(&b, VMM_BLOCK_LAYERED, SECTORS * 512, dup(base), dup(layer));
				check_now(&b, &m);
			}
		}
		watched_layer = -1;
		rig_close(&b.rig);
		close(base);
		close(layer);
	}
	free(content);
}

static size_t save(struct virtio_device *d, uint8_t *to, size_t size) {
	struct writer w = writer_over(to, size);
	assert_int_equal(virtio_save(d, &w), 0);
	return size - w.left;
}

static void test_snapshot(void **state) {
	struct blk b;
	uint8_t section[1024];
	int file = memory_file("", 0), layer = memory_file("", 0);
	assert_int_equal(ftruncate(file, 1 << 20), 0);
	open_blk(&b, 0, 0, dup(file), -1);
	// Requests under way as the device is quiesced are finished, their status lies in memory.
	for (unsigned i = 0; i < 64; i++) {
		start(&b, VIRTIO_BLK_T_OUT, 8 * (uint64_t)i, DATA, 4096, false);
		b.rig.next += 64;
	}
	memset(rig_at(&b.rig, DATA), 0x42, 4096);
	rig_run(&b.rig, 100);
	assert_int_equal(virtio_quiesce(b.rig.device, NULL), 0);
	for (unsigned i = 0; i < 64; i++)
		assert_true(vq_take(&b.q, NULL) >= 0);
	// One more comes after that.
	start(&b, VIRTIO_BLK_T_OUT, 800, DATA, 4096, false);
	assert_int_equal(virtio_flush(b.rig.device, NULL), 0);
	size_t n = save(b.rig.device, section, sizeof(section));
	// The file that was written in place becomes the base of a layer.
	struct virtio_device *d = make(&b.rig, VMM_BLOCK_LAYERED, 0, dup(file), layer);
	struct reader r = reader_over(section, n);
	assert_int_equal(virtio_load(d, &r, NULL), 0);
	driver_moved(&b.rig, d);
	unsigned before = b.rig.interrupts;
	virtio_resume(d);
	assert_true(b.rig.interrupts > before);
	vq_wait(&b.q, NULL);
	assert_int_equal(blk_read(&b, 800, 4096), VIRTIO_BLK_S_OK);
	assert_true(holds(&b, 4096, 0x42));
	// Not with another size, another name, or read-only.
	uint64_t sizes[] = {0, 2 << 20, 0};
	uint32_t flags[] = {0, 0, VMM_BLOCK_READ_ONLY};
	for (unsigned i = 0; i < 3; i++) {
		struct vmm_block config = {.serial = "image", .flags = flags[i], .size = sizes[i]};
		config.serial[0] = i == 0 ? 'I' : 'i';
		int other = memory_file("", 0);
		assert_int_equal(ftruncate(other, 1 << 20), 0);
		assert_int_equal(virtio_block_create(&b.rig.host, 5, &config, other, -1, &d, NULL), 0);
		r = reader_over(section, n);
		assert_true(virtio_load(d, &r, NULL) < 0);
		virtio_destroy(d);
	}
	rig_close(&b.rig);
	close(file);
}

static void test_changed_medium(void **state) {
	struct blk b;
	uint8_t section[1024];
	open_blk(&b, VMM_BLOCK_READ_ONLY, 0, patterned(8192, 0), -1);
	uint32_t generation = reg_read(&b.rig, VIRTIO_MMIO_CONFIG_GENERATION);
	assert_int_equal(virtio_quiesce(b.rig.device, NULL), 0);
	size_t n = save(b.rig.device, section, sizeof(section));
	for (unsigned i = 0; i < 2; i++) {
		struct virtio_device *d = make(&b.rig, VMM_BLOCK_READ_ONLY, 0, patterned(i == 0 ? 8192 : 12289, 5), -1);
		struct reader r = reader_over(section, n);
		assert_int_equal(virtio_load(d, &r, NULL), 0);
		driver_moved(&b.rig, d);
		unsigned before = b.rig.interrupts;
		virtio_resume(d);
		assert_int_equal(b.rig.interrupts - before, i);
		assert_int_equal(reg_read(&b.rig, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG,
				 i == 0 ? 0 : VIRTIO_MMIO_INT_CONFIG);
		assert_int_equal(reg_read(&b.rig, VIRTIO_MMIO_CONFIG_GENERATION) != generation, i);
		assert_int_equal(reg_read(&b.rig, VIRTIO_MMIO_CONFIG), i == 0 ? 16 : 25);
	}
	assert_int_equal(blk_read(&b, 24, 512), VIRTIO_BLK_S_OK);
	assert_int_equal(*(uint8_t *)rig_at(&b.rig, DATA), (uint8_t)(24 * 7 + 12288 + 5));
	rig_close(&b.rig);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read_only),      cmocka_unit_test(test_malformed),  cmocka_unit_test(test_in_place),
		cmocka_unit_test(test_many_at_once),   cmocka_unit_test(test_errors),     cmocka_unit_test(test_refused_layers),
		cmocka_unit_test(test_large_layer),    cmocka_unit_test(test_power_cuts), cmocka_unit_test(test_snapshot),
		cmocka_unit_test(test_changed_medium),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
