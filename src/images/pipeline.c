// A build from its record to its end: queue, steps, and what is recorded of them.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "logs/logs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define DISK_FULL_BYTES (64u << 20) // with less than this left, a failure was most likely the disk's

void version_folder(const struct engine *en, const char *image_uuid, const char *version, char to[IMAGE_PATH]) {
	snprintf(to, IMAGE_PATH, "%.300s/images/%.36s/%.15s", en->config.state_folder, image_uuid, version);
}

void build_free(struct build *b) {
	if (b == NULL)
		return;
	output_log_close(&b->log);
	store_image_clear(&b->image);
	store_version_clear(&b->version);
	store_build_clear(&b->record);
	json_decref(b->config);
	free(b);
}

static void set_state(char to[STATE_TEXT], const char *state) {
	snprintf(to, STATE_TEXT, "%s", state);
}

// Everything of a version but its log.
static void remove_files(const char *folder) {
	static const char *const names[] = {"disk.new",   "disk.ext4", "system.ext4", "memory",      "state",
					    "memory.new", "state.new", "validate",    "console.log", "builder.console"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		char path[IMAGE_PATH + 64];
		struct error e;
		snprintf(path, sizeof(path), "%s/%s", folder, names[i]);
		if (remove_tree(path, &e) < 0)
			log_warn("build.remove", LOG_S("message", e.message));
	}
}

int build_record_failure(struct engine *en, struct store_image *i, struct store_version *v, struct store_build *r, const char *reason,
			 struct error *e) {
	char folder[IMAGE_PATH];
	version_folder(en, i->uuid, v->version, folder);
	remove_files(folder);
	int64_t now = (int64_t)realtime_ms();
	set_state(v->state, "FAILED");
	set_state(v->status, "INACTIVE");
	snprintf(v->state_reason, sizeof(v->state_reason), "%s", reason);
	set_state(r->state, "FAILED");
	snprintf(r->state_reason, sizeof(r->state_reason), "%s", reason);
	r->ended_ms = v->updated_ms = i->updated_ms = now;
	// An update that failed leaves the image as usable as it was (spec section 2.1).
	set_state(i->state, strcmp(i->state, "UPDATING") == 0 ? "UPDATE_FAILED" : "CREATE_FAILED");
	snprintf(i->latest_failed_version, sizeof(i->latest_failed_version), "%s", v->version);
	return store_finish_build(en->store, i, v, r, e);
}

static int64_t allocated(const char *folder, const char *name) {
	char path[IMAGE_PATH + 64];
	struct stat st;
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return stat(path, &st) < 0 ? -1 : (int64_t)st.st_blocks * 512;
}

static int record_success(struct build *b, struct error *e) {
	int64_t now = (int64_t)realtime_ms();
	set_state(b->version.state, "SUCCESSFUL");
	set_state(b->version.status, "ACTIVE");
	set_state(b->record.state, "SUCCESSFUL");
	b->record.ended_ms = b->version.updated_ms = b->image.updated_ms = now;
	b->record.memory_bytes = allocated(b->folder, "memory");
	b->record.disk_bytes = allocated(b->folder, "disk.ext4");
	set_state(b->image.state, strcmp(b->image.state, "UPDATING") == 0 ? "UPDATED" : "CREATED");
	snprintf(b->image.latest_active_version, sizeof(b->image.latest_active_version), "%s", b->version.version);
	return store_finish_build(b->en->store, &b->image, &b->version, &b->record, e);
}

static int open_log(struct build *b, struct error *e) {
	char folder[LOG_FOLDER_MAX];
	struct push_target target;
	logs_of_build(b->en, b->image.uuid, b->version.version, folder);
	bool pushed = push_target_of_build(b->en, b->config, b->image.name, b->version.version, b->record.build_id, b->record.created_ms,
					   &target);
	return output_log_open(&b->log, folder, (uint64_t)b->en->config.build_log_bytes, pushed ? push_open(b->en, folder, &target) : NULL,
			       e);
}

static int begin(struct build *b, struct error *e) {
	set_state(b->version.state, "IN_PROGRESS");
	set_state(b->record.state, "IN_PROGRESS");
	int r = store_update_version(b->en->store, &b->version, e);
	if (r == 0)
		r = store_update_build(b->en->store, &b->record, e);
	if (r == 0)
		r = make_folders(b->folder, 0750, e);
	return r < 0 ? r : open_log(b, e);
}

static int sync_parents(const struct build *b, struct error *e) {
	char path[IMAGE_PATH];
	int r = sync_folder(b->folder, e);
	snprintf(path, sizeof(path), "%.300s/images/%.36s", b->en->config.state_folder, b->image.uuid);
	if (r == 0)
		r = sync_folder(path, e);
	snprintf(path, sizeof(path), "%.300s/images", b->en->config.state_folder);
	return r < 0 ? r : sync_folder(path, e);
}

static int steps(struct build *b, struct error *e) {
	uint64_t bytes = 0;
	int r = begin(b, e);
	if (r == 0)
		r = image_settings_read(b->version.config, b->en->config.default_timeout_scale, &b->settings, e);
	stages_mark(&b->stages, "store.commit");
	if (r == 0)
		r = builder_run(b, &bytes, e);
	if (r == 0) {
		b->record.code_bytes = (int64_t)bytes;
		r = image_initialise(b, e);
	}
	if (r == 0)
		r = sync_parents(b, e);
	return r;
}

// The record's reason: the service's code where there is one, and a sentence.
static void describe(const struct build *b, const struct error *e, char to[REASON_MAX]) {
	struct statvfs disk;
	bool full = e->code == -ENOSPC ||
		    (statvfs(b->en->config.state_folder, &disk) == 0 && (uint64_t)disk.f_bavail * disk.f_frsize < DISK_FULL_BYTES);
	if (full && strcmp(e->name, "DISK_STORAGE_FULL") != 0)
		snprintf(to, REASON_MAX,
			 "DISK_STORAGE_FULL: The disk of the engine is full. Remove images or MicroVMs, or give it more room. (%.300s)",
			 e->message);
	else if (e->name[0] != '\0')
		snprintf(to, REASON_MAX, "%s: %.450s", e->name, e->message);
	else if (e->code == -EREMOTEIO)
		snprintf(to, REASON_MAX, "%.500s", e->message); // about the application: sentences of their own
	else
		snprintf(to, REASON_MAX, "INTERNAL_PLATFORM_ERROR: %.470s", e->message);
}

static void start_next(struct engine *en);

static void run_build(void *arg) {
	struct build *b = arg;
	struct engine *en = b->en;
	struct error e = {0};
	char subject[80], reason[REASON_MAX] = "";
	snprintf(subject, sizeof(subject), "%s/%s", b->image.uuid, b->version.version);
	stages_begin(&b->stages, subject, "build");
	b->deadline_ms = monotonic_ms() + (uint64_t)en->config.build_limit_s * 1000;
	b->slot = SLOT_NONE;
	log_info("build.start", LOG_S("image", b->image.arn), LOG_S("version", b->version.version));
	int r = steps(b, &e);
	if (r == 0)
		r = record_success(b, &e);
	if (r < 0) {
		describe(b, &e, reason);
		if (b->log.fd >= 0)
			output_log_note(&b->log, "the build failed: %s", reason);
		slot_end(en, &b->slot);
		if (build_record_failure(en, &b->image, &b->version, &b->record, reason, &e) < 0)
			log_error("build.record", LOG_S("image", b->image.arn), LOG_S("message", e.message));
	} else {
		output_log_note(&b->log, "the image is ready");
	}
	stages_mark(&b->stages, "store.finish");
	stages_flush(en, &b->stages);
	log_info("build.end", LOG_S("image", b->image.arn), LOG_S("version", b->version.version), LOG_S("state", b->record.state),
		 LOG_S("reason", reason));
	output_log_close(&b->log);
	logs_build_ended(en, b->image.uuid, b->version.version);
	build_free(b);
	pthread_mutex_lock(&en->images->lock);
	en->images->running--;
	pthread_mutex_unlock(&en->images->lock);
	start_next(en);
}

static void start_next(struct engine *en) {
	struct images *im = en->images;
	pthread_mutex_lock(&im->lock);
	while (im->first != NULL && im->running < en->config.concurrent_builds) {
		struct queued_build *q = im->first;
		if (worker_submit(run_build, q->build) < 0)
			break; // with the next build's end
		im->first = q->next;
		if (im->first == NULL)
			im->last = &im->first;
		im->running++;
		free(q);
	}
	pthread_mutex_unlock(&im->lock);
}

int build_queue(struct engine *en, struct build *b, struct error *e) {
	struct queued_build *q = malloc(sizeof(*q));
	if (q == NULL)
		return error_set(e, -ENOMEM, "out of memory queueing a build");
	*q = (struct queued_build){.build = b};
	pthread_mutex_lock(&en->images->lock);
	*en->images->last = q;
	en->images->last = &q->next;
	pthread_mutex_unlock(&en->images->lock);
	start_next(en);
	return 0;
}
