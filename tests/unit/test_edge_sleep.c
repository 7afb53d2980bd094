// Clients of a microVM that falls asleep and wakes while they are connected: the real edge, clients with TLS, and a stand-in for the VMM that
// keeps its streams as a snapshot does (test_edge_double.c). Nothing may be lost, doubled or cut off.
#include "base/clock.h"
#include "base/io.h"
#include "edge/edge.h"
#include "stasisd/workers.h"
#include "test_edge_double.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <cmocka.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEADLINE_MS 20000
#define BIG 4000000u
#define EVENT "6\r\ndata\n\n\r\n"

static char folder[64];
static struct engine engine;
static pthread_t loop_thread;
static int edge_at; // port
static SSL_CTX *client_tls;

// The application. ------------------------------------------------------------------------------------------------------------

static _Atomic unsigned requests; // that the application saw
static _Atomic unsigned ended;    // connections whose end it saw
static _Atomic bool go;           // /slow may answer

static uint8_t pattern(size_t at) {
	return (uint8_t)((at * 2654435761u) >> 13);
}

static void say(int fd, const char *text) {
	write_full(fd, text, strlen(text));
}

static void send_pattern(int fd) {
	uint8_t data[10000];
	for (size_t at = 0; at < BIG;) {
		size_t n = 0;
		for (; n < sizeof(data) && at < BIG; n++)
			data[n] = pattern(at++);
		if (write_full(fd, data, n) < 0)
			return;
	}
}

static void echo(int fd) {
	char data[8192];
	ssize_t n;
	while ((n = read(fd, data, sizeof(data))) > 0 && write_full(fd, data, (size_t)n) == 0)
		;
}

// Answers one request on a connection; false: it ends.
static bool serve_request(int fd, const char *head) {
	requests++;
	if (strncmp(head, "GET /echo ", 10) == 0) {
		say(fd, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
		echo(fd);
		return false;
	}
	if (strncmp(head, "GET /slow ", 10) == 0) {
		while (!go)
			usleep(1000);
		say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nslow");
		return true;
	}
	if (strncmp(head, "GET /events ", 12) == 0 || strncmp(head, "GET /file ", 10) == 0) {
		bool events = head[5] == 'e';
		say(fd, events ? "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n" EVENT
			       : "HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf");
		while (!go)
			usleep(1000);
		say(fd, events ? EVENT "0\r\n\r\n" : "rest");
		return true;
	}
	if (strncmp(head, "GET /big ", 9) == 0) {
		say(fd, "HTTP/1.1 200 OK\r\n\r\n"); // until the connection ends
		send_pattern(fd);
		return false;
	}
	say(fd, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfast");
	return true;
}

static void *serve_application(void *arg) {
	int fd = (int)(intptr_t)arg;
	char head[4096];
	size_t used = 0;
	ssize_t n;
	while (used < sizeof(head) - 1 && (n = read(fd, head + used, 1)) == 1) {
		head[++used] = '\0';
		if (used < 4 || memcmp(head + used - 4, "\r\n\r\n", 4) != 0)
			continue;
		used = 0;
		if (!serve_request(fd, head))
			break;
	}
	ended++;
	close(fd);
	return NULL;
}

static void *accept_application(void *arg) {
	int listener = (int)(intptr_t)arg;
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		pthread_t t;
		if (fd >= 0 && pthread_create(&t, NULL, serve_application, (void *)(intptr_t)fd) == 0)
			pthread_detach(t);
	}
	return NULL;
}

static uint16_t start_application(void) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(a);
	pthread_t t;
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1024) < 0 || getsockname(fd, (struct sockaddr *)&a, &size) < 0 ||
	    pthread_create(&t, NULL, accept_application, (void *)(intptr_t)fd) != 0)
		return 0;
	pthread_detach(t);
	return ntohs(a.sin_port);
}

// The client. -----------------------------------------------------------------------------------------------------------------

struct client {
	SSL *ssl;
	int fd;
};

static struct client client_open(void) {
	struct client c = {.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)edge_at), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval t = {.tv_sec = DEADLINE_MS / 1000};
	setsockopt(c.fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(c.fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	c.ssl = SSL_new(client_tls);
	SSL_set_fd(c.ssl, c.fd);
	if (connect(c.fd, (struct sockaddr *)&a, sizeof(a)) < 0 || SSL_connect(c.ssl) != 1)
		fail_msg("no connection to the edge");
	return c;
}

static void client_close(struct client *c) {
	SSL_free(c->ssl);
	close(c->fd);
	ERR_clear_error();
}

static void client_send(struct client *c, const void *data, size_t size) {
	size_t n;
	assert_int_equal(SSL_write_ex(c->ssl, data, size, &n), 1);
}

static void client_ask(struct client *c, const char *target, const char *more) {
	char text[4096], token[TOKEN_ROOM];
	struct token_claims claims = {.kind = TOKEN_HTTP, .expires_ms = (int64_t)realtime_ms() + 3600000};
	snprintf(claims.microvm, sizeof(claims.microvm), "%s", double_id(DOUBLE_RUNNING));
	assert_int_equal(token_add_ports(&claims, 8080, 8080, NULL), 0);
	assert_int_equal(edge_mint_token(&engine, &claims, token, NULL), 0);
	int n = snprintf(text, sizeof(text), "GET %s HTTP/1.1\r\nHost: %s.microvm.localhost\r\nX-aws-proxy-auth: %s\r\n%s\r\n", target,
			 DOUBLE_RUNNING, token, more);
	client_send(c, text, (size_t)n);
}

// Exactly this is the next that comes.
static void client_expect(struct client *c, const char *text) {
	char got[1024] = "";
	for (size_t used = 0; used < strlen(text);) {
		int n = SSL_read(c->ssl, got + used, (int)(strlen(text) - used));
		if (n <= 0)
			fail_msg("'%s' came, not '%s'", got, text);
		used += (size_t)n;
	}
	assert_memory_equal(got, text, strlen(text));
}

// The next that comes is the end.
static void client_expect_end(struct client *c) {
	char byte;
	assert_true(SSL_read(c->ssl, &byte, 1) <= 0);
}

static struct client open_echo(void) {
	struct client c = client_open();
	client_ask(&c, "/echo", "Connection: Upgrade\r\nUpgrade: echo\r\n");
	client_expect(&c, "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUpgrade: echo\r\n\r\n");
	client_send(&c, "one", 3);
	client_expect(&c, "one");
	return c;
}

static void wait_for(_Atomic unsigned *what, unsigned value) {
	for (int i = 0; i < DEADLINE_MS && *what != value; i++)
		usleep(1000);
	assert_int_equal(*what, value);
}

#define FAST "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfast"
#define EVENTS "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n" EVENT
#define FILE_BEGINS "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf"
#define SLOW "HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nslow"

// Tests. ----------------------------------------------------------------------------------------------------------------------

static void tunnels_go_on(void **state) {
	struct client c = open_echo();
	for (int i = 0; i < 3; i++) {
		unsigned wakes = double_wakes;
		double_sleep(&engine);
		wait_for(&double_detached, 1);
		usleep(20000);
		assert_int_equal(double_wakes, wakes); // a silent stream wakes nobody
		client_send(&c, "two", 3);
		client_expect(&c, "two");
		assert_int_equal(double_wakes, wakes + 1);
		assert_int_equal(double_detached, 0);
	}
	// Woken by somebody else.
	double_sleep(&engine);
	double_awake(&engine);
	client_send(&c, "three", 5);
	client_expect(&c, "three");
	client_close(&c);
}

static void keep_alive_goes_on(void **state) {
	struct client c = client_open();
	client_ask(&c, "/fast", "");
	client_expect(&c, FAST);
	double_sleep(&engine);
	client_ask(&c, "/fast", "");
	client_expect(&c, FAST);
	client_close(&c);
}

static void requests_survive(void **state) {
	struct client c = client_open();
	unsigned seen = requests, wakes = double_wakes;
	go = false;
	client_ask(&c, "/slow", "");
	wait_for(&requests, seen + 1);
	double_sleep(&engine);
	go = true;
	client_expect(&c, SLOW); // somebody waits, and not for long yet: that wakes it
	assert_int_equal(double_wakes, wakes + 1);
	assert_int_equal(requests, seen + 1);
	assert_int_equal(double_unanswered, 0);
	client_close(&c);
}

// Nor does a resume that fails cost them anything.
static void requests_sleep_along(void **state) {
	struct client c = client_open();
	unsigned seen = requests;
	go = false;
	client_ask(&c, "/slow", "");
	wait_for(&requests, seen + 1);
	double_on_wake = DOUBLE_FAILS;
	double_sleep(&engine);
	go = true;
	usleep(50000 + 1000 * (unsigned)double_wake_ms);
	double_on_wake = DOUBLE_WAKES;
	double_awake(&engine);
	client_expect(&c, SLOW);
	assert_int_equal(requests, seen + 1);
	client_close(&c);
}

// A download goes on by itself, an event stream waits for somebody.
static void only_what_ends_wakes(void **state) {
	struct client file = client_open(), events = client_open();
	go = false;
	client_ask(&events, "/events", "");
	client_expect(&events, EVENTS);
	double_sleep(&engine);
	unsigned wakes = double_wakes;
	usleep(50000 + 1000 * (unsigned)double_wake_ms);
	assert_int_equal(double_wakes, wakes);
	double_awake(&engine);
	client_ask(&file, "/file", "");
	client_expect(&file, FILE_BEGINS);
	double_sleep(&engine);
	go = true;
	client_expect(&file, "rest");
	client_expect(&events, EVENT "0\r\n\r\n");
	assert_int_equal(double_wakes, wakes + 1);
	client_close(&file);
	client_close(&events);
}

// What waits for the microVM without auto-resume goes on when somebody resumes it.
static void bytes_wait(void **state) {
	struct client c = open_echo();
	double_on_wake = DOUBLE_STAYS;
	double_sleep(&engine);
	client_send(&c, "patience", 8);
	usleep(50000);
	assert_int_equal(double_detached, 1);
	double_awake(&engine);
	client_expect(&c, "patience");
	double_on_wake = DOUBLE_WAKES;
	client_close(&c);
}

static void failed_resumes_end_those_who_asked(void **state) {
	struct client asks = open_echo(), silent = open_echo();
	double_on_wake = DOUBLE_FAILS;
	double_sleep(&engine);
	client_send(&asks, "x", 1);
	client_expect_end(&asks);
	struct client next = client_open();
	client_ask(&next, "/fast", "");
	client_expect(&next, "HTTP/1.1 502 ");
	double_on_wake = DOUBLE_WAKES;
	client_send(&silent, "two", 3); // tries again
	client_expect(&silent, "two");
	client_close(&asks);
	client_close(&next);
	client_close(&silent);
}

static void leaving_clients_end_their_streams(void **state) {
	struct client c = open_echo();
	unsigned before = ended;
	double_sleep(&engine);
	client_close(&c);
	usleep(100000);
	assert_int_equal(ended, before);
	double_awake(&engine);
	wait_for(&ended, before + 1);
	assert_int_equal(double_detached, 0);
}

// The client reads slowly, so that bytes are everywhere as the microVM falls asleep.
static void downloads_are_whole(void **state) {
	struct client c = client_open();
	uint8_t data[20000];
	client_ask(&c, "/big", "Connection: close\r\n");
	client_expect(&c, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n");
	size_t at = 0, sleeps = 0;
	char line[16];
	for (size_t next = BIG / 16;;) {
		size_t used = 0;
		while (used < sizeof(line) - 1 && (used < 2 || line[used - 1] != '\n'))
			assert_int_equal(SSL_read(c.ssl, line + used++, 1), 1);
		line[used] = '\0';
		size_t size = strtoul(line, NULL, 16), have = 0;
		assert_true(size < sizeof(data));
		while (have < size + 2) {
			int n = SSL_read(c.ssl, data + have, (int)(size + 2 - have));
			assert_true(n > 0);
			have += (size_t)n;
		}
		for (size_t i = 0; i < size; i++)
			if (data[i] != pattern(at++))
				fail_msg("byte %zu is wrong after %zu sleeps", at - 1, sleeps);
		if (size == 0)
			break;
		if (at >= next) {
			next += BIG / 16;
			double_sleep(&engine);
			sleeps++;
			if (sleeps % 2 == 0)
				usleep(5000);
			double_awake(&engine);
		}
	}
	assert_int_equal(at, BIG);
	assert_in_range(sleeps, 10, 20);
	client_close(&c);
}

static _Atomic bool sleeping;
static void *sleep_often(void *arg) {
	unsigned seed = 3;
	for (int i = 0; i < 25 && sleeping; i++) {
		usleep((unsigned)rand_r(&seed) % 20000);
		double_sleep(&engine);
		usleep((unsigned)rand_r(&seed) % 10000);
		double_awake(&engine);
	}
	return NULL;
}

static void tunnels_lose_nothing(void **state) {
	struct client c = open_echo();
	pthread_t sleeper;
	uint8_t data[30000], got[30000];
	unsigned seed = 11;
	sleeping = true;
	assert_int_equal(pthread_create(&sleeper, NULL, sleep_often, NULL), 0);
	for (size_t at = 0; at < BIG / 2;) {
		size_t n = (size_t)rand_r(&seed) % sizeof(data) + 1, have = 0;
		for (size_t i = 0; i < n; i++)
			data[i] = pattern(at + i);
		client_send(&c, data, n);
		while (have < n) {
			int r = SSL_read(c.ssl, got + have, (int)(n - have));
			assert_true(r > 0);
			have += (size_t)r;
		}
		assert_memory_equal(got, data, n);
		at += n;
	}
	sleeping = false;
	pthread_join(sleeper, NULL);
	client_close(&c);
}

struct asker {
	pthread_t thread;
	bool fine;
};

static void *ask_once(void *arg) {
	struct asker *a = arg;
	struct client c = client_open();
	char got[sizeof(FAST)] = "";
	client_ask(&c, "/fast", "");
	for (size_t used = 0; used < sizeof(FAST) - 1;) {
		int n = SSL_read(c.ssl, got + used, (int)(sizeof(FAST) - 1 - used));
		if (n <= 0)
			break;
		used += (size_t)n;
	}
	a->fine = strcmp(got, FAST) == 0;
	client_close(&c);
	return NULL;
}

static void crowds_are_answered(void **state) {
	static struct asker all[200];
	unsigned seen = requests;
	double_wake_ms = 300;
	double_sleep(&engine);
	for (size_t i = 0; i < 200; i++)
		assert_int_equal(pthread_create(&all[i].thread, NULL, ask_once, &all[i]), 0);
	for (size_t i = 0; i < 200; i++) {
		pthread_join(all[i].thread, NULL);
		assert_true(all[i].fine);
	}
	assert_int_equal(requests, seen + 200); // each exactly once
	double_wake_ms = 10;
}

static void ends_end_streams(void **state) {
	struct client asleep = open_echo(), waiting = client_open();
	unsigned seen = requests;
	go = false;
	client_ask(&waiting, "/slow", "");
	wait_for(&requests, seen + 1);
	double_sleep(&engine);
	double_end(&engine);
	client_expect_end(&asleep);
	client_expect(&waiting, "HTTP/1.1 502 ");
	go = true;
	client_close(&asleep);
	client_close(&waiting);
}

// Set-up. ---------------------------------------------------------------------------------------------------------------------

static sem_t started;
static bool start_failed;

static void *run_loop(void *arg) {
	struct error e = {0};
	start_failed = edge_start(&engine, &e) < 0;
	edge_at = start_failed ? 0 : edge_port(&engine);
	sem_post(&started);
	uv_run(engine.loop, UV_RUN_DEFAULT);
	return NULL;
}

static void stop_loop(void *arg) {
	edge_stop(&engine);
	loop_queue_stop(&engine);
}

static int set_up(void **state) {
	static uv_loop_t loop;
	signal(SIGPIPE, SIG_IGN);
	double_wake_ms = 10;
	snprintf(folder, sizeof(folder), "/tmp/stasis-edge-XXXXXX");
	if (mkdtemp(folder) == NULL || uv_loop_init(&loop) < 0 || sem_init(&started, 0, 0) < 0)
		return -1;
	engine.loop = &loop;
	snprintf(engine.config.state_folder, sizeof(engine.config.state_folder), "%s", folder);
	snprintf(engine.config.edge_listen, sizeof(engine.config.edge_listen), "127.0.0.1:0");
	snprintf(engine.config.edge_domain, sizeof(engine.config.edge_domain), "microvm.localhost");
	uint16_t application = start_application();
	if (application == 0 || double_start(folder, 8080, application) < 0 || loop_queue_start(&engine, NULL) < 0 ||
	    pthread_create(&loop_thread, NULL, run_loop, NULL) != 0)
		return -1;
	sem_wait(&started);
	client_tls = SSL_CTX_new(TLS_client_method());
	return start_failed ? -1 : 0;
}

// The loop ends by itself when every handle is closed, also those of streams that sleep.
static int tear_down(void **state) {
	loop_submit(&engine, stop_loop, NULL);
	pthread_join(loop_thread, NULL);
	int r = uv_loop_close(engine.loop);
	SSL_CTX_free(client_tls);
	remove_tree(folder, NULL);
	return r == 0 && double_held == 0 && double_unanswered == 0 ? 0 : -1;
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(tunnels_go_on),
		cmocka_unit_test(keep_alive_goes_on),
		cmocka_unit_test(requests_survive),
		cmocka_unit_test(requests_sleep_along),
		cmocka_unit_test(only_what_ends_wakes),
		cmocka_unit_test(bytes_wait),
		cmocka_unit_test(failed_resumes_end_those_who_asked),
		cmocka_unit_test(leaving_clients_end_their_streams),
		cmocka_unit_test(downloads_are_whole),
		cmocka_unit_test(tunnels_lose_nothing),
		cmocka_unit_test(crowds_are_answered),
		cmocka_unit_test(ends_end_streams),
	};
	return cmocka_run_group_tests_name("edge_sleep", tests, set_up, tear_down);
}
