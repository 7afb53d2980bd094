// Request lines of the streams port; see streams.h. A connection that does not say what it wants within ten seconds is closed.
#include "guest/streams.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINE_TIMEOUT_NS 10000000000ull

struct opening {
	struct agent *agent;
	struct opening *previous, *next;
	struct source source;
	struct timer timer;
	char line[STREAM_LINE_MAX];
	size_t used;
};

static ssize_t parse_port(const char *text, size_t size, uint16_t *ret) {
	unsigned v = 0;

	if (size == 0 || size > 5 || text[0] == '0')
		return -EINVAL;
	for (size_t i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9')
			return -EINVAL;
		v = v * 10 + (unsigned)(text[i] - '0');
	}
	if (v > 65535)
		return -EINVAL;
	*ret = (uint16_t)v;
	return 0;
}

ssize_t stream_request_parse(const char *data, size_t size, struct stream_request *ret) {
	const char *end = memchr(data, '\n', size < STREAM_LINE_MAX ? size : STREAM_LINE_MAX);

	if (end == NULL)
		return size >= STREAM_LINE_MAX ? -EINVAL : 0;
	size_t n = (size_t)(end - data);
	if (n == 6 && memcmp(data, "EVENTS", 6) == 0) {
		*ret = (struct stream_request){.kind = STREAM_EVENTS};
		return (ssize_t)n + 1;
	}
	if (n == 7 && memcmp(data, "SESSION", 7) == 0) {
		*ret = (struct stream_request){.kind = STREAM_SESSION};
		return (ssize_t)n + 1;
	}
	*ret = (struct stream_request){.kind = STREAM_TCP};
	if (n > 4 && memcmp(data, "TCP ", 4) == 0 && parse_port(data + 4, n - 4, &ret->port) == 0)
		return (ssize_t)n + 1;
	return -EINVAL;
}

// Takes the descriptor out and frees the rest.
static int release(struct opening *o) {
	struct agent *a = o->agent;
	int fd = o->source.fd;

	loop_disarm(&a->loop, &o->timer);
	loop_watch(&a->loop, &o->source, 0);
	*(o->previous != NULL ? &o->previous->next : &a->openings) = o->next;
	if (o->next != NULL)
		o->next->previous = o->previous;
	a->opening_count--;
	free(o);
	return fd;
}

// `data`: all that came so far.
static void decide(struct opening *o, const char *data, size_t size) {
	struct agent *a = o->agent;
	struct stream_request q;
	ssize_t n = stream_request_parse(data, size, &q);

	if (n < 0) {
		int fd = release(o);
		(void)!send(fd, "ERR EINVAL\n", 11, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(fd);
	} else if (n == 0) {
		memmove(o->line, data, size);
		o->used = size;
		if (o->source.events == 0)
			loop_arm(&a->loop, &o->timer, monotonic_ns() + LINE_TIMEOUT_NS);
		if (loop_watch(&a->loop, &o->source, EPOLLIN) < 0)
			close(release(o));
	} else if (q.kind == STREAM_EVENTS) {
		events_attach(&a->events, release(o));
	} else if (q.kind == STREAM_SESSION) {
		session_start(&a->sessions, release(o), data + n, size - (size_t)n);
	} else {
		forward_start(&a->forwards, release(o), q.port, data + n, size - (size_t)n);
	}
}

static void opening_ready(struct source *s, uint32_t events) {
	struct opening *o = container_of(s, struct opening, source);
	char *data = (char *)o->agent->forwards.scratch;

	ssize_t n = recv(s->fd, data + o->used, FORWARD_CHUNK - o->used, MSG_DONTWAIT);
	if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
		close(release(o));
		return;
	}
	memcpy(data, o->line, o->used);
	decide(o, data, o->used + (n > 0 ? (size_t)n : 0));
}

static void timed_out(struct timer *t) {
	close(release(container_of(t, struct opening, timer)));
}

void stream_take(struct agent *a, int fd) {
	struct opening *o = a->opening_count < GUEST_STREAMS_MAX ? calloc(1, sizeof(*o)) : NULL;

	if (o == NULL) {
		close(fd);
		return;
	}
	o->agent = a;
	o->source = (struct source){.fd = fd, .ready = opening_ready};
	o->timer.fire = timed_out;
	o->next = a->openings;
	if (a->openings != NULL)
		a->openings->previous = o;
	a->openings = o;
	a->opening_count++;
	// The line mostly comes with the connection.
	opening_ready(&o->source, EPOLLIN);
}

void stream_close_all(struct agent *a) {
	while (a->openings != NULL)
		close(release(a->openings));
}
