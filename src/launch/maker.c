// Making a slot: folder and listening sockets in /run/stasis/vm/<vmm>, cgroup, network namespace, VMM in its jail.
//
// The maker enters the slot's network namespace to furnish it and leaves it again; what must reach stasis-launch goes back as
// descriptors. VMMs are children of stasis-launch, not of the maker (CLONE_PARENT), so that it may die without consequence.
#include "launch/maker.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "launch/cgroup.h"
#include "launch/jail.h"
#include "launch/netlink.h"
#include "launch/network.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define PATH_ROOM 512
#define BACKLOG 256

struct maker {
	const struct options *o;
	int orders;
	int host, host_routes; // the host's network namespace
	int program;
	char jail[PATH_ROOM];
};

static int open_program(const struct options *o, struct error *e) {
	static const char *const below[] = {"", "src/vmm/", "bin/"};
	for (size_t i = 0; i < sizeof(below) / sizeof(below[0]); i++) {
		char path[PATH_ROOM + 32];
		struct stat st;
		snprintf(path, sizeof(path), "%.500s/%sstasis-vmm", o->program, below[i]);
		cleanup_close int fd = open(path, O_PATH | O_CLOEXEC);
		if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
			return take_fd(&fd);
	}
	return error_set(e, -ENOENT, "%s has no stasis-vmm: build first, or name the right folder with --program", o->program);
}

static int listen_in(const struct options *o, const char *folder, const char *name, int type, struct error *e) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), "%s/%s", folder, name);
	cleanup_close int fd = unix_listen(path, type, BACKLOG, e);
	if (fd < 0)
		return fd;
	if (chown(path, 0, o->gid) < 0 || chmod(path, 0660) < 0)
		return error_errno(e, "cannot set the owner of %s", path);
	return take_fd(&fd);
}

struct sockets {
	int control, vsock;
};

static int make_sockets(const struct options *o, const char *vmm, struct sockets *ret, struct error *e) {
	char folder[PATH_ROOM];
	snprintf(folder, sizeof(folder), "%s/vm/%s", o->run, vmm);
	if (mkdir(folder, 0750) < 0 || chown(folder, 0, o->gid) < 0)
		return error_errno(e, "cannot make %s", folder);
	cleanup_close int control = listen_in(o, folder, "control.sock", SOCK_SEQPACKET, e);
	if (control < 0)
		return control;
	int vsock = listen_in(o, folder, "vsock.sock", SOCK_STREAM, e);
	if (vsock < 0)
		return vsock;
	*ret = (struct sockets){take_fd(&control), vsock};
	return 0;
}

// Starts the VMM. *result and fds are filled on success.
static int start_vmm(const struct maker *m, const struct make_order *order, const struct sockets *s, int cgroup, int tap,
		     struct make_result *result, int fds[MAKE_FDS], struct error *e) {
	int log[2];
	cleanup_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return error_errno(e, "cannot open /dev/kvm (`stasis doctor` explains)");
	if (pipe2(log, O_CLOEXEC) < 0)
		return error_errno(e, "cannot make a pipe");
	cleanup_close int log_from = log[0];
	cleanup_close int log_to = log[1];
	struct jail jail = {.program = m->program,
			    .control = s->control,
			    .vsock = s->vsock,
			    .kvm = kvm,
			    .tap = tap,
			    .log = log_to,
			    .cgroup = cgroup,
			    .folder = m->jail,
			    .uid = m->o->uid_base + order->number};
	pid_t pid = jail_start(&jail, &fds[MAKE_FD_PIDFD], e);
	if (pid < 0)
		return pid;
	result->pid = pid;
	fds[MAKE_FD_LOG] = take_fd(&log_from);
	return 0;
}

static uint64_t lap(uint64_t *since) {
	uint64_t now = monotonic_ns(), ns = now - *since;
	*since = now;
	return ns;
}

static int make(const struct maker *m, const struct make_order *order, struct make_result *result, int fds[MAKE_FDS], struct error *e) {
	uint64_t since = monotonic_ns();
	struct sockets s = {-1, -1};
	int code = make_sockets(m->o, order->vmm, &s, e);
	if (code < 0)
		return code;
	cleanup_close int control = s.control;
	cleanup_close int vsock = s.vsock;
	cleanup_close int cgroup = cgroup_create(m->o->cgroup, order->vmm, e);
	if (cgroup < 0)
		return cgroup;
	result->ns[MAKE_SOCKETS] = lap(&since);
	struct slot_network network;
	code = network_create(m->o, order->number, m->host, m->host_routes, &network, e);
	if (code < 0)
		return code;
	cleanup_close int tap = network.tap;
	cleanup_close int routes = network.routes;
	result->ns[MAKE_NETWORK] = lap(&since);
	code = start_vmm(m, order, &s, cgroup, tap, result, fds, e);
	if (code < 0)
		return code;
	result->ns[MAKE_VMM] = lap(&since);
	result->outer = network.outer;
	fds[MAKE_FD_ROUTES] = take_fd(&routes);
	return 0;
}

static int serve(const struct maker *m) {
	for (;;) {
		struct make_order order;
		ssize_t n = recv(m->orders, &order, sizeof(order), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(order))
			return n == 0 ? 0 : 1;
		struct make_result result = {.number = order.number};
		struct error e = {.message = ""};
		int fds[MAKE_FDS] = {-1, -1, -1};
		memcpy(result.vmm, order.vmm, sizeof(result.vmm));
		result.result = make(m, &order, &result, fds, &e);
		// Staying in it would keep the namespace alive beyond its VMM.
		if (setns(m->host, CLONE_NEWNET) < 0)
			return 1;
		snprintf(result.text, sizeof(result.text), "%s", e.message);
		int code = send_with_fds(m->orders, &result, sizeof(result), fds, result.result == 0 ? MAKE_FDS : 0);
		close_all(fds, MAKE_FDS);
		if (code < 0)
			return 1;
	}
}

static int prepare(struct maker *m, struct error *e) {
	m->host = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	m->host_routes = netlink_open(0);
	if (m->host < 0 || m->host_routes < 0)
		return error_set(e, -EIO, "cannot reach the host's network namespace");
	m->program = open_program(m->o, e);
	if (m->program < 0)
		return m->program;
	snprintf(m->jail, sizeof(m->jail), "%s/jail", m->o->run);
	if (mkdir(m->jail, 0700) < 0 && errno != EEXIST)
		return error_errno(e, "cannot make %s", m->jail);
	return 0;
}

// Descriptors of slots that stasis-launch holds must not live on in here.
static int keep_only_own(struct maker *m) {
	int *const own[] = {&m->orders, &m->host, &m->host_routes, &m->program};
	const int n = sizeof(own) / sizeof(own[0]), first = 3;
	for (int i = 0; i < n; i++)
		if ((*own[i] = fcntl(*own[i], F_DUPFD_CLOEXEC, first + n)) < 0)
			return -errno;
	for (int i = 0; i < n; i++)
		if ((*own[i] = dup3(*own[i], first + i, O_CLOEXEC)) < 0)
			return -errno;
	return close_range((unsigned)(first + n), ~0u, 0) < 0 ? -errno : 0;
}

pid_t maker_start(const struct options *o, int *ret_sock, struct error *e) {
	struct maker m = {.o = o};
	int code = prepare(&m, e);
	if (code < 0)
		return code;
	int pair[2];
	pid_t parent = getpid();
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return error_errno(e, "cannot make a socket pair");
	pid_t pid = fork();
	if (pid == 0) {
		sigset_t all;
		sigfillset(&all);
		sigprocmask(SIG_SETMASK, &all, NULL); // it is told to end by the end of its pair alone
		// A slot made for a stasis-launch that is gone would be nobody's.
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		m.orders = pair[1];
		if (keep_only_own(&m) < 0)
			_exit(1);
		prctl(PR_SET_NAME, "launch-maker");
		_exit(serve(&m));
	}
	close(pair[1]);
	close(m.host);
	close(m.host_routes);
	close(m.program);
	if (pid < 0) {
		close(pair[0]);
		return error_errno(e, "cannot fork");
	}
	*ret_sock = pair[0];
	return pid;
}
