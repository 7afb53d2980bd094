// Event loop of the guest agent; see loop.h.
//
// Timers lie in a list sorted by time. Most of them are the newest and the latest at once, so that inserting from the end costs one step.
#include "guest/loop.h"

#include "base/clock.h"

#include <stddef.h>
#include <string.h>
#include <unistd.h>

int loop_init(struct loop *l, struct error *e) {
	memset(l, 0, sizeof(*l));
	l->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (l->epoll_fd < 0)
		return error_errno(e, "epoll_create1");
	return 0;
}

void loop_end(struct loop *l) {
	if (l->epoll_fd >= 0)
		close(l->epoll_fd);
	l->epoll_fd = -1;
}

static void forget_fetched_events(struct loop *l, const struct source *s) {
	for (int i = l->batch_at; i < l->batch_count; i++)
		if (l->batch[i].data.ptr == s)
			l->batch[i].data.ptr = NULL;
}

int loop_watch(struct loop *l, struct source *s, uint32_t events) {
	if (events == s->events)
		return 0;
	int how = s->events == 0 ? EPOLL_CTL_ADD : events == 0 ? EPOLL_CTL_DEL : EPOLL_CTL_MOD;
	struct epoll_event ev = {.events = events, .data.ptr = s};
	if (epoll_ctl(l->epoll_fd, how, s->fd, &ev) < 0)
		return -errno;
	s->events = events;
	if (events == 0)
		forget_fetched_events(l, s);
	return 0;
}

void loop_close_source(struct loop *l, struct source *s) {
	if (s->fd < 0)
		return;
	if (s->events != 0) {
		// close() takes a descriptor out of the set only once nobody holds a duplicate, and a child between fork and exec does.
		epoll_ctl(l->epoll_fd, EPOLL_CTL_DEL, s->fd, NULL);
		forget_fetched_events(l, s);
		s->events = 0;
	}
	close(s->fd);
	s->fd = -1;
}

void loop_disarm(struct loop *l, struct timer *t) {
	if (!t->armed)
		return;
	*(t->previous != NULL ? &t->previous->next : &l->first) = t->next;
	*(t->next != NULL ? &t->next->previous : &l->last) = t->previous;
	t->armed = false;
}

void loop_arm(struct loop *l, struct timer *t, uint64_t at_ns) {
	loop_disarm(l, t);
	struct timer *after = l->last;
	while (after != NULL && after->at_ns > at_ns)
		after = after->previous;
	t->at_ns = at_ns;
	t->armed = true;
	t->previous = after;
	t->next = after != NULL ? after->next : l->first;
	*(t->previous != NULL ? &t->previous->next : &l->first) = t;
	*(t->next != NULL ? &t->next->previous : &l->last) = t;
}

static int wait_ms(const struct loop *l, int max_wait_ms) {
	if (l->first == NULL)
		return max_wait_ms;
	uint64_t now = monotonic_ns();
	if (l->first->at_ns <= now)
		return 0;
	// Rounded up: waking early would mean a second round.
	uint64_t ms = (l->first->at_ns - now + 999999) / 1000000;
	if (max_wait_ms >= 0 && ms > (uint64_t)max_wait_ms)
		return max_wait_ms;
	return ms > 3600000 ? 3600000 : (int)ms;
}

static void fire_timers(struct loop *l) {
	if (l->first == NULL)
		return;
	uint64_t now = monotonic_ns();
	while (l->first != NULL && l->first->at_ns <= now) {
		struct timer *t = l->first;
		loop_disarm(l, t);
		t->fire(t);
	}
}

int loop_step(struct loop *l, int max_wait_ms) {
	int n = epoll_wait(l->epoll_fd, l->batch, LOOP_BATCH, wait_ms(l, max_wait_ms));
	if (n < 0 && errno != EINTR)
		return -errno;
	l->batch_count = n < 0 ? 0 : n;
	for (l->batch_at = 0; l->batch_at < l->batch_count;) {
		struct epoll_event ev = l->batch[l->batch_at++];
		struct source *s = ev.data.ptr;
		if (s != NULL)
			s->ready(s, ev.events);
	}
	l->batch_count = 0;
	fire_timers(l);
	return 0;
}
