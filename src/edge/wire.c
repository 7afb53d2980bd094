// A socket to a VMM; see wire.h.
#include "edge/wire.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

// What is under way in the kernel when a microVM falls asleep becomes part of its snapshot: not too much of it.
#define SEND_BYTES 65536

static void on_poll(uv_poll_t *poll, int status, int events) {
	struct wire *w = poll->data;
	if (status < 0)
		w->events = 0; // libuv has stopped; reading tells what it is
	w->ready(w->arg);
}

static void on_closed(uv_handle_t *handle) {
	free(handle->data);
}

int wire_connect(uv_loop_t *loop, const char *path, void (*ready)(void *arg), void *arg, struct wire **ret) {
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (snprintf(address.sun_path, sizeof(address.sun_path), "%s", path) >= (int)sizeof(address.sun_path))
		return -ENAMETOOLONG;
	struct wire *w = calloc(1, sizeof(*w));
	if (w == NULL)
		return -ENOMEM;
	*w = (struct wire){.ready = ready, .arg = arg, .poll.data = w};
	w->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int bytes = SEND_BYTES;
	int r = w->fd < 0 || connect(w->fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;
	if (r == 0) {
		setsockopt(w->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes));
		r = uv_poll_init(loop, &w->poll, w->fd);
	}
	if (r < 0) {
		if (w->fd >= 0)
			close(w->fd);
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

void wire_close(struct wire *w) {
	if (w == NULL)
		return;
	uv_close((uv_handle_t *)&w->poll, on_closed);
	close(w->fd);
}

void wire_watch(struct wire *w, int events) {
	if (w->events == events)
		return;
	w->events = events;
	if (events == 0)
		uv_poll_stop(&w->poll);
	else
		uv_poll_start(&w->poll, events, on_poll);
}

static ssize_t result(ssize_t n) {
	return n >= 0 ? n : errno == EWOULDBLOCK ? -EAGAIN : -errno;
}

ssize_t wire_read(struct wire *w, void *to, size_t room) {
	ssize_t n;
	do
		n = recv(w->fd, to, room, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	return result(n);
}

ssize_t wire_write(struct wire *w, const void *data, size_t size) {
	ssize_t n;
	do
		n = send(w->fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return result(n);
}

void wire_end(struct wire *w) {
	shutdown(w->fd, SHUT_WR);
}

int wire_read_line(struct wire *w, char *line, size_t room, size_t *used) {
	ssize_t n = recv(w->fd, line + *used, room - *used, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return 0;
	if (n <= 0)
		return *used == room ? -EBADMSG : -ECONNRESET;
	char *newline = memchr(line + *used, '\n', (size_t)n);
	size_t mine = newline != NULL ? (size_t)(newline + 1 - (line + *used)) : (size_t)n;
	if (recv(w->fd, line + *used, mine, MSG_DONTWAIT) != (ssize_t)mine)
		return -ECONNRESET;
	*used += mine;
	if (newline == NULL)
		return *used == room ? -EBADMSG : 0;
	*newline = '\0';
	return 1;
}

bool wire_is_quiet(const struct wire *w) {
	char byte;
	return recv(w->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
}

bool wire_hung_up(const struct wire *w) {
	struct pollfd p = {.fd = w->fd};
	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)) != 0;
}
