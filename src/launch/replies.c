// What goes out to stasisd. Messages wait in a ring when the socket is full; while more than half of it is in use no request is read, so
// that it never overflows: what is then still to come is bounded by the number of slots. A list is answered as far as there is room.
#include "launch/launcher.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

int replies_create(struct replies *r) {
	*r = (struct replies){.at = calloc(REPLIES_MOST, sizeof(*r->at))};
	return r->at == NULL ? -ENOMEM : 0;
}

static bool push(struct launcher *l, const struct launch_reply *reply) {
	struct replies *r = &l->replies;
	if (r->count == REPLIES_MOST)
		return false;
	r->at[(r->first + r->count++) % REPLIES_MOST] = *reply;
	return true;
}

static void put(struct launcher *l, uint32_t kind, uint64_t sequence, int result, unsigned pid, const char *vmm, const char *text) {
	struct launch_reply reply = {.header = {LAUNCH_MAGIC, kind, sequence}, .result = result, .pid = pid};
	snprintf(reply.vmm, sizeof(reply.vmm), "%s", vmm);
	snprintf(reply.text, sizeof(reply.text), "%s", text);
	if (l->engine.sock >= 0 && !push(l, &reply))
		log_error("launch.reply", LOG_S("message", "dropped: stasisd does not read"));
}

static void continue_list(struct launcher *l) {
	struct replies *r = &l->replies;
	while (r->listing && r->count < REPLIES_MOST / 2) {
		r->list_after = slots_first(&l->slots, SLOT_TAKEN, r->list_after);
		r->listing = r->list_after >= 0;
		const struct slot *slot = r->listing ? &l->slots.at[r->list_after] : NULL;
		put(l, LAUNCH_LIST, r->list_sequence, 0, slot != NULL ? (unsigned)slot->pid : 0, slot != NULL ? slot->vmm : "", "");
	}
}

void launcher_flush(struct launcher *l) {
	struct replies *r = &l->replies;
	continue_list(l);
	while (r->count > 0 && l->engine.sock >= 0) {
		ssize_t n = send(l->engine.sock, &r->at[r->first], sizeof(r->at[0]), MSG_DONTWAIT | MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			break; // full, or closed: reading tells
		r->first = (r->first + 1) % REPLIES_MOST;
		r->count--;
		continue_list(l);
	}
	if (l->engine.sock < 0)
		return;
	uint32_t events = (launcher_may_read(l) ? EPOLLIN : 0u) | (r->count > 0 ? EPOLLOUT : 0u);
	struct epoll_event event = {.events = events, .data.u64 = (uint64_t)WATCH_ENGINE << 32};
	epoll_ctl(l->epoll, EPOLL_CTL_MOD, l->engine.sock, &event);
}

void launcher_reply(struct launcher *l, const struct launch_header *to, int result, unsigned pid, const char *vmm, const char *text) {
	put(l, to->kind, to->sequence, result, pid, vmm, text);
	launcher_flush(l);
}

void launcher_list(struct launcher *l, const struct launch_header *to) {
	l->replies.listing = true;
	l->replies.list_after = -1;
	l->replies.list_sequence = to->sequence;
	launcher_flush(l);
}

bool launcher_may_read(const struct launcher *l) {
	return l->replies.count < REPLIES_MOST / 2 && !l->replies.listing;
}
