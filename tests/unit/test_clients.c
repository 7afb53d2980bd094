// The clients of VMM, guest agent and watcher against ends that break the rules: cut-off, oversized, unasked-for, late and missing answers; and
// bounded logs, deadlines, image settings.
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "images/connectors.h"
#include "images/settings.h"
#include "logs/log_lines.h"
#include "microvms/agent_client.h"
#include "microvms/events.h"
#include "microvms/output_log.h"
#include "microvms/timers.h"
#include "microvms/vmm_client.h"
#include "microvms/watcher.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static void pair(int type, int fds[2]) {
	assert_int_equal(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, fds), 0);
}

// VMM. ----------------------------------------------------------------------------------------------------------------------------

static void reply_to(int fd, uint32_t kind, uint64_t sequence, int32_t result, uint32_t state, const char *text) {
	struct vmm_reply r = {.header = {VMM_CONTROL_MAGIC, kind, sequence}, .result = result, .state = state, .exit = VMM_EXIT_RESET};
	snprintf(r.text, sizeof(r.text), "%s", text);
	assert_int_equal(send(fd, &r, sizeof(r), 0), sizeof(r));
}

static void test_vmm_answers(void **state) {
	int fds[2];
	struct error e = {0};
	pair(SOCK_SEQPACKET, fds);
	struct vmm v = {.fd = fds[0]};
	reply_to(fds[1], VMM_PAUSE, 99, 0, VMM_STATE_PAUSED, ""); // of another request: skipped
	reply_to(fds[1], VMM_PAUSE, 1, 0, VMM_STATE_PAUSED, "");
	assert_int_equal(vmm_pause(&v, &e), 0);
	assert_int_equal(v.state, VMM_STATE_PAUSED);
	reply_to(fds[1], VMM_RESUME, 2, -EBUSY, VMM_STATE_PAUSED, "not now");
	assert_int_equal(vmm_resume(&v, &e), -EBUSY);
	assert_non_null(strstr(e.message, "not now"));
	// The event comes between.
	reply_to(fds[1], VMM_EVENT_EXITED, 0, 0, VMM_STATE_EXITED, "at 0x1234");
	reply_to(fds[1], VMM_RESUME, 3, -ESRCH, VMM_STATE_EXITED, "gone");
	assert_int_equal(vmm_resume(&v, &e), -ESRCH);
	assert_true(v.ended && v.exit == VMM_EXIT_RESET);
	assert_string_equal(v.reason, "The guest rebooted. at 0x1234");
	assert_true(vmm_look(&v));
	// A message that is too short, then the end.
	assert_int_equal(send(fds[1], "x", 1, 0), 1);
	assert_int_equal(vmm_resume(&v, &e), -EBADMSG);
	close(fds[1]);
	assert_true(vmm_resume(&v, &e) < 0);
	vmm_close(&v);
	assert_int_equal(vmm_resume(&v, &e), -ENOTCONN);
}

static void test_vmm_goes_away(void **state) {
	int fds[2];
	pair(SOCK_SEQPACKET, fds);
	struct vmm v = {.fd = fds[0]};
	assert_false(vmm_look(&v));
	close(fds[1]);
	assert_true(vmm_look(&v));
	assert_string_equal(v.reason, "The VMM of the MicroVM ended unexpectedly.");
	vmm_close(&v);
	struct error e;
	assert_int_equal(vmm_connect("/nonexistent/control.sock", &v, &e), -ENOENT);
	assert_int_equal(v.fd, -1);
}

// Guest agent. ----------------------------------------------------------------------------------------------------------------------

static void frame(int fd, const char *text) {
	uint32_t n = (uint32_t)strlen(text);
	assert_int_equal(send(fd, &n, sizeof(n), 0), sizeof(n));
	assert_int_equal(send(fd, text, n, 0), n);
}

static void test_agent_replies(void **state) {
	int fds[2];
	struct error e = {0};
	struct hook_answer h;
	json_t *reply = NULL;
	pair(SOCK_STREAM, fds);
	struct agent a = {.fd = fds[0], .greeted = true};
	// Two requests on their way, answers in order.
	assert_int_equal(agent_send(&a, agent_resume_request(true, "microvm-1"), &e), 0);
	assert_int_equal(agent_send(&a, agent_hook_request("run", 8080, 1000, "{}", false), &e), 0);
	frame(fds[1], "{\"id\":1,\"ok\":true,\"x\":5}");
	frame(fds[1], "{\"id\":2,\"ok\":true,\"status\":418,\"result\":\"status\",\"elapsedMs\":3}");
	assert_int_equal(agent_receive(&a, 1000, &reply, &e), 0);
	assert_int_equal(json_integer_value(json_object_get(reply, "x")), 5);
	json_decref(reply);
	assert_int_equal(agent_receive_hook(&a, 1000, &h, &e), 0);
	assert_int_equal(h.result, HOOK_STATUS);
	assert_int_equal(h.status, 418);
	// What was sent is what the protocol says.
	uint32_t n;
	char text[4096];
	assert_int_equal(read_full(fds[1], &n, sizeof(n)), 0);
	assert_in_range(n, 1, sizeof(text));
	assert_int_equal(read_full(fds[1], text, n), 0);
	json_t *sent = json_loadb(text, n, 0, NULL);
	assert_string_equal(json_string_value(json_object_get(sent, "op")), "resume");
	assert_string_equal(json_string_value(json_object_get(sent, "generation")), "clone");
	assert_int_equal(strlen(json_string_value(json_object_get(sent, "entropy"))), 128);
	assert_true(llabs(json_integer_value(json_object_get(sent, "realtimeNs")) - (json_int_t)realtime_ns()) < 10000000000);
	json_decref(sent);
	// A refusal.
	assert_int_equal(agent_send(&a, agent_freeze_request(), &e), 0);
	frame(fds[1], "{\"id\":3,\"ok\":false,\"code\":\"EBUSY\",\"message\":\"later\"}");
	assert_int_equal(agent_receive(&a, 1000, NULL, &e), -EREMOTEIO);
	assert_string_equal(e.name, "EBUSY");
	assert_string_equal(e.message, "later");
	agent_close(&a);
	close(fds[1]);
}

static void test_agent_hostile(void **state) {
	static const char *const bad[] = {"{\"id\":7,\"ok\":true}", "[]", "{", "\"x\"", "{\"id\":\"1\",\"ok\":true}", "\xff\xff"};
	struct error e = {0};
	int fds[2];
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		pair(SOCK_STREAM, fds);
		struct agent a = {.fd = fds[0], .greeted = true};
		frame(fds[1], bad[i]);
		assert_int_equal(agent_call(&a, agent_freeze_request(), 1000, NULL, &e), -EBADMSG);
		agent_close(&a);
		close(fds[1]);
	}
	static const uint32_t lengths[] = {0, AGENT_FRAME_MAX + 1, UINT32_MAX};
	for (size_t i = 0; i < 3; i++) {
		pair(SOCK_STREAM, fds);
		struct agent a = {.fd = fds[0], .greeted = true};
		assert_int_equal(send(fds[1], &lengths[i], 4, 0), 4);
		assert_int_equal(agent_call(&a, agent_freeze_request(), 1000, NULL, &e), -EBADMSG);
		agent_close(&a);
		close(fds[1]);
	}
	// Cut off in the middle; and silence.
	pair(SOCK_STREAM, fds);
	struct agent a = {.fd = fds[0], .greeted = true};
	assert_int_equal(send(fds[1], "\x10\0\0\0{\"id\"", 9, 0), 9);
	uint64_t from = monotonic_ms();
	assert_int_equal(agent_call(&a, agent_freeze_request(), 100, NULL, &e), -ETIMEDOUT);
	assert_in_range(monotonic_ms() - from, 95, 2000);
	shutdown(fds[1], SHUT_WR);
	assert_int_equal(agent_receive(&a, 1000, NULL, &e), -ECONNRESET);
	agent_close(&a);
	close(fds[1]);
	// A request that does not fit into a frame.
	pair(SOCK_STREAM, fds);
	a = (struct agent){.fd = fds[0], .greeted = true};
	char *large = malloc(AGENT_FRAME_MAX + 1);
	memset(large, 'a', AGENT_FRAME_MAX);
	large[AGENT_FRAME_MAX] = '\0';
	assert_int_equal(agent_send(&a, agent_hook_request("run", 1, 1, large, false), &e), -EMSGSIZE);
	free(large);
	agent_close(&a);
	close(fds[1]);
}

static void test_agent_not_greeted(void **state) {
	static const struct {
		const char *answer;
		int result;
	} cases[] = {{"ERR ECONNREFUSED\n", -ECONNREFUSED},
		     {"ERR EWHATEVER\n", -ECONNREFUSED},
		     {"NO\n", -EPROTO},
		     {"OK 7\n", -ETIMEDOUT},
		     {"O", -ETIMEDOUT}};
	struct error e;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int fds[2];
		pair(SOCK_STREAM, fds);
		struct agent a = {.fd = fds[0]};
		assert_int_equal(agent_send(&a, agent_freeze_request(), &e), 0); // before anybody accepted
		assert_int_equal(send(fds[1], cases[i].answer, strlen(cases[i].answer), 0), strlen(cases[i].answer));
		assert_int_equal(agent_receive(&a, 50, NULL, &e), cases[i].result);
		agent_close(&a);
		close(fds[1]);
	}
}

static void test_lines(void **state) {
	char line[16];
	int fds[2];
	pair(SOCK_STREAM, fds);
	assert_int_equal(send(fds[1], "OK 5\nrest", 9, 0), 9);
	assert_int_equal(read_line(fds[0], line, sizeof(line), 1000), 4);
	assert_string_equal(line, "OK 5");
	assert_int_equal(recv(fds[0], line, sizeof(line), MSG_DONTWAIT), 4); // what follows is still there
	assert_int_equal(send(fds[1], "0123456789abcdefgh", 18, 0), 18);
	assert_int_equal(read_line(fds[0], line, sizeof(line), 1000), -EMSGSIZE);
	close(fds[1]);
	close(fds[0]);
}

static void test_reasons(void **state) {
	char text[512];
	struct hook_answer a = {.result = HOOK_TIMEOUT};
	hook_reason("ready", true, 8080, 300000, &a, text, sizeof(text));
	assert_string_equal(text, "Ready hook invocation timed out after PT5M");
	a = (struct hook_answer){.result = HOOK_STATUS, .status = 404};
	hook_reason("ready", true, 8080, 300000, &a, text, sizeof(text));
	assert_string_equal(text, "Ready hook check failed: the application returned a client error (HTTP 4xx) response");
	a.status = 500;
	hook_reason("suspend", false, 8080, 1000, &a, text, sizeof(text));
	assert_string_equal(
		text, "Suspend lifecycle hook returned HTTP status 500. Please check your hook endpoint and application logs for more "
		      "details.");
	a = (struct hook_answer){.result = HOOK_REFUSED};
	hook_reason("run", false, 8081, 10000, &a, text, sizeof(text));
	assert_string_equal(text, "Run lifecycle hook invocation timed out after PT10S: nothing accepted connections on port 8081.");
}

// Watcher and events. ------------------------------------------------------------------------------------------------------------------

static void count_event(void *arg, uint32_t events) {
	(*(_Atomic int *)arg)++;
}

static void test_watcher(void **state) {
	struct watcher *w;
	struct error e;
	int fds[2];
	int64_t first, second;
	assert_int_equal(watcher_start(&w, &e), 0);
	pair(SOCK_STREAM, fds);
	for (int i = 0; i < 2000; i++) { // added and removed while events are on their way
		_Atomic int seen = 0;
		assert_int_equal(watch_add(w, fds[0], EPOLLIN, count_event, &seen, &first), 0);
		assert_int_equal(send(fds[1], "x", 1, MSG_DONTWAIT), 1);
		watch_remove(w, first);
		int now = seen;
		assert_int_equal(watch_add(w, fds[0], EPOLLIN, count_event, &seen, &second), 0);
		assert_int_not_equal(first, second);
		watch_remove(w, first); // a number that is not in use any more
		watch_remove(w, second);
		assert_true(seen >= now);
		char byte;
		recv(fds[0], &byte, 1, MSG_DONTWAIT);
	}
	watch_remove(w, 0);
	watch_remove(w, INT64_MAX);
	watcher_stop(w);
	close(fds[0]);
	close(fds[1]);
}

static _Atomic int exit_code;

static void on_exited(void *arg, int code) {
	exit_code = code;
}

struct guest_end {
	int listener;
	const char *data;
	size_t size, step;
};

// Speaks the start of the stream, then sends `data` in pieces and hangs up.
static void *guest_end(void *arg) {
	const struct guest_end *g = arg;
	char line[64];
	int fd = accept(g->listener, NULL, NULL);
	assert_true(read_line(fd, line, sizeof(line), 5000) > 0);
	assert_string_equal(line, "CONNECT 1025");
	send(fd, "OK 1\n", 5, 0);
	assert_true(read_line(fd, line, sizeof(line), 5000) > 0);
	assert_string_equal(line, "EVENTS");
	send(fd, "OK\n", 3, 0);
	for (size_t at = 0; at < g->size; at += g->step) {
		size_t n = g->size - at < g->step ? g->size - at : g->step;
		if (send(fd, g->data + at, n, MSG_NOSIGNAL) < 0)
			break;
	}
	close(fd);
	return NULL;
}

static char *follow(const char *data, size_t size, size_t step) {
	char path[] = "/tmp/test_events.XXXXXX", file[64], *text = NULL;
	struct watcher *w;
	struct events *events;
	struct output_log log;
	struct error e;
	const struct events_handler h = {.exited = on_exited};
	assert_non_null(mkdtemp(path));
	snprintf(file, sizeof(file), "%s/sock", path);
	struct guest_end g = {.listener = unix_listen(file, SOCK_STREAM, 1, &e), .data = data, .size = size, .step = step};
	pthread_t thread;
	exit_code = -1;
	assert_int_equal(pthread_create(&thread, NULL, guest_end, &g), 0);
	assert_int_equal(watcher_start(&w, &e), 0);
	char log_path[64];
	snprintf(log_path, sizeof(log_path), "%s/log", path);
	assert_int_equal(output_log_open(&log, log_path, 1 << 20, NULL, &e), 0);
	assert_int_equal(events_start(w, file, &log, &h, &events, &e), 0);
	pthread_join(thread, NULL);
	for (int i = 0; i < 2000 && !events_ended(events); i++)
		usleep(1000);
	assert_true(events_ended(events));
	events_stop(events);
	watcher_stop(w);
	output_log_close(&log);
	char segment[100];
	snprintf(segment, sizeof(segment), "%s/%016x", log_path, 0);
	assert_int_equal(read_file(segment, 1 << 21, &text, NULL, &e), 0);
	close(g.listener);
	remove_tree(path, NULL);
	return text;
}

static size_t add_frame(char *to, uint8_t kind, const char *text) {
	uint32_t length = (uint32_t)strlen(text) + 9;
	uint64_t time = 0;
	memcpy(to, &length, 4);
	to[4] = (char)kind;
	memcpy(to + 5, &time, 8);
	memcpy(to + 13, text, strlen(text));
	return 13 + strlen(text);
}

static void test_events(void **state) {
	char data[4096];
	size_t n = add_frame(data, 1, "one\ntw");
	n += add_frame(data + n, 1, "o\n");
	n += add_frame(data + n, 1, "half");
	n += add_frame(data + n, 2, "bad\n");
	n += add_frame(data + n, 3, "not json");
	n += add_frame(data + n, 9, "unknown kind");
	n += add_frame(data + n, 3, "{\"event\":\"exited\",\"exitCode\":3}");
	n += add_frame(data + n, 1, "");
	n += add_frame(data + n, 1, "last\n");
	for (size_t step = 1; step < 60; step += 7) {
		cleanup_free char *text = follow(data, n, step);
		assert_int_equal(exit_code, 3);
		assert_string_equal(text, "1970-01-01T00:00:00.000Z stdout one\n1970-01-01T00:00:00.000Z stdout two\n"
					  "1970-01-01T00:00:00.000Z stdout half\n1970-01-01T00:00:00.000Z stderr bad\n"
					  "1970-01-01T00:00:00.000Z stdout last\n");
	}
	static const uint32_t lengths[] = {0, 8, 0x7fffffff, UINT32_MAX};
	for (size_t i = 0; i < 4; i++) {
		n = add_frame(data, 1, "before\n");
		memcpy(data + n, &lengths[i], 4);
		memset(data + n + 4, 1, 60);
		cleanup_free char *text = follow(data, n + 64, 64);
		assert_string_equal(text, "1970-01-01T00:00:00.000Z stdout before\n");
	}
}

// Logs. -----------------------------------------------------------------------------------------------------------------------------

static void test_output_log(void **state) {
	char folder[] = "/tmp/test_output.XXXXXX", block[1000], piece[4096];
	struct output_log l;
	struct log_span span;
	struct error e;
	assert_non_null(mkdtemp(folder));
	memset(block, 'x', sizeof(block));
	block[999] = '\n';
	assert_int_equal(output_log_open(&l, folder, 10000, NULL, &e), 0);
	for (int i = 0; i < 100; i++)
		output_log_write(&l, 1, 0, block, sizeof(block));
	assert_int_equal(log_files_span(folder, &span), 0);
	assert_true(span.end > 100000 && span.first > 0);
	assert_in_range(span.end - span.first, 5000, 14000);
	// Positions stay valid: one whose bytes are gone leads to the oldest that are there, and that is the start of a line.
	uint64_t at = 0;
	assert_true(log_files_read(folder, &at, piece, sizeof(piece)) > 0);
	assert_int_equal(at, span.first);
	assert_memory_equal(piece, "1970-01-01T00:00:00.000Z stdout xxx", 35);
	at = span.end + 12345;
	assert_int_equal(log_files_read(folder, &at, piece, sizeof(piece)), 0);
	assert_int_equal(at, span.end);
	// A line that never ends does not get around the limit.
	memset(block, 'y', sizeof(block));
	for (int i = 0; i < 100; i++)
		output_log_write(&l, 1, 0, block, sizeof(block));
	assert_int_equal(log_files_span(folder, &span), 0);
	assert_in_range(span.end - span.first, 5000, 16000);
	output_log_note(&l, "the last word is %s", "kept for reasons");
	assert_non_null(strstr(l.last, "the last word is kept for reasons"));
	output_log_close(&l);
	// It goes on where it was, behind a line that a crash had cut short.
	uint64_t end = span.end;
	assert_int_equal(output_log_open(&l, folder, 10000, NULL, &e), 0);
	output_log_write(&l, 2, UINT64_MAX, "again\n", 6); // a time in the future counts as now
	output_log_close(&l);
	assert_int_equal(log_files_span(folder, &span), 0);
	assert_true(span.end > end);
	remove_tree(folder, NULL);
}

static void test_log_filter(void **state) {
	static const char log[] = "2026-01-01T00:00:00.000Z stdout one\n2026-01-01T00:00:01.000Z stdout two\nmore of two\n"
				  "2026-01-01T00:00:02.000Z stderr three\n";
	const int64_t start = 1767225600000;
	// In pieces of every size the same lines pass.
	for (size_t piece = 26; piece < sizeof(log); piece++) {
		struct log_filter f;
		char got[sizeof(log)] = "", buffer[sizeof(log)];
		size_t n = 0;
		log_filter_start(&f, start + 1000, start + 2000);
		for (size_t at = 0, used; at < sizeof(log) - 1; at += used) {
			size_t size = sizeof(log) - 1 - at < piece ? sizeof(log) - 1 - at : piece;
			memcpy(buffer, log + at, size);
			size_t kept = log_filter_take(&f, buffer, size, &used);
			memcpy(got + n, buffer, kept);
			n += kept;
			assert_true(used > 0);
		}
		assert_string_equal(got, "2026-01-01T00:00:01.000Z stdout two\nmore of two\n");
	}
	int64_t ms;
	char stamp[LOG_STAMP + 1];
	assert_true(log_stamp_parse(log, sizeof(log), &ms));
	assert_int_equal(ms, start);
	log_stamp(start + 12, stamp);
	assert_string_equal(stamp, "2026-01-01T00:00:00.012Z");
	assert_false(log_stamp_parse("2026-01-01 00:00:00.000Z x", 26, &ms));
}

// Deadlines. ---------------------------------------------------------------------------------------------------------------------------

static void test_timers(void **state) {
	enum { N = 500 };
	struct timers t;
	struct timer list[N] = {0};
	bool earlier;
	timers_init(&t);
	assert_int_equal(timers_next(&t), -1);
	assert_null(timers_take(&t, INT64_MAX));
	srand(1);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < N; i++) {
			int64_t due = rand() % 10000, next = timers_next(&t);
			bool was_next = list[i].place != 0 && list[i].due == next;
			assert_int_equal(timers_set(&t, &list[i], due, &earlier), 0);
			if (!was_next)
				assert_int_equal(earlier, next < 0 || due < next);
		}
		for (int i = 0; i < N; i += 3)
			timers_clear(&t, &list[i]);
		timers_clear(&t, &list[0]); // twice is fine
		int64_t last = -1;
		size_t n = 0;
		for (const struct timer *x; (x = timers_take(&t, 8000)) != NULL; n++) {
			assert_true(x->due >= last && x->due <= 8000);
			assert_int_equal(x->place, 0);
			last = x->due;
		}
		size_t expected = 0;
		for (int i = 0; i < N; i++)
			expected += i % 3 != 0 && list[i].due <= 8000;
		assert_int_equal(n, expected);
		assert_true(timers_next(&t) > 8000);
		while (timers_take(&t, INT64_MAX) != NULL)
			;
	}
	timers_free(&t);
}

// Image settings. ------------------------------------------------------------------------------------------------------------------------

static void test_settings(void **state) {
	struct image_settings s;
	struct error e;
	assert_int_equal(image_settings_read("{}", 10, &s, &e), 0);
	assert_int_equal(s.memory_mib, 8192);
	assert_int_equal(s.vcpus, 4);
	assert_int_equal(s.egress.base, LAUNCH_EGRESS_INTERNET);
	assert_false(s.all_capabilities);
	assert_int_equal(s.hooks[HOOK_RUN].timeout_ms, 10000); // the default, scaled
	assert_int_equal(s.hooks[HOOK_READY].timeout_ms, 300000);
	static const char full[] =
		"{\"resources\":[{\"minimumMemoryInMiB\":512}],\"additionalOsCapabilities\":[\"ALL\"],\"hooks\":{\"port\":9000,"
		"\"microvmHooks\":"
		"{\"run\":\"ENABLED\",\"runTimeoutInSeconds\":7,\"suspend\":\"DISABLED\"},\"microvmImageHooks\":{\"ready\":\"ENABLED\"}},"
		"\"egressNetworkConnectors\":[\"arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:NO_EGRESS\"]}";
	assert_int_equal(image_settings_read(full, 10, &s, &e), 0);
	assert_int_equal(s.memory_mib, 2048);
	assert_int_equal(s.vcpus, 1);
	assert_true(s.all_capabilities && s.hooks[HOOK_RUN].enabled && s.hooks[HOOK_READY].enabled && !s.hooks[HOOK_SUSPEND].enabled);
	assert_int_equal(s.hooks[HOOK_RUN].timeout_ms, 7000); // what a user set is never scaled
	assert_int_equal(s.hook_port, 9000);
	assert_int_equal(s.egress.base, LAUNCH_EGRESS_NONE);
	static const char *const bad[] = {"",
					  "[]",
					  "{\"resources\":[{\"minimumMemoryInMiB\":3}]}",
					  "{\"hooks\":{\"port\":70000}}",
					  "{\"hooks\":{\"microvmHooks\":{\"run\":\"ENABLED\"}}}",
					  "{\"hooks\":{\"port\":1,\"microvmHooks\":{\"runTimeoutInSeconds\":61}}}"};
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_true(image_settings_read(bad[i], 1, &s, &e) < 0);
}

static struct egress egress_of(const char *run, uint32_t inherited) {
	struct egress from = {.base = inherited}, to;
	run_egress(run, &from, &to);
	return to;
}

static void test_connectors(void **state) {
	assert_int_equal(egress_of("{}", LAUNCH_EGRESS_NONE).base, LAUNCH_EGRESS_NONE);
	assert_int_equal(egress_of(NULL, LAUNCH_EGRESS_INTERNET).base, LAUNCH_EGRESS_INTERNET);
	assert_int_equal(egress_of("{\"egressNetworkConnectors\":[]}", LAUNCH_EGRESS_INTERNET).base, LAUNCH_EGRESS_INTERNET);
	assert_int_equal(egress_of("{\"egressNetworkConnectors\":[\"arn:x:INTERNET_EGRESS\"]}", LAUNCH_EGRESS_NONE).base,
			 LAUNCH_EGRESS_INTERNET);
	struct egress g = egress_of("{\"egressNetworkConnectors\":[\"arn:x:nc-1\"],\"egressNetworks\":[\"subnet-a\",\"subnet-b\"]}",
				    LAUNCH_EGRESS_INTERNET);
	assert_int_equal(g.base, LAUNCH_EGRESS_NONE);
	assert_int_equal(g.network_count, 2);
	assert_string_equal(g.networks[1], "subnet-b");
	// Networks without a connector are nobody's.
	assert_int_equal(egress_of("{\"egressNetworks\":[\"subnet-a\"]}", LAUNCH_EGRESS_NONE).network_count, 0);
	static const struct {
		const char *list;
		unsigned allowed;
	} ingress[] = {{"[]", INGRESS_HTTP},
		       {"[\"a:HTTP_INGRESS\"]", INGRESS_HTTP},
		       {"[\"a:SHELL_INGRESS\"]", INGRESS_SHELL},
		       {"[\"a:ALL_INGRESS\"]", INGRESS_HTTP | INGRESS_SHELL},
		       {"[\"a:SHELL_INGRESS\",\"a:HTTP_INGRESS\"]", INGRESS_HTTP | INGRESS_SHELL},
		       {"[\"a:NO_INGRESS\"]", 0},
		       {"[7]", 0}};
	for (size_t i = 0; i < sizeof(ingress) / sizeof(ingress[0]); i++) {
		char config[128];
		snprintf(config, sizeof(config), "{\"ingressNetworkConnectors\":%s}", ingress[i].list);
		assert_int_equal(run_ingress(config), ingress[i].allowed);
	}
	assert_int_equal(run_ingress("{}"), INGRESS_HTTP);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_vmm_answers),   cmocka_unit_test(test_vmm_goes_away),     cmocka_unit_test(test_agent_replies),
		cmocka_unit_test(test_agent_hostile), cmocka_unit_test(test_agent_not_greeted), cmocka_unit_test(test_lines),
		cmocka_unit_test(test_reasons),       cmocka_unit_test(test_watcher),           cmocka_unit_test(test_events),
		cmocka_unit_test(test_output_log),    cmocka_unit_test(test_log_filter),        cmocka_unit_test(test_timers),
		cmocka_unit_test(test_settings),      cmocka_unit_test(test_connectors),
	};
	log_set_level(LOG_LEVEL_ERROR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
