// The back end of the edge's benchmark: a small, fast HTTP/1.1 server that costs as little as possible, one thread.
//
//     edge_backend <folder>
//
// Listens on <folder>/plain.sock (HTTP/1.1 at once, for nginx), on <folder>/vsock.sock (as a VMM does, docs/architecture.md: `CONNECT`, then
// the agent's `TCP`, for the edge) and on a TCP port that it prints (for clients without a proxy). `/` is answered with 1 KiB, `/big` with
// 64 MiB. Request bodies are not understood: the benchmark sends none.
#include "base/io.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define SMALL 1024
#define BIG (64u << 20)
#define BLOCK 65536

struct peer {
	int fd;
	bool listener, greeting;
	char in[16384];
	size_t used;
	size_t left; // of a big body
};

static int epoll;
static char small[SMALL + 256];
static size_t small_size;
static char block[BLOCK];

static void watch(struct peer *p, int op, uint32_t events) {
	struct epoll_event e = {.events = events, .data.ptr = p};
	if (epoll_ctl(epoll, op, p->fd, &e) < 0)
		abort();
}

static struct peer *peer_new(int fd, bool listener, bool greeting) {
	struct peer *p = calloc(1, sizeof(*p));
	if (p == NULL)
		abort();
	p->fd = fd;
	p->listener = listener;
	p->greeting = greeting;
	watch(p, EPOLL_CTL_ADD, EPOLLIN);
	return p;
}

static void peer_end(struct peer *p) {
	close(p->fd);
	free(p);
}

// False: the connection is over.
static bool send_all(struct peer *p, const char *data, size_t size) {
	// Small answers always find room: the other side waits for them.
	return send(p->fd, data, size, MSG_NOSIGNAL) == (ssize_t)size;
}

static bool send_big(struct peer *p) {
	while (p->left > 0) {
		ssize_t n = send(p->fd, block, p->left < BLOCK ? p->left : BLOCK, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EAGAIN) {
			watch(p, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
			return true;
		}
		if (n < 0)
			return false;
		p->left -= (size_t)n;
	}
	watch(p, EPOLL_CTL_MOD, EPOLLIN);
	return true;
}

static void forget(struct peer *p, size_t n) {
	p->used -= n;
	memmove(p->in, p->in + n, p->used);
}

static bool greet(struct peer *p) {
	char *line;
	while (p->greeting && (line = memchr(p->in, '\n', p->used)) != NULL) {
		bool last = memcmp(p->in, "TCP ", 4) == 0;
		if (!send_all(p, last ? "OK\n" : "OK 1073741824\n", last ? 3 : 14))
			return false;
		p->greeting = !last;
		forget(p, (size_t)(line - p->in) + 1);
	}
	return true;
}

static bool answer(struct peer *p) {
	char *end;
	while (p->left == 0 && (end = memmem(p->in, p->used, "\r\n\r\n", 4)) != NULL) {
		bool big = memmem(p->in, (size_t)(end - p->in), " /big ", 6) != NULL;
		forget(p, (size_t)(end - p->in) + 4);
		if (!big && !send_all(p, small, small_size))
			return false;
		if (big) {
			char head[128];
			int n = snprintf(head, sizeof(head), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %u\r\n\r\n",
					 BIG);
			p->left = BIG;
			if (!send_all(p, head, (size_t)n) || !send_big(p))
				return false;
		}
	}
	return true;
}

static bool serve(struct peer *p, uint32_t events) {
	if ((events & EPOLLOUT) != 0 && p->left > 0 && !send_big(p))
		return false;
	if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) == 0)
		return true;
	ssize_t n = recv(p->fd, p->in + p->used, sizeof(p->in) - p->used, MSG_DONTWAIT);
	if (n < 0 && errno == EAGAIN)
		return true;
	if (n <= 0)
		return false;
	p->used += (size_t)n;
	return greet(p) && (p->greeting || answer(p));
}

static void accept_all(struct peer *p) {
	int fd, on = 1;
	while ((fd = accept4(p->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); // not for Unix sockets
		peer_new(fd, false, p->greeting);
	}
}

static void listen_unix(const char *folder, const char *name, bool greeting) {
	char path[108];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	unlink(path);
	int fd = unix_listen(path, SOCK_STREAM | SOCK_NONBLOCK, 4096, NULL);
	if (fd < 0) {
		fprintf(stderr, "edge_backend: cannot listen on %s\n", path);
		exit(1);
	}
	peer_new(fd, true, greeting);
}

static int listen_tcp(void) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(a);
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 4096) < 0 || getsockname(fd, (struct sockaddr *)&a, &size) < 0)
		abort();
	peer_new(fd, true, false);
	return ntohs(a.sin_port);
}

int main(int argc, char **argv) {
	if (argc != 2) {
		fprintf(stderr, "usage: edge_backend <folder>\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	epoll = epoll_create1(EPOLL_CLOEXEC);
	small_size =
		(size_t)snprintf(small, sizeof(small), "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", SMALL);
	memset(small + small_size, 'x', SMALL);
	small_size += SMALL;
	listen_unix(argv[1], "plain.sock", false);
	listen_unix(argv[1], "vsock.sock", true);
	printf("%d\n", listen_tcp());
	fflush(stdout);
	for (;;) {
		struct epoll_event events[256];
		int n = epoll_wait(epoll, events, 256, -1);
		for (int i = 0; i < n; i++) {
			struct peer *p = events[i].data.ptr;
			if (p->listener)
				accept_all(p);
			else if (!serve(p, events[i].events))
				peer_end(p);
		}
	}
}
