// The way from the edge to a microVM, through its sleeps; see microvms.h.
//
// There is one route per microVM, from its first RUNNING to its end. What has happened to the VMM is submitted to the loop in order, and the
// follower learns it there; a suspend waits until it has, before the VMM is paused (so that nothing is written that the snapshot would miss)
// and before the VMM is ended.
#include "microvms/lifecycle.h"

#include "base/clock.h"
#include "base/log.h"

#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct microvm_route {
	_Atomic unsigned references;
	struct microvm *m; // holds a reference
	// Of the loop thread.
	struct microvm_follower *follower;
	enum microvm_news latest;
	bool waking; // microvm_route_wake() has asked
	char vsock[SOCKET_PATH];
};

static void unref(struct microvm_route *r) {
	if (r == NULL || --r->references > 0)
		return;
	microvm_unref(r->m);
	free(r);
}

// News on their way to the loop.
struct letter {
	struct microvm_route *route; // holds a reference
	enum microvm_news news;
	char vsock[SOCKET_PATH]; // of MICROVM_AWAKE after a sleep
	sem_t *read;             // NULL: nobody waits
};

static void tell(struct microvm_route *r, enum microvm_news news, const char *why) {
	if (r->follower != NULL)
		r->follower->news(r->follower, news, why);
}

static void deliver(void *arg) {
	struct letter *l = arg;
	struct microvm_route *r = l->route;
	r->latest = l->news;
	if (l->vsock[0] != '\0')
		memcpy(r->vsock, l->vsock, sizeof(r->vsock));
	tell(r, l->news, "");
	if (l->read != NULL)
		sem_post(l->read);
	unref(r);
	free(l);
}

// Returns once the follower knows when `wait` says so.
static void send_news(struct microvm *m, enum microvm_news news, const char *vsock, bool wait) {
	sem_t read;
	struct microvm_route *r = m->route;
	if (r == NULL || m->en->microvms->loop_gone)
		return;
	struct letter *l = calloc(1, sizeof(*l));
	if (l == NULL) {
		log_error("microvm.route", LOG_S("microvmId", m->record.id), LOG_S("message", "out of memory: its streams are lost"));
		return;
	}
	r->references++;
	*l = (struct letter){.route = r, .news = news};
	snprintf(l->vsock, sizeof(l->vsock), "%s", vsock);
	if (wait) {
		sem_init(&read, 0, 0);
		l->read = &read;
	}
	loop_submit(m->en, deliver, l);
	if (!wait)
		return;
	while (sem_wait(&read) < 0)
		;
	sem_destroy(&read);
}

static int make(struct microvm *m, struct error *e) {
	struct microvm_route *r = m->route != NULL ? NULL : calloc(1, sizeof(*r));
	if (m->route != NULL)
		return 0;
	if (r == NULL)
		return error_set(e, -ENOMEM, "out of memory opening the endpoint");
	*r = (struct microvm_route){.references = 1, .m = microvm_ref(m), .latest = MICROVM_SLEEPS};
	pthread_mutex_lock(&m->lock);
	m->route = r;
	pthread_mutex_unlock(&m->lock);
	return 0;
}

static void set_reachable(struct microvm *m, bool on) {
	pthread_mutex_lock(&m->lock);
	m->reachable = on;
	pthread_mutex_unlock(&m->lock);
}

int microvm_go_running(struct microvm *m, unsigned from, struct error *e) {
	int r = make(m, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&m->lock);
	m->incarnation++;
	snprintf(m->record.vmm, sizeof(m->record.vmm), "%.36s", m->slot.vmm);
	bool recorded = m->state == STATE_RUNNING;
	pthread_mutex_unlock(&m->lock);
	m->last_activity_ms = (int64_t)monotonic_ms();
	r = recorded ? 0 : microvm_change(m, from, STATE_RUNNING, NULL, e);
	if (r < 0)
		return r;
	send_news(m, MICROVM_AWAKE, m->slot.vsock, false);
	set_reachable(m, true);
	return 0;
}

void microvm_route_halt(struct microvm *m) {
	set_reachable(m, false);
	send_news(m, MICROVM_HALTS, "", true);
}

void microvm_route_sleep(struct microvm *m) {
	send_news(m, MICROVM_SLEEPS, "", true);
}

void microvm_route_run_on(struct microvm *m) {
	send_news(m, MICROVM_AWAKE, "", false);
	set_reachable(m, true);
}

void microvm_route_end(struct microvm *m) {
	set_reachable(m, false);
	send_news(m, MICROVM_ENDS, "", false);
	pthread_mutex_lock(&m->lock);
	struct microvm_route *r = m->route;
	m->route = NULL;
	pthread_mutex_unlock(&m->lock);
	unref(r);
}

void microvm_route_drain(struct microvm *m, int timeout_ms) {
	int64_t end = (int64_t)monotonic_ms() + timeout_ms;
	pthread_mutex_lock(&m->lock);
	while (m->requests > 0 && m->state == STATE_SUSPENDING) {
		int64_t now = (int64_t)monotonic_ms(), quiet = m->last_activity_ms + DRAIN_QUIET_MS;
		int64_t until = m->unanswered > 0 || quiet > end ? end : quiet;
		if (now >= until)
			break;
		struct timespec t = {.tv_sec = until / 1000, .tv_nsec = until % 1000 * 1000000};
		pthread_cond_timedwait(&m->changed, &m->lock, &t);
	}
	pthread_mutex_unlock(&m->lock);
}

// What the edge does with a route. --------------------------------------------------------------------------------------------

struct microvm_route *microvm_route_give(struct microvm *m) {
	m->route->references++;
	m->requests++;
	return m->route;
}

void microvm_route_release(struct microvm_route *r) {
	if (r == NULL)
		return;
	pthread_mutex_lock(&r->m->lock);
	r->m->requests--;
	if (r->m->state == STATE_SUSPENDING)
		pthread_cond_broadcast(&r->m->changed);
	pthread_mutex_unlock(&r->m->lock);
	unref(r);
}

const char *microvm_route_id(const struct microvm_route *r) {
	return r->m->record.id;
}

void microvm_route_active(struct microvm_route *r) {
	atomic_store_explicit(&r->m->last_activity_ms, (int64_t)(clock_ns(CLOCK_MONOTONIC_COARSE) / 1000000u), memory_order_relaxed);
}

void microvm_route_follow(struct microvm_route *r, struct microvm_follower *f) {
	r->references++;
	r->follower = f;
}

void microvm_route_leave(struct microvm_route *r) {
	r->follower = NULL;
	unref(r);
}

struct microvm_follower *microvm_route_follower(const struct microvm_route *r) {
	return r->follower;
}

enum microvm_news microvm_route_latest(const struct microvm_route *r) {
	return r->latest;
}

const char *microvm_route_vsock(const struct microvm_route *r) {
	return r->vsock;
}

static void woken(void *arg, enum microvm_open_result result, struct microvm_route *given, const char *why) {
	struct microvm_route *r = arg;
	r->waking = false;
	microvm_route_release(given);
	// Asleep without auto-resume: whoever waits goes on waiting. Awake or gone: that news came by itself.
	if (result == MICROVM_OPEN_FAILED)
		tell(r, MICROVM_SLEEPS_ON, why);
	unref(r);
}

void microvm_route_wake(struct microvm_route *r) {
	if (r->waking)
		return;
	r->waking = true;
	r->references++;
	microvm_open_this(r->m, woken, r);
}

static void count(struct microvm_route *r, int change) {
	pthread_mutex_lock(&r->m->lock);
	r->m->unanswered += (unsigned)change;
	if (r->m->unanswered == 0 && r->m->state == STATE_SUSPENDING)
		pthread_cond_broadcast(&r->m->changed);
	pthread_mutex_unlock(&r->m->lock);
}

void microvm_route_asked(struct microvm_route *r) {
	count(r, 1);
}

void microvm_route_answered(struct microvm_route *r) {
	count(r, -1);
}
