// Launching a microVM from its image's snapshot.
//
// The way to the first answer is kept short: the record is committed while a slot is taken and the VMM restores; the guest's `resume` and the
// run hook go out together; what nobody waits for (log files, the stream of output, statistics) comes after the endpoint has opened. The guest's
// workload is let go only when the record is durable; a crash before that leaves a slot without a record, which the next start ends.
#include "microvms/lifecycle.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "images/connectors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct run_job {
	struct microvm *m;
	char *payload; // of the run hook; NULL: none
};

int microvm_load(struct microvm *m, struct error *e) {
	struct store_version version = {0};
	snprintf(m->folder, sizeof(m->folder), "%.300s/microvms/%.47s", m->en->config.state_folder, m->record.id + strlen("microvm-"));
	snprintf(m->image_folder, sizeof(m->image_folder), "%.300s/images/%s/%s", m->en->config.state_folder, m->record.image_uuid,
		 m->record.version);
	int r = store_get_version(m->en->store, m->record.image_uuid, m->record.version, &version, e);
	if (r == 0)
		r = image_settings_read(version.config, m->en->config.default_timeout_scale, &m->settings, e);
	if (r == 0)
		run_egress(m->record.config, &m->settings.egress, &m->settings.egress);
	store_version_clear(&version);
	return r;
}

// Waits until the record is in the store. 0, or -ECANCELED when the store refused it.
static int wait_recorded(struct microvm *m, struct error *e) {
	pthread_mutex_lock(&m->lock);
	while (m->recorded == 0)
		pthread_cond_wait(&m->changed, &m->lock);
	int r = m->recorded < 0 ? error_set(e, -ECANCELED, "the record could not be stored") : 0;
	pthread_mutex_unlock(&m->lock);
	return r;
}

static char *run_hook_body(const struct microvm *m, const char *payload) {
	json_t *body = json_pack("{s:s, s:s?}", "microvmId", m->record.id, "runHookPayload", payload);
	char *text = body == NULL ? NULL : json_dumps(body, JSON_COMPACT);
	json_decref(body);
	return text;
}

static int wake_clone(struct microvm *m, struct agent *a, const char *payload, struct stages *stages, char reason[REASON_MAX],
		      struct error *e) {
	bool hook = m->settings.hooks[HOOK_RUN].enabled;
	int r = microvm_send_resume(m, a, true, e);
	if (r == 0 && hook) {
		cleanup_free char *body = run_hook_body(m, payload);
		r = body == NULL ? error_set(e, -ENOMEM, "out of memory") : agent_send(a, microvm_hook_request(m, HOOK_RUN, body), e);
	}
	if (r == 0)
		r = agent_receive(a, AGENT_REPLY_MS, NULL, e);
	stages_mark(stages, "agent.resume");
	if (r < 0 || !hook)
		return r;
	r = microvm_hook_result(m, a, HOOK_RUN, reason);
	stages_mark(stages, "hook.run");
	return r;
}

// Everything up to RUNNING. On failure `reason` is what the record is to say.
static int launch(struct microvm *m, const char *payload, struct stages *stages, char reason[REASON_MAX]) {
	struct error e = {0};
	struct agent a = {.fd = -1};
	reason[0] = '\0';
	int r = mkdir(m->folder, 0750) < 0 ? error_errno(&e, "cannot create %s", m->folder) : 0;
	if (r == 0)
		r = slot_take(m->en, &m->settings.egress, m->settings.vcpus, m->settings.memory_mib, &m->slot, &e);
	stages_mark(stages, "launch.take");
	if (r == 0) {
		const struct slot_restore restore = {.image_folder = m->image_folder, .own_folder = m->folder};
		r = slot_restore_image(m->en, &m->slot, &restore, &e);
		stages_mark(stages, "vmm.restore");
	}
	if (r == 0) {
		r = microvm_agent_open(m, &a, &e);
	}
	if (r == 0) {
		r = wait_recorded(m, &e);
		stages_mark(stages, "store.record");
	}
	if (r == 0)
		r = wake_clone(m, &a, payload, stages, reason, &e);
	microvm_agent_close(m, &a);
	if (r == 0) {
		r = microvm_go_running(m, IN(STATE_PENDING), &e);
		stages_mark(stages, "store.commit");
	}
	if (r < 0 && reason[0] == '\0')
		snprintf(reason, REASON_MAX, "The MicroVM could not be started: %.440s", e.message);
	return r;
}

static void run_job_free(struct run_job *job) {
	free(job->payload);
	free(job);
}

static void run_run_job(void *arg) {
	struct run_job *job = arg;
	struct microvm *m = job->m;
	struct stages stages;
	char reason[REASON_MAX];
	stages_begin(&stages, m->record.id, "run");
	int r = launch(m, job->payload, &stages, reason);
	microvm_settle(m, NULL);
	if (r == 0) {
		microvm_attach_later(m, &stages);
	} else if (wait_recorded(m, NULL) < 0) {
		slot_end(m->en, &m->slot);
		remove_tree(m->folder, NULL);
		registry_remove(m);
	} else if (microvm_state_now(m) == STATE_PENDING) {
		log_warn("microvm.run", LOG_S("microvmId", m->record.id), LOG_S("message", reason));
		if (m->slot.client.fd >= 0 && vmm_look(&m->slot.client))
			snprintf(reason, sizeof(reason), "%s", m->slot.client.reason);
		microvm_abort(m, reason);
	}
	if (r < 0)
		stages_flush(m->en, &stages);
	microvm_end(m);
	microvm_unref(m);
	run_job_free(job);
}

static int fill_record(const struct microvm_run *r, struct store_microvm *to) {
	char uuid[UUID_TEXT];
	*to = (struct store_microvm){.started_ms = (int64_t)realtime_ms(),
				     .maximum_duration_s = r->maximum_duration_s,
				     .has_idle_policy = r->has_idle_policy,
				     .max_idle_s = r->max_idle_s,
				     .suspended_s = r->suspended_s,
				     .auto_resume = r->has_idle_policy && r->auto_resume};
	uuid_new(uuid);
	snprintf(to->id, sizeof(to->id), "microvm-%s", uuid);
	uuid_new(to->endpoint);
	snprintf(to->account, sizeof(to->account), "%s", r->account);
	snprintf(to->image_uuid, sizeof(to->image_uuid), "%s", r->image->uuid);
	snprintf(to->image_arn, sizeof(to->image_arn), "%s", r->image->arn);
	snprintf(to->version, sizeof(to->version), "%s", r->version->version);
	snprintf(to->state, sizeof(to->state), "%s", state_names[STATE_PENDING]);
	to->config = strdup(r->config == NULL ? "{}" : r->config);
	return to->config == NULL ? -ENOMEM : 0;
}

// The record, and with it the token.
static int record_run(struct engine *en, const struct microvm_run *r, const struct store_microvm *record, struct error *e) {
	if (r->token != NULL && (r->token->answer = r->answer(en, record)) == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	int result = store_add_microvm(en->store, record, r->token, e);
	if (result == -ENOENT)
		return error_named(e, result, "ResourceNotFoundException", "No active version found for MicroVM image %s", r->image->arn);
	return result;
}

int microvm_run(struct engine *en, const struct microvm_run *r, struct store_microvm *ret, struct error *e) {
	struct store_microvm record;
	if (en->microvms->stopping)
		return error_named(e, -ESHUTDOWN, "InternalServerException", "The engine is being stopped; try again when it runs.");
	struct run_job *job = calloc(1, sizeof(*job));
	if (job == NULL || fill_record(r, &record) < 0) {
		free(job);
		return error_set(e, -ENOMEM, "out of memory");
	}
	struct microvm *m = job->m = microvm_new(en, &record);
	job->payload = r->run_hook_payload == NULL ? NULL : strdup(r->run_hook_payload);
	if (m == NULL || (r->run_hook_payload != NULL && job->payload == NULL)) {
		if (m == NULL)
			store_microvm_clear(&record);
		microvm_unref(m);
		run_job_free(job);
		return error_set(e, -ENOMEM, "out of memory");
	}
	int result = microvm_load(m, e);
	if (result == 0) {
		m->busy = true; // the launch has it from the beginning
		registry_add(m);
		microvm_ref(m);
		result = worker_submit(run_run_job, job);
		if (result < 0) {
			error_set(e, result, "no thread is free to run a MicroVM");
			registry_remove(m);
			microvm_unref(m);
		}
	}
	if (result < 0) {
		microvm_unref(m);
		run_job_free(job);
		return result;
	}
	// The launch changes m->record as it goes; what is recorded, and answered, is the beginning. Its config is m's: the answer gets a copy.
	struct store_microvm answer = record;
	answer.config = strdup(record.config);
	result = answer.config == NULL ? error_set(e, -ENOMEM, "out of memory") : record_run(en, r, &record, e);
	pthread_mutex_lock(&m->lock);
	m->recorded = result == 0 ? 1 : -1;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	if (result == 0) {
		*ret = answer;
		microvm_schedule(m);
	} else {
		free(answer.config);
	}
	microvm_unref(m);
	return result;
}
