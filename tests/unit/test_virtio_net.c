// The network device over a pair of sockets (each packet one message, as with a tap) and over a real tap where one can be made.
#include "test_virtio_driver.h"

#include "base/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <net/if.h>
#include <sched.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define ALL (~0ull)
#define HEADER 12u
#define RX_AT 0x800000u
#define TX_AT 0xa00000u

struct net {
	struct rig rig;
	struct vq rx, tx;
	int peer;
	uint32_t buffer_bytes;
};

static const uint8_t mac[6] = {2, 0, 0, 0, 0, 7};

static void drive(struct net *n, uint64_t features) {
	driver_begin(&n->rig, features);
	driver_queue(&n->rig, &n->rx, 0, 64);
	driver_queue(&n->rig, &n->tx, 1, 64);
	driver_ok(&n->rig);
}

static void open_over(struct net *n, int tap, uint64_t features) {
	rig_open(&n->rig);
	n->buffer_bytes = 2048;
	struct error e = {0};
	if (virtio_net_create(&n->rig.host, 5, tap, mac, &n->rig.device, &e) < 0)
		fail_msg("%s", e.message);
	drive(n, features);
}

static void open_net(struct net *n, uint64_t features) {
	int pair[2];
	memset(n, 0, sizeof(*n));
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
	int room = 4 << 20;
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof(room));
	n->peer = pair[1];
	fcntl(n->peer, F_SETFL, O_NONBLOCK);
	open_over(n, pair[0], features);
}

static void close_net(struct net *n) {
	rig_close(&n->rig);
	close(n->peer);
}

static void post(struct net *n, unsigned slot) {
	vq_add(&n->rx, &(struct piece){RX_AT + 0x1000 * slot, n->buffer_bytes, true}, 1);
	vq_kick(&n->rx);
}

static void from_network(struct net *n, size_t size, uint8_t seed) {
	static uint8_t packet[70000];
	memset(packet, 0, HEADER);
	for (size_t i = 0; i < size; i++)
		packet[HEADER + i] = (uint8_t)(seed + i);
	assert_int_equal(send(n->peer, packet, HEADER + size, 0), HEADER + size);
}

// The next packet in buffers that were posted in the order of their places.
static size_t received(struct net *n, unsigned *slot, uint8_t *to, uint16_t *buffers) {
	uint32_t length;
	struct virtio_net_hdr_v1 h;
	vq_wait(&n->rx, &length);
	memcpy(&h, rig_at(&n->rig, RX_AT + 0x1000 * *slot), sizeof(h));
	size_t all = length - HEADER;
	memcpy(to, rig_at(&n->rig, RX_AT + 0x1000 * *slot + HEADER), all);
	(*slot)++;
	for (unsigned i = 1; i < h.num_buffers; i++, (*slot)++) {
		vq_wait(&n->rx, &length);
		memcpy(to + all, rig_at(&n->rig, RX_AT + 0x1000 * *slot), length);
		all += length;
	}
	*buffers = h.num_buffers;
	return all;
}

static void check(const uint8_t *p, size_t size, uint8_t seed) {
	for (size_t i = 0; i < size; i++)
		assert_int_equal(p[i], (uint8_t)(seed + i));
}

static void test_receive(void **state) {
	static uint8_t packet[70000];
	for (int mergeable = 0; mergeable < 2; mergeable++) {
		struct net n;
		uint16_t buffers;
		unsigned slot = 0;
		open_net(&n, mergeable ? ALL : ALL & ~(1ull << VIRTIO_NET_F_MRG_RXBUF));
		assert_true((n.rig.features >> VIRTIO_NET_F_MAC & 1) != 0);
		for (unsigned i = 0; i < 6; i++)
			assert_int_equal(virtio_mmio_read(n.rig.device, VIRTIO_MMIO_CONFIG + i, 1), mac[i]);
		assert_int_equal(virtio_mmio_read(n.rig.device, VIRTIO_MMIO_CONFIG + 6, 2), VIRTIO_NET_S_LINK_UP);
		for (unsigned i = 0; i < 40; i++)
			post(&n, i);
		from_network(&n, 60, 1);
		assert_int_equal(received(&n, &slot, packet, &buffers), 60);
		assert_int_equal(buffers, 1);
		check(packet, 60, 1);
		from_network(&n, 2036, 2);
		assert_int_equal(received(&n, &slot, packet, &buffers), 2036);
		check(packet, 2036, 2);
		// Longer than a buffer: over several, or dropped.
		from_network(&n, 65000, 3);
		from_network(&n, 100, 4);
		if (mergeable) {
			assert_int_equal(received(&n, &slot, packet, &buffers), 65000);
			assert_int_equal(buffers, 32);
			check(packet, 65000, 3);
		}
		assert_int_equal(received(&n, &slot, packet, &buffers), 100);
		check(packet, 100, 4);
		struct vmm_stats s = {0};
		virtio_stats(n.rig.device, &s);
		assert_int_equal(s.net_dropped, mergeable ? 0 : 1);
		assert_int_equal(s.net_rx_bytes, 60 + 2036 + 100 + (mergeable ? 65000 : 0));
		close_net(&n);
	}
}

// No buffers: the packets stay where they are, the loop sleeps; then they come, none lost and in order.
static void test_back_pressure(void **state) {
	struct net n;
	static uint8_t packet[70000];
	uint16_t buffers;
	unsigned slot = 0;
	open_net(&n, ALL);
	for (unsigned i = 0; i < 5; i++)
		from_network(&n, 3000, (uint8_t)i);
	for (unsigned i = 0; i < 10; i++)
		rig_run(&n.rig, 0);
	assert_int_equal(loop_run_once(n.rig.loop, 50, n.rig.host.lock, n.rig.host.unlock, &n.rig), 0);
	post(&n, 0); // half a packet's worth
	for (unsigned i = 0; i < 5; i++)
		rig_run(&n.rig, 5);
	assert_int_equal(vq_take(&n.rx, NULL), -1);
	for (unsigned i = 1; i < 10; i++)
		post(&n, i);
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(received(&n, &slot, packet, &buffers), 3000);
		assert_int_equal(buffers, 2);
		check(packet, 3000, (uint8_t)i);
	}
	close_net(&n);
}

static void transmit(struct net *n, uint32_t size, uint8_t seed) {
	memset(rig_at(&n->rig, TX_AT), 0, HEADER);
	uint8_t *p = rig_at(&n->rig, TX_AT + HEADER);
	for (uint32_t i = 0; i < size; i++)
		p[i] = (uint8_t)(seed + i);
	struct piece pieces[] = {
		{TX_AT, HEADER, false}, {TX_AT + HEADER, size / 2, false}, {TX_AT + HEADER + size / 2, size - size / 2, false}};
	vq_add(&n->tx, pieces, 3);
	vq_kick(&n->tx);
}

static void test_transmit(void **state) {
	struct net n;
	static uint8_t packet[70000];
	open_net(&n, ALL);
	uint32_t sizes[] = {60, 1514, 65549};
	for (unsigned i = 0; i < 3; i++) {
		transmit(&n, sizes[i], (uint8_t)i);
		vq_wait(&n.tx, NULL);
		assert_int_equal(recv(n.peer, packet, sizeof(packet), 0), HEADER + sizes[i]);
		check(packet + HEADER, sizes[i], (uint8_t)i);
	}
	// Too short and too long ones are dropped.
	vq_add(&n.tx, &(struct piece){TX_AT, 5, false}, 1);
	vq_add(&n.tx, &(struct piece){TX_AT, 100000, false}, 1);
	vq_add(&n.tx, &(struct piece){TX_AT, 100, true}, 1);
	vq_kick(&n.tx);
	for (unsigned i = 0; i < 3; i++)
		vq_wait(&n.tx, NULL);
	assert_int_equal(recv(n.peer, packet, sizeof(packet), 0), -1);
	// Nobody takes packets: the rest waits in the queue, and goes when there is room again.
	unsigned done = 0;
	for (unsigned i = 0; i < 500; i++) {
		if (n.tx.free_count < 3)
			break;
		transmit(&n, 60000, 7);
		for (unsigned k = 0; k < 3; k++)
			rig_run(&n.rig, 0);
		while (vq_take(&n.tx, NULL) >= 0)
			done++;
	}
	assert_true(n.tx.free_count < 3);
	while (n.tx.free_count < 64) {
		ssize_t got = recv(n.peer, packet, sizeof(packet), 0);
		assert_true(got == HEADER + 60000 || errno == EAGAIN);
		rig_run(&n.rig, 0);
		while (vq_take(&n.tx, NULL) >= 0)
			done++;
	}
	assert_false(driver_needs_reset(&n.rig));
	close_net(&n);
}

static void test_no_link(void **state) {
	struct net n = {.peer = -1};
	open_over(&n, open("/dev/null", O_RDWR | O_CLOEXEC), ALL);
	assert_int_equal(virtio_mmio_read(n.rig.device, VIRTIO_MMIO_CONFIG + 6, 2), 0);
	post(&n, 0);
	transmit(&n, 100, 0);
	vq_wait(&n.tx, NULL);
	assert_int_equal(vq_take(&n.rx, NULL), -1);
	rig_close(&n.rig);
	// The other end goes away: silence, and no busy loop.
	open_net(&n, ALL);
	post(&n, 0);
	close(n.peer);
	for (unsigned i = 0; i < 5; i++)
		rig_run(&n.rig, 5);
	transmit(&n, 100, 0);
	vq_wait(&n.tx, NULL);
	for (unsigned i = 0; i < 5; i++)
		rig_run(&n.rig, 5);
	int events = 0;
	for (unsigned i = 0; i < 5; i++)
		events += loop_run_once(n.rig.loop, 5, n.rig.host.lock, n.rig.host.unlock, &n.rig);
	assert_int_equal(events, 0);
	rig_close(&n.rig);
}

static void test_snapshot(void **state) {
	struct net n;
	uint8_t section[1024];
	static uint8_t packet[70000];
	uint16_t buffers;
	open_net(&n, ALL);
	post(&n, 0);
	assert_int_equal(virtio_quiesce(n.rig.device, NULL), 0);
	from_network(&n, 50, 0);
	transmit(&n, 70, 3);
	assert_int_equal(loop_run_once(n.rig.loop, 20, n.rig.host.lock, n.rig.host.unlock, &n.rig) >= 0, 1);
	assert_int_equal(vq_take(&n.rx, NULL), -1);
	struct writer w = writer_over(section, sizeof(section));
	assert_int_equal(virtio_save(n.rig.device, &w), 0);
	int pair[2];
	assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, pair), 0);
	struct virtio_device *d;
	assert_int_equal(virtio_net_create(&n.rig.host, 5, pair[0], mac, &d, NULL), 0);
	struct reader r = reader_over(section, sizeof(section) - w.left);
	assert_int_equal(virtio_load(d, &r, NULL), 0);
	driver_moved(&n.rig, d);
	virtio_resume(d);
	vq_wait(&n.tx, NULL);
	assert_int_equal(recv(pair[1], packet, sizeof(packet), 0), HEADER + 70);
	close(n.peer);
	n.peer = pair[1];
	from_network(&n, 51, 9);
	unsigned slot = 0;
	assert_int_equal(received(&n, &slot, packet, &buffers), 51);
	check(packet, 51, 9);
	// Without a link after a restore: the driver is told. With another address: refused.
	assert_int_equal(virtio_net_create(&n.rig.host, 5, open("/dev/null", O_RDWR | O_CLOEXEC), mac, &d, NULL), 0);
	r = reader_over(section, sizeof(section) - w.left);
	assert_int_equal(virtio_load(d, &r, NULL), 0);
	driver_moved(&n.rig, d);
	virtio_resume(d);
	assert_int_equal(reg_read(&n.rig, VIRTIO_MMIO_INTERRUPT_STATUS) & VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_CONFIG);
	const uint8_t other[6] = {2, 0, 0, 0, 0, 8};
	assert_int_equal(virtio_net_create(&n.rig.host, 5, open("/dev/null", O_RDWR | O_CLOEXEC), other, &d, NULL), 0);
	r = reader_over(section, sizeof(section) - w.left);
	assert_int_equal(virtio_load(d, &r, NULL), -EINVAL);
	virtio_destroy(d);
	close_net(&n);
}

// A tap in a network namespace of its own, or -1.
static int make_tap(char name[IFNAMSIZ]) {
	if (unshare(CLONE_NEWNET) < 0)
		return -1;
	int tap = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
	struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	if (tap < 0 || ioctl(tap, TUNSETIFF, &request) < 0)
		return -1;
	memcpy(name, request.ifr_name, IFNAMSIZ);
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	request.ifr_flags = IFF_UP;
	assert_int_equal(ioctl(sock, SIOCSIFFLAGS, &request), 0);
	close(sock);
	return tap;
}

static void test_tap(void **state) {
	char name[IFNAMSIZ];
	int tap = make_tap(name);
	if (tap < 0)
		skip();
	struct net n = {.peer = -1};
	static uint8_t packet[70000];
	uint16_t buffers;
	unsigned slot = 0;
	struct sockaddr_ll at = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = (int)if_nametoindex(name)};
	int host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5));
	assert_int_equal(bind(host, (struct sockaddr *)&at, sizeof(at)), 0);
	open_over(&n, tap, ALL);
	for (unsigned i = 0; i < 32; i++)
		post(&n, i);
	uint8_t frame[200] = {[0 ... 5] = 0xff, [6 ... 11] = 2, 0x88, 0xb5, 'h', 'i'};
	assert_int_equal(send(host, frame, sizeof(frame), 0), sizeof(frame));
	// The kernel has its own things to say on a fresh interface.
	for (unsigned i = 0; i < 30; i++) {
		size_t size = received(&n, &slot, packet, &buffers);
		if (size == sizeof(frame) && memcmp(packet, frame, size) == 0)
			break;
		assert_true(i < 29);
	}
	memset(rig_at(&n.rig, TX_AT), 0, HEADER);
	frame[14] = 'o';
	memcpy(rig_at(&n.rig, TX_AT + HEADER), frame, sizeof(frame));
	vq_add(&n.tx, &(struct piece){TX_AT, HEADER + sizeof(frame), false}, 1);
	vq_kick(&n.tx);
	vq_wait(&n.tx, NULL);
	for (;;) {
		ssize_t got = recv(host, packet, sizeof(packet), 0);
		assert_true(got > 0);
		if (got == sizeof(frame) && memcmp(packet, frame, sizeof(frame)) == 0)
			break;
	}
	// A header that the kernel refuses: dropped, and on it goes.
	struct virtio_net_hdr_v1 bad = {.gso_type = 0x7f, .gso_size = 1, .flags = VIRTIO_NET_HDR_F_NEEDS_CSUM, .csum_start = 60000};
	memcpy(rig_at(&n.rig, TX_AT), &bad, sizeof(bad));
	vq_add(&n.tx, &(struct piece){TX_AT, HEADER + sizeof(frame), false}, 1);
	vq_kick(&n.tx);
	vq_wait(&n.tx, NULL);
	struct vmm_stats s = {0};
	virtio_stats(n.rig.device, &s);
	assert_int_equal(s.net_dropped, 1);
	close(host);
	rig_close(&n.rig);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_receive), cmocka_unit_test(test_back_pressure), cmocka_unit_test(test_transmit),
		cmocka_unit_test(test_no_link), cmocka_unit_test(test_snapshot),      cmocka_unit_test(test_tap),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
