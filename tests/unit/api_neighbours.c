// Stand-ins, for tests of the API alone, of what the API calls and is not under test: what happens inside builds, the lives of microVMs, the edge's
// keys. What is recorded, deleted and recovered of images is real; microVMs are recorded in the real store as the real module would, without any
// guest; tokens are real ones.
#include "api_neighbours.h"

#include "base/clock.h"
#include "base/io.h"
#include "edge/edge.h"
#include "images/build.h"
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

static void write_build_log(const struct build *b) {
	struct output_log log;
	struct push_target target;
	char folder[LOG_FOLDER_MAX];
	logs_of_build(b->en, b->image.uuid, b->version.version, folder);
	bool pushed = push_target_of_build(b->en, b->config, b->image.name, b->version.version, b->record.build_id, b->record.created_ms,
					   &target);
	if (output_log_open(&log, folder, (uint64_t)b->en->config.build_log_bytes, pushed ? push_open(b->en, folder, &target) : NULL,
			    NULL) == 0) {
		output_log_write(&log, 1, realtime_ns(), "STEP 1/1: FROM stasis/debian\n", 29);
		output_log_note(&log, "the image is ready");
		output_log_close(&log);
	}
	logs_build_ended(b->en, b->image.uuid, b->version.version);
}

void neighbours_close_logs(void) {
	for (size_t i = 0; i < application_count; i++) {
		output_log_close(&applications[i]->log);
		free(applications[i]);
	}
	application_count = 0;
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

int edge_rotate_token_keys(const struct engine *en, struct error *e) {
	return token_keys_rotate(keys, en->config.state_folder, (int64_t)realtime_ms(), e);
}

int microvm_revoke_tokens(struct engine *en, const char *id, struct error *e) {
	return store_set_tokens_since(en->store, id, (int64_t)realtime_ms() + 1, e);
}

int neighbours_open_token(const char *text, struct token_claims *ret) {
	return token_open(keys, text, strlen(text), ret, NULL);
}

static void set(char *to, size_t room, const char *from) {
	snprintf(to, room, "%s", from);
}
#define SET(field, value) set((field), sizeof(field), (value))

// Builds: what is recorded of them is real, and the files are there, empty. The description of the version says what becomes of it, or else the
// image's name: "pending…" stays in its build, "failing…" fails, "slow…" takes a moment, "fetched…" reads its artifact.
static bool says(const struct build *b, const char *word) {
	const char *description = json_string_value(json_object_get(b->config, "description"));
	return strncmp(description == NULL ? b->image.name : description, word, strlen(word)) == 0;
}

// What the artifact holds, or why it cannot be read: builds begin with that.
static void fetch_artifact(struct build *b) {
	struct error e = {0};
	const char *uri = json_string_value(json_object_get(json_object_get(b->config, "codeArtifact"), "uri"));
	int fd = -1;
	uint64_t size = 0;
	if (artifacts_open_for(b->en, b->image.account, uri, &fd, &size, &e) < 0) {
		snprintf(b->record.state_reason, sizeof(b->record.state_reason), "%s: %.450s", e.name, e.message);
	} else {
		b->record.code_bytes = (int64_t)size;
		close(fd);
	}
}

static int write_files(const struct build *b, struct error *e) {
	static const char *const names[] = {"disk.ext4", "memory", "state"};
	int r = make_folders(b->folder, 0750, e);
	for (size_t i = 0; i < 3 && r == 0; i++) {
		char path[IMAGE_PATH + 32];
		snprintf(path, sizeof(path), "%s/%s", b->folder, names[i]);
		r = write_file_durably(path, "", 0, 0640, e);
	}
	return r;
}

static void run_build(void *arg) {
	struct build *b = arg;
	struct error e = {0};
	char subject[64];
	snprintf(subject, sizeof(subject), "%s/%s", b->image.uuid, b->version.version);
	if (says(b, "slow"))
		usleep(300000);
	int r = build_record_begin(b, &e);
	if (r == 0)
		r = write_files(b, &e);
	if (!says(b, "failing"))
		b->record.code_bytes = 1000;
	if (says(b, "fetched"))
		fetch_artifact(b);
	if (r == 0)
		write_build_log(b);
	if (r == 0 && says(b, "failing"))
		r = build_record_failure(b->en, &b->image, &b->version, &b->record, "The container image build failed.", &e);
	else if (r == 0)
		r = build_record_success(b, &e);
	if (r == 0)
		r = store_add_stage(b->en->store, subject, "build.container", b->version.created_ms, 1500000, "5 steps", &e);
	if (r < 0)
		fprintf(stderr, "build of %s: %s\n", subject, e.message);
	build_free(b);
}

int build_queue(struct engine *en, struct build *b, struct error *e) {
	(void)en;
	(void)e;
	if (says(b, "pending"))
		build_free(b);
	else if (!says(b, "slow") || worker_submit(run_build, b) < 0)
		run_build(b);
	return 0;
}

int builder_prepare(struct engine *en, struct error *e) {
	(void)en;
	(void)e;
	return 0;
}

// The assets: a manifest as set-up writes it, and a system disk.
static int make_assets(struct engine *en, struct error *e) {
	static const char manifest[] =
		"{\"assets\":{\"kernel\":{\"sha256\":\"1\"},\"guest.initrd\":{\"sha256\":\"2\"},\"system\":{\"sha256\":\"3\"},"
		"\"builder\":{\"sha256\":\"4\"},\"bases\":{\"sha256\":\"5\"}},\"baseImages\":["
		"{\"name\":\"debian\",\"version\":\"1\",\"createdMs\":1750000000123},"
		"{\"name\":\"python\",\"version\":\"1\",\"createdMs\":1750000000456}]}";
	char path[320];
	snprintf(en->config.assets_folder, sizeof(en->config.assets_folder), "%.240s/assets", en->config.state_folder);
	int r = make_folders(en->config.assets_folder, 0750, e);
	snprintf(path, sizeof(path), "%s/assets.json", en->config.assets_folder);
	if (r == 0)
		r = write_file_durably(path, manifest, sizeof(manifest) - 1, 0640, e);
	snprintf(path, sizeof(path), "%s/system.ext4", en->config.assets_folder);
	return r < 0 ? r : write_file_durably(path, "", 0, 0640, e);
}

int neighbours_start(struct engine *en, struct error *e) {
	int r = token_keys_open(en->config.state_folder, &keys, e);
	if (r == 0)
		r = make_assets(en, e);
	return r < 0 ? r : images_start(en, e);
}

// What a guest with an execution role would be given lies in <state>/credentials-<id>.json. Those of a role whose name ends with "expired" are.
static void leave_credentials(struct engine *en, const struct store_microvm *m) {
	struct store_session s;
	char token[SESSION_TOKEN_ROOM], path[400];
	bool expired = strstr(m->config, "expired\"") != NULL;
	if (strstr(m->config, "executionRoleArn") == NULL ||
	    store_mint_session(en->store, m->id, (int64_t)realtime_ms() + (expired ? -1 : 60000), &s, token, NULL) < 0)
		return;
	snprintf(path, sizeof(path), "%s/credentials-%s.json", en->config.state_folder, m->id);
	FILE *f = fopen(path, "we");
	if (f == NULL)
		return;
	fprintf(f, "{\"accessKeyId\":\"%s\",\"secretAccessKey\":\"%s\",\"sessionToken\":\"%s\"}", s.key_id, s.secret, token);
	fclose(f);
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
	if (r->token != NULL)
		r->token->answer = r->answer(en, &m);
	int done = store_add_microvm(en->store, &m, r->token, e);
	if (done == -ENOENT)
		error_named(e, done, "ResourceNotFoundException", "No active version found for MicroVM image %s", m.image_arn);
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
	leave_credentials(en, &m);
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
