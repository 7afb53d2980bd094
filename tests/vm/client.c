// A small client of stasis-vmm; see client.h.
#include "client.h"

#include "base/clock.h"
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

int memory_file(const char *name) {
	return memfd_create(name, MFD_CLOEXEC);
}

// An abstract socket that the kernel names.
static int listen_anywhere(int type, struct sockaddr_un *ret, socklen_t *ret_size) {
	int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	*ret_size = sizeof(*ret);
	if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof(sa_family_t)) < 0 || listen(fd, 16) < 0 ||
	    getsockname(fd, (struct sockaddr *)ret, ret_size) < 0)
		return -errno;
	return fd;
}

static void child(const char *program, const int *fds) {
	int high[4];
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < 4; i++)
		high[i] = fcntl(fds[i], F_DUPFD, 64);
	for (int i = 0; i < 4; i++)
		if (dup2(high[i], VMM_FD_CONTROL + i) < 0 || close(high[i]) < 0)
			_exit(126);
	execl(program, program, (char *)NULL);
	_exit(127);
}

int vmm_spawn(struct vmm *v, const char *program, int tap, int vsock) {
	struct sockaddr_un a, unused;
	socklen_t size, unused_size;
	*v = (struct vmm){.sock = -1, .console = memory_file("console")};
	int listener = listen_anywhere(SOCK_SEQPACKET, &a, &size);
	int own_vsock = vsock >= 0 ? fcntl(vsock, F_DUPFD_CLOEXEC, 0) : listen_anywhere(SOCK_STREAM, &unused, &unused_size);
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC),
	    own_tap = tap >= 0 ? fcntl(tap, F_DUPFD_CLOEXEC, 0) : open("/dev/null", O_RDWR | O_CLOEXEC);
	int fds[4] = {listener, own_vsock, kvm, own_tap};
	if (listener < 0 || own_vsock < 0 || kvm < 0 || own_tap < 0 || v->console < 0)
		return -errno;
	v->pid = fork();
	if (v->pid == 0)
		child(program, fds);
	int result = v->pid < 0 ? -errno : 0;
	v->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (result == 0 && (v->sock < 0 || connect(v->sock, (struct sockaddr *)&a, size) < 0))
		result = -errno;
	for (int i = 0; i < 4; i++)
		close(fds[i]);
	return result;
}

bool vmm_alive(const struct vmm *v) {
	return v->pid > 0 && waitpid(v->pid, NULL, WNOHANG) == 0;
}

void vmm_end(struct vmm *v) {
	if (v->pid > 0) {
		kill(v->pid, SIGKILL);
		waitpid(v->pid, NULL, 0);
	}
	if (v->sock >= 0)
		close(v->sock);
	if (v->console >= 0)
		close(v->console);
	*v = (struct vmm){.sock = -1, .console = -1};
}

int vmm_send(struct vmm *v, uint32_t kind, void *request, size_t size, const int *fds, size_t nfds) {
	struct vmm_header *h = request;
	*h = (struct vmm_header){.magic = VMM_CONTROL_MAGIC, .kind = kind, .sequence = ++v->sequence};
	return send_with_fds(v->sock, request, size, fds, nfds);
}

int vmm_receive(struct vmm *v, struct vmm_reply *ret, int timeout_ms) {
	struct {
		struct vmm_reply reply;
		struct vmm_stats stats;
	} m;
	struct pollfd p = {.fd = v->sock, .events = POLLIN};
	int n = poll(&p, 1, timeout_ms);
	if (n <= 0)
		return n < 0 ? -errno : -ETIMEDOUT;
	ssize_t got = recv(v->sock, &m, sizeof(m), 0);
	if (got < (ssize_t)sizeof(m.reply) || m.reply.header.magic != VMM_CONTROL_MAGIC)
		return -EPIPE;
	if (got == (ssize_t)sizeof(m))
		v->stats = m.stats;
	*ret = m.reply;
	return 0;
}

int vmm_call(struct vmm *v, uint32_t kind, void *request, size_t size, const int *fds, size_t nfds, struct vmm_reply *ret) {
	struct vmm_reply unused;
	ret = ret == NULL ? &unused : ret;
	memset(ret, 0, sizeof(*ret));
	int r = vmm_send(v, kind, request, size, fds, nfds);
	while (r == 0) {
		r = vmm_receive(v, ret, CLIENT_WAIT_MS);
		if (r == 0 && ret->header.kind == VMM_EVENT_EXITED) {
			v->event = *ret;
			v->has_event = true;
			continue;
		}
		if (r == 0 && ret->header.sequence == v->sequence)
			return ret->result;
	}
	return r;
}

int vmm_simple(struct vmm *v, uint32_t kind, struct vmm_reply *ret) {
	struct vmm_header h;
	return vmm_call(v, kind, &h, sizeof(h), NULL, 0, ret);
}

int vmm_prepare_call(struct vmm *v, uint32_t memory_mib, uint32_t vcpus, struct vmm_reply *ret) {
	struct vmm_prepare q = {.memory_mib = memory_mib, .vcpus = vcpus};
	return vmm_call(v, VMM_PREPARE, &q, sizeof(q), NULL, 0, ret);
}

int vmm_boot_call(struct vmm *v, int kernel, int initrd, uint32_t memory_mib, uint32_t vcpus, const char *cmdline, struct vmm_reply *ret) {
	struct vmm_boot q = {.memory_mib = memory_mib, .vcpus = vcpus, .devices = {.console_limit = 1 << 20}};
	snprintf(q.cmdline, sizeof(q.cmdline), "%s", cmdline);
	int none = initrd < 0 ? memory_file("none") : -1;
	int fds[3] = {kernel, initrd < 0 ? none : initrd, v->console};
	int r = vmm_call(v, VMM_BOOT, &q, sizeof(q), fds, 3, ret);
	if (none >= 0)
		close(none);
	return r;
}

int vmm_restore_call(struct vmm *v, int state, const int *layers, uint32_t layer_count, uint32_t flags, struct vmm_reply *ret) {
	struct vmm_restore q = {.flags = flags, .memory_layers = layer_count, .devices = {.console_limit = 1 << 20}};
	int fds[2 + VMM_MEMORY_LAYERS_MAX] = {state};
	for (uint32_t i = 0; i < layer_count; i++)
		fds[1 + i] = layers[i];
	fds[1 + layer_count] = v->console;
	return vmm_call(v, VMM_RESTORE, &q, sizeof(q), fds, 2 + layer_count, ret);
}

int vmm_snapshot_call(struct vmm *v, uint32_t flags, int state, int memory, struct vmm_reply *ret) {
	struct vmm_snapshot q = {.flags = flags};
	int fds[2] = {state, memory};
	return vmm_call(v, VMM_SNAPSHOT, &q, sizeof(q), fds, 2, ret);
}

int vmm_wait_exited(struct vmm *v, struct vmm_reply *ret, int timeout_ms) {
	if (v->has_event) {
		*ret = v->event;
		return 0;
	}
	int r = vmm_receive(v, ret, timeout_ms);
	return r < 0 ? r : ret->header.kind == VMM_EVENT_EXITED ? 0 : -EPROTO;
}

static char *console_text(const struct vmm *v, size_t *ret_size) {
	struct stat st;
	if (fstat(v->console, &st) < 0)
		return NULL;
	char *text = malloc((size_t)st.st_size + 1);
	if (text == NULL)
		return NULL;
	ssize_t n = pread(v->console, text, (size_t)st.st_size, 0);
	*ret_size = n < 0 ? 0 : (size_t)n;
	text[*ret_size] = '\0';
	return text;
}

bool console_wait(const struct vmm *v, const char *text, size_t *from) {
	for (uint64_t end = monotonic_ms() + CLIENT_WAIT_MS; monotonic_ms() < end; usleep(1000)) {
		size_t size;
		char *all = console_text(v, &size);
		char *at = all == NULL || (from != NULL && *from > size) ? NULL : strstr(all + (from == NULL ? 0 : *from), text);
		if (at != NULL && from != NULL)
			*from = (size_t)(at - all) + strlen(text);
		free(all);
		if (at != NULL)
			return true;
	}
	return false;
}

bool console_value(const struct vmm *v, const char *name, uint64_t *ret) {
	size_t size, n = strlen(name);
	char *all = console_text(v, &size);
	bool found = false;
	for (char *line = all; line != NULL; line = strchr(line, '\n'), line = line == NULL ? NULL : line + 1)
		if (strncmp(line, name, n) == 0 && line[n] == '=') {
			*ret = strtoull(line + n + 1, NULL, 16);
			found = true;
		}
	free(all);
	return found;
}

void console_print(const struct vmm *v) {
	size_t size;
	char *all = console_text(v, &size);
	if (all != NULL)
		fprintf(stderr, "--- console\n%s\n---\n", all);
	free(all);
}

int copy_file(int from) {
	struct stat st;
	int to = memory_file("copy");
	off_t at = 0;
	if (to < 0 || fstat(from, &st) < 0)
		return -1;
	while (at < st.st_size) {
		char block[65536];
		ssize_t n = pread(from, block, sizeof(block), at);
		if (n <= 0 || pwrite(to, block, (size_t)n, at) != n)
			return -1;
		at += n;
	}
	return to;
}

// Documentation/arch/x86/boot.rst: the fields that a 64-bit loader reads.
int guest_image(const char *path) {
	char *guest;
	size_t size;
	if (read_file(path, 1 << 20, &guest, &size, NULL) < 0)
		return -1;
	uint8_t head[0x400] = {0};
	const struct {
		unsigned at, bytes;
		uint64_t value;
	} fields[] = {
		{0x1f1, 1, 1},        {0x1fe, 2, 0xaa55}, {0x201, 1, 0x66}, {0x206, 2, 0x20f}, {0x211, 1, 1},        {0x22c, 4, 0x7fffffff},
		{0x230, 4, 0x200000}, {0x234, 1, 0},      {0x236, 2, 1},    {0x238, 4, 2047},  {0x258, 8, 0x100000}, {0x260, 4, 0x100000},
	};
	memcpy(head + 0x202, "HdrS", 4);
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		memcpy(head + fields[i].at, &fields[i].value, fields[i].bytes);
	int fd = memory_file("guest");
	static const uint8_t padding[4096];
	if (fd < 0 || write_full(fd, head, sizeof(head)) < 0 || write_full(fd, guest, size) < 0 ||
	    write_full(fd, padding, sizeof(padding)) < 0)
		return -1;
	free(guest);
	return fd;
}
