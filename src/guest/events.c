// The EVENTS hub; see events.h.
//
// A ring of frames, ready to be sent as they are. Frames move from the ring to a buffer in whole, and from there to the subscriber, so that
// dropping the oldest frames never cuts one that is half sent, and a new subscriber can be given the unfinished ones again.
// Nothing is allocated after events_init(); both memories start untouched, and the ring starts over at its beginning whenever it is empty:
// a clone then copies few of its pages.
#include "guest/events.h"

#include "base/clock.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

static void *untouched_memory(size_t size) {
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return p == MAP_FAILED ? NULL : p;
}

static void ring_copy_in(struct events *v, const void *from, size_t n) {
	size_t at = (v->head + v->used) % GUEST_EVENTS_KEPT;
	size_t first = n < GUEST_EVENTS_KEPT - at ? n : GUEST_EVENTS_KEPT - at;

	memcpy(v->ring + at, from, first);
	memcpy(v->ring, (const uint8_t *)from + first, n - first);
	v->used += n;
}

static void ring_copy_out(const struct events *v, void *to, size_t n) {
	size_t first = n < GUEST_EVENTS_KEPT - v->head ? n : GUEST_EVENTS_KEPT - v->head;

	memcpy(to, v->ring + v->head, first);
	memcpy((uint8_t *)to + first, v->ring, n - first);
}

static void ring_skip(struct events *v, size_t n) {
	v->used -= n;
	v->head = v->used == 0 ? 0 : (v->head + n) % GUEST_EVENTS_KEPT;
}

static size_t first_frame_size(const struct events *v) {
	uint32_t n;
	ring_copy_out(v, &n, sizeof(n));
	return sizeof(n) + n;
}

static size_t make_header(uint8_t to[GUEST_EVENT_HEADER], enum guest_event_kind kind, size_t size) {
	uint32_t length = (uint32_t)(size + GUEST_EVENT_HEADER - 4);
	uint64_t now = realtime_ns();

	memcpy(to, &length, 4);
	to[4] = (uint8_t)kind;
	memcpy(to + 5, &now, 8);
	return GUEST_EVENT_HEADER;
}

static void detach(struct events *v) {
	loop_close_source(v->loop, &v->subscriber);
	// Back to the start of the frame that was not sent completely.
	size_t at = 0;
	while (at < v->buffer_used) {
		uint32_t n;
		memcpy(&n, v->buffer + at, sizeof(n));
		if (at + sizeof(n) + n > v->buffer_sent)
			break;
		at += sizeof(n) + n;
	}
	v->buffer_sent = at;
}

static void tell_dropped(struct events *v) {
	char text[64];
	int n = snprintf(text, sizeof(text), "{\"event\":\"dropped\",\"bytes\":%llu}", (unsigned long long)v->dropped);

	v->buffer_used += make_header(v->buffer + v->buffer_used, GUEST_EVENT_JSON, (size_t)n);
	memcpy(v->buffer + v->buffer_used, text, (size_t)n);
	v->buffer_used += (size_t)n;
	v->dropped = 0;
}

static void fill_buffer(struct events *v) {
	if (v->buffer_sent < v->buffer_used)
		return;
	v->buffer_sent = v->buffer_used = 0;
	if (v->dropped > 0)
		tell_dropped(v);
	while (v->used > 0) {
		size_t n = first_frame_size(v);
		if (n > EVENTS_BUFFER - v->buffer_used)
			break;
		ring_copy_out(v, v->buffer + v->buffer_used, n);
		v->buffer_used += n;
		ring_skip(v, n);
	}
}

static void send_what_goes(struct events *v) {
	if (v->subscriber.fd < 0)
		return;
	for (;;) {
		fill_buffer(v);
		if (v->buffer_used == 0)
			break;
		ssize_t n =
			send(v->subscriber.fd, v->buffer + v->buffer_sent, v->buffer_used - v->buffer_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN) {
			loop_watch(v->loop, &v->subscriber, EPOLLIN | EPOLLOUT);
			return;
		}
		if (n < 0) {
			detach(v);
			return;
		}
		v->buffer_sent += (size_t)n;
	}
	loop_watch(v->loop, &v->subscriber, EPOLLIN);
}

// The subscriber has nothing to say; its bytes are dropped, its end ends it.
static void subscriber_ready(struct source *s, uint32_t events) {
	struct events *v = container_of(s, struct events, subscriber);
	char rubbish[256];

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
		ssize_t n = recv(s->fd, rubbish, sizeof(rubbish), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
			detach(v);
			return;
		}
	}
	if (events & EPOLLOUT)
		send_what_goes(v);
}

int events_init(struct events *v, struct loop *l, struct error *e) {
	memset(v, 0, sizeof(*v));
	v->loop = l;
	v->subscriber = (struct source){.fd = -1, .ready = subscriber_ready};
	v->ring = untouched_memory(GUEST_EVENTS_KEPT);
	v->buffer = untouched_memory(EVENTS_BUFFER);
	if (v->ring == NULL || v->buffer == NULL) {
		events_end(v);
		return error_set(e, -ENOMEM, "no memory for the events of the application");
	}
	return 0;
}

void events_end(struct events *v) {
	loop_close_source(v->loop, &v->subscriber);
	if (v->ring != NULL)
		munmap(v->ring, GUEST_EVENTS_KEPT);
	if (v->buffer != NULL)
		munmap(v->buffer, EVENTS_BUFFER);
	v->ring = v->buffer = NULL;
}

static void push_one(struct events *v, enum guest_event_kind kind, const void *data, size_t size) {
	uint8_t header[GUEST_EVENT_HEADER];

	while (v->used + GUEST_EVENT_HEADER + size > GUEST_EVENTS_KEPT) {
		size_t n = first_frame_size(v);
		v->dropped += n - GUEST_EVENT_HEADER;
		ring_skip(v, n);
	}
	ring_copy_in(v, header, make_header(header, kind, size));
	ring_copy_in(v, data, size);
}

void events_push(struct events *v, enum guest_event_kind kind, const void *data, size_t size) {
	const uint8_t *from = data;

	while (size > 0) {
		size_t n = size < GUEST_EVENT_BYTES_MAX ? size : GUEST_EVENT_BYTES_MAX;
		push_one(v, kind, from, n);
		from += n;
		size -= n;
	}
	// While the socket is full there is no point in trying; EPOLLOUT tells.
	if ((v->subscriber.events & EPOLLOUT) == 0)
		send_what_goes(v);
}

void events_push_json(struct events *v, const char *text) {
	events_push(v, GUEST_EVENT_JSON, text, strlen(text));
}

bool events_is_behind(const struct events *v) {
	return v->subscriber.fd >= 0 && v->used > GUEST_EVENTS_KEPT / 2;
}

void events_attach(struct events *v, int fd) {
	detach(v);
	v->subscriber.fd = fd;
	if (send(fd, "OK\n", 3, MSG_NOSIGNAL | MSG_DONTWAIT) != 3) {
		detach(v);
		return;
	}
	send_what_goes(v);
}

void events_clear(struct events *v) {
	v->head = v->used = 0;
	v->dropped = 0;
	// A frame that is half on its way must be finished, or the subscriber would lose its place.
	if (v->subscriber.fd < 0)
		v->buffer_sent = v->buffer_used = 0;
}
