// What stands in for the edge's neighbours; see test_edge_double.h.
#include "test_edge_double.h"

#include "base/io.h"
#include "images/connectors.h"
#include "microvms/microvms.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
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
};

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
		route = malloc(sizeof(*route));
		route->row = o->row;
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
	free(r);
}

bool microvm_find_endpoint(struct engine *en, const char *endpoint, char id[48], char state[STATE_TEXT]) {
	size_t row = row_of(endpoint);
	if (row == ROWS)
		return false;
	snprintf(id, 48, "%s", table[row].id);
	snprintf(state, STATE_TEXT, "%s", table[row].state);
	return true;
}

// DOUBLE_SHUT has no ingress for requests.
unsigned microvm_ingress(struct engine *en, const char *endpoint) {
	size_t row = row_of(endpoint);
	return row == ROWS ? 0 : strcmp(endpoint, DOUBLE_SHUT) == 0 ? INGRESS_SHELL : INGRESS_HTTP;
}

// The vsock socket. -----------------------------------------------------------------------------------------------------------

#define STREAMS_MAX 4096
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int streams[STREAMS_MAX];

static void remember(int fd, bool on) {
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < STREAMS_MAX; i++) {
		if (streams[i] == (on ? 0 : fd)) {
			streams[i] = on ? fd : 0;
			break;
		}
	}
	pthread_mutex_unlock(&lock);
}

void double_cut(void) {
	pthread_mutex_lock(&lock);
	for (size_t i = 0; i < STREAMS_MAX; i++)
		if (streams[i] != 0)
			shutdown(streams[i], SHUT_RDWR);
	pthread_mutex_unlock(&lock);
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

static void forward(int a, int b) {
	struct pollfd p[2] = {{.fd = a, .events = POLLIN}, {.fd = b, .events = POLLIN}};
	while (p[0].fd >= 0 || p[1].fd >= 0) {
		if (poll(p, 2, -1) < 0)
			break;
		if (p[0].fd >= 0 && p[0].revents != 0 && !move(a, b))
			p[0].fd = -1;
		if (p[1].fd >= 0 && p[1].revents != 0 && !move(b, a))
			p[1].fd = -1;
	}
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
static void serve_session(int fd) {
	const char *path = getenv("STASIS_AGENT_STREAMS");
	int agent = path != NULL ? unix_connect(path, SOCK_STREAM, NULL) : -1;
	if (agent < 0 || write_full(agent, "SESSION\n", 8) < 0)
		write_full(fd, "ERR ECONNREFUSED\n", 17);
	else
		forward_apart(fd, agent);
	if (agent >= 0)
		close(agent);
}

static void *serve_stream(void *arg) {
	int fd = (int)(intptr_t)arg;
	char line[64];
	unsigned port = 0;
	remember(fd, true);
	bool fine = read_line(fd, line, sizeof(line)) && strcmp(line, "CONNECT 1025") == 0 && write_full(fd, "OK 1073741824\n", 14) == 0 &&
		    read_line(fd, line, sizeof(line));
	if (fine && strcmp(line, "SESSION") == 0) {
		serve_session(fd);
	} else if (fine && sscanf(line, "TCP %u", &port) == 1) {
		int tcp = connect_tcp(port == guest_port ? host_port : (uint16_t)port);
		if (tcp < 0) {
			write_full(fd, "ERR ECONNREFUSED\n", 17);
		} else {
			write_full(fd, "OK\n", 3);
			forward(fd, tcp);
			close(tcp);
		}
	}
	remember(fd, false);
	close(fd);
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
