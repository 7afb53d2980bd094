// The edge from outside: a TLS client that writes raw bytes, the real edge, and an application that answers as it is told. What stands in
// for microVMs is in test_edge_double.c.
#include "base/clock.h"
#include "base/http1.h"
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
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define LEN(a) (sizeof(a) / sizeof((a)[0]))
#define DEADLINE_MS 15000

static char folder[64];
static struct engine engine;
static pthread_t loop_thread;
static int edge_at; // port
static SSL_CTX *client_tls;

// The application. ------------------------------------------------------------------------------------------------------------

static _Atomic unsigned requests; // that the application saw
static _Atomic unsigned gone;     // /hold: connections that were closed
static _Atomic bool go;           // /wait: may answer

static const struct {
	const char *path, *response;
	size_t size; // 0: up to the NUL
} canned[] = {
	{"/c/length", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello", 0},
	{"/c/chunked", "HTTP/1.1 200 Fine\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=\"1\"\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 0},
	{"/c/trailers",
	 "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\nContent-Length: 9\r\n\r\n",
	 0},
	{"/c/close", "HTTP/1.1 200 OK\r\n\r\nuntil the end", 0},
	{"/c/old", "HTTP/1.0 200 OK\r\nServer: old\r\n\r\nold", 0},
	{"/c/204", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 0},
	{"/c/304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 55\r\nETag: \"a\"\r\n\r\n", 0},
	{"/c/head", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n", 0},
	{"/c/hop",
	 "HTTP/1.1 200 OK\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\nX-Hop: 1\r\nX-End: 2\r\nUpgrade: "
	 "h2c\r\nContent-Length: 0\r\n\r\n",
	 0},
	{"/c/hints",
	 "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!", 0},
	{"/c/early", "HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\n\r\nmuch", 0},
	// What is no proper response.
	{"/b/empty", "", 0},
	{"/b/garbage", "SSH-2.0-OpenSSH_9.2\r\n\r\n", 0},
	{"/b/half", "HTTP/1.1 200 OK\r\nContent-Le", 0},
	{"/b/lf", "HTTP/1.1 200 OK\nContent-Length: 0\n\n", 0},
	{"/b/both", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 0},
	{"/b/lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 0},
	{"/b/fold", "HTTP/1.1 200 OK\r\nX: y\r\n z\r\nContent-Length: 0\r\n\r\n", 0},
	{"/b/switch", "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", 0},
	{"/b/h2", "HTTP/2 200 OK\r\n\r\n", 0},
	// What breaks off in the midst of the body.
	{"/t/length", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", 0},
	{"/t/chunked", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 0},
	{"/t/badchunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n", 0},
};

struct text {
	char *data;
	size_t size, room;
};

static void text_add(struct text *t, const void *data, size_t n) {
	if (t->size + n + 1 > t->room) {
		t->room = (t->size + n + 1) * 2;
		t->data = realloc(t->data, t->room);
	}
	memcpy(t->data + t->size, data, n);
	t->size += n;
	t->data[t->size] = '\0';
}

static void say(int fd, const char *text) {
	write_full(fd, text, strlen(text));
}

static void respond(int fd, const char *content, size_t size) {
	char head[128];
	int n = snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", size);
	if (write_full(fd, head, (size_t)n) == 0)
		write_full(fd, content, size);
}

// Reads one whole request: head and decoded body. False at the end of the connection.
static bool read_request(int fd, struct text *pending, struct http_head *h, struct text *head, struct text *body, bool *no_body) {
	char data[16384];
	struct http_body b;
	bool have_head = false;
	*head = *body = (struct text){0};
	for (;;) {
		if (!have_head) {
			ssize_t n = http_parse_request(pending->data == NULL ? "" : pending->data, pending->size, h, NULL);
			if (n < 0)
				return false;
			if (n > 0) {
				have_head = true;
				text_add(head, pending->data, (size_t)n);
				http_parse_request(head->data, head->size, h, NULL);
				http_body_start(&b, h);
				memmove(pending->data, pending->data + n, pending->size - (size_t)n);
				pending->size -= (size_t)n;
				*no_body = slice_equals(h->target, "/c/early") || slice_equals(h->target, "/refuse");
				if (h->expect_continue && !*no_body)
					say(fd, "HTTP/1.1 100 Continue\r\n\r\n");
			}
		}
		while (have_head && !*no_body && !b.done && pending->size > 0) {
			struct slice s;
			ssize_t n = http_body_feed(&b, pending->data, pending->size, &s, NULL);
			if (n < 0)
				return false;
			text_add(body, s.data, s.size);
			memmove(pending->data, pending->data + n, pending->size - (size_t)n);
			pending->size -= (size_t)n;
		}
		if (have_head && (*no_body || b.done))
			return true;
		ssize_t n = read(fd, data, sizeof(data));
		if (n <= 0)
			return false;
		text_add(pending, data, (size_t)n);
	}
}

// Answers one request; false: the connection ends.
static bool serve_request(int fd, const struct http_head *h, const struct text *head, const struct text *body, unsigned number) {
	char data[4096];
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	for (size_t i = 0; i < LEN(canned); i++) {
		if (slice_equals(h->target, canned[i].path)) {
			write_full(fd, canned[i].response, strlen(canned[i].response));
			return h->target.data[1] == 'c' && strstr("/c/close /c/old /c/early", canned[i].path) == NULL;
		}
	}
	if (slice_equals(h->target, "/hold")) {
		while (read(fd, data, sizeof(data)) > 0)
			;
		gone++;
		return false;
	}
	if (slice_equals(h->target, "/wait")) {
		while (!go)
			usleep(1000);
	}
	if (slice_equals(h->target, "/stale") && number > 1)
		return false;
	if (slice_equals(h->target, "/number")) {
		int n = snprintf(data, sizeof(data), "number %u", number);
		respond(fd, data, (size_t)n);
		return true;
	}
	if (slice_equals(h->target, "/bighead")) {
		size_t size = 31000;
		char *big = malloc(size);
		memset(big, 'x', size);
		say(fd, "HTTP/1.1 200 OK\r\nX: ");
		write_full(fd, big, size);
		say(fd, "\r\nContent-Length: 2\r\n\r\nok");
		free(big);
		return true;
	}
	if (slice_equals(h->target, "/hugehead")) {
		memset(data, 'x', sizeof(data));
		say(fd, "HTTP/1.1 200 OK\r\nX: ");
		while (write_full(fd, data, sizeof(data)) == 0)
			;
		return false;
	}
	if (h->upgrade) {
		const struct http_header *offered = http_find(h, "sec-websocket-protocol");
		say(fd, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\nX-A: b\r\n");
		if (offered != NULL) {
			// What was offered, for the test to see, and the selection of one of it.
			int n = snprintf(data, sizeof(data), "X-Offered: %.*s\r\n%s", (int)offered->value.size, offered->value.data,
					 slice_has_token(offered->value, "chat") ? "Sec-WebSocket-Protocol: chat\r\n" : "");
			write_full(fd, data, (size_t)n);
		}
		say(fd, "\r\nfirst");
		ssize_t n;
		while ((n = read(fd, data, sizeof(data))) > 0)
			write_full(fd, data, (size_t)n);
		say(fd, "last");
		return false;
	}
	struct text all = {0};
	text_add(&all, head->data, head->size);
	text_add(&all, "|", 1);
	text_add(&all, body->data == NULL ? "" : body->data, body->size);
	respond(fd, all.data, all.size);
	free(all.data);
	return true;
}

static void *serve_application(void *arg) {
	int fd = (int)(intptr_t)arg;
	struct http_head *h = malloc(sizeof(*h));
	struct text pending = {0}, head, body;
	bool more = true, no_body;
	for (unsigned number = 1; more; number++) {
		more = read_request(fd, &pending, h, &head, &body, &no_body);
		if (more) {
			requests++;
			more = serve_request(fd, h, &head, &body, number);
		}
		free(head.data);
		free(body.data);
	}
	free(pending.data);
	free(h);
	shutdown(fd, SHUT_WR);
	char data[4096];
	struct pollfd p = {.fd = fd, .events = POLLIN};
	while (poll(&p, 1, 200) > 0 && read(fd, data, sizeof(data)) > 0)
		;
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
	struct text got;
};

static int connect_edge(void) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)edge_at), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct timeval t = {.tv_sec = DEADLINE_MS / 1000};
	assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
	return fd;
}

static struct client *client_open(void) {
	struct client *c = calloc(1, sizeof(*c));
	c->fd = connect_edge();
	c->ssl = SSL_new(client_tls);
	SSL_set_fd(c->ssl, c->fd);
	SSL_set_tlsext_host_name(c->ssl, DOUBLE_RUNNING ".microvm.localhost");
	SSL_set1_host(c->ssl, DOUBLE_RUNNING ".microvm.localhost");
	assert_int_equal(SSL_connect(c->ssl), 1);
	return c;
}

static void client_close(struct client *c) {
	SSL_free(c->ssl);
	close(c->fd);
	free(c->got.data);
	free(c);
}

static void client_send(struct client *c, const char *data, size_t size) {
	size_t n = 0;
	if (size > 0)
		assert_int_equal(SSL_write_ex(c->ssl, data, size, &n), 1);
}

static void client_say(struct client *c, const char *text) {
	client_send(c, text, strlen(text));
}

// One read. False at the end; *clean tells whether it came with a close_notify.
static bool client_read(struct client *c, bool *clean) {
	char data[16384];
	int n = SSL_read(c->ssl, data, sizeof(data));
	if (n > 0) {
		text_add(&c->got, data, (size_t)n);
		return true;
	}
	int why = SSL_get_error(c->ssl, n);
	if (why == SSL_ERROR_WANT_READ || (why == SSL_ERROR_SYSCALL && errno == EAGAIN))
		fail_msg("no answer in time; so far: %s", c->got.data);
	*clean = why == SSL_ERROR_ZERO_RETURN;
	ERR_clear_error();
	return false;
}

static void client_until(struct client *c, const char *text) {
	bool clean;
	while (c->got.data == NULL || memmem(c->got.data, c->got.size, text, strlen(text)) == NULL)
		if (!client_read(c, &clean))
			fail_msg("ended before '%s'; got: %s", text, c->got.data);
}

static bool client_to_end(struct client *c) {
	bool clean = false;
	while (client_read(c, &clean))
		;
	if (c->got.data == NULL)
		text_add(&c->got, "", 0);
	return clean;
}

static void client_forget(struct client *c) {
	free(c->got.data);
	c->got = (struct text){0};
}

static const char *token_for(const char *endpoint, uint32_t first, uint32_t last, int64_t expires_ms, enum token_kind kind) {
	static char token[TOKEN_ROOM];
	struct token_claims c = {.kind = kind, .expires_ms = expires_ms, .minted_ms = (int64_t)realtime_ms()};
	snprintf(c.microvm, sizeof(c.microvm), "%s", double_id(endpoint));
	if (first != 0)
		assert_int_equal(token_add_ports(&c, first, last, NULL), 0);
	assert_int_equal(edge_mint_token(&engine, &c, token, NULL), 0);
	return token;
}

static const char *good_token(const char *endpoint) {
	return token_for(endpoint, 1, 65535, (int64_t)realtime_ms() + 3600000, TOKEN_HTTP);
}

// A request to an endpoint with a good token; `more`: further header lines.
static const char *request_to(const char *endpoint, const char *line, const char *more) {
	static char text[4096];
	snprintf(text, sizeof(text), "%s HTTP/1.1\r\nHost: %s.microvm.localhost\r\nX-aws-proxy-auth: %s\r\n%s\r\n", line, endpoint,
		 good_token(endpoint), more);
	return text;
}

static const char *request(const char *line, const char *more) {
	return request_to(DOUBLE_RUNNING, line, more);
}

// Sends one request with `Connection: close` and returns the whole answer; free it.
static char *ask(const char *text, size_t size) {
	struct client *c = client_open();
	client_send(c, text, size);
	client_to_end(c);
	char *got = c->got.data;
	c->got.data = NULL;
	client_close(c);
	return got;
}

static void expect_answer(const char *text, const char *start, const char *end) {
	char *got = ask(text, strlen(text));
	if (strncmp(got, start, strlen(start)) != 0 || strlen(got) < strlen(end) || strcmp(got + strlen(got) - strlen(end), end) != 0)
		fail_msg("expected '%s'…'%s', got: %s", start, end, got);
	free(got);
}

static void wait_released(void) {
	for (int i = 0; i < DEADLINE_MS && double_held != 0; i++)
		usleep(1000);
	assert_int_equal(double_held, 0);
}

// Tests. ----------------------------------------------------------------------------------------------------------------------

static void guards_the_endpoint(void **state) {
	char token[TOKEN_ROOM], text[4096];
	unsigned opened = double_opened, seen = requests;
	int64_t later = (int64_t)realtime_ms() + 60000;
	static const char *const R = DOUBLE_RUNNING ".microvm.localhost";
	const struct {
		const char *host, *token, *more;
		int status;
		const char *body;
	} cases[] = {
		{R, NULL, "", 403, "Request missing authentication"},
		{R, "", "", 403, "Request missing authentication"},
		{R, "nonsense", "", 403, "Request missing authentication"},
		{R, "a.b.c.d.e", "", 403, "Request missing authentication"},
		{"unknown.example", "nonsense", "", 403, "Request missing authentication"},
		{"unknown.example", "@good", "", 403, "Token authentication failed"},
		{"", "@good", "", 403, "Token authentication failed"},
		{"ffffffff-0000-4000-8000-000000000001.microvm.localhost", "@good", "", 403, "Token authentication failed"},
		{DOUBLE_SUSPENDED ".microvm.localhost", "@good", "", 403, "Token authentication failed"},
		{DOUBLE_GONE ".microvm.localhost", "@good", "", 403, "Token authentication failed"},
		{R, "@altered", "", 403, "Token authentication failed"},
		{R, "@expired", "", 403, "Token authentication failed"},
		{R, "@expired", "X-aws-proxy-port: x\r\n", 403, "Token authentication failed"},
		{R, "@good", "X-aws-proxy-port: 9000\r\n", 403, "Access to port denied"},
		{R, "@port9000", "", 403, "Access to port denied"},
		{R, "@good", "X-aws-proxy-port:\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: 0\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: 65536\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: 80 80\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: -1\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: 0x50\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-port: 8080\r\nX-aws-proxy-port: 8080\r\n", 400, "Invalid port"},
		{R, "@good", "X-aws-proxy-auth: x\r\n", 403, "Request missing authentication"},
		{R, "@shell", "", 502, ""},
	};
	for (size_t i = 0; i < LEN(cases); i++) {
		const char *t = cases[i].token;
		if (t != NULL && t[0] == '@') {
			const char *kind = t + 1;
			bool p9000 = strcmp(kind, "port9000") == 0;
			snprintf(token, sizeof(token), "%s",
				 token_for(DOUBLE_RUNNING, p9000 ? 9000 : 8080, p9000 ? 9000 : 8080,
					   strcmp(kind, "expired") == 0 ? 1 : later,
					   strcmp(kind, "shell") == 0 ? TOKEN_SHELL : TOKEN_HTTP));
			if (strcmp(kind, "altered") == 0)
				token[300] = token[300] == 'A' ? 'B' : 'A';
			t = token;
		}
		snprintf(text, sizeof(text), "GET / HTTP/1.1\r\nHost: %s\r\n%s%s%s%sConnection: close\r\n\r\n", cases[i].host,
			 t != NULL ? "X-aws-proxy-auth: " : "", t != NULL ? t : "", t != NULL ? "\r\n" : "", cases[i].more);
		char start[64], end[128];
		snprintf(start, sizeof(start), "HTTP/1.1 %d ", cases[i].status);
		snprintf(end, sizeof(end), "%scontent-length: %zu\r\nconnection: close\r\n\r\n%s",
			 cases[i].body[0] ? "content-type: text/plain\r\n" : "", strlen(cases[i].body), cases[i].body);
		expect_answer(text, start, end);
	}
	// Nothing of this woke or reached anything.
	assert_int_equal(double_opened, opened);
	assert_int_equal(requests, seen);
}

static void connectors_let_nothing_in(void **state) {
	unsigned opened = double_opened;
	expect_answer(request_to(DOUBLE_SHUT, "GET /", "Connection: close\r\n"), "HTTP/1.1 403 Forbidden\r\n",
		      "\r\n\r\nIngress denied by network connectors");
	assert_int_equal(double_opened, opened); // it sleeps on
	// The shell has connectors of its own; the other one's token does not help.
	char text[4096], token[TOKEN_ROOM];
	snprintf(token, sizeof(token), "%s", token_for(DOUBLE_DEAD, 1, 65535, (int64_t)realtime_ms() + 60000, TOKEN_SHELL));
	snprintf(text, sizeof(text),
		 "GET /shell HTTP/1.1\r\nHost: " DOUBLE_DEAD
		 ".microvm.localhost\r\nX-aws-proxy-auth: %s\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n"
		 "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
		 token);
	expect_answer(text, "HTTP/1.1 403 Forbidden\r\n", "\r\n\r\nIngress denied by network connectors");
}

static void revoked_tokens_open_nothing(void **state) {
	unsigned opened = double_opened;
	double_tokens_since = (int64_t)realtime_ms() + 1000;
	expect_answer(request_to(DOUBLE_FAILED, "GET /", "Connection: close\r\n"), "HTTP/1.1 403 Forbidden\r\n",
		      "\r\n\r\nToken authentication failed");
	assert_int_equal(double_opened, opened);
	double_tokens_since = 1;
	expect_answer(request_to(DOUBLE_FAILED, "GET /", "Connection: close\r\n"), "HTTP/1.1 502 ", "\r\n\r\n");
	double_tokens_since = 0;
}

static void public_ports_need_no_token(void **state) {
#define TO(endpoint, more) "GET /echo HTTP/1.1\r\nHost: " endpoint ".microvm.localhost\r\nConnection: close\r\n" more "\r\n"
	expect_answer(TO(DOUBLE_SUSPENDED, ""), "HTTP/1.1 200 ", "");
	expect_answer(TO(DOUBLE_SUSPENDED, "X-aws-proxy-port: 8080\r\n"), "HTTP/1.1 200 ", "");
	// Another port, a microVM without any, one that is not there, a token that is none, a port that is none.
	static const char *const refused[] = {TO(DOUBLE_SUSPENDED, "X-aws-proxy-port: 9000\r\n"),
					      TO(DOUBLE_RUNNING, ""),
					      TO("ffffffff-0000-4000-8000-000000000001", ""),
					      TO(DOUBLE_SUSPENDED, "X-aws-proxy-auth: nonsense\r\n"),
					      TO(DOUBLE_SUSPENDED, "X-aws-proxy-port: x\r\n"),
					      TO(DOUBLE_SUSPENDED, "X-aws-proxy-port: 8080\r\nX-aws-proxy-port: 8080\r\n")};
	unsigned seen = requests;
	for (size_t i = 0; i < LEN(refused); i++)
		expect_answer(refused[i], "HTTP/1.1 403 Forbidden\r\n", "\r\n\r\nRequest missing authentication");
	expect_answer(TO(DOUBLE_SHUT, ""), "HTTP/1.1 403 Forbidden\r\n", "\r\n\r\nIngress denied by network connectors");
	assert_int_equal(requests, seen);
	wait_released();
}

static void answers_for_what_cannot_be_reached(void **state) {
	static const char *const endpoints[] = {DOUBLE_ASLEEP, DOUBLE_GONE, DOUBLE_FAILED, DOUBLE_DEAD};
	for (size_t i = 0; i < LEN(endpoints); i++)
		expect_answer(request_to(endpoints[i], "GET /", "Connection: close\r\n"), "HTTP/1.1 502 Bad Gateway\r\n",
			      "content-length: 0\r\nconnection: close\r\n\r\n");
	expect_answer(request("GET /", "Connection: close\r\nX-aws-proxy-port: 1\r\n"), "HTTP/1.1 502 ",
		      "content-length: 0\r\nconnection: close\r\n\r\n");
	wait_released();
}

static void rewrites_heads(void **state) {
	struct client *c = client_open();
	client_say(
		c,
		request("GET /echo?a=b",
			"Accept: x\r\nX-Aws-Proxy-Port: 8080\r\nx-aws-proxy-new: 1\r\nConnection: X-Hop, keep-alive\r\nX-Hop: "
			"1\r\nKeep-Alive: "
			"timeout=1\r\nTE: trailers\r\nProxy-Connection: x\r\nUpgrade: h2c\r\nx-amzn-RequestId: forged\r\nCookie: a=b\r\n"));
	client_until(c, "|");
	char *head = strstr(c->got.data, "\r\n\r\n");
	assert_non_null(head);
	head += 4;
	assert_int_equal(strncmp(head,
				 "GET /echo?a=b HTTP/1.1\r\nHost: " DOUBLE_RUNNING
				 ".microvm.localhost\r\nAccept: x\r\nCookie: a=b\r\nx-amzn-requestid: ",
				 70),
			 0);
	char *id = strstr(head, "x-amzn-requestid: ");
	assert_non_null(id);
	assert_string_equal(id + 18 + 36, "\r\n\r\n|");
	id[18 + 36] = '\0';
	assert_true(uuid_is_valid(id + 18));
	assert_null(strcasestr(head, "x-hop"));
	assert_null(strcasestr(head, "x-aws"));
	client_forget(c);
	// An absolute target names the host; one that differs from Host is refused.
	char text[4096];
	snprintf(text, sizeof(text),
		 "GET http://%s.MICROVM.localhost?q HTTP/1.1\r\nHost: %s.microvm.localhost\r\nX-aws-proxy-auth: %s\r\n\r\n", DOUBLE_RUNNING,
		 DOUBLE_RUNNING, good_token(DOUBLE_RUNNING));
	client_say(c, text);
	client_until(c, "|");
	assert_non_null(strstr(c->got.data, "\r\n\r\nGET /?q HTTP/1.1\r\nhost: " DOUBLE_RUNNING ".MICROVM.localhost\r\n"));
	client_close(c);
	snprintf(text, sizeof(text),
		 "GET http://%s.microvm.localhost/ HTTP/1.1\r\nHost: %s.microvm.localhost\r\nX-aws-proxy-auth: %s\r\nConnection: "
		 "close\r\n\r\n",
		 DOUBLE_RUNNING, DOUBLE_GONE, good_token(DOUBLE_RUNNING));
	expect_answer(text, "HTTP/1.1 400 ", "Bad request");
}

static void carries_responses(void **state) {
	static const struct {
		const char *line, *answer;
	} cases[] = {
		{"GET /c/length", "HTTP/1.1 200 OK\r\nX-A: b\r\ncontent-length: 5\r\n\r\nhello"},
		{"GET /c/chunked", "HTTP/1.1 200 Fine\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"},
		{"GET /c/trailers",
		 "HTTP/1.1 200 OK\r\nTrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n"},
		{"GET /c/close", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nd\r\nuntil the end\r\n0\r\n\r\n"},
		{"GET /c/old", "HTTP/1.1 200 OK\r\nServer: old\r\ntransfer-encoding: chunked\r\n\r\n3\r\nold\r\n0\r\n\r\n"},
		{"GET /c/204", "HTTP/1.1 204 No Content\r\n\r\n"},
		{"GET /c/304", "HTTP/1.1 304 Not Modified\r\nContent-Length: 55\r\nETag: \"a\"\r\n\r\n"},
		{"HEAD /c/head", "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n"},
		{"GET /c/hop", "HTTP/1.1 200 OK\r\nX-End: 2\r\ncontent-length: 0\r\n\r\n"},
		{"GET /c/hints", "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 "
				 "OK\r\ncontent-length: 1\r\n\r\n!"},
	};
	// All on one connection, twice, so that what one leaves behind would disturb the next; then each on its own, all pipelined.
	struct client *c = client_open();
	for (size_t i = 0; i < 2 * LEN(cases); i++) {
		const char *answer = cases[i % LEN(cases)].answer;
		client_say(c, request(cases[i % LEN(cases)].line, ""));
		bool clean;
		while (c->got.size < strlen(answer))
			if (!client_read(c, &clean))
				fail_msg("ended; got: %s", c->got.data);
		if (strcmp(c->got.data, answer) != 0)
			fail_msg("%s gave: %s", cases[i % LEN(cases)].line, c->got.data);
		client_forget(c);
	}
	struct text all = {0}, answers = {0};
	for (size_t i = 0; i < LEN(cases); i++) {
		text_add(&all, request(cases[i].line, ""), strlen(request(cases[i].line, "")));
		text_add(&answers, cases[i].answer, strlen(cases[i].answer));
	}
	client_send(c, all.data, all.size);
	bool clean;
	while (c->got.size < answers.size && client_read(c, &clean))
		;
	// The length of a piece of a body that ends with its connection may differ; nothing else.
	assert_string_equal(c->got.data, answers.data);
	free(all.data);
	free(answers.data);
	client_close(c);
	wait_released();
}

static void speaks_http_1_0(void **state) {
	char text[4096];
	snprintf(text, sizeof(text), "GET /c/chunked HTTP/1.0\r\nHost: %s.x\r\nX-aws-proxy-auth: %s\r\n\r\n", DOUBLE_RUNNING,
		 good_token(DOUBLE_RUNNING));
	expect_answer(text, "HTTP/1.1 200 Fine\r\nconnection: close\r\n\r\n", "\r\n\r\nabcde");
	snprintf(text, sizeof(text), "GET /c/hints HTTP/1.0\r\nHost: %s.x\r\nX-aws-proxy-auth: %s\r\n\r\n", DOUBLE_RUNNING,
		 good_token(DOUBLE_RUNNING));
	expect_answer(text, "HTTP/1.1 200 OK\r\n", "!");
	struct client *c = client_open();
	snprintf(text, sizeof(text), "GET /c/length HTTP/1.0\r\nHost: %s.x\r\nConnection: keep-alive\r\nX-aws-proxy-auth: %s\r\n\r\n",
		 DOUBLE_RUNNING, good_token(DOUBLE_RUNNING));
	for (int i = 0; i < 3; i++) {
		client_say(c, text);
		client_until(c, "connection: keep-alive\r\n\r\nhello");
		client_forget(c);
	}
	client_close(c);
}

static void answers_bad_responses(void **state) {
	for (size_t i = 0; i < LEN(canned); i++) {
		char line[64];
		snprintf(line, sizeof(line), "POST %s", canned[i].path);
		if (canned[i].path[1] == 'b')
			expect_answer(request(line, "Connection: close\r\n"), "HTTP/1.1 502 Bad Gateway\r\n",
				      "content-length: 0\r\nconnection: close\r\n\r\n");
		if (canned[i].path[1] != 't')
			continue;
		// The client must see that something is missing: no last chunk, no close_notify.
		struct client *c = client_open();
		client_say(c, request(line, ""));
		assert_false(client_to_end(c));
		assert_non_null(strstr(c->got.data, "hello"));
		assert_null(strstr(c->got.data, "\r\n0\r\n"));
		client_close(c);
	}
	expect_answer(request("GET /hugehead", "Connection: close\r\n"), "HTTP/1.1 502 Bad Gateway\r\n",
		      "content-length: 0\r\nconnection: close\r\n\r\n");
	wait_released();
}

static void carries_request_bodies(void **state) {
	struct client *c = client_open();
	client_say(c, request("POST /echo", "Content-Length: 11\r\n"));
	client_say(c, "hello ");
	usleep(20000);
	client_say(c, "world");
	client_until(c, "|hello world");
	assert_non_null(strstr(c->got.data, "content-length: 11\r\n\r\n|"));
	client_forget(c);
	client_say(c, request("POST /echo", "Transfer-Encoding: chunked\r\nTrailer: x-t\r\n"));
	client_say(c, "5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nx-t: 1\r\nHost: evil\r\n\r\n");
	client_until(c, "|hello!");
	assert_non_null(strstr(c->got.data, "Trailer: x-t\r\n"));
	assert_non_null(strstr(c->got.data, "transfer-encoding: chunked\r\n\r\n|"));
	client_forget(c);
	client_say(c, request("PUT /echo", "Content-Length: 3\r\nExpect: 100-continue\r\n"));
	client_until(c, "HTTP/1.1 100 Continue\r\n\r\n");
	client_say(c, "abc");
	client_until(c, "|abc");
	client_forget(c);
	client_say(c, request("POST /echo", "Content-Length: 0\r\n"));
	client_until(c, "content-length: 0\r\n\r\n|");
	client_close(c);

	// A large one, in pieces of odd sizes, comes back whole.
	size_t size = 3000000;
	struct text big = {0};
	for (size_t i = 0; i < size / 10; i++) {
		char line[16];
		snprintf(line, sizeof(line), "%09zu\n", i);
		text_add(&big, line, 10);
	}
	c = client_open();
	client_say(c, request("POST /echo", "Transfer-Encoding: chunked\r\nConnection: close\r\n"));
	for (size_t at = 0, step = 1; at < size; at += step, step = step * 3 % 70001 + 1) {
		char line[32];
		step = step < size - at ? step : size - at;
		snprintf(line, sizeof(line), "%zx\r\n", step);
		client_say(c, line);
		client_send(c, big.data + at, step);
		client_say(c, "\r\n");
	}
	client_say(c, "0\r\n\r\n");
	assert_true(client_to_end(c));
	char *bar = memchr(c->got.data, '|', c->got.size);
	assert_non_null(bar);
	assert_int_equal(c->got.size - (size_t)(bar + 1 - c->got.data), size);
	assert_memory_equal(bar + 1, big.data, size);
	client_close(c);
	free(big.data);
	wait_released();
}

static void accepts_bytes_one_by_one(void **state) {
	struct client *c = client_open();
	char text[4096];
	int n = snprintf(text, sizeof(text), "%s3\r\nabc\r\n0\r\nA: b\r\n\r\n", request("POST /echo", "Transfer-Encoding: chunked\r\n"));
	for (int i = 0; i < n; i++)
		client_send(c, text + i, 1);
	client_until(c, "|abc");
	client_close(c);
}

static void refuses_ambiguous_requests(void **state) {
	static const char *const more[] = {
		"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
		"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
		"Content-Length: 5\r\nContent-Length: 5\r\n",
		"Content-Length: 5, 5\r\n",
		"Content-Length: +5\r\n",
		"Transfer-Encoding: xchunked\r\n",
		"Transfer-Encoding: chunked, identity\r\n",
		"Transfer-Encoding: gzip, chunked\r\n",
		"Transfer-Encoding : chunked\r\n",
		"Transfer-Encoding: \x0b\x63hunked\r\n",
		"X: y\r\n folded\r\n",
		"X: y\nTransfer-Encoding: chunked\r\n",
		"X: y\rTransfer-Encoding: chunked\r\n",
		"X y: z\r\n",
		"Host: other\r\n",
	};
	unsigned seen = requests;
	for (size_t i = 0; i < LEN(more); i++) {
		char text[4096 + 128];
		snprintf(text, sizeof(text), "%s5\r\nhello\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
			 request("POST /echo", more[i]));
		char *got = ask(text, strlen(text));
		if (strncmp(got, "HTTP/1.1 400 ", 13) != 0 || strstr(got + 1, "HTTP/1.1") != NULL)
			fail_msg("%s gave: %s", more[i], got);
		free(got);
	}
	static const char *const bad_chunks[] = {"5\nhello\r\n0\r\n\r\n",
						 "0x5\r\nhello\r\n0\r\n\r\n",
						 "5 \r\nhello\r\n0\r\n\r\n",
						 "-5\r\nhello\r\n0\r\n\r\n",
						 "fffffffffffffffff\r\nhello\r\n0\r\n\r\n",
						 "5\r\nhelloX\r\n0\r\n\r\n",
						 "0\r\nA : b\r\n\r\n"};
	for (size_t i = 0; i < LEN(bad_chunks); i++) {
		char text[4096 + 128];
		snprintf(text, sizeof(text), "%s%sGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
			 request("POST /echo", "Transfer-Encoding: chunked\r\n"), bad_chunks[i]);
		char *got = ask(text, strlen(text));
		if (strncmp(got, "HTTP/1.1 400 ", 13) != 0 || strstr(got + 1, "HTTP/1.1") != NULL)
			fail_msg("%s gave: %s", bad_chunks[i], got);
		free(got);
	}
	// None became a request of the application's.
	assert_int_equal(requests, seen);
	expect_answer("GET / HTTP/2.0\r\nHost: a\r\n\r\n", "HTTP/1.1 505 ", "HTTP version not supported");
	expect_answer("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n", "HTTP/1.1 400 ", "Bad request");
	expect_answer("\x16\x03\x01\r\n\r\n", "HTTP/1.1 400 ", "Bad request");
	wait_released();
}

static void limits_heads(void **state) {
	size_t size = 40000;
	char *text = malloc(size + 1);
	memset(text, 'x', size);
	memcpy(text, "GET / HTTP/1.1\r\nX: ", 19);
	text[size] = '\0';
	struct client *c = client_open();
	client_send(c, text, size);
	assert_true(client_to_end(c));
	assert_int_equal(strncmp(c->got.data, "HTTP/1.1 431 ", 13), 0);
	client_close(c);
	free(text);
	// Nearly the limit passes, both ways.
	c = client_open();
	struct text big = {0};
	const char *start = request("GET /bighead", "Connection: close\r\n");
	text_add(&big, start, strlen(start) - 2);
	text_add(&big, "X: ", 3);
	while (big.size < 32000)
		text_add(&big, "xxxxxxxxxx", 10);
	text_add(&big, "\r\n\r\n", 4);
	client_send(c, big.data, big.size);
	assert_true(client_to_end(c));
	assert_int_equal(strncmp(c->got.data, "HTTP/1.1 200 ", 13), 0);
	assert_in_range(c->got.size, 31000, 31200);
	assert_string_equal(c->got.data + c->got.size - 6, "\r\n\r\nok");
	client_close(c);
	free(big.data);
}

static void holds_requests_until_awake(void **state) {
	double_wake_ms = 300;
	uint64_t start = monotonic_ms();
	expect_answer(request_to(DOUBLE_SUSPENDED, "GET /c/length", "Connection: close\r\n"), "HTTP/1.1 200 OK\r\n", "hello");
	assert_true(monotonic_ms() - start >= 300);
	// Many at once, bodies included.
	struct client *c[64];
	for (size_t i = 0; i < LEN(c); i++) {
		c[i] = client_open();
		client_say(c[i], request_to(DOUBLE_SUSPENDED, "POST /echo", "Content-Length: 4\r\n"));
		client_say(c[i], "body");
	}
	for (size_t i = 0; i < LEN(c); i++) {
		client_until(c[i], "|body");
		client_close(c[i]);
	}
	wait_released();
}

static void cancels_held_requests(void **state) {
	double_wake_ms = 2500;
	unsigned seen = requests;
	// One that ends in order, one that breaks off, and one that is gone with its buffers full.
	struct client *c = client_open();
	client_say(c, request_to(DOUBLE_SUSPENDED, "GET /", ""));
	SSL_shutdown(c->ssl);
	client_close(c);
	c = client_open();
	client_say(c, request_to(DOUBLE_SUSPENDED, "GET /", ""));
	struct linger reset = {.l_onoff = 1};
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	client_close(c);
	c = client_open();
	client_say(c, request_to(DOUBLE_SUSPENDED, "POST /", "Content-Length: 60000\r\n"));
	char data[60000];
	memset(data, 'x', sizeof(data));
	client_send(c, data, sizeof(data));
	usleep(100000);
	client_close(c);
	wait_released();
	assert_int_equal(requests, seen);
	double_wake_ms = 100;
}

static void lets_go_when_the_client_leaves(void **state) {
	unsigned before = gone;
	struct client *c = client_open();
	client_say(c, request("GET /hold", ""));
	usleep(100000);
	struct linger reset = {.l_onoff = 1};
	setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
	client_close(c);
	for (int i = 0; i < DEADLINE_MS && gone == before; i++)
		usleep(1000);
	assert_int_equal(gone, before + 1);
	wait_released();
}

static void answers_a_half_closed_client(void **state) {
	go = false;
	struct client *c = client_open();
	client_say(c, request("GET /wait", ""));
	SSL_shutdown(c->ssl);
	shutdown(c->fd, SHUT_WR);
	usleep(100000);
	go = true;
	client_until(c, "|");
	assert_int_equal(strncmp(c->got.data, "HTTP/1.1 200 ", 13), 0);
	client_close(c);
}

static void passes_early_responses_on(void **state) {
	struct client *c = client_open();
	client_say(c, request("POST /c/early", "Content-Length: 100000000\r\n"));
	client_say(c, "some");
	assert_true(client_to_end(c));
	assert_string_equal(c->got.data, "HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmuch");
	client_close(c);
	c = client_open();
	client_say(c, request("POST /c/early", "Content-Length: 10\r\nExpect: 100-continue\r\n"));
	assert_true(client_to_end(c));
	assert_string_equal(c->got.data, "HTTP/1.1 413 Too Large\r\ncontent-length: 4\r\nconnection: close\r\n\r\nmuch");
	client_close(c);
	wait_released();
}

static void tunnels_upgrades(void **state) {
	struct client *c = client_open();
	client_say(c, request("GET /ws", "Connection: Upgrade, close\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"));
	client_say(c, "early");
	client_until(c, "early");
	assert_string_equal(c->got.data,
			    "HTTP/1.1 101 Switching Protocols\r\nX-A: b\r\nconnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirstearly");
	client_forget(c);
	char *data = malloc(1000000);
	memset(data, 'y', 1000000);
	for (int i = 0; i < 100; i++) {
		client_send(c, data + i * 10000, 10000);
		bool clean;
		while (c->got.size < 10000 * (size_t)(i + 1))
			assert_true(client_read(c, &clean));
	}
	assert_memory_equal(c->got.data, data, 1000000);
	client_forget(c);
	free(data);
	// Our side ends; the other still has something to say.
	SSL_shutdown(c->ssl);
	client_until(c, "last");
	assert_true(client_to_end(c));
	client_close(c);
	// Another HTTP would get past the gate: not asked for, so the application answers as usual.
	c = client_open();
	client_say(c, request("GET /echo", "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"));
	client_until(c, "|");
	assert_null(strcasestr(c->got.data, "upgrade"));
	client_close(c);
	wait_released();
}

// A handshake whose subprotocols say what headers would.
static const char *handshake(const char *subprotocols) {
	static char text[4096];
	snprintf(text, sizeof(text),
		 "GET /ws HTTP/1.1\r\nHost: " DOUBLE_RUNNING ".microvm.localhost\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n"
		 "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: %s\r\n\r\n",
		 subprotocols);
	return text;
}

static void authenticates_by_subprotocols(void **state) {
	static const struct {
		const char *before, *after, *end; // around the token; what the answer's head has
	} fine[] = {
		{"lambda-microvms, lambda-microvms.authentication.", "",
		 "X-A: b\r\nsec-websocket-protocol: lambda-microvms\r\nconnection: upgrade\r\nUpgrade: websocket\r\n\r\nfirst"},
		{"lambda-microvms.authentication.", ",lambda-microvms.port.8080,lambda-microvms",
		 "X-A: b\r\nsec-websocket-protocol: lambda-microvms\r\nconnection"},
		{"lambda-microvms, chat, lambda-microvms.authentication.", ", other",
		 "X-A: b\r\nX-Offered: chat, other\r\nSec-WebSocket-Protocol: chat\r\nconnection"},
		{"other, lambda-microvms, lambda-microvms.authentication.", "\r\nSec-WebSocket-Protocol: lambda-microvms.port.8080",
		 "X-A: b\r\nX-Offered: other\r\nsec-websocket-protocol: lambda-microvms\r\nconnection"},
	};
	char subprotocols[2048];
	for (size_t i = 0; i < LEN(fine); i++) {
		snprintf(subprotocols, sizeof(subprotocols), "%s%s%s", fine[i].before, good_token(DOUBLE_RUNNING), fine[i].after);
		struct client *c = client_open();
		client_say(c, handshake(subprotocols));
		client_until(c, "first");
		if (strstr(c->got.data, fine[i].end) == NULL)
			fail_msg("%s gave: %s", subprotocols, c->got.data);
		client_close(c);
	}
	unsigned seen = requests;
	static const struct {
		const char *before, *after, *status, *body;
	} refused[] = {
		{"lambda-microvms.authentication.", "", "HTTP/1.1 403 ", "Request missing authentication"},
		{"lambda-microvms, lambda-microvms.authentication.x, lambda-microvms.authentication.", "", "HTTP/1.1 403 ",
		 "Request missing authentication"},
		{"lambda-microvms, lambda-microvms.authentication.", "x", "HTTP/1.1 403 ", "Request missing authentication"},
		{"lambda-microvms, lambda-microvms.authentication.", ", lambda-microvms.port.80x", "HTTP/1.1 400 ", "Invalid port"},
		{"lambda-microvms, lambda-microvms.authentication.", ", lambda-microvms.port.", "HTTP/1.1 400 ", "Invalid port"},
		{"lambda-microvms, lambda-microvms.authentication.", ", lambda-microvms.port.80, lambda-microvms.port.80", "HTTP/1.1 400 ",
		 "Invalid port"},
		{"lambda-microvms, lambda-microvms.authentication.", ", a b", "HTTP/1.1 400 ", "Bad request"},
	};
	for (size_t i = 0; i < LEN(refused); i++) {
		snprintf(subprotocols, sizeof(subprotocols), "%s%s%s\r\nConnection: close", refused[i].before, good_token(DOUBLE_RUNNING),
			 refused[i].after);
		expect_answer(handshake(subprotocols), refused[i].status, refused[i].body);
	}
	// Only a handshake may say it that way; and what it says does not get through either way.
	snprintf(subprotocols, sizeof(subprotocols),
		 "GET / HTTP/1.1\r\nHost: " DOUBLE_RUNNING ".microvm.localhost\r\nConnection: close\r\n"
		 "Sec-WebSocket-Protocol: lambda-microvms, lambda-microvms.authentication.%s\r\n\r\n",
		 good_token(DOUBLE_RUNNING));
	expect_answer(subprotocols, "HTTP/1.1 403 ", "Request missing authentication");
	assert_int_equal(requests, seen);
	struct client *c = client_open();
	client_say(c, request("GET /echo", "Sec-WebSocket-Protocol: lambda-microvms.authentication.x, chat\r\n"));
	client_until(c, "|");
	assert_null(strstr(c->got.data, "lambda"));
	assert_non_null(strstr(c->got.data, "Sec-WebSocket-Protocol: chat\r\n"));
	client_close(c);
	wait_released();
}

static void reuses_connections_with_care(void **state) {
	double_cut();
	usleep(50000);
	struct client *c = client_open();
	for (int i = 1; i <= 3; i++) {
		char number[32];
		snprintf(number, sizeof(number), "number %d", i);
		client_say(c, request("GET /number", ""));
		client_until(c, number);
		client_forget(c);
	}
	// One that ends as it is used: a GET is sent again on a new one, a POST is not.
	unsigned seen = requests;
	client_say(c, request("GET /stale", ""));
	client_until(c, "|");
	assert_int_equal(strncmp(c->got.data, "HTTP/1.1 200 ", 13), 0);
	assert_int_equal(requests, seen + 2);
	client_forget(c);
	client_say(c, request("POST /stale", ""));
	client_until(c, "\r\n\r\n");
	assert_int_equal(strncmp(c->got.data, "HTTP/1.1 502 ", 13), 0);
	assert_int_equal(requests, seen + 3);
	client_forget(c);
	// What the end of a VMM cuts is not used again, not even by a POST.
	client_say(c, request("GET /number", ""));
	client_until(c, "number 1");
	client_forget(c);
	double_cut();
	usleep(50000);
	client_say(c, request("POST /number", ""));
	client_until(c, "number 1");
	client_forget(c);
	// A POST takes a connection that was idle for long only when it is new.
	usleep(1300000);
	client_say(c, request("POST /number", ""));
	client_until(c, "number 1");
	client_close(c);
	wait_released();
}

static void survives_bad_tls(void **state) {
	int fd = connect_edge();
	assert_int_equal(write_full(fd, "GET / HTTP/1.1\r\n\r\n", 18), 0);
	char data[256];
	while (read(fd, data, sizeof(data)) > 0)
		;
	close(fd);
	fd = connect_edge();
	close(fd);
	// A client that only speaks another protocol is refused in the handshake.
	SSL *ssl = SSL_new(client_tls);
	fd = connect_edge();
	SSL_set_fd(ssl, fd);
	SSL_set_alpn_protos(ssl, (const unsigned char *)"\x06spdy/3", 7);
	assert_int_not_equal(SSL_connect(ssl), 1);
	ERR_clear_error();
	SSL_free(ssl);
	close(fd);
	ssl = SSL_new(client_tls);
	fd = connect_edge();
	SSL_set_fd(ssl, fd);
	SSL_set_alpn_protos(ssl, (const unsigned char *)"\x06spdy/3\x08http/1.1", 16);
	SSL_set_max_proto_version(ssl, TLS1_2_VERSION);
	assert_int_equal(SSL_connect(ssl), 1);
	SSL_free(ssl);
	close(fd);
}

static void keeps_its_certificates(void **state) {
	char path[128];
	struct stat st;
	static const char *const secret[] = {"tls/ca.key", "tls/edge.key", "tokens.key"};
	for (size_t i = 0; i < LEN(secret); i++) {
		snprintf(path, sizeof(path), "%s/%s", folder, secret[i]);
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_mode & 0777, 0600);
	}
	assert_int_equal(strncmp(edge_ca_pem(&engine), "-----BEGIN CERTIFICATE-----", 27), 0);
}

// Set-up. ---------------------------------------------------------------------------------------------------------------------

static pthread_mutex_t started_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t started_cond = PTHREAD_COND_INITIALIZER;
static int started; // 1: fine, -1: not

static void *run_loop(void *arg) {
	struct error e = {0};
	int r = edge_start(&engine, &e);
	if (r < 0)
		fprintf(stderr, "%s\n", e.message);
	pthread_mutex_lock(&started_lock);
	started = r < 0 ? -1 : 1;
	edge_at = r < 0 ? 0 : edge_port(&engine);
	pthread_cond_signal(&started_cond);
	pthread_mutex_unlock(&started_lock);
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
	snprintf(folder, sizeof(folder), "/tmp/stasis-edge-XXXXXX");
	if (mkdtemp(folder) == NULL || uv_loop_init(&loop) < 0)
		return -1;
	engine.loop = &loop;
	snprintf(engine.config.state_folder, sizeof(engine.config.state_folder), "%s", folder);
	snprintf(engine.config.edge_listen, sizeof(engine.config.edge_listen), "127.0.0.1:0");
	snprintf(engine.config.edge_domain, sizeof(engine.config.edge_domain), "microvm.localhost");
	uint16_t application = start_application();
	if (application == 0 || double_start(folder, 8080, application) < 0 || loop_queue_start(&engine, NULL) < 0 ||
	    pthread_create(&loop_thread, NULL, run_loop, NULL) != 0)
		return -1;
	pthread_mutex_lock(&started_lock);
	while (started == 0)
		pthread_cond_wait(&started_cond, &started_lock);
	pthread_mutex_unlock(&started_lock);
	char ca[128];
	snprintf(ca, sizeof(ca), "%s/tls/ca.pem", folder);
	client_tls = SSL_CTX_new(TLS_client_method());
	SSL_CTX_set_verify(client_tls, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_mode(client_tls, SSL_MODE_AUTO_RETRY);
	return started == 1 && SSL_CTX_load_verify_file(client_tls, ca) == 1 ? 0 : -1;
}

// The loop ends by itself when every handle is closed, and that none is left is part of the test.
static int tear_down(void **state) {
	struct client *busy = client_open(), *idle = client_open();
	client_say(busy, request("GET /hold", ""));
	usleep(50000);
	loop_submit(&engine, stop_loop, NULL);
	pthread_join(loop_thread, NULL);
	client_close(busy);
	client_close(idle);
	int r = uv_loop_close(engine.loop);
	SSL_CTX_free(client_tls);
	remove_tree(folder, NULL);
	return r == 0 && double_held == 0 ? 0 : -1;
}

int main(void) {
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(keeps_its_certificates),
		cmocka_unit_test(guards_the_endpoint),
		cmocka_unit_test(connectors_let_nothing_in),
		cmocka_unit_test(revoked_tokens_open_nothing),
		cmocka_unit_test(public_ports_need_no_token),
		cmocka_unit_test(answers_for_what_cannot_be_reached),
		cmocka_unit_test(rewrites_heads),
		cmocka_unit_test(carries_responses),
		cmocka_unit_test(speaks_http_1_0),
		cmocka_unit_test(answers_bad_responses),
		cmocka_unit_test(carries_request_bodies),
		cmocka_unit_test(accepts_bytes_one_by_one),
		cmocka_unit_test(refuses_ambiguous_requests),
		cmocka_unit_test(limits_heads),
		cmocka_unit_test(holds_requests_until_awake),
		cmocka_unit_test(cancels_held_requests),
		cmocka_unit_test(lets_go_when_the_client_leaves),
		cmocka_unit_test(answers_a_half_closed_client),
		cmocka_unit_test(passes_early_responses_on),
		cmocka_unit_test(tunnels_upgrades),
		cmocka_unit_test(authenticates_by_subprotocols),
		cmocka_unit_test(reuses_connections_with_care),
		cmocka_unit_test(survives_bad_tls),
	};
	return cmocka_run_group_tests_name("edge", tests, set_up, tear_down);
}
