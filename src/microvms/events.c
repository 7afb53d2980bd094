// The EVENTS stream; see events.h.
//
// The stream's start is a line protocol (CONNECT, EVENTS and their answers), then come frames. Output frames of any length are written
// through as their bytes arrive; only events are collected, up to EVENT_MAX bytes.
#include "microvms/events.h"

#include "base/io.h"
#include "base/log.h"
#include "microvms/agent_client.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define EVENT_MAX 16384
#define FRAME_HEAD 13u // u32 length, u8 kind, u64 time
#define FRAME_MAX (1024u * 1024u)
#define READ_BYTES 16384
#define READS_PER_TURN 8 // then others get their turn

enum phase { PHASE_CONNECT, PHASE_EVENTS, PHASE_HEAD, PHASE_BODY, PHASE_ENDED };

struct events {
	struct watcher *watcher;
	int64_t watch;
	int fd;
	struct output_log *log;
	struct events_handler handler;
	enum phase phase;
	_Atomic bool ended;
	uint8_t head[64]; // of a frame, or the line of an answer
	size_t head_size;
	uint32_t left; // bytes left of the body
	uint8_t kind;
	uint64_t time;
	char event[EVENT_MAX];
	size_t event_size;
	bool event_cut;
};

static void report(struct events *s) {
	json_error_t parse;
	json_t *event = s->event_cut ? NULL : json_loadb(s->event, s->event_size, 0, &parse);
	const char *name = json_string_value(json_object_get(event, "event"));
	if (name == NULL) {
		log_warn("guest.event", LOG_S("message", "the guest sent an event that is not JSON; dropped"));
	} else if (strcmp(name, "exited") == 0) {
		if (s->handler.exited != NULL)
			s->handler.exited(s->handler.arg, (int)json_integer_value(json_object_get(event, "exitCode")));
	} else if (strcmp(name, "suspend") == 0) {
		if (s->handler.suspend != NULL)
			s->handler.suspend(s->handler.arg);
	} else if (strcmp(name, "progress") == 0) {
		if (s->handler.progress != NULL)
			s->handler.progress(s->handler.arg, event);
	} else if (strcmp(name, "dropped") == 0 && s->log != NULL) {
		output_log_note(s->log, "(%lld bytes of output were dropped)",
				(long long)json_integer_value(json_object_get(event, "bytes")));
	}
	json_decref(event);
}

static int end_head(struct events *s) {
	uint32_t length;
	memcpy(&length, s->head, sizeof(length));
	s->kind = s->head[4];
	memcpy(&s->time, s->head + 5, sizeof(s->time));
	if (length < FRAME_HEAD - 4 || length > FRAME_MAX)
		return -EBADMSG;
	s->left = length - (FRAME_HEAD - 4);
	s->event_size = 0;
	s->event_cut = false;
	s->phase = s->left > 0 ? PHASE_BODY : PHASE_HEAD;
	s->head_size = 0;
	return 0;
}

static void take_body(struct events *s, const char *data, size_t n) {
	if (s->kind == 1 || s->kind == 2) {
		if (s->log != NULL)
			output_log_write(s->log, s->kind, s->time, data, n);
	} else if (s->kind == 3) {
		size_t fits = sizeof(s->event) - s->event_size < n ? sizeof(s->event) - s->event_size : n;
		memcpy(s->event + s->event_size, data, fits);
		s->event_size += fits;
		s->event_cut = s->event_cut || fits < n;
	}
	s->left -= (uint32_t)n;
	if (s->left == 0) {
		s->phase = PHASE_HEAD;
		if (s->kind == 3)
			report(s);
	}
}

// Takes bytes of an answer line; at its end goes on to the next phase.
static int take_line(struct events *s, char c) {
	if (c != '\n') {
		if (s->head_size == sizeof(s->head))
			return -EBADMSG;
		s->head[s->head_size++] = (uint8_t)c;
		return 0;
	}
	bool ok = s->head_size >= 2 && memcmp(s->head, "OK", 2) == 0;
	s->head_size = 0;
	if (!ok)
		return -ECONNREFUSED;
	if (s->phase == PHASE_EVENTS) {
		s->phase = PHASE_HEAD;
		return 0;
	}
	s->phase = PHASE_EVENTS;
	return send_with_fds(s->fd, "EVENTS\n", 7, NULL, 0);
}

static int take(struct events *s, const char *data, size_t n) {
	int r = 0;
	while (n > 0 && r == 0) {
		size_t used = 1;
		if (s->phase <= PHASE_EVENTS) {
			r = take_line(s, *data);
		} else if (s->phase == PHASE_HEAD) {
			s->head[s->head_size++] = (uint8_t)*data;
			if (s->head_size == FRAME_HEAD)
				r = end_head(s);
		} else {
			used = s->left < n ? s->left : n;
			take_body(s, data, used);
		}
		data += used;
		n -= used;
	}
	return r;
}

// Reads what is there. Returns 0 when there may be more later, or a negative errno at the stream's end.
static int drain(struct events *s, int reads) {
	char buffer[READ_BYTES];
	for (int i = 0; i < reads; i++) {
		ssize_t n = recv(s->fd, buffer, sizeof(buffer), MSG_DONTWAIT);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		int r = take(s, buffer, (size_t)n);
		if (r < 0)
			return r;
	}
	return 0;
}

static void on_ready(void *arg, uint32_t ready) {
	struct events *s = arg;
	int r = drain(s, READS_PER_TURN);
	if (r < 0) {
		if (r == -EBADMSG)
			log_warn("guest.stream", LOG_S("message", "the guest sent a malformed frame; its output is not followed any more"));
		watch_remove(s->watcher, s->watch);
		s->phase = PHASE_ENDED;
		s->ended = true;
	}
}

int events_start(struct watcher *w, const char *vsock_path, struct output_log *log, const struct events_handler *h, struct events **ret,
		 struct error *e) {
	int fd = unix_connect(vsock_path, SOCK_STREAM, e);
	if (fd < 0)
		return fd;
	struct events *s = calloc(1, sizeof(*s));
	if (s == NULL) {
		close(fd);
		return error_set(e, -ENOMEM, "out of memory following a guest's output");
	}
	*s = (struct events){.watcher = w, .fd = fd, .log = log, .handler = *h};
	char line[32];
	int n = snprintf(line, sizeof(line), "CONNECT %u\n", AGENT_STREAM_PORT);
	int r = send_with_fds(fd, line, (size_t)n, NULL, 0);
	if (r == 0)
		r = watch_add(w, fd, EPOLLIN, on_ready, s, &s->watch);
	if (r < 0) {
		close(fd);
		free(s);
		return error_set(e, r, "cannot follow the guest's output: %s", strerror(-r));
	}
	*ret = s;
	return 0;
}

void events_stop(struct events *s) {
	if (s == NULL)
		return;
	watch_remove(s->watcher, s->watch);
	if (s->phase != PHASE_ENDED)
		drain(s, 64);
	close(s->fd);
	free(s);
}

bool events_ended(struct events *s) {
	return s->ended;
}
