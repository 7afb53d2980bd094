// State changes of a microVM, who may work on it, and the requests that wait for it; see lifecycle.h.
#include "microvms/lifecycle.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

const char *const state_names[] = {"PENDING", "RUNNING", "SUSPENDING", "SUSPENDED", "TERMINATING", "TERMINATED"};

int state_of_name(const char *name) {
	for (int i = STATE_PENDING; i <= STATE_TERMINATED; i++)
		if (strcmp(state_names[i], name) == 0)
			return i;
	return -1;
}

enum microvm_state microvm_state_now(struct microvm *m) {
	pthread_mutex_lock(&m->lock);
	enum microvm_state state = m->state;
	pthread_mutex_unlock(&m->lock);
	return state;
}

void microvm_begin(struct microvm *m) {
	pthread_mutex_lock(&m->lock);
	while (m->busy)
		pthread_cond_wait(&m->changed, &m->lock);
	m->busy = true;
	pthread_mutex_unlock(&m->lock);
}

void microvm_end(struct microvm *m) {
	pthread_mutex_lock(&m->lock);
	m->busy = false;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

static void set_text(char *to, size_t room, const char *text) {
	size_t n = strnlen(text, room - 1);
	memmove(to, text, n);
	to[n] = '\0';
}

static void copy_changed(struct store_microvm *to, const struct store_microvm *from) {
	memcpy(to->state, from->state, sizeof(to->state));
	memcpy(to->state_reason, from->state_reason, sizeof(to->state_reason));
	memcpy(to->vmm, from->vmm, sizeof(to->vmm));
	to->terminated_ms = from->terminated_ms;
	to->suspended_at_ms = from->suspended_at_ms;
}

static void apply(struct store_microvm *r, enum microvm_state to, const char *reason) {
	int64_t now = (int64_t)realtime_ms();
	set_text(r->state, sizeof(r->state), state_names[to]);
	set_text(r->state_reason, sizeof(r->state_reason), reason == NULL ? "" : reason);
	if (to == STATE_TERMINATED)
		r->terminated_ms = now;
	if (to == STATE_SUSPENDED)
		r->suspended_at_ms = now;
	if (to == STATE_RUNNING)
		r->suspended_at_ms = 0;
	if (to == STATE_SUSPENDED || to == STATE_TERMINATED)
		r->vmm[0] = '\0';
}

static int change(struct microvm *m, unsigned from, enum microvm_state to, const char *reason, bool force, struct error *e) {
	struct error ignored;
	if (e == NULL)
		e = &ignored;
	pthread_mutex_lock(&m->commit);
	pthread_mutex_lock(&m->lock);
	enum microvm_state before = m->state;
	struct store_microvm r = m->record;
	pthread_mutex_unlock(&m->lock);
	if ((from & IN(before)) == 0) {
		pthread_mutex_unlock(&m->commit);
		return error_set(e, -ECANCELED, "the MicroVM is %s", state_names[before]);
	}
	apply(&r, to, reason);
	// A microVM that runs, or is about to sleep, does not outlive its host, whatever the record says: those changes need not wait for the disk. But one
	// that was asleep would be found asleep after a power cut, with what it had before it was woken.
	bool ends_with_host = to == STATE_SUSPENDING || (to == STATE_RUNNING && before != STATE_SUSPENDED);
	int result = ends_with_host ? store_update_microvm_soon(m->en->store, &r, e) : store_update_microvm(m->en->store, &r, e);
	if (result < 0)
		log_error("microvm.commit", LOG_S("microvmId", r.id), LOG_S("state", r.state), LOG_S("message", e->message));
	if (result == 0 || force) {
		pthread_mutex_lock(&m->lock);
		copy_changed(&m->record, &r);
		m->state = to;
		if (to == STATE_SUSPENDED)
			m->asleep_ms = (int64_t)boottime_ms();
		m->terminate_hook = to == STATE_TERMINATING && before == STATE_RUNNING;
		pthread_cond_broadcast(&m->changed);
		pthread_mutex_unlock(&m->lock);
		log_info("microvm.state", LOG_S("microvmId", r.id), LOG_S("state", r.state), LOG_S("reason", r.state_reason));
	}
	pthread_mutex_unlock(&m->commit);
	if (result == 0 || force)
		microvm_schedule(m);
	return result;
}

int microvm_change(struct microvm *m, unsigned from, enum microvm_state to, const char *reason, struct error *e) {
	return change(m, from, to, reason, false, e);
}

bool microvm_force(struct microvm *m, unsigned from, enum microvm_state to, const char *reason) {
	return change(m, from, to, reason, true, NULL) != -ECANCELED;
}

// Waiting requests. ---------------------------------------------------------------------------------------------------------

struct delivery {
	microvm_opened done;
	void *arg;
	enum microvm_open_result result;
	struct microvm_route *route;
	char why[ERROR_MESSAGE_MAX];
};

static void deliver(void *arg) {
	struct delivery *d = arg;
	d->done(d->arg, d->result, d->route, d->why);
	free(d);
}

static void answer(struct engine *en, const struct waiter *w, enum microvm_open_result result, struct microvm_route *route,
		   const char *why) {
	struct delivery *d = calloc(1, sizeof(*d));
	if (d == NULL) {
		log_error("microvm.open", LOG_S("message", "out of memory: a request was lost"));
		microvm_route_release(route);
		return;
	}
	*d = (struct delivery){.done = w->done, .arg = w->arg, .result = result, .route = route};
	set_text(d->why, sizeof(d->why), why);
	loop_submit(en, deliver, d);
}

// What a request gets in the present state. Returns false when it must wait. m->lock is held; a route that is given out is counted.
static bool verdict(struct microvm *m, const char *failure, enum microvm_open_result *result, struct microvm_route **route) {
	*route = NULL;
	switch (m->state) {
	case STATE_RUNNING:
		if (!m->reachable)
			return false;
		*result = MICROVM_OPEN_OK;
		*route = microvm_route_give(m);
		m->last_activity_ms = (int64_t)monotonic_ms();
		return true;
	case STATE_SUSPENDED:
		if (failure != NULL)
			*result = MICROVM_OPEN_FAILED;
		else if (m->resuming || m->record.auto_resume)
			return false;
		else
			*result = MICROVM_OPEN_ASLEEP;
		return true;
	case STATE_TERMINATING:
	case STATE_TERMINATED:
		*result = MICROVM_OPEN_GONE;
		return true;
	default:
		return false;
	}
}

// Submits a resume when somebody waits for it. m->lock is held.
static bool wake_when_wanted(struct microvm *m) {
	if (m->state != STATE_SUSPENDED || m->resuming || STAILQ_EMPTY(&m->waiters))
		return true;
	m->resuming = true;
	if (worker_submit(microvm_resume_job, microvm_ref(m)) == 0)
		return true;
	m->resuming = false;
	m->references--; // never the last: the caller has one
	return false;
}

void microvm_settle(struct microvm *m, const char *failure) {
	for (;;) {
		enum microvm_open_result result = MICROVM_OPEN_FAILED;
		struct microvm_route *route = NULL;
		pthread_mutex_lock(&m->lock);
		struct waiter *w = STAILQ_FIRST(&m->waiters);
		if (w == NULL || !verdict(m, failure, &result, &route)) {
			bool woken = wake_when_wanted(m);
			pthread_mutex_unlock(&m->lock);
			if (woken)
				return;
			failure = "no thread is free to resume the MicroVM";
			continue;
		}
		STAILQ_REMOVE_HEAD(&m->waiters, link);
		m->waiter_count--;
		pthread_mutex_unlock(&m->lock);
		answer(m->en, w, result, route, result == MICROVM_OPEN_FAILED && failure != NULL ? failure : "");
		free(w);
	}
}

void microvm_open_this(struct microvm *m, microvm_opened done, void *arg) {
	struct waiter now = {.done = done, .arg = arg};
	enum microvm_open_result result = MICROVM_OPEN_FAILED;
	struct microvm_route *route = NULL;
	const char *why = "";
	pthread_mutex_lock(&m->lock);
	bool decided = STAILQ_EMPTY(&m->waiters) && verdict(m, NULL, &result, &route);
	if (!decided && m->waiter_count >= WAITERS_MAX) {
		decided = true;
		why = "too many requests wait for the MicroVM";
	}
	struct waiter *w = decided ? NULL : malloc(sizeof(*w));
	if (w != NULL) {
		*w = now;
		STAILQ_INSERT_TAIL(&m->waiters, w, link);
		m->waiter_count++;
	}
	pthread_mutex_unlock(&m->lock);
	if (decided)
		answer(m->en, &now, result, route, why);
	else if (w == NULL)
		answer(m->en, &now, MICROVM_OPEN_FAILED, NULL, "out of memory");
	else
		microvm_settle(m, NULL);
}

void microvm_open(struct engine *en, const char *endpoint, microvm_opened done, void *arg) {
	struct waiter now = {.done = done, .arg = arg};
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	if (m == NULL)
		answer(en, &now, MICROVM_OPEN_UNKNOWN, NULL, "");
	else
		microvm_open_this(m, done, arg);
	microvm_unref(m);
}

struct microvm_route *microvm_open_now(struct engine *en, const char *endpoint) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	enum microvm_open_result result;
	struct microvm_route *route = NULL;
	if (m == NULL)
		return NULL;
	pthread_mutex_lock(&m->lock);
	if (STAILQ_EMPTY(&m->waiters))
		verdict(m, NULL, &result, &route);
	pthread_mutex_unlock(&m->lock);
	microvm_unref(m);
	return route;
}

bool microvm_find_endpoint(struct engine *en, const char *endpoint, char id[48], char state[STATE_TEXT]) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	if (m == NULL)
		return false;
	pthread_mutex_lock(&m->lock);
	set_text(id, 48, m->record.id);
	set_text(state, STATE_TEXT, state_names[m->state]);
	pthread_mutex_unlock(&m->lock);
	microvm_unref(m);
	return true;
}

unsigned microvm_ingress(struct engine *en, const char *endpoint) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	unsigned ingress = m == NULL ? 0 : m->ingress;
	microvm_unref(m);
	return ingress;
}

int64_t microvm_tokens_since(struct engine *en, const char *endpoint) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	if (m == NULL)
		return 0;
	pthread_mutex_lock(&m->lock);
	int64_t since = m->record.tokens_since_ms;
	pthread_mutex_unlock(&m->lock);
	microvm_unref(m);
	return since;
}

int microvm_revoke_tokens(struct engine *en, const char *id, struct error *e) {
	struct microvm *m = NULL;
	int r = microvm_lookup(en, id, &m, e);
	if (r < 0)
		return r;
	// What was minted in this millisecond is revoked too; what comes after it is minted in a later one.
	int64_t since = (int64_t)realtime_ms() + 1;
	pthread_mutex_lock(&m->commit);
	r = store_set_tokens_since(en->store, id, since, e);
	if (r == 0) {
		pthread_mutex_lock(&m->lock);
		m->record.tokens_since_ms = since;
		pthread_mutex_unlock(&m->lock);
	}
	pthread_mutex_unlock(&m->commit);
	microvm_unref(m);
	return r;
}

uint16_t microvm_public_port(struct engine *en, const char *endpoint, uint16_t port) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	uint16_t found = m == NULL ? 0 : store_public_port(en->store, m->record.image_uuid, port);
	microvm_unref(m);
	return found;
}

unsigned microvm_vcpus(struct engine *en, const char *endpoint) {
	struct microvm *m = en->microvms == NULL ? NULL : registry_find_endpoint(en, endpoint);
	unsigned vcpus = m == NULL || m->settings.vcpus == 0 ? 1 : m->settings.vcpus;
	microvm_unref(m);
	return vcpus;
}

// The agent and the hooks. --------------------------------------------------------------------------------------------------

int microvm_agent_open(struct microvm *m, struct agent *a, struct error *e) {
	int r = agent_begin(m->slot.vsock, a, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&m->lock);
	m->agent_fd = a->fd;
	pthread_mutex_unlock(&m->lock);
	return 0;
}

void microvm_agent_close(struct microvm *m, struct agent *a) {
	pthread_mutex_lock(&m->lock);
	m->agent_fd = -1;
	pthread_mutex_unlock(&m->lock);
	agent_close(a);
}

json_t *microvm_hook_request(struct microvm *m, enum image_hook hook, const char *body) {
	return agent_hook_request(image_hook_names[hook], m->settings.hook_port, m->settings.hooks[hook].timeout_ms, body, false);
}

int microvm_hook_result(struct microvm *m, struct agent *a, enum image_hook hook, char reason[REASON_MAX]) {
	struct error e;
	struct hook_answer h;
	int timeout_ms = m->settings.hooks[hook].timeout_ms;
	int r = agent_receive_hook(a, timeout_ms + AGENT_REPLY_MS, &h, &e);
	if (r < 0) {
		snprintf(reason, REASON_MAX, "The %s hook could not be called: %.400s", image_hook_names[hook], e.message);
		return r;
	}
	if (h.result == HOOK_OK)
		return 0;
	hook_reason(image_hook_names[hook], false, m->settings.hook_port, timeout_ms, &h, reason, REASON_MAX);
	return -EREMOTEIO;
}

int microvm_call_hook(struct microvm *m, struct agent *a, enum image_hook hook, char reason[REASON_MAX]) {
	if (!m->settings.hooks[hook].enabled)
		return 0;
	struct error e;
	int r = agent_send(a, microvm_hook_request(m, hook, NULL), &e);
	if (r < 0) {
		snprintf(reason, REASON_MAX, "The %s hook could not be called: %.400s", image_hook_names[hook], e.message);
		return r;
	}
	return microvm_hook_result(m, a, hook, reason);
}
