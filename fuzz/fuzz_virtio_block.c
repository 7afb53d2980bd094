// The block device in its three modes, driven by the input (see fuzz_virtio.h). What it moved must be what a reopened layer has.
#include "fuzz_virtio.h"

#include <unistd.h>

#define DISK_BYTES 65536

static const uint32_t modes[] = {VMM_BLOCK_READ_ONLY, VMM_BLOCK_LAYERED, 0};

static int file(void) {
	int fd = memfd_create("disk", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, DISK_BYTES - 1000) < 0 || pwrite(fd, "base", 4, 5000) != 4)
		abort();
	return fd;
}

static struct virtio_device *make(struct fuzz_guest *g, uint32_t flags, int base, int layer) {
	struct vmm_block config = {.serial = "fuzz", .flags = flags, .size = DISK_BYTES};
	struct virtio_device *d;
	struct error e;
	if (virtio_block_create(&g->host, 1, &config, dup(base), flags == VMM_BLOCK_LAYERED ? dup(layer) : -1, &d, &e) < 0)
		abort();
	return d;
}

// A request in three descriptors.
static void request(struct fuzz_guest *g, struct reader *r) {
	uint32_t type = read_u8(r);
	uint64_t sector = read_u8(r);
	uint32_t bytes = read_u8(r) * 512u;
	uint8_t slot = read_u8(r) % 4;
	uint32_t at = 0x2800 + 32u * slot;
	memcpy(memory_at(&g->memory, at, 16), &type, 4);
	memcpy(memory_at(&g->memory, at + 8, 8), &sector, 8);
	bool reads = type == 0 || type == 8;
	fuzz_descriptor(g, 0, 3u * slot, at, 16, VRING_DESC_F_NEXT, (uint16_t)(3 * slot + 1));
	fuzz_descriptor(g, 0, 3u * slot + 1, 0x4000, bytes, (uint16_t)(VRING_DESC_F_NEXT | (reads ? VRING_DESC_F_WRITE : 0)),
			(uint16_t)(3 * slot + 2));
	fuzz_descriptor(g, 0, 3u * slot + 2, at + 16, 1, VRING_DESC_F_WRITE, 0);
	fuzz_publish(g, 0, (uint16_t)(3 * slot));
	fuzz_reg(g, VIRTIO_MMIO_QUEUE_NOTIFY, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct fuzz_guest g;
	struct reader r = reader_over(data, size);
	uint32_t flags = modes[read_u8(&r) % 3];
	int base = file(), layer = memfd_create("layer", MFD_CLOEXEC);
	fuzz_guest_open(&g);
	g.device = make(&g, flags, base, layer);
	fuzz_drive(&g, UINT32_MAX);
	for (unsigned i = 0; i < 200 && r.left > 0; i++) {
		uint8_t operation = read_u8(&r) % 12;
		if (fuzz_operation(&g, operation, &r))
			continue;
		if (operation == 8)
			request(&g, &r);
		else if (operation == 9 && virtio_flush(g.device, NULL) < 0)
			abort();
		else if (operation == 10) {
			if (virtio_quiesce(g.device, NULL) < 0 || virtio_flush(g.device, NULL) < 0)
				abort();
			fuzz_move(&g, make(&g, flags, base, layer), false);
		}
	}
	fuzz_run(&g, 4);
	fuzz_guest_close(&g);
	close(base);
	close(layer);
	return 0;
}
