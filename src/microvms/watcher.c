// The watching thread: epoll over slots with generations.
//
// A watch's number is its slot and the slot's generation, and that number is what epoll hands back: an event that was already on its way
// when its watch was removed finds another generation and is dropped.
#include "microvms/watcher.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

struct watch {
	int fd; // -1: free
	uint32_t generation;
	watch_ready ready;
	void *arg;
};

struct watcher {
	int epoll, stop;
	pthread_t thread;
	pthread_mutex_t lock; // recursive: callbacks add and remove
	struct watch *watches;
	size_t room;
};

static int64_t number_of(size_t slot, uint32_t generation) {
	return (int64_t)(((uint64_t)generation << 32) | (uint64_t)(slot + 1));
}

// The slot of a number that is still in use, or NULL. The lock is held.
static struct watch *find(struct watcher *w, int64_t number) {
	uint64_t slot = (uint64_t)number & 0xffffffffu;
	if (slot == 0 || slot > w->room)
		return NULL;
	struct watch *x = &w->watches[slot - 1];
	return x->fd >= 0 && x->generation == (uint32_t)((uint64_t)number >> 32) ? x : NULL;
}

static void *watch_all(void *arg) {
	struct watcher *w = arg;
	for (;;) {
		struct epoll_event event;
		int n = epoll_wait(w->epoll, &event, 1, -1);
		if (n < 0 && errno != EINTR)
			return NULL;
		if (n != 1)
			continue;
		if (event.data.u64 == 0)
			return NULL;
		pthread_mutex_lock(&w->lock);
		const struct watch *x = find(w, (int64_t)event.data.u64);
		if (x != NULL)
			x->ready(x->arg, event.events);
		pthread_mutex_unlock(&w->lock);
	}
}

static void watcher_free(struct watcher *w) {
	if (w->epoll >= 0)
		close(w->epoll);
	if (w->stop >= 0)
		close(w->stop);
	pthread_mutex_destroy(&w->lock);
	free(w->watches);
	free(w);
}

int watcher_start(struct watcher **ret, struct error *e) {
	struct watcher *w = calloc(1, sizeof(*w));
	if (w == NULL)
		return error_set(e, -ENOMEM, "out of memory making the watcher");
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_settype(&attributes, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&w->lock, &attributes);
	pthread_mutexattr_destroy(&attributes);
	w->epoll = epoll_create1(EPOLL_CLOEXEC);
	w->stop = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
	int r = 0;
	if (w->epoll < 0 || w->stop < 0 || epoll_ctl(w->epoll, EPOLL_CTL_ADD, w->stop, &event) < 0)
		r = error_errno(e, "cannot make the watcher");
	else if ((r = -pthread_create(&w->thread, NULL, watch_all, w)) < 0)
		error_set(e, r, "cannot start the watcher's thread: %s", strerror(-r));
	if (r < 0) {
		watcher_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void watcher_stop(struct watcher *w) {
	if (w == NULL)
		return;
	uint64_t one = 1;
	ssize_t ignored = write(w->stop, &one, sizeof(one));
	(void)ignored;
	pthread_join(w->thread, NULL);
	watcher_free(w);
}

static int slot_new(struct watcher *w, size_t *ret) {
	for (size_t i = 0; i < w->room; i++) {
		if (w->watches[i].fd < 0) {
			*ret = i;
			return 0;
		}
	}
	size_t room = w->room == 0 ? 64 : w->room * 2;
	struct watch *more = realloc(w->watches, room * sizeof(*more));
	if (more == NULL)
		return -ENOMEM;
	for (size_t i = w->room; i < room; i++)
		more[i] = (struct watch){.fd = -1};
	*ret = w->room;
	w->watches = more;
	w->room = room;
	return 0;
}

int watch_add(struct watcher *w, int fd, uint32_t events, watch_ready ready, void *arg, int64_t *ret) {
	pthread_mutex_lock(&w->lock);
	size_t slot = 0;
	int r = slot_new(w, &slot);
	if (r == 0) {
		struct watch *x = &w->watches[slot];
		uint32_t generation = (x->generation + 1) & 0x7fffffffu;
		int64_t number = number_of(slot, generation);
		struct epoll_event event = {.events = events, .data.u64 = (uint64_t)number};
		if (epoll_ctl(w->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
			r = -errno;
		} else {
			*x = (struct watch){.fd = fd, .generation = generation, .ready = ready, .arg = arg};
			*ret = number;
		}
	}
	pthread_mutex_unlock(&w->lock);
	return r;
}

void watch_remove(struct watcher *w, int64_t number) {
	pthread_mutex_lock(&w->lock);
	struct watch *x = find(w, number);
	if (x != NULL) {
		epoll_ctl(w->epoll, EPOLL_CTL_DEL, x->fd, NULL);
		x->fd = -1;
	}
	pthread_mutex_unlock(&w->lock);
}
