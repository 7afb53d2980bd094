// See peers.h. One thread does everything: a poll loop over the launcher's socket, the slots' listeners and their connections.
#include "peers.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/uuid.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define SLOTS 64
#define CONNECTIONS 256
#define HOOK_NAMES 6
#define DISK_VALUE 16 // offset of the application's value in the layer
#define TORN (-1)     // memory and disk were not of the same moment

enum connection_kind {
	CONNECTION_CONTROL,
	CONNECTION_VSOCK,
	CONNECTION_AGENT,
	CONNECTION_STREAM,
	CONNECTION_EVENTS,
	CONNECTION_HTTP,
	CONNECTION_OTHER
};

struct slot_peer {
	bool used;
	char name[LAUNCH_VMM_MAX];
	int control, vsock;
	uint32_t state;
	int counter;
	int value; // the application's, in its memory and at DISK_VALUE of its disk
	int layer; // the disk; -1: none
	bool frozen;
	uint64_t order;
};

struct connection {
	int fd; // -1: free
	enum connection_kind kind;
	size_t slot;
	char buffer[70000];
	size_t size;
};

struct peers {
	pthread_t thread;
	pthread_mutex_t lock;
	int wake[2];
	bool stop;
	char run[128];
	int launcher;
	struct slot_peer slots[SLOTS];
	struct connection *connections;
	uint64_t order;
	int faults[FAULTS];
	int status[HOOK_NAMES], calls[HOOK_NAMES], delay_ms;
	int idle_ms;
	int credentials_given;
	json_t *credentials;
};

static const char *const hooks[HOOK_NAMES] = {"ready", "validate", "run", "resume", "suspend", "terminate"};

static int hook_number(const char *name) {
	for (int i = 0; i < HOOK_NAMES; i++)
		if (strcmp(hooks[i], name) == 0)
			return i;
	return -1;
}

static bool fails(struct peers *p, enum fault f) {
	if (p->faults[f] == 0)
		return false;
	p->faults[f]--;
	return true;
}

static void connection_end(struct connection *c) {
	close(c->fd);
	c->fd = -1;
}

static void slot_gone(struct peers *p, size_t i) {
	char path[256];
	struct slot_peer *s = &p->slots[i];
	for (size_t k = 0; k < CONNECTIONS; k++)
		if (p->connections[k].fd >= 0 && p->connections[k].slot == i)
			connection_end(&p->connections[k]);
	close(s->control);
	close(s->vsock);
	if (s->layer >= 0)
		close(s->layer);
	snprintf(path, sizeof(path), "%s/vm/%s", p->run, s->name);
	remove_tree(path, NULL);
	s->used = false;
}

static struct slot_peer *slot_make(struct peers *p) {
	char path[256];
	for (size_t i = 0; i < SLOTS; i++) {
		struct slot_peer *s = &p->slots[i];
		if (s->used)
			continue;
		*s = (struct slot_peer){.used = true, .layer = -1, .order = ++p->order};
		uuid_new(s->name);
		snprintf(path, sizeof(path), "%s/vm/%s", p->run, s->name);
		make_folders(path, 0755, NULL);
		snprintf(path, sizeof(path), "%s/vm/%s/control.sock", p->run, s->name);
		s->control = unix_listen(path, SOCK_SEQPACKET, 8, NULL);
		snprintf(path, sizeof(path), "%s/vm/%s/vsock.sock", p->run, s->name);
		s->vsock = unix_listen(path, SOCK_STREAM, 64, NULL);
		return s;
	}
	return NULL;
}

static void serve_launcher(struct peers *p) {
	union {
		struct launch_header header;
		struct launch_take take;
		struct launch_end end;
	} q;
	ssize_t n = recv(p->launcher, &q, sizeof(q), MSG_DONTWAIT);
	if (n <= 0)
		return;
	struct launch_reply reply = {.header = q.header};
	if (q.header.kind == LAUNCH_TAKE && n == sizeof(q.take)) {
		const struct slot_peer *s = fails(p, FAULT_TAKE) ? NULL : slot_make(p);
		if (s == NULL) {
			reply.result = -ENOSPC;
			snprintf(reply.text, sizeof(reply.text), "no slot is left");
		} else {
			memcpy(reply.vmm, s->name, sizeof(reply.vmm));
		}
	} else if (q.header.kind == LAUNCH_END && n == sizeof(q.end)) {
		reply.result = -ENOENT;
		for (size_t i = 0; i < SLOTS; i++) {
			if (p->slots[i].used && strcmp(p->slots[i].name, q.end.vmm) == 0) {
				slot_gone(p, i);
				reply.result = 0;
			}
		}
	} else if (q.header.kind == LAUNCH_LIST) {
		for (size_t i = 0; i < SLOTS; i++) {
			if (!p->slots[i].used)
				continue;
			memcpy(reply.vmm, p->slots[i].name, sizeof(reply.vmm));
			send(p->launcher, &reply, sizeof(reply), MSG_NOSIGNAL);
		}
		memset(reply.vmm, 0, sizeof(reply.vmm));
	}
	send(p->launcher, &reply, sizeof(reply), MSG_NOSIGNAL);
}

static void write_value(const struct slot_peer *s) {
	char text[16];
	snprintf(text, sizeof(text), "%010d", s->value);
	ssize_t ignored = s->layer < 0 ? 0 : pwrite(s->layer, text, 10, DISK_VALUE);
	(void)ignored;
}

static void take_value(struct slot_peer *s, const char *memory, bool own, int layer) {
	char disk[16] = "";
	int counter = 0;
	s->value = 0;
	if (sscanf(memory, "%d %d", &counter, &s->value) == 2 && own && pread(layer, disk, 10, DISK_VALUE) == 10 &&
	    (int)strtol(disk, NULL, 10) != s->value)
		s->value = TORN;
	s->layer = dup(layer);
}

static int restore(struct slot_peer *s, const struct vmm_restore *q, const int *fds, size_t nfds) {
	char state[64] = "", memory[64] = "";
	uint32_t layers = q->memory_layers;
	if (nfds < layers + 2 || layers < 1 || layers > 2)
		return -EINVAL;
	if (pread(fds[0], state, sizeof(state) - 1, 0) <= 0 || strncmp(state, "state", 5) != 0)
		return -EBADMSG;
	if (pread(fds[layers], memory, sizeof(memory) - 1, 0) <= 0)
		return -EBADMSG;
	// The layer is the last of the disks; a guest writes to it.
	if (pwrite(fds[nfds - 1], "written", 7, 0) != 7)
		return -EIO;
	s->counter = (int)strtol(memory, NULL, 10);
	take_value(s, memory, layers == 2, fds[nfds - 1]);
	s->state = VMM_STATE_RUNNING;
	s->frozen = true;
	return 0;
}

static void serve_control(struct peers *p, struct connection *c) {
	static union {
		struct vmm_header header;
		struct vmm_boot boot;
		struct vmm_restore restore;
		struct vmm_snapshot snapshot;
	} q;
	struct slot_peer *s = &p->slots[c->slot];
	int fds[FDS_MAX];
	size_t nfds = FDS_MAX;
	ssize_t n = recv_with_fds(c->fd, &q, sizeof(q), fds, &nfds);
	if (n <= 0) {
		connection_end(c);
		return;
	}
	struct {
		struct vmm_reply reply;
		struct vmm_stats stats;
	} a = {.reply = {.header = q.header}};
	size_t size = sizeof(a.reply);
	switch (q.header.kind) {
	case VMM_RESTORE:
		a.reply.result = fails(p, FAULT_RESTORE) ? -EINVAL : restore(s, &q.restore, fds, nfds);
		break;
	case VMM_PAUSE:
		if (fails(p, FAULT_DIE_IN_PAUSE)) {
			close_all(fds, nfds);
			slot_gone(p, c->slot);
			return;
		}
		s->state = VMM_STATE_PAUSED;
		break;
	case VMM_RESUME:
		s->state = VMM_STATE_RUNNING;
		break;
	case VMM_SNAPSHOT:
		if (s->state != VMM_STATE_PAUSED || !s->frozen || nfds != 2) {
			a.reply.result = -EBUSY;
		} else if (fails(p, FAULT_SNAPSHOT)) {
			a.reply.result = -ENOSPC;
			snprintf(a.reply.text, sizeof(a.reply.text), "the disk is full");
		} else {
			dprintf(fds[0], "state of %s", s->name);
			dprintf(fds[1], "%d %d", s->counter, s->value);
		}
		break;
	case VMM_STATS:
		size = sizeof(a);
		break;
	default:
		a.reply.result = -EOPNOTSUPP;
	}
	a.reply.state = s->state;
	close_all(fds, nfds);
	send(c->fd, &a, size, MSG_NOSIGNAL);
}

static void send_frame(struct connection *c, json_t *reply) {
	cleanup_free char *text = json_dumps(reply, JSON_COMPACT);
	uint32_t length = (uint32_t)strlen(text);
	json_decref(reply);
	send(c->fd, &length, sizeof(length), MSG_NOSIGNAL | MSG_MORE);
	send(c->fd, text, length, MSG_NOSIGNAL);
}

// Returns false when the connection (or the whole slot) is gone.
static bool serve_request(struct peers *p, struct connection *c, const json_t *q) {
	struct slot_peer *s = &p->slots[c->slot];
	const char *op = json_string_value(json_object_get(q, "op"));
	json_t *reply = json_pack("{s:I, s:b}", "id", json_integer_value(json_object_get(q, "id")), "ok", 1);
	json_t *credentials = json_object_get(q, "credentials");
	if (credentials != NULL) {
		json_decref(p->credentials);
		p->credentials = json_incref(credentials);
		p->credentials_given++;
	}
	if (strcmp(op, "resume") == 0) {
		if (fails(p, FAULT_DIE_IN_RESUME)) {
			json_decref(reply);
			slot_gone(p, c->slot);
			return false;
		}
		if (fails(p, FAULT_AGENT_MUTE)) {
			json_decref(reply);
			connection_end(c);
			return false;
		}
		s->frozen = false;
	} else if (strcmp(op, "freeze") == 0) {
		if (fails(p, FAULT_FREEZE)) {
			json_object_set_new(reply, "ok", json_false());
			json_object_set_new(reply, "code", json_string("EBUSY"));
			json_object_set_new(reply, "message", json_string("the application is being started"));
		} else {
			s->frozen = true;
		}
	} else if (strcmp(op, "hook") == 0) {
		int hook = hook_number(json_string_value(json_object_get(q, "name")));
		p->calls[hook]++;
		s->counter++;
		int delay = p->delay_ms;
		pthread_mutex_unlock(&p->lock);
		usleep((unsigned)delay * 1000);
		pthread_mutex_lock(&p->lock);
		json_object_set_new(reply, "status", json_integer(p->status[hook]));
		json_object_set_new(reply, "result",
				    json_string(p->status[hook] == 200 ? "ok"
						: p->status[hook] == 0 ? "timeout"
								       : "status"));
		json_object_set_new(reply, "elapsedMs", json_integer(delay));
	} else if (strcmp(op, "busy") == 0 && p->idle_ms >= 0) {
		json_object_set_new(reply, "idleMs", json_integer(p->idle_ms));
		json_object_set_new(reply, "why", json_string("lease test"));
	} else if (strcmp(op, "busy") == 0) {
		json_object_set_new(reply, "ok", json_false());
		json_object_set_new(reply, "code", json_string("EOPNOTSUPP"));
		json_object_set_new(reply, "message", json_string("this guest agent has no operation \"busy\""));
	} else if (strcmp(op, "state") == 0) {
		json_object_set_new(reply, "application", json_string("running"));
	}
	send_frame(c, reply);
	return true;
}

static void serve_agent(struct peers *p, struct connection *c) {
	for (;;) {
		uint32_t length;
		if (c->size < sizeof(length))
			return;
		memcpy(&length, c->buffer, sizeof(length));
		if (c->size < sizeof(length) + length)
			return;
		json_t *q = json_loadb(c->buffer + sizeof(length), length, 0, NULL);
		c->size -= sizeof(length) + length;
		memmove(c->buffer, c->buffer + sizeof(length) + length, c->size);
		bool living = serve_request(p, c, q);
		json_decref(q);
		if (!living)
			return;
	}
}

static void send_event(struct connection *c, int kind, const char *text) {
	uint32_t length = (uint32_t)strlen(text) + 9;
	uint64_t time = 1700000000000000000u;
	char head[13];
	memcpy(head, &length, 4);
	head[4] = (char)kind;
	memcpy(head + 5, &time, 8);
	send(c->fd, head, sizeof(head), MSG_NOSIGNAL | MSG_MORE);
	send(c->fd, text, strlen(text), MSG_NOSIGNAL);
}

static void serve_line(struct peers *p, struct connection *c) {
	char *newline = memchr(c->buffer, '\n', c->size);
	if (newline == NULL)
		return;
	*newline = '\0';
	if (strcmp(c->buffer, "CONNECT 1024") == 0)
		c->kind = CONNECTION_AGENT;
	else if (strcmp(c->buffer, "CONNECT 1025") == 0)
		c->kind = CONNECTION_STREAM;
	else if (strcmp(c->buffer, "EVENTS") == 0)
		c->kind = CONNECTION_EVENTS;
	else if (strncmp(c->buffer, "TCP ", 4) == 0)
		c->kind = CONNECTION_HTTP;
	else
		c->kind = CONNECTION_OTHER;
	size_t used = (size_t)(newline - c->buffer) + 1;
	c->size -= used;
	memmove(c->buffer, c->buffer + used, c->size);
	bool agent = c->kind == CONNECTION_EVENTS || c->kind == CONNECTION_HTTP;
	const char *answer = c->kind == CONNECTION_OTHER ? "ERR ECONNREFUSED\n" : agent ? "OK\n" : "OK 1073741824\n";
	send(c->fd, answer, strlen(answer), MSG_NOSIGNAL);
}

// The application: answers every request with its value; one whose target is /add increases it first. A frozen one says nothing.
static void serve_http(struct peers *p, struct connection *c) {
	struct slot_peer *s = &p->slots[c->slot];
	for (char *end; (end = memmem(c->buffer, c->size, "\r\n\r\n", 4)) != NULL && !s->frozen;) {
		if (memmem(c->buffer, (size_t)(end - c->buffer), " /add ", 6) != NULL && s->value != TORN) {
			s->value++;
			write_value(s);
		}
		char body[16], answer[128];
		int size = snprintf(body, sizeof(body), "%d", s->value);
		int n = snprintf(answer, sizeof(answer), "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", size, body);
		send(c->fd, answer, (size_t)n, MSG_NOSIGNAL);
		c->size -= (size_t)(end + 4 - c->buffer);
		memmove(c->buffer, end + 4, c->size);
	}
}

static void serve_stream(struct peers *p, struct connection *c) {
	ssize_t n = recv(c->fd, c->buffer + c->size, sizeof(c->buffer) - c->size, MSG_DONTWAIT);
	if (n <= 0) {
		connection_end(c);
		return;
	}
	c->size += (size_t)n;
	// Both lines may come at once, with the first bytes of the stream behind them.
	while (c->fd >= 0 && (c->kind == CONNECTION_VSOCK || c->kind == CONNECTION_STREAM) && memchr(c->buffer, '\n', c->size) != NULL)
		serve_line(p, c);
	if (c->fd >= 0 && c->kind == CONNECTION_AGENT)
		serve_agent(p, c);
	if (c->fd >= 0 && c->kind == CONNECTION_HTTP)
		serve_http(p, c);
}

static void accept_one(struct peers *p, int listener, size_t slot, enum connection_kind kind) {
	int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	for (size_t i = 0; fd >= 0 && i < CONNECTIONS; i++) {
		struct connection *c = &p->connections[i];
		if (c->fd >= 0)
			continue;
		c->fd = fd;
		c->kind = kind;
		c->slot = slot;
		c->size = 0;
		return;
	}
	if (fd >= 0)
		close(fd);
}

struct source {
	enum { SOURCE_WAKE, SOURCE_LAUNCHER, SOURCE_CONTROL, SOURCE_VSOCK, SOURCE_CONNECTION } kind;
	size_t index;
	int fd;
};

static size_t sources(struct peers *p, struct source *list, struct pollfd *polls) {
	size_t n = 0;
	list[n++] = (struct source){SOURCE_WAKE, 0, p->wake[0]};
	if (p->launcher >= 0)
		list[n++] = (struct source){SOURCE_LAUNCHER, 0, p->launcher};
	for (size_t i = 0; i < SLOTS; i++) {
		if (!p->slots[i].used)
			continue;
		list[n++] = (struct source){SOURCE_CONTROL, i, p->slots[i].control};
		list[n++] = (struct source){SOURCE_VSOCK, i, p->slots[i].vsock};
	}
	for (size_t i = 0; i < CONNECTIONS; i++)
		if (p->connections[i].fd >= 0)
			list[n++] = (struct source){SOURCE_CONNECTION, i, p->connections[i].fd};
	for (size_t i = 0; i < n; i++)
		polls[i] = (struct pollfd){.fd = list[i].fd, .events = POLLIN};
	return n;
}

static void serve(struct peers *p, const struct source *s) {
	char drained[64];
	switch (s->kind) {
	case SOURCE_WAKE:
		if (read(p->wake[0], drained, sizeof(drained)) < 0)
			return;
		break;
	case SOURCE_LAUNCHER:
		if (s->fd == p->launcher)
			serve_launcher(p);
		break;
	case SOURCE_CONTROL:
		if (p->slots[s->index].used && p->slots[s->index].control == s->fd)
			accept_one(p, s->fd, s->index, CONNECTION_CONTROL);
		break;
	case SOURCE_VSOCK:
		if (p->slots[s->index].used && p->slots[s->index].vsock == s->fd)
			accept_one(p, s->fd, s->index, CONNECTION_VSOCK);
		break;
	case SOURCE_CONNECTION:
		if (p->connections[s->index].fd != s->fd)
			return;
		if (p->connections[s->index].kind == CONNECTION_CONTROL)
			serve_control(p, &p->connections[s->index]);
		else
			serve_stream(p, &p->connections[s->index]);
	}
}

static void *run(void *arg) {
	struct peers *p = arg;
	static struct source list[2 + 2 * SLOTS + CONNECTIONS];
	static struct pollfd polls[2 + 2 * SLOTS + CONNECTIONS];
	pthread_mutex_lock(&p->lock);
	while (!p->stop) {
		size_t n = sources(p, list, polls);
		pthread_mutex_unlock(&p->lock);
		poll(polls, n, -1);
		pthread_mutex_lock(&p->lock);
		// One at a time: serving one may end others.
		for (size_t i = 0; i < n && !p->stop; i++) {
			if (polls[i].revents != 0) {
				serve(p, &list[i]);
				break;
			}
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static void wake(struct peers *p) {
	ssize_t ignored = write(p->wake[1], "x", 1);
	(void)ignored;
}

static int connect_launcher(struct peers *p) {
	int pair[2];
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	p->launcher = pair[0];
	return pair[1];
}

struct peers *peers_start(const char *run_folder, int *ret_launcher_fd) {
	struct peers *p = calloc(1, sizeof(*p));
	p->connections = calloc(CONNECTIONS, sizeof(*p->connections));
	for (size_t i = 0; i < CONNECTIONS; i++)
		p->connections[i].fd = -1;
	for (int i = 0; i < HOOK_NAMES; i++)
		p->status[i] = 200;
	p->idle_ms = -1;
	snprintf(p->run, sizeof(p->run), "%s", run_folder);
	pthread_mutex_init(&p->lock, NULL);
	*ret_launcher_fd = connect_launcher(p);
	if (pipe2(p->wake, O_CLOEXEC) < 0 || pthread_create(&p->thread, NULL, run, p) != 0)
		return NULL;
	return p;
}

int peers_reconnect(struct peers *p) {
	pthread_mutex_lock(&p->lock);
	close(p->launcher);
	int fd = connect_launcher(p);
	pthread_mutex_unlock(&p->lock);
	wake(p);
	return fd;
}

void peers_stop(struct peers *p) {
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_mutex_unlock(&p->lock);
	wake(p);
	pthread_join(p->thread, NULL);
	for (size_t i = 0; i < SLOTS; i++)
		if (p->slots[i].used)
			slot_gone(p, i);
	close(p->launcher);
	close(p->wake[0]);
	close(p->wake[1]);
	free(p->connections);
	json_decref(p->credentials);
	free(p);
}

unsigned peers_slots(struct peers *p) {
	unsigned n = 0;
	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < SLOTS; i++)
		n += p->slots[i].used;
	pthread_mutex_unlock(&p->lock);
	return n;
}

int peers_counter(struct peers *p) {
	const struct slot_peer *newest = NULL;
	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < SLOTS; i++)
		if (p->slots[i].used && (newest == NULL || p->slots[i].order > newest->order))
			newest = &p->slots[i];
	int counter = newest == NULL ? -1 : newest->counter;
	pthread_mutex_unlock(&p->lock);
	return counter;
}

void peers_fail(struct peers *p, enum fault f, int times) {
	pthread_mutex_lock(&p->lock);
	p->faults[f] = times;
	pthread_mutex_unlock(&p->lock);
}

void peers_hook_status(struct peers *p, const char *hook, int status) {
	pthread_mutex_lock(&p->lock);
	for (int i = 0; i < HOOK_NAMES; i++)
		if (hook[0] == '\0' || strcmp(hook, hooks[i]) == 0)
			p->status[i] = status;
	pthread_mutex_unlock(&p->lock);
}

void peers_hook_delay(struct peers *p, int milliseconds) {
	pthread_mutex_lock(&p->lock);
	p->delay_ms = milliseconds;
	pthread_mutex_unlock(&p->lock);
}

int peers_credentials(struct peers *p, json_t **ret_last) {
	pthread_mutex_lock(&p->lock);
	int n = p->credentials_given;
	*ret_last = json_incref(p->credentials);
	pthread_mutex_unlock(&p->lock);
	return n;
}

int peers_hook_calls(struct peers *p, const char *hook) {
	pthread_mutex_lock(&p->lock);
	int n = p->calls[hook_number(hook)];
	pthread_mutex_unlock(&p->lock);
	return n;
}

void peers_guests_power_off(struct peers *p) {
	struct vmm_reply event = {
		.header = {.magic = VMM_CONTROL_MAGIC, .kind = VMM_EVENT_EXITED}, .state = VMM_STATE_EXITED, .exit = VMM_EXIT_POWEROFF};
	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < CONNECTIONS; i++) {
		const struct connection *c = &p->connections[i];
		if (c->fd < 0 || c->kind != CONNECTION_CONTROL)
			continue;
		p->slots[c->slot].state = VMM_STATE_EXITED;
		send(c->fd, &event, sizeof(event), MSG_NOSIGNAL);
	}
	pthread_mutex_unlock(&p->lock);
}

// Waits until somebody listens.
static void all_events(struct peers *p, int kind, const char *text) {
	bool sent = false;
	for (int i = 0; i < 5000 && !sent; i++) {
		pthread_mutex_lock(&p->lock);
		for (size_t k = 0; k < CONNECTIONS; k++) {
			if (p->connections[k].fd < 0 || p->connections[k].kind != CONNECTION_EVENTS)
				continue;
			send_event(&p->connections[k], kind, text);
			sent = true;
		}
		pthread_mutex_unlock(&p->lock);
		if (!sent)
			usleep(1000);
	}
}

void peers_applications_exit(struct peers *p, int exit_code) {
	char text[64];
	snprintf(text, sizeof(text), "{\"event\":\"exited\",\"exitCode\":%d}", exit_code);
	all_events(p, 3, text);
}

void peers_ask_for_suspend(struct peers *p) {
	all_events(p, 3, "{\"event\":\"suspend\"}");
}

void peers_idle(struct peers *p, int milliseconds) {
	pthread_mutex_lock(&p->lock);
	p->idle_ms = milliseconds;
	pthread_mutex_unlock(&p->lock);
}

void peers_write(struct peers *p, const char *text) {
	all_events(p, 1, text);
}

void peers_kill_vmms(struct peers *p) {
	pthread_mutex_lock(&p->lock);
	for (size_t i = 0; i < SLOTS; i++)
		if (p->slots[i].used)
			slot_gone(p, i);
	pthread_mutex_unlock(&p->lock);
	wake(p);
}

void peers_kill_newest_vmm(struct peers *p) {
	pthread_mutex_lock(&p->lock);
	size_t newest = SLOTS;
	for (size_t i = 0; i < SLOTS; i++)
		if (p->slots[i].used && (newest == SLOTS || p->slots[i].order > p->slots[newest].order))
			newest = i;
	if (newest < SLOTS)
		slot_gone(p, newest);
	pthread_mutex_unlock(&p->lock);
	wake(p);
}
