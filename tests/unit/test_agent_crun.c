// The application's whole life with the real crun: start, output, freeze and thaw, hooks, end, and what the user is told when it cannot start.
//
// Needs root, crun and cgroup v2: works in a mount namespace of its own with cgroup2 mounted where a guest has it. Where that is not to be had the tests
// are skipped. argv[1]: the static program agent_app.
#include "agent_fixture.h"

#include "base/io.h"

#include <linux/capability.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define CAPABILITY_SYS_RESOURCE 24
#define PORT 18473
#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static const char *app_program;
static char image[] = "/tmp/stasis-crun-XXXXXX";
static bool usable, default_usable;

static void put(const char *name, const void *data, size_t size, mode_t mode) {
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", image, name);
	assert_int_equal(write_file_durably(path, data, size, mode, NULL), 0);
}

static void put_config(const char *config) {
	char text[1024];
	int n = snprintf(text, sizeof(text), "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":%s}", config);
	put(".stasis/config.json", text, (size_t)n, 0600);
}

static bool has_capability(int capability) {
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};
	return syscall(SYS_capget, &header, data) == 0 && (data[capability / 32].effective & (1u << (capability % 32))) != 0;
}

// As in a guest: a cgroup2 file system at the usual place, and orphans are ours.
static bool prepare_surroundings(void) {
	if (getuid() != 0 || access("/usr/bin/crun", X_OK) != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return false;
	umount2("/sys/fs/cgroup", MNT_DETACH);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	return mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0 && access("/sys/fs/cgroup/cgroup.procs", W_OK) == 0;
}

static int set_up(void **state) {
	char path[64], *program = NULL;
	size_t size = 0;

	usable = prepare_surroundings();
	// crun raises the limit of locked memory for its device filter, which not even root may do everywhere.
	default_usable = usable && has_capability(CAPABILITY_SYS_RESOURCE);
	if (!usable)
		return 0;
	if (mkdtemp(image) == NULL || chmod(image, 0755) < 0 || read_file(app_program, 64u << 20, &program, &size, NULL) < 0)
		return -1;
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", image, (const char *const[]){".stasis", "etc", "proc"}[i]);
		mkdir(path, 0755);
	}
	put("app", program, size, 0755);
	put("etc/passwd", "root:x:0:0::/root:\nuser:x:1000:1001::/home/user:\n", 49, 0644);
	put("etc/group", "extra:x:44:user\n", 16, 0644);
	free(program);
	return 0;
}

static int tear_down(void **state) {
	if (usable)
		remove_tree(image, NULL);
	return 0;
}

static void clean_up(struct fixture *f) {
	char state[128];
	snprintf(state, sizeof(state), "%s/crun", f->run);
	pid_t pid = fork();
	if (pid == 0) {
		// Mostly there is nothing left to delete, and crun says so.
		close(STDERR_FILENO);
		execl("/usr/bin/crun", "crun", "--root", state, "--cgroup-manager=cgroupfs", "delete", "--force", "app", NULL);
		_exit(127);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	rmdir("/sys/fs/cgroup/app");
}

static void stop(struct fixture *f) {
	char folder[64];
	// crun delete must outlive the agent's folder, which fixture_stop() removes; the agent must not reap crun.
	snprintf(folder, sizeof(folder), "%s", f->folder);
	pid_t main_pid = f->agent.application.main.pid;
	if (main_pid > 0 && f->agent.application.state != APPLICATION_EXITED)
		kill(main_pid, SIGKILL);
	int fd = fixture_control(f);
	json_decref(call(fd, "poweroff", NULL));
	close(fd);
	pthread_join(f->thread, NULL);
	agent_end(&f->agent);
	clean_up(f);
	remove_tree(folder, NULL);
	free(f);
}

static const char *text_of(const json_t *reply, const char *key) {
	const char *text = json_string_value(json_object_get(reply, key));
	return text != NULL ? text : "";
}

// Collects standard output up to the line END.
static void collect(int events, char *to, size_t room) {
	static struct event_frame frame, *e = &frame;
	size_t used = 0;
	to[0] = '\0';
	while (strstr(to, "END\n") == NULL && receive_event(events, e))
		if (e->kind == GUEST_EVENT_STDOUT)
			used += (size_t)snprintf(to + used, room - used, "%s", e->data);
}

static void contains(const char *text, const char *part) {
	if (strstr(text, part) == NULL)
		fail_msg("\"%s\" is missing in:\n%s", part, text);
}

static json_t *start(int fd, const char *capabilities) {
	return call(fd, "start",
		    json_pack("{s:s, s:s, s:s, s:{s:s, s:s}}", "disk", "image", "capabilities", capabilities, "hostname", "micro", "env",
			      "GIVEN", "yes", "IMAGE", "overridden"));
}

static void start_ok(int fd, const char *capabilities) {
	json_t *r = start(fd, capabilities);
	if (!json_is_true(json_object_get(r, "ok")))
		fail_msg("start: %s", text_of(r, "message"));
	assert_true(json_integer_value(json_object_get(r, "pid")) > 1);
	json_decref(r);
}

static void state_is(int fd, const char *wanted) {
	json_t *r = call(fd, "state", NULL);
	assert_string_equal(text_of(r, "application"), wanted);
	json_decref(r);
}

static void root_with_everything(void **state) {
	static char text[65536];
	if (!usable)
		skip();
	put_config("{\"Entrypoint\":[\"/app\"],\"Cmd\":[\"wait\"],\"WorkingDir\":\"/work/here\",\"Env\":[\"IMAGE=mine\",\"PLAIN=a=b\"]}");
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "all");
	collect(events, text, sizeof(text));
	contains(text, "uid=0 gid=0 groups=0\n");
	contains(text, "pid=1 cwd=/work/here\n");
	contains(text, "arg=/app\narg=wait\n");
	contains(text, "env=IMAGE=overridden\n");
	contains(text, "env=PLAIN=a=b\n");
	contains(text, "env=GIVEN=yes\n");
	contains(text, "env=HOME=/root\n");
	contains(text, "env=HOSTNAME=micro\n");
	contains(text, "host=micro ");
	contains(text, "config=hidden root-writable=yes\n");
	contains(text, "NoNewPrivs:\t0\n");
	state_is(fd, "running");
	json_t *r = start(fd, "all");
	assert_string_equal(text_of(r, "code"), "EALREADY");
	json_decref(r);
	close(events);
	close(fd);
	stop(f);
}

static void default_capabilities(void **state) {
	static char text[65536];
	if (!default_usable)
		skip();
	put_config("{\"Entrypoint\":[\"/app\"],\"Cmd\":[\"wait\"]}");
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "default");
	collect(events, text, sizeof(text));
	contains(text, "NoNewPrivs:\t1\n");
	contains(text, "CapEff:\t00000000a80425fb\n");
	close(events);
	close(fd);
	stop(f);
}

static void another_user(void **state) {
	static char text[65536];
	if (!usable)
		skip();
	put_config("{\"Cmd\":[\"/app\",\"wait\"],\"User\":\"user\"}");
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "all");
	collect(events, text, sizeof(text));
	contains(text, "uid=1000 gid=1001 groups=44,1001\n");
	contains(text, "env=HOME=/home/user\n");
	contains(text, "CapEff:\t0000000000000000\n");
	close(events);
	close(fd);
	stop(f);
}

static void freeze_and_thaw(void **state) {
	static struct event_frame frame, *e = &frame;
	if (!usable)
		skip();
	put_config("{\"Cmd\":[\"/app\",\"wait\"]}");
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "all");
	for (int i = 0; i < 20; i++) {
		json_t *r = call(fd, "freeze", NULL);
		if (!json_is_true(json_object_get(r, "ok")))
			fail_msg("freeze: %s", text_of(r, "message"));
		json_decref(r);
		state_is(fd, "frozen");
		json_decref(call(fd, "resume", json_pack("{s:s, s:i, s:s}", "entropy", ENTROPY, "realtimeNs", 1, "generation", "self")));
		state_is(fd, "running");
	}
	// Killed while frozen.
	json_decref(call(fd, "freeze", NULL));
	kill(f->agent.application.main.pid, SIGKILL);
	do
		assert_true(receive_event(events, e));
	while (e->kind != GUEST_EVENT_JSON);
	assert_string_equal(e->data, "{\"event\":\"exited\",\"exitCode\":137}");
	state_is(fd, "exited");
	json_t *r = call(fd, "resume", json_pack("{s:s, s:i, s:s}", "entropy", ENTROPY, "realtimeNs", 1, "generation", "self"));
	assert_true(json_is_true(json_object_get(r, "ok")));
	json_decref(r);
	close(events);
	close(fd);
	stop(f);
}

static void ends_with(const char *config, int exit_code) {
	static struct event_frame frame, *e = &frame;
	char wanted[64];
	bool error_seen = false;

	put_config(config);
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f);
	start_ok(fd, "all");
	int events = fixture_events(f);
	do {
		assert_true(receive_event(events, e));
		error_seen |= e->kind == GUEST_EVENT_STDERR && strcmp(e->data, "to standard error\n") == 0;
	} while (e->kind != GUEST_EVENT_JSON);
	// The end comes behind all output.
	assert_true(error_seen);
	snprintf(wanted, sizeof(wanted), "{\"event\":\"exited\",\"exitCode\":%d}", exit_code);
	assert_string_equal(e->data, wanted);
	json_t *r = call(fd, "state", NULL);
	assert_string_equal(text_of(r, "application"), "exited");
	assert_int_equal(json_integer_value(json_object_get(r, "exitCode")), exit_code);
	json_decref(r);
	r = call(fd, "hook", json_pack("{s:s, s:i, s:i}", "name", "run", "port", PORT, "timeoutMs", 60000));
	assert_string_equal(text_of(r, "result"), "exited");
	json_decref(r);
	close(events);
	close(fd);
	stop(f);
}

static void ends(void **state) {
	if (!usable)
		skip();
	ends_with("{\"Cmd\":[\"/app\",\"exit\",\"0\"]}", 0);
	ends_with("{\"Cmd\":[\"/app\",\"exit\",\"42\"]}", 42);
}

static void hook_of_an_application_that_ends(void **state) {
	char config[128];
	if (!usable)
		skip();
	snprintf(config, sizeof(config), "{\"Cmd\":[\"/app\",\"serve\",\"%d\"]}", PORT);
	put_config(config);
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f);
	start_ok(fd, "all");
	json_t *r = call(fd, "hook", json_pack("{s:s, s:i, s:i, s:b}", "name", "ready", "port", PORT, "timeoutMs", 10000, "retry503", 1));
	assert_string_equal(text_of(r, "result"), "ok");
	json_decref(r);
	// Nobody listens on this port, and the application ends while the hook is still trying.
	send_request(fd, 1, "hook", json_pack("{s:s, s:i, s:i}", "name", "suspend", "port", PORT + 1, "timeoutMs", 60000));
	int other = fixture_control(f);
	send_request(other, 2, "hook", json_pack("{s:s, s:i, s:i}", "name", "terminate", "port", PORT, "timeoutMs", 60000));
	r = receive_reply(fd);
	assert_string_equal(text_of(r, "result"), "exited");
	json_decref(r);
	r = receive_reply(other);
	if (strcmp(text_of(r, "result"), "exited") != 0)
		assert_string_equal(text_of(r, "result"), "broken");
	json_decref(r);
	close(other);
	close(fd);
	stop(f);
}

static void fails_with(const char *config, const char *code, const char *part) {
	put_config(config);
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f);
	json_t *r = start(fd, "all");
	assert_false(json_is_true(json_object_get(r, "ok")));
	assert_string_equal(text_of(r, "code"), code);
	contains(text_of(r, "message"), part);
	json_decref(r);
	state_is(fd, "none");
	// Not for good: another start is possible.
	put_config("{\"Cmd\":[\"/app\",\"wait\"]}");
	start_ok(fd, "all");
	close(fd);
	stop(f);
}

static void cannot_start(void **state) {
	if (!usable)
		skip();
	fails_with("{\"Cmd\":[\"/nothing\"]}", "START_FAILED", "/nothing");
	fails_with("{\"Cmd\":[\"nothing\",\"x\"]}", "START_FAILED", "nothing");
	fails_with("{\"Cmd\":[\"/etc/passwd\"]}", "START_FAILED", "ermission denied");
	fails_with("{\"Cmd\":[\"/app\"],\"WorkingDir\":\"/etc/passwd\"}", "START_FAILED", "check ENTRYPOINT, CMD, USER and WORKDIR");
}

int main(int argc, char **argv) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(root_with_everything),
		cmocka_unit_test(default_capabilities),
		cmocka_unit_test(another_user),
		cmocka_unit_test(freeze_and_thaw),
		cmocka_unit_test(ends),
		cmocka_unit_test(hook_of_an_application_that_ends),
		cmocka_unit_test(cannot_start),
	};
	if (argc != 2)
		return 2;
	app_program = argv[1];
	return cmocka_run_group_tests(tests, set_up, tear_down);
}
