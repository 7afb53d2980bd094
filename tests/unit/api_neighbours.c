// Stand-ins, for tests of the API alone, of what the API calls and is not under test: what happens inside builds, the lives of microVMs, the edge's
// keys. What is recorded, deleted and recovered of images is real; microVMs are recorded in the real store as the real module would, without any
// guest; tokens are real ones.
#include "api_neighbours.h"

#include "base/clock.h"
#include "base/io.h"
#include "edge/edge.h"
#include "images/build.h"
#include "microvms/microvms.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct token_keys *keys;

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

static void set(char *to, size_t room, const char *from) {
	snprintf(to, room, "%s", from);
}
#define SET(field, value) set((field), sizeof(field), (value))

// Builds: what is recorded of them is real, and the files are there, empty. The description of the version says what becomes of it, or else the
// image's name: "pending…" stays in its build, "failing…" fails, "slow…" takes a moment.
static bool says(const struct build *b, const char *word) {
	const char *description = json_string_value(json_object_get(b->config, "description"));
	return strncmp(description == NULL ? b->image.name : description, word, strlen(word)) == 0;
}

static int write_files(const struct build *b, struct error *e) {
	static const char *const names[] = {"build.log", "disk.ext4", "memory", "state"};
	int r = make_folders(b->folder, 0750, e);
	for (size_t i = 0; i < 4 && r == 0; i++) {
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
	if (r == 0 && says(b, "failing"))
		r = build_record_failure(b->en, &b->image, &b->version, &b->record, "The container image build failed.", &e);
	else if (r == 0 && (b->record.code_bytes = 1000) > 0)
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
		r = store_update_microvm(en->store, &m, e);
	}
	store_microvm_clear(&m);
	return r;
}

int microvm_suspend(struct engine *en, const char *id, const char *reason, struct error *e) {
	return change(en, id, "SUSPENDED", reason, e);
}
int microvm_resume(struct engine *en, const char *id, struct error *e) {
	return change(en, id, "RUNNING", "", e);
}
int microvm_terminate(struct engine *en, const char *id, const char *reason, struct error *e) {
	return change(en, id, "TERMINATED", reason, e);
}
