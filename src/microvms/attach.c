// Following a microVM while no operation has it: its VMM's control socket (did the guest end?) and its application's output and end.
#include "microvms/lifecycle.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "logs/logs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/wait.h>
#include <unistd.h>

// About the VMM that a microVM had at that moment.
struct incarnation_job {
	struct microvm *m;
	uint64_t incarnation;
};

// The VMM that this incarnation had is gone or its guest has ended: so does the microVM.
static void run_ended_job(void *arg) {
	struct incarnation_job *job = arg;
	struct microvm *m = job->m;
	microvm_begin(m);
	pthread_mutex_lock(&m->lock);
	bool same = m->incarnation == job->incarnation && m->state == STATE_RUNNING;
	char reason[REASON_MAX];
	memcpy(reason, m->end_reason, sizeof(reason));
	pthread_mutex_unlock(&m->lock);
	if (same)
		microvm_abort(m, reason);
	microvm_end(m);
	microvm_unref(m);
	free(job);
}

static void submit(struct microvm *m, void (*run)(void *), const char *what) {
	struct incarnation_job *job = malloc(sizeof(*job));
	if (job == NULL)
		return;
	pthread_mutex_lock(&m->lock);
	*job = (struct incarnation_job){.m = m, .incarnation = m->incarnation};
	pthread_mutex_unlock(&m->lock);
	microvm_ref(m);
	if (worker_submit(run, job) < 0) {
		log_error("microvm.event", LOG_S("microvmId", m->record.id), LOG_S("event", what),
			  LOG_S("message", "no thread to act on it"));
		microvm_unref(m);
		free(job);
	}
}

static void report_end(struct microvm *m, const char *reason) {
	pthread_mutex_lock(&m->lock);
	snprintf(m->end_reason, sizeof(m->end_reason), "%s", reason);
	pthread_mutex_unlock(&m->lock);
	submit(m, run_ended_job, "ended");
}

// The application asked for it, as its owner may.
static void run_suspend_job(void *arg) {
	struct incarnation_job *job = arg;
	struct microvm *m = job->m;
	struct error e;
	microvm_begin(m);
	pthread_mutex_lock(&m->lock);
	bool same = m->incarnation == job->incarnation && m->state == STATE_RUNNING;
	pthread_mutex_unlock(&m->lock);
	if (same && microvm_suspend_now(m, SUSPEND_ASKED, &e) < 0)
		log_warn("microvm.suspend", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
	microvm_end(m);
	microvm_unref(m);
	free(job);
}

static void on_suspend(void *arg) {
	struct microvm *m = arg;
	log_info("microvm.suspendAsked", LOG_S("microvmId", m->record.id), LOG_S("by", "application"));
	submit(m, run_suspend_job, "suspend");
}

static void on_vmm(void *arg, uint32_t events) {
	struct microvm *m = arg;
	if (!vmm_look(&m->slot.client))
		return;
	watch_remove(m->en->watcher, m->watch);
	report_end(m, m->slot.client.reason);
}

static void on_exited(void *arg, int exit_code) {
	struct microvm *m = arg;
	pthread_mutex_lock(&m->lock);
	bool first = m->exited_ms == 0;
	if (first) {
		m->exited_ms = (int64_t)monotonic_ms();
		m->exit_code = exit_code;
	}
	pthread_mutex_unlock(&m->lock);
	if (!first)
		return;
	log_info("microvm.exited", LOG_S("microvmId", m->record.id), LOG_U("exitCode", exit_code));
	microvm_schedule(m);
}

// The stream of PutLogEvents that the application's output goes to, or NULL.
static struct push_stream *open_push(const struct microvm *m, const char *folder) {
	struct push_target target;
	const char *name = strrchr(m->record.image_arn, ':');
	cleanup_json json_t *config = json_loads(m->record.config == NULL ? "{}" : m->record.config, 0, NULL);
	return push_target_of_microvm(m->en, config, name == NULL ? "" : name + 1, m->record.version, m->record.id, m->record.started_ms,
				      &target)
		       ? push_open(m->en, folder, &target)
		       : NULL;
}

static void open_log(struct microvm *m) {
	struct error e;
	char folder[LOG_FOLDER_MAX];
	if (m->app_log.fd >= 0)
		return;
	logs_of_microvm(m->en, m->record.id, folder);
	if (output_log_open(&m->app_log, folder, (uint64_t)m->en->config.microvm_log_bytes, open_push(m, folder), &e) < 0)
		log_warn("microvm.log", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
}

void microvm_attach(struct microvm *m) {
	struct error e;
	int r = watch_add(m->en->watcher, m->slot.client.fd, EPOLLIN | EPOLLRDHUP, on_vmm, m, &m->watch);
	if (r < 0)
		log_error("microvm.watch", LOG_S("microvmId", m->record.id), LOG_S("message", strerror(-r)));
	open_log(m);
	const struct events_handler handler = {.exited = on_exited, .suspend = on_suspend, .arg = m};
	if (events_start(m->en->watcher, m->slot.vsock, &m->app_log, &handler, &m->events, &e) < 0)
		log_warn("microvm.events", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
}

struct attach_job {
	struct microvm *m;
	uint64_t incarnation;
	struct stages stages;
};

static void run_attach_job(void *arg) {
	struct attach_job *job = arg;
	struct microvm *m = job->m;
	usleep(ATTACH_DELAY_MS * 1000);
	stages_flush(m->en, &job->stages);
	microvm_begin(m);
	pthread_mutex_lock(&m->lock);
	bool wanted = m->state == STATE_RUNNING && m->incarnation == job->incarnation;
	pthread_mutex_unlock(&m->lock);
	if (wanted && m->watch == 0 && m->events == NULL)
		microvm_attach(m);
	microvm_end(m);
	microvm_unref(m);
	free(job);
}

void microvm_attach_later(struct microvm *m, const struct stages *stages) {
	struct attach_job *job = malloc(sizeof(*job));
	if (job != NULL) {
		*job = (struct attach_job){.m = microvm_ref(m), .incarnation = m->incarnation, .stages = *stages};
		if (worker_submit(run_attach_job, job) == 0)
			return;
		microvm_unref(m);
		free(job);
	}
	microvm_attach(m); // at once, then
}

void microvm_detach(struct microvm *m) {
	watch_remove(m->en->watcher, m->watch);
	m->watch = 0;
	events_stop(m->events);
	m->events = NULL;
	output_log_close(&m->app_log);
}

void microvms_on_slot_ended(void *arg, const char *vmm, int wait_status) {
	if (WIFSIGNALED(wait_status))
		log_warn("vmm.ended", LOG_S("vmm", vmm), LOG_U("signal", WTERMSIG(wait_status)));
	else
		log_info("vmm.ended", LOG_S("vmm", vmm), LOG_U("exitStatus", WEXITSTATUS(wait_status)));
	// Its microVM, if it has one, learns of it from the end of the control connection.
}
