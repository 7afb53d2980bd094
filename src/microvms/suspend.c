// Suspending a microVM: hook, freeze, pause, snapshot of what differs from the image, and the VMM goes.
//
// What is durable when: the VMM writes memory.new and state.new and flushes the disk's layer; both files are synced, then renamed, `state`
// last, and the folder is synced; then SUSPENDED is committed, and only then the VMM is ended. So a file named `state` means that everything
// that belongs to it is there, and until the commit every failure lets the microVM run on.
#include "microvms/lifecycle.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int open_new(const struct microvm *m, const char *name, struct error *e) {
	char path[FOLDER_PATH + 16];
	snprintf(path, sizeof(path), "%s/%s", m->folder, name);
	int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	return fd < 0 ? error_errno(e, "cannot create %s", path) : fd;
}

static int sync_file(int fd, const char *what, struct error *e) {
	return fsync(fd) < 0 ? error_errno(e, "cannot write the MicroVM's %s to the disk", what) : 0;
}

void microvm_remove_snapshot(const struct microvm *m) {
	static const char *const names[] = {"state.new", "state", "memory.new", "memory"};
	char path[FOLDER_PATH + 300];
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", m->folder, names[i]);
		unlink(path);
	}
	cleanup_dir DIR *dir = opendir(m->folder);
	for (const struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
		if (strncmp(d->d_name, RESUMING_PREFIX, strlen(RESUMING_PREFIX)) != 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", m->folder, d->d_name);
		unlink(path);
	}
}

// The VM is paused: writes the snapshot and makes it durable.
static int write_snapshot(struct microvm *m, struct stages *stages, struct error *e) {
	cleanup_close int state = open_new(m, "state.new", e);
	if (state < 0)
		return state;
	cleanup_close int memory = open_new(m, "memory.new", e);
	if (memory < 0)
		return memory;
	int r = vmm_snapshot(&m->slot.client, VMM_SNAPSHOT_DIFFERENCE, state, memory, e);
	stages_mark(stages, "vmm.snapshot");
	if (r == 0)
		r = sync_file(memory, "memory", e);
	if (r == 0)
		r = sync_file(state, "state", e);
	stages_mark(stages, "disk.sync");
	return r;
}

// The snapshot becomes the one that counts.
static int publish_snapshot(const struct microvm *m, struct error *e) {
	static const char *const names[] = {"memory", "state"}; // state last: it marks the set as complete
	char from[FOLDER_PATH + 16], to[FOLDER_PATH + 16], parent[FOLDER_PATH];
	for (size_t i = 0; i < 2; i++) {
		snprintf(from, sizeof(from), "%s/%s.new", m->folder, names[i]);
		snprintf(to, sizeof(to), "%s/%s", m->folder, names[i]);
		if (rename(from, to) < 0)
			return error_errno(e, "cannot rename %s", from);
	}
	int r = sync_folder(m->folder, e);
	snprintf(parent, sizeof(parent), "%.400s/microvms", m->en->config.state_folder);
	return r < 0 ? r : sync_folder(parent, e);
}

// Lets a microVM that could not be suspended run on.
static int run_on(struct microvm *m, bool paused, struct error *e) {
	struct agent a = {.fd = -1};
	microvm_remove_snapshot(m); // before the guest can write to its disk again
	int r = paused ? vmm_resume(&m->slot.client, e) : 0;
	if (r == 0)
		r = microvm_agent_open(m, &a, e);
	if (r == 0)
		r = agent_call(&a, agent_resume_request(false, m->record.id), AGENT_REPLY_MS, NULL, e);
	microvm_agent_close(m, &a);
	if (r < 0)
		return r;
	m->last_activity_ms = (int64_t)monotonic_ms(); // an idle policy tries again after another idle period
	r = microvm_change(m, IN(STATE_SUSPENDING), STATE_RUNNING, NULL, e);
	if (r == 0) {
		microvm_route_run_on(m);
		microvm_attach(m);
	}
	return r;
}

// The steps. On failure *paused says whether the guest's CPUs stand still, and `reason` is not empty when it was the suspend hook's.
static int suspend_steps(struct microvm *m, enum suspend_cause cause, struct stages *stages, bool *paused, char reason[REASON_MAX],
			 struct error *e) {
	struct agent a = {.fd = -1};
	int r = microvm_agent_open(m, &a, e);
	// After a resume hook that failed there is nothing to announce: the application was not awake in between.
	if (r == 0 && cause != SUSPEND_RESUME_FAILED && m->settings.hooks[HOOK_SUSPEND].enabled) {
		r = microvm_call_hook(m, &a, HOOK_SUSPEND, reason);
		if (r < 0)
			error_set(e, r, "%s", reason);
		stages_mark(stages, "hook.suspend");
	}
	if (r == 0) {
		r = agent_call(&a, agent_freeze_request(), AGENT_REPLY_MS, NULL, e);
		stages_mark(stages, "agent.freeze");
	}
	microvm_agent_close(m, &a);
	if (r == 0) {
		if (cause != SUSPEND_RESUME_FAILED)
			microvm_route_halt(m);
		r = vmm_pause(&m->slot.client, e);
		*paused = r == 0;
		stages_mark(stages, "vmm.pause");
	}
	if (r == 0)
		r = write_snapshot(m, stages, e);
	if (r == 0) {
		r = publish_snapshot(m, e);
		stages_mark(stages, "disk.publish");
	}
	if (r == 0) {
		r = microvm_change(m, IN(STATE_SUSPENDING) | IN(STATE_SUSPENDED), STATE_SUSPENDED, NULL, e);
		stages_mark(stages, "store.commit");
	}
	return r;
}

// What becomes of a microVM that could not be suspended. Returns the error that the caller is to report.
static int suspend_failed(struct microvm *m, int code, bool paused, const char *hook_sentence, struct error *e) {
	char reason[REASON_MAX];
	if (microvm_state_now(m) != STATE_SUSPENDING)
		return error_named(e, code, "ConflictException", "The MicroVM %s is being terminated.", m->record.id);
	if (vmm_look(&m->slot.client)) {
		snprintf(reason, sizeof(reason), "%s", m->slot.client.reason);
	} else if (hook_sentence[0] != '\0') {
		// The service ends a microVM whose suspend hook fails (spec section 4.3).
		snprintf(reason, sizeof(reason), "%s", hook_sentence);
	} else {
		struct error second;
		if (run_on(m, paused, &second) == 0)
			return error_wrap(e, code, "The MicroVM %s could not be suspended and runs on", m->record.id);
		snprintf(reason, sizeof(reason), "The MicroVM could neither be suspended nor go on: %.400s", second.message);
	}
	microvm_abort(m, reason);
	return error_named(e, code, "ConflictException", "%s", reason);
}

int microvm_suspend_now(struct microvm *m, enum suspend_cause cause, struct error *e) {
	bool again = cause == SUSPEND_RESUME_FAILED; // the state is SUSPENDED all the while
	if (!again && microvm_state_now(m) == STATE_SUSPENDED)
		return 0;
	if (cause == SUSPEND_IDLE && (int64_t)monotonic_ms() < m->last_activity_ms + m->record.max_idle_s * 1000) {
		microvm_schedule(m); // somebody came after all
		return 0;
	}
	struct stages stages;
	stages_begin(&stages, m->record.id, "suspend");
	int r = again ? 0 : microvm_change(m, IN(STATE_RUNNING), STATE_SUSPENDING, NULL, e);
	if (r == -ECANCELED)
		return error_named(e, r, "ValidationException", "The MicroVM %s has been terminated and its state cannot be changed.",
				   m->record.id);
	if (r < 0)
		return r;
	stages_mark(&stages, "store.commit");
	// When the idle period is over, whoever still holds the endpoint open is silent; unless a byte came just now.
	if (cause == SUSPEND_ASKED ||
	    (cause == SUSPEND_IDLE && (int64_t)monotonic_ms() < m->last_activity_ms + m->record.max_idle_s * 1000)) {
		microvm_route_drain(m, DRAIN_MS);
		stages_mark(&stages, "drain");
	}
	bool paused = false;
	char reason[REASON_MAX] = "";
	microvm_detach(m);
	r = suspend_steps(m, cause, &stages, &paused, reason, e);
	if (r == 0) {
		if (!again)
			microvm_route_sleep(m);
		slot_end_later(m->en, &m->slot);
	} else if (!again) {
		r = suspend_failed(m, r, paused, reason, e);
	}
	if (!again)
		microvm_settle(m, NULL);
	stages_flush(m->en, &stages);
	return r;
}

int microvm_lookup(struct engine *en, const char *id, struct microvm **ret, struct error *e) {
	*ret = registry_find(en, id);
	if (*ret != NULL)
		return 0;
	struct store_microvm record = {0};
	int r = store_get_microvm(en->store, id, &record, e);
	store_microvm_clear(&record);
	if (r == 0)
		return error_named(e, -ESTALE, "ValidationException", "The MicroVM %s has been terminated and its state cannot be changed.",
				   id);
	if (r == -ENOENT)
		return error_named(e, r, "ResourceNotFoundException", "MicroVM not found: %s", id);
	return r;
}

static void name_error(struct error *e) {
	if (e->name[0] == '\0' || strstr(e->name, "Exception") == NULL)
		snprintf(e->name, sizeof(e->name), "InternalServerException");
}

int microvm_suspend(struct engine *en, const char *id, const char *reason, struct error *e) {
	struct error local;
	if (e == NULL)
		e = &local;
	struct microvm *m = NULL;
	int r = microvm_lookup(en, id, &m, e);
	if (r < 0)
		return r;
	microvm_begin(m);
	r = microvm_suspend_now(m, SUSPEND_ASKED, e);
	microvm_end(m);
	if (r < 0) {
		name_error(e);
		log_warn("microvm.suspend", LOG_S("microvmId", id), LOG_S("message", e->message));
	}
	microvm_unref(m);
	return r;
}
