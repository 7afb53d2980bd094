// Tags: TagResource, UntagResource, ListTags (spec sections 1.2 and 1.7). They belong to the service's older API: other paths, other errors.
//
// Each kind of resource that can be tagged is a line in `kinds`; a change of tags reaches its store as a JSON merge patch, in which null removes.
#include "api/call.h"
#include "base/cleanup.h"

#include <string.h>

static int get_image_tags(struct call *c, const char *arn, json_t **ret) {
	struct store_image i;
	if (!find_image(c, arn, &i))
		return -1;
	*ret = json_stored(i.tags);
	store_image_clear(&i);
	return 0;
}

static int patch_image_tags(struct call *c, const char *arn, const char *patch) {
	struct store_image i;
	struct error e = {0};
	if (!find_image(c, arn, &i))
		return -1;
	int r = store_patch_image_tags(c->en->store, i.uuid, patch, &e);
	store_image_clear(&i);
	if (r == -E2BIG)
		return call_fail(c, 400, "ValidationException", "A resource can have at most %d tags", STORE_TAGS_MAX);
	if (r == -ENOENT)
		return call_not_found(c, "MicroVMImage not found for MicroVMImageID: %s", arn);
	return r < 0 ? call_fail_with(c, &e) : 0;
}

// Both return 0, or a negative number when the call has failed and is answered.
static const struct kind {
	const char *prefix; // of the ARN's resource
	int (*get)(struct call *c, const char *arn, json_t **ret);
	int (*patch)(struct call *c, const char *arn, const char *patch);
} kinds[] = {
	{"microvm-image:", get_image_tags, patch_image_tags},
};

static const struct kind *find_kind(struct call *c) {
	const char *resource = arn_resource(c->labels[0]);
	for (size_t i = 0; resource != NULL && i < sizeof(kinds) / sizeof(kinds[0]); i++)
		if (strncmp(resource, kinds[i].prefix, strlen(kinds[i].prefix)) == 0)
			return &kinds[i];
	call_fail(c, 400, "ValidationException",
		  "Invalid resource ARN: %.256s. Images can be tagged: arn:aws:lambda:<region>:<account>:microvm-image:<name>",
		  c->labels[0]);
	return NULL;
}

bool check_tag_keys(struct call *c, const json_t *tags) {
	const char *key;
	json_t *value, *o = (json_t *)(uintptr_t)tags; // jansson's iterators take no const
	json_object_foreach(o, key, value) {
		if (strncmp(key, "aws:", 4) != 0)
			continue;
		call_fail(c, 400, "ValidationException", "Tag keys that begin with 'aws:' are reserved: %.128s", key);
		return false;
	}
	return true;
}

static void patch_tags(struct call *c, const struct kind *kind, const json_t *patch) {
	cleanup_free char *text = json_dumps(patch, JSON_COMPACT);
	if (text == NULL)
		call_fail(c, 500, "InternalServerException", "out of memory");
	else if (kind->patch(c, c->labels[0], text) == 0)
		call_answer_nothing(c);
}

void tag_resource(struct call *c) {
	const struct kind *kind = find_kind(c);
	if (kind == NULL || !call_check_body(c, &shape_tag_resource))
		return;
	const json_t *tags = json_object_get(c->body, "Tags");
	if (check_tag_keys(c, tags))
		patch_tags(c, kind, tags);
}

// The keys of the query as the body that the shape describes.
static bool read_keys(struct call *c) {
	json_t *keys = json_array();
	struct slice rest = c->query;
	char *key = NULL;
	int r;
	while ((r = query_next(&rest, "tagKeys", &key)) > 0) {
		json_array_append_new(keys, json_string(key));
		free(key);
	}
	json_decref(c->body);
	c->body = json_pack("{s:o}", "TagKeys", keys);
	if (r < 0)
		call_fail(c, 400, "ValidationException", "The query parameter 'tagKeys' cannot be read: its percent-encoding is wrong");
	return r == 0 && call_check_body(c, &shape_untag_resource);
}

void untag_resource(struct call *c) {
	const struct kind *kind = find_kind(c);
	if (kind == NULL || !read_keys(c))
		return;
	cleanup_json json_t *patch = json_object();
	size_t i;
	json_t *key, *keys = json_object_get(c->body, "TagKeys");
	json_array_foreach(keys, i, key) json_object_set_new(patch, json_string_value(key), json_null());
	if (check_tag_keys(c, patch))
		patch_tags(c, kind, patch);
}

void list_tags(struct call *c) {
	const struct kind *kind = find_kind(c);
	json_t *tags = NULL;
	if (kind != NULL && kind->get(c, c->labels[0], &tags) == 0)
		call_answer(c, 200, json_pack("{s:o}", "Tags", tags));
}
