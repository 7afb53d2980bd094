// Image versions: GetMicrovmImageVersion, ListMicrovmImageVersions, UpdateMicrovmImageVersion, DeleteMicrovmImageVersion (spec sections 1.4, 2.2).
#include "api/call.h"
#include "base/cleanup.h"
#include "images/images.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static json_t *version_item(const struct store_image *i, const struct store_version *v) {
	cleanup_json json_t *config = json_stored(v->config);
	json_t *o = json_object();
	char hour[16];
	time_t changed = (time_t)((v->updated_ms == 0 ? v->created_ms : v->updated_ms) / 1000);
	struct tm tm;
	strftime(hour, sizeof(hour), "%y%m%d%H", gmtime_r(&changed, &tm));
	add_image_config(o, config);
	json_object_set_new(o, "imageArn", json_string(i->arn));
	json_object_set_new(o, "imageVersion", json_string(v->version));
	json_object_set_new(o, "state", json_string(v->state));
	json_object_set_new(o, "status", json_string(v->status));
	json_object_set_new(o, "createdAt", json_time(v->created_ms));
	json_object_set_new(o, "updatedAt", json_time(v->updated_ms));
	json_object_set_new(o, "stateReason", json_text_or_null(v->state_reason));
	json_object_set_new(o, "tags", tags_or_null(i->tags));
	json_object_set_new(o, "versionStateTimeBucket", json_sprintf("%s#%s", v->state, hour));
	return o;
}

static void answer_version(struct call *c, const struct store_image *i, const char *version) {
	struct store_version v;
	if (!find_version(c, i, version, &v))
		return;
	call_answer(c, 200, version_item(i, &v));
	store_version_clear(&v);
}

void get_version(struct call *c) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	answer_version(c, &i, c->labels[1]);
	store_image_clear(&i);
}

struct version_list {
	json_t *items;
	const struct store_image *image;
};

static int add_version(const struct store_version *v, void *arg) {
	struct version_list *l = arg;
	json_array_append_new(l->items, version_item(l->image, v));
	return 0;
}

static void list_of_image(struct call *c, const struct store_image *i) {
	struct call_page page;
	if (!call_page(c, &page))
		return;
	struct version_list l = {.items = json_array(), .image = i};
	char next[STORE_CURSOR_MAX];
	struct error e = {0};
	if (store_list_versions(c->en->store, i->uuid, page.after, page.limit, add_version, &l, next, &e) < 0) {
		json_decref(l.items);
		call_fail_with(c, &e);
		return;
	}
	call_answer_page(c, l.items, next);
}

void list_versions(struct call *c) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	list_of_image(c, &i);
	store_image_clear(&i);
}

void update_version(struct call *c) {
	struct store_image i;
	if (!call_check_body(c, &shape_update_version) || !find_image(c, c->labels[0], &i))
		return;
	char version[VERSION_TEXT];
	normalise_version(c->labels[1], version);
	const char *status = json_string_value(json_object_get(c->body, "status"));
	struct error e = {0};
	if (image_set_status(c->en, &i, version, strcmp(status, "ACTIVE") == 0, &e) < 0)
		call_fail_with(c, &e);
	else
		answer_version(c, &i, version);
	store_image_clear(&i);
}

static void answer_delete(struct call *c, const char *version, const char *state) {
	call_answer(c, 200, json_pack("{s:s, s:s, s:s}", "imageIdentifier", c->labels[0], "imageVersion", version, "state", state));
}

// A number that the image has used and has no more. Deleting such a version again is no error.
static bool was_deleted(const struct store_image *i, const char *version) {
	char *end;
	errno = 0;
	long long number = strtoll(version, &end, 10);
	return errno == 0 && strcmp(end, ".0") == 0 && number >= 1 && number <= i->last_version;
}

void delete_version(struct call *c) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	char version[VERSION_TEXT];
	normalise_version(c->labels[1], version);
	struct error e = {0};
	int r = image_delete_version(c->en, &i, version, &e);
	if (r == 0)
		answer_delete(c, version, "DELETING");
	else if (r == -ENOENT && was_deleted(&i, version))
		answer_delete(c, version, "DELETED");
	else
		call_fail_with(c, &e);
	store_image_clear(&i);
}
