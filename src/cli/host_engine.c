// The engine on this host; see host_engine.h. The pid file holds the pid of stasis-launch; whether that process still is one is told by its
// executable's name.
#include "cli/host_engine.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PATH_ROOM 1024
#define STOP_TIMEOUT_MS 120000

static pid_t running_pid(const char *home) {
	char path[PATH_ROOM], comm[64] = "";
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "%s/engine.pid", home);
	if (read_file(path, 32, &text, NULL, NULL) < 0)
		return 0;
	pid_t pid = (pid_t)strtol(text, NULL, 10);
	if (pid <= 1)
		return 0;
	snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0 || read(fd, comm, sizeof(comm) - 1) <= 0)
		return 0;
	return strncmp(comm, "stasis-launch", 13) == 0 ? pid : 0;
}

bool host_engine_is_running(const char *home) {
	return running_pid(home) != 0;
}

int host_engine_start(const char *home, const char *program, struct error *e) {
	if (geteuid() != 0)
		return error_set(e, -EPERM,
				 "the engine on this host needs root for namespaces and jails: run 'sudo stasis up', or 'stasis up "
				 "--machine' without root");
	char launch[PATH_ROOM], config[PATH_ROOM], log[PATH_ROOM], pid_path[PATH_ROOM], text[32];
	snprintf(launch, sizeof(launch), "%s/stasis-launch", program);
	snprintf(config, sizeof(config), "%s/engine/config.json", home);
	snprintf(log, sizeof(log), "%s/engine.log", home);
	snprintf(pid_path, sizeof(pid_path), "%s/engine.pid", home);
	cleanup_close int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (out < 0)
		return error_errno(e, "cannot open %s", log);
	pid_t pid = fork();
	if (pid < 0)
		return error_errno(e, "cannot start stasis-launch");
	if (pid == 0) {
		setsid();
		int nothing = open("/dev/null", O_RDWR);
		dup2(nothing, STDIN_FILENO);
		dup2(out, STDOUT_FILENO);
		dup2(out, STDERR_FILENO);
		close_range(3, ~0u, 0);
		execl(launch, "stasis-launch", "--program", program, "--config", config, "--user", "stasis", (char *)NULL);
		_exit(127);
	}
	int n = snprintf(text, sizeof(text), "%d\n", (int)pid);
	return write_file_durably(pid_path, text, (size_t)n, 0644, e);
}

int host_engine_stop(const char *home, struct error *e) {
	pid_t pid = running_pid(home);
	if (pid == 0)
		return 0;
	kill(pid, SIGTERM);
	for (uint64_t end = monotonic_ms() + STOP_TIMEOUT_MS; running_pid(home) != 0; usleep(50 * 1000)) {
		waitpid(pid, NULL, WNOHANG);
		if (monotonic_ms() > end)
			return error_set(e, -ETIMEDOUT, "stasis-launch (pid %d) did not end within %d s", (int)pid, STOP_TIMEOUT_MS / 1000);
	}
	return 0;
}
