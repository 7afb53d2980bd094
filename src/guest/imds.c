// The instance metadata service; see imds.h.
//
// A connection holds one request's head and one answer, both small: an answer goes out before the next head is looked at.
#include "guest/imds.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/hex.h"
#include "guest/network.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

#define HEAD_MAX 4096
#define ACCEPT_PAUSE_NS 50000000ull
#define QUIET_NS 10000000000ull // without a byte from the client
#define TTL_MAX_S 21600
#define TTL_HEADER "X-aws-ec2-metadata-token-ttl-seconds"
#define TOKEN_HEADER "X-aws-ec2-metadata-token"
#define TOKEN_PATH "/latest/api/token"
#define ROLES_PATH "/latest/meta-data/iam/security-credentials"

struct imds_connection {
	struct imds *all;
	struct imds_connection *previous, *next;
	struct source source;
	struct timer timer;
	bool closing; // after what is left of the answer
	size_t size, answer_size, answer_sent;
	char head[HEAD_MAX];
	char answer[IMDS_ANSWER_MAX];
};

// Session tokens.

static uint64_t token_ttl(const struct http_head *h) {
	const struct http_header *ttl = http_find(h, TTL_HEADER);
	uint64_t n = 0;

	if (ttl == NULL || ttl->value.size == 0 || ttl->value.size > 5)
		return 0;
	for (size_t i = 0; i < ttl->value.size; i++) {
		if (ttl->value.data[i] < '0' || ttl->value.data[i] > '9')
			return 0;
		n = n * 10 + (uint64_t)(ttl->value.data[i] - '0');
	}
	return n > TTL_MAX_S ? 0 : n;
}

static bool make_token(struct imds *m, uint64_t ttl_s, char hex[2 * IMDS_TOKEN_BYTES + 1]) {
	struct imds_token *t = &m->tokens[m->next_token];

	if (getrandom(t->bytes, sizeof(t->bytes), 0) != (ssize_t)sizeof(t->bytes)) {
		t->until_ns = 0;
		return false;
	}
	m->next_token = (m->next_token + 1) % IMDS_TOKENS_MAX;
	t->until_ns = monotonic_ns() + ttl_s * 1000000000u;
	hex_encode(t->bytes, sizeof(t->bytes), hex);
	return true;
}

static bool knows_token(const struct imds *m, const struct http_head *h) {
	const struct http_header *given = http_find(h, TOKEN_HEADER);
	uint8_t bytes[IMDS_TOKEN_BYTES];
	uint64_t now = monotonic_ns();

	if (given == NULL || hex_decode(given->value.data, given->value.size, bytes, sizeof(bytes)) != (ssize_t)sizeof(bytes))
		return false;
	for (size_t i = 0; i < IMDS_TOKENS_MAX; i++)
		if (m->tokens[i].until_ns > now && memcmp(m->tokens[i].bytes, bytes, sizeof(bytes)) == 0)
			return true;
	return false;
}

// Answers.

static size_t write_answer(const struct http_head *h, int status, const char *type, const char *more, const char *body, char *to) {
	static const struct {
		int status;
		const char *reason;
	} reasons[] = {{200, "OK"},        {400, "Bad Request"}, {401, "Unauthorized"},
		       {403, "Forbidden"}, {404, "Not Found"},   {405, "Method Not Allowed"}};
	const char *reason = "Internal Server Error";
	bool head_only = h != NULL && slice_equals(h->method, "HEAD");

	for (size_t i = 0; i < sizeof(reasons) / sizeof(*reasons); i++)
		if (reasons[i].status == status)
			reason = reasons[i].reason;
	int n = snprintf(to, IMDS_ANSWER_MAX, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s%s\r\n%s", status, reason,
			 type, strlen(body), more, h == NULL || !h->keep_alive ? "Connection: close\r\n" : "", head_only ? "" : body);
	return n < 0 || n >= IMDS_ANSWER_MAX ? 0 : (size_t)n;
}

static size_t refuse(const struct http_head *h, int status, char *to) {
	return write_answer(h, status, "text/plain", "", "", to);
}

static size_t answer_token(struct imds *m, const struct http_head *h, char *to) {
	char token[2 * IMDS_TOKEN_BYTES + 1], more[80];
	uint64_t ttl = token_ttl(h);

	// A proxy that was talked into sending requests here adds this header.
	if (http_find(h, "X-Forwarded-For") != NULL)
		return refuse(h, 403, to);
	if (ttl == 0)
		return refuse(h, 400, to);
	if (!make_token(m, ttl, token))
		return refuse(h, 500, to);
	snprintf(more, sizeof(more), TTL_HEADER ": %llu\r\n", (unsigned long long)ttl);
	return write_answer(h, 200, "text/plain", more, token, to);
}

size_t imds_answer(struct imds *m, const struct http_head *h, char *to) {
	struct slice path = h->target;
	const char *query = memchr(path.data, '?', path.size);

	if (query != NULL)
		path.size = (size_t)(query - path.data);
	bool token = slice_equals(path, TOKEN_PATH), put = slice_equals(h->method, "PUT");
	if (token && put)
		return answer_token(m, h, to);
	if (put || token || (!slice_equals(h->method, "GET") && !slice_equals(h->method, "HEAD")))
		return refuse(h, 405, to);
	if (!knows_token(m, h))
		return refuse(h, 401, to);
	if (m->document == NULL)
		return refuse(h, 404, to);
	if (slice_equals(path, ROLES_PATH) || slice_equals(path, ROLES_PATH "/"))
		return write_answer(h, 200, "text/plain", "", IMDS_ROLE, to);
	if (slice_equals(path, ROLES_PATH "/" IMDS_ROLE))
		return write_answer(h, 200, "application/json", "", m->document, to);
	return refuse(h, 404, to);
}

// Connections.

static void drop(struct imds_connection *c) {
	struct imds *m = c->all;

	loop_close_source(m->loop, &c->source);
	loop_disarm(m->loop, &c->timer);
	*(c->previous != NULL ? &c->previous->next : &m->first) = c->next;
	if (c->next != NULL)
		c->next->previous = c->previous;
	m->count--;
	explicit_bzero(c, sizeof(*c));
	free(c);
}

// False when the client is gone.
static bool flush(struct imds_connection *c) {
	while (c->answer_sent < c->answer_size) {
		ssize_t n = send(c->source.fd, c->answer + c->answer_sent, c->answer_size - c->answer_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->answer_sent += (size_t)n;
	}
	c->answer_size = c->answer_sent = 0;
	return true;
}

// Looks for one complete head and makes its answer. False when more bytes are needed.
static bool take_head(struct imds_connection *c) {
	struct http_head h;
	struct error e;
	ssize_t n = http_parse_request(c->head, c->size, &h, &e);

	if (n == 0 && c->size < HEAD_MAX)
		return false;
	// Nothing here takes a body; behind one that is not read, nothing can be read.
	bool malformed = n <= 0 || h.body != HTTP_BODY_NONE;
	bool empty = n > 0 && h.body == HTTP_BODY_LENGTH && h.content_length == 0;
	c->closing = (malformed && !empty) || !h.keep_alive;
	c->answer_size = malformed && !empty ? refuse(NULL, 400, c->answer) : imds_answer(c->all, &h, c->answer);
	if (c->closing || c->answer_size == 0) {
		c->closing = true;
		c->size = 0;
		return true;
	}
	memmove(c->head, c->head + n, c->size - (size_t)n);
	c->size -= (size_t)n;
	return true;
}

static void proceed(struct imds_connection *c) {
	do {
		if (!flush(c) || (c->closing && c->answer_size == 0)) {
			drop(c);
			return;
		}
	} while (c->answer_size == 0 && take_head(c));
	if (loop_watch(c->all->loop, &c->source, c->answer_size > 0 ? EPOLLOUT : EPOLLIN) < 0)
		drop(c);
}

static void connection_ready(struct source *s, uint32_t events) {
	struct imds_connection *c = container_of(s, struct imds_connection, source);

	if (c->answer_size == 0) {
		ssize_t n = recv(s->fd, c->head + c->size, HEAD_MAX - c->size, MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			drop(c);
			return;
		}
		c->size += n > 0 ? (size_t)n : 0;
	}
	loop_arm(c->all->loop, &c->timer, monotonic_ns() + QUIET_NS);
	proceed(c);
}

static void quiet(struct timer *t) {
	drop(container_of(t, struct imds_connection, timer));
}

static void arrived(struct source *s, uint32_t events) {
	struct imds *m = container_of(s, struct imds, listener);
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
			loop_watch(m->loop, &m->listener, 0);
			loop_arm(m->loop, &m->accept_again, monotonic_ns() + ACCEPT_PAUSE_NS);
		}
		return;
	}
	// Whoever was quiet longest makes room; without any there is no memory.
	struct imds_connection *last = m->first;
	while (last != NULL && last->next != NULL)
		last = last->next;
	if (m->count >= IMDS_CONNECTIONS_MAX)
		drop(last);
	struct imds_connection *c = calloc(1, sizeof(*c));
	if (c == NULL) {
		close(fd);
		return;
	}
	c->all = m;
	c->source = (struct source){.fd = fd, .ready = connection_ready};
	c->timer.fire = quiet;
	c->next = m->first;
	if (m->first != NULL)
		m->first->previous = c;
	m->first = c;
	m->count++;
	connection_ready(&c->source, EPOLLIN);
}

static void accept_again(struct timer *t) {
	struct imds *m = container_of(t, struct imds, accept_again);
	loop_watch(m->loop, &m->listener, EPOLLIN);
}

// Credentials.

void imds_init(struct imds *m, struct loop *l, struct in_addr address, uint16_t port, const char *interface) {
	*m = (struct imds){.loop = l, .address = address, .port = port, .interface = interface};
	m->listener = (struct source){.fd = -1, .ready = arrived};
	m->accept_again.fire = accept_again;
}

static int listen_there(struct imds *m, struct error *e) {
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(m->port), .sin_addr = m->address};
	int one = 1;

	int r = m->interface == NULL ? 0 : network_add_address(m->interface, m->address, e);
	if (r < 0)
		return r;
	cleanup_close int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 ||
	    listen(fd, IMDS_CONNECTIONS_MAX) < 0)
		return error_errno(e, "cannot listen at %s for requests for credentials", IMDS_ADDRESS);
	m->listener.fd = take_fd(&fd);
	r = loop_watch(m->loop, &m->listener, EPOLLIN);
	if (r < 0) {
		loop_close_source(m->loop, &m->listener);
		return error_set(e, r, "cannot wait for requests for credentials: %s", strerror(-r));
	}
	return 0;
}

static void forget_document(struct imds *m) {
	if (m->document != NULL)
		explicit_bzero(m->document, strlen(m->document));
	free(m->document);
	m->document = NULL;
}

int imds_give(struct imds *m, const struct credentials_request *q, struct error *e) {
	json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s}", "Code", "Success", "LastUpdated", q->updated, "Type", "AWS-HMAC",
			      "AccessKeyId", q->key_id, "SecretAccessKey", q->secret, "Token", q->token, "Expiration", q->expiration);
	char *document = o == NULL ? NULL : json_dumps(o, JSON_INDENT(2) | JSON_PRESERVE_ORDER);

	json_decref(o);
	if (document == NULL)
		return error_set(e, -ENOMEM, "out of memory keeping credentials");
	int r = m->listener.fd >= 0 ? 0 : listen_there(m, e);
	if (r < 0) {
		free(document);
		return r;
	}
	forget_document(m);
	m->document = document;
	return 0;
}

void imds_take(struct imds *m) {
	while (m->first != NULL)
		drop(m->first);
	loop_close_source(m->loop, &m->listener);
	loop_disarm(m->loop, &m->accept_again);
	explicit_bzero(m->tokens, sizeof(m->tokens));
	forget_document(m);
}
