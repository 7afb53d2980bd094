// Requests of stasisd and results of the maker.
//
// TAKE is served from the pool at once; without a ready slot it waits in a queue for one to be made, and then the maker runs at normal
// priority. Otherwise the pool is filled in the background, at low priority and only some time after the last TAKE, out of its way.
#include "launch/launcher.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "base/uuid.h"
#include "launch/cgroup.h"
#include "launch/messages.h"
#include "launch/network.h"
#include "launch/networks.h"
#include "launch/record.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define FILL_PAUSE_MS 300    // after a TAKE
#define FAILURE_PAUSE_MS 500 // times two for each failure in a row, up to 30 s
#define BACKGROUND_NICE 10
#define LOG_LINES_MOST 200 // of one VMM
#define LOG_BYTES 1000

int launcher_watch(struct launcher *l, int fd, enum watch what, unsigned number, uint32_t events) {
	struct epoll_event event = {.events = events, .data.u64 = (uint64_t)what << 32 | number};
	return epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &event) < 0 ? -errno : 0;
}

struct firewall_member slot_member(const struct launcher *l, unsigned number) {
	const struct slot *slot = &l->slots.at[number];
	return (struct firewall_member){
		.address = slot_inner_address(&l->options, number), .networks = slot->networks, .confined = slot->confined};
}

// The ways out in the slot's own namespace, and with networks its place in the host's filter.
static int set_egress(struct launcher *l, unsigned number, const struct egress *g, struct error *e) {
	struct slot *slot = &l->slots.at[number];
	uint32_t networks = 0;
	int code = networks_find(&l->options, g, &networks, e);
	if (code < 0)
		return code;
	if (g->base == LAUNCH_EGRESS_NONE && (code = network_confine(&l->options, number, slot->routes, networks)) < 0)
		return error_set(e, code, "cannot set the egress of slot %u: %s", number, strerror(-code));
	if (networks == 0)
		return 0;
	slot->networks = networks;
	slot->confined = g->base == LAUNCH_EGRESS_NONE;
	const struct firewall_member member = slot_member(l, number);
	return firewall_join(&member, e);
}

static void take(struct launcher *l, unsigned number, const struct launch_take *t) {
	struct slot *slot = &l->slots.at[number];
	struct error e = {.message = ""};
	uint64_t start = monotonic_ns();
	struct record r = {.number = number, .pid = slot->pid, .started = slot->started, .taken = true, .egress = t->egress};
	int code = cgroup_limit(l->options.cgroup, slot->vmm, t->memory_bytes, t->vcpus, &e);
	if (code == 0)
		code = set_egress(l, number, &t->egress, &e);
	if (code == 0 && (code = record_write(l->options.run, slot->vmm, &r)) < 0)
		error_set(&e, code, "cannot write down slot %u: %s", number, strerror(-code));
	if (code < 0) {
		log_error("launch.take", LOG_S("vmm", slot->vmm), LOG_S("message", e.message));
		launcher_reply(l, &t->header, code, 0, "", e.message);
		slot_end(l, number);
		return;
	}
	slot_set_state(&l->slots, number, SLOT_TAKEN);
	l->fill_after_ms = monotonic_ms() + FILL_PAUSE_MS;
	launcher_reply(l, &t->header, 0, (unsigned)slot->pid, slot->vmm, "");
	log_info("launch.take", LOG_S("vmm", slot->vmm), LOG_U("pid", slot->pid), LOG_U("slot", number), LOG_U("egress", t->egress.base),
		 LOG_U("networks", t->egress.network_count), LOG_U("us", (monotonic_ns() - start) / 1000),
		 LOG_U("pool", l->slots.in_state[SLOT_READY]));
}

static void serve_takes(struct launcher *l) {
	int number;
	struct launch_take t;
	while ((number = slots_first(&l->slots, SLOT_READY, -1)) >= 0 && takes_pop(&l->takes, &t))
		take(l, (unsigned)number, &t);
}

static void hurry(struct launcher *l, bool yes) {
	if (l->maker_hurries != yes)
		setpriority(PRIO_PROCESS, (id_t)l->maker, yes ? 0 : BACKGROUND_NICE);
	l->maker_hurries = yes;
}

static bool order_one(struct launcher *l) {
	struct make_order order = {.number = 0};
	uuid_new(order.vmm);
	int number = slots_reserve(&l->slots, order.vmm);
	if (number < 0)
		return false;
	order.number = (uint32_t)number;
	struct slot *slot = &l->slots.at[number];
	slot->cgroup = true;
	slot->folder = true;
	if (send(l->maker_sock, &order, sizeof(order), MSG_DONTWAIT | MSG_NOSIGNAL) == (ssize_t)sizeof(order))
		return true;
	slot_set_state(&l->slots, (unsigned)number, SLOT_FREE);
	return false;
}

static void refuse_takes(struct launcher *l, int code, const char *text) {
	struct launch_take t;
	while (takes_pop(&l->takes, &t))
		launcher_reply(l, &t.header, code, 0, "", text);
}

void launcher_order(struct launcher *l) {
	if (l->stopping)
		return;
	serve_takes(l);
	bool may_fill = monotonic_ms() >= l->fill_after_ms;
	if (l->takes.count > 0 && l->slots.in_state[SLOT_FREE] + l->slots.in_state[SLOT_MAKING] + l->slots.in_state[SLOT_ENDING] == 0)
		refuse_takes(l, -ENOSPC, "all slots are in use: the range of addresses (--range) or the limit of 4096 allows no more");
	hurry(l, l->takes.count > 0);
	// A few at a time: what is ordered cannot be taken back when a TAKE comes.
	unsigned wanted = slots_wanted(&l->slots, l->takes.count, l->options.pool, may_fill);
	if (l->takes.count == 0 && wanted > 1)
		wanted = l->slots.in_state[SLOT_MAKING] == 0 ? 1 : 0;
	while (wanted-- > 0 && order_one(l))
		;
}

static void handle(struct launcher *l, const union launch_request *q) {
	struct error e = {.message = ""};
	uint32_t networks;
	int number, code;
	switch (q->header.kind) {
	case LAUNCH_TAKE:
		if (l->stopping)
			launcher_reply(l, &q->header, -ESHUTDOWN, 0, "", "stasis-launch is ending");
		else if ((code = networks_find(&l->options, &q->take.egress, &networks, &e)) < 0)
			launcher_reply(l, &q->header, code, 0, "", e.message);
		else if (!takes_push(&l->takes, &q->take))
			launcher_reply(l, &q->header, -EAGAIN, 0, "", "too many requests wait for a slot");
		return;
	case LAUNCH_END:
		number = slots_find(&l->slots, q->end.vmm);
		if (number < 0 || l->slots.at[number].state == SLOT_MAKING) {
			launcher_reply(l, &q->header, 0, 0, q->end.vmm, "");
			return;
		}
		// Asked twice: the later one is answered when it is gone, the earlier one now; it will not come back.
		if (l->slots.at[number].answer_end)
			launcher_reply(l, &(struct launch_header){.kind = LAUNCH_END, .sequence = l->slots.at[number].end_sequence}, 0, 0,
				       q->end.vmm, "");
		l->slots.at[number].answer_end = true;
		l->slots.at[number].end_sequence = q->header.sequence;
		slot_end(l, (unsigned)number);
		return;
	default:
		launcher_list(l, &q->header);
		return;
	}
}

void launcher_engine_readable(struct launcher *l) {
	while (l->engine.sock >= 0 && launcher_may_read(l)) {
		uint8_t data[sizeof(union launch_request) + 1];
		union launch_request q;
		ssize_t n = recv(l->engine.sock, data, sizeof(data), MSG_DONTWAIT | MSG_TRUNC);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			break;
		if (n <= 0) {
			launcher_engine_gone(l);
			return;
		}
		struct error e = {.message = ""};
		if (launch_request_parse(data, (size_t)n <= sizeof(data) ? (size_t)n : 0, &q, &e) == 0) {
			handle(l, &q);
			continue;
		}
		log_error("launch.message", LOG_S("refused", e.message), LOG_U("bytes", n));
		if (q.header.magic == LAUNCH_MAGIC)
			launcher_reply(l, &q.header, -EBADMSG, 0, "", e.message);
	}
	launcher_order(l);
	launcher_flush(l);
}

// Its microVMs stay; what it asked for and did not get is forgotten.
void launcher_engine_gone(struct launcher *l) {
	struct launch_take t;
	if (l->engine.sock >= 0) {
		close(l->engine.sock);
		l->engine.sock = -1;
	}
	while (takes_pop(&l->takes, &t))
		;
	l->replies.first = 0;
	l->replies.count = 0;
	l->replies.listing = false;
	for (unsigned n = 0; n < l->slots.count; n++)
		l->slots.at[n].answer_end = false;
}

static void fill_slot(struct launcher *l, const struct make_result *r, int fds[MAKE_FDS]) {
	struct slot *slot = &l->slots.at[r->number];
	slot->pid = r->pid;
	slot->outer = r->outer;
	slot->pidfd = fds[MAKE_FD_PIDFD];
	slot->routes = fds[MAKE_FD_ROUTES];
	slot->log = fds[MAKE_FD_LOG];
	fds[MAKE_FD_PIDFD] = fds[MAKE_FD_ROUTES] = fds[MAKE_FD_LOG] = -1;
	fcntl(slot->log, F_SETFL, O_NONBLOCK);
	slot_set_state(&l->slots, r->number, SLOT_READY);
	slot->started = process_started(r->pid);
	struct record record = {.number = r->number, .pid = r->pid, .started = slot->started};
	if (record_write(l->options.run, slot->vmm, &record) < 0 || launcher_watch(l, slot->pidfd, WATCH_PIDFD, r->number, EPOLLIN) < 0 ||
	    launcher_watch(l, slot->log, WATCH_LOG, r->number, EPOLLIN) < 0) {
		slot_end(l, r->number);
		return;
	}
	l->failures = 0;
	log_info("launch.slot", LOG_S("vmm", slot->vmm), LOG_U("slot", r->number), LOG_U("pid", r->pid),
		 LOG_U("socketsUs", r->ns[MAKE_SOCKETS] / 1000), LOG_U("networkUs", r->ns[MAKE_NETWORK] / 1000),
		 LOG_U("vmmUs", r->ns[MAKE_VMM] / 1000));
}

static void slot_failed(struct launcher *l, unsigned number, int code, const char *text) {
	log_error("launch.slot", LOG_U("slot", number), LOG_S("message", text));
	uint64_t pause = FAILURE_PAUSE_MS;
	for (unsigned i = 0; i < l->failures && pause < 30000; i++)
		pause *= 2;
	l->failures++;
	l->fill_after_ms = monotonic_ms() + pause;
	slot_end(l, number);
	struct launch_take t;
	if (takes_pop(&l->takes, &t))
		launcher_reply(l, &t.header, code, 0, "", text);
}

static void restart_maker(struct launcher *l) {
	struct error e;
	log_error("launch.maker", LOG_S("message", "it ended; starting another"));
	close(l->maker_sock);
	for (int n = slots_first(&l->slots, SLOT_MAKING, -1); n >= 0; n = slots_first(&l->slots, SLOT_MAKING, n))
		slot_failed(l, (unsigned)n, -EIO, "the maker of slots died");
	if (launcher_start_maker(l, &e) < 0)
		log_error("launch.maker", LOG_S("message", e.message));
}

void launcher_maker_readable(struct launcher *l) {
	struct make_result r;
	int fds[MAKE_FDS] = {-1, -1, -1};
	size_t nfds = MAKE_FDS;
	ssize_t n = recv_with_fds(l->maker_sock, &r, sizeof(r), fds, &nfds);
	if (n < 0 && (errno == EAGAIN || n == -EAGAIN || n == -EINTR))
		return;
	if (n != (ssize_t)sizeof(r) || r.number >= l->slots.count || l->slots.at[r.number].state != SLOT_MAKING) {
		restart_maker(l);
		return;
	}
	if (r.result == 0 && nfds == MAKE_FDS) {
		fill_slot(l, &r, fds);
	} else {
		close_all(fds, nfds);
		slot_failed(l, r.number, r.result, r.text);
	}
	if (l->stopping && l->slots.at[r.number].state == SLOT_READY)
		slot_end(l, r.number);
	launcher_order(l);
}

int launcher_start_maker(struct launcher *l, struct error *e) {
	pid_t pid = maker_start(&l->options, &l->maker_sock, e);
	if (pid < 0)
		return pid;
	l->maker = pid;
	l->maker_hurries = true;
	hurry(l, false);
	return launcher_watch(l, l->maker_sock, WATCH_MAKER, 0, EPOLLIN);
}

// A VMM's log comes from whom nobody trusts: cut, escaped (log.h) and limited in number. What is beyond the limit is read and dropped.
void launcher_log_readable(struct launcher *l, unsigned number) {
	struct slot *slot = &l->slots.at[number];
	char data[LOG_BYTES + 1];
	ssize_t n = slot->log < 0 ? 0 : read(slot->log, data, LOG_BYTES);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) {
		if (slot->log >= 0)
			close(slot->log);
		slot->log = -1;
		return;
	}
	if (slot->lines++ >= LOG_LINES_MOST)
		return;
	for (ssize_t i = 0; i < n; i++)
		if (data[i] == '\0')
			data[i] = '?';
	if (data[n - 1] == '\n')
		n--;
	data[n] = '\0';
	log_warn("vmm.log", LOG_S("vmm", slot->vmm), LOG_S("text", data));
}
