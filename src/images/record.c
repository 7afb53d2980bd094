// What is recorded of a build: its beginning, its success, its failure.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

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

int build_record_begin(struct build *b, struct error *e) {
	set_state(b->version.state, "IN_PROGRESS");
	set_state(b->record.state, "IN_PROGRESS");
	return store_begin_build(b->en->store, &b->version, &b->record, e);
}

// Everything of a version but its log.
static void remove_files(const char *folder) {
	static const char *const names[] = {"disk.new",  "disk.ext4", "system.ext4", "memory",      "state",          "memory.new",
					    "state.new", "rehearsal", "working-set", "console.log", "builder.console"};
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
	return store_finish_build(en->store, i, v, r, e);
}

static int64_t allocated(const char *folder, const char *name) {
	char path[IMAGE_PATH + 64];
	struct stat st;
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	return stat(path, &st) < 0 ? -1 : (int64_t)st.st_blocks * 512;
}

int build_record_success(struct build *b, struct error *e) {
	int64_t now = (int64_t)realtime_ms();
	set_state(b->version.state, "SUCCESSFUL");
	set_state(b->version.status, "ACTIVE");
	set_state(b->record.state, "SUCCESSFUL");
	b->record.ended_ms = b->version.updated_ms = b->image.updated_ms = now;
	b->record.memory_bytes = allocated(b->folder, "memory");
	b->record.disk_bytes = allocated(b->folder, "disk.ext4");
	set_state(b->image.state, strcmp(b->image.state, "UPDATING") == 0 ? "UPDATED" : "CREATED");
	return store_finish_build(b->en->store, &b->image, &b->version, &b->record, e);
}
