// Images: CreateMicrovmImage, UpdateMicrovmImage, GetMicrovmImage, ListMicrovmImages, DeleteMicrovmImage (spec sections 1.4 and 2.1).
#include "api/call.h"
#include "base/cleanup.h"
#include "images/images.h"
#include "store/artifacts.h"

#include <stdio.h>
#include <string.h>

// What an image version remembers of its request, and echoes.
static const char *const echoed[] = {"baseImageArn",
				     "baseImageVersion",
				     "buildRoleArn",
				     "codeArtifact",
				     "description",
				     "logging",
				     "egressNetworkConnectors",
				     "cpuConfigurations",
				     "resources",
				     "additionalOsCapabilities",
				     "hooks",
				     "environmentVariables",
				     NULL};

// The rules that the shapes cannot express. Each: false when the call has failed ----------------------------------------------------

static bool check_base(struct call *c, json_t *config) {
	const char *arn = json_string_value(json_object_get(config, "baseImageArn"));
	const char *version = json_string_value(json_object_get(config, "baseImageVersion"));
	char canonical[ARN_MAX], wanted[VERSION_TEXT], known[VERSION_TEXT];
	const struct base_image *base = find_base_image(c->en, arn, canonical);
	if (base == NULL) {
		call_fail(c, 400, "ValidationException", "No managed MicroVM Image with arn %.300s is available", arn);
		return false;
	}
	normalise_version(base->version, known);
	normalise_version(version == NULL ? base->version : version, wanted);
	if (strcmp(wanted, known) != 0) {
		call_fail(c, 400, "ValidationException", "No managed MicroVM Image with arn %.300s and version %.64s is available", arn,
			  version);
		return false;
	}
	json_object_set_new(config, "baseImageArn", json_string(canonical));
	json_object_set_new(config, "baseImageVersion", json_string(known));
	return true;
}

static bool check_artifact(struct call *c, const json_t *config) {
	const char *uri = json_string_value(json_object_get(json_object_get(config, "codeArtifact"), "uri"));
	char bucket[BUCKET_MAX];
	const char *key;
	if (!artifacts_parse_uri(uri, bucket, &key)) {
		call_fail(c, 400, "ValidationException", "Invalid codeArtifact uri: it must be s3://<bucket>/<key>, not %.200s", uri);
		return false;
	}
	// Somebody else's bucket is refused at once; one that does not exist yet is the build's failure.
	struct bucket b;
	struct error e = {0};
	if (c->en->config.s3_endpoint[0] == '\0' && artifacts_get_bucket(c->en->artifacts, c->key.account, bucket, &b, &e) == -EACCES) {
		call_fail(c, 403, "AccessDeniedException", "The bucket %s belongs to another account", bucket);
		return false;
	}
	return true;
}

static bool check_memory(struct call *c, json_t *config) {
	if (json_array_size(json_object_get(config, "resources")) == 0) {
		json_object_set_new(config, "resources", json_pack("[{s:i}]", "minimumMemoryInMiB", 2048));
		return true;
	}
	const json_t *first = json_array_get(json_object_get(config, "resources"), 0);
	long long mib = json_integer_value(json_object_get(first, "minimumMemoryInMiB"));
	if (mib == 512 || mib == 1024 || mib == 2048 || mib == 4096 || mib == 8192)
		return true;
	call_fail(c, 400, "ValidationException",
		  "The requested memory size of %lld MiB is not supported by base MicroVM image %s. Supported memory sizes in MiB are: "
		  "[512, 1024, 2048, "
		  "4096, 8192].",
		  mib, json_string_value(json_object_get(config, "baseImageArn")));
	return false;
}

static bool is_enabled(const json_t *hooks, const char *group, const char *name) {
	const char *value = json_string_value(json_object_get(json_object_get(hooks, group), name));
	return value != NULL && strcmp(value, "ENABLED") == 0;
}

static bool check_hooks(struct call *c, const json_t *config) {
	static const char *const runtime[] = {"run", "resume", "suspend", "terminate"};
	const json_t *hooks = json_object_get(config, "hooks");
	bool ready = is_enabled(hooks, "microvmImageHooks", "ready"), any = ready || is_enabled(hooks, "microvmImageHooks", "validate");
	for (size_t i = 0; i < 4; i++) {
		if (!is_enabled(hooks, "microvmHooks", runtime[i]))
			continue;
		any = true;
		if (!ready) {
			call_fail(c, 400, "ValidationException",
				  "The ready (/ready) MicroVM image hook must be enabled when any MicroVM lifecycle hook (run, resume, "
				  "suspend, or "
				  "terminate) is enabled.");
			return false;
		}
	}
	const json_t *port = json_object_get(hooks, "port");
	if (any && !json_is_integer(port)) {
		call_fail(c, 400, "ValidationException", "The port of the hooks must be given when any hook is enabled.");
		return false;
	}
	return true;
}

static bool check_egress(struct call *c, json_t *config) {
	const json_t *list = json_object_get(config, "egressNetworkConnectors");
	if (!check_connectors(c, list, CONNECTOR_EGRESS))
		return false;
	if (json_array_size(list) == 0)
		json_object_set_new(config, "egressNetworkConnectors", default_connector(c, "INTERNET_EGRESS"));
	return true;
}

// Answers -----------------------------------------------------------------------------------------------------------------------------

void add_image_config(json_t *to, const json_t *config) {
	for (size_t i = 0; echoed[i] != NULL; i++)
		json_object_set_new(to, echoed[i], json_member_or_null(config, echoed[i]));
}

json_t *tags_or_null(const char *stored) {
	json_t *tags = json_stored(stored);
	if (json_object_size(tags) > 0)
		return tags;
	json_decref(tags);
	return json_null();
}

// The answer to both create and update, as things were when the version was recorded.
static json_t *build_answer(const struct store_image *i, const struct store_version *v) {
	cleanup_json json_t *config = json_stored(v->config);
	json_t *o = json_object();
	add_image_config(o, config);
	json_object_set_new(o, "imageArn", json_string(i->arn));
	json_object_set_new(o, "name", json_string(i->name));
	json_object_set_new(o, "state", json_string(i->state));
	json_object_set_new(o, "createdAt", json_time(i->created_ms));
	json_object_set_new(o, "imageVersion", json_string(v->version));
	json_object_set_new(o, "latestActiveImageVersion", json_text_or_null(i->latest_active_version));
	json_object_set_new(o, "latestFailedImageVersion", json_text_or_null(i->latest_failed_version));
	json_object_set_new(o, "id", json_string(i->uuid));
	json_object_set_new(o, "buildPhaseOverrides", json_null());
	json_object_set_new(o, "roleConfiguration", json_null());
	return o;
}

static json_t *create_answer(const struct store_image *i, const struct store_version *v) {
	json_t *o = build_answer(i, v);
	json_object_set_new(o, "updatedAt", json_null());
	json_object_set_new(o, "tags", tags_or_null(i->tags));
	return o;
}

static json_t *update_answer(const struct store_image *i, const struct store_version *v) {
	json_t *o = build_answer(i, v);
	json_object_set_new(o, "updatedAt", json_time(i->updated_ms));
	return o;
}

static char *create_text(const struct store_image *i, const struct store_version *v) {
	cleanup_json json_t *answer = create_answer(i, v);
	return json_as_sent(answer);
}

static char *update_text(const struct store_image *i, const struct store_version *v) {
	cleanup_json json_t *answer = update_answer(i, v);
	return json_as_sent(answer);
}

static json_t *image_item(const struct store_image *i) {
	json_t *o = json_object();
	json_object_set_new(o, "imageArn", json_string(i->arn));
	json_object_set_new(o, "name", json_string(i->name));
	json_object_set_new(o, "state", json_string(i->state));
	json_object_set_new(o, "createdAt", json_time(i->created_ms));
	json_object_set_new(o, "latestActiveImageVersion", json_text_or_null(i->latest_active_version));
	json_object_set_new(o, "latestFailedImageVersion", json_text_or_null(i->latest_failed_version));
	json_object_set_new(o, "id", json_string(i->uuid));
	return o;
}

// Operations --------------------------------------------------------------------------------------------------------------------------

static json_t *make_config(struct call *c) {
	json_t *config = json_object();
	for (size_t i = 0; echoed[i] != NULL; i++) {
		json_t *member = json_object_get(c->body, echoed[i]);
		if (member != NULL && !json_is_null(member))
			json_object_set(config, echoed[i], member);
	}
	if (check_base(c, config) && check_artifact(c, config) && check_memory(c, config) && check_hooks(c, config) &&
	    check_egress(c, config))
		return config;
	json_decref(config);
	return NULL;
}

void create_image(struct call *c) {
	cleanup_idempotency once = {.lock = NULL};
	if (!call_check_body(c, &shape_create_image) || !idempotency_begin(c, 201, &once))
		return;
	const json_t *tags = json_object_get(c->body, "tags");
	if (!check_tag_keys(c, tags))
		return;
	cleanup_json json_t *config = make_config(c);
	if (config == NULL)
		return;
	cleanup_free char *config_text = json_dumps(config, JSON_COMPACT);
	cleanup_free char *tags_text = json_is_object(tags) ? json_dumps(tags, JSON_COMPACT) : strdup("{}");
	if (config_text == NULL || tags_text == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	const struct image_request request = {.account = c->key.account,
					      .name = json_string_value(json_object_get(c->body, "name")),
					      .tags_json = tags_text,
					      .config_json = config_text,
					      .token = once.token,
					      .answer = create_text};
	struct store_image i;
	struct store_version v;
	struct error e = {0};
	if (image_create(c->en, &request, &i, &v, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 201, create_answer(&i, &v));
	store_image_clear(&i);
	store_version_clear(&v);
}

static void update(struct call *c, const struct store_image *image, struct store_token *token) {
	cleanup_json json_t *config = make_config(c);
	if (config == NULL)
		return;
	cleanup_free char *config_text = json_dumps(config, JSON_COMPACT);
	if (config_text == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	const struct image_request request = {.config_json = config_text, .token = token, .answer = update_text};
	struct store_image i;
	struct store_version v;
	struct error e = {0};
	if (image_update(c->en, image, &request, &i, &v, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 200, update_answer(&i, &v));
	store_image_clear(&i);
	store_version_clear(&v);
}

void update_image(struct call *c) {
	cleanup_idempotency once = {.lock = NULL};
	struct store_image image;
	// A token that was used is answered even when the image is gone; only whose it is must be clear.
	if (!call_check_body(c, &shape_update_image) || !is_own_image_arn(c, c->labels[0]) || !idempotency_begin(c, 200, &once) ||
	    !find_image(c, c->labels[0], &image))
		return;
	update(c, &image, once.token);
	store_image_clear(&image);
}

void get_image(struct call *c) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	json_t *o = image_item(&i);
	json_object_set_new(o, "updatedAt", json_time(i.updated_ms));
	json_object_set_new(o, "tags", json_stored(i.tags));
	store_image_clear(&i);
	call_answer(c, 200, o);
}

struct image_list {
	json_t *items;
	const char *filter; // NULL: all
};

static int add_image(const struct store_image *i, void *arg) {
	struct image_list *l = arg;
	if (l->filter == NULL || strstr(i->name, l->filter) != NULL)
		json_array_append_new(l->items, image_item(i));
	return 0;
}

void list_images(struct call *c) {
	struct call_page page;
	bool failed = false;
	if (!call_page(c, &page))
		return;
	// The filter applies to the page, as in the service: a page may be empty and still have a next one.
	cleanup_free char *filter = call_query(c, "nameFilter", &failed);
	if (failed)
		return;
	struct image_list l = {.items = json_array(), .filter = filter};
	char next[STORE_CURSOR_MAX];
	struct error e = {0};
	if (store_list_images(c->en->store, c->key.account, page.after, page.limit, add_image, &l, next, &e) < 0) {
		json_decref(l.items);
		call_fail_with(c, &e);
		return;
	}
	call_answer_page(c, l.items, next);
}

void delete_image(struct call *c) {
	struct store_image i;
	struct error e = {0};
	if (!find_image(c, c->labels[0], &i))
		return;
	if (image_delete(c->en, &i, &e) < 0)
		call_fail_with(c, &e);
	else
		call_answer(c, 200, json_pack("{s:s, s:s}", "imageIdentifier", c->labels[0], "state", "DELETING"));
	store_image_clear(&i);
}
