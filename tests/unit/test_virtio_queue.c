// The virtio transport and queues: registers, the status machine, and descriptors as a hostile guest would write them. With the entropy and the
// balloon device, which are the smallest ones on it.
#include "test_virtio_driver.h"

#include "base/clock.h"
#include "base/wire.h"

#include <linux/virtio_balloon.h>
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define ALL (~0ull)

static void open_rng(struct rig *r) {
	rig_open(r);
	assert_int_equal(virtio_rng_create(&r->host, 5, &r->device, NULL), 0);
}

static void start_rng(struct rig *r, struct vq *q, uint64_t features) {
	open_rng(r);
	driver_begin(r, features);
	driver_queue(r, q, 0, 8);
	driver_ok(r);
}

static bool is_random(struct rig *r, uint64_t at, size_t n) {
	const uint8_t *p = rig_at(r, at);
	unsigned zero = 0;
	for (size_t i = 0; i < n; i++)
		zero += p[i] == 0;
	return zero < n / 4;
}

static void test_rng(void **state) {
	struct rig r;
	struct vq q;
	for (int event_idx = 0; event_idx < 2; event_idx++) {
		start_rng(&r, &q, event_idx ? ALL : 0);
		// More requests than the queue is long, and than an index of 16 bits counts.
		for (unsigned i = 0; i < 70000; i++) {
			uint64_t at = 0x800000 + i % 8 * 0x1000;
			uint32_t n;
			vq_add(&q, &(struct piece){at, 64, true}, 1);
			vq_kick(&q);
			vq_wait(&q, &n);
			assert_int_equal(n, 64);
		}
		assert_true(is_random(&r, 0x800000, 64));
		assert_true(r.interrupts > 0);
		assert_int_equal(reg_read(&r, VIRTIO_MMIO_INTERRUPT_STATUS), VIRTIO_MMIO_INT_VRING);
		reg_write(&r, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INT_VRING);
		assert_int_equal(reg_read(&r, VIRTIO_MMIO_INTERRUPT_STATUS), 0);
		assert_false(driver_needs_reset(&r));
		rig_close(&r);
	}
}

static void test_interrupt_suppression(void **state) {
	struct rig r;
	struct vq q;
	start_rng(&r, &q, ALL);
	uint16_t *used_event = (uint16_t *)rig_at(&r, q.available) + 2 + q.size;
	*used_event = 2; // interrupt with the third one
	for (unsigned i = 0; i < 3; i++) {
		unsigned before = r.interrupts;
		vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
		vq_kick(&q);
		rig_run(&r, 1000);
		assert_int_equal(r.interrupts - before, i == 2);
	}
	rig_close(&r);
	start_rng(&r, &q, 0);
	*(uint16_t *)rig_at(&r, q.available) = VRING_AVAIL_F_NO_INTERRUPT;
	vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
	vq_kick(&q);
	vq_wait(&q, NULL);
	assert_int_equal(r.interrupts, 0);
	rig_close(&r);
}

static void test_indirect(void **state) {
	struct rig r;
	struct vq q;
	uint32_t n;
	start_rng(&r, &q, ALL);
	// As long as a table can be, over both regions of memory, with an empty piece within.
	struct piece pieces[256];
	for (unsigned i = 0; i < 256; i++)
		pieces[i] = (struct piece){i % 2 ? RIG_HIGH + 16 * i : 0x800000 + 16 * i, 4, true};
	pieces[7].size = 0;
	vq_add_indirect(&q, pieces, 256);
	vq_kick(&q);
	vq_wait(&q, &n);
	assert_int_equal(n, 255 * 4);
	assert_false(driver_needs_reset(&r));
	rig_close(&r);
}

// Each breach: one function that publishes something bad.
static void breach_head(struct vq *q) {
	vq_publish(q, 8);
}
static void breach_loop(struct vq *q) {
	vq_write_descriptor(q, 0, 0x800000, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
	vq_write_descriptor(q, 1, 0x800000, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 0);
	vq_publish(q, 0);
}
static void breach_empty_loop(struct vq *q) {
	vq_write_descriptor(q, 0, 0x800000, 0, VRING_DESC_F_NEXT, 0);
	vq_publish(q, 0);
}
static void breach_next(struct vq *q) {
	vq_write_descriptor(q, 0, 0x800000, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 8);
	vq_publish(q, 0);
}
static void breach_order(struct vq *q) {
	vq_write_descriptor(q, 0, 0x800000, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT, 1);
	vq_write_descriptor(q, 1, 0x800000, 4, 0, 0);
	vq_publish(q, 0);
}
static void breach_hole(struct vq *q) {
	vq_write_descriptor(q, 0, RIG_LOW_BYTES, 4, VRING_DESC_F_WRITE, 0);
	vq_publish(q, 0);
}
static void breach_edge(struct vq *q) {
	vq_write_descriptor(q, 0, RIG_LOW_BYTES - 3, 4, VRING_DESC_F_WRITE, 0);
	vq_publish(q, 0);
}
static void breach_wrap(struct vq *q) {
	vq_write_descriptor(q, 0, UINT64_MAX - 1, 4, VRING_DESC_F_WRITE, 0);
	vq_publish(q, 0);
}
static void breach_huge(struct vq *q) {
	vq_write_descriptor(q, 0, 0x1000, UINT32_MAX, VRING_DESC_F_WRITE, 0);
	vq_publish(q, 0);
}
static void breach_jump(struct vq *q) {
	q->available_index = (uint16_t)(q->available_index + 8);
	vq_publish(q, 0);
}
static void breach_back(struct vq *q) {
	q->available_index = (uint16_t)(q->available_index - 2);
	vq_publish(q, 0);
}
static uint64_t table(struct vq *q, uint64_t address, uint32_t size, uint16_t flags) {
	uint64_t at = rig_alloc(q->rig, 64, 16);
	struct vring_desc d = {.addr = address, .len = size, .flags = flags};
	memcpy(rig_at(q->rig, at), &d, sizeof(d));
	return at;
}
static void breach_nested(struct vq *q) {
	uint64_t inner = table(q, 0x800000, 4, VRING_DESC_F_WRITE);
	vq_write_descriptor(q, 0, table(q, inner, 16, VRING_DESC_F_INDIRECT), 16, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}
static void breach_indirect_next(struct vq *q) {
	vq_write_descriptor(q, 0, table(q, 0x800000, 4, VRING_DESC_F_WRITE), 16, VRING_DESC_F_INDIRECT | VRING_DESC_F_NEXT, 1);
	vq_publish(q, 0);
}
static void breach_table_size(struct vq *q) {
	vq_write_descriptor(q, 0, table(q, 0x800000, 4, VRING_DESC_F_WRITE), 17, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}
static void breach_table_empty(struct vq *q) {
	vq_write_descriptor(q, 0, table(q, 0x800000, 4, VRING_DESC_F_WRITE), 0, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}
static void breach_table_long(struct vq *q) {
	vq_write_descriptor(q, 0, 0x1000, 257 * 16, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}
static void breach_table_hole(struct vq *q) {
	vq_write_descriptor(q, 0, RIG_LOW_BYTES - 8, 16, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}
static void breach_table_next(struct vq *q) {
	vq_write_descriptor(q, 0, table(q, 0x800000, 4, VRING_DESC_F_WRITE | VRING_DESC_F_NEXT), 16, VRING_DESC_F_INDIRECT, 0);
	vq_publish(q, 0);
}

static void test_breaches(void **state) {
	void (*const breaches[])(struct vq *) = {
		breach_head,          breach_loop,       breach_empty_loop,  breach_next,       breach_order,      breach_hole,
		breach_edge,          breach_wrap,       breach_huge,        breach_jump,       breach_back,       breach_nested,
		breach_indirect_next, breach_table_size, breach_table_empty, breach_table_long, breach_table_hole, breach_table_next,
	};
	for (unsigned i = 0; i < sizeof(breaches) / sizeof(breaches[0]); i++) {
		struct rig r;
		struct vq q;
		start_rng(&r, &q, ALL);
		vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
		vq_kick(&q);
		vq_wait(&q, NULL);
		breaches[i](&q);
		vq_kick(&q);
		rig_run(&r, 1000);
		if (!driver_needs_reset(&r))
			fail_msg("breach %u was not noticed", i);
		assert_int_equal(reg_read(&r, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_CONFIG);
		// Ignored until the reset, and whole again behind it.
		vq_kick(&q);
		rig_run(&r, 10);
		assert_int_equal(vq_take(&q, NULL), -1);
		driver_begin(&r, ALL);
		driver_queue(&r, &q, 0, 8);
		driver_ok(&r);
		vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
		vq_kick(&q);
		vq_wait(&q, NULL);
		rig_close(&r);
	}
}

static void test_indirect_refused_without_feature(void **state) {
	struct rig r;
	struct vq q;
	start_rng(&r, &q, 0);
	vq_add_indirect(&q, &(struct piece){0x800000, 16, true}, 1);
	vq_kick(&q);
	rig_run(&r, 1000);
	assert_true(driver_needs_reset(&r));
	rig_close(&r);
}

static void test_status_machine(void **state) {
	struct rig r;
	open_rng(&r);
	// DRIVER_OK without FEATURES_OK does not stick, nor FEATURES_OK without VERSION_1 or with what was not offered.
	reg_write(&r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_ACKNOWLEDGE);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_STATUS), VIRTIO_CONFIG_S_ACKNOWLEDGE);
	reg_write(&r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_STATUS), VIRTIO_CONFIG_S_ACKNOWLEDGE);
	reg_write(&r, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
	reg_write(&r, VIRTIO_MMIO_DRIVER_FEATURES, 0x80000001);
	reg_write(&r, VIRTIO_MMIO_STATUS, VIRTIO_CONFIG_S_FEATURES_OK);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_STATUS), VIRTIO_CONFIG_S_ACKNOWLEDGE);
	// A queue before FEATURES_OK.
	reg_write(&r, VIRTIO_MMIO_QUEUE_NUM, 8);
	reg_write(&r, VIRTIO_MMIO_QUEUE_READY, 1);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_QUEUE_READY), 0);
	// Queues with bad sizes and places.
	static const struct {
		uint32_t size;
		uint64_t descriptors, available, used;
	} bad[] = {{0, 0x1000, 0x2000, 0x3000},         {7, 0x1000, 0x2000, 0x3000},
		   {128, 0x1000, 0x2000, 0x3000},       {UINT32_MAX, 0x1000, 0x2000, 0x3000},
		   {8, 0x1008, 0x2000, 0x3000},         {8, 0x1000, 0x2001, 0x3000},
		   {8, 0x1000, 0x2000, 0x3002},         {8, RIG_LOW_BYTES - 16, 0x2000, 0x3000},
		   {8, 0x1000, UINT64_MAX - 1, 0x3000}, {8, 0x1000, 0x2000, RIG_LOW_BYTES - 64}};
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		driver_begin(&r, ALL);
		reg_write(&r, VIRTIO_MMIO_QUEUE_SEL, 0);
		reg_write(&r, VIRTIO_MMIO_QUEUE_NUM, bad[i].size);
		reg_write(&r, VIRTIO_MMIO_QUEUE_DESC_LOW, (uint32_t)bad[i].descriptors);
		reg_write(&r, VIRTIO_MMIO_QUEUE_DESC_HIGH, (uint32_t)(bad[i].descriptors >> 32));
		reg_write(&r, VIRTIO_MMIO_QUEUE_AVAIL_LOW, (uint32_t)bad[i].available);
		reg_write(&r, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, (uint32_t)(bad[i].available >> 32));
		reg_write(&r, VIRTIO_MMIO_QUEUE_USED_LOW, (uint32_t)bad[i].used);
		reg_write(&r, VIRTIO_MMIO_QUEUE_USED_HIGH, (uint32_t)(bad[i].used >> 32));
		reg_write(&r, VIRTIO_MMIO_QUEUE_READY, 1);
		assert_int_equal(reg_read(&r, VIRTIO_MMIO_QUEUE_READY), 0);
		assert_true(driver_needs_reset(&r));
	}
	rig_close(&r);
}

static void test_odd_accesses(void **state) {
	struct rig r;
	struct vq q;
	start_rng(&r, &q, ALL);
	for (unsigned size = 0; size <= 16; size++) {
		for (uint64_t offset = 0; offset < 0x1000; offset++) {
			if (size == 4 && offset % 4 == 0 && offset < 0x100)
				continue;
			assert_int_equal(virtio_mmio_read(r.device, offset, size), 0);
			virtio_mmio_write(r.device, offset, size, 0x55aa55aa55aa55aa);
		}
	}
	reg_write(&r, VIRTIO_MMIO_QUEUE_SEL, 77);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_QUEUE_NUM_MAX), 0);
	reg_write(&r, VIRTIO_MMIO_QUEUE_NUM, 8);
	reg_write(&r, VIRTIO_MMIO_QUEUE_READY, 1);
	reg_write(&r, VIRTIO_MMIO_QUEUE_NOTIFY, 77);
	assert_int_equal(virtio_notify_fd(r.device, 1), -EINVAL);
	assert_false(driver_needs_reset(&r));
	vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
	vq_kick(&q);
	vq_wait(&q, NULL);
	// The driver takes the queue away.
	reg_write(&r, VIRTIO_MMIO_QUEUE_SEL, 0);
	reg_write(&r, VIRTIO_MMIO_QUEUE_READY, 0);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_QUEUE_READY), 0);
	vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
	vq_kick(&q);
	rig_run(&r, 10);
	assert_int_equal(vq_take(&q, NULL), -1);
	rig_close(&r);
}

static void test_save_load(void **state) {
	struct rig r;
	struct vq q;
	uint8_t section[4096];
	start_rng(&r, &q, ALL);
	for (unsigned i = 0; i < 11; i++) {
		vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
		vq_kick(&q);
		vq_wait(&q, NULL);
	}
	assert_int_equal(virtio_quiesce(r.device, NULL), 0);
	// What is made available while the device is quiet is served after the restore.
	vq_add(&q, &(struct piece){0x800000, 16, true}, 1);
	vq_kick(&q);
	rig_run(&r, 20);
	assert_int_equal(vq_take(&q, NULL), -1);
	struct writer w = writer_over(section, sizeof(section));
	assert_int_equal(virtio_save(r.device, &w), 0);
	size_t size = sizeof(section) - w.left;
	struct writer tight = writer_over(section, size - 1);
	assert_int_equal(virtio_save(r.device, &tight), -ENOSPC);
	w = writer_over(section, sizeof(section));
	assert_int_equal(virtio_save(r.device, &w), 0);

	// Cut off anywhere, or of another kind: refused with a message.
	for (size_t n = 0; n <= size; n++) {
		struct virtio_device *d;
		struct error e = {0};
		assert_int_equal(virtio_rng_create(&r.host, 5, &d, NULL), 0);
		struct reader in = reader_over(section, n);
		int result = virtio_load(d, &in, &e);
		assert_int_equal(result < 0, n < size);
		assert_int_equal(e.message[0] != '\0', n < size);
		virtio_destroy(d);
	}
	// Each bit turned: loaded or refused, never worse.
	for (size_t bit = 0; bit < size * 8; bit++) {
		struct virtio_device *d;
		section[bit / 8] ^= (uint8_t)(1 << bit % 8);
		assert_int_equal(virtio_rng_create(&r.host, 5, &d, NULL), 0);
		struct reader in = reader_over(section, size);
		if (virtio_load(d, &in, NULL) == 0)
			virtio_resume(d);
		virtio_destroy(d);
		section[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	struct virtio_device *moved, *other;
	assert_int_equal(virtio_balloon_create(&r.host, 5, &other, NULL), 0);
	struct reader in = reader_over(section, size);
	assert_true(virtio_load(other, &in, NULL) < 0);
	virtio_destroy(other);

	assert_int_equal(virtio_rng_create(&r.host, 5, &moved, NULL), 0);
	in = reader_over(section, size);
	assert_int_equal(virtio_load(moved, &in, NULL), 0);
	assert_int_equal(in.left, 0);
	driver_moved(&r, moved);
	unsigned before = r.interrupts;
	virtio_resume(moved);
	assert_int_equal(r.interrupts, before + 1); // the unacknowledged one
	vq_wait(&q, NULL);
	rig_close(&r);
}

static bool is_filled(const uint8_t *p, size_t n, uint8_t with) {
	for (size_t i = 0; i < n; i++) {
		if (p[i] != with)
			return false;
	}
	return true;
}

static void test_balloon(void **state) {
	struct rig r;
	struct vq inflate, deflate, report;
	rig_open(&r);
	assert_int_equal(virtio_balloon_create(&r.host, 5, &r.device, NULL), 0);
	driver_begin(&r, ALL);
	assert_int_equal(r.features & ((1ull << VIRTIO_BALLOON_F_PAGE_POISON) | (1ull << VIRTIO_BALLOON_F_STATS_VQ)), 0);
	assert_true((r.features >> VIRTIO_BALLOON_F_REPORTING & 1) != 0);
	driver_queue(&r, &inflate, 0, 128);
	driver_queue(&r, &deflate, 1, 128);
	driver_queue(&r, &report, 2, 32);
	driver_ok(&r);
	memset(r.low + 0x800000, 0xaa, 0x10000);
	memset(r.high, 0xbb, 0x10000);
	// Whole pages within what is reported go, the rest stays.
	struct piece pieces[] = {{0x800800, 0x2800, true}, {RIG_HIGH, 0x2000, true}};
	vq_add(&report, pieces, 2);
	vq_kick(&report);
	vq_wait(&report, NULL);
	assert_true(is_filled(r.low + 0x800000, 0x1000, 0xaa));
	assert_true(is_filled(r.low + 0x801000, 0x2000, 0));
	assert_true(is_filled(r.low + 0x803000, 0x1000, 0xaa));
	assert_true(is_filled(r.high, 0x2000, 0));
	assert_true(is_filled(r.high + 0x2000, 0x1000, 0xbb));
	struct vmm_stats s = {0};
	virtio_stats(r.device, &s);
	assert_int_equal(s.balloon_reported_bytes, 0x4000);
	// Inflate: page numbers, some of which are no memory.
	uint32_t pfns[] = {0x805, 0x806, 0x808, 0xffffffff, 0x100002, 0x1000};
	memcpy(rig_at(&r, 0x700000), pfns, sizeof(pfns));
	vq_add(&inflate, &(struct piece){0x700000, sizeof(pfns), false}, 1);
	vq_kick(&inflate);
	vq_wait(&inflate, NULL);
	assert_true(is_filled(r.low + 0x804000, 0x1000, 0xaa));
	assert_true(is_filled(r.low + 0x805000, 0x2000, 0));
	assert_true(is_filled(r.low + 0x807000, 0x1000, 0xaa));
	assert_true(is_filled(r.low + 0x808000, 0x1000, 0));
	assert_true(is_filled(r.high + 0x2000, 0x1000, 0));
	assert_true(is_filled(r.high + 0x3000, 0x1000, 0xbb));
	vq_add(&deflate, &(struct piece){0x700000, sizeof(pfns), false}, 1);
	vq_kick(&deflate);
	vq_wait(&deflate, NULL);
	// The driver writes `actual`, and nothing else.
	virtio_mmio_write(r.device, VIRTIO_MMIO_CONFIG + 4, 4, 3);
	virtio_mmio_write(r.device, VIRTIO_MMIO_CONFIG + 0, 4, 9);
	virtio_mmio_write(r.device, VIRTIO_MMIO_CONFIG + 4, 8, UINT64_MAX);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_CONFIG + 4), 3);
	assert_int_equal(reg_read(&r, VIRTIO_MMIO_CONFIG), 0);
	assert_false(driver_needs_reset(&r));
	rig_close(&r);
}

// A guest whose other processors write to the rings and descriptors all the time.
struct scribbler {
	struct rig *rig;
	struct vq *q;
	bool stop;
};

static void *scribble(void *arg) {
	struct scribbler *s = arg;
	uint32_t x = 1;
	volatile uint8_t *from = rig_at(s->rig, s->q->descriptors);
	while (!__atomic_load_n(&s->stop, __ATOMIC_RELAXED)) {
		x = x * 1664525 + 1013904223;
		from[(x >> 8) % 512] = (uint8_t)(x >> 24);
	}
	return NULL;
}

static void test_concurrent_guest(void **state) {
	for (unsigned kind = 0; kind < 2; kind++) {
		struct rig r;
		struct vq q;
		rig_open(&r);
		struct vmm_block config = {.serial = "disk", .flags = VMM_BLOCK_READ_ONLY, .size = 1 << 20};
		if (kind == 0)
			assert_int_equal(virtio_rng_create(&r.host, 5, &r.device, NULL), 0);
		else
			assert_int_equal(virtio_block_create(&r.host, 5, &config, memfd_create("disk", MFD_CLOEXEC), -1, &r.device, NULL),
					 0);
		driver_begin(&r, ALL);
		driver_queue(&r, &q, 0, 16);
		driver_ok(&r);
		struct scribbler s = {.rig = &r, .q = &q};
		pthread_t thread;
		assert_int_equal(pthread_create(&thread, NULL, scribble, &s), 0);
		unsigned resets = 0;
		for (uint64_t end = monotonic_ms() + 1000; monotonic_ms() < end;) {
			for (uint16_t i = 0; i < 16; i++) {
				vq_write_descriptor(&q, i, 0x800000 + 0x100u * i, 0x100,
						    (uint16_t)(i % 3 == 2 ? VRING_DESC_F_WRITE : VRING_DESC_F_NEXT), (uint16_t)(i + 1));
				vq_publish(&q, (uint16_t)(i % 3 == 0 ? i : 0));
			}
			vq_kick(&q);
			rig_run(&r, 0);
			if (driver_needs_reset(&r)) {
				resets++;
				r.next = 0x10000;
				driver_begin(&r, ALL);
				driver_queue(&r, &q, 0, 16);
				driver_ok(&r);
			}
		}
		__atomic_store_n(&s.stop, true, __ATOMIC_RELAXED);
		pthread_join(thread, NULL);
		assert_true(resets > 0);
		rig_close(&r);
	}
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rng),
		cmocka_unit_test(test_interrupt_suppression),
		cmocka_unit_test(test_indirect),
		cmocka_unit_test(test_breaches),
		cmocka_unit_test(test_indirect_refused_without_feature),
		cmocka_unit_test(test_status_machine),
		cmocka_unit_test(test_odd_accesses),
		cmocka_unit_test(test_save_load),
		cmocka_unit_test(test_balloon),
		cmocka_unit_test(test_concurrent_guest),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
