// The guest's instance metadata service, as a guest's programs meet it: nothing without credentials, session tokens, what is answered and refused,
// clients that misbehave.
#include "agent_fixture.h"

#include "base/clock.h"
#include "base/io.h"

#include <arpa/inet.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#define ENTROPY "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
#define ROLES "/latest/meta-data/iam/security-credentials"

static struct fixture *f;
static int control;

static int set_up(void **state) {
	f = fixture_start(NULL, "/");
	control = fixture_control(f);
	return 0;
}

static int tear_down(void **state) {
	close(control);
	fixture_stop(f);
	return 0;
}

static json_t *credentials(const char *key_id) {
	return json_pack("{s:s, s:s, s:s, s:s, s:s}", "accessKeyId", key_id, "secretAccessKey", "sec\"ret", "token", "tok/en",
			 "lastUpdated", "2026-01-02T03:04:05Z", "expiration", "2026-01-02T03:59:05Z");
}

static void must_be_ok(json_t *reply) {
	if (!json_is_true(json_object_get(reply, "ok")))
		fail_msg("%s", json_string_value(json_object_get(reply, "message")));
	json_decref(reply);
}

static void resume(const char *generation, const char *key_id) {
	json_t *q = json_pack("{s:s, s:I, s:s}", "entropy", ENTROPY, "realtimeNs", (json_int_t)1, "generation", generation);
	if (key_id != NULL)
		json_object_set_new(q, "credentials", credentials(key_id));
	must_be_ok(call(control, "resume", q));
}

static void give(const char *key_id) {
	must_be_ok(call(control, "credentials", key_id == NULL ? NULL : json_pack("{s:o}", "credentials", credentials(key_id))));
}

// Port of the service; 0: nothing listens. Asked for between two replies of the agent, whose thread is idle then.
static int port(void) {
	struct sockaddr_in at = {0};
	socklen_t size = sizeof(at);
	if (f->agent.imds.http.listener.fd < 0)
		return 0;
	assert_int_equal(getsockname(f->agent.imds.http.listener.fd, (struct sockaddr *)&at, &size), 0);
	return ntohs(at.sin_port);
}

static int connect_to(int to) {
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((uint16_t)to), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval limit = {.tv_sec = 10};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	if (connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

struct answer {
	int status;
	char head[1024], body[4096];
	size_t size; // of the body
};

// Reads one answer off a connection. False at its end.
static bool read_answer(int fd, struct answer *a) {
	size_t n = 0;
	memset(a, 0, sizeof(*a));
	while (n < sizeof(a->head) - 1 && strstr(a->head, "\r\n\r\n") == NULL) {
		ssize_t got = recv(fd, a->head + n, 1, 0);
		if (got <= 0)
			return false;
		n += (size_t)got;
	}
	assert_int_equal(sscanf(a->head, "HTTP/1.1 %d", &a->status), 1);
	const char *length = strstr(a->head, "Content-Length: ");
	assert_non_null(length);
	a->size = strtoul(length + 16, NULL, 10);
	assert_true(a->size < sizeof(a->body));
	read_exactly(fd, a->body, a->size);
	return true;
}

static struct answer ask(const char *format, ...) __attribute__((format(printf, 1, 2)));
static struct answer ask(const char *format, ...) {
	char request[4096];
	struct answer a;
	va_list ap;
	va_start(ap, format);
	vsnprintf(request, sizeof(request), format, ap);
	va_end(ap);
	int fd = connect_to(port());
	assert_true(fd >= 0);
	assert_int_equal(write_full(fd, request, strlen(request)), 0);
	assert_true(read_answer(fd, &a));
	close(fd);
	return a;
}

#define HOST "Host: 169.254.169.254\r\n"

static void get_token(const char *ttl, char token[128]) {
	char more[128];
	struct answer a = ask("PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: %s\r\n\r\n", ttl);
	assert_int_equal(a.status, 200);
	assert_in_range(a.size, 32, 100);
	snprintf(more, sizeof(more), "X-aws-ec2-metadata-token-ttl-seconds: %s\r\n", ttl);
	assert_non_null(strstr(a.head, more));
	snprintf(token, 128, "%.100s", a.body);
}

static struct answer get(const char *path, const char *token) {
	return ask("GET %s HTTP/1.1\r\n" HOST "x-aws-ec2-metadata-token: %s\r\n\r\n", path, token);
}

static void nothing_is_there_without_a_role(void **state) {
	assert_int_equal(port(), 0);
	resume("clone", NULL);
	assert_int_equal(port(), 0);
	resume("clone", "AKID1");
	int at = port();
	assert_int_not_equal(at, 0);
	int fd = connect_to(at);
	assert_true(fd >= 0);
	// They go with the clone, and when they are taken; connections end.
	resume("clone", NULL);
	assert_int_equal(port(), 0);
	assert_true(recv(fd, &(char){0}, 1, 0) <= 0); // or it was not even taken
	close(fd);
	assert_int_equal(connect_to(at), -1);
	give("AKID2");
	assert_int_not_equal(port(), 0);
	give(NULL);
	assert_int_equal(port(), 0);
	give(NULL);
}

static void credentials_are_served(void **state) {
	char token[128];
	resume("clone", "AKID1");
	get_token("21600", token);
	static const char *const lists[] = {ROLES, ROLES "/", ROLES "/?x=1"};
	for (size_t i = 0; i < 3; i++) {
		struct answer a = get(lists[i], token);
		assert_int_equal(a.status, 200);
		assert_string_equal(a.body, "execution_role");
	}
	struct answer a = get(ROLES "/execution_role", token);
	assert_int_equal(a.status, 200);
	json_t *o = json_loads(a.body, 0, NULL),
	       *expected = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "Code", "Success", "Type", "AWS-HMAC", "LastUpdated",
				     "2026-01-02T03:04:05Z", "AccessKeyId", "AKID1", "SecretAccessKey", "sec\"ret", "Token", "tok/en",
				     "Expiration", "2026-01-02T03:59:05Z");
	assert_true(json_equal(o, expected));
	json_decref(o);
	json_decref(expected);
	// New ones take their place; the session goes on, over a sleep as well.
	give("AKID2");
	assert_non_null(strstr(get(ROLES "/execution_role", token).body, "AKID2"));
	resume("self", NULL);
	assert_non_null(strstr(get(ROLES "/execution_role", token).body, "AKID2"));
	resume("self", "AKID3");
	assert_non_null(strstr(get(ROLES "/execution_role", token).body, "AKID3"));
	// A clone has no session of before.
	resume("clone", "AKID4");
	assert_int_equal(get(ROLES "/execution_role", token).status, 401);
}

static void requests_are_refused(void **state) {
	char token[128];
	resume("clone", "AKID1");
	get_token("60", token);
	static const struct {
		const char *request;
		int status;
	} cases[] = {
		{"GET " ROLES "/ HTTP/1.1\r\n" HOST "\r\n", 401},
		{"GET " ROLES "/execution_role HTTP/1.1\r\n" HOST "x-aws-ec2-metadata-token: \r\n\r\n", 401},
		{"GET " ROLES "/execution_role HTTP/1.1\r\n" HOST "x-aws-ec2-metadata-token: 00\r\n\r\n", 401},
		{"GET / HTTP/1.1\r\n" HOST "\r\n", 401},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "\r\n", 400},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: 0\r\n\r\n", 400},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: 21601\r\n\r\n", 400},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: -1\r\n\r\n", 400},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: 6x\r\n\r\n", 400},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: 6\r\nX-Forwarded-For: 1.2.3.4\r\n\r\n",
		 403},
		{"GET /latest/api/token HTTP/1.1\r\n" HOST "\r\n", 405},
		{"POST " ROLES "/ HTTP/1.1\r\n" HOST "\r\n", 405},
		{"PUT " ROLES "/ HTTP/1.1\r\n" HOST "\r\n", 405},
		{"PUT /latest/api/token HTTP/1.1\r\n" HOST "Content-Length: 1\r\n\r\nx", 400},
		{"GET / HTTP/1.1\r\n\r\n", 400},
		{"nonsense\r\n\r\n", 400},
	};
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct answer a = ask("%s", cases[i].request);
		if (a.status != cases[i].status)
			fail_msg("%s: %d", cases[i].request, a.status);
		assert_null(strstr(a.body, "AKID"));
	}
	static const char *const missing[] = {"/", "/latest/meta-data/", "/latest/meta-data/instance-id", ROLES "/other",
					      ROLES "/execution_role/"};
	for (size_t i = 0; i < sizeof(missing) / sizeof(missing[0]); i++)
		assert_int_equal(get(missing[i], token).status, 404);
	// Another's session token is none, and it takes all of its characters.
	token[0] = token[0] == '0' ? '1' : '0';
	assert_int_equal(get(ROLES "/", token).status, 401);
}

static void imds_sessions_end(void **state) {
	char token[128], other[128];
	resume("clone", "AKID1");
	get_token("1", token);
	assert_int_equal(get(ROLES "/", token).status, 200);
	uint64_t until = monotonic_ms() + 1100;
	while (monotonic_ms() < until)
		usleep(10000);
	assert_int_equal(get(ROLES "/", token).status, 401);
	// There are so many at a time, and the newest stay.
	get_token("60", token);
	for (int i = 0; i < IMDS_TOKENS_MAX; i++)
		get_token("60", other);
	assert_int_equal(get(ROLES "/", token).status, 401);
	assert_int_equal(get(ROLES "/", other).status, 200);
}

static void connections_are_kept_and_bounded(void **state) {
	static const char one[] =
		"PUT /latest/api/token HTTP/1.1\r\n" HOST "X-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 0\r\n\r\n";
	static const char last[] = "HEAD /latest/ HTTP/1.1\r\n" HOST "Connection: close\r\n\r\n";
	char many[8192] = "";
	struct answer a;
	resume("clone", "AKID1");
	// Pipelined, and byte by byte.
	int fd = connect_to(port());
	for (int i = 0; i < 20; i++)
		strcat(many, one);
	strcat(many, last);
	assert_int_equal(write_full(fd, many, strlen(many)), 0);
	for (int i = 0; i < 20; i++) {
		assert_true(read_answer(fd, &a));
		assert_int_equal(a.status, 200);
	}
	assert_true(read_answer(fd, &a));
	assert_int_equal(a.status, 401);
	assert_int_equal(recv(fd, many, 1, 0), 0);
	close(fd);
	fd = connect_to(port());
	for (size_t i = 0; i < strlen(one); i++)
		assert_int_equal(write_full(fd, one + i, 1), 0);
	assert_true(read_answer(fd, &a));
	assert_int_equal(a.status, 200);
	close(fd);
	// A head without an end is refused when it is too long.
	fd = connect_to(port());
	memset(many, 'a', sizeof(many));
	memcpy(many, "GET /", 5);
	(void)!send(fd, many, sizeof(many), MSG_NOSIGNAL);
	if (read_answer(fd, &a)) // the rest of what was sent may reset the connection before it is read
		assert_int_equal(a.status, 400);
	close(fd);
	// More connections than there may be: the quietest go, new ones are answered.
	int fds[LOCAL_HTTP_CONNECTIONS_MAX * 2];
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		assert_true((fds[i] = connect_to(port())) >= 0);
	char token[128];
	get_token("60", token);
	assert_int_equal(get(ROLES "/", token).status, 200);
	assert_int_equal(recv(fds[0], many, 1, 0), 0);
	for (size_t i = 0; i < sizeof(fds) / sizeof(fds[0]); i++)
		close(fds[i]);
}

static void malformed_credentials_are_refused(void **state) {
	static const char *const missing[] = {"accessKeyId", "secretAccessKey", "token", "lastUpdated", "expiration"};
	give("AKID1");
	for (size_t i = 0; i < 5; i++) {
		json_t *c = credentials("AKID2");
		json_object_del(c, missing[i]);
		json_t *r = call(control, "credentials", json_pack("{s:o}", "credentials", c));
		assert_false(json_is_true(json_object_get(r, "ok")));
		assert_non_null(strstr(json_string_value(json_object_get(r, "message")), missing[i]));
		json_decref(r);
	}
	char token[128];
	get_token("60", token);
	assert_non_null(strstr(get(ROLES "/execution_role", token).body, "AKID1"));
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
	const struct CMUnitTest tests[] = {
		TEST(nothing_is_there_without_a_role),
		TEST(credentials_are_served),
		TEST(requests_are_refused),
		TEST(imds_sessions_end),
		TEST(connections_are_kept_and_bounded),
		TEST(malformed_credentials_are_refused),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
