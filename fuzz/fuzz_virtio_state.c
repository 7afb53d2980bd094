// The devices' sections of a state file. The first byte names the device; what loads is resumed, served and saved again.
#include "fuzz_virtio.h"

#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int listener(void) {
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	// An abstract name that the kernel chooses.
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(sa_family_t)) < 0 || listen(fd, 1) < 0)
		abort();
	return fd;
}

static int make(struct fuzz_guest *g, uint8_t kind, struct virtio_device **ret) {
	static const uint8_t mac[6] = {2, 0, 0, 0, 0, 1};
	struct vmm_block config = {.serial = "fuzz", .flags = VMM_BLOCK_READ_ONLY, .size = 8192};
	switch (kind % 5) {
	case 0:
		return virtio_block_create(&g->host, 1, &config, memfd_create("disk", MFD_CLOEXEC), -1, ret, NULL);
	case 1:
		return virtio_net_create(&g->host, 1, dup(STDIN_FILENO), mac, ret, NULL);
	case 2:
		return virtio_vsock_create(&g->host, 1, listener(), 3, ret, NULL);
	case 3:
		return virtio_rng_create(&g->host, 1, ret, NULL);
	default:
		return virtio_balloon_create(&g->host, 1, ret, NULL);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static uint8_t section[1 << 20];
	struct fuzz_guest g;
	struct error e = {0};
	struct reader r = reader_over(data, size);
	uint8_t kind = read_u8(&r);
	fuzz_guest_open(&g);
	if (make(&g, kind, &g.device) < 0)
		abort();
	int result = virtio_load(g.device, &r, &e);
	if (result < 0 && e.message[0] == '\0')
		abort(); // a refusal says why
	if (result == 0) {
		if (kind >= 128)
			virtio_resume(g.device);
		fuzz_run(&g, 4);
		struct writer w = writer_over(section, sizeof(section));
		if (virtio_quiesce(g.device, NULL) < 0 || virtio_save(g.device, &w) < 0)
			abort();
	}
	fuzz_guest_close(&g);
	return 0;
}
