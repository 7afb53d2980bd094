// The builder microVM: booted once per host and snapshotted; every build starts from that snapshot and throws its clone away.
//
// Its disks, by serial: `system` (builder.ext4) and `bases` (bases.ext4), read-only; `artifact`, read-only, the zip with zeros behind it so that
// its size is always the same; `output`, which becomes the image's disk; `scratch`, where buildah works. The snapshot belongs to the assets that it was
// made from and to the host's CPU: `builder/key` says which assets, and when a restore fails the snapshot is made anew once.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "microvms/agent_client.h"
#include "microvms/events.h"
#include "store/artifacts.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOOT_MS 120000
#define REPLY_MS 60000
#define BUILD_GRACE_MS 5000

static void builder_folder(const struct engine *en, char to[IMAGE_PATH]) {
	snprintf(to, IMAGE_PATH, "%.300s/builder", en->config.state_folder);
}

static uint64_t artifact_disk_bytes(const struct engine *en) {
	return ((uint64_t)en->config.artifact_limit + 4095) & ~(uint64_t)4095;
}

static uint64_t scratch_bytes(const struct engine *en) {
	return 2 * (uint64_t)en->config.image_disk_limit;
}

// The builder's disks, in the order that its snapshot has them. Takes over nothing.
static void builder_devices(const struct engine *en, struct vmm_devices *d, const int disks[5], int *fds, size_t *nfds) {
	struct vmm_devices network;
	int unused[4];
	size_t none = 0;
	slot_image_devices(&network, -1, -1, -1, unused, &none); // the network and console are those of every microVM
	*d = network;
	d->block_count = 0;
	memset(d->blocks, 0, sizeof(d->blocks));
	vmm_add_block(d, "system", VMM_BLOCK_READ_ONLY, 0, disks[0], -1, fds, nfds);
	vmm_add_block(d, "bases", VMM_BLOCK_READ_ONLY, 0, disks[1], -1, fds, nfds);
	vmm_add_block(d, "artifact", VMM_BLOCK_READ_ONLY, artifact_disk_bytes(en), disks[2], -1, fds, nfds);
	vmm_add_block(d, "output", 0, 0, disks[3], -1, fds, nfds);
	vmm_add_block(d, "scratch", 0, 0, disks[4], -1, fds, nfds);
}

// Opens system, bases and scratch; artifact and output are the caller's.
static int open_disks(const struct engine *en, int artifact, int output, int disks[5], struct error *e) {
	char folder[IMAGE_PATH];
	size_t n = 0;
	builder_folder(en, folder);
	for (int i = 0; i < 5; i++)
		disks[i] = -1;
	int r = build_open(en->config.assets_folder, "builder.ext4", O_RDONLY, disks, &n, e);
	if (r >= 0)
		r = build_open(en->config.assets_folder, "bases.ext4", O_RDONLY, disks, &n, e);
	if (r >= 0)
		disks[4] = r = build_temporary(folder, scratch_bytes(en), e);
	if (r >= 0) {
		disks[2] = artifact;
		disks[3] = output;
	}
	return r < 0 ? r : 0;
}

static void close_disks(int disks[5]) {
	disks[2] = disks[3] = -1; // the caller's
	close_all(disks, 5);
}

static int boot(struct engine *en, struct slot *s, const char *folder, struct error *e) {
	int fds[FDS_MAX], disks[5];
	size_t nfds = 0;
	cleanup_close int artifact = build_temporary(folder, 0, e);
	if (artifact < 0)
		return artifact;
	cleanup_close int output = build_temporary(folder, (uint64_t)en->config.image_disk_limit, e);
	if (output < 0)
		return output;
	struct vmm_boot *request = calloc(1, sizeof(*request));
	if (request == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	int r = build_open(en->config.assets_folder, "vmlinuz", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(en->config.assets_folder, "guest.initrd", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(folder, "console.log", O_RDWR | O_CREAT | O_TRUNC, fds, &nfds, e);
	size_t own = nfds;
	if (r >= 0 && (r = open_disks(en, artifact, output, disks, e)) == 0) {
		builder_devices(en, &request->devices, disks, fds, &nfds);
		build_boot_request(request, (uint32_t)en->config.builder_memory_mib, (uint32_t)en->config.builder_vcpus);
		r = vmm_boot(&s->client, request, fds, nfds, e);
		close_disks(disks);
	}
	close_all(fds, own);
	free(request);
	return r < 0 ? r : 0;
}

// Up to the moment at which a build could begin.
static int wait_ready(struct engine *en, struct slot *s, struct error *e) {
	struct agent a;
	int r = agent_connect(s->vsock, scaled_ms(en, BOOT_MS), &a, e);
	if (r < 0)
		return r;
	r = agent_call(&a, agent_resume_request(true, NULL), scaled_ms(en, REPLY_MS), NULL, e);
	if (r == 0)
		r = agent_call(&a, json_pack("{s:s}", "op", "network"), scaled_ms(en, REPLY_MS), NULL, e);
	if (r == 0)
		r = agent_call(&a, agent_freeze_request(), scaled_ms(en, REPLY_MS), NULL, e);
	agent_close(&a);
	return r;
}

static bool snapshot_is_current(const struct engine *en, const char *folder) {
	char path[IMAGE_PATH + 64];
	cleanup_free char *key = NULL;
	snprintf(path, sizeof(path), "%s/key", folder);
	if (read_file(path, sizeof(en->images->builder_key), &key, NULL, NULL) < 0 || strcmp(key, en->images->builder_key) != 0)
		return false;
	snprintf(path, sizeof(path), "%s/state", folder);
	if (access(path, R_OK) < 0)
		return false;
	snprintf(path, sizeof(path), "%s/memory", folder);
	return access(path, R_OK) == 0;
}

static int make_snapshot(struct engine *en, const char *folder, struct error *e) {
	char path[IMAGE_PATH + 64];
	struct slot slot;
	struct stages stages;
	stages_begin(&stages, "builder", "builder");
	snprintf(path, sizeof(path), "%s/key", folder);
	unlink(path);
	const struct egress internet = {.base = LAUNCH_EGRESS_INTERNET};
	int r = slot_take(en, &internet, (uint32_t)en->config.builder_vcpus, (uint32_t)en->config.builder_memory_mib, &slot, e);
	if (r < 0)
		return r;
	stages_mark(&stages, "launch.take");
	r = boot(en, &slot, folder, e);
	stages_mark(&stages, "vmm.boot");
	if (r == 0)
		r = wait_ready(en, &slot, e);
	stages_mark(&stages, "agent.ready");
	if (r == 0)
		r = build_snapshot(&slot, folder, e);
	stages_mark(&stages, "vmm.snapshot");
	build_explain(&slot, r, e);
	slot_end_later(en, &slot);
	if (r == 0)
		r = write_file_durably(path, en->images->builder_key, strlen(en->images->builder_key), 0640, e);
	stages_flush(en, &stages);
	return r;
}

int builder_prepare(struct engine *en, struct error *e) {
	char folder[IMAGE_PATH];
	builder_folder(en, folder);
	int r = make_folders(folder, 0750, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&en->images->builder_lock);
	if (!snapshot_is_current(en, folder)) {
		log_info("builder.make", LOG_S("folder", folder));
		r = make_snapshot(en, folder, e);
		if (r < 0) {
			error_wrap(e, r, "the builder's snapshot could not be made");
			log_error("builder.make", LOG_S("message", e->message));
		}
	}
	pthread_mutex_unlock(&en->images->builder_lock);
	return r;
}

static int restore(struct build *b, int artifact, int output, struct error *e) {
	char folder[IMAGE_PATH];
	int fds[FDS_MAX], disks[5];
	size_t nfds = 0;
	struct vmm_restore request = {.flags = VMM_RESTORE_CLONE, .memory_layers = 1};
	builder_folder(b->en, folder);
	int r = build_open(folder, "state", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(folder, "memory", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(b->folder, "builder.console", O_RDWR | O_CREAT | O_TRUNC, fds, &nfds, e);
	size_t own = nfds;
	if (r >= 0 && (r = open_disks(b->en, artifact, output, disks, e)) == 0) {
		builder_devices(b->en, &request.devices, disks, fds, &nfds);
		r = vmm_restore(&b->slot.client, &request, fds, nfds, e);
		close_disks(disks);
	}
	close_all(fds, own);
	return r < 0 ? r : 0;
}

static int take_and_restore(struct build *b, int artifact, int output, struct error *e) {
	int r = slot_take(b->en, &b->settings.egress, (uint32_t)b->en->config.builder_vcpus, (uint32_t)b->en->config.builder_memory_mib,
			  &b->slot, e);
	if (r < 0)
		return r;
	stages_mark(&b->stages, "launch.take");
	r = restore(b, artifact, output, e);
	stages_mark(&b->stages, "vmm.restore");
	if (r < 0)
		slot_end(b->en, &b->slot);
	return r;
}

static int start_builder(struct build *b, int artifact, int output, struct error *e) {
	int r = builder_prepare(b->en, e);
	stages_mark(&b->stages, "builder.prepare");
	if (r < 0)
		return r;
	r = take_and_restore(b, artifact, output, e);
	if (r == 0)
		return 0;
	// Another CPU, another VMM: a fresh snapshot fits both.
	log_warn("builder.restore", LOG_S("message", e->message));
	char key[IMAGE_PATH + 64], folder[IMAGE_PATH];
	builder_folder(b->en, folder);
	snprintf(key, sizeof(key), "%s/key", folder);
	pthread_mutex_lock(&b->en->images->builder_lock);
	unlink(key);
	pthread_mutex_unlock(&b->en->images->builder_lock);
	r = builder_prepare(b->en, e);
	return r < 0 ? r : take_and_restore(b, artifact, output, e);
}

// The names that mean base images of ours, each with the full name that it has in the builder's store.
static json_t *base_aliases(const struct engine *en) {
	json_t *given = json_loads(en->config.base_alias, 0, NULL);
	json_t *aliases = json_object();
	const char *name;
	json_t *base;
	char full[128];
	snprintf(full, sizeof(full), "localhost/stasis/%.31s:latest", en->config.default_base);
	json_object_set_new(aliases, "public.ecr.aws/lambda/microvms:al2023-minimal", json_string(full));
	json_object_foreach(given, name, base) {
		const char *text = json_string_value(base);
		if (text == NULL)
			continue;
		snprintf(full, sizeof(full), "localhost/stasis/%.64s%s", text, strchr(text, ':') == NULL ? ":latest" : "");
		json_object_set_new(aliases, name, json_string(strchr(text, '/') == NULL ? full : text));
	}
	json_decref(given);
	return aliases;
}

// Whatever of time is left is the build's; the guest gets a little less, so that it can still say what happened.
static int call_build(struct build *b, struct agent *a, uint64_t artifact_bytes, uint64_t *ret_bytes, struct error *e) {
	json_t *nameservers = guest_nameservers(b->en), *reply = NULL;
	int r = agent_call(a, agent_resume_request(true, NULL), build_time_left(b, scaled_ms(b->en, REPLY_MS)), NULL, e);
	if (r == 0)
		r = agent_call(a, json_pack("{s:s, s:O}", "op", "network", "nameservers", nameservers), scaled_ms(b->en, REPLY_MS), NULL,
			       e);
	stages_mark(&b->stages, "agent.resume");
	int left = build_time_left(b, 3600 * 1000 * 24);
	json_t *request = json_pack("{s:s, s:I, s:s, s:o, s:b, s:O, s:i}", "op", "build", "artifactBytes", (json_int_t)artifact_bytes,
				    "outputFormat", "ext4", "baseAliases", base_aliases(b->en), "network",
				    b->settings.egress.base != LAUNCH_EGRESS_NONE || b->settings.egress.network_count > 0, "nameservers",
				    nameservers, "timeoutMs", left > 2 * BUILD_GRACE_MS ? left - BUILD_GRACE_MS : left);
	if (r == 0)
		r = agent_call(a, request, left + BUILD_GRACE_MS, &reply, e);
	else
		json_decref(request);
	if (r == 0)
		*ret_bytes = (uint64_t)json_integer_value(json_object_get(reply, "rootfsBytes"));
	json_decref(reply);
	json_decref(nameservers);
	stages_mark(&b->stages, "builder.dockerfile");
	if (r == -ETIMEDOUT)
		return error_named(
			e, r, "CONTAINER_BUILD_FAILED",
			"The build took longer than %lld seconds. Make the Dockerfile do less, or raise buildLimitSeconds in the engine's "
			"configuration.",
			(long long)b->en->config.build_limit_s);
	return r;
}

static void on_progress(void *arg, const json_t *event) {
	struct build *b = arg;
	const char *step = json_string_value(json_object_get(event, "step"));
	const char *text = step != NULL ? step : json_string_value(json_object_get(event, "message"));
	if (text != NULL)
		output_log_note(&b->log, "%s", text);
}

static int drive(struct build *b, uint64_t artifact_bytes, uint64_t *ret_bytes, struct error *e) {
	struct agent a = {.fd = -1};
	struct events *events = NULL;
	const struct events_handler handler = {.progress = on_progress, .arg = b};
	int r = agent_connect(b->slot.vsock, scaled_ms(b->en, REPLY_MS), &a, e);
	stages_mark(&b->stages, "agent.connect");
	if (r == 0)
		r = events_start(b->en->watcher, b->slot.vsock, &b->log, &handler, &events, e);
	if (r == 0)
		r = call_build(b, &a, artifact_bytes, ret_bytes, e);
	usleep(100 * 1000); // what the build wrote last is on its way
	events_stop(events);
	agent_close(&a);
	return build_explain(&b->slot, r, e);
}

// One builder from its snapshot to its end, with a blank output disk.
static int attempt(struct build *b, int artifact, int output, uint64_t artifact_bytes, uint64_t *ret_bytes, struct error *e) {
	if (ftruncate(output, 0) < 0 || ftruncate(output, (off_t)b->en->config.image_disk_limit) < 0)
		return error_errno(e, "cannot make the image's disk");
	int r = start_builder(b, artifact, output, e);
	if (r < 0)
		return r;
	r = drive(b, artifact_bytes, ret_bytes, e);
	slot_end(b->en, &b->slot);
	stages_mark(&b->stages, "slot.end");
	return r;
}

int builder_run(struct build *b, uint64_t *ret_bytes, struct error *e) {
	const char *uri = json_string_value(json_object_get(json_object_get(b->config, "codeArtifact"), "uri"));
	cleanup_close int artifact = -1;
	uint64_t size = 0;
	if (uri == NULL)
		return error_named(e, -EINVAL, "S3_INVALID_OBJECT", "The image names no codeArtifact.uri.");
	int r = artifacts_open_for(b->en, b->image.account, uri, &artifact, &size, e);
	stages_mark(&b->stages, "artifact.fetch");
	if (r < 0)
		return r;
	if (size > (uint64_t)b->en->config.artifact_limit)
		return error_named(e, -EFBIG, "S3_INVALID_OBJECT",
				   "The artifact has %llu bytes; at most %lld are accepted (artifactLimitBytes).", (unsigned long long)size,
				   (long long)b->en->config.artifact_limit);
	if (size == 0)
		return error_named(e, -EINVAL, "ARCHIVE_INVALID", "The artifact is empty; it must be a zip with a Dockerfile at its root.");
	output_log_note(&b->log, "artifact %s: %llu bytes", uri, (unsigned long long)size);
	int fds[1];
	size_t n = 0;
	r = build_open(b->folder, "disk.new", O_RDWR | O_CREAT | O_TRUNC, fds, &n, e);
	if (r < 0)
		return r;
	cleanup_close int output = fds[0];
	r = attempt(b, artifact, output, size, ret_bytes, e);
	if (r == -ESHUTDOWN) {
		// The guest ended by itself. Nothing that a Dockerfile may do ends it, an emulated CPU sometimes does: once more, and say so.
		log_warn("builder.again", LOG_S("image", b->image.arn), LOG_S("message", e->message));
		output_log_note(&b->log, "the builder ended (%s): starting the build again", e->message);
		r = attempt(b, artifact, output, size, ret_bytes, e);
	}
	if (r < 0)
		return r;
	char from[IMAGE_PATH + 64], to[IMAGE_PATH + 64];
	snprintf(from, sizeof(from), "%s/disk.new", b->folder);
	snprintf(to, sizeof(to), "%s/disk.ext4", b->folder);
	return rename(from, to) < 0 ? error_errno(e, "cannot rename %s", from) : 0;
}
