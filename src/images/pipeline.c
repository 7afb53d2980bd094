// A build from its record to its end: queue and steps.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define DISK_FULL_BYTES (64u << 20) // with less than this left, a failure was most likely the disk's

static int begin(struct build *b, struct error *e) {
	int r = build_record_begin(b, e);
	if (r == 0)
		r = make_folders(b->folder, 0750, e);
	char path[IMAGE_PATH + 64];
	snprintf(path, sizeof(path), "%s/build.log", b->folder);
	return r < 0 ? r : output_log_open(&b->log, path, BUILD_LOG_LIMIT, false, e);
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
		r = build_record_success(b, &e);
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
