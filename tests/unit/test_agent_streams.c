// Forwarded connections and hooks against real servers on loopback: half-closes, back-pressure, early ends, time-outs, retries.
#include "agent_fixture.h"

#include "base/clock.h"
#include "base/io.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define LARGE (8u << 20)

// A server on loopback: one thread, connections one after the other, each handled by a function of the test.
struct server {
	int listener;
	uint16_t port;
	pthread_t thread;
	void (*handle)(struct server *s, int fd);
	atomic_int connections;
	atomic_size_t bytes;
	char request[8192]; // the last one, as handlers put it
	atomic_bool stopping;
};

static void *serve(void *arg) {
	struct server *s = arg;
	while (!s->stopping) {
		int fd = accept4(s->listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			break;
		s->connections++;
		s->handle(s, fd);
		close(fd);
	}
	return NULL;
}

static int listen_on(int family, uint16_t *port) {
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(*port)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT, .sin6_port = htons(*port)};
	int on = 1, fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	socklen_t size = family == AF_INET ? sizeof(v4) : sizeof(v6);
	struct sockaddr *a = family == AF_INET ? (struct sockaddr *)&v4 : (struct sockaddr *)&v6;

	if (fd < 0)
		return -1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, a, size) < 0 || listen(fd, 128) < 0 || getsockname(fd, a, &size) < 0) {
		close(fd);
		return -1;
	}
	*port = ntohs(family == AF_INET ? v4.sin_port : v6.sin6_port);
	return fd;
}

static void server_start(struct server *s, void (*handle)(struct server *, int)) {
	memset(s, 0, sizeof(*s));
	s->listener = listen_on(AF_INET, &s->port);
	assert_true(s->listener >= 0);
	s->handle = handle;
	assert_int_equal(pthread_create(&s->thread, NULL, serve, s), 0);
}

static void server_stop(struct server *s) {
	s->stopping = true;
	shutdown(s->listener, SHUT_RDWR);
	pthread_join(s->thread, NULL);
	close(s->listener);
}

static uint16_t free_port(void) {
	uint16_t port = 0;
	int fd = listen_on(AF_INET, &port);
	assert_true(fd >= 0);
	close(fd);
	return port;
}

// Forwarding.

static int forward_to(const struct fixture *f, uint16_t port) {
	char line[32], answer[3];
	snprintf(line, sizeof(line), "TCP %u\n", port);
	int fd = fixture_stream(f, line);
	read_exactly(fd, answer, 3);
	assert_memory_equal(answer, "OK\n", 3);
	return fd;
}

static void read_to_end(int fd, const char *wanted) {
	char text[256];
	size_t n = 0;
	ssize_t r;
	while (n < sizeof(text) - 1 && (r = recv(fd, text + n, sizeof(text) - 1 - n, 0)) > 0)
		n += (size_t)r;
	text[n] = '\0';
	assert_string_equal(text, wanted);
}

static void handle_echo(struct server *s, int fd) {
	char buffer[65536];
	ssize_t n;
	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		if (write_full(fd, buffer, (size_t)n) < 0)
			return;
	shutdown(fd, SHUT_WR); // closing would not say it while a child holds a copy
}

static void echo(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char text[16];

	server_start(&s, handle_echo);
	for (int i = 0; i < 20; i++) {
		int fd = forward_to(f, s.port);
		assert_int_equal(write_full(fd, "hello", 5), 0);
		read_exactly(fd, text, 5);
		assert_memory_equal(text, "hello", 5);
		shutdown(fd, SHUT_WR);
		assert_int_equal(recv(fd, text, 1, 0), 0);
		close(fd);
	}
	server_stop(&s);
	fixture_stop(f);
}

// As between fork and exec of a program that the agent starts.
static void streams_end_while_a_child_holds_their_descriptors(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char text[16];

	server_start(&s, handle_echo);
	int first = forward_to(f, s.port);
	assert_int_equal(write_full(first, "hello", 5), 0);
	read_exactly(first, text, 5);
	pid_t child = fork();
	if (child == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		// Its copy of the test's own end would keep that open.
		close(first);
		pause();
		_exit(0);
	}
	shutdown(first, SHUT_WR);
	assert_int_equal(recv(first, text, 1, 0), 0);
	close(first); // an event for the copy that the child has
	for (int i = 0; i < 5; i++) {
		int fd = forward_to(f, s.port);
		shutdown(fd, SHUT_WR);
		assert_int_equal(recv(fd, text, 1, 0), 0);
		close(fd);
	}
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	server_stop(&s);
	fixture_stop(f);
}

static void line_in_pieces_and_early_data(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char line[64], text[64];

	server_start(&s, handle_echo);
	int n = snprintf(line, sizeof(line), "TCP %u\nearly", s.port);
	int fd = fixture_stream(f, line);
	read_exactly(fd, text, 8);
	assert_memory_equal(text, "OK\nearly", 8);
	close(fd);
	fd = fixture_stream(f, "T");
	for (int i = 1; i < n; i++) {
		usleep(1000);
		assert_int_equal(write_full(fd, line + i, 1), 0);
	}
	read_exactly(fd, text, 8);
	assert_memory_equal(text, "OK\nearly", 8);
	close(fd);
	fd = fixture_stream(f, "HELP\n");
	read_to_end(fd, "ERR EINVAL\n");
	close(fd);
	server_stop(&s);
	fixture_stop(f);
}

static void nobody_listens(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	char line[32];

	snprintf(line, sizeof(line), "TCP %u\n", free_port());
	int fd = fixture_stream(f, line);
	read_to_end(fd, "ERR ECONNREFUSED\n");
	close(fd);
	fixture_stop(f);
}

static void ipv6_only(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s = {.handle = handle_echo};
	char text[2];

	s.listener = listen_on(AF_INET6, &s.port);
	if (s.listener < 0) {
		fixture_stop(f);
		skip();
	}
	assert_int_equal(pthread_create(&s.thread, NULL, serve, &s), 0);
	int fd = forward_to(f, s.port);
	assert_int_equal(write_full(fd, "v6", 2), 0);
	read_exactly(fd, text, 2);
	close(fd);
	server_stop(&s);
	fixture_stop(f);
}

// Reads until the end, then answers with the number of bytes: works only when the end of one direction leaves the other open.
static void handle_count(struct server *s, int fd) {
	char buffer[65536], text[32];
	size_t sum = 0;
	ssize_t n;
	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0) {
		sum += (size_t)n;
		s->bytes = sum;
	}
	int size = snprintf(text, sizeof(text), "%zu", sum);
	(void)write_full(fd, text, (size_t)size);
}

static void half_close_from_host(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char *data = calloc(1, LARGE);

	server_start(&s, handle_count);
	int fd = forward_to(f, s.port);
	assert_int_equal(write_full(fd, data, LARGE), 0);
	shutdown(fd, SHUT_WR);
	read_to_end(fd, "8388608");
	close(fd);
	free(data);
	server_stop(&s);
	fixture_stop(f);
}

// Ends its own direction first, then still reads.
static void handle_goodbye_then_read(struct server *s, int fd) {
	char buffer[4096];
	ssize_t n;
	(void)write_full(fd, "bye", 3);
	shutdown(fd, SHUT_WR);
	while ((n = recv(fd, buffer, sizeof(buffer), 0)) > 0)
		s->bytes += (size_t)n;
}

static void half_close_from_application(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;

	server_start(&s, handle_goodbye_then_read);
	int fd = forward_to(f, s.port);
	read_to_end(fd, "bye");
	for (int i = 0; i < 10; i++) {
		assert_int_equal(write_full(fd, "12345", 5), 0);
		usleep(2000);
	}
	close(fd);
	server_stop(&s);
	assert_int_equal(s.bytes, 50);
	fixture_stop(f);
}

static void handle_wait_then_count(struct server *s, int fd) {
	while (!s->stopping && s->bytes == 0)
		usleep(1000);
	handle_count(s, fd);
}

// How much goes into the pipeline before it is full.
static size_t push_until_stuck(int fd) {
	static char block[65536];
	size_t sum = 0;
	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLOUT};
		if (poll(&p, 1, 300) <= 0)
			return sum;
		ssize_t n = send(fd, block, sizeof(block), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n > 0)
			sum += (size_t)n;
		assert_true(sum < 1u << 30);
	}
}

static void back_pressure_to_application(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char text[32], wanted[32];

	server_start(&s, handle_wait_then_count);
	int fd = forward_to(f, s.port);
	size_t sent = push_until_stuck(fd);
	// The sockets' own buffers, and one chunk of ours.
	assert_in_range(sent, 65536, 64u << 20);
	// Others are not held up by it.
	int control = fixture_control(f);
	json_decref(call(control, "hello", NULL));
	close(control);
	s.bytes = 1;
	shutdown(fd, SHUT_WR);
	size_t n = 0;
	ssize_t r;
	while ((r = recv(fd, text + n, sizeof(text) - 1 - n, 0)) > 0)
		n += (size_t)r;
	text[n] = '\0';
	snprintf(wanted, sizeof(wanted), "%zu", sent);
	assert_string_equal(text, wanted);
	close(fd);
	server_stop(&s);
	fixture_stop(f);
}

static void handle_pour(struct server *s, int fd) {
	static char block[65536];
	for (size_t sum = 0; sum < LARGE; sum += sizeof(block)) {
		for (size_t i = 0; i < sizeof(block); i += 4096)
			memcpy(block + i, &sum, sizeof(sum));
		if (write_full(fd, block, sizeof(block)) < 0)
			return;
		s->bytes += sizeof(block);
	}
}

static void back_pressure_to_host(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	static char block[65536];

	server_start(&s, handle_pour);
	int fd = forward_to(f, s.port);
	usleep(200000);
	for (size_t sum = 0; sum < LARGE; sum += sizeof(block)) {
		read_exactly(fd, block, sizeof(block));
		for (size_t i = 0; i < sizeof(block); i += 4096)
			assert_memory_equal(block + i, &sum, sizeof(sum));
	}
	assert_int_equal(recv(fd, block, 1, 0), 0);
	close(fd);
	server_stop(&s);
	fixture_stop(f);
}

// Answers and closes although the upload is under way: the answer must arrive.
static void handle_early_answer(struct server *s, int fd) {
	char buffer[1000];
	(void)!recv(fd, buffer, sizeof(buffer), 0);
	(void)write_full(fd, "no", 2);
	usleep(20000);
}

static void early_answer(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char text[2], *data = calloc(1, LARGE);

	server_start(&s, handle_early_answer);
	for (int i = 0; i < 10; i++) {
		int fd = forward_to(f, s.port);
		fcntl(fd, F_SETFL, O_NONBLOCK);
		while (send(fd, data, 65536, MSG_NOSIGNAL) > 0)
			;
		fcntl(fd, F_SETFL, 0);
		read_exactly(fd, text, 2);
		assert_memory_equal(text, "no", 2);
		close(fd);
	}
	free(data);
	server_stop(&s);
	fixture_stop(f);
}

static void handle_reset(struct server *s, int fd) {
	struct linger now = {.l_onoff = 1};
	setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
}

static void application_resets(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char line[32], text[64];

	server_start(&s, handle_reset);
	snprintf(line, sizeof(line), "TCP %u\n", s.port);
	for (int i = 0; i < 20; i++) {
		int fd = fixture_stream(f, line);
		while (recv(fd, text, sizeof(text), 0) > 0)
			;
		close(fd);
	}
	server_stop(&s);
	fixture_stop(f);
}

static void handle_notice_end(struct server *s, int fd) {
	char byte;
	while (recv(fd, &byte, 1, 0) > 0)
		;
	s->bytes++;
}

static void host_leaves(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;

	server_start(&s, handle_notice_end);
	for (int i = 0; i < 20; i++)
		close(forward_to(f, s.port));
	for (int i = 0; i < 200 && s.bytes < 20; i++)
		usleep(10000);
	assert_int_equal(s.bytes, 20);
	server_stop(&s);
	fixture_stop(f);
}

static void many_streams(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s = {0};
	int fds[200];
	char line[32], text[8];

	// Nobody accepts: the kernel's queue of connections does.
	s.listener = listen_on(AF_INET, &s.port);
	listen(s.listener, 512);
	snprintf(line, sizeof(line), "TCP %u\n", s.port);
	for (size_t i = 0; i < 200; i++) {
		fds[i] = fixture_stream(f, line);
		read_exactly(fds[i], text, 3);
	}
	assert_int_equal(f->agent.forwards.count, 200);
	for (size_t i = 0; i < 200; i++) {
		int fd = accept4(s.listener, NULL, NULL, SOCK_CLOEXEC);
		assert_int_equal(write_full(fd, "x", 1), 0);
		close(fd);
	}
	for (size_t i = 0; i < 200; i++) {
		read_to_end(fds[i], "x");
		close(fds[i]);
	}
	for (int i = 0; i < 200 && *(volatile size_t *)&f->agent.forwards.count > 0; i++)
		usleep(10000);
	close(s.listener);
	fixture_stop(f);
}

// Hooks.

static size_t read_request(struct server *s, int fd) {
	size_t n = 0;
	char *end = NULL;
	while (end == NULL && n < sizeof(s->request) - 1) {
		ssize_t r = recv(fd, s->request + n, sizeof(s->request) - 1 - n, 0);
		if (r <= 0)
			break;
		n += (size_t)r;
		s->request[n] = '\0';
		end = strstr(s->request, "\r\n\r\n");
	}
	const char *length = strstr(s->request, "Content-Length: ");
	size_t body = length != NULL ? (size_t)atoi(length + 16) : 0;
	while (end != NULL && n < (size_t)(end + 4 - s->request) + body) {
		ssize_t r = recv(fd, s->request + n, sizeof(s->request) - 1 - n, 0);
		if (r <= 0)
			break;
		n += (size_t)r;
		s->request[n] = '\0';
	}
	return n;
}

static void answer(int fd, const char *text) {
	(void)write_full(fd, text, strlen(text));
}

static json_t *hook(const struct fixture *f, const char *name, uint16_t port, int timeout_ms, const char *body, bool retry) {
	int fd = fixture_control(f);
	json_t *r = call(fd, "hook",
			 json_pack("{s:s, s:i, s:i, s:s?, s:b}", "name", name, "port", port, "timeoutMs", timeout_ms, "body", body,
				   "retry503", retry));
	close(fd);
	assert_true(json_is_true(json_object_get(r, "ok")));
	return r;
}

static int64_t check(json_t *r, const char *result, int status) {
	int64_t elapsed = json_integer_value(json_object_get(r, "elapsedMs"));
	assert_string_equal(json_string_value(json_object_get(r, "result")), result);
	assert_int_equal(json_integer_value(json_object_get(r, "status")), status);
	json_decref(r);
	return elapsed;
}

static void handle_ok(struct server *s, int fd) {
	read_request(s, fd);
	answer(fd, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
}

static void hook_requests(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char wanted[512];

	server_start(&s, handle_ok);
	check(hook(f, "run", s.port, 5000, "{\"microvmId\":\"m\",\"runHookPayload\":\"\\u00e4\"}", false), "ok", 200);
	snprintf(wanted, sizeof(wanted),
		 "POST /aws/lambda-microvms/runtime/v1/run HTTP/1.1\r\nHost: localhost:%u\r\ncontent-type: "
		 "application/json\r\nContent-Length: 43\r\n\r\n"
		 "{\"microvmId\":\"m\",\"runHookPayload\":\"\\u00e4\"}",
		 s.port);
	assert_string_equal(s.request, wanted);
	check(hook(f, "suspend", s.port, 5000, NULL, false), "ok", 200);
	snprintf(wanted, sizeof(wanted),
		 "POST /aws/lambda-microvms/runtime/v1/suspend HTTP/1.1\r\nHost: localhost:%u\r\nContent-Length: 0\r\n\r\n", s.port);
	assert_string_equal(s.request, wanted);
	server_stop(&s);
	fixture_stop(f);
}

static const char *const answers[][2] = {
	{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", "ok 200"},
	{"HTTP/1.0 200 OK\r\n\r\nuntil the end", "ok 200"},
	{"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "ok 200"},
	{"HTTP/1.1 204 No Content\r\n\r\n", "status 204"},
	{"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"},
	{"HTTP/1.1 500 Oops\r\nContent-Length: 100\r\n\r\ncut off", "status 500"},
	{"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n", "status 503"},
	{"HTTP/1.1 301 Moved\r\nLocation: /\r\nContent-Length: 0\r\n\r\n", "status 301"},
	{"", "broken 0"},
	{"HTTP/1.1 200", "broken 0"},
	{"\x15\x03\x01\x00\x02\x02\x46", "broken 0"},
	{"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", "broken 0"},
};

static void handle_answers(struct server *s, int fd) {
	read_request(s, fd);
	size_t i = (size_t)s->connections - 1;
	if (i < sizeof(answers) / sizeof(*answers))
		answer(fd, answers[i][0]);
}

static void hook_answers(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	char got[32];

	server_start(&s, handle_answers);
	for (size_t i = 0; i < sizeof(answers) / sizeof(*answers); i++) {
		json_t *r = hook(f, "run", s.port, 5000, "{}", false);
		snprintf(got, sizeof(got), "%s %d", json_string_value(json_object_get(r, "result")),
			 (int)json_integer_value(json_object_get(r, "status")));
		json_decref(r);
		if (strcmp(got, answers[i][1]) != 0)
			fail_msg("answer %zu: %s instead of %s", i, got, answers[i][1]);
	}
	// Each was asked exactly once.
	assert_int_equal(s.connections, sizeof(answers) / sizeof(*answers));
	server_stop(&s);
	fixture_stop(f);
}

static void handle_endless_body(struct server *s, int fd) {
	char block[4096];
	read_request(s, fd);
	answer(fd, "HTTP/1.1 200 OK\r\n\r\n");
	memset(block, 'x', sizeof(block));
	for (int i = 0; i < 10000; i++)
		if (send(fd, block, sizeof(block), MSG_NOSIGNAL) < 0)
			return;
}

static void handle_endless_head(struct server *s, int fd) {
	read_request(s, fd);
	answer(fd, "HTTP/1.1 200 OK\r\n");
	for (int i = 0; i < 100000; i++)
		if (send(fd, "X: y\r\n", 6, MSG_NOSIGNAL) < 0)
			return;
}

static void hook_bounds(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;

	server_start(&s, handle_endless_body);
	check(hook(f, "run", s.port, 5000, "{}", false), "ok", 200);
	server_stop(&s);
	server_start(&s, handle_endless_head);
	check(hook(f, "run", s.port, 5000, "{}", false), "broken", 0);
	server_stop(&s);
	fixture_stop(f);
}

static void handle_silence(struct server *s, int fd) {
	char buffer[256];
	while (recv(fd, buffer, sizeof(buffer), 0) > 0)
		;
}

static void handle_half_an_answer(struct server *s, int fd) {
	read_request(s, fd);
	answer(fd, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf");
	handle_silence(s, fd);
}

static void hook_time_outs(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;

	server_start(&s, handle_silence);
	assert_in_range(check(hook(f, "run", s.port, 200, "{}", false), "timeout", 0), 200, 2000);
	assert_in_range(check(hook(f, "run", s.port, 1, "{}", false), "timeout", 0), 1, 2000);
	server_stop(&s);
	server_start(&s, handle_half_an_answer);
	assert_in_range(check(hook(f, "run", s.port, 150, "{}", false), "timeout", 200), 150, 2000);
	server_stop(&s);
	assert_in_range(check(hook(f, "ready", free_port(), 300, NULL, true), "refused", 0), 300, 2000);
	fixture_stop(f);
}

static void handle_not_yet(struct server *s, int fd) {
	read_request(s, fd);
	if (s->connections == 2)
		return; // closes without an answer
	if (s->connections == 3)
		answer(fd, "rubbish\r\n\r\n");
	else if (s->connections < 6)
		answer(fd, "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n");
	else
		answer(fd, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n");
}

static void handle_never(struct server *s, int fd) {
	read_request(s, fd);
	answer(fd, "HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n");
}

static void hook_retries(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;

	server_start(&s, handle_not_yet);
	check(hook(f, "ready", s.port, 5000, NULL, true), "ok", 200);
	assert_int_equal(s.connections, 6);
	server_stop(&s);
	server_start(&s, handle_never);
	assert_in_range(check(hook(f, "ready", s.port, 300, NULL, true), "timeout", 503), 300, 2000);
	assert_in_range((int)s.connections, 3, 12);
	server_stop(&s);
	fixture_stop(f);
}

static void *listen_later(void *arg) {
	struct server *s = arg;
	usleep(200000);
	s->listener = listen_on(AF_INET, &s->port);
	return serve(s);
}

static void hook_waits_for_listener(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s = {.handle = handle_ok, .port = free_port()};

	assert_int_equal(pthread_create(&s.thread, NULL, listen_later, &s), 0);
	assert_in_range(check(hook(f, "run", s.port, 5000, "{}", false), "ok", 200), 190, 2000);
	server_stop(&s);
	fixture_stop(f);
}

static void hooks_do_not_block(void **state) {
	struct fixture *f = fixture_start(NULL, "/");
	struct server s;
	int slow = fixture_control(f), quick = fixture_control(f);

	server_start(&s, handle_silence);
	send_request(slow, 1, "hook", json_pack("{s:s, s:i, s:i}", "name", "validate", "port", s.port, "timeoutMs", 400));
	usleep(50000);
	uint64_t before = monotonic_ms();
	json_decref(call(quick, "hello", NULL));
	assert_true(monotonic_ms() - before < 300);
	json_t *r = receive_reply(slow);
	assert_string_equal(json_string_value(json_object_get(r, "result")), "timeout");
	json_decref(r);
	// Left alone in the middle.
	send_request(slow, 2, "hook", json_pack("{s:s, s:i, s:i}", "name", "validate", "port", s.port, "timeoutMs", 60000));
	usleep(50000);
	close(slow);
	close(quick);
	usleep(50000);
	assert_null(f->agent.hooks.first);
	server_stop(&s);
	fixture_stop(f);
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(echo),
		cmocka_unit_test(streams_end_while_a_child_holds_their_descriptors),
		cmocka_unit_test(line_in_pieces_and_early_data),
		cmocka_unit_test(nobody_listens),
		cmocka_unit_test(ipv6_only),
		cmocka_unit_test(half_close_from_host),
		cmocka_unit_test(half_close_from_application),
		cmocka_unit_test(back_pressure_to_application),
		cmocka_unit_test(back_pressure_to_host),
		cmocka_unit_test(early_answer),
		cmocka_unit_test(application_resets),
		cmocka_unit_test(host_leaves),
		cmocka_unit_test(many_streams),
		cmocka_unit_test(hook_requests),
		cmocka_unit_test(hook_answers),
		cmocka_unit_test(hook_bounds),
		cmocka_unit_test(hook_time_outs),
		cmocka_unit_test(hook_retries),
		cmocka_unit_test(hook_waits_for_listener),
		cmocka_unit_test(hooks_do_not_block),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
