// Pipes of standard output and error; see output.h.
#include "guest/output.h"

#include "base/clock.h"

#include <fcntl.h>
#include <stddef.h>
#include <unistd.h>

#define HOLD_NS 5000000ull
#define DRAIN_MAX (1u << 20) // of one drain: a pipe's largest size; a writer that never stops must not keep the loop

// Returns false at the end of the pipe.
static bool take_chunk(struct output *o, size_t *taken) {
	static char chunk[GUEST_EVENT_BYTES_MAX]; // one loop, one thread
	ssize_t n = read(o->source.fd, chunk, sizeof(chunk));

	*taken = n > 0 ? (size_t)n : 0;
	if (n > 0)
		events_push(o->events, o->kind, chunk, (size_t)n);
	return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void output_ready(struct source *s, uint32_t events) {
	struct output *o = container_of(s, struct output, source);
	size_t taken;

	if (o->may_wait && events_is_behind(o->events)) {
		loop_watch(o->loop, s, 0);
		loop_arm(o->loop, &o->again, monotonic_ns() + HOLD_NS);
		return;
	}
	if (!take_chunk(o, &taken))
		loop_close_source(o->loop, s);
}

static void look_again(struct timer *t) {
	struct output *o = container_of(t, struct output, again);
	if (o->source.fd >= 0)
		loop_watch(o->loop, &o->source, EPOLLIN);
}

int output_open(struct output *o, struct loop *l, struct events *v, enum guest_event_kind kind, bool may_wait, int *write_end) {
	int ends[2];

	*o = (struct output){.loop = l, .events = v, .kind = kind, .may_wait = may_wait};
	o->source = (struct source){.fd = -1, .ready = output_ready};
	o->again.fire = look_again;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	// Only the read end must not block; the flag belongs to each end by itself.
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	o->source.fd = ends[0];
	int r = loop_watch(l, &o->source, EPOLLIN);
	if (r < 0) {
		loop_close_source(l, &o->source);
		close(ends[1]);
		return r;
	}
	*write_end = ends[1];
	return 0;
}

void output_drain(struct output *o) {
	size_t taken, sum = 0;

	while (o->source.fd >= 0 && sum < DRAIN_MAX) {
		if (!take_chunk(o, &taken)) {
			loop_close_source(o->loop, &o->source);
			return;
		}
		if (taken == 0)
			return;
		sum += taken;
	}
}

void output_close(struct output *o) {
	if (o->loop == NULL)
		return;
	output_drain(o);
	loop_disarm(o->loop, &o->again);
	loop_close_source(o->loop, &o->source);
}
