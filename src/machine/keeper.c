// The machine's keeper: a small background process that starts QEMU with its serial console, standard output and error in one pipe, and
// copies that into console.log, of which it keeps at most two lengths of CONSOLE_LOG_BYTES. It ends when QEMU has ended.
//
// A machine whose kernel panics is started again, at most RESTARTS_MOST times in RESTARTS_WINDOW_MS and never while it was still starting (that is the
// starter's to report): what slept is there again, what ran is lost. Its panic can be read in the log.
//
// Keeper and QEMU share the descriptor of the lock file. The lock is therefore held exactly as long as one of them lives, even if one is killed.
#include "machine/keeper.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define LOG_PATH_MAX 1100
#define LISTEN_BACKLOG 4096
#define PANIC "Kernel panic - not syncing"
#define READY "machine: ready" // what its init says; until then it counts as starting
#define RESTARTS_MOST 5
#define RESTARTS_WINDOW_MS (3600 * 1000)

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

// QEMU's user network listens on the host's ports with a backlog of 1 (libslirp, tcpx_listen()): of a burst of connections the host's kernel would
// drop most, and their clients would wait for seconds and minutes. The backlog belongs to the socket, which a parent may borrow.
static void widen_backlogs(pid_t qemu) {
	char folder[32];
	snprintf(folder, sizeof(folder), "/proc/%d/fd", (int)qemu);
	cleanup_close int process = pidfd_open(qemu, 0);
	DIR *fds = opendir(folder);
	for (struct dirent *d; fds != NULL && process >= 0 && (d = readdir(fds)) != NULL;) {
		cleanup_close int fd = d->d_name[0] == '.' ? -1 : pidfd_getfd(process, atoi(d->d_name), 0);
		int listens = 0, domain = 0;
		socklen_t size = sizeof(int);
		if (fd >= 0 && getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) == 0 && listens &&
		    getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_INET)
			listen(fd, LISTEN_BACKLOG);
	}
	if (fds != NULL)
		closedir(fds);
}

// Whether the console has said `text`, which may come in pieces; *matched is how much of it the pieces so far end with.
static bool said(const char *text, const char *data, size_t size, size_t *matched) {
	for (size_t i = 0; i < size && text[*matched] != '\0'; i++)
		*matched = data[i] == text[*matched] ? *matched + 1 : data[i] == text[0];
	return text[*matched] == '\0';
}

// One life of QEMU. Returns true when it has ended by a panic of the machine's kernel, after the machine was ready.
static bool run_once(const char *pid_file, struct console *console, char *const *argv, int lock) {
	char text[96], data[16384];
	int fds[2], status = 0;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return false;
	pid_t qemu = start_qemu(argv, fds[1], lock);
	close(fds[1]);
	if (qemu < 0) {
		close(fds[0]);
		return false;
	}
	int size = snprintf(text, sizeof(text), "%d\n", (int)qemu);
	write_file_durably(pid_file, text, (size_t)size, 0600, NULL);
	bool ready = false, panicked = false, first = true;
	size_t of_ready = 0, of_panic = 0;
	ssize_t n;
	while ((n = read(fds[0], data, sizeof(data))) > 0 || (n < 0 && errno == EINTR)) {
		if (n < 0)
			continue;
		if (first) // it has its sockets before the guest says a word
			widen_backlogs(qemu);
		first = false;
		keep(console, data, (size_t)n);
		ready = said(READY, data, (size_t)n, &of_ready);
		panicked = said(PANIC, data, (size_t)n, &of_panic);
	}
	close(fds[0]);
	while (waitpid(qemu, &status, 0) < 0 && errno == EINTR)
		;
	size = snprintf(text, sizeof(text), "machine: QEMU ended %s %d\n", WIFSIGNALED(status) ? "by signal" : "with status",
			WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	keep(console, text, (size_t)size);
	unlink(pid_file);
	return ready && panicked;
}

static void run(const char *folder, char *const *argv, int lock) {
	static const char again[] = "machine: its kernel panicked; starting it again\n";
	struct console console = {.fd = -1};
	char pid_file[LOG_PATH_MAX];
	uint64_t restarts[RESTARTS_MOST] = {0};
	snprintf(console.path, sizeof(console.path), "%s/console.log", folder);
	snprintf(console.old, sizeof(console.old), "%s.1", console.path);
	snprintf(pid_file, sizeof(pid_file), "%s/pid", folder);
	turn_over(&console);
	for (unsigned i = 0;; i = (i + 1) % RESTARTS_MOST) {
		bool panicked = run_once(pid_file, &console, argv, lock);
		uint64_t now = monotonic_ms();
		if (!panicked || (restarts[i] != 0 && now - restarts[i] < RESTARTS_WINDOW_MS))
			return;
		restarts[i] = now;
		keep(&console, again, sizeof(again) - 1);
	}
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
