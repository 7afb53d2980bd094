// The machine's keeper: a small background process that starts QEMU with its serial console, standard output and error in one pipe, and
// copies that into console.log, of which it keeps at most two lengths of CONSOLE_LOG_BYTES. It ends when QEMU has ended.
//
// Keeper and QEMU share the descriptor of the lock file. The lock is therefore held exactly as long as one of them lives, even if one is killed.
#include "machine/keeper.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOG_PATH_MAX 1100

struct console {
	char path[LOG_PATH_MAX], old[LOG_PATH_MAX + 2];
	int fd;
	size_t written;
};

static void turn_over(struct console *c) {
	if (c->fd >= 0)
		close(c->fd);
	rename(c->path, c->old);
	c->fd = open(c->path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	c->written = 0;
}

static void keep(struct console *c, const char *data, size_t size) {
	if (c->written + size > CONSOLE_LOG_BYTES)
		turn_over(c);
	// A full disk costs the log, not the machine.
	if (c->fd >= 0 && write_full(c->fd, data, size) == 0)
		c->written += size;
}

static pid_t start_qemu(char *const *argv, int output, int lock) {
	pid_t pid = fork();
	if (pid != 0)
		return pid;
	int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
	dup2(nothing, STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	dup2(output, STDERR_FILENO);
	fcntl(lock, F_SETFD, 0);
	execv(argv[0], argv);
	dprintf(STDERR_FILENO, "qemu-system-x86_64: cannot be executed: %s\n", strerror(errno));
	_exit(127);
}

static void run(const char *folder, char *const *argv, int lock) {
	struct console console = {.fd = -1};
	char path[LOG_PATH_MAX], text[96], data[16384];
	int fds[2], status = 0;
	snprintf(console.path, sizeof(console.path), "%s/console.log", folder);
	snprintf(console.old, sizeof(console.old), "%s.1", console.path);
	turn_over(&console);
	if (pipe2(fds, O_CLOEXEC) < 0)
		return;
	pid_t qemu = start_qemu(argv, fds[1], lock);
	close(fds[1]);
	if (qemu < 0)
		return;
	snprintf(path, sizeof(path), "%s/pid", folder);
	int size = snprintf(text, sizeof(text), "%d\n", (int)qemu);
	write_file_durably(path, text, (size_t)size, 0600, NULL);
	ssize_t n;
	while ((n = read(fds[0], data, sizeof(data))) > 0 || (n < 0 && errno == EINTR))
		if (n > 0)
			keep(&console, data, (size_t)n);
	while (waitpid(qemu, &status, 0) < 0 && errno == EINTR)
		;
	size = snprintf(text, sizeof(text), "machine: QEMU ended %s %d\n", WIFSIGNALED(status) ? "by signal" : "with status",
			WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	keep(&console, text, (size_t)size);
	unlink(path);
}

int keeper_start(const char *folder, char *const *argv, int lock, struct error *e) {
	pid_t pid = fork();
	if (pid < 0)
		return error_errno(e, "cannot start the machine");
	if (pid > 0) {
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
		return 0;
	}
	setsid();
	if (fork() != 0)
		_exit(0);
	// Nothing of the caller's may stay open in here: its pipes would never end.
	int nothing = open("/dev/null", O_RDWR);
	int kept = fcntl(lock, F_DUPFD_CLOEXEC, 16);
	for (int i = 0; i < 3; i++)
		dup2(nothing, i);
	close_range(3, (unsigned)kept - 1, 0);
	close_range((unsigned)kept + 1, ~0u, 0);
	signal(SIGHUP, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	prctl(PR_SET_NAME, "stasis-machine");
	if (chdir("/") == 0)
		run(folder, argv, kept);
	_exit(0);
}
