// The VMM's event loop; see loop.h.
//
// Each descriptor has a slot with a generation that grows when the descriptor is removed. The generation travels in the epoll event, so that
// an event which was already fetched when its descriptor was removed (and perhaps closed and opened anew) finds no handler. The table of slots
// is read and written under the device lock only; it may grow while a handler runs, so nobody keeps pointers into it.
#include "vmm/loop.h"

#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define BATCH 64
#define FDS_LIMIT 65536u

struct slot {
	struct loop_handler *handler; // NULL: not watched
	uint32_t generation;
};

struct loop {
	int epoll;
	unsigned slot_count;
	struct slot *slots; // by descriptor
};

int loop_create(struct loop **ret, struct error *e) {
	struct loop *l = calloc(1, sizeof(*l));
	if (l == NULL)
		return error_set(e, -ENOMEM, "no memory for the event loop");
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (l->epoll < 0) {
		int r = error_errno(e, "cannot create the event loop (epoll)");
		free(l);
		return r;
	}
	*ret = l;
	return 0;
}

void loop_destroy(struct loop *l) {
	if (l == NULL)
		return;
	close(l->epoll);
	free(l->slots);
	free(l);
}

static int control(struct loop *l, int operation, int fd, uint32_t events) {
	struct epoll_event event = {
		.events = events,
		.data.u64 = (uint64_t)l->slots[fd].generation << 32 | (uint32_t)fd,
	};
	return epoll_ctl(l->epoll, operation, fd, &event) < 0 ? -errno : 0;
}

static int reserve(struct loop *l, unsigned fd) {
	if (fd < l->slot_count)
		return 0;
	if (fd >= FDS_LIMIT)
		return -EMFILE;
	unsigned count = l->slot_count == 0 ? 64 : l->slot_count;
	while (count <= fd)
		count *= 2;
	struct slot *slots = realloc(l->slots, count * sizeof(*slots));
	if (slots == NULL)
		return -ENOMEM;
	memset(slots + l->slot_count, 0, (count - l->slot_count) * sizeof(*slots));
	l->slots = slots;
	l->slot_count = count;
	return 0;
}

int loop_add(struct loop *l, int fd, uint32_t events, struct loop_handler *h) {
	if (fd < 0)
		return -EBADF;
	int r = reserve(l, (unsigned)fd);
	if (r == 0)
		r = control(l, EPOLL_CTL_ADD, fd, events);
	if (r == 0)
		l->slots[fd].handler = h;
	return r;
}

int loop_change(struct loop *l, int fd, uint32_t events, struct loop_handler *h) {
	if (fd < 0 || (unsigned)fd >= l->slot_count || l->slots[fd].handler == NULL)
		return -ENOENT;
	int r = control(l, EPOLL_CTL_MOD, fd, events);
	if (r == 0)
		l->slots[fd].handler = h;
	return r;
}

void loop_remove(struct loop *l, int fd) {
	if (fd < 0 || (unsigned)fd >= l->slot_count || l->slots[fd].handler == NULL)
		return;
	epoll_ctl(l->epoll, EPOLL_CTL_DEL, fd, NULL);
	l->slots[fd].handler = NULL;
	l->slots[fd].generation++;
}

static struct loop_handler *handler_of(struct loop *l, uint64_t data) {
	uint32_t fd = (uint32_t)data;
	if (fd >= l->slot_count || l->slots[fd].generation != data >> 32)
		return NULL;
	return l->slots[fd].handler;
}

int loop_run_once(struct loop *l, int timeout_ms, void (*lock)(void *arg), void (*unlock)(void *arg), void *arg) {
	struct epoll_event events[BATCH];
	int n = epoll_wait(l->epoll, events, BATCH, timeout_ms);
	if (n < 0)
		return errno == EINTR ? 0 : -errno;
	int called = 0;
	for (int i = 0; i < n; i++) {
		lock(arg);
		struct loop_handler *h = handler_of(l, events[i].data.u64);
		if (h != NULL) {
			h->ready(h->arg, events[i].events);
			called++;
		}
		unlock(arg);
	}
	return called;
}
