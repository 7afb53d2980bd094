// Running programs. One pipe carries both outputs, so that their order is the one in which they were written.

#include "images/builder/run.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <ctype.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

static bool starts_with(const char *s, const char *prefix) {
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

static bool is_remark(const char *line) {
	static const char *const prefixes[] = {"STEP ",
					       "time=\"",
					       "COMMIT",
					       "Trying to pull",
					       "Getting image source",
					       "Copying blob",
					       "Copying config",
					       "Writing manifest",
					       "Storing signatures",
					       "Resolved \"",
					       "Resolving \"",
					       "--> ",
					       "[stasis] ",
					       "subprocess exited with status"};
	for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++)
		if (starts_with(line, prefixes[i]))
			return true;
	return false;
}

static void line_ended(struct run_lines *l) {
	while (l->length > 0 && isspace((unsigned char)l->line[l->length - 1]))
		l->length--;
	l->line[l->length] = 0;
	const char *text = l->line;
	while (isspace((unsigned char)*text))
		text++;
	if (*text == 0) {
		l->length = 0;
		return;
	}
	if (strcasestr(text, "no space left on device") != NULL)
		l->no_space = true;
	if (starts_with(text, "Error: ") && (strstr(text, " STEP \"") != NULL || l->failure[0] == 0))
		strcpy(l->failure, text + strlen("Error: "));
	else if (starts_with(text, "error building at STEP "))
		strcpy(l->failure, text + strlen("error "));
	else if (!is_remark(text))
		strcpy(l->output, text);
	l->length = 0;
}

void run_lines_feed(struct run_lines *l, const char *data, size_t size) {
	for (size_t i = 0; i < size; i++) {
		char c = data[i];
		if (c == '\n' || c == '\r')
			line_ended(l);
		else if (l->length < sizeof(l->line) - 1)
			l->line[l->length++] = (unsigned char)c < 0x20 || c == 0x7f ? ' ' : c;
	}
}

void run_lines_end(struct run_lines *l) {
	if (l->length > 0)
		line_ended(l);
}

// The child's side of fork(): never returns.
static void become(const char *const argv[], const struct run_options *o, int output) {
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (null < 0 || dup2(null, 0) < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
		_exit(126);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (o->no_network && unshare(CLONE_NEWNET) < 0) {
		dprintf(2, "cannot make a network namespace: %s\n", strerror(errno));
		_exit(126);
	}
	if (o->folder != NULL && chdir(o->folder) < 0) {
		dprintf(2, "cannot enter %s: %s\n", o->folder, strerror(errno));
		_exit(126);
	}
	// execvpe() does not write to what it is given; its type is older than const.
	char **arguments = (char **)(uintptr_t)argv;
	char **environment = o->environment != NULL ? (char **)(uintptr_t)o->environment : environ;
	execvpe(argv[0], arguments, environment);
	dprintf(2, "cannot run %s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

// Moves what the pipe has to standard output. Returns 0 at the end of the pipe or when nothing is there, otherwise a positive value.
static ssize_t pass_on(int from, bool quiet, struct run_lines *lines) {
	static char buffer[65536];
	ssize_t n = read(from, buffer, sizeof(buffer));
	if (n < 0)
		return errno == EINTR ? 1 : 0;
	if (n > 0) {
		if (!quiet)
			write_full(1, buffer, (size_t)n);
		run_lines_feed(lines, buffer, (size_t)n);
	}
	return n;
}

int run_program(const char *const argv[], const struct run_options *o, struct run_lines *ret, struct error *e) {
	static const struct run_options plain;
	struct run_lines ignored;
	struct run_lines *lines = ret != NULL ? ret : &ignored;
	memset(lines, 0, sizeof(*lines));
	o = o != NULL ? o : &plain;

	int ends[2];
	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_errno(e, "cannot make a pipe for %s", argv[0]);
	cleanup_close int from = ends[0];
	cleanup_close int to = ends[1];
	pid_t child = fork();
	if (child < 0)
		return error_errno(e, "cannot start %s", argv[0]);
	if (child == 0)
		become(argv, o, to);
	close(take_fd(&to));
	cleanup_close int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
	if (pidfd >= 0) {
		fcntl(from, F_SETFL, O_NONBLOCK);
		for (bool over = false; !over;) {
			struct pollfd wait_for[2] = {{.fd = from, .events = POLLIN}, {.fd = pidfd, .events = POLLIN}};
			if (poll(wait_for, 2, -1) < 0 && errno != EINTR)
				break;
			if (wait_for[0].revents != 0)
				over = pass_on(from, o->quiet, lines) == 0 && (wait_for[0].revents & POLLHUP) != 0;
			else
				over = wait_for[1].revents != 0;
		}
	}
	while (pass_on(from, o->quiet, lines) > 0)
		;
	run_lines_end(lines);
	int status;
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return error_errno(e, "cannot wait for %s", argv[0]);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int run_checked(const char *const argv[], struct error *e) {
	struct run_lines lines;
	int r = run_program(argv, &(struct run_options){.quiet = true}, &lines, e);
	if (r > 0)
		return error_set(e, lines.no_space ? -ENOSPC : -EIO, "%s failed with exit status %d: %s", argv[0], r, lines.output);
	return r;
}
