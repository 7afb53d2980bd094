// Images: the start, and what begins a build; see images.h.
#include "images/build.h"

#include "base/clock.h"
#include "base/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ARCHITECTURE "X86_64" // that this engine runs, and builds for

static void prepare_builder(void *arg) {
	struct error e;
	builder_prepare(arg, &e); // says itself when it fails; the next build tries again
}

int images_start(struct engine *en, struct error *e) {
	struct images *im = calloc(1, sizeof(*im));
	if (im == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the images");
	im->en = en;
	im->last = &im->first;
	pthread_mutex_init(&im->lock, NULL);
	pthread_mutex_init(&im->builder_lock, NULL);
	en->images = im;
	char folder[IMAGE_PATH];
	snprintf(folder, sizeof(folder), "%.300s/images", en->config.state_folder);
	int r = make_folders(folder, 0750, e);
	if (r == 0)
		r = images_recover(en, e);
	if (r == 0)
		r = images_read_assets(en, e);
	return r == 0 ? worker_submit(prepare_builder, en) : r;
}

static void set_state(char to[STATE_TEXT], const char *state) {
	snprintf(to, STATE_TEXT, "%s", state);
}

// A build of the version with this number of b->image, whose tags are filled in already.
static int build_fill(struct build *b, int64_t number, const char *config_json) {
	int64_t now = (int64_t)realtime_ms();
	b->log.fd = -1;
	b->slot = SLOT_NONE;
	b->version.created_ms = b->version.updated_ms = b->record.created_ms = now;
	memcpy(b->version.image_uuid, b->image.uuid, UUID_TEXT);
	snprintf(b->version.version, sizeof(b->version.version), "%d.0", (int)number);
	set_state(b->version.state, "PENDING");
	set_state(b->version.status, "INACTIVE");
	b->version.config = strdup(config_json);
	uuid_new(b->record.build_id);
	memcpy(b->record.image_uuid, b->image.uuid, UUID_TEXT);
	memcpy(b->record.version, b->version.version, sizeof(b->record.version));
	set_state(b->record.state, "PENDING");
	snprintf(b->record.architecture, sizeof(b->record.architecture), ARCHITECTURE);
	b->record.memory_bytes = b->record.code_bytes = b->record.disk_bytes = -1;
	b->config = json_loads(config_json, 0, NULL);
	version_folder(b->en, b->image.uuid, b->version.version, b->folder);
	return b->image.tags == NULL || b->version.config == NULL || b->config == NULL ? -ENOMEM : 0;
}

static int image_fill(struct build *b, const struct image_request *r) {
	struct store_image *i = &b->image;
	uuid_new(i->uuid);
	snprintf(i->account, sizeof(i->account), "%s", r->account);
	snprintf(i->name, sizeof(i->name), "%s", r->name);
	snprintf(i->arn, sizeof(i->arn), "arn:aws:lambda:%s:%s:microvm-image:%s", b->en->config.region, r->account, r->name);
	set_state(i->state, "CREATING");
	i->tags = strdup(r->tags_json == NULL ? "{}" : r->tags_json);
	int code = build_fill(b, 1, r->config_json);
	i->created_ms = i->updated_ms = b->version.created_ms;
	i->last_version = 1;
	return code;
}

// The image as it is, about to become UPDATING.
static int update_fill(struct build *b, const struct store_image *image, const struct image_request *r) {
	b->image = *image;
	b->image.tags = strdup(image->tags);
	set_state(b->image.state, "UPDATING");
	int code = build_fill(b, ++b->image.last_version, r->config_json);
	b->image.updated_ms = b->version.created_ms;
	return code;
}

static int copy_records(const struct build *b, struct store_image *image, struct store_version *version) {
	*image = b->image;
	*version = b->version;
	image->tags = strdup(b->image.tags);
	version->config = strdup(b->version.config);
	return image->tags == NULL || version->config == NULL ? -ENOMEM : 0;
}

// Before anything is recorded: what the configuration says must be understood, and what the call answers be known.
static int prepare(const struct build *b, const struct image_request *r, struct error *e) {
	struct image_settings settings;
	int code = image_settings_read(r->config_json, b->en->config.default_timeout_scale, &settings, e);
	if (code < 0 && e != NULL)
		snprintf(e->name, sizeof(e->name), "ValidationException");
	if (code < 0 || r->token == NULL)
		return code;
	r->token->answer = r->answer(&b->image, &b->version);
	return r->token->answer == NULL ? error_set(e, -ENOMEM, "out of memory") : 0;
}

static int record_new(struct build *b, const struct image_request *r, struct error *e) {
	int code = store_add_image(b->en->store, &b->image, &b->version, &b->record, r->token, e);
	if (code == -EEXIST)
		return error_named(e, code, "ValidationException", "A MicroVM image with the name '%s' already exists in this account",
				   r->name);
	return code;
}

static int record_further(struct build *b, const struct image_request *r, struct error *e) {
	char state[STATE_TEXT] = "UPDATING";
	int code = store_add_version(b->en->store, &b->version, &b->record, r->token, state, e);
	if (code == -ENOENT)
		return image_is_missing(b->image.arn, e);
	return code == -EBUSY || code == -ESTALE ? image_is_busy(state, e) : code;
}

// `image` NULL: a new one.
static int begin(struct engine *en, const struct store_image *image, const struct image_request *r, struct store_image *ret,
		 struct store_version *ret_version, struct error *e) {
	struct build *b = calloc(1, sizeof(*b));
	if (b == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	*ret = (struct store_image){.tags = NULL};
	*ret_version = (struct store_version){.config = NULL};
	b->en = en;
	int code = image == NULL ? image_fill(b, r) : update_fill(b, image, r);
	if (code == 0)
		code = copy_records(b, ret, ret_version);
	if (code < 0)
		error_set(e, code, "out of memory");
	if (code == 0)
		code = prepare(b, r, e);
	if (code == 0)
		code = image == NULL ? record_new(b, r, e) : record_further(b, r, e);
	if (code == 0)
		code = build_queue(en, b, e);
	if (code < 0) {
		store_image_clear(ret);
		store_version_clear(ret_version);
		build_free(b);
	}
	return code;
}

int image_create(struct engine *en, const struct image_request *r, struct store_image *ret, struct store_version *ret_version,
		 struct error *e) {
	return begin(en, NULL, r, ret, ret_version, e);
}

int image_update(struct engine *en, const struct store_image *image, const struct image_request *r, struct store_image *ret,
		 struct store_version *ret_version, struct error *e) {
	return begin(en, image, r, ret, ret_version, e);
}
