// The application's whole life with the real crun: start, output, freeze and thaw, hooks, end, and what the user is told when it cannot start.
//
// Where agent_container.h cannot be had the tests are skipped. argv[1]: the static program agent_app.
#include "agent_container.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define PORT 18473
#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

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
	if (!container_usable)
		skip();
	container_configure(
		"{\"Entrypoint\":[\"/app\"],\"Cmd\":[\"wait\"],\"WorkingDir\":\"/work/here\",\"Env\":[\"IMAGE=mine\",\"PLAIN=a=b\"]}");
	struct fixture *f = fixture_start(NULL, container_image);
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
	container_stop(f);
}

static void default_capabilities(void **state) {
	static char text[65536];
	if (!container_default_usable)
		skip();
	container_configure("{\"Entrypoint\":[\"/app\"],\"Cmd\":[\"wait\"]}");
	struct fixture *f = fixture_start(NULL, container_image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "default");
	collect(events, text, sizeof(text));
	contains(text, "NoNewPrivs:\t1\n");
	contains(text, "CapEff:\t00000000a80425fb\n");
	close(events);
	close(fd);
	container_stop(f);
}

static void another_user(void **state) {
	static char text[65536];
	if (!container_usable)
		skip();
	container_configure("{\"Cmd\":[\"/app\",\"wait\"],\"User\":\"user\"}");
	struct fixture *f = fixture_start(NULL, container_image);
	int fd = fixture_control(f), events = fixture_events(f);
	start_ok(fd, "all");
	collect(events, text, sizeof(text));
	contains(text, "uid=1000 gid=1001 groups=44,1001\n");
	contains(text, "env=HOME=/home/user\n");
	contains(text, "CapEff:\t0000000000000000\n");
	close(events);
	close(fd);
	container_stop(f);
}

static void freeze_and_thaw(void **state) {
	static struct event_frame frame, *e = &frame;
	if (!container_usable)
		skip();
	container_configure("{\"Cmd\":[\"/app\",\"wait\"]}");
	struct fixture *f = fixture_start(NULL, container_image);
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
	container_stop(f);
}

static void ends_with(const char *config, int exit_code) {
	static struct event_frame frame, *e = &frame;
	char wanted[64];
	bool error_seen = false;

	container_configure(config);
	struct fixture *f = fixture_start(NULL, container_image);
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
	container_stop(f);
}

static void ends(void **state) {
	if (!container_usable)
		skip();
	ends_with("{\"Cmd\":[\"/app\",\"exit\",\"0\"]}", 0);
	ends_with("{\"Cmd\":[\"/app\",\"exit\",\"42\"]}", 42);
}

static void hook_of_an_application_that_ends(void **state) {
	char config[128];
	if (!container_usable)
		skip();
	snprintf(config, sizeof(config), "{\"Cmd\":[\"/app\",\"serve\",\"%d\"]}", PORT);
	container_configure(config);
	struct fixture *f = fixture_start(NULL, container_image);
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
	container_stop(f);
}

static void fails_with(const char *config, const char *code, const char *part) {
	container_configure(config);
	struct fixture *f = fixture_start(NULL, container_image);
	int fd = fixture_control(f);
	json_t *r = start(fd, "all");
	assert_false(json_is_true(json_object_get(r, "ok")));
	assert_string_equal(text_of(r, "code"), code);
	contains(text_of(r, "message"), part);
	json_decref(r);
	state_is(fd, "none");
	// Not for good: another start is possible.
	container_configure("{\"Cmd\":[\"/app\",\"wait\"]}");
	start_ok(fd, "all");
	close(fd);
	container_stop(f);
}

static void cannot_start(void **state) {
	if (!container_usable)
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
	container_program = argv[1];
	return cmocka_run_group_tests(tests, container_set_up, container_tear_down);
}
