// The application's life; see application.h.
//
// `crun run --detach` makes the container and ends; the application then is a child of ours (we are PID 1, or a subreaper in tests), so
// that its end comes as SIGCHLD and no supervisor lies in memory. Its cgroup is /app below the root; the descriptors of its freezer are opened
// once, since thawing is on the path of every launch.
#include "guest/application.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "guest/cgroups.h"
#include "guest/disks.h"
#include "guest/rootfs.h"
#include "guest/runtime_config.h"

#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <sys/wait.h>

#define START_DEADLINE_NS 120000000000ull
#define FREEZE_DEADLINE_NS 10000000000ull
#define FREEZE_PAUSE_FIRST_NS 1000000ull
#define FREEZE_PAUSE_LAST_NS 20000000ull
#define CRUN_LOG_MAX 65536
#define CONFIG_MAX (4u << 20)
#define CONTAINER "app"
#define OPEN_FILES 65536

static const char *const program_env[] = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
					  "LC_ALL=C.UTF-8", NULL};

static void tell(struct application *a, const struct error *error) {
	application_done done = a->done;
	void *arg = a->done_arg;

	loop_disarm(a->loop, &a->timer);
	a->done = NULL;
	if (done != NULL)
		done(arg, error);
}

static void close_fd(int *fd) {
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void close_outputs(struct application *a) {
	output_close(&a->output);
	output_close(&a->error_output);
}

// The image's disk.

static int mount_image(const struct application *a, struct error *e) {
	char device[64];

	if (!a->paths.mount_image)
		return 0;
	int r = make_folders(a->paths.image, 0755, e);
	if (r < 0 || (r = disk_find(GUEST_DISK_IMAGE, device, sizeof(device), e)) < 0)
		return r;
	if (mount(device, a->paths.image, "ext4", MS_NOATIME, NULL) == 0)
		return 0;
	// Mounted by an earlier start that failed later.
	if (errno == EBUSY)
		return 0;
	return error_errno(e, "cannot mount the image's disk (%s)", device);
}

// Reads passwd or group; a missing or unusable one counts as empty, since images without them are common.
static void read_names(const char *root, const char *path, char **data, size_t *size) {
	if (rootfs_read(root, path, USER_FILE_MAX, data, size, NULL) < 0)
		*size = 0;
}

int application_user(const struct application *a, const char *spec, struct user *ret, struct error *e) {
	cleanup_free char *passwd = NULL, *group = NULL;
	size_t passwd_size = 0, group_size = 0;

	read_names(a->paths.image, "/etc/passwd", &passwd, &passwd_size);
	read_names(a->paths.image, "/etc/group", &group, &group_size);
	return user_resolve(spec, passwd != NULL ? passwd : "", passwd_size, group != NULL ? group : "", group_size, ret, e);
}

// The bundle: config.json and the files that are bound into /etc.

static int write_plain(const char *folder, const char *name, const char *text, size_t size, struct error *e) {
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	// In place, not by renaming: resolv.conf may be bound into the container already.
	cleanup_close int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0)
		return error_errno(e, "cannot create %s", path);
	int r = write_full(fd, text, size);
	return r < 0 ? error_set(e, r, "cannot write %s", path) : 0;
}

static int write_files(const struct application *a, const char *hostname, struct error *e) {
	char text[512], path[PATH_MAX];
	int r;

	int n = snprintf(text, sizeof(text), "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t%s\n", hostname);
	if ((r = write_plain(a->paths.run, "hosts", text, (size_t)n, e)) < 0)
		return r;
	n = snprintf(text, sizeof(text), "%s\n", hostname);
	if ((r = write_plain(a->paths.run, "hostname", text, (size_t)n, e)) < 0)
		return r;
	snprintf(path, sizeof(path), "%s/resolv.conf", a->paths.run);
	return access(path, F_OK) == 0 ? 0 : write_plain(a->paths.run, "resolv.conf", "", 0, e);
}

static uint64_t half_of_memory(void) {
	struct sysinfo s;
	return sysinfo(&s) < 0 ? 64u << 20 : (uint64_t)s.totalram * s.mem_unit / 2;
}

// What we may, we can give; crun refuses to give more. In a guest that is everything that the kernel knows.
static uint64_t own_capabilities(void) {
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {0};

	if (syscall(SYS_capget, &header, data) < 0)
		return 0;
	return (uint64_t)data[1].permitted << 32 | data[0].permitted;
}

// As many as the stage allowed; elsewhere what the agent itself may have.
static uint64_t open_files(void) {
	struct rlimit r;
	return getrlimit(RLIMIT_NOFILE, &r) < 0 || r.rlim_max > OPEN_FILES ? OPEN_FILES : r.rlim_max;
}

static int write_bundle(struct application *a, const struct start_request *q, const struct user *user, const struct image_config *image,
			struct error *e) {
	cleanup_json json_t *config = NULL;
	char folder[PATH_MAX];
	int r;

	snprintf(folder, sizeof(folder), "%s/bundle", a->paths.run);
	if ((r = make_folders(folder, 0700, e)) < 0 || (r = write_files(a, q->hostname, e)) < 0)
		return r;
	config = runtime_config(&(struct runtime_options){.image = image,
							  .user = user,
							  .env = q->env,
							  .all_capabilities = q->all_capabilities,
							  .available_capabilities = own_capabilities(),
							  .hostname = q->hostname,
							  .root = a->paths.image,
							  .files = a->paths.run,
							  .shm_bytes = half_of_memory(),
							  .open_files = open_files()},
				e);
	if (config == NULL)
		return -EINVAL;
	if ((r = busy_parse(runtime_variable(config, BUSY_VARIABLE), &a->busy, e)) < 0 ||
	    (r = tls_ports_parse(runtime_variable(config, TLS_VARIABLE), &a->tls, e)) < 0)
		return r;
	cleanup_free char *text = json_dumps(config, JSON_COMPACT);
	if (text == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	return write_plain(folder, "config.json", text, strlen(text), e);
}

int application_config(const struct application *a, json_t **ret, struct error *e) {
	cleanup_free char *text = NULL;
	char path[PATH_MAX];
	size_t size = 0;

	snprintf(path, sizeof(path), "%s/bundle/config.json", a->paths.run);
	int r = read_file(path, CONFIG_MAX, &text, &size, e);
	if (r < 0)
		return r;
	*ret = json_parse_object(text, size, CONFIG_MAX, path, e);
	return *ret != NULL ? 0 : -EBADMSG;
}

// crun.

static void failed_to_start(struct application *a, const struct error *error) {
	a->state = APPLICATION_NONE;
	close_outputs(a);
	tell(a, error);
}

// The last line that crun logged, without what surrounds it.
static void crun_message(const struct application *a, char *to, size_t room) {
	cleanup_free char *text = NULL;
	size_t size = 0;
	char path[PATH_MAX];

	snprintf(to, room, "crun gave no reason");
	snprintf(path, sizeof(path), "%s/crun.log", a->paths.run);
	if (read_file(path, CRUN_LOG_MAX, &text, &size, NULL) < 0)
		return;
	while (size > 0 && (text[size - 1] == '\n' || text[size - 1] == '\r'))
		text[--size] = '\0';
	const char *line = memrchr(text, '\n', size);
	line = line != NULL ? line + 1 : text;
	// "2024-01-01T00:00:00.000000000Z: message"
	const char *message = strstr(line, "Z: ");
	if (*line != '\0')
		snprintf(to, room, "%.300s", message != NULL ? message + 3 : line);
}

static int read_pid(const struct application *a, pid_t *ret) {
	cleanup_free char *text = NULL;
	size_t size = 0;
	char path[PATH_MAX], *end;

	snprintf(path, sizeof(path), "%s/app.pid", a->paths.run);
	int r = read_file(path, 32, &text, &size, NULL);
	if (r < 0)
		return r;
	long pid = strtol(text, &end, 10);
	if (end == text || pid <= 1 || pid > INT_MAX)
		return -EBADMSG;
	*ret = (pid_t)pid;
	return 0;
}

static int open_freezer(struct application *a) {
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s" RUNTIME_CGROUP "/cgroup.freeze", a->paths.cgroups);
	a->freeze_fd = open(path, O_WRONLY | O_CLOEXEC);
	if (a->freeze_fd < 0)
		return -errno;
	snprintf(path, sizeof(path), "%s" RUNTIME_CGROUP "/cgroup.events", a->paths.cgroups);
	a->frozen_fd = open(path, O_RDONLY | O_CLOEXEC);
	return a->frozen_fd < 0 ? -errno : 0;
}

static void crun_ended(struct child *c, int status) {
	struct application *a = container_of(c, struct application, crun);
	struct error e = {0};
	char reason[320];

	c->pid = 0;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
		if (WIFSIGNALED(status))
			snprintf(reason, sizeof(reason), "it did not start within %llu s", START_DEADLINE_NS / 1000000000ull);
		else
			crun_message(a, reason, sizeof(reason));
		error_named(&e, -ENOEXEC, "START_FAILED", "cannot start the image's program: %s; check ENTRYPOINT, CMD, USER and WORKDIR",
			    reason);
		failed_to_start(a, &e);
		return;
	}
	int r = read_pid(a, &a->main.pid);
	if (r < 0) {
		error_set(&e, r, "crun left no usable process id: %s", strerror(-r));
		failed_to_start(a, &e);
		return;
	}
	// An application that ended at once may have taken its cgroup with it.
	(void)open_freezer(a);
	a->state = APPLICATION_RUNNING;
	tell(a, NULL);
	children_watch(a->children, &a->main);
}

static void main_ended(struct child *c, int status) {
	struct application *a = container_of(c, struct application, main);
	char text[64];

	a->exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	a->state = APPLICATION_EXITED;
	close_outputs(a);
	close_fd(&a->freeze_fd);
	close_fd(&a->frozen_fd);
	snprintf(text, sizeof(text), "{\"event\":\"exited\",\"exitCode\":%d}", a->exit_code);
	events_push_json(a->events, text);
	a->exited(a->exited_arg);
}

static int run_crun(struct application *a, const struct user *user, struct error *e) {
	char bundle[PATH_MAX], pid_file[PATH_MAX], log[PATH_MAX], state[PATH_MAX];
	cleanup_close int out = -1, err = -1;
	int r;

	snprintf(bundle, sizeof(bundle), "%s/bundle", a->paths.run);
	snprintf(pid_file, sizeof(pid_file), "%s/app.pid", a->paths.run);
	snprintf(log, sizeof(log), "%s/crun.log", a->paths.run);
	snprintf(state, sizeof(state), "%s/crun", a->paths.run);
	unlink(pid_file);
	unlink(log);
	if ((r = output_open(&a->output, a->loop, a->events, GUEST_EVENT_STDOUT, false, &out)) < 0 ||
	    (r = output_open(&a->error_output, a->loop, a->events, GUEST_EVENT_STDERR, false, &err)) < 0)
		return error_set(e, r, "cannot make pipes for the output: %s", strerror(-r));
	// So that programs that open /dev/stdout or /dev/stderr by name may do so under another user.
	if (fchown(out, user->uid, user->gid) < 0 || fchown(err, user->uid, user->gid) < 0)
		return error_errno(e, "cannot give the output pipes to the image's user");
	const char *const argv[] = {a->paths.crun, "--cgroup-manager=cgroupfs",
				    "--root",      state,
				    "--log",       log,
				    "run",         "--detach",
				    "--pid-file",  pid_file,
				    "--bundle",    bundle,
				    CONTAINER,     NULL};
	a->children->unclaimed_count = 0;
	pid_t pid =
		spawn(&(struct spawn){.argv = argv, .env = program_env, .standard_output = out, .standard_error = err, .folder = "/"}, e);
	if (pid < 0)
		return (int)pid;
	a->crun.pid = pid;
	children_watch(a->children, &a->crun);
	return 0;
}

static void timer_fired(struct timer *t);

int application_start(struct application *a, const struct start_request *q, application_done done, void *arg, struct error *e) {
	cleanup_free char *text = NULL;
	struct image_config image = {0};
	struct user user;
	size_t size = 0;

	if (a->state != APPLICATION_NONE || a->done != NULL)
		return error_set(e, -EALREADY, "the application was started already; a microVM runs one application, once");
	int r = mount_image(a, e);
	if (r < 0)
		return r;
	if ((r = rootfs_read(a->paths.image, IMAGE_CONFIG_PATH, IMAGE_CONFIG_MAX, &text, &size, e)) < 0)
		return error_wrap(e, r, "the image's disk has no usable configuration; build the image again");
	r = image_config_parse(text, size, &image, e);
	if (r == 0)
		r = application_user(a, image.user, &user, e);
	if (r == 0)
		r = write_bundle(a, q, &user, &image, e);
	image_config_free(&image);
	if (r == 0)
		r = run_crun(a, &user, e);
	if (r < 0) {
		close_outputs(a);
		return r;
	}
	a->state = APPLICATION_STARTING;
	a->done = done;
	a->done_arg = arg;
	loop_arm(a->loop, &a->timer, monotonic_ns() + START_DEADLINE_NS);
	return 0;
}

// Freezing: ask the kernel, look until it says so, take the output that is left, then sync on a thread.

// In a guest everything is written back. Elsewhere the host's other file systems are none of our business.
static int sync_file_systems(struct job *j) {
	const struct application *a = container_of(j, struct application, sync);

	if (a->paths.mount_image) {
		sync();
		return 0;
	}
	cleanup_close int fd = open(a->paths.image, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? 0 : syncfs(fd);
}

static void synced(struct job *j) {
	struct application *a = container_of(j, struct application, sync);
	struct error e = {0};

	a->syncing = false;
	// A resume or the end of the application came in between.
	if (a->state == APPLICATION_RUNNING) {
		error_set(&e, -ECANCELED, "the application was thawed while it was being frozen");
		tell(a, &e);
		return;
	}
	tell(a, NULL);
}

static void begin_sync(struct application *a) {
	struct error e = {0};

	output_drain(&a->output);
	output_drain(&a->error_output);
	a->sync = (struct job){.work = sync_file_systems, .done = synced};
	int r = job_start(&a->sync, a->loop);
	a->syncing = r == 0;
	if (r == 0)
		return;
	error_set(&e, r, "cannot sync the file systems: %s", strerror(-r));
	tell(a, &e);
}

static bool is_frozen(const struct application *a) {
	char text[256];
	ssize_t n = pread(a->frozen_fd, text, sizeof(text) - 1, 0);

	if (n < 0)
		return false;
	text[n] = '\0';
	return strstr(text, "frozen 1") != NULL;
}

static void look_whether_frozen(struct application *a) {
	struct error e = {0};

	if (is_frozen(a)) {
		a->state = APPLICATION_FROZEN;
		begin_sync(a);
		return;
	}
	uint64_t now = monotonic_ns();
	if (now >= a->deadline_ns) {
		application_thaw(a, NULL);
		error_set(&e, -EBUSY, "the application could not be frozen within %llu s: one of its processes does not leave the kernel",
			  FREEZE_DEADLINE_NS / 1000000000ull);
		tell(a, &e);
		return;
	}
	loop_arm(a->loop, &a->timer, now + a->pause_ns);
	a->pause_ns = a->pause_ns * 2 < FREEZE_PAUSE_LAST_NS ? a->pause_ns * 2 : FREEZE_PAUSE_LAST_NS;
}

static void timer_fired(struct timer *t) {
	struct application *a = container_of(t, struct application, timer);
	struct error e = {0};

	if (a->state == APPLICATION_STARTING) {
		// Its end comes as that of any child, with the reason "signal".
		kill(-a->crun.pid, SIGKILL);
		kill_cgroup(a->paths.cgroups, RUNTIME_CGROUP);
	} else if (a->state == APPLICATION_FREEZING) {
		look_whether_frozen(a);
	} else if (a->done != NULL && !a->syncing) {
		error_set(&e, -ECANCELED, "the application ended or was thawed while it was being frozen");
		tell(a, &e);
	}
}

int application_freeze(struct application *a, application_done done, void *arg, struct error *e) {
	if (a->done != NULL || a->syncing)
		return error_set(e, -EBUSY, "the application is being started or frozen already");
	if (a->state == APPLICATION_RUNNING && a->freeze_fd >= 0) {
		if (pwrite(a->freeze_fd, "1", 1, 0) != 1)
			return error_errno(e, "cannot freeze the application's cgroup");
		a->state = APPLICATION_FREEZING;
	}
	a->done = done;
	a->done_arg = arg;
	a->deadline_ns = monotonic_ns() + FREEZE_DEADLINE_NS;
	a->pause_ns = FREEZE_PAUSE_FIRST_NS;
	if (a->state == APPLICATION_FREEZING)
		look_whether_frozen(a);
	else
		begin_sync(a);
	return 0;
}

int application_thaw(struct application *a, struct error *e) {
	if (a->freeze_fd < 0 || (a->state != APPLICATION_FROZEN && a->state != APPLICATION_FREEZING))
		return 0;
	if (pwrite(a->freeze_fd, "0", 1, 0) != 1)
		return error_errno(e, "cannot thaw the application's cgroup");
	a->state = APPLICATION_RUNNING;
	return 0;
}

int application_init(struct application *a, struct loop *l, struct children *c, struct events *v, const struct application_paths *p) {
	*a = (struct application){.loop = l, .children = c, .events = v, .paths = *p, .freeze_fd = -1, .frozen_fd = -1};
	a->crun.ended = crun_ended;
	a->main.ended = main_ended;
	a->timer.fire = timer_fired;
	a->output.source.fd = a->error_output.source.fd = -1;
	return 0;
}

void application_end(struct application *a) {
	// The thread writes to an eventfd of ours.
	while (a->syncing)
		loop_step(a->loop, -1);
	loop_disarm(a->loop, &a->timer);
	children_forget(a->children, &a->crun);
	children_forget(a->children, &a->main);
	close_outputs(a);
	close_fd(&a->freeze_fd);
	close_fd(&a->frozen_fd);
}

const char *application_state_name(enum application_state s) {
	static const char *const names[] = {
		[APPLICATION_NONE] = "none",        [APPLICATION_STARTING] = "none", [APPLICATION_RUNNING] = "running",
		[APPLICATION_FREEZING] = "running", [APPLICATION_FROZEN] = "frozen", [APPLICATION_EXITED] = "exited",
	};
	return names[s];
}
