// Deadlines: idle policy, maximum duration, suspended duration, and the short grace after an application's end (spec section 4.4).
//
// Each microVM has one timer, set to the first of its deadlines that matters in its state. Durations that users gave are counted by the clock of the
// boot, which nobody sets and which goes on while the host sleeps; timers run on the monotonic clock, so one is never set further away than
// ALARM_MAX_MS: a host that slept is noticed then. Only when stasisd starts are the moments in the records, which are of the wall clock, turned into
// such of the boot's; one in the future counts as now. The idle period starts anew with a start of stasisd, which has cut all connections. An idle
// timer is not moved by each byte; when it fires, the newest activity decides whether it was the right time.
#include "microvms/lifecycle.h"

#include "base/clock.h"
#include "base/log.h"

#include <stdio.h>
#include <string.h>

#define ALARM_MAX_MS 600000

static int64_t least(int64_t a, int64_t b) {
	return a < b ? a : b;
}

int64_t moment_of(int64_t wall_ms) {
	int64_t ago = (int64_t)realtime_ms() - wall_ms;
	return (int64_t)boottime_ms() - (ago > 0 ? ago : 0);
}

// Milliseconds from now until the first deadline; INT64_MAX: none. m->lock is held.
static int64_t until_due(struct microvm *m) {
	const struct store_microvm *r = &m->record;
	int64_t now = (int64_t)monotonic_ms(), boot = (int64_t)boottime_ms(), due = INT64_MAX;
	if ((IN(m->state) & LIVING) == 0)
		return due;
	if (r->maximum_duration_s > 0)
		due = least(due, m->begun_ms + r->maximum_duration_s * 1000 - boot);
	if (m->exited_ms != 0)
		due = least(due, m->exited_ms + EXIT_GRACE_MS - now);
	if (m->credentials_due_ms != 0 && m->state == STATE_RUNNING)
		due = least(due, m->credentials_due_ms - now);
	if (r->has_idle_policy && m->state == STATE_RUNNING)
		due = least(due, m->last_activity_ms + r->max_idle_s * 1000 - now);
	if (r->has_idle_policy && m->state == STATE_SUSPENDED)
		due = least(due, m->asleep_ms + r->suspended_s * 1000 - boot);
	return due;
}

static bool is_idle(const struct microvm *m) {
	return (int64_t)monotonic_ms() >= m->last_activity_ms + m->record.max_idle_s * 1000;
}

// No byte has crossed the endpoint for the idle period: what else the image counts as busy, its guest knows (docs/sleep.md). One that does not answer is
// not busy, so that none keeps itself awake by silence. The operation is held.
static void ask_guest(struct microvm *m) {
	struct agent a = {.fd = -1};
	json_t *reply = NULL;
	struct error e;
	int r = microvm_agent_open(m, &a, &e);
	if (r == 0)
		r = agent_call(&a, json_pack("{s:s}", "op", "busy"), BUSY_REPLY_MS, &reply, &e);
	microvm_agent_close(m, &a);
	json_int_t idle_ms = json_integer_value(json_object_get(reply, "idleMs"));
	const char *why = json_string_value(json_object_get(reply, "why"));
	if (r == 0 && idle_ms >= 0 && idle_ms < m->record.max_idle_s * 1000) {
		int64_t last = (int64_t)monotonic_ms() - idle_ms;
		if (last > m->last_activity_ms)
			m->last_activity_ms = last;
		log_info("microvm.busy", LOG_S("microvmId", m->record.id), LOG_S("why", why == NULL ? "" : why), LOG_U("idleMs", idle_ms));
	}
	json_decref(reply);
}

// The idle period is over, as far as the endpoint tells.
static void idle_period_over(struct microvm *m) {
	struct error e;
	microvm_begin(m);
	if (microvm_state_now(m) == STATE_RUNNING && is_idle(m))
		ask_guest(m);
	bool idle = microvm_state_now(m) == STATE_RUNNING && is_idle(m);
	if (idle && m->record.suspended_s > 0 && microvm_suspend_now(m, SUSPEND_IDLE, &e) < 0)
		log_warn("microvm.idle", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
	microvm_end(m);
	// 0 means: terminate instead of staying suspended.
	if (idle && m->record.suspended_s == 0)
		microvm_terminate_later(m, "The suspended duration of the MicroVM is over.");
	else if (!idle)
		microvm_schedule(m);
}

static void rearm(void *arg);

static void run_due_job(void *arg) {
	struct microvm *m = arg;
	pthread_mutex_lock(&m->lock);
	const struct store_microvm *r = &m->record;
	int64_t now = (int64_t)monotonic_ms(), boot = (int64_t)boottime_ms();
	bool living = (IN(m->state) & LIVING) != 0;
	bool exited = living && m->exited_ms != 0 && now >= m->exited_ms + EXIT_GRACE_MS;
	bool old = living && r->maximum_duration_s > 0 && boot >= m->begun_ms + r->maximum_duration_s * 1000;
	bool forgotten = r->has_idle_policy && m->state == STATE_SUSPENDED && boot >= m->asleep_ms + r->suspended_s * 1000;
	bool idle = r->has_idle_policy && m->state == STATE_RUNNING && is_idle(m);
	bool stale = m->state == STATE_RUNNING && m->credentials_due_ms != 0 && now >= m->credentials_due_ms;
	int exit_code = m->exit_code;
	pthread_mutex_unlock(&m->lock);

	char reason[REASON_MAX];
	snprintf(reason, sizeof(reason), "Container Stopped with Exit Code: %d", exit_code);
	if (exited) {
		microvm_terminate_later(m, reason);
	} else if (old) {
		microvm_terminate_later(m, "The maximum duration of the MicroVM is over.");
	} else if (forgotten) {
		microvm_terminate_later(m, "The suspended duration of the MicroVM is over.");
	} else if (idle) {
		idle_period_over(m);
	} else if (stale) {
		microvm_renew_credentials(m);
	} else {
		microvm_schedule(m);
	}
	microvm_unref(m);
}

static void on_alarm(uv_timer_t *handle) {
	struct microvms *t = handle->data;
	int64_t now = (int64_t)monotonic_ms();
	pthread_mutex_lock(&t->lock); // keeps the microVM of a timer from being freed while it is taken
	for (struct timer *x; (x = timers_take(&t->timers, now)) != NULL;) {
		struct microvm *m = (struct microvm *)(void *)((char *)x - offsetof(struct microvm, timer));
		if (worker_submit(run_due_job, microvm_ref(m)) < 0) {
			bool earlier;
			m->references--; // the table has one too
			timers_set(&t->timers, x, now + 1000, &earlier);
		}
	}
	pthread_mutex_unlock(&t->lock);
	rearm(t->en);
}

static void rearm(void *arg) {
	struct engine *en = arg;
	struct microvms *t = en->microvms;
	t->rearm_queued = false;
	if (!t->alarm_open)
		return;
	int64_t next = timers_next(&t->timers);
	if (next < 0) {
		uv_timer_stop(&t->alarm);
		return;
	}
	int64_t wait = next - (int64_t)monotonic_ms();
	uv_update_time(en->loop);
	uv_timer_start(&t->alarm, on_alarm, wait < 0 ? 0 : (uint64_t)wait + 1, 0);
}

void microvm_schedule(struct microvm *m) {
	struct microvms *t = m->en->microvms;
	bool earlier = false;
	int r = 0;
	// Under the microVM's lock, so that no timer is set any more once it is TERMINATED.
	pthread_mutex_lock(&m->lock);
	int64_t wait = until_due(m);
	if (wait == INT64_MAX)
		timers_clear(&t->timers, &m->timer);
	else
		r = timers_set(&t->timers, &m->timer, (int64_t)monotonic_ms() + (wait < 0 ? 0 : least(wait, ALARM_MAX_MS)), &earlier);
	pthread_mutex_unlock(&m->lock);
	if (r < 0)
		log_error("microvm.timer", LOG_S("microvmId", m->record.id), LOG_S("message", "out of memory: no deadline is set"));
	if (earlier && t->alarm_open && !atomic_exchange(&t->rearm_queued, true))
		loop_submit(m->en, rearm, m->en);
}

static void open_alarm(void *arg) {
	struct engine *en = arg;
	struct microvms *t = en->microvms;
	uv_timer_init(en->loop, &t->alarm);
	t->alarm.data = t;
	t->alarm_open = true;
	rearm(en);
}

int timers_begin(struct engine *en, struct error *e) {
	loop_submit(en, open_alarm, en);
	return 0;
}

void timers_end(struct engine *en) {
	struct microvms *t = en->microvms;
	if (t != NULL)
		t->loop_gone = true;
	if (t != NULL && t->alarm_open) {
		t->alarm_open = false;
		uv_close((uv_handle_t *)&t->alarm, NULL);
	}
}
