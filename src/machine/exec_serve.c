// The machine's side of `stasis machine exec`; see exec.h.
#include "machine/exec.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

// Ports are named after their device's place among all virtio devices; ours is told by its own name.
static int open_port(struct error *e) {
	cleanup_dir DIR *ports = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	while (ports != NULL && (entry = readdir(ports)) != NULL) {
		char path[300], name[64] = "";
		snprintf(path, sizeof(path), "%s/name", entry->d_name);
		cleanup_close int fd = openat(dirfd(ports), path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		ssize_t n = read(fd, name, sizeof(name) - 1);
		if (n <= 0 || strncmp(name, EXEC_PORT_NAME "\n", sizeof(EXEC_PORT_NAME)) != 0)
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		int port = open(path, O_RDWR | O_CLOEXEC);
		return port < 0 ? error_errno(e, "cannot open %s", path) : port;
	}
	return error_set(e, -ENODEV, "the machine has no port named " EXEC_PORT_NAME);
}

static int send_frame(int port, enum exec_kind kind, const void *data, uint32_t size) {
	uint8_t head[5] = {(uint8_t)kind};
	memcpy(head + 1, &size, sizeof(size));
	int r = write_full(port, head, sizeof(head));
	return r < 0 ? r : write_full(port, data, size);
}

// Reads exactly n bytes. While nobody holds the other end the port reads as ended: wait for somebody.
static void read_port(int port, void *to, size_t n) {
	for (size_t done = 0; done < n;) {
		ssize_t got = read(port, (char *)to + done, n - done);
		if (got <= 0) {
			done = 0;
			usleep(50 * 1000);
			continue;
		}
		done += (size_t)got;
	}
}

static pid_t start(const char *command, int output, int errors) {
	pid_t pid = fork();
	if (pid != 0)
		return pid;
	setsid();
	int nothing = open("/dev/null", O_RDWR);
	dup2(nothing, STDIN_FILENO);
	dup2(output, STDOUT_FILENO);
	dup2(errors, STDERR_FILENO);
	close_range(3, ~0u, 0);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

// Copies output until both pipes are closed or the other end of the port has gone; the latter ends the command.
static void relay(int port, pid_t pid, int output, int errors) {
	struct pollfd wait[] = {{.fd = output, .events = POLLIN}, {.fd = errors, .events = POLLIN}, {.fd = port}};
	while (wait[0].fd >= 0 || wait[1].fd >= 0) {
		if (poll(wait, 3, -1) < 0)
			continue;
		if ((wait[2].revents & POLLHUP) != 0) {
			kill(-pid, SIGKILL);
			return;
		}
		for (int i = 0; i < 2; i++) {
			char data[EXEC_DATA_MAX];
			if (wait[i].fd < 0 || wait[i].revents == 0)
				continue;
			ssize_t n = read(wait[i].fd, data, sizeof(data));
			if (n <= 0 || send_frame(port, i == 0 ? EXEC_OUTPUT : EXEC_ERROR, data, (uint32_t)n) < 0)
				wait[i].fd = -1;
		}
	}
}

static void run_command(int port, const char *command) {
	int output[2], errors[2];
	uint32_t code = 127;
	if (pipe2(output, O_CLOEXEC) < 0)
		return;
	if (pipe2(errors, O_CLOEXEC) < 0) {
		close_all(output, 2);
		return;
	}
	pid_t pid = start(command, output[1], errors[1]);
	close(output[1]);
	close(errors[1]);
	if (pid > 0) {
		int status;
		relay(port, pid, output[0], errors[0]);
		while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
			;
		code = WIFEXITED(status) ? (uint32_t)WEXITSTATUS(status) : 128u + (uint32_t)WTERMSIG(status);
	}
	close(output[0]);
	close(errors[0]);
	send_frame(port, EXEC_STATUS, &code, sizeof(code));
}

int exec_serve(struct error *e) {
	static char command[EXEC_COMMAND_MAX + 1];
	cleanup_close int port = open_port(e);
	if (port < 0)
		return port;
	for (;;) {
		uint8_t head[5];
		uint32_t size;
		read_port(port, head, sizeof(head));
		memcpy(&size, head + 1, sizeof(size));
		if (head[0] != EXEC_RUN || size > EXEC_COMMAND_MAX)
			continue;
		read_port(port, command, size);
		command[size] = '\0';
		run_command(port, command);
	}
}
