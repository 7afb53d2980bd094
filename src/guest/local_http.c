// A small HTTP/1.1 server; see local_http.h.
//
// A connection holds one request's head and one answer, both small: an answer goes out before the next head is looked at.
#include "guest/local_http.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "guest/network.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define HEAD_MAX 4096
#define ACCEPT_PAUSE_NS 50000000ull
#define QUIET_NS 10000000000ull // without a byte from the client

struct connection {
	struct local_http *all;
	struct connection *previous, *next;
	struct source source;
	struct timer timer;
	bool closing; // after what is left of the answer
	size_t size, answer_size, answer_sent;
	char head[HEAD_MAX];
	char answer[LOCAL_HTTP_ANSWER_MAX];
};

size_t local_http_write(const struct http_head *h, int status, const char *type, const char *more, const char *body, char *to) {
	static const struct {
		int status;
		const char *reason;
	} reasons[] = {{200, "OK"},          {202, "Accepted"},           {204, "No Content"},
		       {400, "Bad Request"}, {401, "Unauthorized"},       {403, "Forbidden"},
		       {404, "Not Found"},   {405, "Method Not Allowed"}, {429, "Too Many Requests"}};
	const char *reason = "Internal Server Error";
	bool head_only = h != NULL && slice_equals(h->method, "HEAD");

	for (size_t i = 0; i < sizeof(reasons) / sizeof(*reasons); i++)
		if (reasons[i].status == status)
			reason = reasons[i].reason;
	int n = snprintf(to, LOCAL_HTTP_ANSWER_MAX, "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n%s%s\r\n%s", status,
			 reason, type, strlen(body), more, h == NULL || !h->keep_alive ? "Connection: close\r\n" : "",
			 head_only ? "" : body);
	return n < 0 || n >= LOCAL_HTTP_ANSWER_MAX ? 0 : (size_t)n;
}

static void drop(struct connection *c) {
	struct local_http *m = c->all;

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
static bool flush(struct connection *c) {
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
static bool take_head(struct connection *c) {
	struct http_head h;
	struct error e;
	ssize_t n = http_parse_request(c->head, c->size, &h, &e);

	if (n == 0 && c->size < HEAD_MAX)
		return false;
	// Nothing here takes a body; behind one that is not read, nothing can be read.
	bool malformed = n <= 0 || h.body != HTTP_BODY_NONE;
	bool empty = n > 0 && h.body == HTTP_BODY_LENGTH && h.content_length == 0;
	c->closing = (malformed && !empty) || !h.keep_alive;
	c->answer_size = malformed && !empty ? local_http_write(NULL, 400, "text/plain", "", "", c->answer)
					     : c->all->answer(c->all->arg, &h, c->answer);
	if (c->closing || c->answer_size == 0) {
		c->closing = true;
		c->size = 0;
		return true;
	}
	memmove(c->head, c->head + n, c->size - (size_t)n);
	c->size -= (size_t)n;
	return true;
}

static void proceed(struct connection *c) {
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
	struct connection *c = container_of(s, struct connection, source);

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
	drop(container_of(t, struct connection, timer));
}

static void arrived(struct source *s, uint32_t events) {
	struct local_http *m = container_of(s, struct local_http, listener);
	int fd = accept4(s->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

	if (fd < 0) {
		if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
			loop_watch(m->loop, &m->listener, 0);
			loop_arm(m->loop, &m->accept_again, monotonic_ns() + ACCEPT_PAUSE_NS);
		}
		return;
	}
	// Whoever was quiet longest makes room; without any there is no memory.
	struct connection *last = m->first;
	while (last != NULL && last->next != NULL)
		last = last->next;
	if (m->count >= LOCAL_HTTP_CONNECTIONS_MAX)
		drop(last);
	struct connection *c = calloc(1, sizeof(*c));
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
	struct local_http *m = container_of(t, struct local_http, accept_again);
	loop_watch(m->loop, &m->listener, EPOLLIN);
}

void local_http_init(struct local_http *m, const struct local_http *options) {
	*m = (struct local_http){.loop = options->loop,
				 .address = options->address,
				 .port = options->port,
				 .side = options->side,
				 .answer = options->answer,
				 .arg = options->arg};
	m->listener = (struct source){.fd = -1, .ready = arrived};
	m->accept_again.fire = accept_again;
}

int local_http_listen(struct local_http *m, struct error *e) {
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(m->port), .sin_addr = m->address};
	char name[INET_ADDRSTRLEN] = "";
	int one = 1;

	if (m->listener.fd >= 0)
		return 0;
	inet_ntop(AF_INET, &m->address, name, sizeof(name));
	cleanup_close int fd = m->side == NULL ? socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) : network_side_socket(m->side);
	if (fd < 0 || fcntl(fd, F_SETFL, O_NONBLOCK) < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) < 0 ||
	    bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, LOCAL_HTTP_CONNECTIONS_MAX) < 0)
		return error_errno(e, "cannot listen at %s:%u", name, (unsigned)m->port);
	m->listener.fd = take_fd(&fd);
	int r = loop_watch(m->loop, &m->listener, EPOLLIN);
	if (r < 0) {
		loop_close_source(m->loop, &m->listener);
		return error_set(e, r, "cannot wait for requests at %s: %s", name, strerror(-r));
	}
	return 0;
}

void local_http_close(struct local_http *m) {
	while (m->first != NULL)
		drop(m->first);
	loop_close_source(m->loop, &m->listener);
	loop_disarm(m->loop, &m->accept_again);
}
