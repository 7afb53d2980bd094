// The VMM's event loop: one epoll set on the main thread. Handlers run with the VM's device lock held (see virtio/virtio.h).
#pragma once

#include "base/error.h"

#include <stdint.h>

struct loop;

struct loop_handler {
	void (*ready)(void *arg, uint32_t events); // EPOLLIN, EPOLLOUT, EPOLLHUP, …
	void *arg;
};

int loop_create(struct loop **ret, struct error *e);
// The handler struct must stay valid until loop_remove() has returned.
int loop_add(struct loop *l, int fd, uint32_t events, struct loop_handler *h);
int loop_change(struct loop *l, int fd, uint32_t events, struct loop_handler *h);
void loop_remove(struct loop *l, int fd);

// Waits for events, at most `timeout_ms` (-1: for ever), and calls their handlers between lock(arg) and unlock(arg). A handler may remove
// any descriptor, its own included. Returns the number of handlers called, 0 after a signal or the time-out, or a negative errno.
int loop_run_once(struct loop *l, int timeout_ms, void (*lock)(void *arg), void (*unlock)(void *arg), void *arg);
void loop_destroy(struct loop *l);
