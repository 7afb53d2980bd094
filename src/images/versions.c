// Activation, deactivation and deletion; see images.h.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int image_is_missing(const char *arn, struct error *e) {
	return error_named(e, -ENOENT, "ResourceNotFoundException", "MicroVMImage not found for MicroVMImageID: %s", arn);
}

int image_is_busy(const char *state, struct error *e) {
	return error_named(e, -EBUSY, "ConflictException", "MicroVM Image is already in state: %s", state);
}

static int version_is_missing(const struct store_image *image, const char *version, struct error *e) {
	return error_named(e, -ENOENT, "ResourceNotFoundException", "MicroVMImage not found for MicroVMImage: %s, Version: %s", image->arn,
			   version);
}

int image_set_status(struct engine *en, const struct store_image *image, const char *version, bool active, struct error *e) {
	char state[STATE_TEXT] = "";
	int r = store_set_version_status(en->store, image->uuid, version, active ? "ACTIVE" : "INACTIVE", (int64_t)realtime_ms(), state, e);
	switch (r) {
	case -ENOENT:
		return version_is_missing(image, version, e);
	case -EBUSY:
		return image_is_busy(state, e);
	case -EINVAL:
		return error_named(e, r, "ValidationException",
				   "Only a version in state SUCCESSFUL can be ACTIVE, and version %s of %s is not: build a new one with "
				   "UpdateMicrovmImage",
				   version, image->arn);
	default:
		return r;
	}
}

// Deletion. ---------------------------------------------------------------------------------------------------------------------
//
// Files go before their records, so that an engine that dies in between finds the records when it starts, and finishes.

static void report(const char *what, const char *uuid, const char *version, int r, const struct error *e) {
	if (r < 0)
		log_error(what, LOG_S("image", uuid), LOG_S("version", version), LOG_S("message", e->message));
	else
		log_info(what, LOG_S("image", uuid), LOG_S("version", version));
}

void image_remove(struct engine *en, const char *uuid) {
	char folder[IMAGE_PATH];
	struct error e;
	snprintf(folder, sizeof(folder), "%.300s/images/%.36s", en->config.state_folder, uuid);
	int r = remove_tree(folder, &e);
	if (r < 0)
		store_fail_delete(en->store, uuid, NULL, e.message, (int64_t)realtime_ms(), NULL);
	else
		r = store_delete_image(en->store, uuid, &e);
	report("image.deleted", uuid, "", r, &e);
}

void image_remove_version(struct engine *en, const char *uuid, const char *version) {
	char folder[IMAGE_PATH];
	struct error e;
	version_folder(en, uuid, version, folder);
	int r = remove_tree(folder, &e);
	int64_t now = (int64_t)realtime_ms();
	if (r < 0)
		store_fail_delete(en->store, uuid, version, e.message, now, NULL);
	else
		r = store_delete_version(en->store, uuid, version, now, &e);
	report("image.version.deleted", uuid, version, r, &e);
}

struct removal {
	struct engine *en;
	char uuid[UUID_TEXT];
	char version[VERSION_TEXT]; // "": the whole image
};

static void run_removal(void *arg) {
	cleanup_free struct removal *job = arg;
	if (job->version[0] == '\0')
		image_remove(job->en, job->uuid);
	else
		image_remove_version(job->en, job->uuid, job->version);
}

static struct removal *removal_new(struct engine *en, const char *uuid, const char *version) {
	struct removal *job = malloc(sizeof(*job));
	if (job == NULL)
		return NULL;
	job->en = en;
	snprintf(job->uuid, sizeof(job->uuid), "%s", uuid);
	snprintf(job->version, sizeof(job->version), "%s", version);
	return job;
}

// The record says DELETING.
static void remove_later(struct removal *job) {
	if (worker_submit(run_removal, job) < 0)
		run_removal(job);
}

int image_delete(struct engine *en, const struct store_image *image, struct error *e) {
	char state[STATE_TEXT] = "";
	cleanup_free struct removal *job = removal_new(en, image->uuid, "");
	if (job == NULL)
		return error_set(e, -ENOMEM, "out of memory deleting an image");
	int r = store_begin_delete_image(en->store, image->uuid, (int64_t)realtime_ms(), state, e);
	switch (r) {
	case 0:
		remove_later(job);
		job = NULL;
		return 0;
	case -EALREADY:
		return 0;
	case -ENOENT:
		return image_is_missing(image->arn, e);
	case -EBUSY:
		return error_named(e, r, "ValidationException", "Cannot delete MicroVM image in its current state: %s", image->arn);
	case -ETXTBSY:
		return error_named(e, r, "ValidationException", "Cannot delete microvm image with running microvms.");
	default:
		return r;
	}
}

int image_delete_version(struct engine *en, const struct store_image *image, const char *version, struct error *e) {
	char state[STATE_TEXT] = "";
	cleanup_free struct removal *job = removal_new(en, image->uuid, version);
	if (job == NULL)
		return error_set(e, -ENOMEM, "out of memory deleting a version");
	int r = store_begin_delete_version(en->store, image->uuid, version, (int64_t)realtime_ms(), state, e);
	switch (r) {
	case 0:
		remove_later(job);
		job = NULL;
		return 0;
	case -EALREADY:
		return 0;
	case -ENOENT:
		return version_is_missing(image, version, e);
	case -EBUSY:
		return image_is_busy(state, e);
	case -EPERM:
		return error_named(e, r, "ValidationException", "This is the last version. Please delete the entire image");
	case -ETXTBSY:
		return error_named(e, r, "ValidationException", "Cannot delete microvm image version with running microvms.");
	default:
		return r;
	}
}
