// The end of a microVM: the terminate hook, then the VMM, the slot and the files go, and only the record stays.
#include "microvms/lifecycle.h"

#include "base/io.h"
#include "base/log.h"
#include "logs/logs.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

void microvm_finish(struct microvm *m) {
	struct error e;
	microvm_detach(m);
	microvm_route_end(m);
	slot_end(m->en, &m->slot);
	if (m->folder[0] != '\0')
		logs_microvm_ended(m->en, m->record.id, m->folder);
	if (m->folder[0] != '\0' && remove_tree(m->folder, &e) < 0)
		log_error("microvm.remove", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
	pthread_mutex_lock(&m->lock);
	char reason[REASON_MAX];
	memcpy(reason, m->record.state_reason, sizeof(reason));
	pthread_mutex_unlock(&m->lock);
	microvm_force(m, IN(STATE_TERMINATING), STATE_TERMINATED, reason);
	microvm_settle(m, NULL);
	registry_bury(m);
	logs_wake_microvm(m->en, m->record.id); // its log is complete
}

void microvm_abort(struct microvm *m, const char *reason) {
	// When it is not ours, a Terminate came in between: its own job does the rest as soon as this operation ends.
	bool ours = microvm_force(m, LIVING, STATE_TERMINATING, reason);
	microvm_settle(m, NULL);
	if (ours)
		microvm_finish(m);
}

static void call_terminate_hook(struct microvm *m) {
	pthread_mutex_lock(&m->lock);
	bool wanted = m->terminate_hook && m->exited_ms == 0;
	pthread_mutex_unlock(&m->lock);
	if (!wanted || !m->settings.hooks[HOOK_TERMINATE].enabled)
		return;
	struct stages stages;
	struct agent a;
	char reason[REASON_MAX];
	struct error e;
	stages_begin(&stages, m->record.id, "terminate");
	int r = microvm_agent_open(m, &a, &e);
	if (r < 0) {
		log_warn("hook.terminate", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
		return;
	}
	// Whatever it answers, termination proceeds (spec section 4.3).
	if (microvm_call_hook(m, &a, HOOK_TERMINATE, reason) < 0)
		log_warn("hook.terminate", LOG_S("microvmId", m->record.id), LOG_S("message", reason));
	microvm_agent_close(m, &a);
	stages_mark(&stages, "hook.terminate");
	stages_flush(m->en, &stages);
}

static void run_terminate_job(void *arg) {
	struct microvm *m = arg;
	microvm_begin(m);
	if (microvm_state_now(m) == STATE_TERMINATING) {
		call_terminate_hook(m);
		microvm_finish(m);
	}
	microvm_end(m);
	microvm_unref(m);
}

static int terminate(struct microvm *m, const char *reason, struct error *e) {
	int r = microvm_change(m, LIVING, STATE_TERMINATING, reason == NULL ? "Success." : reason, e);
	if (r == -ECANCELED)
		return 0; // somebody else does it already
	if (r < 0)
		return r;
	microvm_settle(m, NULL);
	// An operation that waits for the guest need not wait any longer.
	pthread_mutex_lock(&m->lock);
	if (m->agent_fd >= 0)
		shutdown(m->agent_fd, SHUT_RDWR);
	pthread_mutex_unlock(&m->lock);
	r = worker_submit(run_terminate_job, microvm_ref(m));
	if (r < 0) {
		microvm_unref(m);
		// The next start of the engine ends it; there is nothing better to do without memory.
		log_error("microvm.terminate", LOG_S("microvmId", m->record.id), LOG_S("message", "no thread to end the MicroVM"));
	}
	return 0;
}

int microvm_terminate(struct engine *en, const char *id, const char *reason, struct error *e) {
	struct microvm *m = NULL;
	int r = microvm_lookup(en, id, &m, e);
	if (r == -ESTALE)
		return 0; // TERMINATED already
	if (r < 0)
		return r;
	r = terminate(m, reason, e);
	microvm_unref(m);
	return r;
}

void microvm_terminate_later(struct microvm *m, const char *reason) {
	struct error e;
	if (terminate(m, reason, &e) < 0)
		log_error("microvm.terminate", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
}
