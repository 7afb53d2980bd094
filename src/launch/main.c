// stasis-launch: the only part of Stasis that runs as root. It starts stasisd as an unprivileged user and gives it what needs privileges,
// by a closed set of messages (launch.h): slots, each a VMM in a jail with a network namespace, a cgroup and a uid of its own.
//
// SIGTERM: stasisd is told to end (it suspends its microVMs), then everything else is ended, and stasis-launch exits. A second one
// hurries. When stasisd has ended as it was asked (status 0), the same. When it dies it is started again, and its microVMs run on. So
// they do when stasis-launch dies; see adopt.c.
#include "launch/launcher.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "launch/cgroup.h"
#include "launch/firewall.h"
#include "launch/netlink.h"
#include "launch/networks.h"

#include <fcntl.h>
#include <linux/rtnetlink.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define STOP_MS 120000 // for stasisd to suspend its microVMs
#define END_MS 10000   // for slots to go
#define CONFIG_MOST (1u << 20)
#define EVENTS 64

static struct launcher launcher;

static int make_folder(const char *path, mode_t mode, struct error *e) {
	if (mkdir(path, mode) < 0 && errno != EEXIST)
		return error_errno(e, "cannot make %s", path);
	struct stat st;
	if (lstat(path, &st) < 0 || !S_ISDIR(st.st_mode) || st.st_uid != 0)
		return error_set(e, -EPERM, "%s is not a folder of root's", path);
	return chmod(path, mode) < 0 ? error_errno(e, "cannot set the mode of %s", path) : 0;
}

static int make_run_folders(const struct options *o, struct error *e) {
	char path[128];
	int code = make_folder(o->run, 0711, e);
	if (code < 0)
		return code;
	snprintf(path, sizeof(path), "%.100s/vm", o->run);
	return make_folder(path, 0711, e);
}

static int make_state_folder(const struct options *o, struct error *e) {
	struct stat st;
	int code = make_folders(o->state, 0750, e);
	if (code < 0)
		return code;
	// One that belongs to somebody is left to him.
	if (stat(o->state, &st) == 0 && st.st_uid == 0 && (chown(o->state, o->uid, o->gid) < 0 || chmod(o->state, 0750) < 0))
		return error_errno(e, "cannot give %s to stasisd's user", o->state);
	return 0;
}

// One stasis-launch per run-time folder. The descriptor stays open for as long as it runs.
static int lock_run_folder(const struct options *o, struct error *e) {
	int fd = open(o->run, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open %s", o->run);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		close(fd);
		return error_set(e, -EBUSY, "another stasis-launch uses %s", o->run);
	}
	return fd;
}

// stasisd may not be able to read the configuration where it lies: it gets a copy that it can.
static int copy_config(struct options *o, struct error *e) {
	cleanup_free char *data = NULL;
	size_t size = 0;
	char path[128];
	int code = read_file(o->config, CONFIG_MOST, &data, &size, e);
	if (code < 0)
		return code;
	if ((code = networks_read(data, size, o, e)) < 0)
		return error_wrap(e, code, "%s", o->config);
	snprintf(path, sizeof(path), "%.100s/config.json", o->run);
	unlink(path);
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot write %s", path);
	if ((code = write_full(fd, data, size)) < 0)
		return error_set(e, code, "cannot write %s: %s", path, strerror(-code));
	if (fchown(fd, 0, o->gid) < 0 || fchmod(fd, 0640) < 0)
		return error_errno(e, "cannot set the owner of %s", path);
	snprintf(o->config, sizeof(o->config), "%s", path);
	return 0;
}

// The filter knows from the start which of the microVMs that were taken over have networks.
static int set_up_filter(struct launcher *l, struct error *e) {
	size_t count = 0;
	cleanup_free struct firewall_member *at = calloc(l->slots.count, sizeof(*at));
	if (at == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	for (unsigned n = 0; n < l->slots.count; n++)
		if (l->slots.at[n].networks != 0 || l->slots.at[n].confined)
			at[count++] = slot_member(l, n);
	const struct firewall_members members = {at, count};
	return firewall_host(&l->options, &members, e);
}

static int set_up_host(struct launcher *l, struct error *e) {
	struct options *o = &l->options;
	cleanup_free char *resolv = NULL;
	if (o->resolver_count == 0 && read_file("/etc/resolv.conf", 65536, &resolv, NULL, NULL) == 0)
		options_add_resolvers(o, resolv);
	// The filter before forwarding.
	int code = set_up_filter(l, e);
	if (code < 0)
		return code;
	cleanup_close int fd = open("/proc/sys/net/ipv4/ip_forward", O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		return error_errno(e, "cannot turn IPv4 forwarding on");
	return 0;
}

static int open_sockets(struct launcher *l, struct error *e) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	l->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	l->links = netlink_open(RTMGRP_LINK);
	l->host_routes = netlink_open(0);
	if (l->epoll < 0 || l->signals < 0 || l->links < 0 || l->host_routes < 0 ||
	    launcher_watch(l, l->signals, WATCH_SIGNALS, 0, EPOLLIN) < 0 || launcher_watch(l, l->links, WATCH_LINKS, 0, EPOLLIN) < 0)
		return error_errno(e, "cannot make the main loop");
	return 0;
}

static int start_engine(struct launcher *l, struct error *e) {
	int code = engine_start(&l->engine, &l->options, e);
	return code < 0 ? code : launcher_watch(l, l->engine.sock, WATCH_ENGINE, 0, EPOLLIN);
}

static int start(struct launcher *l, struct error *e) {
	struct rlimit descriptors = {.rlim_cur = 4 * LAUNCH_SLOTS_MAX, .rlim_max = 4 * LAUNCH_SLOTS_MAX};
	setrlimit(RLIMIT_NOFILE, &descriptors);
	umask(022);
	int code = geteuid() == 0 ? 0 : error_set(e, -EPERM, "stasis-launch needs root: `stasis up` starts it where it is needed");
	if (code < 0 || (code = make_run_folders(&l->options, e)) < 0 || (code = lock_run_folder(&l->options, e)) < 0 ||
	    (code = copy_config(&l->options, e)) < 0 || (code = make_state_folder(&l->options, e)) < 0 ||
	    (code = cgroup_start(l->options.cgroup, e)) < 0 || (code = open_sockets(l, e)) < 0)
		return code;
	if (slots_create(&l->slots, l->options.slots) < 0 || replies_create(&l->replies) < 0)
		return error_set(e, -ENOMEM, "out of memory");
	launcher_adopt(l);
	if ((code = set_up_host(l, e)) < 0 || (code = launcher_start_maker(l, e)) < 0)
		return code;
	return start_engine(l, e);
}

static void stop(struct launcher *l) {
	l->killing = l->stopping;
	l->stopping = true;
	l->stop_deadline_ms = monotonic_ms() + (l->killing ? 0 : STOP_MS);
	log_info("launch.stop", LOG_S("message", l->killing ? "at once" : "when stasisd has ended"));
	if (l->engine.pid > 0)
		kill(l->engine.pid, l->killing ? SIGKILL : SIGTERM);
}

static void engine_died(struct launcher *l, int status) {
	log_at(l->stopping ? LOG_LEVEL_INFO : LOG_LEVEL_ERROR, "launch.stasisd", LOG_S("message", "ended"), LOG_U("status", status));
	launcher_engine_gone(l);
	engine_ended(&l->engine);
	// It ends by itself with 0 when its API was asked to shut down.
	if (!l->stopping && WIFEXITED(status) && WEXITSTATUS(status) == 0)
		stop(l);
}

static bool is_known(const struct launcher *l, pid_t pid) {
	if (pid == l->engine.pid)
		return true;
	for (unsigned n = 0; n < l->slots.count; n++)
		if (l->slots.at[n].pid == pid && l->slots.at[n].pidfd >= 0)
			return true;
	return false;
}

// stasisd and VMMs are reaped where their ends are dealt with. What else may end: a maker (noticed at its socket), and children of ours
// that it made and that never became a slot.
static void reap_strangers(const struct launcher *l) {
	for (;;) {
		siginfo_t info = {.si_pid = 0};
		if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0 || is_known(l, info.si_pid))
			return;
		waitpid(info.si_pid, NULL, WNOHANG);
	}
}

static void handle_signals(struct launcher *l) {
	struct signalfd_siginfo info;
	while (read(l->signals, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
		int status;
		if (info.ssi_signo != SIGCHLD)
			stop(l);
		else if (l->engine.pid > 0 && waitpid(l->engine.pid, &status, WNOHANG) == l->engine.pid)
			engine_died(l, status);
	}
	reap_strangers(l);
}

static void dispatch(struct launcher *l, uint64_t data, uint32_t events) {
	unsigned number = (unsigned)data;
	switch ((enum watch)(data >> 32)) {
	case WATCH_SIGNALS:
		handle_signals(l);
		return;
	case WATCH_ENGINE:
		if ((events & EPOLLOUT) != 0)
			launcher_flush(l);
		if ((events & ~EPOLLOUT) != 0)
			launcher_engine_readable(l);
		return;
	case WATCH_MAKER:
		launcher_maker_readable(l);
		return;
	case WATCH_LINKS:
		launcher_links_readable(l);
		return;
	case WATCH_PIDFD:
		if (l->slots.at[number].pidfd >= 0)
			slot_process_ended(l, number);
		return;
	case WATCH_LOG:
		launcher_log_readable(l, number);
		return;
	}
}

static int until(uint64_t ms, uint64_t now) {
	return ms <= now ? 0 : ms - now > 1000 ? 1000 : (int)(ms - now);
}

// How long the loop may sleep.
static int timeout(const struct launcher *l) {
	uint64_t now = monotonic_ms();
	if (l->slots.in_state[SLOT_ENDING] > 0)
		return 10;
	if (l->stopping)
		return 100;
	if (l->engine.pid == 0)
		return until(l->engine.restart_ms, now);
	if (l->slots.in_state[SLOT_READY] + l->slots.in_state[SLOT_MAKING] < l->options.pool)
		return l->fill_after_ms <= now ? 1000 : until(l->fill_after_ms, now);
	return -1;
}

// What depends on time. Returns false when stasisd cannot be had.
static bool attend(struct launcher *l) {
	struct error e;
	if (l->slots.in_state[SLOT_ENDING] > 0)
		launcher_continue_ending(l);
	launcher_order(l);
	if (l->engine.pid > 0 || l->stopping || monotonic_ms() < l->engine.restart_ms)
		return true;
	if (l->engine.quick_deaths >= ENGINE_QUICK_DEATHS && l->slots.in_state[SLOT_TAKEN] == 0) {
		log_error("launch.stasisd", LOG_S("message", "it ended at once several times: giving up; see its own messages above"));
		return false;
	}
	if (start_engine(l, &e) < 0) {
		log_error("launch.stasisd", LOG_S("message", e.message));
		engine_ended(&l->engine);
	}
	return true;
}

static void run_once(struct launcher *l) {
	struct epoll_event events[EVENTS];
	int n = epoll_wait(l->epoll, events, EVENTS, timeout(l));
	for (int i = 0; i < n; i++)
		dispatch(l, events[i].data.u64, events[i].events);
}

// Ends all slots and waits until they are gone.
static void end_slots(struct launcher *l) {
	l->stopping = true;
	for (unsigned n = 0; n < l->slots.count; n++)
		if (l->slots.at[n].state == SLOT_READY || l->slots.at[n].state == SLOT_TAKEN)
			slot_end(l, n);
	for (uint64_t end = monotonic_ms() + END_MS; monotonic_ms() < end && l->slots.in_state[SLOT_FREE] < l->slots.count;) {
		run_once(l);
		launcher_continue_ending(l);
	}
}

static int run(struct launcher *l) {
	bool good = true;
	while (good) {
		run_once(l);
		if (l->stopping && (l->engine.pid == 0 || monotonic_ms() >= l->stop_deadline_ms))
			break;
		good = attend(l);
	}
	if (l->engine.pid > 0) {
		log_error("launch.stasisd", LOG_S("message", "did not end in time and is killed"));
		kill(l->engine.pid, SIGKILL);
		waitpid(l->engine.pid, NULL, 0);
		launcher_engine_gone(l);
		engine_ended(&l->engine);
	}
	end_slots(l);
	close(l->maker_sock);
	waitpid(l->maker, NULL, 0);
	if (l->slots.in_state[SLOT_FREE] == l->slots.count)
		firewall_remove_host();
	log_info("launch.stop", LOG_S("message", "ended"), LOG_U("left", l->slots.count - l->slots.in_state[SLOT_FREE]));
	return good ? 0 : 1;
}

int main(int argc, char **argv) {
	struct error e = {.message = ""};
	int code = options_parse(argc, argv, &launcher.options, &e);
	if (code > 0) {
		fputs(options_help, stdout);
		return 0;
	}
	if (code == 0)
		code = start(&launcher, &e);
	if (code < 0) {
		log_error("launch.start", LOG_S("message", e.message));
		fprintf(stderr, "stasis-launch: %s\n", e.message);
		return 1;
	}
	return run(&launcher);
}
