// The agent's control port, as stasisd meets it: order, limits, malformed frames, builds, the EVENTS hub.
#include "agent_fixture.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static const char *text_of(const json_t *reply, const char *key) {
	const char *text = json_string_value(json_object_get(reply, key));
	return text != NULL ? text : "";
}

static bool is_ok(const json_t *reply) {
	return json_is_true(json_object_get(reply, "ok"));
}

static json_t *build_members(int timeout_ms) {
	return json_pack("{s:i, s:i}", "artifactBytes", 10, "timeoutMs", timeout_ms);
}

static void simple_requests(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	int fd = fixture_control(f);

	json_t *r = call(fd, "hello", NULL);
	assert_true(is_ok(r));
	assert_int_equal(json_integer_value(json_object_get(r, "protocol")), 1);
	json_decref(r);
	r = call(fd, "state", NULL);
	assert_string_equal(text_of(r, "application"), "none");
	assert_true(json_integer_value(json_object_get(json_object_get(r, "memory"), "totalBytes")) > 0);
	assert_null(json_object_get(r, "exitCode"));
	json_decref(r);
	r = call(fd, "resume",
		 json_pack("{s:s, s:I, s:s, s:{s:s}}", "entropy", ENTROPY, "realtimeNs", (json_int_t)1, "generation", "clone", "identity",
			   "microvmId", "m-1"));
	assert_true(is_ok(r));
	json_decref(r);
	r = call(fd, "state", NULL);
	assert_string_equal(text_of(json_object_get(r, "identity"), "microvmId"), "m-1");
	json_decref(r);
	cleanup_close int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(listen(listener, 1), 0); // on a port that the kernel chooses
	r = call(fd, "state", NULL);
	assert_true(json_is_true(json_object_get(r, "listening")));
	json_decref(r);
	r = call(fd, "freeze", NULL);
	assert_true(is_ok(r));
	json_decref(r);
	r = call(fd, "network", json_pack("{s:[s,s]}", "nameservers", "192.0.2.1", "2001:db8::1"));
	assert_true(is_ok(r));
	json_decref(r);
	char *text = NULL;
	assert_int_equal(read_file(f->resolv_conf, 4096, &text, NULL, NULL), 0);
	assert_string_equal(text, "nameserver 192.0.2.1\nnameserver 2001:db8::1\n");
	free(text);
	close(fd);
	fixture_stop(f);
}

static void start_without_image(void **state) {
	char image[] = "/tmp/stasis-image-XXXXXX", path[64];
	assert_non_null(mkdtemp(image));
	struct fixture *f = fixture_start(NULL, image);
	int fd = fixture_control(f);

	json_t *r = call(fd, "start", NULL);
	assert_false(is_ok(r));
	assert_string_equal(text_of(r, "code"), "ENOENT");
	assert_non_null(strstr(text_of(r, "message"), "build the image again"));
	json_decref(r);
	snprintf(path, sizeof(path), "%s/.stasis", image);
	assert_int_equal(make_folders(path, 0755, NULL), 0);
	snprintf(path, sizeof(path), "%s/.stasis/config.json", image);
	assert_int_equal(write_file_durably(path, "{\"config\":{}}", 13, 0644, NULL), 0);
	r = call(fd, "start", NULL);
	assert_string_equal(text_of(r, "code"), "NO_COMMAND");
	json_decref(r);
	static const char with_user[] = "{\"config\":{\"Cmd\":[\"/x\"],\"User\":\"ghost\"}}";
	assert_int_equal(write_file_durably(path, with_user, strlen(with_user), 0644, NULL), 0);
	r = call(fd, "start", NULL);
	assert_string_equal(text_of(r, "code"), "USER_NOT_FOUND");
	json_decref(r);
	r = call(fd, "state", NULL);
	assert_string_equal(text_of(r, "application"), "none");
	json_decref(r);
	close(fd);
	fixture_stop(f);
	remove_tree(image, NULL);
}

static void pipelined(void **state) {
	struct fixture *f = fixture_start("sleep 0.1; echo '{\"ok\":true,\"rootfsBytes\":5}' > $2", "/");
	int fd = fixture_control(f);

	// A slow one first; the quick ones wait for it.
	send_request(fd, 1, "build", build_members(5000));
	for (int i = 2; i <= 500; i++)
		send_request(fd, i, i % 2 ? "hello" : "state", NULL);
	for (int i = 1; i <= 500; i++) {
		json_t *r = receive_reply(fd);
		assert_non_null(r);
		assert_int_equal(json_integer_value(json_object_get(r, "id")), i);
		assert_true(is_ok(r));
		json_decref(r);
	}
	close(fd);
	fixture_stop(f);
}

static void replies_not_taken(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	int fd = fixture_control(f), other = fixture_control(f);
	struct timeval brief = {.tv_usec = 200000};
	int sent = 0;

	// Until the agent does not read any more: what it holds is bounded, and others are served.
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &brief, sizeof(brief));
	char frame[64];
	int n = snprintf(frame + 4, sizeof(frame) - 4, "{\"id\":1,\"op\":\"state\"}");
	uint32_t length = (uint32_t)n;
	memcpy(frame, &length, 4);
	while (sent < 100000 && send(fd, frame, (size_t)n + 4, MSG_NOSIGNAL) == n + 4)
		sent++;
	assert_in_range(sent, 100, 99999);
	json_decref(call(other, "hello", NULL));
	close(fd);
	close(other);
	fixture_stop(f);
}

static void byte_by_byte(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	int fd = fixture_control(f);
	static const char frame[] = "\x15\0\0\0{\"id\":3,\"op\":\"hello\"}";

	for (size_t i = 0; i < 25; i++) {
		assert_int_equal(write_full(fd, frame + i, 1), 0);
		usleep(500);
	}
	json_t *r = receive_reply(fd);
	assert_int_equal(json_integer_value(json_object_get(r, "id")), 3);
	json_decref(r);
	close(fd);
	fixture_stop(f);
}

static void malformed(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	int fd = fixture_control(f);

	send_request_text(fd, "nonsense");
	json_t *r = receive_reply(fd);
	assert_false(is_ok(r));
	assert_string_equal(text_of(r, "code"), "EBADMSG");
	json_decref(r);
	send_request_text(fd, "");
	json_decref(receive_reply(fd));
	send_request_text(fd, "{\"id\":5,\"op\":\"unknown\"}");
	r = receive_reply(fd);
	assert_int_equal(json_integer_value(json_object_get(r, "id")), 5);
	assert_string_equal(text_of(r, "code"), "EOPNOTSUPP");
	json_decref(r);
	// Still there.
	json_decref(call(fd, "hello", NULL));
	// The largest frame, and one more than that.
	char *large = malloc(65537);
	memset(large, ' ', 65536);
	memcpy(large, "{\"id\":6,\"op\":\"hello\"}", 21);
	large[65536] = '\0';
	send_request_text(fd, large);
	r = receive_reply(fd);
	assert_true(is_ok(r));
	json_decref(r);
	free(large);
	assert_int_equal(write_full(fd, "\x01\0\x01\0", 4), 0);
	r = receive_reply(fd);
	assert_string_equal(text_of(r, "code"), "EMSGSIZE");
	json_decref(r);
	assert_null(receive_reply(fd));
	close(fd);
	// Cut off in the middle of a frame.
	fd = fixture_control(f);
	assert_int_equal(write_full(fd, "\x15\0\0\0{\"id\"", 9), 0);
	close(fd);
	fixture_stop(f);
}

static void half_closed(void **state) {
	struct fixture *f = fixture_start("sleep 0.1; echo '{\"ok\":true,\"rootfsBytes\":5}' > $2", "/");
	int fd = fixture_control(f);

	send_request(fd, 1, "build", build_members(5000));
	send_request(fd, 2, "hello", NULL);
	shutdown(fd, SHUT_WR);
	json_t *r = receive_reply(fd);
	assert_int_equal(json_integer_value(json_object_get(r, "rootfsBytes")), 5);
	json_decref(r);
	r = receive_reply(fd);
	assert_int_equal(json_integer_value(json_object_get(r, "id")), 2);
	json_decref(r);
	assert_null(receive_reply(fd));
	close(fd);
	fixture_stop(f);
}

static void too_many_connections(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	int fds[GUEST_CONTROL_MAX + 1];

	for (int i = 0; i <= GUEST_CONTROL_MAX; i++) {
		fds[i] = fixture_control(f);
		if (i < GUEST_CONTROL_MAX)
			json_decref(call(fds[i], "hello", NULL));
	}
	char byte;
	assert_true(recv(fds[GUEST_CONTROL_MAX], &byte, 1, 0) <= 0);
	for (int i = 0; i <= GUEST_CONTROL_MAX; i++)
		close(fds[i]);
	// Until the agent has seen their ends there is no room for another one.
	for (int i = 0; i < 500 && *(volatile size_t *)&f->agent.control_count > 0; i++)
		usleep(10000);
	fixture_stop(f);
}

static json_t *build_with(const char *script, int timeout_ms) {
	struct fixture *f = fixture_start(script, "/");
	int fd = fixture_control(f);
	json_t *r = call(fd, "build", build_members(timeout_ms));
	json_t *after = call(fd, "hello", NULL);
	assert_true(is_ok(after));
	json_decref(after);
	close(fd);
	fixture_stop(f);
	return r;
}

static void build_fails_as(const char *script, int timeout_ms, const char *code, const char *part) {
	json_t *r = build_with(script, timeout_ms);
	assert_false(is_ok(r));
	assert_string_equal(text_of(r, "code"), code);
	if (strstr(text_of(r, "message"), part) == NULL)
		fail_msg("\"%s\" lacks \"%s\"", text_of(r, "message"), part);
	json_decref(r);
}

static void builds(void **state) {
	json_t *r = build_with("grep -q '\"artifactBytes\":10' $1 && echo '{\"ok\":true,\"rootfsBytes\":7,\"more\":\"x\",\"id\":99}' > $2",
			       5000);
	assert_true(is_ok(r));
	assert_int_equal(json_integer_value(json_object_get(r, "rootfsBytes")), 7);
	assert_string_equal(text_of(r, "more"), "x");
	json_decref(r);
	build_fails_as("echo '{\"ok\":false,\"code\":\"DISK_STORAGE_FULL\",\"message\":\"no room\"}' > $2; exit 3", 5000,
		       "DISK_STORAGE_FULL", "no room");
	build_fails_as("echo '{\"ok\":false,\"code\":\"WHATEVER\",\"message\":\"x\"}' > $2", 5000, "INTERNAL_PLATFORM_ERROR",
		       "unknown code");
	build_fails_as("echo '{\"ok\":true}' > $2", 5000, "INTERNAL_PLATFORM_ERROR", "rootfsBytes");
	build_fails_as("echo '{\"ok\":true,\"rootfsBytes\":-1}' > $2", 5000, "INTERNAL_PLATFORM_ERROR", "rootfsBytes");
	build_fails_as("echo 'rubbish' > $2", 5000, "INTERNAL_PLATFORM_ERROR", "not valid JSON");
	build_fails_as("head -c 70000 /dev/zero > $2", 5000, "INTERNAL_PLATFORM_ERROR", "no result");
	build_fails_as("exit 4", 5000, "INTERNAL_PLATFORM_ERROR", "status 4");
	build_fails_as("kill -9 $$", 5000, "INTERNAL_PLATFORM_ERROR", "memory");
	build_fails_as(NULL, 5000, "INTERNAL_PLATFORM_ERROR", "cannot run");
}

static void build_times_out(void **state) {
	uint64_t before = monotonic_ms();
	// Its children go with it: the pipe of the output would stay open otherwise.
	build_fails_as("sleep 60 & echo '{\"ok\":true,\"rootfsBytes\":1}' > $2; wait", 100, "CONTAINER_BUILD_FAILED", "too long");
	assert_in_range(monotonic_ms() - before, 100, 5000);
}

static void only_one_build(void **state) {
	struct fixture *f = fixture_start("sleep 0.3; echo '{\"ok\":true,\"rootfsBytes\":1}' > $2", "/");
	int fd = fixture_control(f), other = fixture_control(f);

	send_request(fd, 1, "build", build_members(5000));
	json_decref(call(other, "hello", NULL)); // not blocked by it
	usleep(50000);
	json_t *r = call(other, "build", build_members(5000));
	assert_non_null(strstr(text_of(r, "message"), "running already"));
	json_decref(r);
	r = receive_reply(fd);
	assert_true(is_ok(r));
	json_decref(r);
	close(fd);
	close(other);
	fixture_stop(f);
}

static void build_abandoned(void **state) {
	char marker[96], script[256];
	struct fixture *f = fixture_start("exit 1", "/");
	snprintf(marker, sizeof(marker), "%s/marker", f->folder);
	snprintf(script, sizeof(script), "#!/bin/sh\nsleep 0.5\ntouch %s\n", marker);
	assert_int_equal(write_file_durably(f->build_program, script, strlen(script), 0755, NULL), 0);

	int fd = fixture_control(f);
	send_request(fd, 1, "build", build_members(5000));
	usleep(100000);
	close(fd);
	usleep(800000);
	assert_int_not_equal(access(marker, F_OK), 0);
	fixture_stop(f);
}

// The EVENTS hub, fed by builds.

static void output_in_order(void **state) {
	struct fixture *f = fixture_start(
		"echo before; sleep 0.05; echo err >&2; sleep 0.05; printf after; echo '{\"ok\":true,\"rootfsBytes\":1}' > $2", "/");
	int fd = fixture_control(f);
	struct event_frame *e = malloc(sizeof(*e));

	// Written while nobody listens, delivered later.
	uint64_t before = realtime_ns();
	json_decref(call(fd, "build", build_members(5000)));
	int events = fixture_events(f);
	assert_true(receive_event(events, e));
	assert_int_equal(e->kind, GUEST_EVENT_STDOUT);
	assert_string_equal(e->data, "before\n");
	assert_in_range(e->time_ns, before, realtime_ns());
	assert_true(receive_event(events, e));
	assert_int_equal(e->kind, GUEST_EVENT_STDERR);
	assert_string_equal(e->data, "err\n");
	assert_true(receive_event(events, e));
	assert_string_equal(e->data, "after");
	// The newest connection wins, and gets what comes from now on.
	int newer = fixture_events(f);
	assert_false(receive_event(events, e));
	json_decref(call(fd, "build", build_members(5000)));
	assert_true(receive_event(newer, e));
	assert_string_equal(e->data, "before\n");
	close(events);
	close(newer);
	close(fd);
	free(e);
	fixture_stop(f);
}

static void newest_kept(void **state) {
	struct fixture *f = fixture_start(
		"head -c 1000000 /dev/zero | tr '\\0' x; sleep 0.05; echo END >&2; echo '{\"ok\":true,\"rootfsBytes\":1}' > $2", "/");
	int fd = fixture_control(f);
	struct event_frame *e = malloc(sizeof(*e));
	size_t kept = 0, dropped = 0;

	json_decref(call(fd, "build", build_members(20000)));
	int events = fixture_events(f);
	assert_true(receive_event(events, e));
	assert_int_equal(e->kind, GUEST_EVENT_JSON);
	assert_int_equal(sscanf(e->data, "{\"event\":\"dropped\",\"bytes\":%zu}", &dropped), 1);
	do {
		assert_true(receive_event(events, e));
		if (e->kind == GUEST_EVENT_STDOUT)
			kept += e->size;
	} while (e->kind == GUEST_EVENT_STDOUT);
	assert_string_equal(e->data, "END\n");
	assert_int_equal(kept + dropped, 1000000);
	assert_in_range(kept, GUEST_EVENTS_KEPT - 3 * GUEST_EVENT_BYTES_MAX, GUEST_EVENTS_KEPT);
	close(events);
	close(fd);
	free(e);
	fixture_stop(f);
}

static void slow_reader_loses_nothing(void **state) {
	struct fixture *f = fixture_start("i=0; while [ $i -lt 400 ]; do head -c 10000 /dev/zero | tr '\\0' y; i=$((i+1)); done; echo "
					  "'{\"ok\":true,\"rootfsBytes\":1}' > $2",
					  "/");
	int fd = fixture_control(f), events = fixture_events(f);
	struct event_frame *e = malloc(sizeof(*e));
	size_t sum = 0;

	send_request(fd, 1, "build", build_members(60000));
	usleep(300000);
	while (sum < 4000000) {
		assert_true(receive_event(events, e));
		assert_int_equal(e->kind, GUEST_EVENT_STDOUT);
		sum += e->size;
	}
	json_t *r = receive_reply(fd);
	assert_true(is_ok(r));
	json_decref(r);
	close(events);
	close(fd);
	free(e);
	fixture_stop(f);
}

static void reader_comes_and_goes(void **state) {
	struct fixture *f = fixture_start(
		"i=0; while [ $i -lt 100 ]; do echo line $i; i=$((i+1)); done; echo '{\"ok\":true,\"rootfsBytes\":1}' > $2", "/");
	int fd = fixture_control(f);
	struct event_frame *e = malloc(sizeof(*e));

	for (int i = 0; i < 20; i++) {
		int events = fixture_events(f);
		if (i == 10)
			send_request(fd, 1, "build", build_members(5000));
		close(events);
	}
	json_decref(receive_reply(fd));
	int events = fixture_events(f);
	json_t *r = call(fd, "resume", json_pack("{s:s, s:i, s:s}", "entropy", ENTROPY, "realtimeNs", 1, "generation", "clone"));
	assert_true(is_ok(r));
	json_decref(r);
	close(events);
	close(fd);
	free(e);
	fixture_stop(f);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(simple_requests),
		cmocka_unit_test(start_without_image),
		cmocka_unit_test(pipelined),
		cmocka_unit_test(replies_not_taken),
		cmocka_unit_test(byte_by_byte),
		cmocka_unit_test(malformed),
		cmocka_unit_test(half_closed),
		cmocka_unit_test(too_many_connections),
		cmocka_unit_test(builds),
		cmocka_unit_test(build_times_out),
		cmocka_unit_test(only_one_build),
		cmocka_unit_test(build_abandoned),
		cmocka_unit_test(output_in_order),
		cmocka_unit_test(newest_kept),
		cmocka_unit_test(slow_reader_loses_nothing),
		cmocka_unit_test(reader_comes_and_goes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
