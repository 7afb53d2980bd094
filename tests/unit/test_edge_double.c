// What stands in for the edge's neighbours; see test_edge_double.h.
#include "test_edge_double.h"

#include "base/io.h"
#include "images/connectors.h"
#include "microvms/microvms.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int double_wake_ms = 100;
_Atomic unsigned double_opened, double_held, double_active, double_streams;

static char vsock_path[108];
static char dead_path[108];
static uint16_t guest_port, host_port;

static const struct {
	const char *endpoint, *id, *state;
	enum microvm_open_result result;
} table[] = {
	{DOUBLE_RUNNING, "microvm-10000000-0000-4000-8000-000000000001", "RUNNING", MICROVM_OPEN_OK},
	{DOUBLE_SUSPENDED, "microvm-10000000-0000-4000-8000-000000000002", "SUSPENDED", MICROVM_OPEN_OK},
	{DOUBLE_ASLEEP, "microvm-10000000-0000-4000-8000-000000000003", "SUSPENDED", MICROVM_OPEN_ASLEEP},
	{DOUBLE_GONE, "microvm-10000000-0000-4000-8000-000000000004", "TERMINATED", MICROVM_OPEN_GONE},
	{DOUBLE_FAILED, "microvm-10000000-0000-4000-8000-000000000005", "SUSPENDED", MICROVM_OPEN_FAILED},
	{DOUBLE_DEAD, "microvm-10000000-0000-4000-8000-000000000006", "RUNNING", MICROVM_OPEN_OK},
	{DOUBLE_SHUT, "microvm-10000000-0000-4000-8000-000000000007", "SUSPENDED", MICROVM_OPEN_OK},
};
#define ROWS (sizeof(table) / sizeof(table[0]))

struct microvm_route {
	size_t row;
	struct microvm_follower *follower;
	enum microvm_news latest;
	bool waking;
};
static struct microvm_route routes[] = {{.row = 0, .latest = MICROVM_AWAKE}, {.row = 1, .latest = MICROVM_AWAKE},
					{.row = 2, .latest = MICROVM_AWAKE}, {.row = 3, .latest = MICROVM_AWAKE},
					{.row = 4, .latest = MICROVM_AWAKE}, {.row = 5, .latest = MICROVM_AWAKE},
					{.row = 6, .latest = MICROVM_AWAKE}};
_Static_assert(sizeof(routes) / sizeof(routes[0]) == ROWS, "one for each row");
static struct engine *engine;

struct opening {
	uv_timer_t timer;
	size_t row;
	microvm_opened done;
	void *arg;
};

static size_t row_of(const char *endpoint) {
	size_t i = 0;
	while (i < ROWS && strcmp(table[i].endpoint, endpoint) != 0)
		i++;
	return i;
}

const char *double_id(const char *endpoint) {
	return table[row_of(endpoint)].id;
}

static void free_opening(uv_handle_t *handle) {
	free(handle->data);
}

static void on_open(uv_timer_t *timer) {
	struct opening *o = timer->data;
	struct microvm_route *route = NULL;
	enum microvm_open_result result = o->row < ROWS ? table[o->row].result : MICROVM_OPEN_UNKNOWN;
	if (result != MICROVM_OPEN_OK) {
		double_held--;
	} else {
		route = &routes[o->row];
	}
	o->done(o->arg, result, route, result == MICROVM_OPEN_OK ? NULL : "as the table says");
	uv_close((uv_handle_t *)timer, free_opening);
}

void microvm_open(struct engine *en, const char *endpoint, microvm_opened done, void *arg) {
	double_opened++;
	double_held++;
	struct opening *o = malloc(sizeof(*o));
	*o = (struct opening){.row = row_of(endpoint), .done = done, .arg = arg};
	o->timer.data = o;
	uv_timer_init(en->loop, &o->timer);
	uv_timer_start(&o->timer, on_open, strcmp(endpoint, DOUBLE_SUSPENDED) == 0 ? (uint64_t)double_wake_ms : 0, 0);
}

struct microvm_route *microvm_open_now(struct engine *en, const char *endpoint) {
	size_t row = row_of(endpoint);
	if (row == ROWS || table[row].result != MICROVM_OPEN_OK || strcmp(table[row].state, "RUNNING") != 0 ||
	    routes[row].latest != MICROVM_AWAKE)
		return NULL;
	double_opened++;
	double_held++;
	return &routes[row];
}

const char *microvm_route_vsock(const struct microvm_route *r) {
	return strcmp(table[r->row].endpoint, DOUBLE_DEAD) == 0 ? dead_path : vsock_path;
}

const char *microvm_route_id(const struct microvm_route *r) {
	return table[r->row].id;
}

void microvm_route_active(struct microvm_route *r) {
	double_active++;
}

void microvm_route_release(struct microvm_route *r) {
	double_held--;
}

// Sleep. ----------------------------------------------------------------------------------------------------------------------

_Atomic int double_on_wake;
_Atomic int64_t double_tokens_since;
_Atomic unsigned double_wakes, double_detached;
_Atomic int double_unanswered;

void microvm_route_follow(struct microvm_route *r, struct microvm_follower *f) {
	r->follower = f;
}

void microvm_route_leave(struct microvm_route *r) {
	r->follower = NULL;
}

struct microvm_follower *microvm_route_follower(const struct microvm_route *r) {
	return r->follower;
}

enum microvm_news microvm_route_latest(const struct microvm_route *r) {
	return r->latest;
}

void microvm_route_asked(struct microvm_route *r) {
	double_unanswered++;
}

void microvm_route_answered(struct microvm_route *r) {
	double_unanswered--;
}

static void set_asleep(bool on);

static void publish(enum microvm_news news) {
	if (news == MICROVM_AWAKE)
		set_asleep(false);
	for (size_t i = 0; i < ROWS; i++) {
		if (news != MICROVM_SLEEPS_ON)
			routes[i].latest = news;
		if (news == MICROVM_AWAKE || news == MICROVM_SLEEPS_ON)
			routes[i].waking = false;
		if (routes[i].follower != NULL)
			routes[i].follower->news(routes[i].follower, news, "as it was told to fail");
	}
}

static void on_wake_time(uv_timer_t *timer) {
	struct opening *o = timer->data;
	enum microvm_news latest = routes[o->row].latest;
	if (latest == MICROVM_HALTS) {
		uv_timer_start(timer, on_wake_time, 1, 0); // first it falls asleep
		return;
	}
	if (latest != MICROVM_SLEEPS || double_on_wake == DOUBLE_STAYS)
		routes[o->row].waking = false;
	else
		publish(double_on_wake == DOUBLE_FAILS ? MICROVM_SLEEPS_ON : MICROVM_AWAKE);
	uv_close((uv_handle_t *)timer, free_opening);
}

void microvm_route_wake(struct microvm_route *r) {
	if (r->waking || r->latest == MICROVM_AWAKE)
		return;
	r->waking = true;
	double_wakes++;
	struct opening *o = malloc(sizeof(*o));
	*o = (struct opening){.row = r->row};
	o->timer.data = o;
	uv_timer_init(engine->loop, &o->timer);
	uv_timer_start(&o->timer, on_wake_time, (uint64_t)double_wake_ms, 0);
}

struct letter {
	enum microvm_news news;
	sem_t read;
};

static void deliver(void *arg) {
	struct letter *l = arg;
	publish(l->news);
	sem_post(&l->read);
}

static void tell_edge(struct engine *en, enum microvm_news news) {
	struct letter l = {.news = news};
	engine = en;
	sem_init(&l.read, 0, 0);
	loop_submit(en, deliver, &l);
	while (sem_wait(&l.read) < 0)
		;
	sem_destroy(&l.read);
}

void double_awake(struct engine *en) {
	tell_edge(en, MICROVM_AWAKE);
}

void double_end(struct engine *en) {
	tell_edge(en, MICROVM_ENDS);
}

bool microvm_find_endpoint(struct engine *en, const char *endpoint, char id[48], char state[STATE_TEXT]) {
	size_t row = row_of(endpoint);
	if (row == ROWS)
		return false;
	snprintf(id, 48, "%s", table[row].id);
	snprintf(state, STATE_TEXT, "%s", table[row].state);
	return true;
}

// DOUBLE_SHUT has no ingress for requests, DOUBLE_DEAD none for the shell.
unsigned microvm_ingress(struct engine *en, const char *endpoint) {
	size_t row = row_of(endpoint);
	return row == ROWS                          ? 0
	       : strcmp(endpoint, DOUBLE_SHUT) == 0 ? INGRESS_SHELL
	       : strcmp(endpoint, DOUBLE_DEAD) == 0 ? INGRESS_HTTP
						    : INGRESS_HTTP | INGRESS_SHELL;
}

// Tokens of DOUBLE_FAILED can be revoked, and port DOUBLE_PUBLIC of DOUBLE_SUSPENDED and DOUBLE_SHUT is public.
int64_t microvm_tokens_since(struct engine *en, const char *endpoint) {
	return strcmp(endpoint, DOUBLE_FAILED) == 0 ? double_tokens_since : 0;
}

uint16_t microvm_public_port(struct engine *en, const char *endpoint, uint16_t port) {
	bool is = strcmp(endpoint, DOUBLE_SUSPENDED) == 0 || strcmp(endpoint, DOUBLE_SHUT) == 0;
	return is && (port == 0 || port == DOUBLE_PUBLIC) ? DOUBLE_PUBLIC : 0;
}

unsigned microvm_vcpus(struct engine *en, const char *endpoint) {
	return 2;
}

// The vsock socket. -----------------------------------------------------------------------------------------------------------

#define STREAMS_MAX 4096

struct stream {
	bool used;
	int fd;       // the edge's side; -1: detached
	int tcp;      // the application's
	int wake[2];  // a byte: look at `detach`
	bool detach;  // take out what there is and let go of the edge's side
	bool let_go;  // done
	int attached; // a new edge's side; -1: none
	unsigned host_port;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static struct stream streams[STREAMS_MAX];
static unsigned next_port = 1u << 30;
static bool asleep;
uint16_t double_tls[8];

static struct stream *stream_new(int fd) {
	struct stream *s = streams;
	pthread_mutex_lock(&lock);
	while (s->used)
		s++;
	*s = (struct stream){.used = true, .fd = fd, .tcp = -1, .attached = -1, .host_port = next_port++};
	if (pipe2(s->wake, O_CLOEXEC) < 0)
		abort();
	pthread_mutex_unlock(&lock);
	return s;
}

static void stream_free(struct stream *s) {
	pthread_mutex_lock(&lock);
	if (s->fd >= 0)
		close(s->fd);
	if (s->attached >= 0)
		close(s->attached);
	if (s->tcp >= 0)
		close(s->tcp);
	close(s->wake[0]);
	close(s->wake[1]);
	s->used = false;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

void double_cut(void) {
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < STREAMS_MAX; i++)
		if (streams[i].used && streams[i].fd >= 0)
			shutdown(streams[i].fd, SHUT_RDWR);
	pthread_mutex_unlock(&lock);
}

static void set_asleep(bool on) {
	pthread_mutex_lock(&lock);
	asleep = on;
	pthread_mutex_unlock(&lock);
}

void double_sleep(struct engine *en) {
	int old[STREAMS_MAX];
	size_t count = 0;
	tell_edge(en, MICROVM_HALTS);
	pthread_mutex_lock(&lock);
	asleep = true;
	for (size_t i = 0; i < STREAMS_MAX; i++) {
		struct stream *s = &streams[i];
		while (s->used && s->attached >= 0)
			pthread_cond_wait(&changed, &lock);
		if (!s->used || s->tcp < 0 || s->fd < 0)
			continue;
		s->detach = true;
		s->let_go = false;
		if (write(s->wake[1], "x", 1) != 1)
			abort();
		while (s->used && !s->let_go)
			pthread_cond_wait(&changed, &lock);
		if (!s->used || s->fd < 0)
			continue;
		old[count++] = s->fd;
		s->fd = -1;
	}
	pthread_mutex_unlock(&lock);
	tell_edge(en, MICROVM_SLEEPS);
	for (size_t i = 0; i < count; i++)
		close(old[i]); // the VMM ends
}

static bool read_line(int fd, char *to, size_t room) {
	size_t n = 0;
	while (n + 1 < room && read(fd, to + n, 1) == 1) {
		if (to[n++] == '\n') {
			to[n - 1] = '\0';
			return true;
		}
	}
	return false;
}

static int connect_tcp(uint16_t port) {
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	if (connect(fd, (struct sockaddr *)&a, sizeof(a)) == 0)
		return fd;
	close(fd);
	return -1;
}

// Moves one piece; false at the end of `from`, which is passed on as a half-close.
static bool move(int from, int to) {
	char data[65536];
	ssize_t n = read(from, data, sizeof(data));
	if (n > 0 && write_full(to, data, (size_t)n) == 0)
		return true;
	shutdown(to, n == 0 ? SHUT_WR : SHUT_RDWR);
	return false;
}

// The microVM falls asleep: what the edge has written goes on to the application, and the stream waits to be taken over. False: it is over.
static bool sleep_on(struct stream *s, struct pollfd p[2]) {
	char byte;
	if (read(s->wake[0], &byte, 1) != 1)
		return false;
	while (p[0].fd >= 0 && poll(&p[0], 1, 0) > 0)
		if (!move(p[0].fd, p[1].fd >= 0 ? p[1].fd : s->tcp))
			p[0].fd = -1;
	struct pollfd edge = {.fd = s->fd};
	if (poll(&edge, 1, 0) > 0 && (edge.revents & POLLHUP) != 0)
		return false;
	pthread_mutex_lock(&lock);
	s->detach = false;
	s->let_go = true;
	double_detached++;
	pthread_cond_broadcast(&changed);
	while (s->attached < 0)
		pthread_cond_wait(&changed, &lock);
	s->fd = s->attached;
	s->attached = -1;
	double_detached--;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
	p[0].fd = p[0].fd < 0 ? -1 : s->fd;
	return true;
}

static void forward(struct stream *s) {
	struct pollfd p[3] = {{.fd = s->fd, .events = POLLIN}, {.fd = s->tcp, .events = POLLIN}, {.fd = s->wake[0], .events = POLLIN}};
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (poll(p, 3, -1) < 0)
			break;
		if (p[2].revents != 0) {
			if (!sleep_on(s, p))
				break;
			if (p[1].fd < 0)
				shutdown(s->fd, SHUT_WR); // the application's end, once more
			continue;
		}
		if (p[0].fd >= 0 && p[0].revents != 0 && !move(s->fd, s->tcp))
			p[0].fd = -1;
		if (p[1].fd >= 0 && p[1].revents != 0 && !move(s->tcp, s->fd))
			p[1].fd = -1;
	}
}

static void attach(int fd, unsigned name) {
	char line[64];
	struct pollfd p = {.fd = fd};
	pthread_mutex_lock(&lock);
	// What an earlier VMM has not looked at before it was paused goes with it.
	bool late = asleep || (poll(&p, 1, 0) > 0 && (p.revents & POLLHUP) != 0);
	for (size_t i = 0; i < STREAMS_MAX && !late; i++) {
		struct stream *s = &streams[i];
		if (!s->used || s->host_port != name || s->fd >= 0 || s->attached >= 0)
			continue;
		int n = snprintf(line, sizeof(line), "OK %u\n", name);
		write_full(fd, line, (size_t)n);
		s->attached = fd;
		pthread_cond_broadcast(&changed);
		pthread_mutex_unlock(&lock);
		return;
	}
	pthread_mutex_unlock(&lock);
	if (!late)
		write_full(fd, "ERR ENOENT\n", 11);
	close(fd);
}

// Forwards to the application, or what stands for it.
static void serve_tcp(struct stream *s, int tcp) {
	pthread_mutex_lock(&lock);
	s->tcp = tcp;
	pthread_mutex_unlock(&lock);
	forward(s);
}

static void *forward_back(void *arg) {
	const int *ends = arg;
	while (move(ends[1], ends[0]))
		;
	return NULL;
}

// Each direction by itself, as in a VMM: programs may write much before they read.
static void forward_apart(int a, int b) {
	int ends[2] = {a, b};
	pthread_t back;
	if (pthread_create(&back, NULL, forward_back, ends) != 0)
		return;
	while (move(a, b))
		;
	pthread_join(back, NULL);
}

// By a real guest agent, when there is one.
static void serve_session(struct stream *s) {
	const char *path = getenv("STASIS_AGENT_STREAMS");
	int agent = path != NULL ? unix_connect(path, SOCK_STREAM, NULL) : -1;
	if (agent < 0 || write_full(agent, "SESSION\n", 8) < 0)
		write_full(s->fd, "ERR ECONNREFUSED\n", 17);
	else
		forward_apart(s->fd, agent);
	if (agent >= 0)
		close(agent);
}

static bool speaks_tls(unsigned port) {
	size_t i = 0;
	while (i < sizeof(double_tls) / sizeof(double_tls[0]) && double_tls[i] != port)
		i++;
	return i < sizeof(double_tls) / sizeof(double_tls[0]);
}

static void *serve_stream(void *arg) {
	int fd = (int)(intptr_t)arg;
	char line[64];
	unsigned port = 0;
	if (!read_line(fd, line, sizeof(line))) {
		close(fd);
		return NULL;
	}
	if (sscanf(line, "ATTACH %u", &port) == 1) {
		attach(fd, port);
		return NULL;
	}
	struct stream *s = stream_new(fd);
	int n = snprintf(line, sizeof(line), "OK %u\n", s->host_port);
	bool fine = write_full(fd, line, (size_t)n) == 0 && read_line(fd, line, sizeof(line));
	if (fine && strcmp(line, "SESSION") == 0) {
		serve_session(s);
	} else if (fine && sscanf(line, "TCP %u", &port) == 1) {
		int tcp = connect_tcp(port == guest_port ? host_port : (uint16_t)port);
		if (tcp < 0) {
			write_full(fd, "ERR ECONNREFUSED\n", 17);
		} else {
			const char *answer = speaks_tls(port) ? "OK tls\n" : "OK\n";
			write_full(fd, answer, strlen(answer));
			serve_tcp(s, tcp);
		}
	}
	stream_free(s);
	return NULL;
}

static void *serve(void *arg) {
	int listener = (int)(intptr_t)arg;
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 512 * 1024);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	for (;;) {
		int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
		if (fd < 0)
			continue;
		double_streams++;
		pthread_t t;
		if (pthread_create(&t, &attributes, serve_stream, (void *)(intptr_t)fd) != 0)
			close(fd);
	}
	return NULL;
}

void double_use(const char *path) {
	snprintf(vsock_path, sizeof(vsock_path), "%s", path);
}

int double_start(const char *folder, uint16_t guest, uint16_t host) {
	guest_port = guest;
	host_port = host;
	snprintf(vsock_path, sizeof(vsock_path), "%s/vsock.sock", folder);
	snprintf(dead_path, sizeof(dead_path), "%s/none.sock", folder);
	unlink(vsock_path);
	// A short backlog: the edge must bear a VMM that is slow to accept.
	int fd = unix_listen(vsock_path, SOCK_STREAM, 4, NULL);
	pthread_t t;
	if (fd < 0 || pthread_create(&t, NULL, serve, (void *)(intptr_t)fd) != 0)
		return -1;
	pthread_detach(t);
	return 0;
}
