// stasis-machine-init: PID 1 of the machine, the only program in its initramfs besides kernel modules.
//
// It loads the modules, builds a root file system out of what the host exports (init_root.c), configures the network (init_net.c), starts
// stasis-launch, and then waits: for children to reap, for the power button (that is how `stasis down` asks), for the engine's end. A
// stasis-launch that was killed is started again, as a service manager does on a host: the microVMs outlive it, and the next one takes them over.
// When it has ended by itself, or is killed again and again, the state disk is unmounted and the machine powers off.
//
// Lines that start with "machine: " are read by the host (src/machine/machine.c): "machine: ready …", "machine: failed …", "machine: engine ended …".
#include "machine/init.h"
#include "machine/exec.h"

#include "base/cleanup.h"
#include "base/clock.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/input.h>
#include <linux/reboot.h>
#include <linux/rtc.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BUTTONS_MAX 8
#define ENGINE_GRACE_MS 120000 // stasisd suspends every running microVM before it ends
#define CLOCK_CHECK_MS 30000
#define CLOCK_STEP_S 2
#define RESTARTS_MOST 5 // of stasis-launch, in RESTARTS_WINDOW_MS
#define RESTARTS_WINDOW_MS 60000

static void say(const char *what, const char *detail) {
	printf("machine: %s%s%s (%.2f s)\n", what, detail[0] != '\0' ? " " : "", detail, (double)clock_ns(CLOCK_BOOTTIME) / 1e9);
	fflush(stdout);
}

static void power_off(void) {
	sync();
	if (umount(INIT_STATE) < 0 && errno != EINVAL)
		umount2(INIT_STATE, MNT_DETACH);
	sync();
	reboot(LINUX_REBOOT_CMD_POWER_OFF);
	for (;;)
		pause();
}

static void end_everybody(void) {
	kill(-1, SIGTERM);
	uint64_t end = monotonic_ms() + 2000;
	bool killed = false;
	for (;;) {
		pid_t p = waitpid(-1, NULL, WNOHANG);
		if (p < 0)
			return;
		if (p > 0)
			continue;
		if (!killed && monotonic_ms() > end) {
			kill(-1, SIGKILL);
			killed = true;
		}
		usleep(10000);
	}
}

static void fail(const struct error *e) {
	say("failed:", e->message);
	power_off();
}

static int find_program(const char *name, const char *part, char *to, size_t size) {
	snprintf(to, size, "%s/%s", INIT_PROGRAM, name);
	if (access(to, X_OK) == 0)
		return 0;
	snprintf(to, size, "%s/src/%s/%s", INIT_PROGRAM, part, name);
	return access(to, X_OK) == 0 ? 0 : -errno;
}

static pid_t start_engine(const struct init_options *o, struct error *e) {
	char path[128], pool[16];
	if (find_program("stasis-launch", "launch", path, sizeof(path)) < 0)
		return error_set(e, -ENOENT, "the program's folder has no stasis-launch: build first (`make`)");
	snprintf(pool, sizeof(pool), "%u", o->pool);
	char *argv[20];
	int n = 0;
	static char program[] = INIT_PROGRAM, config[] = INIT_CONFIG "/config.json", pool_option[] = "--pool";
	argv[n++] = path;
	argv[n++] = (char[]){"--program"};
	argv[n++] = program;
	argv[n++] = (char[]){"--config"};
	argv[n++] = config;
	argv[n++] = (char[]){"--user"};
	argv[n++] = (char[]){"stasis"};
	argv[n++] = (char[]){"--resolvers"};
	argv[n++] = (char[]){"10.0.2.3"};
	argv[n++] = (char[]){"--closed"};
	argv[n++] = (char[]){"10.0.2.0/24"};
	if (o->pool > 0) {
		argv[n++] = pool_option;
		argv[n++] = pool;
	}
	argv[n] = NULL;
	pid_t pid = fork();
	if (pid < 0)
		return error_errno(e, "cannot start stasis-launch");
	if (pid == 0) {
		sigset_t none;
		sigemptyset(&none);
		sigprocmask(SIG_SETMASK, &none, NULL);
		setsid();
		char *const environment[] = {(char[]){"PATH=/usr/sbin:/usr/bin"}, (char[]){"HOME=/root"}, NULL};
		execve(path, argv, environment);
		fprintf(stderr, "machine: failed: cannot execute %s: %s\n", path, strerror(errno));
		_exit(127);
	}
	return pid;
}

// `stasis machine exec`: a process of its own, which waits for commands of the machine's owner.
static void start_exec_server(void) {
	if (fork() != 0)
		return;
	struct error e = {.message = ""};
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	setsid();
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", 1);
	setenv("HOME", "/root", 1);
	// The port's name arrives a while after its driver.
	for (int tries = 0; exec_serve(&e) == -ENODEV && tries < 100; tries++)
		usleep(100000);
	printf("machine: exec: %s\n", e.message);
	fflush(stdout);
	_exit(1);
}

static size_t open_buttons(struct pollfd *to, size_t room) {
	size_t n = 0;
	cleanup_dir DIR *d = opendir("/dev/input");
	struct dirent *entry;
	while (d != NULL && n < room && (entry = readdir(d)) != NULL) {
		if (strncmp(entry->d_name, "event", 5) != 0)
			continue;
		int fd = openat(dirfd(d), entry->d_name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
		if (fd >= 0)
			to[n++] = (struct pollfd){.fd = fd, .events = POLLIN};
	}
	return n;
}

static bool is_power_button(int fd) {
	struct input_event event;
	bool pressed = false;
	while (read(fd, &event, sizeof(event)) == (ssize_t)sizeof(event))
		pressed |= event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
	return pressed;
}

// The virtual real-time clock follows the host's clock; ours stands still while a laptop sleeps.
static void follow_host_clock(void) {
	cleanup_close int fd = open("/dev/rtc0", O_RDONLY | O_CLOEXEC);
	struct rtc_time r;
	if (fd < 0 || ioctl(fd, RTC_RD_TIME, &r) < 0)
		return;
	struct tm t = {.tm_sec = r.tm_sec,
		       .tm_min = r.tm_min,
		       .tm_hour = r.tm_hour,
		       .tm_mday = r.tm_mday,
		       .tm_mon = r.tm_mon,
		       .tm_year = r.tm_year};
	struct timespec host = {.tv_sec = timegm(&t)};
	int64_t ahead = host.tv_sec - time(NULL);
	if (ahead > CLOCK_STEP_S || ahead < -CLOCK_STEP_S) {
		clock_settime(CLOCK_REALTIME, &host);
		say("clock set from the host's", "");
	}
}

// Starts an engine that was killed again. Returns false when that has happened too often, or cannot be done.
static bool restart_engine(const struct init_options *o, pid_t *engine) {
	static uint64_t restarts[RESTARTS_MOST];
	static unsigned next;
	struct error e;
	uint64_t now = monotonic_ms();
	if (restarts[next] != 0 && now - restarts[next] < RESTARTS_WINDOW_MS)
		return false;
	restarts[next] = now;
	next = (next + 1) % RESTARTS_MOST;
	say("engine killed; starting it again", "");
	*engine = start_engine(o, &e);
	return *engine > 0;
}

// Waits for the engine's end; passes SIGTERM and the power button on to it. Returns its wait status.
static int watch(const struct init_options *o, pid_t engine, int signals) {
	struct pollfd fds[1 + BUTTONS_MAX];
	fds[0] = (struct pollfd){.fd = signals, .events = POLLIN};
	size_t n = 1 + open_buttons(fds + 1, BUTTONS_MAX);
	uint64_t deadline = 0;
	for (;;) {
		poll(fds, n, deadline != 0 ? 1000 : CLOCK_CHECK_MS);
		bool stop = false;
		struct signalfd_siginfo info;
		while (read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info))
			stop |= info.ssi_signo != SIGCHLD;
		for (size_t i = 1; i < n; i++)
			stop |= (fds[i].revents & POLLIN) != 0 && is_power_button(fds[i].fd);
		if (stop && deadline == 0) {
			say("stopping", "");
			kill(engine, SIGTERM);
			deadline = monotonic_ms() + ENGINE_GRACE_MS;
		}
		if (deadline != 0 && monotonic_ms() > deadline)
			kill(engine, SIGKILL);
		int status;
		pid_t p;
		while ((p = waitpid(-1, &status, WNOHANG)) > 0)
			if (p == engine && (!WIFSIGNALED(status) || deadline != 0 || !restart_engine(o, &engine)))
				return status;
		follow_host_clock();
	}
}

int main(void) {
	struct error e = {.code = 0};
	struct init_options options;
	if (getpid() != 1) {
		fprintf(stderr, "stasis-machine-init is the first process of the machine; `stasis up` starts it\n");
		return 2;
	}
	if (init_early_mounts(&e) < 0)
		fail(&e);
	say("user space", "");
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	reboot(LINUX_REBOOT_CMD_CAD_OFF);
	init_options_read(&options);
	pid_t modules = init_modules();
	if (init_root(&options, &e) < 0 || init_network(&e) < 0 || init_state_disk(&options, &e) < 0)
		fail(&e);
	if (modules > 0)
		waitpid(modules, NULL, 0);
	pid_t engine = start_engine(&options, &e);
	if (engine < 0)
		fail(&e);
	start_exec_server();
	say("ready", "");
	int status = watch(&options, engine, signals);
	char text[64];
	snprintf(text, sizeof(text), "%s %d", WIFSIGNALED(status) ? "by signal" : "with status",
		 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	say("engine ended", text);
	end_everybody();
	power_off();
}
