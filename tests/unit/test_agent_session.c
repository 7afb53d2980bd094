// Sessions in a real container: a shell on a terminal, programs with their streams and ends, files both ways, and what goes wrong.
//
// Where agent_container.h cannot be had the tests are skipped. argv[1]: the static program agent_app.
#include "agent_container.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/tar.h"
#include "guest/session_request.h"

#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static struct fixture *f;

// What a session said.
struct answer {
	char *output, *error_output;
	size_t output_size, error_size;
	int exit_code; // -1: it failed
	json_t *failure;
};

static void send_frame(int fd, int kind, const void *data, size_t size) {
	uint8_t head[GUEST_SESSION_HEADER];
	uint32_t length = (uint32_t)size + 1;
	memcpy(head, &length, 4);
	head[4] = (uint8_t)kind;
	assert_int_equal(write_full(fd, head, sizeof(head)), 0);
	if (size > 0)
		assert_int_equal(write_full(fd, data, size), 0);
}

static int open_session(void) {
	char answer[3];
	int fd = fixture_stream(f, "SESSION\n");
	read_exactly(fd, answer, 3);
	assert_memory_equal(answer, "OK\n", 3);
	return fd;
}

static int begin(const char *request) {
	int fd = open_session();
	// In two pieces.
	size_t half = strlen(request) / 2;
	send_frame(fd, GUEST_SESSION_REQUEST, request, half);
	send_frame(fd, GUEST_SESSION_REQUEST, request + half, strlen(request) - half);
	send_frame(fd, GUEST_SESSION_BEGIN, NULL, 0);
	return fd;
}

static void append(char **to, size_t *size, const void *data, size_t n) {
	*to = realloc(*to, *size + n + 1);
	memcpy(*to + *size, data, n);
	*size += n;
	(*to)[*size] = '\0';
}

// Takes one frame in; false behind the last one.
static bool receive(int fd, struct answer *a) {
	static char data[GUEST_SESSION_BYTES_MAX + 1];
	uint32_t length;
	uint8_t kind;
	read_exactly(fd, &length, 4);
	read_exactly(fd, &kind, 1);
	assert_in_range(length, 1, GUEST_SESSION_BYTES_MAX + 1);
	read_exactly(fd, data, length - 1);
	data[length - 1] = '\0';
	switch (kind) {
	case GUEST_SESSION_OUTPUT:
		append(&a->output, &a->output_size, data, length - 1);
		return true;
	case GUEST_SESSION_ERROR_OUTPUT:
		append(&a->error_output, &a->error_size, data, length - 1);
		return true;
	case GUEST_SESSION_EXIT:
		assert_int_equal(length, 5);
		memcpy(&a->exit_code, data, 4);
		return false;
	default:
		assert_int_equal(kind, GUEST_SESSION_FAILED);
		a->exit_code = -1;
		a->failure = json_loads(data, 0, NULL);
		assert_non_null(a->failure);
		return false;
	}
}

static void receive_until(int fd, struct answer *a, const char *text) {
	while (a->output == NULL || strstr(a->output, text) == NULL)
		if (!receive(fd, a))
			fail_msg("ended before \"%s\"; so far: %s", text, a->output);
}

static struct answer receive_all(int fd) {
	struct answer a = {0};
	append(&a.output, &a.output_size, "", 0);
	append(&a.error_output, &a.error_size, "", 0);
	while (receive(fd, &a))
		;
	// Nothing behind it.
	char byte;
	assert_int_equal(read(fd, &byte, 1), 0);
	close(fd);
	return a;
}

static void forget(struct answer *a) {
	free(a->output);
	free(a->error_output);
	json_decref(a->failure);
	*a = (struct answer){0};
}

static void expect(int fd, const char *output, const char *error_output, int exit_code) {
	struct answer a = receive_all(fd);
	if (a.failure != NULL)
		fail_msg("failed: %s", json_string_value(json_object_get(a.failure, "message")));
	assert_string_equal(a.output, output);
	assert_string_equal(a.error_output, error_output);
	assert_int_equal(a.exit_code, exit_code);
	forget(&a);
}

static void expect_failure(int fd, const char *code, const char *part) {
	struct answer a = receive_all(fd);
	if (a.failure == NULL)
		fail_msg("ended with %d instead of %s: %s%s", a.exit_code, code, a.output, a.error_output);
	const char *message = json_string_value(json_object_get(a.failure, "message"));
	assert_string_equal(json_string_value(json_object_get(a.failure, "code")), code);
	if (strstr(message, part) == NULL)
		fail_msg("\"%s\" is missing in: %s", part, message);
	forget(&a);
}

static int exec_app(const char *argument) {
	char request[256];
	snprintf(request, sizeof(request), "{\"op\":\"exec\",\"args\":[\"/app\",\"%s\"]}", argument);
	return begin(request);
}

// No session is left, so no process and no descriptor of one either.
static void wait_until_quiet(void) {
	for (int i = 0; i < 10000 && __atomic_load_n(&f->agent.sessions.count, __ATOMIC_RELAXED) != 0; i++)
		usleep(1000);
	assert_int_equal(__atomic_load_n(&f->agent.sessions.count, __ATOMIC_RELAXED), 0);
}

static int set_up(void **state) {
	if (container_set_up(state) < 0)
		return -1;
	if (!container_usable)
		return 0;
	container_configure(
		"{\"Cmd\":[\"/app\",\"wait\"],\"WorkingDir\":\"/work\",\"Env\":[\"IMAGE=mine\",\"PATH=/tools:/\"],\"User\":\"user\"}");
	f = fixture_start(NULL, container_image);
	int fd = fixture_control(f);
	json_t *r = call(fd, "start", json_pack("{s:s, s:s}", "disk", "image", "capabilities", "all"));
	bool fine = json_is_true(json_object_get(r, "ok"));
	if (!fine)
		fprintf(stderr, "start: %s\n", json_string_value(json_object_get(r, "message")));
	json_decref(r);
	close(fd);
	return fine ? 0 : -1;
}

static int tear_down(void **state) {
	if (container_usable)
		container_stop(f);
	return container_tear_down(state);
}

// Tests. ----------------------------------------------------------------------------------------------------------------------

static void runs_programs(void **state) {
	if (!container_usable)
		skip();
	expect(exec_app("both"), "to output", "to error", 5);
	// Found by the image's PATH; ended by a signal.
	int fd = begin("{\"op\":\"exec\",\"args\":[\"app\",\"die\"]}");
	struct answer a = receive_all(fd);
	assert_int_equal(a.exit_code, 137);
	// It is where the application is, and root with its rights; not what the image's USER says.
	assert_non_null(strstr(a.output, "uid=0 gid=0 groups=\n"));
	assert_non_null(strstr(a.output, "cwd=/work\n"));
	assert_non_null(strstr(a.output, "env=IMAGE=mine\n"));
	assert_non_null(strstr(a.output, "env=HOME=/root\n"));
	assert_non_null(strstr(a.output, "host=localhost "));
	assert_non_null(strstr(a.output, "config=hidden "));
	assert_null(strstr(a.output, "env=TERM="));
	assert_null(strstr(a.output, "pid=1 "));
	forget(&a);
	fd = begin(
		"{\"op\":\"exec\",\"args\":[\"app\",\"exit\",\"300\"],\"user\":\"user\",\"folder\":\"/etc\",\"env\":{\"IMAGE\":\"yours\","
		"\"X\":\"a=b\"}}");
	a = receive_all(fd);
	assert_int_equal(a.exit_code, 300 % 256);
	assert_non_null(strstr(a.output, "uid=1000 gid=1001 groups=44\n"));
	assert_non_null(strstr(a.output, "cwd=/etc\n"));
	assert_non_null(strstr(a.output, "env=IMAGE=yours\n"));
	assert_non_null(strstr(a.output, "env=X=a=b\n"));
	assert_non_null(strstr(a.output, "env=HOME=/home/user\n"));
	assert_non_null(strstr(a.output, "CapEff:\t0000000000000000\n"));
	assert_string_equal(a.error_output, "to standard error\n");
	forget(&a);
	wait_until_quiet();
}

static void carries_bytes_both_ways(void **state) {
	if (!container_usable)
		skip();
	size_t size = 1000000;
	uint8_t *data = malloc(size), *back = malloc(size);
	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)(i * 7 + i / 256);
	int fd = exec_app("cat");
	size_t sent = 0, got = 0;
	while (got < size) {
		struct pollfd p = {.fd = fd, .events = (short)(POLLIN | (sent < size ? POLLOUT : 0))};
		assert_true(poll(&p, 1, 10000) > 0);
		if (p.revents & POLLIN) {
			struct answer a = {0};
			assert_true(receive(fd, &a));
			memcpy(back + got, a.output, a.output_size);
			got += a.output_size;
			forget(&a);
		} else {
			size_t n = size - sent < 1000 ? size - sent : 1000;
			send_frame(fd, GUEST_SESSION_INPUT, data + sent, n);
			sent += n;
		}
	}
	assert_memory_equal(data, back, size);
	send_frame(fd, GUEST_SESSION_INPUT_END, NULL, 0);
	expect(fd, "", "", 3);
	free(data);
	free(back);
	// Input sent together with the request line, before anything is there to read it; and without the end of the input there is no end.
	static const char early[] =
		"SESSION\n\x26\0\0\0\1{\"op\":\"exec\",\"args\":[\"/app\",\"cat\"]  }\1\0\0\0\2\6\0\0\0\3hello\1\0\0\0\4";
	fd = unix_connect(f->streams_path, SOCK_STREAM, NULL);
	assert_int_equal(write_full(fd, early, sizeof(early) - 1), 0);
	char ok[3];
	read_exactly(fd, ok, 3);
	expect(fd, "hello", "", 3);
	wait_until_quiet();
}

static void gives_a_terminal(void **state) {
	struct answer a = {0};
	uint16_t size[2] = {120, 40};
	if (!container_usable)
		skip();
	int fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true,\"columns\":80,\"rows\":25}");
	receive_until(fd, &a, "size=80x25\r\n");
	assert_non_null(strstr(a.output, "uid=0 tty=/dev/pts/"));
	assert_non_null(strstr(a.output, "term=xterm foreground=yes\r\n"));
	send_frame(fd, GUEST_SESSION_INPUT, "h\xc3\xa4llo\r", 7);
	receive_until(fd, &a, "line=h\xc3\xa4llo\r\n");
	send_frame(fd, GUEST_SESSION_RESIZE, size, sizeof(size));
	receive_until(fd, &a, "size=120x40\r\n");
	send_frame(fd, GUEST_SESSION_INPUT, "exit 42\r", 8);
	forget(&a);
	a = receive_all(fd);
	assert_int_equal(a.exit_code, 42);
	forget(&a);
	// The end of input is typed; ^C is a signal; another user has the terminal.
	fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true,\"user\":\"user\"}");
	receive_until(fd, &a, "size=0x0\r\n");
	assert_non_null(strstr(a.output, "uid=1000 tty=/dev/pts/"));
	send_frame(fd, GUEST_SESSION_INPUT_END, NULL, 0);
	forget(&a);
	a = receive_all(fd);
	assert_non_null(strstr(a.output, "input ended\r\n"));
	assert_int_equal(a.exit_code, 4);
	forget(&a);
	fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true}");
	receive_until(fd, &a, "size=0x0\r\n");
	send_frame(fd, GUEST_SESSION_INPUT, "\x03", 1);
	forget(&a);
	a = receive_all(fd);
	assert_int_equal(a.exit_code, 130);
	forget(&a);
	wait_until_quiet();
}

// What is typed ahead, before the program is there, reaches it.
static void takes_what_is_typed_early(void **state) {
	if (!container_usable)
		skip();
	for (int i = 0; i < 20; i++) {
		int fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true}");
		send_frame(fd, GUEST_SESSION_INPUT, "early\rexit 42\r", 14);
		struct answer a = receive_all(fd);
		assert_non_null(strstr(a.output, "line=early\r\n"));
		assert_int_equal(a.exit_code, 42);
		forget(&a);
		// Nobody will ever read it.
		fd = begin("{\"op\":\"exec\",\"args\":[\"/no/such/program\"],\"terminal\":true}");
		send_frame(fd, GUEST_SESSION_INPUT, "early\r", 6);
		expect_failure(fd, "NOT_FOUND", "/no/such/program");
	}
	wait_until_quiet();
}

static void gives_a_shell(void **state) {
	struct answer a = {0};
	char path[128], app[128];
	if (!container_usable)
		skip();
	expect_failure(begin("{\"op\":\"shell\"}"), "NO_SHELL", "the image has no shell");
	snprintf(path, sizeof(path), "%s/bin", container_image);
	assert_int_equal(mkdir(path, 0755), 0);
	snprintf(app, sizeof(app), "%s/app", container_image);
	snprintf(path, sizeof(path), "%s/bin/sh", container_image);
	assert_int_equal(link(app, path), 0);
	int fd = begin("{\"op\":\"shell\"}");
	receive_until(fd, &a, "size=0x0\r\n");
	assert_non_null(strstr(a.output, "λ $ uid=0 tty=/dev/pts/"));
	send_frame(fd, GUEST_SESSION_INPUT, "exit 7\r", 7);
	forget(&a);
	a = receive_all(fd);
	assert_int_equal(a.exit_code, 7);
	forget(&a);
	wait_until_quiet();
}

static void ends_with_the_program(void **state) {
	if (!container_usable)
		skip();
	// Not with those who still hold its output.
	uint64_t start = monotonic_ms();
	expect(exec_app("leave"), "left\n", "", 0);
	assert_true(monotonic_ms() - start < 10000);
	// All output first, however slowly it is taken.
	int fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"flood\",\"3000000\"]}");
	usleep(100000);
	struct answer a = receive_all(fd);
	assert_int_equal(a.output_size, 3000000);
	assert_int_equal(a.exit_code, 0);
	forget(&a);
	// Signals.
	fd = exec_app("cat");
	send_frame(fd, GUEST_SESSION_INPUT, "x", 1);
	append(&a.output, &a.output_size, "", 0);
	receive_until(fd, &a, "x");
	forget(&a);
	send_frame(fd, GUEST_SESSION_SIGNAL, "\x0f", 1);
	expect(fd, "", "", 128 + 15);
	wait_until_quiet();
}

static void lets_go_when_the_host_leaves(void **state) {
	struct answer a = {0};
	if (!container_usable)
		skip();
	// One that reads, one on a terminal, one that floods, one whose input is stuck, one that has not said what it is, one that is just beginning.
	int fds[6] = {exec_app("cat"),
		      begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true}"),
		      begin("{\"op\":\"exec\",\"args\":[\"/app\",\"flood\",\"100000000\"]}"),
		      exec_app("wait"),
		      open_session(),
		      -1};
	send_frame(fds[0], GUEST_SESSION_INPUT, "x", 1);
	receive_until(fds[0], &a, "x");
	forget(&a);
	receive_until(fds[1], &a, "size=0x0\r\n");
	forget(&a);
	receive_until(fds[3], &a, "END\n");
	forget(&a);
	char *data = calloc(1, 10000);
	for (int i = 0; i < 10; i++)
		send_frame(fds[3], GUEST_SESSION_INPUT, data, 10000);
	free(data);
	usleep(50000);
	fds[5] = exec_app("cat");
	for (size_t i = 0; i < LEN(fds); i++)
		close(fds[i]);
	wait_until_quiet();
}

static void survives_freezing(void **state) {
	struct answer a = {0};
	if (!container_usable)
		skip();
	int fd = begin("{\"op\":\"exec\",\"args\":[\"/app\",\"terminal\"],\"terminal\":true}"), control = fixture_control(f);
	receive_until(fd, &a, "size=0x0\r\n");
	json_t *r = call(control, "freeze", NULL);
	assert_true(json_is_true(json_object_get(r, "ok")));
	json_decref(r);
	send_frame(fd, GUEST_SESSION_INPUT, "while frozen\r", 13);
	// One that begins now waits for the thaw, and the agent goes on meanwhile.
	int late = exec_app("both");
	usleep(50000);
	json_decref(call(control, "hello", NULL));
	json_decref(call(control, "resume", json_pack("{s:s, s:i, s:s}", "entropy", ENTROPY, "realtimeNs", 1, "generation", "self")));
	receive_until(fd, &a, "line=while frozen\r\n");
	forget(&a);
	expect(late, "to output", "to error", 5);
	send_frame(fd, GUEST_SESSION_INPUT, "exit 0\r", 7);
	a = receive_all(fd);
	assert_int_equal(a.exit_code, 0);
	forget(&a);
	close(control);
	wait_until_quiet();
}

static void refuses_bad_requests(void **state) {
	static const struct {
		const char *request, *code, *part;
	} cases[] = {
		{"", "INVALID_REQUEST", "JSON"},
		{"[]", "INVALID_REQUEST", "must be a JSON object"},
		{"{}", "INVALID_REQUEST", "\"op\" is missing"},
		{"{\"op\":\"fly\"}", "INVALID_REQUEST", "must be \"shell\""},
		{"{\"op\":\"exec\"}", "INVALID_REQUEST", "\"args\" is missing"},
		{"{\"op\":\"exec\",\"args\":[]}", "INVALID_REQUEST", "must name a program"},
		{"{\"op\":\"exec\",\"args\":[\"\"]}", "INVALID_REQUEST", "must name a program"},
		{"{\"op\":\"exec\",\"args\":[1]}", "INVALID_REQUEST", "strings only"},
		{"{\"op\":\"exec\",\"args\":[\"/app\"],\"env\":{\"A=B\":\"\"}}", "INVALID_REQUEST", "no name of an environment variable"},
		{"{\"op\":\"exec\",\"args\":[\"/app\"],\"folder\":\"etc\"}", "INVALID_REQUEST", "must begin with /"},
		{"{\"op\":\"get\",\"path\":\"etc\"}", "INVALID_REQUEST", "must begin with /"},
		{"{\"op\":\"put\"}", "INVALID_REQUEST", "\"path\" is missing"},
		{"{\"op\":\"exec\",\"args\":[\"/app\"],\"folder\":\"/nowhere\"}", "FOLDER_NOT_FOUND", "No such file"},
		{"{\"op\":\"exec\",\"args\":[\"/app\"],\"user\":\"nobody-here\"}", "USER_NOT_FOUND", "has no such user"},
		{"{\"op\":\"exec\",\"args\":[\"nothing\"]}", "NOT_FOUND", "cannot run nothing: No such file"},
		{"{\"op\":\"exec\",\"args\":[\"/etc/passwd\"]}", "NOT_EXECUTABLE", "Permission denied"},
		{"{\"op\":\"get\",\"path\":\"/nowhere\"}", "FILES", "cannot open /nowhere: No such file"},
		{"{\"op\":\"put\",\"path\":\"/nowhere/x\"}", "FILES", "there is no folder /nowhere/"},
	};
	if (!container_usable)
		skip();
	for (size_t i = 0; i < LEN(cases); i++)
		expect_failure(begin(cases[i].request), cases[i].code, cases[i].part);
	// Frames out of order.
	int fd = open_session();
	send_frame(fd, GUEST_SESSION_BEGIN, NULL, 0);
	expect_failure(fd, "INVALID_REQUEST", "there is no request");
	fd = open_session();
	send_frame(fd, 77, NULL, 0);
	expect_failure(fd, "INVALID_REQUEST", "a kind");
	fd = exec_app("cat");
	send_frame(fd, GUEST_SESSION_BEGIN, NULL, 0);
	expect_failure(fd, "INVALID_REQUEST", "given already");
	// Too long a frame, and none of any length, end the stream.
	static const uint32_t lengths[] = {0, GUEST_SESSION_BYTES_MAX + 2, 0xffffffff};
	for (size_t i = 0; i < LEN(lengths); i++) {
		char byte;
		fd = open_session();
		assert_int_equal(write_full(fd, &lengths[i], 4), 0);
		assert_int_equal(write_full(fd, "\1", 1), 0);
		assert_true(read(fd, &byte, 1) <= 0);
		close(fd);
	}
	wait_until_quiet();
	// There are so many, and no more.
	int fds[GUEST_SESSIONS_MAX];
	for (size_t i = 0; i < LEN(fds); i++)
		fds[i] = open_session();
	char refusal[11];
	fd = fixture_stream(f, "SESSION\n");
	read_exactly(fd, refusal, 11);
	assert_memory_equal(refusal, "ERR EMFILE\n", 11);
	close(fd);
	for (size_t i = 0; i < LEN(fds); i++)
		close(fds[i]);
	wait_until_quiet();
}

// Reads an archive into lines `<type> <path> <mode> <target or content>`.
static void list_archive(const char *data, size_t size, char *to, size_t room) {
	static struct tar_reader r;
	size_t used = 0;
	enum tar_event event = TAR_MORE;
	memset(&r, 0, sizeof(r));
	to[0] = '\0';
	while (event != TAR_END) {
		const void *content;
		size_t content_size;
		ssize_t n = tar_read(&r, data, size, &event, &content, &content_size, NULL);
		assert_true(n > 0);
		data += n;
		size -= (size_t)n;
		if (event == TAR_ENTRY)
			used += (size_t)snprintf(to + used, room - used, "%s%c %s %o %s", used > 0 ? "\n" : "", "fdlh"[r.entry.type],
						 r.entry.path, r.entry.mode, r.entry.target);
		else if (event == TAR_CONTENT)
			used += (size_t)snprintf(to + used, room - used, "%.*s", (int)content_size, (const char *)content);
	}
}

static size_t put_entry(uint8_t *to, enum tar_type type, const char *path, const char *target, const char *content, uint32_t mode) {
	static struct tar_entry t;
	t = (struct tar_entry){.type = type, .size = strlen(content), .mode = mode};
	strcpy(t.path, path);
	strcpy(t.target, target);
	size_t n = tar_write_head(&t, to);
	memset(to + n, 0, strlen(content) + TAR_BLOCK);
	memcpy(to + n, content, strlen(content));
	return n + strlen(content) + tar_padding(strlen(content));
}

static int put_archive(const char *request, const uint8_t *data, size_t size) {
	int fd = begin(request);
	for (size_t at = 0; at < size; at += 5000)
		send_frame(fd, GUEST_SESSION_INPUT, data + at, size - at < 5000 ? size - at : 5000);
	send_frame(fd, GUEST_SESSION_INPUT_END, NULL, 0);
	return fd;
}

static void copies_files(void **state) {
	static uint8_t data[20000];
	char listing[4096], path[128];
	struct stat st;
	if (!container_usable)
		skip();
	size_t n = put_entry(data, TAR_FOLDER, "given", "", "", 0750);
	n += put_entry(data + n, TAR_FILE, "given/a", "", "first", 04755);
	n += put_entry(data + n, TAR_SYMLINK, "given/l", "/etc/passwd", "", 0777);
	n += put_entry(data + n, TAR_FILE, "given/sub/b", "", "second", 0600);
	n += put_entry(data + n, TAR_HARDLINK, "given/h", "given/a", "", 0);
	memset(data + n, 0, 2 * TAR_BLOCK);
	n += 2 * TAR_BLOCK;
	// Into a folder, under its own name; to a place that is not there, under that name.
	expect(put_archive("{\"op\":\"put\",\"path\":\"/etc\"}", data, n), "", "", 0);
	expect(put_archive("{\"op\":\"put\",\"path\":\"/etc/new\",\"user\":\"user\"}", data, n), "", "", 0);
	snprintf(path, sizeof(path), "%s/etc/given/a", container_image);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 04755);
	assert_true(st.st_uid == 0 && st.st_nlink == 2 && st.st_size == 5);
	snprintf(path, sizeof(path), "%s/etc/new/sub/b", container_image);
	assert_int_equal(stat(path, &st), 0);
	assert_true(st.st_uid == 1000 && st.st_gid == 1001 && (st.st_mode & 07777) == 0600);
	// The container's own view counts: a link to an absolute path leads to its files.
	struct answer a = receive_all(begin("{\"op\":\"get\",\"path\":\"/etc/given/l\"}"));
	assert_int_equal(a.exit_code, 0);
	list_archive(a.output, a.output_size, listing, sizeof(listing));
	assert_string_equal(listing, "f l 644 root:x:0:0::/root:\nuser:x:1000:1001::/home/user:\n");
	forget(&a);
	a = receive_all(begin("{\"op\":\"get\",\"path\":\"/etc/new/\"}"));
	assert_int_equal(a.exit_code, 0);
	list_archive(a.output, a.output_size, listing, sizeof(listing));
	static const char *const lines[] = {"d new 750 ", "f new/a 4755 first", "f new/h 4755 first", "l new/l 777 /etc/passwd",
					    "f new/sub/b 600 second"};
	for (size_t i = 0; i < LEN(lines); i++)
		if (strstr(listing, lines[i]) == NULL)
			fail_msg("\"%s\" is missing in:\n%s", lines[i], listing);
	forget(&a);
	// What the application mounted is not packed with the rest.
	a = receive_all(begin("{\"op\":\"get\",\"path\":\"/\"}"));
	assert_int_equal(a.exit_code, 0);
	assert_non_null(strstr(a.error_output, "left out: root/proc: on another file system\n"));
	forget(&a);
	// A cut or hostile archive.
	expect_failure(put_archive("{\"op\":\"put\",\"path\":\"/etc\"}", data, n - 1024), "FILES", "cut off");
	n = put_entry(data, TAR_SYMLINK, "out", "/", "", 0777);
	n += put_entry(data + n, TAR_FILE, "out/etc/evil", "", "evil", 0644);
	memset(data + n, 0, 2 * TAR_BLOCK);
	expect_failure(put_archive("{\"op\":\"put\",\"path\":\"/etc/given\"}", data, n + 2 * TAR_BLOCK), "FILES",
		       "a link in it leads outside");
	snprintf(path, sizeof(path), "%s/etc/evil", container_image);
	assert_int_equal(stat(path, &st), -1);
	wait_until_quiet();
}

static void tells_that_nothing_runs(void **state) {
	if (!container_usable)
		skip();
	// As the last test: the application ends, and its sessions with it.
	int fd = exec_app("cat");
	struct answer a = {0};
	send_frame(fd, GUEST_SESSION_INPUT, "x", 1);
	receive_until(fd, &a, "x");
	forget(&a);
	kill(f->agent.application.main.pid, SIGKILL);
	expect(fd, "", "", 137);
	int control = fixture_control(f);
	for (;;) {
		json_t *r = call(control, "state", NULL);
		bool exited = strcmp(json_string_value(json_object_get(r, "application")), "exited") == 0;
		json_decref(r);
		if (exited)
			break;
		usleep(1000);
	}
	close(control);
	expect_failure(exec_app("cat"), "NOT_RUNNING", "the application does not run");
	wait_until_quiet();
}

int main(int argc, char **argv) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(runs_programs),
		cmocka_unit_test(carries_bytes_both_ways),
		cmocka_unit_test(gives_a_terminal),
		cmocka_unit_test(gives_a_shell),
		cmocka_unit_test(ends_with_the_program),
		cmocka_unit_test(lets_go_when_the_host_leaves),
		cmocka_unit_test(survives_freezing),
		cmocka_unit_test(refuses_bad_requests),
		cmocka_unit_test(copies_files),
		cmocka_unit_test(takes_what_is_typed_early),
		cmocka_unit_test(tells_that_nothing_runs),
	};
	if (argc != 2)
		return 2;
	container_program = argv[1];
	return cmocka_run_group_tests_name("agent_session", tests, set_up, tear_down);
}
