// Images: CreateMicrovmImage, GetMicrovmImage, ListMicrovmImages, DeleteMicrovmImage (spec sections 1.4 and 2.1).
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

static json_t *parse(const char *text) {
	json_t *o = text == NULL ? NULL : json_loads(text, 0, NULL);
	return o == NULL ? json_object() : o;
}

static void add_echo(json_t *to, const json_t *config) {
	for (size_t i = 0; echoed[i] != NULL; i++)
		json_object_set_new(to, echoed[i], json_member_or_null(config, echoed[i]));
}

static json_t *tags_or_null(const char *text) {
	json_t *tags = parse(text);
	if (json_object_size(tags) > 0)
		return tags;
	json_decref(tags);
	return json_null();
}

// The answer to the create call as it was when the image was made, whenever it is asked for again.
static void answer_create(struct call *c, const struct store_image *i, const struct store_version *v) {
	cleanup_json json_t *config = parse(v->config);
	json_t *o = json_object();
	add_echo(o, config);
	json_object_set_new(o, "imageArn", json_string(i->arn));
	json_object_set_new(o, "name", json_string(i->name));
	json_object_set_new(o, "state", json_string("CREATING"));
	json_object_set_new(o, "createdAt", json_time(i->created_ms));
	json_object_set_new(o, "imageVersion", json_string(v->version));
	json_object_set_new(o, "latestActiveImageVersion", json_null());
	json_object_set_new(o, "latestFailedImageVersion", json_null());
	json_object_set_new(o, "updatedAt", json_null());
	json_object_set_new(o, "tags", tags_or_null(i->tags));
	json_object_set_new(o, "id", json_string(i->uuid));
	json_object_set_new(o, "buildPhaseOverrides", json_null());
	json_object_set_new(o, "roleConfiguration", json_null());
	call_answer(c, 201, o);
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

// True when the token was used before, and the call is answered.
static bool replay(struct call *c, const char *token, const char *digest) {
	struct store_version v;
	struct store_image i;
	struct error e = {0};
	int r = store_get_version_by_token(c->en->store, c->key.account, token, &v, &e);
	if (r == -ENOENT)
		return false;
	if (r < 0) {
		call_fail_with(c, &e);
		return true;
	}
	cleanup_json json_t *config = parse(v.config);
	const char *before = json_string_value(json_object_get(config, "requestDigest"));
	if (before == NULL || strcmp(before, digest) != 0) {
		call_fail(c, 409, "ConflictException", "The client token was used before with other parameters");
	} else if (store_get_image(c->en->store, v.image_uuid, &i, &e) < 0) {
		call_fail_with(c, &e);
	} else {
		answer_create(c, &i, &v);
		store_image_clear(&i);
	}
	store_version_clear(&v);
	return true;
}

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
	if (!call_check_body(c, &shape_create_image))
		return;
	const char *name = json_string_value(json_object_get(c->body, "name"));
	const char *token = json_string_value(json_object_get(c->body, "clientToken"));
	char digest[65];
	request_digest(c, digest);
	cleanup_token_lock *lock = token_lock(c->key.account, token);
	if (token != NULL && replay(c, token, digest))
		return;
	cleanup_json json_t *config = make_config(c);
	if (config == NULL)
		return;
	if (token != NULL) {
		json_object_set_new(config, "clientToken", json_string(token));
		json_object_set_new(config, "requestDigest", json_string(digest));
	}
	const json_t *tags = json_object_get(c->body, "tags");
	cleanup_free char *config_text = json_dumps(config, JSON_COMPACT);
	cleanup_free char *tags_text = json_is_object(tags) ? json_dumps(tags, JSON_COMPACT) : strdup("{}");
	struct store_image i;
	struct store_version v;
	struct error e = {0};
	if (config_text == NULL || tags_text == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	int r = image_create(c->en, c->key.account, name, config_text, tags_text, &i, &v, &e);
	if (r == -EEXIST) {
		call_fail(c, 400, "ValidationException", "A MicroVM image with the name '%s' already exists in this account", name);
	} else if (r < 0) {
		call_fail_with(c, &e);
	} else {
		answer_create(c, &i, &v);
		store_image_clear(&i);
		store_version_clear(&v);
	}
	(void)lock;
}

void get_image(struct call *c) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	json_t *o = image_item(&i);
	json_object_set_new(o, "updatedAt", json_time(i.updated_ms));
	json_object_set_new(o, "tags", parse(i.tags));
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
	store_image_clear(&i);
	if (image_delete(c->en, c->labels[0], &e) < 0)
		call_fail_with(c, &e);
	else
		call_answer(c, 200, json_pack("{s:s, s:s}", "imageIdentifier", c->labels[0], "state", "DELETING"));
}

// Versions: GetMicrovmImageVersion ------------------------------------------------------------------------------------------------------

void get_version(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	if (find_version(c, &i, c->labels[1], &v)) {
		cleanup_json json_t *config = parse(v.config);
		json_t *o = json_object();
		char hour[16];
		time_t changed = (time_t)((v.updated_ms == 0 ? v.created_ms : v.updated_ms) / 1000);
		struct tm tm;
		strftime(hour, sizeof(hour), "%y%m%d%H", gmtime_r(&changed, &tm));
		add_echo(o, config);
		json_object_set_new(o, "imageArn", json_string(i.arn));
		json_object_set_new(o, "imageVersion", json_string(v.version));
		json_object_set_new(o, "state", json_string(v.state));
		json_object_set_new(o, "status", json_string(v.status));
		json_object_set_new(o, "createdAt", json_time(v.created_ms));
		json_object_set_new(o, "updatedAt", json_time(v.updated_ms));
		json_object_set_new(o, "stateReason", json_text_or_null(v.state_reason));
		json_object_set_new(o, "tags", tags_or_null(i.tags));
		json_object_set_new(o, "versionStateTimeBucket", json_sprintf("%s#%s", v.state, hour));
		store_version_clear(&v);
		call_answer(c, 200, o);
	}
	store_image_clear(&i);
}
