// The vsock device: its packets as a guest sends and gets them, and its Unix socket as stasisd uses it.
#include "test_virtio_driver.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/wire.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define ALL (~0ull)
#define CID 3
#define RX_BUFFERS 64u
#define RX_BYTES 4096u
#define RX_AT 0x800000u
#define TX_AT 0xa00000u
#define EVENTS_AT 0x700000u
#define WINDOW 131072u // of the device, as its packets say

struct vs {
	struct rig rig;
	struct vq rx, tx, event;
	char folder[64], path[80];
	int listen_fd;
	uint32_t buf_alloc; // that the guest grants
	uint32_t tx_payload_at;
};

struct packet {
	struct virtio_vsock_hdr h;
	uint8_t data[RX_BYTES];
};

static struct virtio_device *make(struct vs *v) {
	struct virtio_device *d = NULL;
	struct error e = {0};
	if (virtio_vsock_create(&v->rig.host, 5, dup(v->listen_fd), CID, &d, &e) < 0)
		fail_msg("%s", e.message);
	return d;
}

static void post(struct vs *v, uint64_t at) {
	// Header and data apart, as Linux has had them.
	struct piece pieces[] = {{at, 44, true}, {at + 64, RX_BYTES - 64, true}};
	vq_add(&v->rx, pieces, 2);
}

static void drive(struct vs *v, unsigned buffers) {
	driver_begin(&v->rig, ALL);
	assert_int_equal(virtio_mmio_read(v->rig.device, VIRTIO_MMIO_CONFIG, 8), CID);
	driver_queue(&v->rig, &v->rx, 0, 2 * RX_BUFFERS);
	driver_queue(&v->rig, &v->tx, 1, 128);
	driver_queue(&v->rig, &v->event, 2, 8);
	driver_ok(&v->rig);
	for (unsigned i = 0; i < buffers; i++)
		post(v, RX_AT + RX_BYTES * i);
	for (unsigned i = 0; i < 8; i++)
		vq_add(&v->event, &(struct piece){EVENTS_AT + 16 * i, 4, true}, 1);
	vq_kick(&v->rx);
	vq_kick(&v->event);
}

static void open_undriven(struct vs *v) {
	memset(v, 0, sizeof(*v));
	rig_open(&v->rig);
	v->buf_alloc = 262144;
	strcpy(v->folder, "/tmp/stasis-vsock-XXXXXX");
	assert_non_null(mkdtemp(v->folder));
	snprintf(v->path, sizeof(v->path), "%s/s", v->folder);
	v->listen_fd = unix_listen(v->path, SOCK_STREAM, 1024, NULL);
	assert_true(v->listen_fd >= 0);
	v->rig.device = make(v);
}

static void open_vs(struct vs *v) {
	open_undriven(v);
	drive(v, RX_BUFFERS);
}

static void close_vs(struct vs *v) {
	assert_false(driver_needs_reset(&v->rig));
	rig_close(&v->rig);
	close(v->listen_fd);
	unlink(v->path);
	rmdir(v->folder);
}

// The next packet that the guest gets; false: none within the time.
static bool get_within(struct vs *v, struct packet *p, int timeout_ms) {
	uint64_t end = monotonic_ms() + (uint64_t)timeout_ms;
	for (unsigned tries = 0;; tries++) {
		// The head's first descriptor says where the buffer lies.
		const uint8_t *used = rig_at(&v->rig, v->rx.used);
		uint16_t index = *(const uint16_t *)(const void *)(used + 2);
		if (index != v->rx.used_index) {
			struct vring_used_elem e;
			struct vring_desc d;
			memcpy(&e, used + 4 + 8 * (size_t)(v->rx.used_index % v->rx.size), sizeof(e));
			memcpy(&d, (uint8_t *)rig_at(&v->rig, v->rx.descriptors) + 16 * (size_t)e.id, sizeof(d));
			uint32_t n;
			assert_true(vq_take(&v->rx, &n) >= 0);
			memcpy(&p->h, rig_at(&v->rig, d.addr), 44);
			assert_int_equal(n, 44 + p->h.len);
			memcpy(p->data, rig_at(&v->rig, d.addr + 64), p->h.len);
			assert_int_equal(p->h.src_cid, 2);
			assert_int_equal(p->h.dst_cid, CID);
			post(v, d.addr);
			vq_kick(&v->rx);
			return true;
		}
		if (tries > 0 && monotonic_ms() >= end)
			return false;
		rig_run(&v->rig, timeout_ms < 10 ? timeout_ms : 10);
	}
}

static struct packet get(struct vs *v, uint16_t op) {
	struct packet p;
	if (!get_within(v, &p, 10000))
		fail_msg("no packet, op %u was due", op);
	if (p.h.op != op)
		fail_msg("op %u, not %u", p.h.op, op);
	return p;
}

static void nothing(struct vs *v) {
	struct packet p;
	if (get_within(v, &p, 30))
		fail_msg("op %u, where nothing was due", p.h.op);
}

static void put_typed(struct vs *v, uint16_t type, uint16_t op, uint32_t guest_port, uint32_t host_port, uint32_t flags, uint32_t fwd_cnt,
		      const void *data, uint32_t n) {
	struct virtio_vsock_hdr h = {.src_cid = CID,
				     .dst_cid = 2,
				     .src_port = guest_port,
				     .dst_port = host_port,
				     .len = n,
				     .type = type,
				     .op = op,
				     .flags = flags,
				     .buf_alloc = v->buf_alloc,
				     .fwd_cnt = fwd_cnt};
	memcpy(rig_at(&v->rig, TX_AT), &h, sizeof(h));
	if (n > 0)
		memcpy(rig_at(&v->rig, TX_AT + 64), data, n);
	struct piece pieces[] = {{TX_AT, 44, false}, {TX_AT + 64, n, false}};
	vq_add(&v->tx, pieces, n > 0 ? 2 : 1);
	vq_kick(&v->tx);
}

static void put(struct vs *v, uint16_t op, const struct packet *to, uint32_t flags, uint32_t fwd_cnt, const void *data, uint32_t n) {
	put_typed(v, VIRTIO_VSOCK_TYPE_STREAM, op, to->h.dst_port, to->h.src_port, flags, fwd_cnt, data, n);
	vq_wait(&v->tx, NULL);
}

static int client(struct vs *v, const char *line) {
	int fd = unix_connect(v->path, SOCK_STREAM, NULL);
	assert_true(fd >= 0);
	assert_int_equal(send(fd, line, strlen(line), MSG_NOSIGNAL), strlen(line));
	return fd;
}

// Reads until the line's end, while the device runs. NULL at the end of the stream.
static const char *line_from(struct vs *v, int fd) {
	static char line[128];
	size_t n = 0;
	for (uint64_t end = monotonic_ms() + 10000; monotonic_ms() < end;) {
		ssize_t got = recv(fd, line + n, 1, MSG_DONTWAIT);
		if (got == 0)
			return NULL;
		if (got < 0) {
			assert_int_equal(errno, EAGAIN);
			rig_run(&v->rig, 10);
			continue;
		}
		if (line[n++] == '\n') {
			line[n] = '\0';
			return line;
		}
	}
	fail_msg("no line");
	return NULL;
}

static bool is_at_end(struct vs *v, int fd) {
	char byte;
	for (unsigned i = 0; i < 500; i++) {
		ssize_t n = recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK);
		if (n >= 0)
			return n == 0;
		if (errno != EAGAIN)
			return true;
		rig_run(&v->rig, 10);
	}
	return false;
}

// A stream: the client's descriptor; *ret is the REQUEST, which names both ports.
static int connected(struct vs *v, uint32_t port, struct packet *ret) {
	char line[32], expected[32];
	snprintf(line, sizeof(line), "CONNECT %u\n", port);
	int fd = client(v, line);
	*ret = get(v, VIRTIO_VSOCK_OP_REQUEST);
	assert_int_equal(ret->h.dst_port, port);
	assert_true(ret->h.src_port >= 1u << 30 && ret->h.buf_alloc == WINDOW);
	put(v, VIRTIO_VSOCK_OP_RESPONSE, ret, 0, 0, NULL, 0);
	snprintf(expected, sizeof(expected), "OK %u\n", ret->h.src_port);
	assert_string_equal(line_from(v, fd), expected);
	return fd;
}

static void test_data(void **state) {
	struct vs v;
	struct packet s, p;
	char buffer[64];
	open_vs(&v);
	int fd = connected(&v, 1024, &s);
	assert_int_equal(send(fd, "hello", 5, 0), 5);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(p.h.len, 5);
	assert_memory_equal(p.data, "hello", 5);
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 5, "world!", 6);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 6);
	assert_memory_equal(buffer, "world!", 6);
	put(&v, VIRTIO_VSOCK_OP_CREDIT_REQUEST, &s, 0, 5, NULL, 0);
	p = get(&v, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(p.h.fwd_cnt, 6);
	// What the client sends along with its line belongs to the stream.
	int early = client(&v, "CONNECT 7\nGET /");
	s = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	nothing(&v);
	put(&v, VIRTIO_VSOCK_OP_RESPONSE, &s, 0, 0, NULL, 0);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	assert_memory_equal(p.data, "GET /", 5);
	struct vmm_stats stats = {0};
	virtio_stats(v.rig.device, &stats);
	assert_int_equal(stats.vsock_streams, 2);
	assert_int_equal(stats.vsock_rx_bytes, 10);
	assert_int_equal(stats.vsock_tx_bytes, 6);
	close(fd);
	close(early);
	close_vs(&v);
}

static void test_refusals(void **state) {
	struct vs v;
	struct packet s;
	open_vs(&v);
	int fd = client(&v, "CONNECT 22\n");
	s = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	put(&v, VIRTIO_VSOCK_OP_RST, &s, 0, 0, NULL, 0);
	assert_string_equal(line_from(&v, fd), "ERR ECONNREFUSED\n");
	assert_true(is_at_end(&v, fd));
	close(fd);
	static const char *const bad[] = {
		"CONNECT\n",   "CONNECT \n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECT 1 \n", "CONNECT 99999999999\n",
		"connect 1\n", "\n",         "ATTACH x\n",   "GET / HTTP/1.1\r\n"};
	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		fd = client(&v, bad[i]);
		assert_string_equal(line_from(&v, fd), "ERR EINVAL\n");
		assert_true(is_at_end(&v, fd));
		close(fd);
	}
	fd = client(&v, "ATTACH 1073741824\n");
	assert_string_equal(line_from(&v, fd), "ERR ENOENT\n");
	close(fd);
	fd = client(&v, "CONNECT 0000000000000000000000000000000000000000000000001");
	assert_true(is_at_end(&v, fd));
	close(fd);
	// In pieces.
	fd = client(&v, "CONN");
	rig_run(&v.rig, 10);
	assert_int_equal(send(fd, "ECT 4294967295\nxyz", 18, 0), 18);
	s = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	assert_int_equal(s.h.dst_port, UINT32_MAX);
	// The client gives up before the guest answers.
	close(fd);
	get(&v, VIRTIO_VSOCK_OP_RST);
	put(&v, VIRTIO_VSOCK_OP_RESPONSE, &s, 0, 0, NULL, 0);
	get(&v, VIRTIO_VSOCK_OP_RST);
	// The guest wants to connect; it sends for streams that are not; other types.
	put_typed(&v, VIRTIO_VSOCK_TYPE_STREAM, VIRTIO_VSOCK_OP_REQUEST, 5, 6, 0, 0, NULL, 0);
	s = get(&v, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(s.h.src_port, 6);
	assert_int_equal(s.h.dst_port, 5);
	put_typed(&v, VIRTIO_VSOCK_TYPE_SEQPACKET, VIRTIO_VSOCK_OP_RW, 5, 6, 0, 0, "x", 1);
	s = get(&v, VIRTIO_VSOCK_OP_RST);
	assert_int_equal(s.h.type, VIRTIO_VSOCK_TYPE_SEQPACKET);
	put_typed(&v, VIRTIO_VSOCK_TYPE_STREAM, VIRTIO_VSOCK_OP_RST, 5, 6, 0, 0, NULL, 0);
	nothing(&v);
	close_vs(&v);
}

static void test_half_close(void **state) {
	struct vs v;
	struct packet s, p;
	char buffer[64];
	open_vs(&v);
	// The client first: the guest still answers.
	int fd = connected(&v, 80, &s);
	assert_int_equal(send(fd, "ask", 3, 0), 3);
	shutdown(fd, SHUT_WR);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	p = get(&v, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(p.h.flags, VIRTIO_VSOCK_SHUTDOWN_SEND);
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 3, "answer", 6);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 6);
	put(&v, VIRTIO_VSOCK_OP_SHUTDOWN, &s, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND, 3, NULL, 0);
	get(&v, VIRTIO_VSOCK_OP_RST);
	assert_true(is_at_end(&v, fd));
	close(fd);
	nothing(&v);
	// The guest first.
	fd = connected(&v, 80, &s);
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, "bye", 3);
	put(&v, VIRTIO_VSOCK_OP_SHUTDOWN, &s, VIRTIO_VSOCK_SHUTDOWN_SEND, 0, NULL, 0);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 3);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 0);
	assert_int_equal(send(fd, "still", 5, 0), 5);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(p.h.len, 5);
	close(fd);
	p = get(&v, VIRTIO_VSOCK_OP_SHUTDOWN);
	assert_int_equal(p.h.flags, VIRTIO_VSOCK_SHUTDOWN_RCV | VIRTIO_VSOCK_SHUTDOWN_SEND);
	put(&v, VIRTIO_VSOCK_OP_RST, &s, 0, 5, NULL, 0);
	nothing(&v);
	// The client closes at once; what it had sent arrives first.
	fd = connected(&v, 80, &s);
	assert_int_equal(send(fd, "last", 4, 0), 4);
	close(fd);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	p = get(&v, VIRTIO_VSOCK_OP_SHUTDOWN);
	// The guest sends on: it did not know yet. It is told.
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 4, "late", 4);
	get(&v, VIRTIO_VSOCK_OP_RST);
	nothing(&v);
	// RST in the middle.
	fd = connected(&v, 80, &s);
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, "cut", 3);
	put(&v, VIRTIO_VSOCK_OP_RST, &s, 0, 0, NULL, 0);
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 3);
	assert_true(is_at_end(&v, fd));
	close(fd);
	nothing(&v);
	// Nonsense within a stream.
	fd = connected(&v, 80, &s);
	put(&v, 77, &s, 0, 0, NULL, 0);
	get(&v, VIRTIO_VSOCK_OP_RST);
	assert_true(is_at_end(&v, fd));
	close(fd);
	struct vmm_stats stats = {0};
	virtio_stats(v.rig.device, &stats);
	assert_int_equal(stats.vsock_streams, 0);
	close_vs(&v);
}

static uint8_t pattern(uint64_t i) {
	return (uint8_t)(i * 31 + i / 251);
}

// The client sends much, the guest reads in small steps: never more than its window is under way, and nothing is lost.
static void test_credit_to_guest(void **state) {
	struct vs v;
	struct packet s, p;
	open_vs(&v);
	v.buf_alloc = 10000;
	int fd = connected(&v, 80, &s);
	fcntl(fd, F_SETFL, O_NONBLOCK);
	uint64_t written = 0, got = 0, forwarded = 0;
	const uint64_t all = 3000000;
	unsigned asked = 0;
	while (got < all) {
		uint8_t chunk[8192];
		for (unsigned i = 0; i < sizeof(chunk); i++)
			chunk[i] = pattern(written + i);
		uint64_t left = all - written;
		ssize_t n = left > 0 ? send(fd, chunk, left < sizeof(chunk) ? left : sizeof(chunk), 0) : 0;
		written += n > 0 ? (uint64_t)n : 0;
		while (get_within(&v, &p, 0)) {
			if (p.h.op == VIRTIO_VSOCK_OP_CREDIT_REQUEST) {
				asked++;
				continue;
			}
			assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_RW);
			for (unsigned i = 0; i < p.h.len; i++)
				assert_int_equal(p.data[i], pattern(got + i));
			got += p.h.len;
			assert_true(got - forwarded <= v.buf_alloc);
		}
		if (got - forwarded == v.buf_alloc || got == all) {
			forwarded = got;
			put(&v, VIRTIO_VSOCK_OP_CREDIT_UPDATE, &s, 0, (uint32_t)forwarded, NULL, 0);
		}
	}
	assert_true(asked > 0 && asked <= all / 10000 + 1);
	close(fd);
	close_vs(&v);
}

// The guest sends what its credit allows, the client reads late.
static void test_credit_to_host(void **state) {
	struct vs v;
	struct packet s, p;
	open_vs(&v);
	int fd = connected(&v, 80, &s);
	uint64_t sent = 0, got = 0;
	uint32_t forwarded = 0;
	static uint8_t chunk[60000];
	const uint64_t all = 5000000;
	while (got < all) {
		while (sent < all && sent - forwarded < WINDOW) {
			uint64_t n = WINDOW - (sent - forwarded);
			n = n < sizeof(chunk) ? n : sizeof(chunk);
			n = n < all - sent ? n : all - sent;
			for (unsigned i = 0; i < n; i++)
				chunk[i] = pattern(sent + i);
			put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, chunk, (uint32_t)n);
			sent += n;
			while (get_within(&v, &p, 0)) {
				assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
				forwarded = p.h.fwd_cnt;
			}
		}
		ssize_t n = recv(fd, chunk, sizeof(chunk), MSG_DONTWAIT);
		for (ssize_t i = 0; i < n; i++)
			assert_int_equal(chunk[i], pattern(got + (uint64_t)i));
		got += n > 0 ? (uint64_t)n : 0;
		rig_run(&v.rig, 0);
		while (get_within(&v, &p, 0)) {
			assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
			forwarded = p.h.fwd_cnt;
		}
	}
	// The guest ends while much waits: the client gets all of it.
	while (recv(fd, chunk, sizeof(chunk), MSG_DONTWAIT) > 0)
		rig_run(&v.rig, 0);
	uint64_t rest = 0;
	put(&v, VIRTIO_VSOCK_OP_CREDIT_REQUEST, &s, 0, 0, NULL, 0);
	forwarded = get(&v, VIRTIO_VSOCK_OP_CREDIT_UPDATE).h.fwd_cnt;
	assert_int_equal(forwarded, (uint32_t)sent);
	for (unsigned i = 0; i < 8; i++) {
		put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, chunk, 40000);
		rest += 40000;
		sent += 40000;
		while (get_within(&v, &p, 0))
			forwarded = p.h.fwd_cnt;
		if (sent - forwarded > WINDOW - 40000)
			break;
	}
	put(&v, VIRTIO_VSOCK_OP_SHUTDOWN, &s, 3, 0, NULL, 0);
	do
		assert_true(get_within(&v, &p, 5000));
	while (p.h.op != VIRTIO_VSOCK_OP_RST);
	while (rest > 0) {
		ssize_t n = recv(fd, chunk, sizeof(chunk), MSG_DONTWAIT);
		assert_true(n != 0);
		rest -= n > 0 ? (uint64_t)n : 0;
		rig_run(&v.rig, 0);
	}
	assert_true(is_at_end(&v, fd));
	close(fd);
	// More than the credit: reset.
	fd = connected(&v, 80, &s);
	bool reset = false;
	for (unsigned i = 0; i < 30 && !reset; i++) {
		put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, chunk, 60000);
		while (get_within(&v, &p, 0))
			reset = p.h.op == VIRTIO_VSOCK_OP_RST;
	}
	assert_true(reset);
	close(fd);
	close_vs(&v);
}

static void test_thousand(void **state) {
	enum { N = 1000 };
	static int fds[N];
	static struct packet streams[N];
	struct rlimit files = {.rlim_cur = 4096, .rlim_max = 4096};
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		skip();
	struct vs v;
	open_vs(&v);
	unsigned answered = 0;
	struct packet p;
	for (unsigned i = 0; i < N; i++) {
		char line[32];
		snprintf(line, sizeof(line), "CONNECT %u\n", i);
		fds[i] = client(&v, line);
		if (i % 500 == 499) {
			while (answered <= i) {
				p = get(&v, VIRTIO_VSOCK_OP_REQUEST);
				streams[p.h.dst_port] = p;
				put(&v, VIRTIO_VSOCK_OP_RESPONSE, &p, 0, 0, NULL, 0);
				answered++;
			}
		}
	}
	for (unsigned i = 0; i < N; i++)
		assert_memory_equal(line_from(&v, fds[i]), "OK ", 3);
	for (unsigned round = 0; round < 3; round++) {
		for (unsigned i = 0; i < N; i++)
			assert_int_equal(send(fds[i], &i, sizeof(i), 0), sizeof(i));
		for (unsigned n = 0; n < N; n++) {
			p = get(&v, VIRTIO_VSOCK_OP_RW);
			assert_int_equal(p.h.len, 4);
			assert_memory_equal(p.data, &p.h.dst_port, 4);
			put(&v, VIRTIO_VSOCK_OP_RW, &p, 0, 4 * (round + 1), p.data, 4);
		}
		for (unsigned i = 0; i < N; i++) {
			unsigned echo;
			assert_int_equal(recv(fds[i], &echo, sizeof(echo), 0), sizeof(echo));
			assert_int_equal(echo, i);
		}
	}
	// 24 more find room, the next one does not.
	int more[25];
	for (unsigned i = 0; i < 25; i++)
		more[i] = client(&v, "CONNECT 5000\n");
	for (unsigned i = 0; i < 24; i++)
		get(&v, VIRTIO_VSOCK_OP_REQUEST);
	assert_string_equal(line_from(&v, more[24]), "ERR EMFILE\n");
	for (unsigned i = 0; i < 25; i++)
		close(more[i]);
	for (unsigned i = 0; i < 24; i++)
		get(&v, VIRTIO_VSOCK_OP_RST);
	for (unsigned i = 0; i < N; i++)
		put(&v, VIRTIO_VSOCK_OP_RST, &streams[i], 0, 0, NULL, 0);
	for (unsigned i = 0; i < N; i++) {
		assert_true(is_at_end(&v, fds[i]));
		close(fds[i]);
	}
	int fd = connected(&v, 1, &p);
	close(fd);
	close_vs(&v);
}

// Without room for answers, the guest's packets wait, and nothing is lost.
static void test_no_room(void **state) {
	struct vs v;
	struct packet p;
	open_undriven(&v);
	drive(&v, 0);
	for (unsigned i = 0; i < 120; i++) {
		// Separate places, for these wait in the queue.
		struct virtio_vsock_hdr h = {
			.src_cid = CID, .dst_cid = 2, .src_port = i, .dst_port = 9, .type = 1, .op = VIRTIO_VSOCK_OP_RW};
		memcpy(rig_at(&v.rig, TX_AT + 64 * i), &h, sizeof(h));
		vq_add(&v.tx, &(struct piece){TX_AT + 64 * i, 44, false}, 1);
	}
	vq_kick(&v.tx);
	for (unsigned i = 0; i < 10; i++)
		rig_run(&v.rig, 5);
	unsigned taken = 0;
	while (vq_take(&v.tx, NULL) >= 0)
		taken++;
	assert_int_equal(taken, 64);
	for (unsigned i = 0; i < 4; i++)
		post(&v, RX_AT + RX_BYTES * i);
	vq_kick(&v.rx);
	for (unsigned i = 0; i < 120; i++) {
		p = get(&v, VIRTIO_VSOCK_OP_RST);
		assert_int_equal(p.h.dst_port, i);
	}
	while (vq_take(&v.tx, NULL) >= 0)
		taken++;
	assert_int_equal(taken, 120);
	close_vs(&v);
}

// A client may come before the driver, and before the one after it.
static void test_before_driver(void **state) {
	struct vs v;
	struct packet s;
	open_undriven(&v);
	int fd = client(&v, "CONNECT 1024\n");
	for (unsigned i = 0; i < 3; i++)
		rig_run(&v.rig, 10);
	drive(&v, RX_BUFFERS);
	s = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	put(&v, VIRTIO_VSOCK_OP_RESPONSE, &s, 0, 0, NULL, 0);
	assert_memory_equal(line_from(&v, fd), "OK ", 3);
	// The guest reboots.
	reg_write(&v.rig, VIRTIO_MMIO_STATUS, 0);
	assert_true(is_at_end(&v, fd));
	close(fd);
	fd = client(&v, "CONNECT 1025\n");
	rig_run(&v.rig, 10);
	drive(&v, RX_BUFFERS);
	get(&v, VIRTIO_VSOCK_OP_REQUEST);
	close(fd);
	close_vs(&v);
}

static uint8_t section[4 << 20];

static size_t save(struct vs *v) {
	assert_int_equal(virtio_quiesce(v->rig.device, NULL), 0);
	struct writer w = writer_over(section, sizeof(section));
	assert_int_equal(virtio_save(v->rig.device, &w), 0);
	return sizeof(section) - w.left;
}

static void load(struct vs *v, size_t n, bool clone) {
	struct virtio_device *d = make(v);
	struct reader r = reader_over(section, n);
	struct error e = {0};
	if (virtio_load(d, &r, &e) < 0)
		fail_msg("%s", e.message);
	assert_int_equal(r.left, 0);
	if (clone)
		virtio_vsock_transport_reset(d);
	driver_moved(&v->rig, d);
	virtio_resume(d);
}

static void test_attach(void **state) {
	struct vs v;
	struct packet s[4], p;
	char line[64], buffer[64];
	int fds[4];
	open_vs(&v);
	for (unsigned i = 0; i < 4; i++)
		fds[i] = connected(&v, 100 + i, &s[i]);
	// Stream 0: bytes of the client that the guest has no credit for. 1: bytes of the guest that the client does not read. 2: the guest has ended. 3: as it is.
	assert_int_equal(send(fds[0], "before", 6, 0), 6);
	get(&v, VIRTIO_VSOCK_OP_RW);
	static uint8_t much[2000000];
	for (unsigned i = 0; i < sizeof(much); i++)
		much[i] = pattern(i);
	uint32_t sent = 0, forwarded = 0;
	while (sent - forwarded + 40000 <= WINDOW && sent + 40000 <= sizeof(much)) {
		put(&v, VIRTIO_VSOCK_OP_RW, &s[1], 0, 0, much + sent, 40000);
		sent += 40000;
		while (get_within(&v, &p, 0))
			forwarded = p.h.fwd_cnt;
	}
	put(&v, VIRTIO_VSOCK_OP_SHUTDOWN, &s[2], VIRTIO_VSOCK_SHUTDOWN_SEND, 0, NULL, 0);
	int half = client(&v, "CONNECT 999\n");
	struct packet half_open = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	// These the device never reads before it is quiet.
	static uint8_t late[150000];
	for (unsigned i = 0; i < sizeof(late); i++)
		late[i] = pattern(i);
	fcntl(fds[0], F_SETFL, O_NONBLOCK);
	ssize_t queued = send(fds[0], late, sizeof(late), 0);
	assert_true(queued > 0);
	size_t n = save(&v);
	load(&v, n, false);
	// What the old VMM had written is there; then its end.
	uint32_t got = 0;
	for (ssize_t r; (r = recv(fds[1], buffer, sizeof(buffer), 0)) > 0; got += (uint32_t)r)
		assert_memory_equal(buffer, much + got, r);
	assert_true(got < sent);
	assert_true(is_at_end(&v, half));
	p = get(&v, VIRTIO_VSOCK_OP_RW); // detached streams go on towards the guest
	assert_int_equal(p.h.dst_port, 100);
	uint32_t at = p.h.len;
	assert_memory_equal(p.data, late, at);
	bool reset = false;
	while (at < (uint32_t)queued || !reset) {
		assert_true(get_within(&v, &p, 5000));
		if (p.h.op == VIRTIO_VSOCK_OP_RST) {
			assert_int_equal(p.h.src_port, half_open.h.src_port);
			reset = true;
			continue;
		}
		if (p.h.op != VIRTIO_VSOCK_OP_RW)
			continue;
		assert_memory_equal(p.data, late + at, p.h.len);
		at += p.h.len;
	}
	for (unsigned i = 0; i < 4; i++) {
		close(fds[i]);
		snprintf(line, sizeof(line), "ATTACH %u\n", s[i].h.src_port);
		fds[i] = client(&v, line);
		snprintf(line, sizeof(line), "OK %u\n", s[i].h.src_port);
		assert_string_equal(line_from(&v, fds[i]), line);
		snprintf(line, sizeof(line), "ATTACH %u\n", s[i].h.src_port);
		int twice = client(&v, line);
		assert_string_equal(line_from(&v, twice), "ERR EBUSY\n");
		close(twice);
	}
	while (got < sent) {
		ssize_t r = recv(fds[1], buffer, sizeof(buffer), MSG_DONTWAIT);
		assert_true(r != 0);
		if (r > 0) {
			assert_memory_equal(buffer, much + got, r);
			got += (uint32_t)r;
		}
		rig_run(&v.rig, 0);
	}
	assert_true(is_at_end(&v, fds[2]));
	while (get_within(&v, &p, 0))
		assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_CREDIT_UPDATE);
	assert_int_equal(send(fds[3], "go on", 5, 0), 5);
	p = get(&v, VIRTIO_VSOCK_OP_RW);
	assert_int_equal(p.h.dst_port, 103);
	put(&v, VIRTIO_VSOCK_OP_RW, &s[3], 0, 5, "yes", 3);
	assert_int_equal(recv(fds[3], buffer, sizeof(buffer), 0), 3);
	// A new stream's port is not one that was there before.
	struct packet fresh;
	int fd = connected(&v, 5, &fresh);
	for (unsigned i = 0; i < 4; i++)
		assert_int_not_equal(fresh.h.src_port, s[i].h.src_port);
	close(fd);
	for (unsigned i = 0; i < 4; i++)
		close(fds[i]);
	close(half);
	close_vs(&v);
}

// Pause and go on in the same VMM.
static void test_pause(void **state) {
	struct vs v;
	struct packet s, p;
	char buffer[16];
	open_vs(&v);
	int fd = connected(&v, 80, &s);
	assert_int_equal(send(fd, "one", 3, 0), 3);
	save(&v);
	assert_int_equal(send(fd, "two", 3, 0), 3);
	int other = client(&v, "CONNECT 81\n");
	for (unsigned i = 0; i < 5; i++)
		rig_run(&v.rig, 5);
	put_typed(&v, VIRTIO_VSOCK_TYPE_STREAM, VIRTIO_VSOCK_OP_RW, 80, s.h.src_port, 0, 0, "back", 4);
	for (unsigned i = 0; i < 5; i++)
		rig_run(&v.rig, 5);
	assert_int_equal(vq_take(&v.tx, NULL), -1);
	virtio_resume(v.rig.device);
	vq_wait(&v.tx, NULL);
	char all[8] = {0};
	for (unsigned n = 0; n < 6; n += p.h.len) {
		do
			assert_true(get_within(&v, &p, 1000));
		while (p.h.op == VIRTIO_VSOCK_OP_REQUEST);
		memcpy(all + n, p.data, p.h.len);
	}
	assert_string_equal(all, "onetwo");
	assert_int_equal(recv(fd, buffer, sizeof(buffer), 0), 4);
	close(fd);
	close(other);
	close_vs(&v);
}

static void test_transport_reset(void **state) {
	struct vs v;
	struct packet s, p;
	open_vs(&v);
	// Without streams nothing happens.
	size_t n = save(&v);
	load(&v, n, true);
	rig_run(&v.rig, 10);
	assert_int_equal(vq_take(&v.event, NULL), -1);
	int fd = connected(&v, 80, &s);
	n = save(&v);
	load(&v, n, true);
	uint32_t length;
	uint16_t head = vq_wait(&v.event, &length);
	assert_int_equal(length, 4);
	assert_int_equal(*(uint32_t *)rig_at(&v.rig, EVENTS_AT + 16 * head), VIRTIO_VSOCK_EVENT_TRANSPORT_RESET);
	assert_true(is_at_end(&v, fd));
	close(fd);
	// A new stream waits until the guest has taken notice.
	fd = client(&v, "CONNECT 80\n");
	nothing(&v);
	char line[64];
	snprintf(line, sizeof(line), "ATTACH %u\n", s.h.src_port);
	int gone = client(&v, line);
	assert_string_equal(line_from(&v, gone), "ERR ENOENT\n");
	close(gone);
	// That survives a snapshot as well.
	n = save(&v);
	load(&v, n, false);
	close(fd);
	fd = client(&v, "CONNECT 80\n");
	nothing(&v);
	vq_add(&v.event, &(struct piece){EVENTS_AT, 4, true}, 1);
	vq_kick(&v.event);
	p = get(&v, VIRTIO_VSOCK_OP_REQUEST);
	put(&v, VIRTIO_VSOCK_OP_RESPONSE, &p, 0, 0, NULL, 0);
	assert_memory_equal(line_from(&v, fd), "OK ", 3);
	// The old stream is unknown.
	put(&v, VIRTIO_VSOCK_OP_RW, &s, 0, 0, "x", 1);
	get(&v, VIRTIO_VSOCK_OP_RST);
	close(fd);
	close_vs(&v);
}

// Who says nothing is not waited for: a client without a wish, a guest that does not end a stream.
static void test_timeouts(void **state) {
	struct vs v;
	struct packet s, p;
	open_vs(&v);
	uint64_t start = monotonic_ms();
	int silent = client(&v, "CONN");
	int fd = connected(&v, 80, &s);
	close(fd);
	get(&v, VIRTIO_VSOCK_OP_SHUTDOWN);
	char byte;
	while (recv(silent, &byte, 1, MSG_DONTWAIT) < 0) {
		assert_true(monotonic_ms() - start < 8000);
		rig_run(&v.rig, 100);
	}
	assert_true(monotonic_ms() - start > 4500);
	assert_true(get_within(&v, &p, 8000));
	assert_int_equal(p.h.op, VIRTIO_VSOCK_OP_RST);
	assert_true(monotonic_ms() - start > 9500);
	// Nobody is waited for now: the clock stands still.
	for (unsigned i = 0; i < 3; i++)
		rig_run(&v.rig, 1100);
	assert_int_equal(loop_run_once(v.rig.loop, 1200, v.rig.host.lock, v.rig.host.unlock, &v.rig), 0);
	close(silent);
	close_vs(&v);
}

static void test_damaged_state(void **state) {
	struct vs v;
	struct packet s;
	open_vs(&v);
	int fd = connected(&v, 80, &s);
	assert_int_equal(send(fd, "abc", 3, 0), 3);
	v.buf_alloc = 0;
	size_t n = save(&v);
	for (size_t i = 0; i < n; i++) {
		struct virtio_device *d = make(&v);
		struct reader r = reader_over(section, i);
		struct error e = {0};
		assert_true(virtio_load(d, &r, &e) < 0);
		assert_true(e.message[0] != '\0');
		virtio_destroy(d);
	}
	for (size_t bit = 0; bit < n * 8; bit++) {
		struct virtio_device *d = make(&v);
		section[bit / 8] ^= (uint8_t)(1 << bit % 8);
		struct reader r = reader_over(section, n);
		if (virtio_load(d, &r, NULL) == 0) {
			virtio_resume(d);
			rig_run(&v.rig, 0);
		}
		virtio_destroy(d);
		section[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	close(fd);
	rig_close(&v.rig);
	close(v.listen_fd);
	unlink(v.path);
	rmdir(v.folder);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_data),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_half_close),
		cmocka_unit_test(test_credit_to_guest),
		cmocka_unit_test(test_credit_to_host),
		cmocka_unit_test(test_thousand),
		cmocka_unit_test(test_no_room),
		cmocka_unit_test(test_before_driver),
		cmocka_unit_test(test_attach),
		cmocka_unit_test(test_pause),
		cmocka_unit_test(test_transport_reset),
		cmocka_unit_test(test_damaged_state),
		cmocka_unit_test(test_timeouts),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
