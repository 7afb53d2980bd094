// The network device over a pair of sockets, driven by the input (see fuzz_virtio.h).
#include "fuzz_virtio.h"

#include <sys/socket.h>
#include <unistd.h>

static struct virtio_device *make(struct fuzz_guest *g, int tap) {
	struct virtio_device *d;
	struct error e;
	if (virtio_net_create(&g->host, 1, dup(tap), (const uint8_t[6]){2, 0, 0, 0, 0, 1}, &d, &e) < 0)
		abort();
	return d;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static uint8_t packet[4096];
	struct fuzz_guest g;
	struct reader r = reader_over(data, size);
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		abort();
	fuzz_guest_open(&g);
	g.device = make(&g, pair[0]);
	fuzz_drive(&g, UINT32_MAX);
	for (unsigned i = 0; i < 200 && r.left > 0; i++) {
		uint8_t operation = read_u8(&r) % 12;
		if (fuzz_operation(&g, operation, &r))
			continue;
		if (operation == 8)
			(void)!send(pair[1], packet, read_u16(&r) % sizeof(packet), MSG_DONTWAIT);
		else if (operation == 9)
			(void)!recv(pair[1], packet, sizeof(packet), MSG_DONTWAIT);
		else if (operation == 10)
			fuzz_move(&g, make(&g, pair[0]), false);
	}
	fuzz_run(&g, 4);
	fuzz_guest_close(&g);
	close(pair[0]);
	close(pair[1]);
	return 0;
}
