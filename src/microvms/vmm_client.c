// Requests to a VMM; see vmm_client.h.
#include "microvms/vmm_client.h"

#include "base/clock.h"
#include "base/io.h"

#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct answer {
	struct vmm_reply reply;
	struct vmm_stats stats;
};

static const char *exit_name(uint32_t exit) {
	switch (exit) {
	case VMM_EXIT_POWEROFF:
		return "The guest powered off.";
	case VMM_EXIT_RESET:
		return "The guest rebooted.";
	case VMM_EXIT_TRIPLE_FAULT:
		return "The guest's CPU shut down (triple fault).";
	case VMM_EXIT_GUEST_ERROR:
		return "The guest did what the VMM does not allow.";
	default:
		return "The VMM failed.";
	}
}

static void note_end(struct vmm *v, uint32_t exit, const char *text) {
	if (v->ended)
		return;
	v->ended = true;
	v->exit = exit <= VMM_EXIT_INTERNAL ? (enum vmm_exit)exit : VMM_EXIT_INTERNAL;
	if (text[0] != '\0')
		snprintf(v->reason, sizeof(v->reason), "%.64s %.400s", exit_name(exit), text);
	else
		snprintf(v->reason, sizeof(v->reason), "%s", exit_name(exit));
}

static void note_gone(struct vmm *v) {
	if (v->ended)
		return;
	v->ended = true;
	v->exit = VMM_EXIT_INTERNAL;
	snprintf(v->reason, sizeof(v->reason), "The VMM of the MicroVM ended unexpectedly.");
}

// Receives one message. Returns 1, 0 (nothing within the time), or a negative errno.
static int receive(struct vmm *v, int timeout_ms, struct answer *a, size_t *size) {
	struct pollfd p = {.fd = v->fd, .events = POLLIN};
	int n = poll(&p, 1, timeout_ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	if (n == 0)
		return 0;
	memset(a, 0, sizeof(*a));
	ssize_t got = recv_with_fds(v->fd, a, sizeof(*a), NULL, NULL);
	if (got == -EAGAIN)
		return 0;
	if (got <= 0) {
		note_gone(v);
		return got == 0 ? -ECONNRESET : (int)got;
	}
	if ((size_t)got < sizeof(a->reply) || a->reply.header.magic != VMM_CONTROL_MAGIC)
		return -EBADMSG;
	a->reply.text[sizeof(a->reply.text) - 1] = '\0';
	v->state = a->reply.state;
	if (a->reply.header.kind == VMM_EVENT_EXITED || a->reply.state == VMM_STATE_EXITED)
		note_end(v, a->reply.exit, a->reply.header.kind == VMM_EVENT_EXITED || a->reply.result == 0 ? a->reply.text : "");
	*size = (size_t)got;
	return 1;
}

static const char *request_name(uint32_t kind) {
	static const char *const names[] = {"?", "prepare", "boot", "restore", "pause", "resume", "snapshot", "stats", "quit", "record"};
	return kind < sizeof(names) / sizeof(names[0]) ? names[kind] : names[0];
}

static int call_vmm(struct vmm *v, struct vmm_header *h, size_t size, const int *fds, size_t nfds, int timeout_ms, struct answer *a,
		    size_t *answer_size, struct error *e) {
	if (v->fd < 0)
		return error_set(e, -ENOTCONN, "the VMM is not connected");
	h->magic = VMM_CONTROL_MAGIC;
	h->sequence = ++v->sequence;
	int r = send_with_fds(v->fd, h, size, fds, nfds);
	if (r == -EPIPE || r == -ECONNRESET)
		note_gone(v);
	if (r < 0)
		return error_set(e, r, "cannot send a %s request to the VMM: %s", request_name(h->kind), strerror(-r));
	uint64_t until = monotonic_ms() + (uint64_t)timeout_ms;
	for (;;) {
		uint64_t now = monotonic_ms();
		if (now >= until)
			return error_set(e, -ETIMEDOUT, "the VMM did not answer a %s request within %d ms", request_name(h->kind),
					 timeout_ms);
		r = receive(v, (int)(until - now), a, answer_size);
		if (r < 0)
			return error_set(e, r, "the VMM went away during a %s request: %s", request_name(h->kind), strerror(-r));
		if (r == 1 && a->reply.header.kind == h->kind && a->reply.header.sequence == h->sequence)
			break;
	}
	v->nanoseconds = a->reply.nanoseconds;
	memcpy(v->text, a->reply.text, sizeof(v->text));
	if (a->reply.result < 0)
		return error_set(e, a->reply.result, "the VMM refused to %s: %s", request_name(h->kind),
				 a->reply.text[0] != '\0' ? a->reply.text : strerror(-a->reply.result));
	return 0;
}

int vmm_connect(const char *control_path, struct vmm *ret, struct error *e) {
	*ret = (struct vmm){.fd = -1};
	int fd = unix_connect(control_path, SOCK_SEQPACKET, e);
	if (fd < 0)
		return fd;
	ret->fd = fd;
	return 0;
}

void vmm_close(struct vmm *v) {
	if (v->fd >= 0)
		close(v->fd);
	v->fd = -1;
}

int vmm_boot(struct vmm *v, struct vmm_boot *request, const int *fds, size_t nfds, struct error *e) {
	struct answer a;
	size_t size;
	request->header.kind = VMM_BOOT;
	return call_vmm(v, &request->header, sizeof(*request), fds, nfds, VMM_LONG_MS, &a, &size, e);
}

int vmm_restore(struct vmm *v, struct vmm_restore *request, const int *fds, size_t nfds, struct error *e) {
	struct answer a;
	size_t size;
	request->header.kind = VMM_RESTORE;
	return call_vmm(v, &request->header, sizeof(*request), fds, nfds, VMM_LONG_MS, &a, &size, e);
}

static int call_plain(struct vmm *v, enum vmm_request_kind kind, struct answer *a, size_t *size, struct error *e) {
	struct vmm_header h = {.kind = kind};
	return call_vmm(v, &h, sizeof(h), NULL, 0, VMM_SHORT_MS, a, size, e);
}

int vmm_pause(struct vmm *v, struct error *e) {
	struct answer a;
	size_t size;
	return call_plain(v, VMM_PAUSE, &a, &size, e);
}

int vmm_resume(struct vmm *v, struct error *e) {
	struct answer a;
	size_t size;
	return call_plain(v, VMM_RESUME, &a, &size, e);
}

int vmm_snapshot(struct vmm *v, uint32_t flags, int state_fd, int memory_fd, struct error *e) {
	struct vmm_snapshot request = {.header.kind = VMM_SNAPSHOT, .flags = flags};
	const int fds[] = {state_fd, memory_fd};
	struct answer a;
	size_t size;
	return call_vmm(v, &request.header, sizeof(request), fds, 2, VMM_LONG_MS, &a, &size, e);
}

int vmm_working_set(struct vmm *v, int fd, struct error *e) {
	struct vmm_header h = {.kind = VMM_WORKING_SET};
	struct answer a;
	size_t size;
	return call_vmm(v, &h, sizeof(h), &fd, 1, VMM_LONG_MS, &a, &size, e);
}

int vmm_stats(struct vmm *v, struct vmm_stats *ret, struct error *e) {
	struct answer a;
	size_t size;
	int r = call_plain(v, VMM_STATS, &a, &size, e);
	if (r == 0 && ret != NULL)
		*ret = a.stats;
	return r;
}

bool vmm_look(struct vmm *v) {
	struct answer a;
	size_t size;
	while (!v->ended && receive(v, 0, &a, &size) > 0)
		;
	return v->ended;
}

void vmm_add_block(struct vmm_devices *d, const char *serial, uint32_t flags, uint64_t size, int base, int layer, int *fds, size_t *nfds) {
	struct vmm_block *b = &d->blocks[d->block_count++];
	*b = (struct vmm_block){.flags = flags, .size = size};
	memcpy(b->serial, serial, strnlen(serial, sizeof(b->serial)));
	fds[(*nfds)++] = base;
	if (flags & VMM_BLOCK_LAYERED)
		fds[(*nfds)++] = layer;
}
