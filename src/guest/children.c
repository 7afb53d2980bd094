// Starting and reaping processes; see children.h.
#include "guest/children.h"

#include "base/cleanup.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/wait.h>

static void remember(struct children *c, pid_t pid, int status) {
	// Full: the oldest have had their time.
	if (c->unclaimed_count == CHILDREN_UNCLAIMED) {
		memmove(&c->unclaimed[0], &c->unclaimed[1], sizeof(c->unclaimed) - sizeof(c->unclaimed[0]));
		c->unclaimed_count--;
	}
	c->unclaimed[c->unclaimed_count].pid = pid;
	c->unclaimed[c->unclaimed_count++].status = status;
}

static void reap(struct source *s, uint32_t events) {
	struct children *c = container_of(s, struct children, signals);
	struct signalfd_siginfo info[8];
	int status;
	pid_t pid;

	(void)!read(s->fd, info, sizeof(info));
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct child *child = c->first;
		while (child != NULL && child->pid != pid)
			child = child->next;
		if (child == NULL) {
			remember(c, pid, status);
			continue;
		}
		children_forget(c, child);
		child->ended(child, status);
	}
}

int children_init(struct children *c, struct loop *l, struct error *e) {
	sigset_t set;

	memset(c, 0, sizeof(*c));
	c->loop = l;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	c->signals = (struct source){.fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK), .ready = reap};
	if (c->signals.fd < 0)
		return error_errno(e, "signalfd");
	int r = loop_watch(l, &c->signals, EPOLLIN);
	return r < 0 ? error_set(e, r, "cannot wait for signals: %s", strerror(-r)) : 0;
}

void children_end(struct children *c) {
	loop_close_source(c->loop, &c->signals);
}

void children_watch(struct children *c, struct child *child) {
	for (size_t i = 0; i < c->unclaimed_count; i++) {
		if (c->unclaimed[i].pid != child->pid)
			continue;
		int status = c->unclaimed[i].status;
		c->unclaimed[i] = c->unclaimed[--c->unclaimed_count];
		child->ended(child, status);
		return;
	}
	child->next = c->first;
	c->first = child;
}

void children_forget(struct children *c, struct child *child) {
	for (struct child **at = &c->first; *at != NULL; at = &(*at)->next)
		if (*at == child) {
			*at = child->next;
			return;
		}
}

void become_ordinary(void) {
	sigset_t none;

	// The agent's own score would make the program the last one to be chosen when memory is short.
	int score = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
	if (score >= 0)
		(void)!write(score, "0", 1);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
}

// In the new process, between fork and exec: system calls only.
static void become(const struct spawn *s, int report) {
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (s->cgroup_procs != NULL) {
		int procs = open(s->cgroup_procs, O_WRONLY | O_CLOEXEC);
		if (procs >= 0)
			(void)!write(procs, "0", 1);
	}
	become_ordinary();
	setpgid(0, 0);
	if (null >= 0 && dup2(null, 0) == 0 && dup2(s->standard_output >= 0 ? s->standard_output : null, 1) == 1 &&
	    dup2(s->standard_error >= 0 ? s->standard_error : null, 2) == 2 && chdir(s->folder) == 0)
		execve(s->argv[0], (char *const *)(uintptr_t)s->argv, (char *const *)(uintptr_t)s->env);
	int error = errno;
	(void)!write(report, &error, sizeof(error));
	_exit(127);
}

pid_t spawn(const struct spawn *s, struct error *e) {
	int report[2], error = 0;

	if (pipe2(report, O_CLOEXEC) < 0)
		return error_errno(e, "pipe");
	pid_t pid = fork();
	if (pid == 0)
		become(s, report[1]);
	int fork_error = errno;
	close(report[1]);
	cleanup_close int result = report[0];
	if (pid < 0)
		return error_set(e, -fork_error, "cannot start %s: %s", s->argv[0], strerror(fork_error));
	ssize_t n;
	do
		n = read(result, &error, sizeof(error));
	while (n < 0 && errno == EINTR);
	if (n == 0)
		return pid;
	if (n != sizeof(error) || error <= 0)
		error = EIO;
	waitpid(pid, NULL, 0);
	return error_set(e, -error, "cannot run %s: %s", s->argv[0], strerror(error));
}
