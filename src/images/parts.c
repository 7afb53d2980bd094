// Small things that the steps of a build share; see build.h.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

// The serial console goes to the console log; a panic ends the guest at once instead of leaving it hanging.
#define GUEST_CMDLINE "console=ttyS0 loglevel=5 panic=-1 quiet"
#define SETTLE_MS 50 // for the guest to notice that streams were closed

int scaled_ms(const struct engine *en, int milliseconds) {
	double scaled = milliseconds * en->config.default_timeout_scale;
	return scaled < milliseconds ? milliseconds : scaled > 3600000 ? 3600000 : (int)scaled;
}

int build_time_left(const struct build *b, int limit) {
	uint64_t now = monotonic_ms();
	uint64_t left = now >= b->deadline_ms ? 1 : b->deadline_ms - now;
	return left < (uint64_t)limit ? (int)left : limit;
}

static void add_nameserver(json_t *list, const char *text) {
	unsigned char address[16];
	// A resolver on the host's loopback cannot be reached from a guest.
	bool usable = (inet_pton(AF_INET, text, address) == 1 && address[0] != 127) ||
		      (inet_pton(AF_INET6, text, address) == 1 && strcmp(text, "::1") != 0);
	if (usable && json_array_size(list) < NAMESERVERS_MAX)
		json_array_append_new(list, json_string(text));
}

json_t *guest_nameservers(const struct engine *en) {
	json_t *list = json_array();
	char *save = NULL;
	if (en->config.nameservers[0] != '\0') {
		char copy[sizeof(en->config.nameservers)];
		memcpy(copy, en->config.nameservers, sizeof(copy));
		for (char *p = strtok_r(copy, ", ", &save); p != NULL; p = strtok_r(NULL, ", ", &save))
			add_nameserver(list, p);
		return list;
	}
	cleanup_free char *text = NULL;
	if (read_file("/etc/resolv.conf", 65536, &text, NULL, NULL) < 0)
		return list;
	for (char *line = strtok_r(text, "\n", &save); line != NULL; line = strtok_r(NULL, "\n", &save)) {
		char address[64];
		if (sscanf(line, "nameserver %63s", address) == 1)
			add_nameserver(list, address);
	}
	return list;
}

int build_open(const char *folder, const char *name, int flags, int *fds, size_t *nfds, struct error *e) {
	char path[IMAGE_PATH + 64];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	int fd = open(path, flags | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot open %s", path);
	fds[(*nfds)++] = fd;
	return fd;
}

int build_temporary(const char *folder, uint64_t size, struct error *e) {
	cleanup_close int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot make a temporary file in %s", folder);
	if (ftruncate(fd, (off_t)size) < 0)
		return error_errno(e, "cannot make a temporary file of %llu bytes in %s", (unsigned long long)size, folder);
	return take_fd(&fd);
}

void build_boot_request(struct vmm_boot *request, uint32_t memory_mib, uint32_t vcpus) {
	request->memory_mib = memory_mib;
	request->vcpus = vcpus;
	snprintf(request->cmdline, sizeof(request->cmdline), "%s", GUEST_CMDLINE);
}

int build_explain(struct slot *s, int code, struct error *e) {
	if (code < 0 && code != -EREMOTEIO && s->client.fd >= 0 && vmm_look(&s->client))
		return error_set(e, -ESHUTDOWN, "%s", s->client.reason);
	return code;
}

int build_snapshot(struct slot *s, const char *folder, struct error *e) {
	int fds[2];
	size_t n = 0;
	usleep(SETTLE_MS * 1000);
	int r = vmm_pause(&s->client, e);
	if (r < 0)
		return r;
	r = build_open(folder, "state.new", O_RDWR | O_CREAT | O_TRUNC, fds, &n, e);
	if (r >= 0)
		r = build_open(folder, "memory.new", O_RDWR | O_CREAT | O_TRUNC, fds, &n, e);
	if (r >= 0)
		r = vmm_snapshot(&s->client, 0, fds[0], fds[1], e);
	for (size_t i = 0; i < n && r >= 0; i++)
		if (fsync(fds[i]) < 0)
			r = error_errno(e, "cannot write the snapshot to the disk");
	close_all(fds, n);
	static const char *const names[] = {"memory", "state"};
	for (size_t i = 0; i < 2 && r >= 0; i++) {
		char from[IMAGE_PATH + 64], to[IMAGE_PATH + 64];
		snprintf(from, sizeof(from), "%s/%s.new", folder, names[i]);
		snprintf(to, sizeof(to), "%s/%s", folder, names[i]);
		if (rename(from, to) < 0)
			r = error_errno(e, "cannot rename %s", from);
	}
	return r < 0 ? r : sync_folder(folder, e);
}
