// The client of stasis-launch; see launcher.h.
#include "microvms/launcher.h"

#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/uuid.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

// Making a slot from nothing takes tens of milliseconds on hardware and seconds in the machine.
#define REPLY_SECONDS 60

struct call {
	struct call *next;
	uint64_t sequence;
	void (*each)(void *arg, const char *vmm); // LAUNCH_LIST: for every reply but the last
	void *arg;
	struct launch_reply reply;
	bool answered;
};

struct launcher {
	int fd;
	int64_t watch;
	struct watcher *watcher;
	pthread_mutex_t lock;
	pthread_cond_t answered;
	uint64_t sequence;
	struct call *calls; // that wait for their replies
	bool lost;
	struct launcher_events events;
};

static void terminate_text(struct launch_reply *r) {
	r->vmm[sizeof(r->vmm) - 1] = '\0';
	r->text[sizeof(r->text) - 1] = '\0';
}

static void take_reply(struct launcher *l, struct launch_reply *reply) {
	pthread_mutex_lock(&l->lock);
	struct call *c = l->calls;
	while (c != NULL && c->sequence != reply->header.sequence)
		c = c->next;
	if (c != NULL && !c->answered) {
		if (c->each != NULL && reply->result == 0 && reply->vmm[0] != '\0') {
			c->each(c->arg, reply->vmm);
		} else {
			c->reply = *reply;
			c->answered = true;
			pthread_cond_broadcast(&l->answered);
		}
	}
	pthread_mutex_unlock(&l->lock);
}

static void on_lost(struct launcher *l) {
	watch_remove(l->watcher, l->watch);
	pthread_mutex_lock(&l->lock);
	bool first = !l->lost;
	l->lost = true;
	pthread_cond_broadcast(&l->answered);
	struct launcher_events events = l->events;
	pthread_mutex_unlock(&l->lock);
	if (first && events.lost != NULL)
		events.lost(events.arg);
}

static void on_ready(void *arg, uint32_t ready) {
	struct launcher *l = arg;
	struct launch_reply reply;
	memset(&reply, 0, sizeof(reply));
	ssize_t n = recv(l->fd, &reply, sizeof(reply), MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		on_lost(l);
		return;
	}
	if ((size_t)n != sizeof(reply) || reply.header.magic != LAUNCH_MAGIC) {
		log_error("launcher.message", LOG_S("message", "a malformed message from stasis-launch was dropped"), LOG_U("bytes", n));
		return;
	}
	terminate_text(&reply);
	if (reply.header.kind == LAUNCH_EVENT_ENDED) {
		pthread_mutex_lock(&l->lock);
		struct launcher_events events = l->events;
		pthread_mutex_unlock(&l->lock);
		if (events.ended != NULL)
			events.ended(events.arg, reply.vmm, reply.result);
		return;
	}
	take_reply(l, &reply);
}

int launcher_open(int fd, struct watcher *w, struct launcher **ret, struct error *e) {
	int type = 0;
	socklen_t size = sizeof(type);
	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) < 0 || type != SOCK_SEQPACKET)
		return error_set(e, -ENOTCONN,
				 "descriptor %d is not a connection to stasis-launch; stasisd is started by stasis-launch, not by hand",
				 fd);
	struct launcher *l = calloc(1, sizeof(*l));
	if (l == NULL)
		return error_set(e, -ENOMEM, "out of memory connecting to stasis-launch");
	l->fd = fd;
	l->watcher = w;
	pthread_mutex_init(&l->lock, NULL);
	pthread_condattr_t attributes;
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&l->answered, &attributes);
	pthread_condattr_destroy(&attributes);
	int r = watch_add(w, fd, EPOLLIN, on_ready, l, &l->watch);
	if (r < 0) {
		pthread_mutex_destroy(&l->lock);
		pthread_cond_destroy(&l->answered);
		free(l);
		return error_set(e, r, "cannot watch the connection to stasis-launch: %s", strerror(-r));
	}
	*ret = l;
	return 0;
}

void launcher_listen(struct launcher *l, const struct launcher_events *events) {
	pthread_mutex_lock(&l->lock);
	l->events = *events;
	pthread_mutex_unlock(&l->lock);
}

void launcher_close(struct launcher *l) {
	if (l == NULL)
		return;
	watch_remove(l->watcher, l->watch);
	close(l->fd);
	pthread_mutex_destroy(&l->lock);
	pthread_cond_destroy(&l->answered);
	free(l);
}

// Sends a request (its header's sequence is filled in here) and waits for the reply.
static int call_launcher(struct launcher *l, struct launch_header *request, size_t size, struct call *c, struct error *e) {
	struct timespec until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += REPLY_SECONDS;

	pthread_mutex_lock(&l->lock);
	request->magic = LAUNCH_MAGIC;
	request->sequence = c->sequence = ++l->sequence;
	c->next = l->calls;
	l->calls = c;
	pthread_mutex_unlock(&l->lock);

	int r = send_with_fds(l->fd, request, size, NULL, 0);
	pthread_mutex_lock(&l->lock);
	while (r == 0 && !c->answered) {
		if (l->lost)
			r = -ECONNRESET;
		else if (pthread_cond_timedwait(&l->answered, &l->lock, &until) == ETIMEDOUT && !c->answered)
			r = -ETIMEDOUT;
	}
	for (struct call **p = &l->calls; *p != NULL; p = &(*p)->next) {
		if (*p == c) {
			*p = c->next;
			break;
		}
	}
	pthread_mutex_unlock(&l->lock);
	if (r < 0)
		return error_set(e, r, "stasis-launch does not answer: %s", strerror(-r));
	if (c->reply.result < 0)
		return error_set(e, c->reply.result, "stasis-launch: %s",
				 c->reply.text[0] != '\0' ? c->reply.text : strerror(-c->reply.result));
	return 0;
}

int launcher_take(struct launcher *l, const struct egress *egress, uint32_t vcpus, uint64_t memory_bytes, char vmm[LAUNCH_VMM_MAX],
		  struct error *e) {
	struct launch_take request = {.header.kind = LAUNCH_TAKE, .egress = *egress, .vcpus = vcpus, .memory_bytes = memory_bytes};
	struct call c = {0};
	int r = call_launcher(l, &request.header, sizeof(request), &c, e);
	if (r < 0)
		return r;
	if (!uuid_is_valid(c.reply.vmm))
		return error_set(e, -EPROTO, "stasis-launch named a slot that is not a UUID");
	memcpy(vmm, c.reply.vmm, LAUNCH_VMM_MAX);
	return 0;
}

int launcher_end(struct launcher *l, const char *vmm, struct error *e) {
	struct launch_end request = {.header.kind = LAUNCH_END};
	size_t n = strlen(vmm);
	if (n >= sizeof(request.vmm))
		return error_set(e, -EINVAL, "the slot's name is too long");
	memcpy(request.vmm, vmm, n);
	struct call c = {0};
	int r = call_launcher(l, &request.header, sizeof(request), &c, e);
	return r == -ENOENT ? 0 : r;
}

int launcher_list(struct launcher *l, void (*each)(void *arg, const char *vmm), void *arg, struct error *e) {
	struct launch_header request = {.kind = LAUNCH_LIST};
	struct call c = {.each = each, .arg = arg};
	return call_launcher(l, &request, sizeof(request), &c, e);
}
