// The life of microVMs against peers that speak the real protocols (peers.h) and the real store: run, suspend, resume by API and by
// request, terminate, idle policy, every failure on the way, and what the next stasisd makes of what this one left.
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "microvms/launcher.h"
#include "microvms/lifecycle.h"
#include "peers.h"
#include "stasisd/workers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WAIT_MS 20000

static char root[64];
static struct engine en;
static struct peers *peers;
static uv_loop_t loop;
static pthread_t loop_thread;
static struct store_image image;
static struct store_version version;

static void *run_loop(void *unused) {
	uv_run(&loop, UV_RUN_DEFAULT);
	return NULL;
}

static void write_text(const char *path, const char *text) {
	assert_int_equal(write_file_durably(path, text, strlen(text), 0644, NULL), 0);
}

static void start_engine(int launcher_fd) {
	struct error e = {0};
	char path[128];
	memset(&en, 0, sizeof(en));
	assert_int_equal(config_parse("{}", 2, "test", &en.config, &e), 0);
	snprintf(en.config.state_folder, sizeof(en.config.state_folder), "%.40s/state", root);
	snprintf(en.config.run_folder, sizeof(en.config.run_folder), "%.40s/run", root);
	assert_int_equal(uv_loop_init(&loop), 0);
	en.loop = &loop;
	snprintf(path, sizeof(path), "%s/state", root);
	make_folders(path, 0755, NULL);
	int r = store_open(path, &en.store, &e);
	if (r < 0)
		fail_msg("%s", e.message);
	assert_int_equal(loop_queue_start(&en, &e), 0);
	assert_int_equal(watcher_start(&en.watcher, &e), 0);
	assert_int_equal(launcher_open(launcher_fd, en.watcher, &en.launcher, &e), 0);
	assert_int_equal(pthread_create(&loop_thread, NULL, run_loop, NULL), 0);
}

static void stop_on_loop(void *unused) {
	timers_end(&en);
	loop_queue_stop(&en);
}

// As if stasisd had ended here: nothing of the microVMs is touched.
static void stop_engine(void) {
	assert_true(workers_wait_idle(WAIT_MS));
	loop_submit(&en, stop_on_loop, NULL);
	pthread_join(loop_thread, NULL);
	registry_free(&en);
	launcher_close(en.launcher);
	watcher_stop(en.watcher);
	store_close(en.store);
	assert_int_equal(uv_loop_close(&loop), 0);
}

static void start_lifecycle(void) {
	struct error e = {0};
	if (microvms_start(&en, &e) < 0)
		fail_msg("%s", e.message);
}

static void restart(void) {
	stop_engine();
	start_engine(peers_reconnect(peers));
	start_lifecycle();
}

// A file of a microVM.
static void path_of(const char *id, const char *name, char to[512]) {
	snprintf(to, 512, "%.100s/microvms/%.36s/%.64s", en.config.state_folder, id + 8, name);
}

static void add_image(const char *hooks) {
	struct error e = {0};
	char config[1024], path[256], file[300];
	snprintf(config, sizeof(config), "{\"resources\":[{\"minimumMemoryInMiB\":512}],\"hooks\":%s}", hooks);
	image = (struct store_image){.account = "000000000000", .name = "i", .arn = "arn:i", .state = "CREATED", .created_ms = 1};
	uuid_new(image.uuid);
	snprintf(image.arn, sizeof(image.arn), "arn:%s", image.uuid);
	snprintf(image.name, sizeof(image.name), "%s", image.uuid);
	image.tags = strdup("{}");
	version = (struct store_version){.version = "1.0", .state = "SUCCESSFUL", .status = "ACTIVE", .created_ms = 1};
	memcpy(version.image_uuid, image.uuid, UUID_TEXT);
	version.config = strdup(config);
	struct store_build build = {.version = "1.0", .state = "SUCCESSFUL"};
	uuid_new(build.build_id);
	memcpy(build.image_uuid, image.uuid, UUID_TEXT);
	if (store_add_image(en.store, &image, &version, &build, NULL, &e) < 0)
		fail_msg("%s", e.message);
	snprintf(path, sizeof(path), "%.100s/images/%.36s/1.0", en.config.state_folder, image.uuid);
	assert_int_equal(make_folders(path, 0755, NULL), 0);
	static const char *const files[] = {"disk.ext4", "system.ext4", "memory", "state"};
	for (size_t i = 0; i < 4; i++) {
		snprintf(file, sizeof(file), "%s/%s", path, files[i]);
		write_text(file, strcmp(files[i], "memory") == 0 ? "100" : "state of the image");
	}
}

static int set_up(void **state) {
	char run_folder[96];
	int fd = -1;
	snprintf(root, sizeof(root), "/tmp/test_lifecycle.XXXXXX");
	assert_non_null(mkdtemp(root));
	snprintf(run_folder, sizeof(run_folder), "%s/run", root);
	peers = peers_start(run_folder, &fd);
	assert_non_null(peers);
	start_engine(fd);
	start_lifecycle();
	return 0;
}

static int tear_down(void **state) {
	stop_engine();
	peers_stop(peers);
	store_image_clear(&image);
	store_version_clear(&version);
	return remove_tree(root, NULL);
}

static const char all_hooks[] = "{\"port\":8080,\"microvmHooks\":{\"run\":\"ENABLED\",\"resume\":\"ENABLED\",\"suspend\":\"ENABLED\","
				"\"terminate\":\"ENABLED\"},\"microvmImageHooks\":{\"ready\":\"ENABLED\"}}";

static struct store_microvm get(const char *id) {
	struct store_microvm r = {0};
	struct error e = {0};
	if (store_get_microvm(en.store, id, &r, &e) < 0)
		fail_msg("%s", e.message);
	free(r.config);
	r.config = NULL;
	return r;
}

static void wait_state(const char *id, const char *state) {
	struct store_microvm r;
	for (uint64_t until = monotonic_ms() + WAIT_MS; monotonic_ms() < until; usleep(2000)) {
		r = get(id);
		if (strcmp(r.state, state) == 0)
			return;
	}
	fail_msg("%s is %s (%s), not %s", id, r.state, r.state_reason, state);
}

static void wait_slots(unsigned n) {
	for (uint64_t until = monotonic_ms() + WAIT_MS; monotonic_ms() < until; usleep(2000))
		if (peers_slots(peers) == n)
			return;
	fail_msg("%u slots live, not %u", peers_slots(peers), n);
}

struct policy {
	int64_t idle_s, suspended_s, maximum_s;
	bool auto_resume;
	const char *config; // NULL: "{}"
};

static struct store_microvm run_with(const struct policy *p) {
	struct error e = {0};
	struct store_microvm r = {0};
	const struct microvm_run q = {.account = "000000000000",
				      .image = &image,
				      .version = &version,
				      .maximum_duration_s = p->maximum_s == 0 ? 28800 : p->maximum_s,
				      .has_idle_policy = p->idle_s > 0,
				      .max_idle_s = p->idle_s,
				      .suspended_s = p->suspended_s,
				      .auto_resume = p->auto_resume,
				      .run_hook_payload = "{\"a\":1}",
				      .config = p->config == NULL ? "{}" : p->config};
	if (microvm_run(&en, &q, &r, &e) < 0)
		fail_msg("%s", e.message);
	free(r.config);
	r.config = NULL;
	return r;
}

static struct store_microvm run(void) {
	struct store_microvm r = run_with(&(struct policy){.idle_s = 3600, .suspended_s = 3600, .auto_resume = true});
	assert_string_equal(r.state, "PENDING");
	assert_string_not_equal(r.id + 8, r.endpoint);
	return r;
}

static struct store_microvm run_running(void) {
	struct store_microvm r = run();
	wait_state(r.id, "RUNNING");
	assert_true(workers_wait_idle(WAIT_MS));
	return r;
}

static bool has_file(const char *id, const char *name) {
	char path[512];
	path_of(id, name, path);
	return access(path, F_OK) == 0;
}

struct opened {
	pthread_mutex_t lock;
	pthread_cond_t done;
	int answers;
	enum microvm_open_result result;
	struct microvm_route *route;
	char why[512];
};

static void on_opened(void *arg, enum microvm_open_result result, struct microvm_route *route, const char *why) {
	struct opened *o = arg;
	pthread_mutex_lock(&o->lock);
	o->answers++;
	o->result = result;
	o->route = route;
	snprintf(o->why, sizeof(o->why), "%s", why);
	pthread_cond_broadcast(&o->done);
	pthread_mutex_unlock(&o->lock);
}

#define OPENED \
	{ .lock = PTHREAD_MUTEX_INITIALIZER, .done = PTHREAD_COND_INITIALIZER }

static void wait_opened(struct opened *o, int answers) {
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += WAIT_MS / 1000;
	pthread_mutex_lock(&o->lock);
	while (o->answers < answers)
		if (pthread_cond_timedwait(&o->done, &o->lock, &until) == ETIMEDOUT)
			break;
	assert_int_equal(o->answers, answers);
	pthread_mutex_unlock(&o->lock);
}

// Opens an endpoint, checks the answer, and lets it go again.
static void open_expecting(const char *endpoint, enum microvm_open_result expected) {
	struct opened o = OPENED;
	microvm_open(&en, endpoint, on_opened, &o);
	wait_opened(&o, 1);
	assert_int_equal(o.result, expected);
	if (o.route != NULL) {
		assert_int_equal(microvm_route_latest(o.route), MICROVM_AWAKE);
		assert_int_equal(access(microvm_route_vsock(o.route), F_OK), 0);
		microvm_route_release(o.route);
	} else {
		assert_int_not_equal(expected, MICROVM_OPEN_OK);
	}
}

// Tests. ------------------------------------------------------------------------------------------------------------------------

static void test_whole_life(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	struct store_microvm r = run_running();
	assert_int_equal(peers_counter(peers), 101); // the image's, and the run hook's one
	open_expecting(r.endpoint, MICROVM_OPEN_OK);
	peers_write(peers, "hello\nworld\n");

	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_string_equal(get(r.id).state, "SUSPENDED");
	assert_string_equal(get(r.id).vmm, "");
	assert_true(get(r.id).suspended_at_ms > 0);
	assert_true(has_file(r.id, "state") && has_file(r.id, "memory") && has_file(r.id, "layer") && !has_file(r.id, "state.new"));
	wait_slots(0);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0); // idempotent

	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	assert_string_equal(get(r.id).state, "RUNNING");
	assert_int_equal(peers_counter(peers), 103); // run, suspend, resume
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	assert_false(has_file(r.id, "state") || has_file(r.id, "memory")); // they do not fit the disk any more
	open_expecting(r.endpoint, MICROVM_OPEN_OK);

	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	open_expecting(r.endpoint, MICROVM_OPEN_OK); // wakes it
	assert_int_equal(peers_counter(peers), 105);
	assert_string_equal(get(r.id).state, "RUNNING");

	char path[512];
	cleanup_free char *log = NULL;
	snprintf(path, sizeof(path), "%.100s/logs/%.36s/%016x", en.config.state_folder, r.id + strlen("microvm-"), 0);
	assert_int_equal(read_file(path, 4096, &log, NULL, NULL), 0);
	assert_non_null(strstr(log, "stdout hello\n2023-11-14T22:13:20.000Z stdout world\n"));

	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0);
	open_expecting(r.endpoint, MICROVM_OPEN_GONE);
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "Success.");
	assert_true(get(r.id).terminated_ms > 0);
	assert_int_equal(peers_hook_calls(peers, "terminate"), 1);
	wait_slots(0);
	assert_false(has_file(r.id, ""));
	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0);
	assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
	assert_string_equal(e.name, "ValidationException");
	assert_non_null(strstr(e.message, "has been terminated and its state cannot be changed."));
	open_expecting(r.endpoint, MICROVM_OPEN_GONE);
}

static void test_unknown(void **state) {
	struct error e = {0};
	char id[48], text[STATE_TEXT];
	open_expecting("11111111-1111-4111-8111-111111111111", MICROVM_OPEN_UNKNOWN);
	assert_false(microvm_find_endpoint(&en, "11111111-1111-4111-8111-111111111111", id, text));
	assert_int_equal(microvm_resume(&en, "microvm-no", &e), -ENOENT);
	assert_string_equal(e.name, "ResourceNotFoundException");
	assert_string_equal(e.message, "MicroVM not found: microvm-no");
}

static void test_run_fails(void **state) {
	static const struct {
		enum fault fault;
		const char *reason;
	} cases[] = {{FAULT_TAKE, "no slot is left"},
		     {FAULT_RESTORE, "refused to restore"},
		     {FAULT_AGENT_MUTE, "the guest agent"}, // did not answer, or was gone when the hook was sent
		     {FAULT_DIE_IN_RESUME, "The VMM of the MicroVM ended unexpectedly."}};
	add_image(all_hooks);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		peers_fail(peers, cases[i].fault, 1);
		struct store_microvm r = run();
		wait_state(r.id, "TERMINATED");
		if (strstr(get(r.id).state_reason, cases[i].reason) == NULL)
			fail_msg("case %zu: %s", i, get(r.id).state_reason);
		wait_slots(0);
		assert_false(has_file(r.id, ""));
	}
}

static void test_run_hook_fails(void **state) {
	add_image(all_hooks);
	peers_hook_status(peers, "run", 400);
	struct store_microvm r = run();
	open_expecting(r.endpoint, MICROVM_OPEN_GONE); // held until it was clear
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason,
			    "Run lifecycle hook returned HTTP status 400. Please check your hook endpoint and application "
			    "logs for more details.");
	peers_hook_status(peers, "run", 0);
	r = run();
	wait_state(r.id, "TERMINATED");
	assert_non_null(strstr(get(r.id).state_reason, "Run lifecycle hook invocation timed out after PT1S"));
	assert_int_equal(peers_hook_calls(peers, "terminate"), 0);
}

static void test_requests_wait(void **state) {
	struct error e = {0};
	struct opened o = OPENED;
	add_image(all_hooks);
	peers_hook_delay(peers, 100);
	struct store_microvm r = run();
	for (int i = 0; i < 20; i++)
		open_expecting(r.endpoint, MICROVM_OPEN_OK);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	struct opened many[50];
	for (int i = 0; i < 50; i++) {
		many[i] = (struct opened)OPENED;
		microvm_open(&en, r.endpoint, on_opened, &many[i]);
	}
	for (int i = 0; i < 50; i++) {
		wait_opened(&many[i], 1);
		assert_int_equal(many[i].result, MICROVM_OPEN_OK);
		microvm_route_release(many[i].route);
	}
	assert_int_equal(peers_hook_calls(peers, "resume"), 1); // one resume for all
	assert_int_equal(peers_slots(peers), 1);

	// A request that the application has not begun to answer is waited for, and then sleeps with the microVM.
	microvm_open(&en, r.endpoint, on_opened, &o);
	wait_opened(&o, 1);
	microvm_route_asked(o.route);
	uint64_t from = monotonic_ms();
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_in_range(monotonic_ms() - from, DRAIN_MS - 100, DRAIN_MS + 5000);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	// One that is being answered, or a stream, is not, when it is silent.
	microvm_route_answered(o.route);
	from = monotonic_ms();
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_in_range(monotonic_ms() - from, 0, DRAIN_MS - 1000);
	microvm_route_release(o.route);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
}

// What a follower is told, and how the VMM was when it was told.
struct followed {
	struct microvm_follower follower;
	struct microvm_route *route;
	_Atomic unsigned count;
	enum microvm_news news[32];
	unsigned slots[32];
	bool vsock[32];
};

static void on_news(struct microvm_follower *f, enum microvm_news news, const char *why) {
	struct followed *w = (struct followed *)(void *)f;
	assert_true(w->count < 32);
	w->news[w->count] = news;
	w->slots[w->count] = peers_slots(peers);
	w->vsock[w->count] = access(microvm_route_vsock(w->route), F_OK) == 0;
	w->count++;
}

static void follow(void *arg) {
	struct followed *w = arg;
	microvm_route_follow(w->route, &w->follower);
	assert_ptr_equal(microvm_route_follower(w->route), &w->follower);
	assert_int_equal(microvm_route_latest(w->route), MICROVM_AWAKE);
	w->count = 0;
}

static void wake(void *arg) {
	struct followed *w = arg;
	microvm_route_wake(w->route);
	microvm_route_wake(w->route); // counts once
}

static void leave(void *arg) {
	struct followed *w = arg;
	microvm_route_leave(w->route);
	w->count++;
}

static void wait_news(struct followed *w, unsigned n, enum microvm_news last) {
	for (uint64_t until = monotonic_ms() + WAIT_MS; w->count < n && monotonic_ms() < until;)
		usleep(1000);
	assert_int_equal(w->count, n);
	assert_int_equal(w->news[n - 1], last);
}

static void test_followers_know(void **state) {
	struct error e = {0};
	struct opened o = OPENED;
	add_image(all_hooks);
	struct store_microvm r = run_running();
	microvm_open(&en, r.endpoint, on_opened, &o);
	wait_opened(&o, 1);
	struct followed w = {.follower.news = on_news, .route = o.route, .count = 99};
	loop_submit(&en, follow, &w);
	while (w.count == 99)
		usleep(1000);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	wait_news(&w, 2, MICROVM_SLEEPS);
	assert_int_equal(w.news[0], MICROVM_HALTS);
	assert_true(w.slots[0] == 1 && w.slots[1] == 1); // the VMM was still there
	// A resume that fails is news for who asked, and the next may succeed.
	peers_fail(peers, FAULT_RESTORE, 1);
	loop_submit(&en, wake, &w);
	wait_news(&w, 3, MICROVM_SLEEPS_ON);
	peers_hook_status(peers, "resume", 500);
	loop_submit(&en, wake, &w);
	wait_news(&w, 4, MICROVM_SLEEPS_ON); // suspended anew behind its back
	peers_hook_status(peers, "resume", 200);
	loop_submit(&en, wake, &w);
	wait_news(&w, 5, MICROVM_AWAKE);
	assert_true(w.vsock[4]);
	assert_string_equal(get(r.id).state, "RUNNING");
	// A suspend that fails: it was halted, and is awake.
	assert_true(workers_wait_idle(WAIT_MS));
	peers_fail(peers, FAULT_SNAPSHOT, 1);
	assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
	wait_news(&w, 7, MICROVM_AWAKE);
	assert_int_equal(w.news[5], MICROVM_HALTS);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0);
	wait_state(r.id, "TERMINATED");
	wait_news(&w, 10, MICROVM_ENDS);
	microvm_route_release(o.route);
	loop_submit(&en, leave, &w);
	while (w.count == 10)
		usleep(1000);
}

static void test_waking_waits_without_auto_resume(void **state) {
	struct error e = {0};
	struct opened o = OPENED;
	add_image("null");
	struct store_microvm r = run_with(&(struct policy){0});
	wait_state(r.id, "RUNNING");
	microvm_open(&en, r.endpoint, on_opened, &o);
	wait_opened(&o, 1);
	struct followed w = {.follower.news = on_news, .route = o.route, .count = 99};
	loop_submit(&en, follow, &w);
	while (w.count == 99)
		usleep(1000);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	loop_submit(&en, wake, &w);
	usleep(100000);
	wait_news(&w, 2, MICROVM_SLEEPS);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	wait_news(&w, 3, MICROVM_AWAKE);
	microvm_route_release(o.route);
	loop_submit(&en, leave, &w);
	while (w.count == 3)
		usleep(1000);
}

static void test_asleep_without_auto_resume(void **state) {
	struct error e = {0};
	char id[48], text[STATE_TEXT];
	add_image("null");
	struct store_microvm r = run_with(&(struct policy){0});
	wait_state(r.id, "RUNNING");
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	open_expecting(r.endpoint, MICROVM_OPEN_ASLEEP);
	assert_true(microvm_find_endpoint(&en, r.endpoint, id, text));
	assert_string_equal(id, r.id);
	assert_string_equal(text, "SUSPENDED");
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	open_expecting(r.endpoint, MICROVM_OPEN_OK);
}

static void test_suspend_fails_and_runs_on(void **state) {
	struct error e = {0};
	static const enum fault faults[] = {FAULT_SNAPSHOT, FAULT_FREEZE};
	add_image(all_hooks);
	struct store_microvm r = run_running();
	for (size_t i = 0; i < 2; i++) {
		peers_fail(peers, faults[i], 1);
		assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
		assert_non_null(strstr(e.message, "runs on"));
		assert_string_equal(e.name, "InternalServerException");
		assert_string_equal(get(r.id).state, "RUNNING");
		assert_false(has_file(r.id, "state") || has_file(r.id, "state.new") || has_file(r.id, "memory.new"));
		open_expecting(r.endpoint, MICROVM_OPEN_OK);
	}
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	assert_int_equal(peers_slots(peers), 1);
}

static void test_suspend_hook_fails(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	struct store_microvm r = run_running();
	peers_hook_status(peers, "suspend", 500);
	assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
	assert_string_equal(get(r.id).state, "TERMINATED");
	assert_non_null(strstr(get(r.id).state_reason, "Suspend lifecycle hook returned HTTP status 500."));
	wait_slots(0);
	assert_false(has_file(r.id, ""));
}

static void test_suspend_hook_times_out(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	struct store_microvm r = run_running();
	peers_hook_status(peers, "suspend", 0);
	assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
	assert_string_equal(get(r.id).state, "TERMINATED");
	assert_non_null(strstr(get(r.id).state_reason, "Suspend lifecycle hook invocation timed out after PT1S"));
}

static void test_vmm_dies_in_suspend(void **state) {
	struct error e = {0};
	add_image("null");
	struct store_microvm r = run_running();
	peers_fail(peers, FAULT_DIE_IN_PAUSE, 1);
	assert_true(microvm_suspend(&en, r.id, NULL, &e) < 0);
	assert_string_equal(get(r.id).state, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "The VMM of the MicroVM ended unexpectedly.");
}

static void test_resume_fails_and_sleeps_on(void **state) {
	struct error e = {0};
	static const enum fault faults[] = {FAULT_TAKE, FAULT_RESTORE, FAULT_AGENT_MUTE};
	add_image(all_hooks);
	struct store_microvm r = run_running();
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	for (size_t i = 0; i < 3; i++) {
		peers_fail(peers, faults[i], 1);
		struct opened o = OPENED;
		microvm_open(&en, r.endpoint, on_opened, &o);
		wait_opened(&o, 1);
		assert_int_equal(o.result, MICROVM_OPEN_FAILED);
		assert_true(o.why[0] != '\0');
		assert_true(workers_wait_idle(WAIT_MS));
		assert_string_equal(get(r.id).state, "SUSPENDED");
		assert_true(has_file(r.id, "state") && has_file(r.id, "memory"));
		wait_slots(0);
	}
	// A hook that fails: suspended anew, with what it was by then.
	peers_hook_status(peers, "resume", 503);
	assert_true(microvm_resume(&en, r.id, &e) < 0);
	assert_non_null(strstr(e.message, "Resume lifecycle hook returned HTTP status 503."));
	assert_string_equal(get(r.id).state, "SUSPENDED");
	peers_hook_status(peers, "resume", 0); // no answer in time
	assert_true(microvm_resume(&en, r.id, &e) < 0);
	assert_non_null(strstr(e.message, "Resume lifecycle hook invocation timed out after PT1S"));
	assert_string_equal(get(r.id).state, "SUSPENDED");
	assert_string_equal(get(r.id).state_reason, "");
	peers_hook_status(peers, "resume", 200);
	wait_slots(0);
	open_expecting(r.endpoint, MICROVM_OPEN_OK);
	assert_int_equal(peers_counter(peers), 105); // run, suspend, resume three times: nothing was forgotten
}

static void test_wakes_take_room_of_the_host(void **state) {
	struct error e = {0};
	struct store_microvm all[6];
	struct opened o[6];
	add_image(all_hooks);
	for (size_t i = 0; i < 6; i++)
		all[i] = run_with(
			&(struct policy){.idle_s = 3600, .suspended_s = 3600, .auto_resume = true, .config = "{\"memoryInMiB\":512}"});
	for (size_t i = 0; i < 6; i++)
		wait_state(all[i].id, "RUNNING");
	microvms_suspend_all(&en);
	wait_slots(0);
	en.config.host_memory_mib = 1200; // two of them
	for (size_t i = 0; i < 6; i++) {
		o[i] = (struct opened)OPENED;
		microvm_open(&en, all[i].endpoint, on_opened, &o[i]);
	}
	size_t awake[6], woken = 0, asleep = 0;
	for (size_t i = 0; i < 6; i++) {
		wait_opened(&o[i], 1);
		if (o[i].result == MICROVM_OPEN_OK) {
			microvm_route_release(o[i].route);
			awake[woken++] = i;
			continue;
		}
		assert_int_equal(o[i].result, MICROVM_OPEN_FAILED);
		assert_non_null(strstr(o[i].why, "not enough memory"));
		asleep = i;
	}
	assert_int_equal(woken, 2);
	assert_true(workers_wait_idle(WAIT_MS));
	assert_string_equal(get(all[asleep].id).state, "SUSPENDED");
	assert_true(microvm_resume(&en, all[asleep].id, &e) < 0);
	assert_string_equal(e.name, "InsufficientCapacityException");
	// Who is awake already needs no room; who goes to sleep makes some.
	assert_int_equal(microvm_resume(&en, all[awake[0]].id, &e), 0);
	assert_int_equal(microvm_suspend(&en, all[awake[0]].id, NULL, &e), 0);
	assert_int_equal(microvm_resume(&en, all[asleep].id, &e), 0);
	// A resume that fails gives its room back.
	peers_fail(peers, FAULT_RESTORE, 1);
	assert_int_equal(microvm_suspend(&en, all[asleep].id, NULL, &e), 0);
	assert_true(microvm_resume(&en, all[asleep].id, &e) < 0);
	assert_int_equal(microvm_resume(&en, all[asleep].id, &e), 0);
	en.config.host_memory_mib = 0;
}

static void test_opens_at_once_when_awake(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	assert_null(microvm_open_now(&en, "nobody"));
	struct store_microvm r = run_running();
	struct microvm_route *route = microvm_open_now(&en, r.endpoint);
	assert_non_null(route);
	assert_string_equal(microvm_route_id(route), r.id);
	microvm_route_release(route);
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_null(microvm_open_now(&en, r.endpoint));
	assert_true(workers_wait_idle(WAIT_MS));
	assert_string_equal(get(r.id).state, "SUSPENDED"); // only microvm_open() wakes
	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0);
	wait_state(r.id, "TERMINATED");
	assert_null(microvm_open_now(&en, r.endpoint));
}

static void test_vmm_dies_in_resume(void **state) {
	struct error e = {0};
	add_image("null");
	struct store_microvm r = run_running();
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	usleep(20000); // more than the file system's clock is coarse
	// The peer's guest has written to its disk at the restore, before it was let go: the snapshot still fits.
	peers_fail(peers, FAULT_DIE_IN_RESUME, 1);
	usleep(20000);
	assert_true(microvm_resume(&en, r.id, &e) < 0);
	const struct store_microvm after = get(r.id);
	if (strcmp(after.state, "SUSPENDED") == 0)
		assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	else
		assert_non_null(strstr(after.state_reason, "while it was being resumed"));
}

static void test_ends_by_itself(void **state) {
	add_image("null");
	struct store_microvm r = run_running();
	peers_guests_power_off(peers);
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "The guest powered off.");
	wait_slots(0);

	r = run_running();
	peers_applications_exit(peers, 7);
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "Container Stopped with Exit Code: 7");
	assert_int_equal(peers_hook_calls(peers, "terminate"), 0);

	r = run_running();
	peers_kill_vmms(peers);
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "The VMM of the MicroVM ended unexpectedly.");
}

static void test_terminate_interrupts(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	peers_hook_delay(peers, 300);
	struct store_microvm r = run(); // its run hook takes long
	usleep(50000);
	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0);
	wait_state(r.id, "TERMINATED");
	assert_string_equal(get(r.id).state_reason, "Success.");
	wait_slots(0);
	assert_false(has_file(r.id, ""));

	peers_hook_delay(peers, 0);
	r = run_running();
	assert_int_equal(microvm_suspend(&en, r.id, NULL, &e), 0);
	assert_int_equal(microvm_terminate(&en, r.id, NULL, &e), 0); // asleep
	wait_state(r.id, "TERMINATED");
	assert_int_equal(peers_hook_calls(peers, "terminate"), 0);
}

static void test_deadlines(void **state) {
	add_image("null");
	// Idle, then forgotten.
	struct store_microvm r = run_with(&(struct policy){.idle_s = 1, .suspended_s = 1, .auto_resume = true});
	wait_state(r.id, "RUNNING");
	uint64_t from = monotonic_ms();
	wait_state(r.id, "SUSPENDED");
	assert_in_range(monotonic_ms() - from, 500, 5000);
	wait_state(r.id, "TERMINATED");
	assert_non_null(strstr(get(r.id).state_reason, "suspended duration"));
	// Activity keeps it awake.
	r = run_with(&(struct policy){.idle_s = 1, .suspended_s = 100});
	struct opened o = OPENED;
	microvm_open(&en, r.endpoint, on_opened, &o);
	wait_opened(&o, 1);
	assert_int_equal(o.result, MICROVM_OPEN_OK);
	for (int i = 0; i < 20; i++) {
		microvm_route_active(o.route);
		usleep(100000);
	}
	assert_string_equal(get(r.id).state, "RUNNING");
	from = monotonic_ms();
	wait_state(r.id, "SUSPENDED"); // although a silent connection is open
	assert_in_range(monotonic_ms() - from, 500, 4000);
	microvm_route_release(o.route);
	// Suspended for zero seconds means terminated; and the maximum duration.
	r = run_with(&(struct policy){.idle_s = 1, .suspended_s = 0});
	struct store_microvm old = run_with(&(struct policy){.maximum_s = 2});
	wait_state(r.id, "TERMINATED");
	wait_state(old.id, "TERMINATED");
	assert_non_null(strstr(get(old.id).state_reason, "maximum duration"));
}

// What the guest says keeps it awake, and counts from when it last was.
static void test_busy(void **state) {
	add_image("null");
	peers_idle(peers, 0);
	struct store_microvm r = run_with(&(struct policy){.idle_s = 1, .suspended_s = 100}),
			     brief = run_with(&(struct policy){.idle_s = 1, .suspended_s = 0});
	wait_state(r.id, "RUNNING");
	usleep(2500000);
	assert_string_equal(get(r.id).state, "RUNNING");
	assert_string_equal(get(brief.id).state, "RUNNING");
	// Half a second ago: half a second more.
	peers_idle(peers, 500);
	usleep(1000000);
	peers_idle(peers, 100000);
	uint64_t from = monotonic_ms();
	wait_state(r.id, "SUSPENDED");
	wait_state(brief.id, "TERMINATED");
	assert_in_range(monotonic_ms() - from, 0, 1500);
}

// The application asks to be suspended, with and without an idle policy.
static void test_suspend_from_inside(void **state) {
	struct error e = {0};
	add_image("null");
	struct store_microvm plain = run_running(),
			     idle = run_with(&(struct policy){.idle_s = 3600, .suspended_s = 100, .auto_resume = true});
	wait_state(idle.id, "RUNNING");
	usleep(600000); // until their events are followed
	peers_ask_for_suspend(peers);
	wait_state(plain.id, "SUSPENDED");
	wait_state(idle.id, "SUSPENDED");
	// Each time anew, and only then.
	assert_int_equal(microvm_resume(&en, plain.id, &e), 0);
	usleep(600000);
	assert_string_equal(get(plain.id).state, "RUNNING");
	peers_ask_for_suspend(peers);
	wait_state(plain.id, "SUSPENDED");
}

#define DAY_NS (86400ll * 1000000000)

// A wall clock that is set by a day, either way, shortens and lengthens nothing.
static void test_clock_is_set(void **state) {
	struct error e = {0};
	add_image("null");
	struct store_microvm awake = run_running(), asleep = run_running();
	assert_int_equal(microvm_suspend(&en, asleep.id, NULL, &e), 0);
	static const int64_t steps[] = {DAY_NS, -DAY_NS};
	for (size_t i = 0; i < 2; i++) {
		wall_clock_step_ns = steps[i];
		struct store_microvm old = run_with(&(struct policy){.maximum_s = 2});
		struct store_microvm idle = run_with(&(struct policy){.idle_s = 1, .suspended_s = 1});
		wall_clock_step_ns = -steps[i];
		uint64_t from = monotonic_ms();
		wait_state(idle.id, "SUSPENDED");
		wait_state(old.id, "TERMINATED");
		wait_state(idle.id, "TERMINATED");
		assert_in_range(monotonic_ms() - from, 1500, 6000);
		assert_string_equal(get(awake.id).state, "RUNNING");
		assert_string_equal(get(asleep.id).state, "SUSPENDED");
	}
	// Across a restart only the records' moments are there: one in the future is taken for now.
	wall_clock_step_ns = -DAY_NS;
	restart();
	usleep(50000);
	assert_string_equal(get(awake.id).state, "RUNNING");
	assert_string_equal(get(asleep.id).state, "SUSPENDED");
	wall_clock_step_ns = DAY_NS;
	restart();
	wait_state(awake.id, "TERMINATED");
	assert_non_null(strstr(get(awake.id).state_reason, "maximum duration"));
	wait_state(asleep.id, "TERMINATED");
	wall_clock_step_ns = 0;
}

static void test_many_at_once(void **state) {
	struct error e = {0};
	struct store_microvm all[40];
	add_image(all_hooks);
	for (size_t i = 0; i < 40; i++)
		all[i] = run();
	for (size_t i = 0; i < 40; i++)
		wait_state(all[i].id, "RUNNING");
	assert_int_equal(peers_slots(peers), 40);
	microvms_suspend_all(&en);
	wait_slots(0);
	for (size_t i = 0; i < 40; i++) {
		assert_string_equal(get(all[i].id).state, "SUSPENDED");
		assert_int_equal(microvm_terminate(&en, all[i].id, NULL, &e), 0);
	}
	for (size_t i = 0; i < 40; i++)
		wait_state(all[i].id, "TERMINATED");
}

static void test_adopt_running_and_suspended(void **state) {
	struct error e = {0};
	add_image(all_hooks);
	struct store_microvm awake = run_running(), asleep = run_running();
	assert_int_equal(microvm_suspend(&en, asleep.id, NULL, &e), 0);
	wait_slots(1);
	restart();
	assert_string_equal(get(awake.id).state, "RUNNING");
	open_expecting(awake.endpoint, MICROVM_OPEN_OK);
	open_expecting(asleep.endpoint, MICROVM_OPEN_OK); // woken
	assert_int_equal(microvm_suspend(&en, awake.id, NULL, &e), 0);
	assert_int_equal(microvm_terminate(&en, asleep.id, NULL, &e), 0);
	wait_state(asleep.id, "TERMINATED");
	assert_int_equal(microvm_resume(&en, awake.id, &e), 0);
}

static void test_adopt_after_reboot(void **state) {
	struct error e = {0};
	char path[512];
	add_image("null");
	struct store_microvm awake = run_running(), asleep = run_running();
	assert_int_equal(microvm_suspend(&en, asleep.id, NULL, &e), 0);
	stop_engine();
	peers_kill_vmms(peers);
	start_engine(peers_reconnect(peers));
	snprintf(path, sizeof(path), "%.100s/microvms/11111111-1111-4111-8111-111111111111", en.config.state_folder);
	make_folders(path, 0755, NULL);
	start_lifecycle();
	assert_string_equal(get(awake.id).state, "TERMINATED");
	assert_string_equal(get(awake.id).state_reason, "The host stopped while the MicroVM was running.");
	assert_false(has_file(awake.id, ""));
	assert_true(access(path, F_OK) < 0);
	assert_string_equal(get(asleep.id).state, "SUSPENDED");
	assert_int_equal(microvm_resume(&en, asleep.id, &e), 0);
}

// Puts a record into the state that a crash would have left it in.
static void set_record(const char *id, const char *text, const char *vmm) {
	struct error e = {0};
	struct store_microvm r = {0};
	assert_int_equal(store_get_microvm(en.store, id, &r, &e), 0);
	snprintf(r.state, sizeof(r.state), "%s", text);
	snprintf(r.vmm, sizeof(r.vmm), "%.36s", vmm);
	assert_int_equal(store_update_microvm(en.store, &r, &e), 0);
	store_microvm_clear(&r);
}

static void test_adopt_interrupted(void **state) {
	struct error e = {0};
	char from[512], to[512];
	add_image(all_hooks);
	struct store_microvm pending = run_running(), suspending = run_running(), complete = run_running(), resuming = run_running(),
			     stale = run_running(), terminating = run_running();
	assert_int_equal(microvm_suspend(&en, complete.id, NULL, &e), 0);
	assert_int_equal(microvm_suspend(&en, resuming.id, NULL, &e), 0);
	assert_int_equal(microvm_suspend(&en, stale.id, NULL, &e), 0);
	wait_slots(3);
	set_record(pending.id, "PENDING", "");
	set_record(suspending.id, "SUSPENDING", get(suspending.id).vmm);
	set_record(complete.id, "SUSPENDING", "22222222-2222-4222-8222-222222222222");
	set_record(terminating.id, "TERMINATING", get(terminating.id).vmm);
	usleep(20000);
	path_of(resuming.id, "state", from);
	path_of(resuming.id, "resuming-33333333-3333-4333-8333-333333333333", to);
	assert_int_equal(rename(from, to), 0);
	path_of(stale.id, "state", from);
	path_of(stale.id, "resuming-33333333-3333-4333-8333-333333333333", to);
	assert_int_equal(rename(from, to), 0);
	usleep(20000);
	path_of(stale.id, "layer", to);
	write_text(to, "the guest wrote after it was let go");
	restart();
	assert_string_equal(get(pending.id).state, "TERMINATED");
	assert_string_equal(get(suspending.id).state, "RUNNING"); // its VMM lives: the suspend is undone
	assert_string_equal(get(complete.id).state, "SUSPENDED");
	assert_string_equal(get(resuming.id).state, "SUSPENDED");
	assert_string_equal(get(stale.id).state, "TERMINATED");
	assert_string_equal(get(terminating.id).state, "TERMINATED");
	wait_slots(1);
	assert_int_equal(microvm_resume(&en, resuming.id, &e), 0);
	assert_int_equal(microvm_resume(&en, complete.id, &e), 0);
	open_expecting(suspending.endpoint, MICROVM_OPEN_OK);
}

// Waits for the n-th credentials and checks whose they are.
static void credentials_are(int n, const char *id, char key_id[32]) {
	struct store_session session;
	json_t *c = NULL;
	int given = 0;
	for (uint64_t until = monotonic_ms() + WAIT_MS; monotonic_ms() < until && given < n; usleep(2000)) {
		json_decref(c);
		given = peers_credentials(peers, &c);
	}
	assert_int_equal(given, n);
	const char *token = json_string_value(json_object_get(c, "token"));
	snprintf(key_id, 32, "%s", json_string_value(json_object_get(c, "accessKeyId")));
	assert_int_equal(store_open_session(en.store, key_id, token, strlen(token), &session, NULL), 0);
	assert_string_equal(session.secret, json_string_value(json_object_get(c, "secretAccessKey")));
	assert_string_equal(session.microvm, id);
	int64_t minutes = (session.expires_ms - (int64_t)realtime_ms()) / 60000;
	assert_in_range(minutes, 53, 55);
	assert_int_equal(strlen(json_string_value(json_object_get(c, "expiration"))), strlen("2026-01-02T03:04:05Z"));
	json_decref(c);
}

static void credentials_become_due(const char *id) {
	struct microvm *m = registry_find(&en, id);
	pthread_mutex_lock(&m->lock);
	m->credentials_due_ms = (int64_t)monotonic_ms();
	pthread_mutex_unlock(&m->lock);
	microvm_schedule(m);
	microvm_unref(m);
}

static void credentials_follow_the_role(void **state) {
	struct error e = {0};
	json_t *none = NULL;
	char first[32], key[32];
	add_image("{}");
	run_running();
	assert_int_equal(peers_credentials(peers, &none), 0);
	const struct policy with_role = {.config = "{\"executionRoleArn\":\"arn:aws:iam::000000000000:role/r\"}"};
	struct store_microvm r = run_with(&with_role);
	wait_state(r.id, "RUNNING");
	credentials_are(1, r.id, first);
	// A short sleep leaves them as they are.
	assert_int_equal(microvm_suspend(&en, r.id, "", &e), 0);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	credentials_are(1, r.id, key);
	// Due while it runs, due while it sleeps, and when a new stasisd does not know.
	credentials_become_due(r.id);
	credentials_are(2, r.id, key);
	assert_string_not_equal(key, first);
	assert_int_equal(microvm_suspend(&en, r.id, "", &e), 0);
	credentials_become_due(r.id);
	usleep(20000);
	credentials_are(2, r.id, key);
	assert_int_equal(microvm_resume(&en, r.id, &e), 0);
	credentials_are(3, r.id, key);
	restart();
	credentials_are(4, r.id, key);
	assert_int_equal(microvm_terminate(&en, r.id, "", &e), 0);
	wait_state(r.id, "TERMINATED");
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(credentials_follow_the_role, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_whole_life, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_unknown, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_run_fails, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_run_hook_fails, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_requests_wait, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_followers_know, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_waking_waits_without_auto_resume, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_asleep_without_auto_resume, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_suspend_fails_and_runs_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_suspend_hook_fails, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_suspend_hook_times_out, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_vmm_dies_in_suspend, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_resume_fails_and_sleeps_on, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_wakes_take_room_of_the_host, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_opens_at_once_when_awake, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_vmm_dies_in_resume, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_ends_by_itself, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_terminate_interrupts, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_deadlines, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_busy, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_suspend_from_inside, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_clock_is_set, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_many_at_once, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_adopt_running_and_suspended, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_adopt_after_reboot, set_up, tear_down),
		cmocka_unit_test_setup_teardown(test_adopt_interrupted, set_up, tear_down),
	};
	log_set_level(getenv("TEST_LOG") != NULL ? LOG_LEVEL_DEBUG : LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
