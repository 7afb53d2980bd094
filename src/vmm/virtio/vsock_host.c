// The Unix side of vsock: the listening socket, clients that have not said what they want, and the sockets of streams; see vsock.h.
//
// A client's first line is looked at in the socket (MSG_PEEK) and taken out when it is whole, so that what follows it stays where the stream
// expects it. Sockets are watched edge-triggered: `readable` remembers that there may be bytes, and is cleared when reading finds none.
#include "vmm/virtio/vsock.h"

#include "base/clock.h"

#include <fcntl.h>
#include <linux/virtio_vsock.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define LINE_MAX_BYTES 32 // "CONNECT 4294967295\n"
#define ACCEPTS_PER_WAKE 32u

// Time

void vsock_tick_soon(struct vsock *v) {
	if (v->ticking)
		return;
	struct itimerspec every_second = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	v->ticking = timerfd_settime(v->timer_fd, 0, &every_second, NULL) == 0;
}

static void client_drop(struct client *c) {
	struct vsock *v = c->vsock;
	loop_remove(v->device.host.loop, c->fd);
	close(c->fd);
	c->fd = -1;
	v->client_count--;
	vsock_listen(v, true);
}

static void stream_expired(struct stream *s) {
	if (s->state == STREAM_CONNECTING) {
		stream_answer(s, "ETIMEDOUT");
		if ((s->pending & SEND_REQUEST) != 0) {
			stream_free(s); // the guest has never heard of it
			return;
		}
	}
	stream_reset(s);
}

static void ticked(void *arg, uint32_t events) {
	struct vsock *v = arg;
	uint64_t ticks, now = monotonic_ms();
	unsigned waiting = 0;
	// A periodic timer goes on only when it has been read.
	if (read(v->timer_fd, &ticks, sizeof(ticks)) < 0 || v->device.quiet)
		return;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		if (v->clients[i].fd < 0)
			continue;
		if (v->clients[i].deadline <= now)
			client_drop(&v->clients[i]);
		else
			waiting++;
	}
	for (unsigned i = 0; i < v->high_slot; i++) {
		struct stream *s = &v->streams[i];
		if (s->state == STREAM_FREE || s->deadline == 0)
			continue;
		if (s->deadline <= now)
			stream_expired(s);
		else
			waiting++;
	}
	if (waiting == 0) {
		struct itimerspec never = {0};
		timerfd_settime(v->timer_fd, 0, &never, NULL);
		v->ticking = false;
	}
	if (v->reset_step != RESET_NONE)
		vsock_event(v);
	vsock_deliver(v);
}

// Streams' sockets

static void watch(struct stream *s) {
	uint32_t events = EPOLLIN | EPOLLRDHUP | EPOLLET | (s->to_host.used > 0 ? EPOLLOUT : 0);
	if (s->fd >= 0 && events != s->polled && loop_change(s->vsock->device.host.loop, s->fd, events, &s->handler) == 0)
		s->polled = events;
}

void stream_close_socket(struct stream *s) {
	if (s->fd < 0)
		return;
	loop_remove(s->vsock->device.host.loop, s->fd);
	close(s->fd);
	s->fd = -1;
	s->readable = false;
}

// The Unix client cannot be written to any more: what waits is void, and the guest shall send no more.
static void writing_failed(struct stream *s) {
	s->forwarded += s->to_host.used;
	s->to_host.used = 0;
	if ((s->shutdown_wanted & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0 && s->state == STREAM_OPEN) {
		s->shutdown_wanted |= VIRTIO_VSOCK_SHUTDOWN_RCV;
		stream_send(s, SEND_SHUTDOWN);
	}
}

// Sends as much as the socket takes. Returns the number of bytes, or -1 when the client does not read any more.
static ssize_t send_some(struct stream *s, struct iovec *iov, unsigned count) {
	struct msghdr m = {.msg_iov = iov, .msg_iovlen = count};
	ssize_t n;
	do
		n = sendmsg(s->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS ? 0 : -1;
	return n;
}

// The bytes of a ring, in order.
static unsigned ring_parts(const struct bytes *b, struct iovec parts[2]) {
	uint32_t first = b->room - b->start < b->used ? b->room - b->start : b->used;
	parts[0] = (struct iovec){.iov_base = b->data + b->start, .iov_len = first};
	parts[1] = (struct iovec){.iov_base = b->data, .iov_len = b->used - first};
	return first < b->used ? 2 : 1;
}

bool stream_buffer_get(struct stream *s) {
	if (s->to_host.data != NULL)
		return true;
	if (s->vsock->buffer_count == BUFFERS_MAX)
		return false;
	s->to_host.data = malloc(STREAM_BUFFER_BYTES);
	if (s->to_host.data == NULL)
		return false;
	s->to_host.room = STREAM_BUFFER_BYTES;
	s->to_host.start = s->to_host.used = 0;
	s->vsock->buffer_count++;
	return true;
}

void stream_buffer_drop(struct stream *s) {
	if (s->to_host.data != NULL)
		s->vsock->buffer_count--;
	free(s->to_host.data);
	s->to_host = (struct bytes){0};
}

static bool ring_add(struct stream *s, const struct iovec *iov, unsigned count, size_t skip, uint32_t n) {
	struct bytes *b = &s->to_host;
	if (n > STREAM_BUFFER_BYTES - b->used || !stream_buffer_get(s))
		return false;
	uint32_t at = (b->start + b->used) % b->room;
	uint32_t first = b->room - at < n ? b->room - at : n;
	iov_read(iov, count, skip, b->data + at, first);
	iov_read(iov, count, skip + first, b->data, n - first);
	b->used += n;
	return true;
}

bool stream_accept(struct stream *s, const struct iovec *iov, unsigned count, size_t skip, uint32_t bytes) {
	ssize_t sent = 0;
	if ((s->shutdown_wanted & VIRTIO_VSOCK_SHUTDOWN_RCV) != 0) {
		s->forwarded += bytes; // it was under way as we told the guest
		return true;
	}
	if (bytes > 0 && s->fd >= 0 && s->to_host.used == 0) {
		struct iovec parts[QUEUE_SIZE_MAX];
		sent = send_some(s, parts, iov_slice(iov, count, skip, bytes, parts));
		if (sent < 0) {
			s->forwarded += bytes;
			writing_failed(s);
			return true;
		}
		s->forwarded += (uint32_t)sent;
	}
	uint32_t left = bytes - (uint32_t)sent;
	if (left == 0)
		return true;
	bool fits = ring_add(s, iov, count, skip + (size_t)sent, left);
	watch(s);
	return fits;
}

void stream_flush(struct stream *s) {
	while (s->fd >= 0 && s->to_host.used > 0) {
		struct iovec parts[2];
		ssize_t n = send_some(s, parts, ring_parts(&s->to_host, parts));
		if (n < 0)
			writing_failed(s);
		if (n <= 0)
			break;
		s->to_host.start = (s->to_host.start + (uint32_t)n) % s->to_host.room;
		s->to_host.used -= (uint32_t)n;
		s->forwarded += (uint32_t)n;
	}
	if (s->to_host.used == 0 && s->vsock->buffer_count > BUFFERS_IDLE)
		stream_buffer_drop(s);
	watch(s);
	if (s->state == STREAM_OPEN && s->forwarded - s->forwarded_told >= STREAM_BUFFER_BYTES / 2)
		stream_send(s, SEND_CREDIT);
	if (s->fd < 0 || s->to_host.used > 0)
		return;
	if (s->state == STREAM_DRAINING) {
		stream_close_socket(s);
		s->state = STREAM_RESETTING;
		if (s->pending == 0)
			stream_free(s);
		return;
	}
	if ((s->guest_shutdown & VIRTIO_VSOCK_SHUTDOWN_SEND) != 0 && !s->write_ended) {
		s->write_ended = true;
		shutdown(s->fd, SHUT_WR);
	}
}

// The Unix client has ended its side, or both.
static void client_ended(struct stream *s) {
	s->eof = true;
	s->shutdown_wanted |= VIRTIO_VSOCK_SHUTDOWN_SEND;
	if (s->gone)
		s->shutdown_wanted |= VIRTIO_VSOCK_SHUTDOWN_RCV;
	s->readable = false;
	s->pending |= SEND_SHUTDOWN;
}

uint32_t stream_read(struct stream *s, const struct iovec *iov, unsigned count, size_t skip, uint32_t bytes) {
	struct iovec parts[QUEUE_SIZE_MAX];
	struct msghdr m = {.msg_iov = parts, .msg_iovlen = iov_slice(iov, count, skip, bytes, parts)};
	ssize_t n;
	do
		n = recvmsg(s->fd, &m, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n > 0)
		return (uint32_t)n;
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
		s->readable = false;
		return 0;
	}
	// Sending nothing tells whether a client that has ended its side would still read.
	if (n < 0 || send_some(s, NULL, 0) < 0)
		s->gone = true;
	client_ended(s);
	return 0;
}

static void stream_ready(void *arg, uint32_t events) {
	struct stream *s = arg;
	struct vsock *v = s->vsock;
	if (v->device.quiet)
		return; // resume looks at every socket
	if ((events & (EPOLLHUP | EPOLLERR)) != 0)
		s->gone = true;
	if (s->state == STREAM_CONNECTING) {
		s->readable = true;
		if (s->gone && (s->pending & SEND_REQUEST) != 0)
			stream_free(s);
		else if (s->gone)
			stream_reset(s);
		vsock_deliver(v);
		return;
	}
	if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
		s->readable = true;
	// The client had ended its side before; now it has gone for good.
	if (s->eof && s->gone && s->state == STREAM_OPEN && (s->shutdown_wanted & VIRTIO_VSOCK_SHUTDOWN_RCV) == 0) {
		s->shutdown_wanted |= VIRTIO_VSOCK_SHUTDOWN_RCV;
		stream_send(s, SEND_SHUTDOWN);
	}
	stream_flush(s);
	if (s->state != STREAM_FREE)
		stream_wake(s);
	vsock_deliver(v);
}

// Clients

// Writes one line to a fresh socket, where there is room for it.
static bool say(int fd, const char *word, uint32_t port, const char *error) {
	char line[64];
	int n = error == NULL ? snprintf(line, sizeof(line), "%s %u\n", word, port) : snprintf(line, sizeof(line), "ERR %s\n", error);
	return send(fd, line, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) == n;
}

bool stream_answer(struct stream *s, const char *error) {
	return s->fd >= 0 && say(s->fd, "OK", s->host_port, error);
}

// Gives the client's socket to a stream.
static void adopt(struct client *c, struct stream *s) {
	struct vsock *v = c->vsock;
	s->fd = c->fd;
	s->handler = (struct loop_handler){.ready = stream_ready, .arg = s};
	c->fd = -1;
	v->client_count--;
	s->polled = 0;
	s->readable = true;
	watch(s);
	vsock_listen(v, true);
}

static const char *client_connect(struct client *c, uint32_t port) {
	struct vsock *v = c->vsock;
	struct stream *s = stream_new(v, port);
	if (s == NULL)
		return "EMFILE";
	s->deadline = monotonic_ms() + CONNECT_TIMEOUT_MS;
	vsock_tick_soon(v);
	adopt(c, s);
	stream_send(s, SEND_REQUEST);
	return NULL;
}

static const char *client_attach(struct client *c, uint32_t port) {
	struct stream *s = &c->vsock->streams[port & (STREAMS_MAX - 1)];
	if ((s->state != STREAM_OPEN && s->state != STREAM_DRAINING) || s->host_port != port)
		return "ENOENT";
	if (!s->detached)
		return "EBUSY";
	if (!say(c->fd, "OK", port, NULL))
		return "EPIPE";
	s->detached = false;
	s->deadline = 0;
	adopt(c, s);
	stream_flush(s);
	if (s->state != STREAM_FREE)
		stream_wake(s);
	return NULL;
}

// "CONNECT <port>" or "ATTACH <port>". Returns the port's text, or NULL.
static const char *after(const char *line, const char *word) {
	size_t n = strlen(word);
	return strncmp(line, word, n) == 0 ? line + n : NULL;
}

static bool parse_port(const char *text, uint32_t *ret) {
	uint64_t v = 0;
	if (text[0] == '\0' || strlen(text) > 10)
		return false;
	for (; *text != '\0'; text++) {
		if (*text < '0' || *text > '9')
			return false;
		v = v * 10 + (uint64_t)(*text - '0');
	}
	*ret = (uint32_t)v;
	return v <= UINT32_MAX;
}

static const char *client_wish(struct client *c, const char *line) {
	const char *text;
	uint32_t port;
	if ((text = after(line, "CONNECT ")) != NULL && parse_port(text, &port))
		return client_connect(c, port);
	if ((text = after(line, "ATTACH ")) != NULL && parse_port(text, &port))
		return client_attach(c, port);
	return "EINVAL";
}

void client_try(struct client *c) {
	char line[LINE_MAX_BYTES];
	ssize_t n = recv(c->fd, line, sizeof(line), MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
		return;
	char *end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
	if (n <= 0 || (end == NULL && n == (ssize_t)sizeof(line))) {
		client_drop(c);
		return;
	}
	if (end == NULL)
		return;
	if (recv(c->fd, line, (size_t)(end + 1 - line), MSG_DONTWAIT) != end + 1 - line) {
		client_drop(c);
		return;
	}
	*end = '\0';
	const char *error = memchr(line, '\0', (size_t)(end - line)) == NULL ? client_wish(c, line) : "EINVAL";
	if (error != NULL) {
		say(c->fd, "", 0, error);
		client_drop(c);
	}
}

static void client_ready(void *arg, uint32_t events) {
	struct client *c = arg;
	struct vsock *v = c->vsock;
	if (v->device.quiet)
		return;
	if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
		client_drop(c);
		return;
	}
	client_try(c);
	vsock_deliver(v);
}

static struct client *client_new(struct vsock *v, int fd) {
	struct client *c = v->clients;
	while (c->fd >= 0)
		c++;
	*c = (struct client){.vsock = v, .fd = fd, .deadline = monotonic_ms() + CLIENT_TIMEOUT_MS};
	c->handler = (struct loop_handler){.ready = client_ready, .arg = c};
	if (loop_add(v->device.host.loop, fd, EPOLLIN | EPOLLRDHUP | EPOLLET, &c->handler) < 0) {
		close(fd);
		c->fd = -1;
		return NULL;
	}
	v->client_count++;
	vsock_tick_soon(v);
	return c;
}

// Listener

void vsock_listen(struct vsock *v, bool on) {
	on = on && v->client_count < CLIENTS_MAX && !v->device.quiet;
	if (on != v->listening && loop_change(v->device.host.loop, v->listen_fd, on ? EPOLLIN : 0, &v->listen_handler) == 0)
		v->listening = on;
}

static void listener_ready(void *arg, uint32_t events) {
	struct vsock *v = arg;
	for (unsigned i = 0; i < ACCEPTS_PER_WAKE && !v->device.quiet && v->client_count < CLIENTS_MAX; i++) {
		int fd = accept4(v->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
		if (fd < 0)
			break;
		struct client *c = client_new(v, fd);
		if (c != NULL)
			client_try(c);
	}
	vsock_listen(v, true);
	vsock_deliver(v);
}

int vsock_host_open(struct vsock *v, int listen_fd, struct error *e) {
	v->listen_fd = listen_fd;
	for (unsigned i = 0; i < CLIENTS_MAX; i++)
		v->clients[i].fd = -1;
	v->listen_handler = (struct loop_handler){.ready = listener_ready, .arg = v};
	v->timer_handler = (struct loop_handler){.ready = ticked, .arg = v};
	int flags = fcntl(listen_fd, F_GETFL);
	if (flags < 0 || fcntl(listen_fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return error_errno(e, "vsock: the listening socket is of no use");
	v->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (v->timer_fd < 0)
		return error_errno(e, "vsock: cannot create a timer");
	int r = loop_add(v->device.host.loop, v->timer_fd, EPOLLIN, &v->timer_handler);
	if (r == 0)
		r = loop_add(v->device.host.loop, listen_fd, EPOLLIN, &v->listen_handler);
	if (r < 0)
		return error_set(e, r, "vsock: cannot watch the listening socket: %s", strerror(-r));
	v->listening = true;
	return 0;
}

void vsock_host_close(struct vsock *v) {
	struct loop *l = v->device.host.loop;
	for (unsigned i = 0; i < CLIENTS_MAX; i++) {
		if (v->clients[i].fd >= 0) {
			loop_remove(l, v->clients[i].fd);
			close(v->clients[i].fd);
		}
	}
	loop_remove(l, v->listen_fd);
	close(v->listen_fd);
	if (v->timer_fd >= 0) {
		loop_remove(l, v->timer_fd);
		close(v->timer_fd);
	}
}
