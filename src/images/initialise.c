// From an image's disk to its snapshot: a microVM boots, the application starts, says that it is ready, and everything stands still for ever.
//
// With the ready hook the application decides; without it, the snapshot is taken when port 8080 (or hooks.port) accepts connections, and after a few
// seconds at the latest. The microVM writes the disk in place: its clones see what it left there. Then a throw-away clone rehearses a launch:
// `validate` is called in it, and the pages that it uses become the image's working set.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "microvms/agent_client.h"
#include "microvms/events.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BOOT_MS 120000
#define REPLY_MS 60000
#define SETTLE_MAX_MS 5000 // without a ready hook: at most this, scaled
#define SETTLE_LIMIT_MS 30000
#define SETTLE_POLL_MS 200
#define SETTLE_AFTER_MS 300 // from the moment at which it listens to the snapshot

static int boot(struct build *b, struct error *e) {
	int fds[FDS_MAX];
	size_t nfds = 0;
	struct vmm_boot *request = calloc(1, sizeof(*request));
	if (request == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	int disks[2];
	size_t ndisks = 0;
	int r = build_open(b->en->config.assets_folder, "vmlinuz", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(b->en->config.assets_folder, "guest.initrd", O_RDONLY, fds, &nfds, e);
	if (r >= 0)
		r = build_open(b->folder, "console.log", O_RDWR | O_CREAT | O_TRUNC, fds, &nfds, e);
	size_t own = nfds;
	if (r >= 0)
		r = build_open(b->folder, "system.ext4", O_RDONLY, disks, &ndisks, e);
	if (r >= 0)
		r = build_open(b->folder, "disk.ext4", O_RDWR, disks, &ndisks, e);
	if (r >= 0) {
		slot_image_devices(&request->devices, disks[0], disks[1], -1, fds, &nfds);
		build_boot_request(request, b->settings.memory_mib, b->settings.vcpus);
		r = vmm_boot(&b->slot.client, request, fds, nfds, e);
	}
	close_all(fds, own);
	close_all(disks, ndisks);
	free(request);
	return r < 0 ? r : 0;
}

// What the application sees: the image's variables and the service's (spec section 3).
static json_t *application_env(const struct build *b) {
	json_t *env = json_deep_copy(json_object_get(b->config, "environmentVariables"));
	if (!json_is_object(env)) {
		json_decref(env);
		env = json_object();
	}
	json_object_set_new(env, "AWS_LAMBDA_MICROVM_IMAGE_NAME", json_string(b->image.name));
	json_object_set_new(env, "AWS_LAMBDA_MICROVM_IMAGE_ARN", json_string(b->image.arn));
	json_object_set_new(env, "AWS_LAMBDA_MICROVM_IMAGE_VERSION", json_string(b->version.version));
	json_object_set_new(env, "AWS_REGION", json_string(b->en->config.region));
	return env;
}

static int start_application(struct build *b, struct agent *a, struct error *e) {
	int reply_ms = build_time_left(b, scaled_ms(b->en, REPLY_MS));
	int r = agent_call(a, agent_resume_request(true, NULL), reply_ms, NULL, e);
	if (r == 0)
		r = agent_call(a, json_pack("{s:s, s:o}", "op", "network", "nameservers", guest_nameservers(b->en)), reply_ms, NULL, e);
	json_t *request = json_pack("{s:s, s:s, s:o, s:s, s:s}", "op", "start", "disk", "image", "env", application_env(b), "capabilities",
				    b->settings.all_capabilities ? "all" : "default", "hostname", "microvm");
	if (r == 0)
		r = agent_call(a, request, reply_ms, NULL, e);
	else
		json_decref(request);
	return r == -EREMOTEIO ? error_wrap(e, r, "The application could not be started") : r;
}

static int application_ended(const struct build *b, int exit_code, struct error *e) {
	return error_set(
		e, -EREMOTEIO,
		"The application ended with exit code %d before the snapshot could be taken; it must keep running. Its last output: %.200s",
		exit_code, b->log.last_size > 0 ? b->log.last : "(none)");
}

// -EREMOTEIO with a reason when the application has ended. *listens (may be NULL): it listens on some port.
static int check_running(struct build *b, struct agent *a, bool *listens, struct error *e) {
	json_t *reply = NULL;
	int r = agent_call(a, json_pack("{s:s}", "op", "state"), scaled_ms(b->en, REPLY_MS), &reply, e);
	if (r < 0)
		return r;
	const char *state = json_string_value(json_object_get(reply, "application"));
	if (state != NULL && strcmp(state, "exited") == 0) {
		usleep(SETTLE_POLL_MS * 1000); // its last words are on their way
		r = application_ended(b, (int)json_integer_value(json_object_get(reply, "exitCode")), e);
	}
	if (listens != NULL)
		*listens = json_is_true(json_object_get(reply, "listening"));
	json_decref(reply);
	return r;
}

// Without a ready hook: until the application listens somewhere, and a moment more.
static int wait_settled(struct build *b, struct agent *a, struct error *e) {
	int limit = scaled_ms(b->en, SETTLE_MAX_MS);
	uint64_t until = monotonic_ms() + (uint64_t)(limit < SETTLE_LIMIT_MS ? limit : SETTLE_LIMIT_MS);
	bool listens = false;
	int r = 0;
	while (r == 0 && !listens && monotonic_ms() < until) {
		r = check_running(b, a, &listens, e);
		if (r == 0)
			usleep((listens ? SETTLE_AFTER_MS : SETTLE_POLL_MS) * 1000);
	}
	if (r == 0 && !listens)
		output_log_note(&b->log, "the application listens on no port; the snapshot is taken as it is");
	return r == 0 ? check_running(b, a, NULL, e) : r;
}

// Calls a build hook and turns its answer into the service's sentence.
static int call_hook(struct build *b, struct agent *a, enum image_hook hook, struct error *e) {
	struct hook_answer answer;
	int timeout_ms = b->settings.hooks[hook].timeout_ms;
	const char *name = image_hook_names[hook];
	int r = agent_send(a, agent_hook_request(name, b->settings.hook_port, timeout_ms, NULL, true), e);
	if (r == 0)
		r = agent_receive_hook(a, build_time_left(b, timeout_ms + scaled_ms(b->en, REPLY_MS)), &answer, e);
	if (r < 0 || answer.result == HOOK_OK)
		return r;
	if (answer.result == HOOK_EXITED && check_running(b, a, NULL, e) < 0)
		return -EREMOTEIO;
	char reason[REASON_MAX];
	hook_reason(name, true, b->settings.hook_port, timeout_ms, &answer, reason, sizeof(reason));
	return error_set(e, -EREMOTEIO, "%s", reason);
}

static int initialise(struct build *b, struct agent *a, struct error *e) {
	int r = start_application(b, a, e);
	stages_mark(&b->stages, "agent.start");
	if (r == 0 && b->settings.hooks[HOOK_READY].enabled)
		r = call_hook(b, a, HOOK_READY, e);
	else if (r == 0)
		r = wait_settled(b, a, e);
	stages_mark(&b->stages, "hook.ready");
	if (r == 0)
		r = agent_call(a, agent_freeze_request(), scaled_ms(b->en, REPLY_MS), NULL, e);
	stages_mark(&b->stages, "agent.freeze");
	return r;
}

static int boot_and_snapshot(struct build *b, struct error *e) {
	struct agent a = {.fd = -1};
	struct events *events = NULL;
	const struct events_handler handler = {.arg = b};
	int r = slot_take(b->en, b->settings.egress, b->settings.vcpus, b->settings.memory_mib, &b->slot, e);
	if (r == 0)
		r = boot(b, e);
	stages_mark(&b->stages, "vmm.boot");
	if (r == 0)
		r = agent_connect(b->slot.vsock, build_time_left(b, scaled_ms(b->en, BOOT_MS)), &a, e);
	stages_mark(&b->stages, "agent.connect");
	if (r == 0)
		r = events_start(b->en->watcher, b->slot.vsock, &b->log, &handler, &events, e);
	if (r == 0)
		r = initialise(b, &a, e);
	events_stop(events);
	agent_close(&a);
	if (r == 0)
		r = build_snapshot(&b->slot, b->folder, e);
	stages_mark(&b->stages, "vmm.snapshot");
	build_explain(&b->slot, r, e);
	slot_end(b->en, &b->slot);
	stages_mark(&b->stages, "slot.end");
	return r;
}

// What a clone uses while it wakes and answers `validate` is what every microVM of the image is going to use first.
static int keep_working_set(struct build *b, struct error *e) {
	int fd;
	size_t n = 0;
	int r = build_open(b->folder, "working-set", O_RDWR | O_CREAT | O_TRUNC, &fd, &n, e);
	if (r < 0)
		return r;
	r = vmm_working_set(&b->slot.client, fd, e);
	if (r == 0 && fsync(fd) < 0)
		r = error_errno(e, "cannot write the working set to the disk");
	close(fd);
	return r;
}

// In a clone of the snapshot, whose layer goes with its folder.
static int rehearse_in(struct build *b, const char *folder, struct error *e) {
	struct agent a = {.fd = -1};
	struct events *events = NULL;
	const struct events_handler handler = {.arg = b};
	const struct slot_restore restore = {.image_folder = b->folder, .own_folder = folder, .record = true};
	int r = slot_take(b->en, b->settings.egress, b->settings.vcpus, b->settings.memory_mib, &b->slot, e);
	if (r == 0)
		r = slot_restore_image(b->en, &b->slot, &restore, e);
	if (r == 0)
		r = agent_connect(b->slot.vsock, scaled_ms(b->en, REPLY_MS), &a, e);
	if (r == 0)
		r = agent_call(&a, agent_resume_request(true, NULL), scaled_ms(b->en, REPLY_MS), NULL, e);
	if (r == 0)
		r = events_start(b->en->watcher, b->slot.vsock, &b->log, &handler, &events, e);
	stages_mark(&b->stages, "clone.resume");
	if (r == 0 && b->settings.hooks[HOOK_VALIDATE].enabled)
		r = call_hook(b, &a, HOOK_VALIDATE, e);
	stages_mark(&b->stages, "hook.validate");
	if (r == 0)
		r = keep_working_set(b, e);
	events_stop(events);
	agent_close(&a);
	build_explain(&b->slot, r, e);
	slot_end(b->en, &b->slot);
	stages_mark(&b->stages, "working-set");
	return r;
}

// The first launch, before anybody waits for it: shows that the snapshot can be launched from, has the application validate itself, and records
// what a launch needs.
static int rehearse(struct build *b, struct error *e) {
	char folder[IMAGE_PATH + 16];
	snprintf(folder, sizeof(folder), "%s/rehearsal", b->folder);
	output_log_note(&b->log, b->settings.hooks[HOOK_VALIDATE].enabled ? "calling the validate hook in a clone" : "launching a clone");
	int r = make_folders(folder, 0750, e);
	if (r == 0)
		r = rehearse_in(b, folder, e);
	remove_tree(folder, NULL);
	return r;
}

static int sync_disk(const struct build *b, struct error *e) {
	int fd;
	size_t n = 0;
	int r = build_open(b->folder, "disk.ext4", O_RDONLY, &fd, &n, e);
	if (r < 0)
		return r;
	r = fsync(fd) < 0 ? error_errno(e, "cannot write the image's disk") : 0;
	close(fd);
	return r;
}

int image_initialise(struct build *b, struct error *e) {
	char link_path[IMAGE_PATH + 64];
	snprintf(link_path, sizeof(link_path), "%s/system.ext4", b->folder);
	if (link(b->en->images->system_disk, link_path) < 0)
		return error_errno(e, "cannot link the system disk to %s", link_path);
	output_log_note(&b->log, "starting the application");
	int r = boot_and_snapshot(b, e);
	if (r == 0)
		r = sync_disk(b, e);
	stages_mark(&b->stages, "disk.sync");
	if (r == 0)
		r = rehearse(b, e);
	return r;
}
