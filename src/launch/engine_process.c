// stasisd gets its end of a fresh pair as descriptor 3, the log as standard output and error, and nothing else of ours. If stasis-launch
// is killed, it is killed too (it is made for that): the next stasis-launch starts the next one, which takes over the microVMs.
#include "launch/engine_process.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"
#include "launch/launch.h"

#include <fcntl.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define QUICK_MS 10000
#define BACKOFF_LEAST_MS 100
#define BACKOFF_MOST_MS 10000
#define DESCRIPTORS_MOST 65536
#define PATH_ROOM 600

static int find(const struct options *o, char path[PATH_ROOM], struct error *e) {
	static const char *const below[] = {"", "src/stasisd/", "bin/"};
	for (size_t i = 0; i < sizeof(below) / sizeof(below[0]); i++) {
		struct stat st;
		snprintf(path, PATH_ROOM, "%s/%sstasisd", o->program, below[i]);
		if (stat(path, &st) == 0 && S_ISREG(st.st_mode))
			return 0;
	}
	return error_set(e, -ENOENT, "%s has no stasisd: build first, or name the right folder with --program", o->program);
}

static void be_engine(const struct options *o, const char *path, int sock, pid_t parent) {
	char *argv[4 + OPTIONS_ARGUMENTS_MAX], name[] = "stasisd", option[] = "--config", config[sizeof(o->config)];
	size_t n = 0;
	strcpy(config, o->config);
	argv[n++] = name;
	argv[n++] = option;
	argv[n++] = config;
	for (size_t i = 0; i < o->argument_count; i++)
		argv[n++] = o->arguments[i];
	argv[n] = NULL;
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	struct rlimit descriptors = {.rlim_cur = DESCRIPTORS_MOST, .rlim_max = DESCRIPTORS_MOST};
	setrlimit(RLIMIT_NOFILE, &descriptors);
	umask(027);
	sock = fcntl(sock, F_DUPFD, LAUNCH_STASISD_FD + 1);
	if (sock < 0 || dup2(sock, LAUNCH_STASISD_FD) < 0 || close_range(LAUNCH_STASISD_FD + 1, ~0u, 0) < 0 || setsid() < 0 ||
	    setgroups(0, NULL) < 0 || setresgid(o->gid, o->gid, o->gid) < 0 || setresuid(o->uid, o->uid, o->uid) < 0 ||
	    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		_exit(126);
	// After the change of ids, which clears it.
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(126);
	execv(path, argv);
	log_error("launch.stasisd", LOG_S("message", "cannot execute it"), LOG_S("path", path), LOG_S("error", strerror(errno)));
	_exit(127);
}

int engine_start(struct engine_process *p, const struct options *o, struct error *e) {
	char path[PATH_ROOM];
	int pair[2];
	int code = find(o, path, e);
	if (code < 0)
		return code;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		return error_errno(e, "cannot make a socket pair");
	// stasisd chooses for itself whether its end blocks.
	fcntl(pair[1], F_SETFL, 0);
	pid_t parent = getpid(), pid = fork();
	if (pid == 0)
		be_engine(o, path, pair[1], parent);
	close(pair[1]);
	if (pid < 0) {
		close(pair[0]);
		return error_errno(e, "cannot fork");
	}
	p->pid = pid;
	p->sock = pair[0];
	p->started_ms = monotonic_ms();
	log_info("launch.stasisd", LOG_S("message", "started"), LOG_U("pid", pid), LOG_U("uid", o->uid));
	return 0;
}

void engine_ended(struct engine_process *p) {
	uint64_t now = monotonic_ms(), pause = BACKOFF_LEAST_MS;
	if (p->sock >= 0)
		close(p->sock);
	p->quick_deaths = now - p->started_ms < QUICK_MS ? p->quick_deaths + 1 : 0;
	for (unsigned i = 1; i < p->quick_deaths && pause < BACKOFF_MOST_MS; i++)
		pause *= 2;
	p->restart_ms = now + (pause < BACKOFF_MOST_MS ? pause : BACKOFF_MOST_MS);
	p->pid = 0;
	p->sock = -1;
}
