// Control connections: frames in, operations one after the other, frames out.
//
// A connection handles one request at a time, so that replies come in order; others go on meanwhile. Requests that are sent ahead wait in the
// input buffer, and beyond it in the socket. Replies that the host does not take stop the connection's next request.
#include "guest/control.h"

#include "guest/operations.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define INPUT_FIRST 4096
#define INPUT_MAX (4u + GUEST_FRAME_MAX)
#define OUTPUT_PAUSE 32768 // bytes of replies that wait, above which no further request is begun

struct control {
	struct agent *agent;
	struct control *previous, *next;
	struct source source;
	struct operation operation;
	uint8_t *input, *output;
	size_t input_room, input_used, output_room, output_used, output_sent;
	bool ended;      // the host sends no more
	bool gone;       // nobody there any more
	bool processing; // inside of process()
};

static void release(struct control *c) {
	free(c->input);
	free(c->output);
	free(c);
}

// Closes the connection. Its memory stays as long as an operation needs it.
static void drop(struct control *c) {
	struct agent *a = c->agent;

	c->gone = true;
	loop_close_source(&a->loop, &c->source);
	*(c->previous != NULL ? &c->previous->next : &a->controls) = c->next;
	if (c->next != NULL)
		c->next->previous = c->previous;
	a->control_count--;
	operation_abandon(&c->operation);
	if (!c->operation.active)
		release(c);
}

static bool append_frame(struct control *c, const char *text, size_t size) {
	if (c->output_sent == c->output_used)
		c->output_sent = c->output_used = 0;
	if (size > GUEST_FRAME_MAX)
		return false;
	size_t needed = c->output_used + 4 + size;
	if (needed > c->output_room) {
		size_t room = needed < 1024 ? 1024 : needed;
		uint8_t *more = realloc(c->output, room);
		if (more == NULL)
			return false;
		c->output = more;
		c->output_room = room;
	}
	uint32_t length = (uint32_t)size;
	memcpy(c->output + c->output_used, &length, 4);
	memcpy(c->output + c->output_used + 4, text, size);
	c->output_used += 4 + size;
	return true;
}

// False when the host is gone.
static bool flush(struct control *c) {
	while (c->output_sent < c->output_used) {
		ssize_t n = send(c->source.fd, c->output + c->output_sent, c->output_used - c->output_sent, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		c->output_sent += (size_t)n;
	}
	return true;
}

// Handles the requests that are complete, as far as the one before is answered. False when the connection must end.
static bool process(struct control *c) {
	size_t at = 0;
	bool sane = true;

	c->processing = true;
	while (!c->operation.active && c->output_used - c->output_sent < OUTPUT_PAUSE) {
		ssize_t n = frame_size(c->input + at, c->input_used - at);
		if (n < 0) {
			sane = false;
			struct error e;
			error_set(&e, (int)n, "a frame may have %u bytes at most", GUEST_FRAME_MAX);
			operation_refuse(&c->operation, 0, &e);
			break;
		}
		if (n == 0 || (size_t)n > c->input_used - at)
			break;
		struct request q;
		struct error e = {0};
		int r = request_parse(c->input + at + 4, (size_t)n - 4, &q, &e);
		at += (size_t)n;
		if (r < 0)
			operation_refuse(&c->operation, q.id, &e);
		else
			operation_begin(&c->operation, c->agent, &q);
		request_free(&q);
	}
	c->processing = false;
	memmove(c->input, c->input + at, c->input_used - at);
	c->input_used -= at;
	return sane;
}

static size_t wanted_room(const struct control *c) {
	ssize_t n = frame_size(c->input, c->input_used);
	return n > (ssize_t)INPUT_FIRST ? (size_t)n : INPUT_FIRST;
}

// Processes, sends, and says what to wait for; ends the connection when it is over.
static void proceed(struct control *c) {
	bool sane = process(c);
	bool alive = flush(c);

	if (!alive || !sane || (c->ended && !c->operation.active && c->output_sent == c->output_used)) {
		drop(c);
		return;
	}
	// Complete requests that wait for room among the replies go on once those are sent.
	bool full = c->input_used >= c->input_room && wanted_room(c) <= c->input_room;
	uint32_t events = EPOLLHUP;
	if (!c->ended && !full)
		events |= EPOLLIN;
	if (c->output_sent < c->output_used)
		events |= EPOLLOUT;
	if (loop_watch(&c->agent->loop, &c->source, events) < 0)
		drop(c);
}

static void operation_replied(struct operation *o, json_t *reply) {
	struct control *c = container_of(o, struct control, operation);
	char *text = c->gone ? NULL : json_dumps(reply, JSON_COMPACT);

	json_decref(reply);
	if (c->gone) {
		release(c);
		return;
	}
	if (text == NULL || !append_frame(c, text, strlen(text)))
		c->ended = true;
	free(text);
	if (!c->processing)
		proceed(c);
}

// False when the connection is broken.
static bool fill_input(struct control *c) {
	size_t room = wanted_room(c);

	if (room > c->input_room) {
		uint8_t *more = realloc(c->input, room);
		if (more == NULL)
			return false;
		c->input = more;
		c->input_room = room;
	}
	if (c->input_used == c->input_room)
		return true;
	ssize_t n = recv(c->source.fd, c->input + c->input_used, c->input_room - c->input_used, MSG_DONTWAIT);
	if (n < 0)
		return errno == EAGAIN || errno == EINTR;
	if (n == 0)
		c->ended = true;
	c->input_used += (size_t)n;
	return true;
}

static void control_ready(struct source *s, uint32_t events) {
	struct control *c = container_of(s, struct control, source);

	if (!c->ended && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && !fill_input(c)) {
		drop(c);
		return;
	}
	// Hung up, and all that was sent before is read: whoever asked is not there to be answered.
	if (c->ended && (events & (EPOLLHUP | EPOLLERR))) {
		if (!c->operation.active)
			process(c);
		drop(c);
		return;
	}
	proceed(c);
}

void control_take(struct agent *a, int fd) {
	struct control *c = a->control_count < GUEST_CONTROL_MAX ? calloc(1, sizeof(*c)) : NULL;
	uint8_t *input = c != NULL ? malloc(INPUT_FIRST) : NULL;

	if (input == NULL) {
		free(c);
		close(fd);
		return;
	}
	c->agent = a;
	c->input = input;
	c->input_room = INPUT_FIRST;
	c->source = (struct source){.fd = fd, .ready = control_ready};
	c->operation.reply = operation_replied;
	c->next = a->controls;
	if (a->controls != NULL)
		a->controls->previous = c;
	a->controls = c;
	a->control_count++;
	// The first request mostly comes with the connection: answering it before the descriptor is in the epoll set saves a round.
	control_ready(&c->source, EPOLLIN);
}

void control_close_all(struct agent *a) {
	while (a->controls != NULL)
		drop(a->controls);
}
