// stasis-launch: the privileged part of Stasis.
//
// One thread, one poll loop over: the pair with stasisd, a signalfd, and the pidfds of stasisd and of every VMM. It starts stasisd as an
// ordinary user and starts it again when it dies (VMMs go on meanwhile); keeps a few slots ready; hands them out and ends them as stasisd
// asks with the messages of launch.h. It opens nothing that stasisd names, and reads nothing but those messages.
//
// SIGTERM: stasisd is asked to end (it suspends what runs), then all slots are ended, then stasis-launch ends.
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "launch/firewall.h"
#include "launch/messages.h"
#include "launch/network.h"
#include "launch/options.h"
#include "launch/slot.h"

#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CONFIG_MAX (1u << 20)
#define CONFIG_FD 4
#define REFILL_DELAY_MS 300 // a launch under way has the CPUs first
#define RETRY_MS 10         // for what the kernel is not done with yet
#define RESTART_DELAY_MAX_MS 30000
#define STASISD_DESCRIPTORS 65536 // connections of the edge
#define STEADY_MS 10000           // a stasisd that lived so long did not die at its start
#define MESSAGE_ROOM 512

struct launch {
	struct launch_options options;
	struct slots slots;
	int signals;
	int pair;      // our end; -1 while there is no stasisd
	pid_t stasisd; // 0: none
	uint64_t started_ms;
	uint64_t restart_at_ms; // 0: not waiting
	uint64_t restart_delay_ms;
	uint64_t refill_at_ms; // 0: nothing to do
	unsigned refill_failures;
	bool stopping;
	int exit_code;
};

static void reply(struct launch *l, const struct launch_header *request, int result, const struct slot *slot, const char *text) {
	struct launch_reply r = {.header = *request, .result = result};
	if (l->pair < 0)
		return;
	if (slot != NULL) {
		r.pid = (uint32_t)slot->pid;
		memcpy(r.vmm, slot->name, sizeof(r.vmm));
	}
	snprintf(r.text, sizeof(r.text), "%s", text == NULL ? "" : text);
	int code = send_with_fds(l->pair, &r, sizeof(r), NULL, 0);
	if (code < 0)
		log_error("launch.reply", LOG_S("error", strerror(-code)));
}

// stasisd ------------------------------------------------------------------------------------------------------------------------------

// stasisd's configuration may be readable for root alone: it gets a copy of it.
static int config_copy(const char *path, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size;
	int r = read_file(path, CONFIG_MAX, &text, &size, e);
	if (r < 0)
		return r;
	cleanup_close int fd = memfd_create("config", MFD_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot create a memory file");
	if ((r = write_full(fd, text, size)) < 0)
		return error_set(e, r, "cannot copy %s: %s", path, strerror(-r));
	return take_fd(&fd);
}

static _Noreturn void stasisd_child(const struct launch_options *o, int pair, int config) {
	char path[512];
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	snprintf(path, sizeof(path), "%s/stasisd", o->program);
	pair = fcntl(pair, F_DUPFD, 16);
	config = fcntl(config, F_DUPFD, 16);
	dup2(pair, LAUNCH_STASISD_FD);
	dup2(config, CONFIG_FD);
	syscall(SYS_close_range, CONFIG_FD + 1, ~0u, 0);
	struct rlimit descriptors = {STASISD_DESCRIPTORS, STASISD_DESCRIPTORS};
	if (setrlimit(RLIMIT_NOFILE, &descriptors) < 0)
		log_warn("stasisd.descriptors", LOG_S("error", strerror(errno)));
	if (setsid() < 0 || setgroups(0, NULL) < 0 || setresgid(o->gid, o->gid, o->gid) < 0 || setresuid(o->uid, o->uid, o->uid) < 0 ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		_exit(126);
	execl(path, "stasisd", "--config", "/proc/self/fd/4", (char *)NULL);
	log_error("stasisd.start", LOG_S("program", path), LOG_S("error", strerror(errno)));
	_exit(127);
}

static int start_stasisd(struct launch *l, struct error *e) {
	int ends[2];
	cleanup_close int config = config_copy(l->options.config, e);
	if (config < 0)
		return config;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
		return error_errno(e, "cannot create a socket pair");
	pid_t pid = fork();
	if (pid == 0)
		stasisd_child(&l->options, ends[1], config);
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return error_errno(e, "cannot start stasisd");
	}
	// A stasisd that does not read must not stop us.
	fcntl(ends[0], F_SETFL, O_NONBLOCK);
	l->pair = ends[0];
	l->stasisd = pid;
	l->started_ms = monotonic_ms();
	l->restart_at_ms = 0;
	log_info("stasisd.started", LOG_U("pid", pid));
	return 0;
}

static void end_everything(struct launch *l) {
	l->stopping = true;
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		if (l->slots.all[i].state == SLOT_READY || l->slots.all[i].state == SLOT_USED)
			slot_kill(&l->slots, &l->slots.all[i]);
}

static void stasisd_ended(struct launch *l, int status) {
	uint64_t lived = monotonic_ms() - l->started_ms;
	log_at(l->stopping ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "stasisd.ended",
	       LOG_U("status", WIFEXITED(status) ? WEXITSTATUS(status) : -1), LOG_U("signal", WIFSIGNALED(status) ? WTERMSIG(status) : 0),
	       LOG_U("livedMs", lived));
	l->stasisd = 0;
	if (l->pair >= 0)
		close(l->pair);
	l->pair = -1;
	// Nobody waits for the answers that are owed.
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		l->slots.all[i].sequence = 0;
	if (l->stopping || (WIFEXITED(status) && WEXITSTATUS(status) == 0)) {
		end_everything(l);
		return;
	}
	l->restart_delay_ms = lived > STEADY_MS || l->restart_delay_ms == 0 ? 100 : l->restart_delay_ms * 2;
	if (l->restart_delay_ms > RESTART_DELAY_MAX_MS)
		l->restart_delay_ms = RESTART_DELAY_MAX_MS;
	l->restart_at_ms = monotonic_ms() + l->restart_delay_ms;
}

// Requests -----------------------------------------------------------------------------------------------------------------------------

static struct slot *ready_slot(struct slots *s) {
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		if (s->all[i].state == SLOT_READY && !s->all[i].dead)
			return &s->all[i];
	return NULL;
}

static void on_take(struct launch *l, const struct launch_take *t) {
	struct error e;
	struct slot *slot = ready_slot(&l->slots);
	bool pooled = slot != NULL;
	uint64_t start = monotonic_ns();
	int r = pooled ? 0 : slot_make(&l->slots, &slot, &e);
	if (r == 0 && (r = slot_use(&l->slots, slot, t, &e)) < 0)
		slot_kill(&l->slots, slot);
	if (r < 0) {
		log_error("slot.take", LOG_S("error", e.message));
		reply(l, &t->header, r, NULL, e.message);
	} else {
		reply(l, &t->header, 0, slot, NULL);
		log_info("slot.take", LOG_S("vmm", slot->name), LOG_U("pooled", pooled), LOG_U("us", (monotonic_ns() - start) / 1000));
	}
	l->refill_at_ms = monotonic_ms() + REFILL_DELAY_MS;
}

static void on_end(struct launch *l, const struct launch_end *q) {
	struct slot *slot = slot_find(&l->slots, q->vmm);
	if (slot == NULL || (slot->state != SLOT_USED && slot->state != SLOT_ENDING) || slot->sequence != 0) {
		reply(l, &q->header, slot == NULL || slot->state != SLOT_READY ? 0 : -EINVAL, NULL, NULL);
		return;
	}
	slot->sequence = q->header.sequence;
	slot_kill(&l->slots, slot);
}

static void on_list(struct launch *l, const struct launch_header *h) {
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++)
		if (l->slots.all[i].state == SLOT_USED)
			reply(l, h, 0, &l->slots.all[i], NULL);
	reply(l, h, 0, NULL, NULL);
}

static void on_message(struct launch *l) {
	char data[MESSAGE_ROOM];
	union launch_request q;
	struct error e;
	ssize_t n = recv_with_fds(l->pair, data, sizeof(data), NULL, NULL);
	if (n == -EAGAIN)
		return;
	if (n == 0 || (n < 0 && n != -EMSGSIZE)) { // stasisd is ending; its pid tells
		close(l->pair);
		l->pair = -1;
		return;
	}
	if (n < 0 || launch_request_parse(data, (size_t)n, &q, &e) < 0) {
		log_warn("launch.message", LOG_S("refused", n < 0 ? "it is too long" : e.message));
		if (n >= (ssize_t)sizeof(q.header))
			reply(l, &q.header, -EBADMSG, NULL, e.message);
		return;
	}
	if (q.header.kind == LAUNCH_TAKE)
		on_take(l, &q.take);
	else if (q.header.kind == LAUNCH_END)
		on_end(l, &q.end);
	else
		on_list(l, &q.header);
}

// VMMs ---------------------------------------------------------------------------------------------------------------------------------

static void vmm_ended(struct launch *l, struct slot *slot) {
	slot_reap(slot);
	if (slot->state == SLOT_USED) {
		log_warn("vmm.ended", LOG_S("vmm", slot->name), LOG_U("waitStatus", slot->wait_status));
		struct launch_header h = {.magic = LAUNCH_MAGIC, .kind = LAUNCH_EVENT_ENDED};
		reply(l, &h, slot->mine ? slot->wait_status : -1, slot, NULL);
		slot_kill(&l->slots, slot);
	} else if (slot->state == SLOT_READY) {
		log_error("vmm.ended", LOG_S("vmm", slot->name), LOG_U("waitStatus", slot->wait_status), LOG_S("in", "pool"));
		l->refill_failures++;
		slot_kill(&l->slots, slot);
	}
}

// Slots whose VMM has ended and which nobody uses any more. Returns whether some have to be tried again.
static bool finish_slots(struct launch *l) {
	bool again = false;
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++) {
		struct slot *slot = &l->slots.all[i];
		if (slot->state != SLOT_ENDING || !slot->dead)
			continue;
		struct launch_header h = {.magic = LAUNCH_MAGIC, .kind = LAUNCH_END, .sequence = slot->sequence};
		struct slot copy = *slot;
		if (!slot_finish(&l->slots, slot)) {
			again = true;
			continue;
		}
		if (h.sequence != 0)
			reply(l, &h, 0, &copy, NULL);
	}
	return again;
}

// One slot at a time, so that a request never waits for more than one.
static void refill(struct launch *l) {
	struct error e;
	struct slot *slot;
	l->refill_at_ms = 0;
	if (l->stopping || slots_count(&l->slots, SLOT_READY) >= l->options.pool)
		return;
	uint64_t start = monotonic_ns();
	if (slot_make(&l->slots, &slot, &e) < 0) {
		l->refill_failures++;
		log_error("slot.make", LOG_S("error", e.message));
	} else {
		log_debug("slot.ready", LOG_S("vmm", slot->name), LOG_U("us", (monotonic_ns() - start) / 1000));
	}
	uint64_t delay = l->refill_failures == 0 ? 1 : 1000ull << (l->refill_failures < 6 ? l->refill_failures : 6);
	l->refill_at_ms = monotonic_ms() + delay;
}

// The loop -----------------------------------------------------------------------------------------------------------------------------

static void on_signals(struct launch *l) {
	struct signalfd_siginfo info;
	while (read(l->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		if (info.ssi_signo == SIGCHLD)
			continue;
		log_info("launch.stopping", LOG_U("signal", info.ssi_signo));
		l->stopping = true;
		if (l->stasisd > 0)
			kill(l->stasisd, SIGTERM);
		else
			end_everything(l);
	}
	int status;
	if (l->stasisd > 0 && waitpid(l->stasisd, &status, WNOHANG) == l->stasisd)
		stasisd_ended(l, status);
}

static int next_timeout(const struct launch *l, bool again) {
	uint64_t now = monotonic_ms(), next = UINT64_MAX;
	if (again)
		next = now + RETRY_MS;
	if (l->refill_at_ms != 0 && l->refill_at_ms < next)
		next = l->refill_at_ms;
	if (l->restart_at_ms != 0 && l->restart_at_ms < next)
		next = l->restart_at_ms;
	return next == UINT64_MAX ? -1 : next <= now ? 0 : (int)(next - now);
}

static bool all_gone(const struct launch *l) {
	return l->stopping && l->stasisd == 0 && slots_count(&l->slots, SLOT_FREE) == LAUNCH_SLOTS_MAX;
}

static void turn(struct launch *l) {
	static struct pollfd fds[2 + LAUNCH_SLOTS_MAX];
	static struct slot *of[2 + LAUNCH_SLOTS_MAX];
	nfds_t n = 0;
	bool again = finish_slots(l);
	if (all_gone(l))
		return;
	fds[n++] = (struct pollfd){.fd = l->signals, .events = POLLIN};
	fds[n++] = (struct pollfd){.fd = l->pair, .events = POLLIN};
	for (unsigned i = 0; i < LAUNCH_SLOTS_MAX; i++) {
		struct slot *slot = &l->slots.all[i];
		if (slot->pidfd < 0 || slot->dead)
			continue;
		of[n] = slot;
		fds[n++] = (struct pollfd){.fd = slot->pidfd, .events = POLLIN};
	}
	if (poll(fds, n, next_timeout(l, again)) < 0)
		return;
	for (nfds_t i = 2; i < n; i++)
		if (fds[i].revents != 0)
			vmm_ended(l, of[i]);
	if (fds[1].revents != 0 && l->pair >= 0)
		on_message(l);
	if (fds[0].revents != 0)
		on_signals(l);
	uint64_t now = monotonic_ms();
	struct error e;
	if (l->restart_at_ms != 0 && now >= l->restart_at_ms && !l->stopping && start_stasisd(l, &e) < 0) {
		log_error("stasisd.start", LOG_S("error", e.message));
		l->restart_at_ms = now + RESTART_DELAY_MAX_MS;
	}
	if (l->refill_at_ms != 0 && now >= l->refill_at_ms)
		refill(l);
}

static int prepare_state_folder(const struct launch_options *o, struct error *e) {
	struct stat st;
	int r = make_folders(o->state, 0750, e);
	if (r < 0)
		return r;
	if (stat(o->state, &st) == 0 && st.st_uid == 0 && chown(o->state, o->uid, o->gid) < 0)
		return error_errno(e, "cannot give %s to stasisd's user", o->state);
	return 0;
}

static int start(struct launch *l, struct error *e) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	if (geteuid() != 0)
		return error_set(e, -EPERM, "stasis-launch must be started as root");
	if ((l->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK)) < 0)
		return error_errno(e, "cannot create a signalfd");
	int r = prepare_state_folder(&l->options, e);
	if (r == 0)
		r = slots_start(&l->slots, &l->options, e);
	if (r == 0)
		r = start_stasisd(l, e);
	l->refill_at_ms = monotonic_ms() + 1;
	return r;
}

int main(int argc, char **argv) {
	static struct launch l = {.pair = -1};
	struct error e;
	bool done;
	int code = options_read(argc, argv, &l.options, &done);
	if (done)
		return code;
	if (start(&l, &e) < 0) {
		log_error("launch.start", LOG_S("error", e.message));
		return 1;
	}
	log_info("launch.started", LOG_U("pool", l.options.pool));
	while (!all_gone(&l))
		turn(&l);
	firewall_remove_host();
	log_info("launch.ended");
	return 0;
}
