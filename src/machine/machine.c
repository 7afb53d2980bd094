// Starting, stopping and looking at the machine; see machine.h. QEMU's command line is qemu.c's business, the background process keeper.c's.
//
// That the machine runs is told by the lock on `<home>/machine/lock`, which its processes hold. How its start comes along is read from the
// console log, where its init reports in lines that begin with "machine: " (init.c).
#include "machine/machine.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "machine/keeper.h"
#include "machine/qemu.h"
#include "machine/qmp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TIMEOUT_MS 180000
#define KERNEL_TIMEOUT_MS 30000
#define KERNEL_ATTEMPTS 3
#define STOP_TIMEOUT_MS 150000
#define CERTIFICATES "/etc/ssl/certs/ca-certificates.crt"
#define CPUS_MOST 32

extern char **environ;

static int path_of(const char *home, const char *name, char to[QEMU_PATH_MAX], struct error *e) {
	if (snprintf(to, QEMU_PATH_MAX, "%s/machine%s%s", home, name[0] != '\0' ? "/" : "", name) >= QEMU_PATH_MAX)
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", home);
	return 0;
}

// Opens the lock file and tries to lock it. Returns the descriptor, -EWOULDBLOCK when the machine's processes hold it, or another negative errno.
static int take_lock(const char *home, bool create) {
	char path[QEMU_PATH_MAX];
	int code = path_of(home, "lock", path, NULL);
	if (code < 0)
		return code;
	int fd = open(path, O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0600);
	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return fd;
	code = -errno;
	close(fd);
	return code;
}

bool machine_is_running(const char *home) {
	int fd = take_lock(home, false);
	if (fd >= 0)
		close(fd);
	return fd == -EWOULDBLOCK;
}

static pid_t read_pid(const char *home) {
	char path[QEMU_PATH_MAX];
	cleanup_free char *text = NULL;
	if (path_of(home, "pid", path, NULL) < 0 || read_file(path, 32, &text, NULL, NULL) < 0)
		return 0;
	long pid = strtol(text, NULL, 10);
	return pid > 1 ? (pid_t)pid : 0;
}

static int check_port(uint16_t port, const char *what, struct error *e) {
	cleanup_close int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int on = 1;
	if (fd < 0)
		return error_errno(e, "cannot make a socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (bind(fd, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(fd, 1) < 0)
		return error_set(e, -errno, "port %u on 127.0.0.1 (%s) cannot be used: %s; end what uses it, or choose other ports", port,
				 what, strerror(errno));
	return 0;
}

static uint64_t available_memory_mib(void) {
	cleanup_file FILE *f = fopen("/proc/meminfo", "re");
	char line[256];
	unsigned long long kib = 0;
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			return kib >> 10;
	return 0;
}

static int choose_size(struct machine_options *o, struct error *e) {
	if (o->cpus == 0)
		o->cpus = MACHINE_CPUS;
	if (o->cpus > CPUS_MOST)
		o->cpus = CPUS_MOST;
	uint64_t available = available_memory_mib();
	if (o->memory_mib != 0 && o->memory_mib < 1024)
		return error_set(e, -EINVAL, "%u MiB are too few for the machine: give it at least 1024", o->memory_mib);
	if (o->memory_mib > available)
		return error_set(e, -ENOMEM, "the machine shall have %u MiB of memory, but only %llu MiB are available", o->memory_mib,
				 (unsigned long long)available);
	if (o->memory_mib == 0)
		o->memory_mib = machine_default_memory(available);
	if (o->memory_mib == 0)
		return error_set(
			e, -ENOMEM,
			"the machine needs %u MiB of memory, only %llu MiB are available: end something, or set a smaller size (--memory)",
			MACHINE_MEMORY_LEAST_MIB, (unsigned long long)available);
	return 0;
}

static int check_asset(const char *program, const char *name, char to[QEMU_PATH_MAX], struct error *e) {
	if (snprintf(to, QEMU_PATH_MAX, "%s/assets/%s", program, name) >= QEMU_PATH_MAX)
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", program);
	return access(to, R_OK) == 0 ? 0 : error_errno(e, "%s is missing: make the assets first (`make assets`)", to);
}

static int check_host(const struct machine_options *o, struct error *e) {
	struct stat st;
	if (lstat("/lib64", &st) < 0 || !S_ISLNK(st.st_mode))
		return error_set(e, -ENOTSUP, "this host keeps /lib64 apart from /usr: the machine needs a distribution with merged /usr");
	char path[QEMU_PATH_MAX];
	int code = path_of(o->home, "exec.sock", path, e);
	if (code < 0)
		return code;
	if (strlen(path) >= sizeof(((struct sockaddr_un *)0)->sun_path))
		return error_set(e, -ENAMETOOLONG, "%s is too long for a socket's name: set STASIS_HOME to a shorter path", path);
	if ((code = check_port(o->api_port, "API", e)) < 0 || (code = check_port(o->artifacts_port, "artifact store", e)) < 0)
		return code;
	return check_port(o->edge_port, "edge", e);
}

static int run_mke2fs(const char *path, struct error *e) {
	char mke2fs[QEMU_PATH_MAX];
	if (find_executable("mke2fs", mke2fs, sizeof(mke2fs)) < 0)
		return error_set(e, -ENOENT, "mke2fs is not installed (Debian: `apt-get install e2fsprogs`)");
	// Few inodes and a small journal: large files prevail, and the file on the host stays small.
	char *const argv[] = {mke2fs,
			      (char[]){"-q"},
			      (char[]){"-F"},
			      (char[]){"-t"},
			      (char[]){"ext4"},
			      (char[]){"-m"},
			      (char[]){"0"},
			      (char[]){"-i"},
			      (char[]){"65536"},
			      (char[]){"-J"},
			      (char[]){"size=64"},
			      (char[]){"-L"},
			      (char[]){"stasis"},
			      (char[]){"-E"},
			      (char[]){"lazy_itable_init=1,lazy_journal_init=1,nodiscard"},
			      (char *)(uintptr_t)path,
			      NULL};
	pid_t pid;
	int status = 0;
	int code = posix_spawn(&pid, mke2fs, NULL, NULL, argv, environ);
	if (code != 0)
		return error_set(e, -code, "cannot execute %s: %s", mke2fs, strerror(code));
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		return error_set(e, -EIO, "mke2fs could not make the state disk %s", path);
	return 0;
}

// Makes the state disk under another name first: a half-made one is never taken for a disk.
static int make_state_disk(const char *home, machine_progress progress, void *arg, struct error *e) {
	char path[QEMU_PATH_MAX], fresh[QEMU_PATH_MAX];
	struct stat st;
	int code = path_of(home, "state.ext4", path, e);
	if (code < 0 || (code = path_of(home, "state.ext4.new", fresh, e)) < 0)
		return code;
	if (stat(path, &st) == 0)
		return 0;
	if (progress != NULL)
		progress(arg, "making the state disk");
	unlink(fresh);
	cleanup_close int fd = open(fresh, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot create %s", fresh);
	if (ftruncate(fd, (off_t)MACHINE_DISK_BYTES) < 0)
		return error_errno(e, "the file system of %s does not take a sparse file of %llu GiB", home, MACHINE_DISK_BYTES >> 30);
	code = run_mke2fs(fresh, e);
	if (code < 0)
		return code;
	if (fsync(fd) < 0 || rename(fresh, path) < 0)
		return error_errno(e, "cannot create %s", path);
	return 0;
}

// The engine inside trusts the certificates that the host trusts: they travel with the configuration.
static int copy_certificates(const char *home, struct error *e) {
	cleanup_free char *data = NULL;
	size_t size = 0;
	char path[QEMU_PATH_MAX];
	if (read_file(CERTIFICATES, 4u << 20, &data, &size, NULL) < 0)
		return 0;
	snprintf(path, sizeof(path), "%s/engine/ca-certificates.crt", home);
	return write_file_durably(path, data, size, 0644, e);
}

// The last line of the console log with that beginning, its beginning removed; false when there is none.
static bool find_line(const char *log, const char *beginning, char *to, size_t size) {
	bool found = false;
	size_t n = strlen(beginning);
	for (const char *line = log; line != NULL && *line != '\0';) {
		if (strncmp(line, beginning, n) == 0) {
			snprintf(to, size, "%.*s", (int)strcspn(line + n, "\r\n"), line + n);
			found = true;
		}
		line = strchr(line, '\n');
		line = line == NULL ? NULL : line + 1;
	}
	return found;
}

// Explains a machine that ended while it started.
static int explain_end(const char *log, const char *path, struct error *e) {
	char text[320];
	if (find_line(log, "machine: failed: ", text, sizeof(text)))
		return error_set(e, -EIO, "the machine could not start: %s", text);
	if (find_line(log, "qemu-system-x86_64: ", text, sizeof(text)))
		return error_set(e, strstr(text, "lock") != NULL ? -EBUSY : -EIO, "QEMU could not start the machine: %s", text);
	if (find_line(log, "machine: engine ended ", text, sizeof(text)))
		return error_set(e, -EIO, "the engine ended in the machine (%s); its log: %s", text, path);
	return error_set(e, -EIO, "the machine ended while it started; its log: %s", path);
}

// -EAGAIN: the kernel has not reached user space within KERNEL_TIMEOUT_MS (it takes 2 to 5 s).
static int follow_start(const char *home, machine_progress progress, void *arg, struct error *e) {
	char path[QEMU_PATH_MAX], text[320];
	int code = path_of(home, "console.log", path, e);
	if (code < 0)
		return code;
	bool user_space = false;
	uint64_t start = monotonic_ms();
	for (uint64_t now = start; now < start + START_TIMEOUT_MS; usleep(20000), now = monotonic_ms()) {
		// In this order: what a machine that has ended has written is all there.
		bool running = machine_is_running(home);
		cleanup_free char *log = NULL;
		read_file(path, 2 * CONSOLE_LOG_BYTES, &log, NULL, NULL);
		if (log != NULL && running && find_line(log, "machine: ready", text, sizeof(text)))
			return 0;
		if (!running)
			return explain_end(log != NULL ? log : "", path, e);
		if (!user_space && log != NULL && (user_space = find_line(log, "machine: user space", text, sizeof(text))) &&
		    progress != NULL)
			progress(arg, "the machine's kernel is up");
		if (!user_space && now > start + KERNEL_TIMEOUT_MS)
			return error_set(e, -EAGAIN, "the machine's kernel did not start within %d s; its log: %s",
					 KERNEL_TIMEOUT_MS / 1000, path);
	}
	return error_set(e, -ETIMEDOUT, "the machine did not start within %d s; its log: %s", START_TIMEOUT_MS / 1000, path);
}

static int launch(const struct machine_options *o, int lock, machine_progress progress, void *arg, struct error *e) {
	char qemu[QEMU_PATH_MAX], kernel[QEMU_PATH_MAX], initrd[QEMU_PATH_MAX], folder[QEMU_PATH_MAX];
	int code = qemu_find(qemu, e);
	if (code < 0 || (code = check_asset(o->program, "machine.vmlinux", kernel, e)) < 0 ||
	    (code = check_asset(o->program, "machine.initrd", initrd, e)) < 0 || (code = check_host(o, e)) < 0 ||
	    (code = make_state_disk(o->home, progress, arg, e)) < 0 || (code = copy_certificates(o->home, e)) < 0 ||
	    (code = path_of(o->home, "", folder, e)) < 0)
		return code;
	struct qemu_command command;
	code = qemu_command_build(o, qemu, kernel, initrd, &command, e);
	if (code < 0)
		return code;
	if (progress != NULL)
		progress(arg, "starting the machine");
	// The last time's log makes room: nothing in it may be taken for news.
	char log[QEMU_PATH_MAX], old[QEMU_PATH_MAX];
	if (path_of(o->home, "console.log", log, NULL) == 0 && path_of(o->home, "console.log.1", old, NULL) == 0)
		rename(log, old);
	code = keeper_start(folder, command.argv, lock, e);
	qemu_command_free(&command);
	return code;
}

static bool wait_for_end(const char *home, unsigned timeout_ms) {
	for (uint64_t end = monotonic_ms() + timeout_ms; machine_is_running(home); usleep(20000))
		if (monotonic_ms() > end)
			return false;
	return true;
}

// QEMU is ended at once; the state disk was not mounted yet or is a journal's to mend.
static void stop_hung(const char *home) {
	char path[QEMU_PATH_MAX];
	if (path_of(home, "qmp.sock", path, NULL) == 0 && qmp_execute(path, "quit", NULL, NULL) == 0 && wait_for_end(home, 10000))
		return;
	pid_t pid = read_pid(home);
	if (pid > 0 && machine_is_running(home))
		kill(pid, SIGKILL);
	wait_for_end(home, 10000);
}

static int start_once(struct machine_options *o, machine_progress progress, void *arg, struct error *e) {
	cleanup_close int lock = take_lock(o->home, true);
	if (lock == -EWOULDBLOCK)
		return error_set(e, -EALREADY, "the machine of %s runs already (`stasis status`)", o->home);
	if (lock < 0)
		return error_set(e, lock, "cannot lock %s/machine/lock: %s", o->home, strerror(-lock));
	int code = choose_size(o, e);
	if (code < 0 || (code = launch(o, lock, progress, arg, e)) < 0)
		return code;
	close(take_fd(&lock));
	return follow_start(o->home, progress, arg, e);
}

int machine_start(const struct machine_options *given, machine_progress progress, void *arg, struct error *e) {
	struct machine_options o = *given;
	char folder[QEMU_PATH_MAX];
	int code = path_of(o.home, "", folder, e);
	if (code < 0 || (code = make_folders(folder, 0700, e)) < 0)
		return code;
	// Seen with QEMU 10 once in about six starts: the second CPU gets no timer interrupts and the kernel waits for ever.
	for (int i = 0; i < KERNEL_ATTEMPTS; i++) {
		code = start_once(&o, progress, arg, e);
		if (code != -EAGAIN)
			break;
		stop_hung(o.home);
		if (progress != NULL && i + 1 < KERNEL_ATTEMPTS)
			progress(arg, "the machine's kernel hangs");
	}
	return code;
}

int machine_stop(const char *home, struct error *e) {
	char path[QEMU_PATH_MAX];
	int code = path_of(home, "qmp.sock", path, e);
	if (code < 0)
		return code;
	if (!machine_is_running(home))
		return 0;
	if (qmp_execute(path, "system_powerdown", NULL, NULL) == 0 && wait_for_end(home, STOP_TIMEOUT_MS))
		return 0;
	if (qmp_execute(path, "quit", NULL, NULL) == 0 && wait_for_end(home, 10000))
		return 0;
	pid_t pid = read_pid(home);
	if (pid > 0 && machine_is_running(home))
		kill(pid, SIGKILL);
	if (wait_for_end(home, 10000))
		return 0;
	return error_set(e, -ETIMEDOUT, "the machine (QEMU, process %d) does not end", (int)pid);
}

int machine_status(const char *home, struct machine_status *ret, struct error *e) {
	char path[QEMU_PATH_MAX];
	struct stat st;
	*ret = (struct machine_status){.running = machine_is_running(home)};
	int code = path_of(home, "state.ext4", path, e);
	if (code < 0)
		return code;
	if (stat(path, &st) == 0)
		ret->disk_bytes = (uint64_t)st.st_blocks * 512;
	if (!ret->running)
		return 0;
	ret->pid = read_pid(home);
	json_t *answer = NULL;
	if (path_of(home, "qmp.sock", path, NULL) == 0 && qmp_execute(path, "query-status", &answer, NULL) == 0) {
		const char *state = json_string_value(json_object_get(answer, "status"));
		snprintf(ret->state, sizeof(ret->state), "%s", state != NULL ? state : "");
		json_decref(answer);
	}
	snprintf(path, sizeof(path), "/proc/%d/statm", (int)ret->pid);
	cleanup_file FILE *f = fopen(path, "re");
	unsigned long resident = 0;
	if (f != NULL && fscanf(f, "%*u %lu", &resident) == 1)
		ret->memory_kib = resident * (uint64_t)sysconf(_SC_PAGESIZE) / 1024;
	return 0;
}
