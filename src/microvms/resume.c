// Resuming a suspended microVM from its own snapshot: a slot, the VMM's restore, the agent, the resume hook, RUNNING.
//
// Up to the moment at which the guest's workload is let go, a failure costs nothing: the slot is ended and the snapshot is as it was. From
// then on the guest may write to its disk, and the snapshot does not fit that disk any more. Therefore the state file is renamed to
// `resuming-<slot>` just before: the file system's journal orders that before anything that the guest makes durable, and the next stasisd sees
// how far this one came. When the hook fails, the microVM is suspended anew instead, with what it is now.
#include "microvms/lifecycle.h"

#include "base/cleanup.h"
#include "base/log.h"
#include "microvms/room.h"

#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void state_paths(const struct microvm *m, char own[FOLDER_PATH + 64], char resuming[FOLDER_PATH + 64]) {
	snprintf(own, FOLDER_PATH + 64, "%s/state", m->folder);
	snprintf(resuming, FOLDER_PATH + 64, "%s/" RESUMING_PREFIX "%s", m->folder, m->slot.vmm);
}

static int start_vmm(struct microvm *m, struct stages *stages, struct error *e) {
	int r = slot_take(m->en, &m->settings.egress, m->settings.vcpus, m->settings.memory_mib, &m->slot, e);
	stages_mark(stages, "launch.take");
	if (r < 0)
		return r;
	const struct slot_restore restore = {
		.image_folder = m->image_folder, .own_folder = m->folder, .own_state = "state", .own_memory = true};
	r = slot_restore_image(m->en, &m->slot, &restore, e);
	stages_mark(stages, "vmm.restore");
	return r;
}

// Sends the resume and, on its heels, the hook; reads both answers. *thawed: the workload may have run.
static int wake_guest(struct microvm *m, struct agent *a, struct stages *stages, bool *thawed, struct error *e) {
	char own[FOLDER_PATH + 64], resuming[FOLDER_PATH + 64], reason[REASON_MAX];
	state_paths(m, own, resuming);
	if (rename(own, resuming) < 0)
		return error_errno(e, "cannot rename %s", own);
	*thawed = true;
	bool hook = m->settings.hooks[HOOK_RESUME].enabled;
	int r = microvm_send_resume(m, a, false, e);
	if (r == 0 && hook)
		r = agent_send(a, microvm_hook_request(m, HOOK_RESUME, NULL), e);
	if (r == 0)
		r = agent_receive(a, AGENT_REPLY_MS, NULL, e);
	stages_mark(stages, "agent.resume");
	if (r < 0 || !hook)
		return r;
	r = microvm_hook_result(m, a, HOOK_RESUME, reason);
	stages_mark(stages, "hook.resume");
	return r < 0 ? error_set(e, r, "%s", reason) : 0;
}

int microvm_unresume(struct microvm *m) {
	char layer[FOLDER_PATH + 64], own[FOLDER_PATH + 64], resuming[FOLDER_PATH + 300] = "";
	snprintf(layer, sizeof(layer), "%s/layer", m->folder);
	snprintf(own, sizeof(own), "%s/state", m->folder);
	cleanup_dir DIR *dir = opendir(m->folder);
	if (dir == NULL)
		return -errno;
	for (const struct dirent *d; (d = readdir(dir)) != NULL;)
		if (strncmp(d->d_name, RESUMING_PREFIX, strlen(RESUMING_PREFIX)) == 0)
			snprintf(resuming, sizeof(resuming), "%s/%s", m->folder, d->d_name);
	struct stat disk, mark;
	if (resuming[0] == '\0')
		return access(own, F_OK) < 0 ? -errno : 0;
	if (stat(layer, &disk) < 0 || stat(resuming, &mark) < 0)
		return -errno;
	// A rename sets the time of change of what it renames.
	bool before = disk.st_mtim.tv_sec < mark.st_ctim.tv_sec ||
		      (disk.st_mtim.tv_sec == mark.st_ctim.tv_sec && disk.st_mtim.tv_nsec < mark.st_ctim.tv_nsec);
	if (!before)
		return -ESTALE;
	return rename(resuming, own) < 0 ? -errno : 0;
}

// A resume failed and nobody terminated the microVM meanwhile: it stays SUSPENDED, or ends when that cannot be.
static void back_to_sleep(struct microvm *m, bool thawed, const struct error *cause) {
	struct error e;
	char reason[REASON_MAX], own[FOLDER_PATH + 64], resuming[FOLDER_PATH + 64];
	state_paths(m, own, resuming);
	if (!thawed) {
		slot_end_later(m->en, &m->slot);
		return;
	}
	if (!vmm_look(&m->slot.client) && microvm_suspend_now(m, SUSPEND_RESUME_FAILED, &e) == 0) {
		unlink(resuming); // the older snapshot, which does not fit the disk any more
		return;
	}
	slot_end(m->en, &m->slot);
	if (microvm_state_now(m) != STATE_SUSPENDED || microvm_unresume(m) == 0)
		return;
	snprintf(reason, sizeof(reason), "The MicroVM ended while it was being resumed: %.400s", cause->message);
	microvm_abort(m, reason);
}

static int record(void *m, struct error *e) {
	return microvm_go_running(m, IN(STATE_SUSPENDED), e);
}

int microvm_resume_now(struct microvm *m, struct error *e) {
	enum microvm_state state = microvm_state_now(m);
	if (state == STATE_RUNNING)
		return 0;
	if (state != STATE_SUSPENDED)
		return error_named(e, -ECANCELED, "ValidationException",
				   "The MicroVM %s has been terminated and its state cannot be changed.", m->record.id);
	struct stages stages;
	struct agent a = {.fd = -1};
	bool thawed = false;
	stages_begin(&stages, m->record.id, "resume");
	int r = room_take(m->en, m->settings.minimum_mib, e);
	bool room = r == 0;
	if (r == 0)
		r = start_vmm(m, &stages, e);
	if (r == 0)
		r = microvm_agent_open(m, &a, e);
	if (r == 0)
		r = wake_guest(m, &a, &stages, &thawed, e);
	microvm_agent_close(m, &a);
	int given = room ? room_give(m->en, m->settings.minimum_mib, r == 0 ? record : NULL, m, e) : 0;
	if (r == 0)
		stages_mark(&stages, "store.commit");
	r = r < 0 ? r : given;
	pthread_mutex_lock(&m->lock);
	m->resuming = false;
	pthread_mutex_unlock(&m->lock);
	if (r < 0) {
		microvm_forget_credentials(m);
		if (microvm_state_now(m) == STATE_SUSPENDED)
			back_to_sleep(m, thawed, e);
		microvm_settle(m, e->message);
		return r;
	}
	microvm_settle(m, NULL);
	microvm_remove_snapshot(m);
	microvm_attach_later(m, &stages);
	return 0;
}

void microvm_resume_job(void *arg) {
	struct microvm *m = arg;
	struct error e;
	microvm_begin(m);
	if (microvm_resume_now(m, &e) < 0)
		log_warn("microvm.resume", LOG_S("microvmId", m->record.id), LOG_S("message", e.message));
	pthread_mutex_lock(&m->lock);
	m->resuming = false;
	pthread_mutex_unlock(&m->lock);
	microvm_settle(m, NULL);
	microvm_end(m);
	microvm_unref(m);
}

int microvm_resume(struct engine *en, const char *id, struct error *e) {
	struct error local;
	if (e == NULL)
		e = &local;
	struct microvm *m = NULL;
	int r = microvm_lookup(en, id, &m, e);
	if (r < 0)
		return r;
	microvm_begin(m);
	pthread_mutex_lock(&m->lock);
	m->resuming = m->state == STATE_SUSPENDED;
	pthread_mutex_unlock(&m->lock);
	r = microvm_resume_now(m, e);
	pthread_mutex_lock(&m->lock);
	m->resuming = false;
	pthread_mutex_unlock(&m->lock);
	microvm_end(m);
	if (r < 0) {
		if (e->name[0] == '\0' || strstr(e->name, "Exception") == NULL)
			snprintf(e->name, sizeof(e->name), "InternalServerException");
		log_warn("microvm.resume", LOG_S("microvmId", id), LOG_S("message", e->message));
	}
	microvm_unref(m);
	return r;
}
