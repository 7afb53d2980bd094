// Stand-ins, for tests of the API alone, of what the API calls and is not under test: builds, the lives of microVMs, the edge's keys. They
// record in the real store what the real modules would, at once and without any guest; tokens are real ones.
#include "api_neighbours.h"

#include "base/clock.h"
#include "edge/edge.h"
#include "images/images.h"
#include "logs/logs.h"
#include "logs/push.h"
#include "microvms/microvms.h"
#include "microvms/output_log.h"
#include "stasisd/engine.h"
#include "store/artifacts.h"

#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct token_keys *keys;

// Logs: real ones, written by stand-ins for applications and builds. ---------------------------------------------------------------------

#define APPLICATIONS_MAX 256

static struct application {
	char id[48];
	struct output_log log;
} * applications[APPLICATIONS_MAX];
static size_t application_count;
static pthread_mutex_t applications_lock = PTHREAD_MUTEX_INITIALIZER;

// The application of a microVM; it lives until the end of the program.
static struct application *application_of(const char *id) {
	struct application *found = NULL;
	pthread_mutex_lock(&applications_lock);
	for (size_t i = 0; i < application_count; i++)
		if (strcmp(applications[i]->id, id) == 0)
			found = applications[i];
	pthread_mutex_unlock(&applications_lock);
	return found;
}

static const char *image_name(const char *arn) {
	const char *colon = strrchr(arn, ':');
	return colon == NULL ? arn : colon + 1;
}

static void open_application(struct engine *en, const struct store_microvm *m) {
	struct application *a = calloc(1, sizeof(*a));
	struct push_target target;
	char folder[LOG_FOLDER_MAX];
	json_t *config = json_loads(m->config, 0, NULL);
	a->log.fd = -1;
	snprintf(a->id, sizeof(a->id), "%s", m->id);
	logs_of_microvm(en, m->id, folder);
	bool pushed = push_target_of_microvm(en, config, image_name(m->image_arn), m->version, m->id, m->started_ms, &target);
	output_log_open(&a->log, folder, (uint64_t)en->config.microvm_log_bytes, pushed ? push_open(en, folder, &target) : NULL, NULL);
	json_decref(config);
	pthread_mutex_lock(&applications_lock);
	if (application_count < APPLICATIONS_MAX)
		applications[application_count++] = a;
	pthread_mutex_unlock(&applications_lock);
}

// "<number> <text>" is written so many times, a line each; anything else once, as it is.
static void print(struct application *a, int kind, const char *text) {
	char *rest;
	long n = strtol(text, &rest, 10);
	char line[4200];
	int size = snprintf(line, sizeof(line), "%s\n", *rest == ' ' ? rest + 1 : rest);
	if (n == 0)
		output_log_write(&a->log, kind, realtime_ns(), text, strlen(text));
	for (long i = 0; i < n; i++)
		output_log_write(&a->log, kind, realtime_ns(), line, (size_t)size);
}

static void say(const char *id, int kind, const char *text) {
	struct application *a = application_of(id);
	if (a != NULL)
		print(a, kind, text);
}

static void write_build_log(struct engine *en, const struct store_image *i, const struct store_build *b, const char *config_json) {
	struct output_log log;
	struct push_target target;
	char folder[LOG_FOLDER_MAX];
	json_t *config = json_loads(config_json, 0, NULL);
	logs_of_build(en, i->uuid, "1.0", folder);
	bool pushed = push_target_of_build(en, config, i->name, "1.0", b->build_id, b->created_ms, &target);
	if (output_log_open(&log, folder, (uint64_t)en->config.build_log_bytes, pushed ? push_open(en, folder, &target) : NULL, NULL) ==
	    0) {
		output_log_write(&log, 1, realtime_ns(), "STEP 1/1: FROM stasis/debian\n", 29);
		output_log_note(&log, "the image is ready");
		output_log_close(&log);
	}
	logs_build_ended(en, i->uuid, "1.0");
	json_decref(config);
}

void neighbours_close_logs(void) {
	for (size_t i = 0; i < application_count; i++) {
		output_log_close(&applications[i]->log);
		free(applications[i]);
	}
	application_count = 0;
}

int neighbours_start(struct engine *en, struct error *e) {
	return token_keys_open(en->config.state_folder, &keys, e);
}

void neighbours_stop(void) {
	token_keys_close(keys);
	keys = NULL;
}

const char *edge_ca_pem(const struct engine *en) {
	(void)en;
	return "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n";
}

int edge_mint_token(const struct engine *en, const struct token_claims *c, char to[static TOKEN_ROOM], struct error *e) {
	(void)en;
	return token_mint(keys, c, to, e);
}

int neighbours_open_token(const char *text, struct token_claims *ret) {
	return token_open(keys, text, strlen(text), ret, NULL);
}

size_t base_images(struct engine *en, const struct base_image **ret) {
	static const struct base_image list[] = {{"debian", "1", 1750000000123}, {"python", "1", 1750000000456}};
	(void)en;
	*ret = list;
	return 2;
}

static void set(char *to, size_t room, const char *from) {
	snprintf(to, room, "%s", from);
}
#define SET(field, value) set((field), sizeof(field), (value))

// What the artifact of an image named "fetched…" holds, or why it cannot be read: builds begin with that.
static void fetch_artifact(struct engine *en, const char *account, const char *config_json, struct store_build *b) {
	struct error e = {0};
	json_t *config = json_loads(config_json, 0, NULL);
	const char *uri = json_string_value(json_object_get(json_object_get(config, "codeArtifact"), "uri"));
	int fd = -1;
	uint64_t size = 0;
	if (artifacts_open_for(en, account, uri, &fd, &size, &e) < 0) {
		snprintf(b->state_reason, sizeof(b->state_reason), "%s: %.450s", e.name, e.message);
	} else {
		b->code_bytes = (int64_t)size;
		close(fd);
	}
	json_decref(config);
}

// A name that starts with "pending" stays in its build; one that starts with "failing" fails it; one that starts with "fetched" reads its
// artifact.
int image_create(struct engine *en, const char *account, const char *name, const char *config_json, const char *tags_json,
		 struct store_image *ret, struct store_version *ret_version, struct error *e) {
	struct store_image i = {.created_ms = (int64_t)realtime_ms()};
	struct store_version v = {.created_ms = i.created_ms};
	struct store_build b = {.created_ms = i.created_ms, .memory_bytes = -1, .code_bytes = -1, .disk_bytes = -1};
	uuid_new(i.uuid);
	uuid_new(b.build_id);
	SET(i.account, account);
	SET(i.name, name);
	snprintf(i.arn, sizeof(i.arn), "arn:aws:lambda:%s:%s:microvm-image:%s", en->config.region, account, name);
	SET(i.state, "CREATING");
	i.updated_ms = v.updated_ms = i.created_ms;
	SET(v.image_uuid, i.uuid);
	SET(v.version, "1.0");
	SET(v.state, "PENDING");
	SET(v.status, "INACTIVE");
	SET(b.image_uuid, i.uuid);
	SET(b.version, "1.0");
	SET(b.state, "PENDING");
	SET(b.architecture, "X86_64");
	i.tags = strdup(tags_json);
	v.config = strdup(config_json);
	int r = store_add_image(en->store, &i, &v, &b, e);
	if (r >= 0 && strncmp(name, "pending", 7) != 0) {
		bool fails = strncmp(name, "failing", 7) == 0;
		struct store_image done = i;
		struct store_version version = v;
		SET(done.state, fails ? "CREATE_FAILED" : "CREATED");
		set(fails ? done.latest_failed_version : done.latest_active_version, VERSION_TEXT, "1.0");
		SET(version.state, fails ? "FAILED" : "SUCCESSFUL");
		SET(version.status, fails ? "INACTIVE" : "ACTIVE");
		SET(b.state, fails ? "FAILED" : "SUCCESSFUL");
		SET(b.state_reason, fails ? "The container image build failed." : "");
		if (!fails) {
			b.memory_bytes = 123456789;
			b.code_bytes = 1000;
			b.disk_bytes = 5000000000;
		}
		if (strncmp(name, "fetched", 7) == 0)
			fetch_artifact(en, account, config_json, &b);
		write_build_log(en, &i, &b, config_json);
		char subject[64];
		snprintf(subject, sizeof(subject), "%s/1.0", i.uuid);
		r = store_finish_build(en->store, &done, &version, &b, e);
		if (r >= 0)
			r = store_add_stage(en->store, subject, "build.container", i.created_ms, 1500000, "5 steps", e);
	}
	if (r < 0) {
		store_image_clear(&i);
		store_version_clear(&v);
		return r;
	}
	*ret = i;
	*ret_version = v;
	return 0;
}

int image_delete(struct engine *en, const char *arn, struct error *e) {
	struct store_image i;
	int r = store_get_image_by_arn(en->store, arn, &i, e);
	if (r < 0)
		return error_named(e, r, "ResourceNotFoundException", "gone");
	if (strcmp(i.state, "CREATING") == 0)
		r = error_named(e, -EBUSY, "ValidationException", "Cannot delete MicroVM image in its current state: %s", arn);
	else
		r = store_delete_image(en->store, i.uuid, e);
	store_image_clear(&i);
	return r;
}

int microvm_run(struct engine *en, const struct microvm_run *r, struct store_microvm *ret, struct error *e) {
	struct store_microvm m = {.started_ms = (int64_t)realtime_ms(),
				  .maximum_duration_s = r->maximum_duration_s,
				  .has_idle_policy = r->has_idle_policy,
				  .max_idle_s = r->max_idle_s,
				  .suspended_s = r->suspended_s,
				  .auto_resume = r->auto_resume};
	char uuid[UUID_TEXT];
	uuid_new(uuid);
	snprintf(m.id, sizeof(m.id), "microvm-%s", uuid);
	uuid_new(m.endpoint);
	SET(m.account, r->account);
	SET(m.image_uuid, r->image->uuid);
	SET(m.image_arn, r->image->arn);
	SET(m.version, r->version->version);
	SET(m.state, "PENDING");
	m.config = strdup(r->config);
	int done = store_add_microvm(en->store, &m, e);
	if (done >= 0) {
		struct store_microvm running = m;
		SET(running.state, "RUNNING");
		open_application(en, &m);
		say(m.id, 1, r->run_hook_payload == NULL ? "running\n" : r->run_hook_payload);
		done = store_update_microvm(en->store, &running, e);
	}
	if (done < 0) {
		store_microvm_clear(&m);
		return done;
	}
	*ret = m;
	return 0;
}

static int change(struct engine *en, const char *id, const char *state, const char *reason, struct error *e) {
	struct store_microvm m;
	int r = store_get_microvm(en->store, id, &m, e);
	if (r < 0)
		return r;
	bool ends = strcmp(state, "TERMINATED") == 0;
	if (strcmp(m.state, "TERMINATED") == 0) {
		r = ends ? 0
			 : error_named(e, -EINVAL, "ValidationException",
				       "The MicroVM %s has been terminated and its state cannot be changed.", id);
	} else {
		SET(m.state, state);
		SET(m.state_reason, reason);
		m.terminated_ms = ends ? (int64_t)realtime_ms() : 0;
		struct application *a = application_of(id);
		if (a != NULL && ends) {
			char folder[300];
			output_log_close(&a->log);
			snprintf(folder, sizeof(folder), "%.240s/microvms/%.40s", en->config.state_folder, id + strlen("microvm-"));
			logs_microvm_ended(en, id, folder);
		}
		r = store_update_microvm(en->store, &m, e);
		if (ends)
			logs_wake_microvm(en, id);
	}
	store_microvm_clear(&m);
	return r;
}

int microvm_suspend(struct engine *en, const char *id, const char *reason, struct error *e) {
	say(id, 2, "suspended\n");
	return change(en, id, "SUSPENDED", reason, e);
}
int microvm_resume(struct engine *en, const char *id, struct error *e) {
	say(id, 1, "resumed\n");
	return change(en, id, "RUNNING", "", e);
}
int microvm_terminate(struct engine *en, const char *id, const char *reason, struct error *e) {
	return change(en, id, "TERMINATED", reason, e);
}
