// Builds: ListMicrovmImageBuilds, GetMicrovmImageBuild (spec sections 1.4 and 2.3).
//
// The service makes one build per chip generation. Stasis makes one per architecture that it runs, and reports it in the same members. An image
// whose request names ARM_64 alone is built for that, too: requests that were written for the service work, and the build says what it is.
#include "api/call.h"
#include "base/cleanup.h"

#include <string.h>

#define CHIPSET "X86_64"
#define CHIPSET_GENERATION "1"

static json_t *build_item(const struct store_build *b, const char *arn) {
	json_t *o = json_object();
	json_object_set_new(o, "imageArn", json_string(arn));
	json_object_set_new(o, "imageVersion", json_string(b->version));
	json_object_set_new(o, "buildId", json_string(b->build_id));
	json_object_set_new(o, "buildState", json_string(b->state));
	json_object_set_new(o, "architecture", json_string(b->architecture));
	json_object_set_new(o, "chipset", json_string(CHIPSET));
	json_object_set_new(o, "chipsetGeneration", json_string(CHIPSET_GENERATION));
	json_object_set_new(o, "createdAt", json_time(b->created_ms));
	json_object_set_new(o, "stateReason", json_text_or_null(b->state_reason));
	json_object_set_new(o, "terminationReasonCode", json_null());
	return o;
}

static json_t *bytes_or_null(int64_t n) {
	return n < 0 ? json_null() : json_integer(n);
}

struct build_list {
	json_t *items;
	const char *arn;
	const json_t *filters;
};

static bool passes(const json_t *filters, const char *name, const char *value) {
	const char *wanted = json_string_value(json_object_get(filters, name));
	return wanted == NULL || strcmp(wanted, value) == 0;
}

static int add_build(const struct store_build *b, void *arg) {
	struct build_list *l = arg;
	if (passes(l->filters, "architecture", b->architecture) && passes(l->filters, "chipset", CHIPSET) &&
	    passes(l->filters, "chipsetGeneration", CHIPSET_GENERATION))
		json_array_append_new(l->items, build_item(b, l->arn));
	return 0;
}

// Puts the query's filters where the body would be, and checks them like one.
static bool read_filters(struct call *c) {
	static const char *const names[] = {"architecture", "chipset", "chipsetGeneration"};
	json_decref(c->body);
	c->body = json_object();
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		bool failed = false;
		cleanup_free char *value = call_query(c, names[i], &failed);
		if (failed)
			return false;
		if (value != NULL)
			json_object_set_new(c->body, names[i], json_string(value));
	}
	return call_check_body(c, &shape_build_filters);
}

static void list_of_version(struct call *c, const struct store_image *i, const char *version) {
	struct call_page page;
	if (!call_page(c, &page) || !read_filters(c))
		return;
	struct build_list l = {.items = json_array(), .arn = i->arn, .filters = c->body};
	char next[STORE_CURSOR_MAX];
	struct error e = {0};
	if (store_list_builds(c->en->store, i->uuid, version, page.after, page.limit, add_build, &l, next, &e) < 0) {
		json_decref(l.items);
		call_fail_with(c, &e);
		return;
	}
	call_answer_page(c, l.items, next);
}

void list_builds(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	if (find_version(c, &i, c->labels[1], &v)) {
		list_of_version(c, &i, v.version);
		store_version_clear(&v);
	}
	store_image_clear(&i);
}

static void answer_build(struct call *c, const struct store_image *i, const char *version) {
	struct store_build b;
	struct error e = {0};
	int r = store_get_build(c->en->store, i->uuid, version, c->labels[2], &b, &e);
	if (r == -ENOENT) {
		call_not_found(c, "MicroVMImage build not found for MicroVMImage: %s, Version: %s, Build: %.64s", i->arn, version,
			       c->labels[2]);
		return;
	}
	if (r < 0) {
		call_fail_with(c, &e);
		return;
	}
	json_t *o = build_item(&b, i->arn), *snapshot = json_null();
	if (b.memory_bytes >= 0 || b.code_bytes >= 0 || b.disk_bytes >= 0) {
		snapshot = json_object();
		json_object_set_new(snapshot, "memorySnapshotSizeInBytes", bytes_or_null(b.memory_bytes));
		json_object_set_new(snapshot, "codeInstallSizeInBytes", bytes_or_null(b.code_bytes));
		json_object_set_new(snapshot, "diskSnapshotSizeInBytes", bytes_or_null(b.disk_bytes));
	}
	json_object_set_new(o, "snapshotBuild", snapshot);
	store_build_clear(&b);
	call_answer(c, 200, o);
}

void get_build(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	if (find_version(c, &i, c->labels[1], &v)) {
		answer_build(c, &i, v.version);
		store_version_clear(&v);
	}
	store_image_clear(&i);
}
