// Hook calls; see hook.h.
//
// One attempt is: connect, send the whole request, read until the response is complete. A refused connection leads to another attempt after 10 ms, then
// 20, … up to 100 ms; a 503 too where the hook may be asked again (ready, validate), and there also a connection that ends without a
// response: servers that are starting do that. A hook that must happen once (run, resume, …) is never sent twice. Everything ends at one deadline.
#include "guest/hook.h"

#include "base/clock.h"
#include "base/http1.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define RETRY_FIRST_NS 10000000ull
#define RETRY_LAST_NS 100000000ull

struct hook {
	struct hooks *all;
	struct hook *previous, *next;
	struct source source;
	struct timer deadline, retry;
	uint64_t started_ns, pause_ns;
	hook_done done;
	void *arg;
	struct hook_answer answer;
	uint16_t port;
	bool retry_503, connected, ever_connected;
	char *request;
	size_t request_size, request_sent;
	char *response;
	size_t response_size;
};

static void attempt(struct hook *h);

static void release(struct hook *h) {
	struct hooks *all = h->all;

	loop_close_source(all->loop, &h->source);
	loop_disarm(all->loop, &h->deadline);
	loop_disarm(all->loop, &h->retry);
	*(h->previous != NULL ? &h->previous->next : &all->first) = h->next;
	if (h->next != NULL)
		h->next->previous = h->previous;
	free(h->request);
	free(h->response);
	free(h);
}

static void finish(struct hook *h, enum hook_result result) {
	struct hook_answer answer = h->answer;
	hook_done done = h->done;
	void *arg = h->arg;

	answer.result = result;
	answer.elapsed_ms = (monotonic_ns() - h->started_ns) / 1000000;
	release(h);
	done(arg, &answer);
}

static void try_again_later(struct hook *h) {
	loop_close_source(h->all->loop, &h->source);
	loop_arm(h->all->loop, &h->retry, monotonic_ns() + h->pause_ns);
	h->pause_ns = h->pause_ns * 2 < RETRY_LAST_NS ? h->pause_ns * 2 : RETRY_LAST_NS;
}

static void broken(struct hook *h, const char *why) {
	snprintf(h->answer.message, sizeof(h->answer.message), "%s", why);
	if (h->retry_503)
		try_again_later(h);
	else
		finish(h, HOOK_BROKEN);
}

static void not_reached(struct hook *h, int error) {
	if (error == ECONNREFUSED || error == ETIMEDOUT || error == EAGAIN || error == EADDRNOTAVAIL || error == ECONNRESET) {
		try_again_later(h);
		return;
	}
	snprintf(h->answer.message, sizeof(h->answer.message), "cannot connect to 127.0.0.1:%u: %s", h->port, strerror(error));
	finish(h, HOOK_BROKEN);
}

static void answered(struct hook *h, int status) {
	h->answer.status = status;
	h->answer.message[0] = '\0';
	if (status == 503 && h->retry_503)
		try_again_later(h);
	else
		finish(h, status == 200 ? HOOK_OK : HOOK_STATUS);
}

static bool body_is_complete(const struct http_head *head, const char *data, size_t size, bool closed) {
	struct http_body body;
	struct slice content;

	http_body_start(&body, head);
	while (!body.done && size > 0) {
		ssize_t n = http_body_feed(&body, data, size, &content, NULL);
		// A malformed body takes nothing from the status, which is all that counts.
		if (n < 0)
			return true;
		if (n == 0)
			break;
		data += n;
		size -= (size_t)n;
	}
	return body.done || (closed && body.kind == HTTP_BODY_UNTIL_CLOSE);
}

// Looks at what has been read so far. `closed`: nothing more will come; `full`: nothing more will be read.
static void examine(struct hook *h, bool closed) {
	bool full = h->response_size == HOOK_RESPONSE_MAX;
	const char *at = h->response;
	size_t left = h->response_size;

	for (;;) {
		struct http_head head;
		struct error e = {0};
		ssize_t n = http_parse_response(at, left, false, &head, &e);
		if (n < 0) {
			broken(h, "the application's answer is not HTTP/1.1");
			return;
		}
		if (n == 0) {
			if (closed)
				broken(h, left == 0 ? "the application closed the connection without an answer"
						    : "the application closed the connection in the middle of its answer");
			else if (full)
				broken(h, "the head of the application's answer is too long");
			return;
		}
		at += n;
		left -= (size_t)n;
		// Interim responses come before the one that counts (RFC 9110 section 15.2); 101 would end HTTP, and was not asked for.
		if (head.status >= 100 && head.status < 200 && head.status != 101)
			continue;
		h->answer.status = head.status;
		if (full || closed || body_is_complete(&head, at, left, closed))
			answered(h, head.status);
		return;
	}
}

static void read_response(struct hook *h) {
	ssize_t n = recv(h->source.fd, h->response + h->response_size, HOOK_RESPONSE_MAX - h->response_size, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		h->response_size += (size_t)n;
	examine(h, n <= 0);
}

// Returns false when the hook may be gone.
static bool send_request(struct hook *h) {
	while (h->request_sent < h->request_size) {
		ssize_t n =
			send(h->source.fd, h->request + h->request_sent, h->request_size - h->request_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return loop_watch(h->all->loop, &h->source, EPOLLIN | EPOLLOUT) == 0;
		// A server may answer without having read everything: what it said counts.
		if (n < 0)
			break;
		h->request_sent += (size_t)n;
	}
	return loop_watch(h->all->loop, &h->source, EPOLLIN) == 0;
}

static void connected(struct hook *h) {
	h->connected = h->ever_connected = true;
	h->response_size = h->request_sent = 0;
	send_request(h);
}

static void hook_ready(struct source *s, uint32_t events) {
	struct hook *h = container_of(s, struct hook, source);

	if (!h->connected) {
		int error = 0;
		socklen_t size = sizeof(error);
		getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error != 0)
			not_reached(h, error);
		else if (events & EPOLLOUT)
			connected(h);
		return;
	}
	if ((events & EPOLLOUT) && h->request_sent < h->request_size)
		send_request(h);
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		read_response(h);
}

static void attempt(struct hook *h) {
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(h->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	h->connected = false;
	h->source.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (h->source.fd < 0) {
		not_reached(h, errno);
		return;
	}
	// Over loopback the handshake is done by the time that the first call is back; the second one fetches the result.
	if (connect(h->source.fd, (struct sockaddr *)&to, sizeof(to)) == 0 ||
	    (errno == EINPROGRESS && connect(h->source.fd, (struct sockaddr *)&to, sizeof(to)) == 0))
		connected(h);
	else if (errno != EINPROGRESS && errno != EALREADY)
		not_reached(h, errno);
	else
		loop_watch(h->all->loop, &h->source, EPOLLOUT);
}

static void retry_now(struct timer *t) {
	attempt(container_of(t, struct hook, retry));
}

static void deadline_reached(struct timer *t) {
	struct hook *h = container_of(t, struct hook, deadline);
	finish(h, h->ever_connected || h->connected ? HOOK_TIMEOUT : HOOK_REFUSED);
}

static int write_request(struct hook *h, const struct hook_request *q) {
	bool has_body = q->body != NULL;
	int n = asprintf(&h->request,
			 "POST /aws/lambda-microvms/runtime/v1/%s HTTP/1.1\r\nHost: localhost:%u\r\n%sContent-Length: %zu\r\n\r\n%s",
			 q->name, q->port, has_body ? "content-type: application/json\r\n" : "", q->body_size, has_body ? q->body : "");
	if (n < 0) {
		h->request = NULL;
		return -ENOMEM;
	}
	h->request_size = (size_t)n;
	return 0;
}

int hook_start(struct hooks *all, const struct hook_request *q, hook_done done, void *arg, struct hook **ret, struct error *e) {
	struct hook *h = calloc(1, sizeof(*h));

	if (h == NULL || write_request(h, q) < 0 || (h->response = malloc(HOOK_RESPONSE_MAX)) == NULL) {
		if (h != NULL)
			free(h->request);
		free(h);
		return error_set(e, -ENOMEM, "out of memory");
	}
	h->all = all;
	h->next = all->first;
	if (all->first != NULL)
		all->first->previous = h;
	all->first = h;
	h->source = (struct source){.fd = -1, .ready = hook_ready};
	h->deadline.fire = deadline_reached;
	h->retry.fire = retry_now;
	h->started_ns = monotonic_ns();
	h->pause_ns = RETRY_FIRST_NS;
	h->done = done;
	h->arg = arg;
	h->port = q->port;
	h->retry_503 = q->retry_503;
	loop_arm(all->loop, &h->deadline, h->started_ns + q->timeout_ms * 1000000);
	// The first attempt comes from the loop, so that `done` cannot come before the caller has *ret. A timer that is due costs no system call.
	loop_arm(all->loop, &h->retry, 0);
	*ret = h;
	return 0;
}

void hook_cancel(struct hook *h) {
	release(h);
}

void hooks_application_exited(struct hooks *all) {
	while (all->first != NULL)
		finish(all->first, HOOK_EXITED);
}

const char *hook_result_name(enum hook_result r) {
	static const char *const names[] = {
		[HOOK_OK] = "ok",           [HOOK_STATUS] = "status", [HOOK_TIMEOUT] = "timeout",
		[HOOK_REFUSED] = "refused", [HOOK_EXITED] = "exited", [HOOK_BROKEN] = "broken",
	};
	return names[r];
}
