// What keeps a microVM awake: the image's choice, leases, samples, the application's requests, and the network in which they are made.
#include "base/clock.h"
#include "guest/busy.h"
#include "guest/guest.h"
#include "guest/network.h"

#include <arpa/inet.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define SECOND 1000000000ull

static struct loop loop;
static struct events events;
static struct busy busy;
static char cgroup[] = "/tmp/stasis-busy-XXXXXX";

static void put_cpu(unsigned long long usec) {
	char path[64];
	snprintf(path, sizeof(path), "%s/cpu.stat", cgroup);
	FILE *f = fopen(path, "we");
	fprintf(f, "usage_usec %llu\nuser_usec 1\nsystem_usec 1\n", usec);
	fclose(f);
}

static int set_up(void **state) {
	struct error e;
	strcpy(cgroup + strlen(cgroup) - 6, "XXXXXX");
	assert_non_null(mkdtemp(cgroup));
	assert_int_equal(loop_init(&loop, &e), 0);
	assert_int_equal(events_init(&events, &loop, &e), 0);
	busy_init(&busy, &(struct local_http){.loop = &loop, .address.s_addr = htonl(INADDR_LOOPBACK)}, &events);
	return 0;
}

static int tear_down(void **state) {
	char path[64];
	busy_end(&busy);
	events_end(&events);
	loop_end(&loop);
	snprintf(path, sizeof(path), "%s/cpu.stat", cgroup);
	unlink(path);
	rmdir(cgroup);
	return 0;
}

static void begin(const char *choice) {
	struct busy_policy p;
	struct error e = {0};
	assert_int_equal(busy_parse(choice, &p, &e), 0);
	if (busy_begin(&busy, &p, cgroup, &e) < 0)
		fail_msg("%s", e.message);
}

// Status of the answer to "<method> <target>"; the body goes to `body`.
static int ask(const char *request, const char *more, char *body) {
	static struct http_head h;
	char text[512], answer[LOCAL_HTTP_ANSWER_MAX];
	struct error e;
	int n = snprintf(text, sizeof(text), "%s HTTP/1.1\r\nHost: 169.254.169.253\r\n%s\r\n", request, more), status = 0;
	assert_int_equal(http_parse_request(text, (size_t)n, &h, &e), n);
	size_t size = busy_answer(&busy, &h, answer);
	assert_in_range(size, 20, sizeof(answer) - 1);
	answer[size] = '\0';
	assert_int_equal(sscanf(answer, "HTTP/1.1 %d", &status), 1);
	if (body != NULL)
		snprintf(body, LOCAL_HTTP_ANSWER_MAX, "%s", strstr(answer, "\r\n\r\n") + 4);
	return status;
}

static void choices_are_read(void **state) {
	static const struct {
		const char *text;
		struct busy_policy policy;
	} good[] = {
		{NULL, {.leases = true}},
		{"", {0}},
		{"none", {0}},
		{" none ,", {0}},
		{"lease", {.leases = true}},
		{"cpu", {.cpu_percent = BUSY_CPU_PERCENT}},
		{"network, cpu=1600\tlease", {.leases = true, .cpu_percent = 1600, .network = true}},
	};
	static const char *const bad[] = {"none lease",
					  "cpu=",
					  "cpu=0",
					  "cpu=1601",
					  "cpu=5%",
					  "cpu=-1",
					  "CPU",
					  "leases",
					  "cpu=99999999999999999999",
					  "a-word-that-is-longer-than-any-that-there-is"};
	struct busy_policy p;
	struct error e;
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		assert_int_equal(busy_parse(good[i].text, &p, &e), 0);
		assert_int_equal(p.leases, good[i].policy.leases);
		assert_int_equal(p.network, good[i].policy.network);
		assert_int_equal(p.cpu_percent, good[i].policy.cpu_percent);
	}
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		e = (struct error){0};
		if (busy_parse(bad[i], &p, &e) >= 0)
			fail_msg("%s was taken", bad[i]);
		assert_string_equal(e.name, "IMAGE_CONFIG_INVALID");
		assert_non_null(strstr(e.message, BUSY_VARIABLE));
	}
}

static void leases_keep_it_awake(void **state) {
	char why[BUSY_WHY_MAX], body[LOCAL_HTTP_ANSWER_MAX];
	begin(NULL);
	assert_true(busy_idle_ns(&busy, why) > 0);
	assert_string_equal(why, "");
	assert_int_equal(ask("PUT /leases/night.run_1?seconds=1", "Content-Length: 0\r\n", body), 200);
	assert_string_equal(body, "{\"name\":\"night.run_1\",\"seconds\":1}");
	assert_int_equal(busy_idle_ns(&busy, why), 0);
	assert_string_equal(why, "lease night.run_1");
	// Renewed, and then for less.
	assert_int_equal(ask("PUT /leases/night.run_1?seconds=86400", "", NULL), 200);
	assert_int_equal(ask("GET /leases", "", body), 200);
	assert_string_equal(body, "{\"leases\":[{\"name\":\"night.run_1\",\"seconds\":86400}]}");
	assert_int_equal(ask("PUT /leases/night.run_1?seconds=1", "", NULL), 200);
	usleep(1200000);
	// It was busy until the lease's end, not until now.
	uint64_t idle = busy_idle_ns(&busy, why);
	assert_in_range(idle, SECOND / 10, SECOND);
	assert_string_equal(why, "lease night.run_1");
	assert_int_equal(ask("DELETE /leases/night.run_1", "", NULL), 404);
	// One that is ended counts until then.
	assert_int_equal(ask("PUT /leases/a?seconds=600", "", NULL), 200);
	assert_int_equal(ask("DELETE /leases/a", "", NULL), 200);
	assert_in_range(busy_idle_ns(&busy, why), 1, SECOND / 10);
	assert_int_equal(ask("GET /leases", "", body), 200);
	assert_string_equal(body, "{\"leases\":[]}");
}

static void leases_are_bounded(void **state) {
	char request[128], body[LOCAL_HTTP_ANSWER_MAX];
	begin("lease");
	for (int i = 0; i < BUSY_LEASES_MAX; i++) {
		snprintf(request, sizeof(request), "PUT /leases/%064d?seconds=86400", i);
		assert_int_equal(ask(request, "", NULL), 200);
	}
	assert_int_equal(ask("PUT /leases/one-more?seconds=1", "", body), 429);
	assert_int_equal(ask(request, "", NULL), 200); // one that is held
	assert_int_equal(ask("GET /leases", "", body), 200);
	assert_int_equal(strncmp(body + strlen(body) - 2, "]}", 2), 0);
}

static void requests_are_refused(void **state) {
	static const struct {
		const char *request, *more;
		int status;
	} cases[] = {
		{"PUT /leases/a", "", 400},
		{"PUT /leases/a?seconds=", "", 400},
		{"PUT /leases/a?seconds=0", "", 400},
		{"PUT /leases/a?seconds=86401", "", 400},
		{"PUT /leases/a?seconds=-1", "", 400},
		{"PUT /leases/a?seconds=1&x=2", "", 400},
		{"PUT /leases/?seconds=1", "", 404},
		{"PUT /leases/a/b?seconds=1", "", 400},
		{"PUT /leases/%61?seconds=1", "", 400},
		{"PUT /leases/0123456789012345678901234567890123456789012345678901234567890123x?seconds=1", "", 400},
		{"PUT /leases?seconds=1", "", 405},
		{"GET /leases/a", "", 405},
		{"GET /suspend", "", 405},
		{"POST /leases/a", "", 405},
		{"GET /", "", 404},
		{"POST /suspend", "X-Forwarded-For: 1.2.3.4\r\n", 403},
	};
	char why[BUSY_WHY_MAX];
	begin("lease");
	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++)
		if (ask(cases[i].request, cases[i].more, NULL) != cases[i].status)
			fail_msg("%s", cases[i].request);
	assert_int_equal(events.used, 0);
	busy_idle_ns(&busy, why);
	assert_string_equal(why, "");
}

static void what_the_image_does_not_choose_does_not_count(void **state) {
	char why[BUSY_WHY_MAX], body[LOCAL_HTTP_ANSWER_MAX];
	begin("none");
	assert_int_equal(ask("PUT /leases/a?seconds=60", "", body), 403);
	assert_non_null(strstr(body, BUSY_VARIABLE));
	assert_false(busy.sampler.armed);
	busy_idle_ns(&busy, why);
	assert_string_equal(why, "");
	// To sleep is always allowed.
	assert_int_equal(ask("POST /suspend", "", NULL), 202);
	assert_true(events.used > 0);
}

static void processors_count_above_the_threshold(void **state) {
	char why[BUSY_WHY_MAX];
	put_cpu(1000000);
	begin("cpu=50");
	assert_true(busy.sampler.armed);
	usleep(100000);
	put_cpu(1000000 + 20000); // a fifth of the time, at most
	busy.sampler.fire(&busy.sampler);
	busy_idle_ns(&busy, why);
	assert_string_equal(why, "");
	usleep(20000);
	put_cpu(1000000 + 20000 + 10000000);
	busy.sampler.fire(&busy.sampler);
	assert_true(busy_idle_ns(&busy, why) < SECOND / 10);
	assert_string_equal(why, "cpu");
}

// In a child with a network namespace of its own: an application that has all addresses at port 80 leaves room for the service, and reaches it.
static int use_side(void) {
	struct network_side side;
	struct in_addr service;
	struct error e = {0};
	int one = 1;
	inet_pton(AF_INET, BUSY_ADDRESS, &service);
	if (unshare(CLONE_NEWNET) < 0)
		return 77;
	int r = network_loopback(&e);
	if (r == 0)
		r = network_side_make(&side, &service, 1, &e);
	if (r < 0) {
		fprintf(stderr, "%s\n", e.message);
		return r == -EOPNOTSUPP ? 77 : 1;
	}
	struct sockaddr_in any = {.sin_family = AF_INET, .sin_port = htons(BUSY_PORT)}, at = any;
	at.sin_addr = service;
	int application = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(application, (struct sockaddr *)&any, sizeof(any)) < 0 || listen(application, 1) < 0)
		return 2;
	int served = network_side_socket(&side);
	if (served < 0 || setsockopt(served, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(served, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(served, 1) < 0)
		return 3;
	int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (connect(client, (struct sockaddr *)&at, sizeof(at)) < 0)
		return 4;
	return accept4(served, NULL, NULL, SOCK_CLOEXEC) >= 0 ? 0 : 5;
}

static void the_service_takes_no_port(void **state) {
	int status = 0;
	pid_t pid = fork();
	if (pid == 0)
		_exit(use_side());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77) {
		print_message("no network namespaces or veth here: skipped\n");
		skip();
	}
	assert_int_equal(status, 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(choices_are_read),
		TEST(leases_keep_it_awake),
		TEST(leases_are_bounded),
		TEST(requests_are_refused),
		TEST(what_the_image_does_not_choose_does_not_count),
		TEST(processors_count_above_the_threshold),
		cmocka_unit_test(the_service_takes_no_port),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
