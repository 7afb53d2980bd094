// The server side of control.sock; see control_server.h.
//
// Requests are served one at a time, to the end, on the main thread. A client that does not read its replies is dropped.
#include "vmm/control_server.h"

#include "base/clock.h"
#include "base/io.h"
#include "vmm/vm.h"
#include "vmm/vmm.h"

#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

union request {
	struct vmm_header header;
	struct vmm_prepare prepare;
	struct vmm_boot boot;
	struct vmm_restore restore;
	struct vmm_snapshot snapshot;
};

struct answer {
	struct vmm_reply reply;
	struct vmm_stats stats;
};

static void drop(struct control_client *c) {
	loop_remove(c->server->loop, c->fd);
	close(c->fd);
	c->fd = -1;
}

static void fill_state(const struct vm *vm, struct vmm_reply *r) {
	r->state = vm->state;
	r->exit = vm->state == VMM_STATE_EXITED ? vm->exit : (uint32_t)VMM_EXIT_NONE;
}

static void send_answer(struct control_client *c, const void *data, size_t size) {
	if (send(c->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL) != (ssize_t)size)
		drop(c);
}

static size_t size_of_kind(uint32_t kind) {
	switch (kind) {
	case VMM_PREPARE:
		return sizeof(struct vmm_prepare);
	case VMM_BOOT:
		return sizeof(struct vmm_boot);
	case VMM_RESTORE:
		return sizeof(struct vmm_restore);
	case VMM_SNAPSHOT:
		return sizeof(struct vmm_snapshot);
	case VMM_PAUSE:
	case VMM_RESUME:
	case VMM_STATS:
	case VMM_WORKING_SET:
	case VMM_QUIT:
		return sizeof(struct vmm_header);
	default:
		return 0;
	}
}

// Runs the request. Descriptors become the callee's or are closed.
static int run_request(struct control_server *s, const union request *q, int *fds, size_t fd_count, struct answer *a, struct error *e) {
	struct vm *vm = s->vm;
	switch (q->header.kind) {
	case VMM_BOOT:
		return vmm_boot(vm, &q->boot, fds, fd_count, e);
	case VMM_RESTORE:
		return vmm_restore(vm, &q->restore, fds, fd_count, a->reply.text, sizeof(a->reply.text), e);
	case VMM_SNAPSHOT:
		if (fd_count == 2)
			return vmm_snapshot(vm, q->snapshot.flags, fds[0], fds[1], e);
		close_all(fds, fd_count);
		return error_set(e, -EINVAL, "a snapshot needs state and memory layer; %zu descriptors came", fd_count);
	case VMM_WORKING_SET:
		if (fd_count == 1)
			return vmm_working_set(vm, fds[0], e);
		close_all(fds, fd_count);
		return error_set(e, -EINVAL, "to record a working set needs one file; %zu descriptors came", fd_count);
	default:
		break;
	}
	close_all(fds, fd_count);
	switch (q->header.kind) {
	case VMM_PREPARE:
		return vmm_prepare(vm, q->prepare.memory_mib, q->prepare.vcpus, e);
	case VMM_PAUSE:
		return vmm_pause(vm, e);
	case VMM_RESUME:
		return vmm_resume(vm, e);
	case VMM_STATS:
		vmm_stats(vm, &a->stats);
		return 0;
	default:
		s->quit = true;
		return 0;
	}
}

static void serve(struct control_client *c, const union request *q, size_t size, int *fds, size_t fd_count) {
	uint64_t from = monotonic_ns();
	struct error error = {.message = ""};
	struct answer a = {.reply = {.header = {.magic = VMM_CONTROL_MAGIC}}};
	int r;
	if (size < sizeof(q->header) || q->header.magic != VMM_CONTROL_MAGIC || size != size_of_kind(q->header.kind)) {
		close_all(fds, fd_count);
		r = error_set(&error, -EPROTO, "this is not a request that the VMM knows: %zu bytes", size);
	} else {
		r = run_request(c->server, q, fds, fd_count, &a, &error);
	}
	if (size >= sizeof(q->header)) {
		a.reply.header.kind = q->header.kind;
		a.reply.header.sequence = q->header.sequence;
	}
	a.reply.result = r;
	fill_state(c->server->vm, &a.reply);
	if (r < 0 || (a.reply.text[0] == '\0' && a.reply.state == VMM_STATE_EXITED))
		snprintf(a.reply.text, sizeof(a.reply.text), "%s", r < 0 ? error.message : c->server->vm->exit_text);
	a.reply.nanoseconds = monotonic_ns() - from;
	send_answer(c, &a, a.reply.header.kind == VMM_STATS && r == 0 ? sizeof(a) : sizeof(a.reply));
}

static void client_ready(void *arg, uint32_t events) {
	struct control_client *c = arg;
	union request q;
	int fds[FDS_MAX];
	size_t fd_count = FDS_MAX;
	memset(&q, 0, sizeof(q));
	ssize_t n = recv_with_fds(c->fd, &q, sizeof(q), fds, &fd_count);
	if (n > 0)
		serve(c, &q, (size_t)n, fds, fd_count);
	else if (n == -EMSGSIZE)
		serve(c, &q, 0, fds, 0);
	else if (n != -EAGAIN && n != -EINTR)
		drop(c);
}

static void listener_ready(void *arg, uint32_t events) {
	struct control_server *s = arg;
	int fd = accept4(s->listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
	if (fd < 0)
		return;
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++) {
		struct control_client *c = &s->clients[i];
		if (c->fd >= 0)
			continue;
		*c = (struct control_client){.server = s, .fd = fd, .handler = {.ready = client_ready, .arg = c}};
		if (loop_add(s->loop, fd, EPOLLIN, &c->handler) == 0)
			return;
		c->fd = -1;
		break;
	}
	close(fd);
}

static void guest_exited(void *arg, uint32_t events) {
	struct control_server *s = arg;
	vmm_guest_has_ended(s->vm);
	struct vmm_reply event = {.header = {.magic = VMM_CONTROL_MAGIC, .kind = VMM_EVENT_EXITED}};
	fill_state(s->vm, &event);
	snprintf(event.text, sizeof(event.text), "%s", s->vm->exit_text);
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		if (s->clients[i].fd >= 0)
			send_answer(&s->clients[i], &event, sizeof(event));
}

int control_start(struct control_server *s, struct vm *vm, struct loop *loop, int listen_fd, struct error *e) {
	*s = (struct control_server){.vm = vm, .loop = loop, .listen_fd = listen_fd};
	for (unsigned i = 0; i < CONTROL_CLIENTS_MAX; i++)
		s->clients[i].fd = -1;
	s->listen_handler = (struct loop_handler){.ready = listener_ready, .arg = s};
	s->exited_handler = (struct loop_handler){.ready = guest_exited, .arg = s};
	int r = loop_add(loop, listen_fd, EPOLLIN, &s->listen_handler);
	if (r == 0)
		r = loop_add(loop, vm->exited_fd, EPOLLIN, &s->exited_handler);
	return r < 0 ? error_set(e, r, "cannot watch the control socket: %s", strerror(-r)) : 0;
}
