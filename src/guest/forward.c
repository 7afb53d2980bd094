// Forwarding between a host's stream and the application; see forward.h.
//
// Each direction reads into one shared buffer and writes at once; only what the other side does not take is kept, in a buffer that this
// direction gets when that first happens, and then reading pauses until it is empty. So a stream that flows costs a read, a write
// and a wait per chunk, and no memory of its own. (splice(2) would need two more system calls per chunk, and vsock copies anyway.)
// An end of file on one side becomes a shutdown of writing on the other, after what was kept; the stream is over when both ends have ended, or
// at once when one side breaks.
#include "guest/forward.h"

#include "base/clock.h"
#include "guest/guest.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECT_TIMEOUT_NS 30000000000ull
#define CHUNKS_AT_ONCE 4 // read in a row from one side before the others get their turn

struct side {
	struct source source;
	bool ended;    // no more comes from it
	bool shut;     // no more goes to it
	uint8_t *kept; // what could not be written to it yet
	size_t kept_at, kept_size;
};

struct forward {
	struct forwards *all;
	struct forward *previous, *next;
	struct side host, app;
	struct timer timer; // of connecting
	uint16_t port;
	bool ipv6, open;
};

static void finish(struct forward *f) {
	struct forwards *all = f->all;

	loop_disarm(all->loop, &f->timer);
	loop_close_source(all->loop, &f->host.source);
	loop_close_source(all->loop, &f->app.source);
	free(f->host.kept);
	free(f->app.kept);
	*(f->previous != NULL ? &f->previous->next : &all->first) = f->next;
	if (f->next != NULL)
		f->next->previous = f->previous;
	all->count--;
	free(f);
}

// One side broke: the application sees a reset, not an orderly end that it would take for a complete message.
static void abandon(struct forward *f) {
	struct linger now = {.l_onoff = 1, .l_linger = 0};

	if (f->app.source.fd >= 0)
		setsockopt(f->app.source.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	finish(f);
}

static void answer_and_finish(struct forward *f, int error) {
	const char *name = strerrorname_np(error);
	char line[48];
	int n = snprintf(line, sizeof(line), "ERR %s\n", name != NULL ? name : "EIO");

	(void)!send(f->host.source.fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT);
	finish(f);
}

static int watch_side(struct forward *f, struct side *s, const struct side *other) {
	uint32_t events = 0;

	if (!s->ended && other->kept_size == 0)
		events |= EPOLLIN;
	if (s->kept_size > 0)
		events |= EPOLLOUT;
	return loop_watch(f->all->loop, &s->source, events);
}

// Writes to a side; keeps what does not go. False when the side is broken.
static bool deliver(struct side *to, const uint8_t *data, size_t size) {
	ssize_t n;
	do
		n = send(to->source.fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno != EAGAIN)
		return false;
	size_t sent = n < 0 ? 0 : (size_t)n;
	if (sent == size)
		return true;
	if (to->kept == NULL && (to->kept = malloc(FORWARD_CHUNK)) == NULL)
		return false;
	memcpy(to->kept, data + sent, size - sent);
	to->kept_at = 0;
	to->kept_size = size - sent;
	return true;
}

static bool deliver_kept(struct side *to) {
	ssize_t n;
	do
		n = send(to->source.fd, to->kept + to->kept_at, to->kept_size, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return errno == EAGAIN;
	to->kept_at += (size_t)n;
	to->kept_size -= (size_t)n;
	return true;
}

// Writing to a side failed. An application that closes without having read all may have answered before (a refused upload, say): its answer
// is still taken. When the host's side is gone there is nobody left to serve. Returns whether the stream goes on.
static bool lost_reader(struct forward *f, struct side *to) {
	if (to != &f->app)
		return false;
	to->shut = true;
	to->kept_size = 0;
	f->host.ended = true;
	return true;
}

// Takes what has come from one side to the other. Returns whether the stream goes on.
static bool take(struct forward *f, struct side *from, struct side *to) {
	for (int i = 0; i < CHUNKS_AT_ONCE && !from->ended && to->kept_size == 0; i++) {
		ssize_t n = recv(from->source.fd, f->all->scratch, FORWARD_CHUNK, MSG_DONTWAIT);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR;
		if (n == 0)
			from->ended = true;
		else if (!deliver(to, f->all->scratch, (size_t)n) && !lost_reader(f, to))
			return false;
		if ((size_t)n < FORWARD_CHUNK)
			break;
	}
	return true;
}

static void pass_end_on(const struct side *from, struct side *to) {
	if (from->ended && to->kept_size == 0 && !to->shut) {
		shutdown(to->source.fd, SHUT_WR);
		to->shut = true;
	}
}

static void settle(struct forward *f) {
	pass_end_on(&f->host, &f->app);
	pass_end_on(&f->app, &f->host);
	if (f->host.shut && f->app.shut)
		finish(f);
	else if (watch_side(f, &f->host, &f->app) < 0 || watch_side(f, &f->app, &f->host) < 0)
		abandon(f);
}

static void side_ready(struct forward *f, struct side *s, struct side *other, uint32_t events) {
	bool alive = true;

	if (s->kept_size > 0 && (events & (EPOLLOUT | EPOLLHUP | EPOLLERR)) && !deliver_kept(s))
		alive = lost_reader(f, s);
	if (alive && !s->ended && other->kept_size == 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
		alive = take(f, s, other);
	if (alive)
		settle(f);
	else
		abandon(f);
}

static int try_connect(struct forward *f);

static void connected(struct forward *f) {
	loop_disarm(f->all->loop, &f->timer);
	f->open = true;
	int on = 1;
	setsockopt(f->app.source.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	const char *answer = tls_ports_have(&f->all->tls, f->port) ? "OK tls\n" : "OK\n";
	ssize_t size = (ssize_t)strlen(answer);
	if (send(f->host.source.fd, answer, (size_t)size, MSG_NOSIGNAL | MSG_DONTWAIT) != size) {
		abandon(f);
		return;
	}
	// What came early waits in `kept`.
	if (f->app.kept_size > 0 && !deliver_kept(&f->app))
		lost_reader(f, &f->app);
	settle(f);
}

static void connect_failed(struct forward *f, int error) {
	loop_close_source(f->all->loop, &f->app.source);
	if (!f->ipv6) {
		f->ipv6 = true;
		int r = try_connect(f);
		if (r == 0) {
			connected(f);
			return;
		}
		if (r == -EINPROGRESS)
			return;
		// Whether IPv6 exists is no concern of the caller: the first answer counts.
	}
	answer_and_finish(f, error);
}

static void app_ready(struct source *s, uint32_t events) {
	struct forward *f = container_of(container_of(s, struct side, source), struct forward, app);

	if (f->open) {
		side_ready(f, &f->app, &f->host, events);
		return;
	}
	int error = 0;
	socklen_t size = sizeof(error);
	getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
	if (error != 0)
		connect_failed(f, error);
	else if (events & EPOLLOUT)
		connected(f);
}

static void host_ready(struct source *s, uint32_t events) {
	struct forward *f = container_of(container_of(s, struct side, source), struct forward, host);
	side_ready(f, &f->host, &f->app, events);
}

static void connect_timed_out(struct timer *t) {
	answer_and_finish(container_of(t, struct forward, timer), ETIMEDOUT);
}

// Returns 0 (connected), -EINPROGRESS (app_ready tells), or another negative errno.
static int try_connect(struct forward *f) {
	struct sockaddr_in v4 = {.sin_family = AF_INET, .sin_port = htons(f->port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct sockaddr_in6 v6 = {.sin6_family = AF_INET6, .sin6_port = htons(f->port), .sin6_addr = IN6ADDR_LOOPBACK_INIT};
	const struct sockaddr *to = f->ipv6 ? (const struct sockaddr *)&v6 : (const struct sockaddr *)&v4;
	socklen_t size = f->ipv6 ? sizeof(v6) : sizeof(v4);

	f->app.source.fd = socket(to->sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (f->app.source.fd < 0)
		return -errno;
	if (connect(f->app.source.fd, to, size) == 0)
		return 0;
	// Over loopback the handshake is done by the time that the call is back; asking again is cheaper than waiting for an event.
	if (errno == EINPROGRESS && connect(f->app.source.fd, to, size) == 0)
		return 0;
	if (errno != EINPROGRESS && errno != EALREADY)
		return -errno;
	int r = loop_watch(f->all->loop, &f->app.source, EPOLLOUT);
	return r < 0 ? r : -EINPROGRESS;
}

void forward_start(struct forwards *all, int host, uint16_t port, const void *early, size_t early_size) {
	struct forward *f = all->count < GUEST_STREAMS_MAX && early_size <= FORWARD_CHUNK ? calloc(1, sizeof(*f)) : NULL;
	if (f == NULL || (early_size > 0 && (f->app.kept = malloc(FORWARD_CHUNK)) == NULL)) {
		free(f);
		(void)!send(host, "ERR EMFILE\n", 11, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(host);
		return;
	}
	f->all = all;
	f->next = all->first;
	if (all->first != NULL)
		all->first->previous = f;
	all->first = f;
	all->count++;
	f->port = port;
	f->host.source = (struct source){.fd = host, .ready = host_ready};
	f->app.source = (struct source){.fd = -1, .ready = app_ready};
	f->timer.fire = connect_timed_out;
	if (early_size > 0) {
		memcpy(f->app.kept, early, early_size);
		f->app.kept_size = early_size;
	}
	int r = try_connect(f);
	if (r == 0)
		connected(f);
	else if (r == -EINPROGRESS)
		loop_arm(all->loop, &f->timer, monotonic_ns() + CONNECT_TIMEOUT_NS);
	else
		connect_failed(f, -r);
}

int forwards_init(struct forwards *f, struct loop *l, struct error *e) {
	*f = (struct forwards){.loop = l};
	f->scratch = mmap(NULL, FORWARD_CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (f->scratch == MAP_FAILED) {
		f->scratch = NULL;
		return error_set(e, -ENOMEM, "no memory for forwarding");
	}
	return 0;
}

void forwards_end(struct forwards *f) {
	while (f->first != NULL)
		abandon(f->first);
	if (f->scratch != NULL)
		munmap(f->scratch, FORWARD_CHUNK);
	f->scratch = NULL;
}
