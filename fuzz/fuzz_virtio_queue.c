// The transport and the queues with the smallest devices on them, entropy and balloon, driven by the input (see fuzz_virtio.h).
#include "fuzz_virtio.h"

static struct virtio_device *make(struct fuzz_guest *g, bool balloon) {
	struct virtio_device *d;
	if ((balloon ? virtio_balloon_create(&g->host, 1, &d, NULL) : virtio_rng_create(&g->host, 1, &d, NULL)) < 0)
		abort();
	return d;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct fuzz_guest g;
	struct reader r = reader_over(data, size);
	uint8_t start = read_u8(&r);
	bool balloon = (start & 1) != 0;
	fuzz_guest_open(&g);
	g.device = make(&g, balloon);
	if ((start & 2) == 0)
		fuzz_drive(&g, UINT32_MAX);
	for (unsigned i = 0; i < 200 && r.left > 0; i++) {
		uint8_t operation = read_u8(&r) % 10;
		if (!fuzz_operation(&g, operation, &r) && operation == 8)
			fuzz_move(&g, make(&g, balloon), false);
	}
	fuzz_run(&g, 4);
	fuzz_guest_close(&g);
	return 0;
}
