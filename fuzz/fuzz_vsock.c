// The vsock device: packets of the guest and bytes of Unix clients from the input (see fuzz_virtio.h).
#include "fuzz_virtio.h"

#include <linux/virtio_vsock.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define CLIENTS 4u

static int listen_fd = -1;
static struct sockaddr_un address = {.sun_family = AF_UNIX};
static socklen_t address_size;

static void start_listener(void) {
	address_size = sizeof(address);
	listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	// An abstract name that the kernel chooses.
	if (listen_fd < 0 || bind(listen_fd, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 || listen(listen_fd, 16) < 0 ||
	    getsockname(listen_fd, (struct sockaddr *)&address, &address_size) < 0)
		abort();
}

static struct virtio_device *make(struct fuzz_guest *g) {
	struct virtio_device *d;
	struct error e;
	if (virtio_vsock_create(&g->host, 1, dup(listen_fd), 3, &d, &e) < 0)
		abort();
	return d;
}

static int connect_client(void) {
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, address_size) < 0)
		abort();
	return fd;
}

// Eight receive buffers and the event buffers.
static void post_buffers(struct fuzz_guest *g) {
	for (uint16_t i = 0; i < 8; i++) {
		fuzz_descriptor(g, 0, i, 0x8000 + 0x400u * i, 0x400, VRING_DESC_F_WRITE, 0);
		fuzz_publish(g, 0, i);
	}
	fuzz_descriptor(g, 2, 0, 0x7000, 16, VRING_DESC_F_WRITE, 0);
	fuzz_publish(g, 2, 0);
	fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
	fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, 2);
}

// A packet with ports that are likely to be those of a stream.
static void packet(struct fuzz_guest *g, struct reader *r) {
	uint8_t slot = read_u8(r) % 4, stream = read_u8(r);
	struct virtio_vsock_hdr h = {.src_cid = 3, .dst_cid = 2, .src_port = stream & 15, .type = 1, .op = read_u8(r) % 9};
	h.dst_port = (1u << 30) + (stream >> 4) * 1025u; // the n-th stream has slot n and number n at first
	h.len = read_u16(r) % 0x1000;
	h.flags = read_u8(r);
	h.buf_alloc = read_u16(r);
	h.fwd_cnt = read_u16(r);
	if (stream == 255)
		read_copy(r, &h, sizeof(h));
	memcpy(memory_at(&g->memory, 0x6000 + 64u * slot, sizeof(h)), &h, sizeof(h));
	fuzz_descriptor(g, 1, 2u * slot, 0x6000 + 64u * slot, sizeof(h), VRING_DESC_F_NEXT, (uint16_t)(2 * slot + 1));
	fuzz_descriptor(g, 1, 2u * slot + 1, 0x10000, h.len & 0xffff, 0, 0);
	fuzz_publish(g, 1, (uint16_t)(2 * slot));
	fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, 1);
	fuzz_run(g, 4);
}

static void client_operation(int *fd, uint8_t what, struct reader *r) {
	static const char lines[][20] = {"CONNECT 1\n", "CONNECT 2\n", "ATTACH 1073741824\n", "ATTACH 1073742849\n"};
	static uint8_t buffer[65536];
	if (*fd < 0)
		*fd = connect_client();
	switch (what % 8) {
	case 0:
	case 1:
		(void)!send(*fd, lines[what / 8 % 4], strlen(lines[what / 8 % 4]), MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case 2: {
		size_t n = read_u8(r);
		const void *p = read_bytes(r, n);
		if (p != NULL)
			(void)!send(*fd, p, n, MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	}
	case 3:
		(void)!send(*fd, buffer, read_u16(r), MSG_DONTWAIT | MSG_NOSIGNAL);
		break;
	case 4:
		(void)!recv(*fd, buffer, sizeof(buffer), MSG_DONTWAIT);
		break;
	case 5:
		shutdown(*fd, what & 8 ? SHUT_WR : SHUT_RD);
		break;
	case 6:
		close(*fd);
		*fd = -1;
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct fuzz_guest g;
	struct reader r = reader_over(data, size);
	int clients[CLIENTS] = {-1, -1, -1, -1};
	if (listen_fd < 0)
		start_listener();
	fuzz_guest_open(&g);
	g.device = make(&g);
	fuzz_drive(&g, UINT32_MAX);
	post_buffers(&g);
	for (unsigned i = 0; i < 200 && r.left > 0; i++) {
		uint8_t operation = read_u8(&r) % 14;
		if (fuzz_operation(&g, operation, &r))
			continue;
		if (operation == 8) {
			packet(&g, &r);
		} else if (operation == 9 || operation == 10) {
			uint8_t which = read_u8(&r);
			client_operation(&clients[which % CLIENTS], read_u8(&r), &r);
			fuzz_run(&g, 4);
		} else if (operation == 11) {
			post_buffers(&g);
			fuzz_run(&g, 4);
		} else if (operation == 12) {
			uint8_t clone = read_u8(&r);
			fuzz_move(&g, make(&g), clone == 1);
		}
	}
	fuzz_run(&g, 8);
	fuzz_guest_close(&g);
	// Clients that nobody has accepted do not wait for the next input.
	for (unsigned i = 0; i < CLIENTS; i++) {
		if (clients[i] >= 0)
			close(clients[i]);
	}
	for (int fd; (fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0;)
		close(fd);
	return 0;
}
