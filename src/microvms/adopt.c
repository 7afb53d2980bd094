// After a restart of stasisd: every living record meets what is left of it.
//
// VMMs outlive stasisd, so a microVM that ran still runs, and goes on as if nothing had happened. What a crash cut off in the middle is brought
// to an end in one direction or the other: a launch is ended, a suspend is finished when its snapshot is complete and undone otherwise, a resume
// is finished when its VMM lives and undone when the guest has not written since, a termination is finished.
#include "microvms/lifecycle.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"
#include "microvms/launcher.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HOST_STOPPED "The host stopped while the MicroVM was running."

struct slots {
	char (*names)[LAUNCH_VMM_MAX];
	size_t count, room;
	bool failed;
};

static void add_slot(void *arg, const char *vmm) {
	struct slots *s = arg;
	if (s->count == s->room) {
		size_t room = s->room == 0 ? 64 : s->room * 2;
		void *more = realloc(s->names, room * sizeof(*s->names));
		if (more == NULL) {
			s->failed = true;
			return;
		}
		s->names = more;
		s->room = room;
	}
	snprintf(s->names[s->count++], LAUNCH_VMM_MAX, "%s", vmm);
}

// Takes a slot out of the list of those that nobody has claimed.
static bool claim(struct slots *s, const char *vmm) {
	for (size_t i = 0; i < s->count; i++) {
		if (strcmp(s->names[i], vmm) == 0) {
			memcpy(s->names[i], s->names[--s->count], LAUNCH_VMM_MAX);
			return true;
		}
	}
	return false;
}

static bool has_file(const struct microvm *m, const char *name) {
	char path[FOLDER_PATH + 32];
	snprintf(path, sizeof(path), "%s/%s", m->folder, name);
	return access(path, F_OK) == 0;
}

// The slot that a resume was using when stasisd ended; empty: none.
static void resuming_slot(const struct microvm *m, char vmm[LAUNCH_VMM_MAX]) {
	vmm[0] = '\0';
	cleanup_dir DIR *dir = opendir(m->folder);
	if (dir == NULL)
		return;
	for (const struct dirent *d; (d = readdir(dir)) != NULL;)
		if (strncmp(d->d_name, RESUMING_PREFIX, strlen(RESUMING_PREFIX)) == 0)
			snprintf(vmm, LAUNCH_VMM_MAX, "%.39s", d->d_name + strlen(RESUMING_PREFIX));
}

// Connects to the VMM that a microVM has and sees to it that its guest runs.
static int take_over(struct microvm *m, const char *vmm, struct error *e) {
	struct agent a = {.fd = -1};
	int r = slot_attach(m->en, vmm, &m->slot, e);
	if (r == 0)
		r = vmm_stats(&m->slot.client, NULL, e);
	if (r == 0 && m->slot.client.state == VMM_STATE_PAUSED)
		r = vmm_resume(&m->slot.client, e);
	if (r == 0 && (m->slot.client.ended || m->slot.client.state == VMM_STATE_EMPTY || m->slot.client.state == VMM_STATE_PREPARED))
		r = error_set(e, -ECONNRESET, "%s", m->slot.client.ended ? m->slot.client.reason : HOST_STOPPED);
	// Thaws when a suspend had frozen it; otherwise it is fresh entropy and the right time, which never hurt.
	if (r == 0)
		r = microvm_agent_open(m, &a, e);
	if (r == 0)
		r = microvm_send_resume(m, &a, false, e);
	if (r == 0)
		r = agent_receive(&a, AGENT_REPLY_MS, NULL, e);
	microvm_agent_close(m, &a);
	return r;
}

static void go_on_running(struct microvm *m, struct slots *slots, const char *vmm) {
	struct error e = {0};
	bool living = vmm[0] != '\0' && claim(slots, vmm);
	int r = living ? take_over(m, vmm, &e) : error_set(&e, -ECONNRESET, HOST_STOPPED);
	if (r == 0)
		r = microvm_go_running(m, IN(m->state), &e);
	if (r == 0) {
		microvm_remove_snapshot(m); // that it was woken from, or that a suspend had begun
		microvm_attach(m);
		return;
	}
	if (living && m->slot.vmm[0] == '\0')
		snprintf(m->slot.vmm, sizeof(m->slot.vmm), "%s", vmm); // so that it is ended
	microvm_abort(m, e.message);
}

static void adopt_suspended(struct microvm *m, struct slots *slots) {
	char vmm[LAUNCH_VMM_MAX];
	resuming_slot(m, vmm);
	bool living = false;
	for (size_t i = 0; vmm[0] != '\0' && i < slots->count; i++)
		living = living || strcmp(slots->names[i], vmm) == 0;
	if (living) {
		go_on_running(m, slots, vmm);
		return;
	}
	if (microvm_unresume(m) < 0)
		microvm_abort(m, vmm[0] != '\0' ? "The host stopped while the MicroVM was being resumed."
						: "The snapshot of the suspended MicroVM is missing.");
}

static void adopt_one(struct microvm *m, struct slots *slots) {
	char vmm[UUID_TEXT];
	memcpy(vmm, m->record.vmm, sizeof(vmm));
	switch (m->state) {
	case STATE_RUNNING:
		go_on_running(m, slots, vmm);
		break;
	case STATE_SUSPENDING:
		// `state` is renamed last, and removed when the microVM runs: it is there only when the snapshot is complete.
		if (has_file(m, "state") && !has_file(m, "state.new"))
			microvm_force(m, IN(STATE_SUSPENDING), STATE_SUSPENDED, NULL);
		else
			go_on_running(m, slots, vmm);
		break;
	case STATE_SUSPENDED:
		adopt_suspended(m, slots);
		break;
	case STATE_TERMINATING:
		if (claim(slots, vmm))
			snprintf(m->slot.vmm, sizeof(m->slot.vmm), "%s", vmm);
		microvm_finish(m);
		break;
	default:
		microvm_abort(m, "The host stopped while the MicroVM was being started.");
		break;
	}
	log_info("microvm.adopted", LOG_S("microvmId", m->record.id), LOG_S("state", state_names[microvm_state_now(m)]));
}

struct record_list {
	struct engine *en;
	struct microvm *first;
};

static int collect(const struct store_microvm *record, void *arg) {
	struct record_list *list = arg;
	struct store_microvm copy = *record;
	copy.config = strdup(record->config == NULL ? "{}" : record->config);
	int state = state_of_name(record->state);
	struct microvm *m = copy.config == NULL || state < 0 ? NULL : microvm_new(list->en, &copy);
	if (m == NULL) {
		free(copy.config);
		log_error("microvm.adopt", LOG_S("microvmId", record->id), LOG_S("message", "the record cannot be read"));
		return 0;
	}
	m->state = (enum microvm_state)state;
	m->recorded = 1;
	m->next_tombstone = list->first; // a link that is free as yet
	list->first = m;
	return 0;
}

static int read_records(struct engine *en, struct record_list *list, struct error *e) {
	const struct store_microvm_filter living = {.living = true};
	char cursor[STORE_CURSOR_MAX] = "", next[STORE_CURSOR_MAX];
	do {
		int r = store_list_microvms(en->store, &living, cursor, 100, collect, list, next, e);
		if (r < 0)
			return r;
		memcpy(cursor, next, sizeof(cursor));
	} while (cursor[0] != '\0');
	return 0;
}

// Folders of microVMs that are not in the table any more.
static void remove_leftovers(struct engine *en) {
	char path[FOLDER_PATH + 300];
	snprintf(path, sizeof(path), "%.300s/microvms", en->config.state_folder);
	cleanup_dir DIR *dir = opendir(path);
	if (dir == NULL)
		return;
	for (const struct dirent *d; (d = readdir(dir)) != NULL;) {
		if (!uuid_is_valid(d->d_name))
			continue;
		char id[64];
		snprintf(id, sizeof(id), "microvm-%.36s", d->d_name);
		struct microvm *m = registry_find(en, id);
		bool living = m != NULL && (IN(microvm_state_now(m)) & LIVING) != 0;
		microvm_unref(m);
		if (living)
			continue;
		snprintf(path, sizeof(path), "%.300s/microvms/%.36s", en->config.state_folder, d->d_name);
		struct error e;
		if (remove_tree(path, &e) < 0)
			log_warn("microvm.leftover", LOG_S("message", e.message));
		else
			log_info("microvm.leftover", LOG_S("removed", path));
	}
}

int microvms_adopt(struct engine *en, struct error *e) {
	struct slots slots = {0};
	struct record_list list = {.en = en};
	int r = launcher_list(en->launcher, add_slot, &slots, e);
	if (r == 0 && slots.failed)
		r = error_set(e, -ENOMEM, "out of memory listing the VMMs");
	if (r == 0)
		r = read_records(en, &list, e);
	for (struct microvm *m = list.first, *next; m != NULL; m = next) {
		next = m->next_tombstone;
		m->next_tombstone = NULL;
		if (r == 0) {
			struct error why;
			registry_add(m);
			microvm_begin(m);
			if (microvm_load(m, &why) < 0)
				microvm_abort(m, why.message);
			else
				adopt_one(m, &slots);
			microvm_end(m);
			if ((IN(microvm_state_now(m)) & LIVING) != 0)
				microvm_schedule(m);
		}
		microvm_unref(m);
	}
	for (size_t i = 0; r == 0 && i < slots.count; i++) {
		struct error why;
		log_info("slot.orphan", LOG_S("vmm", slots.names[i]));
		if (launcher_end(en->launcher, slots.names[i], &why) < 0)
			log_warn("slot.end", LOG_S("vmm", slots.names[i]), LOG_S("message", why.message));
	}
	free(slots.names);
	if (r == 0)
		remove_leftovers(en);
	return r;
}
