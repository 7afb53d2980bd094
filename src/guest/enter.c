// Entering the container; see enter.h.
//
// The first child joins the cgroup and the namespaces; a process enters a new PID namespace only by being born into it, so the first child
// makes a second one, tells its id and ends; the second then is a child of ours (we are PID 1, or a subreaper in tests) and becomes the
// program. Between fork and exec they make system calls only; everything that takes memory is prepared before.
#include "guest/enter.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "guest/files.h"
#include "guest/runtime_config.h"

#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <termios.h>

#define PTMX_MAJOR 5
#define PTMX_MINOR 2
#define PROMPT "λ $ "

// What the children need, in memory of the parent.
struct plan {
	const struct enter *enter;
	struct user user;
	char **argv, **env;
	char *folder;
	uint64_t capabilities;
	bool no_new_privileges;
	rlim_t open_files;
	int pidfd, cgroup_procs;
};

static void cleanup_plan_fn(struct plan *p) {
	for (char **s = p->env; s != NULL && *s != NULL; s++)
		free(*s);
	free(p->env);
	free(p->argv);
	free(p->folder);
	if (p->pidfd >= 0)
		close(p->pidfd);
	if (p->cgroup_procs >= 0)
		close(p->cgroup_procs);
}
#define cleanup_plan __attribute__((cleanup(cleanup_plan_fn)))

// Planning. -------------------------------------------------------------------------------------------------------------------

static int plan_arguments(struct plan *p, struct error *e) {
	const json_t *args = p->enter->request->args;
	size_t n = json_array_size(args);

	p->argv = calloc(n + 1, sizeof(*p->argv));
	if (p->argv == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	for (size_t i = 0; i < n; i++)
		p->argv[i] = (char *)(uintptr_t)json_string_value(json_array_get(args, i));
	return 0;
}

static bool assign(json_t *variables, const char *assignment) {
	const char *equals = strchr(assignment, '=');
	return equals != NULL && json_object_setn_new(variables, assignment, (size_t)(equals - assignment), json_string(equals + 1)) == 0;
}

// The application's own variables, the user's home, what a terminal needs, and what the request says, which wins.
static int plan_environment(struct plan *p, const json_t *application_env, struct error *e) {
	const struct session_request *q = p->enter->request;
	cleanup_json json_t *variables = json_object();
	const char *name;
	json_t *value;
	size_t i;

	json_array_foreach(application_env, i, value) {
		assign(variables, json_string_value(value));
	}
	json_object_set_new(variables, "HOME", json_string(p->user.uid == 0 && strcmp(p->user.home, "/") == 0 ? "/root" : p->user.home));
	if (q->terminal)
		json_object_set_new(variables, "TERM", json_string("xterm"));
	if (q->op == SESSION_SHELL) {
		json_object_set_new(variables, "PS1", json_string(PROMPT));
		// So that line editing knows how wide the prompt is.
		if (json_object_get(variables, "LANG") == NULL && json_object_get(variables, "LC_ALL") == NULL)
			json_object_set_new(variables, "LANG", json_string("C.UTF-8"));
	}
	if (q->env != NULL)
		json_object_update(variables, (json_t *)(uintptr_t)q->env);
	p->env = calloc(json_object_size(variables) + 1, sizeof(*p->env));
	i = 0;
	json_object_foreach(variables, name, value) {
		if (p->env == NULL || asprintf(&p->env[i], "%s=%s", name, json_string_value(value)) < 0)
			return error_set(e, -ENOMEM, "out of memory");
		i++;
	}
	return 0;
}

static int plan_program(struct plan *p, struct error *e) {
	const struct session_request *q = p->enter->request;
	cleanup_json json_t *config = NULL;
	int r = application_config(p->enter->application, &config, e);

	if (r < 0)
		return r;
	const json_t *process = json_object_get(config, "process"), *files = json_array_get(json_object_get(process, "rlimits"), 0);
	const char *folder = q->folder != NULL ? q->folder : json_string_value(json_object_get(process, "cwd"));
	p->folder = strdup(folder != NULL ? folder : "/");
	if (p->folder == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	p->capabilities = runtime_capability_bits(json_object_get(json_object_get(process, "capabilities"), "bounding"));
	p->no_new_privileges = json_is_true(json_object_get(process, "noNewPrivileges"));
	p->open_files = (rlim_t)json_integer_value(json_object_get(files, "hard"));
	if ((r = plan_arguments(p, e)) < 0)
		return r;
	return plan_environment(p, json_object_get(process, "env"), e);
}

static bool is_for_files(const struct session_request *q) {
	return q->op == SESSION_PUT || q->op == SESSION_GET;
}

static int plan(struct plan *p, struct error *e) {
	const struct application *a = p->enter->application;
	char path[PATH_MAX];

	if (a->main.pid <= 0 || a->state == APPLICATION_NONE || a->state == APPLICATION_STARTING || a->state == APPLICATION_EXITED)
		return error_named(e, -ESRCH, "NOT_RUNNING", "the application does not run, so there is no container to enter");
	int r = application_user(a, p->enter->request->user, &p->user, e);
	if (r < 0)
		return r;
	p->pidfd = (int)syscall(SYS_pidfd_open, a->main.pid, 0);
	if (p->pidfd < 0)
		return error_errno(e, "cannot take hold of the application's process");
	if (is_for_files(p->enter->request))
		return 0;
	snprintf(path, sizeof(path), "%s" RUNTIME_CGROUP "/cgroup.procs", a->paths.cgroups);
	p->cgroup_procs = open(path, O_WRONLY | O_CLOEXEC);
	if (p->cgroup_procs < 0)
		return error_errno(e, "cannot open the application's cgroup");
	return plan_program(p, e);
}

// In the children. ------------------------------------------------------------------------------------------------------------

static void report(const struct plan *p, enum enter_report_kind kind, int value, const char *code, const char *message, int pass) {
	struct enter_report m = {.kind = kind, .value = value};

	snprintf(m.code, sizeof(m.code), "%s", code);
	snprintf(m.message, sizeof(m.message), "%s", message);
	(void)!send_with_fds(p->enter->report, &m, sizeof(m), &pass, pass >= 0 ? 1 : 0);
}

static void fail(const struct plan *p, const char *code, const char *what) __attribute__((noreturn));
static void fail(const struct plan *p, const char *code, const char *what) {
	char message[sizeof(((struct enter_report *)0)->message)];

	snprintf(message, sizeof(message), "%s: %s", what, strerrordesc_np(errno));
	report(p, ENTER_FAILED, 0, code, message, -1);
	_exit(127);
}

static void connect_standard(const struct plan *p) {
	const struct enter *n = p->enter;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC), ends[3] = {n->input, n->output, n->error_output};

	for (int i = 0; i < 3; i++)
		if (dup2(ends[i] >= 0 ? ends[i] : null, i) < 0)
			fail(p, "INTERNAL", "cannot connect the standard streams");
}

// Nothing of the agent's may be open in a process that the container's programs can see.
static void close_others(const struct plan *p) {
	int kept[] = {p->enter->report, p->pidfd, p->cgroup_procs};
	unsigned from = 3;

	for (;;) {
		unsigned next = ~0u;
		for (size_t i = 0; i < sizeof(kept) / sizeof(*kept); i++)
			if (kept[i] >= 0 && (unsigned)kept[i] >= from && (unsigned)kept[i] < next)
				next = (unsigned)kept[i];
		if (next > from)
			syscall(SYS_close_range, from, next == ~0u ? next : next - 1, 0);
		if (next == ~0u)
			return;
		from = next + 1;
	}
}

// The terminal must be one of the container's own, or programs there could not find it by name. Whatever lies at that path, it is used only if
// it is the device that makes terminals.
static void open_terminal(const struct plan *p) {
	struct winsize size = {.ws_col = p->enter->request->columns, .ws_row = p->enter->request->rows};
	int unlock = 0, far = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (far < 0 || fstat(far, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(PTMX_MAJOR, PTMX_MINOR))
		fail(p, "NO_TERMINAL", "the container has no terminals (/dev/pts)");
	if (ioctl(far, TIOCSPTLCK, &unlock) < 0)
		fail(p, "NO_TERMINAL", "cannot make a terminal");
	int near = ioctl(far, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (near < 0 || fchown(near, p->user.uid, (gid_t)-1) < 0 || ioctl(near, TIOCSWINSZ, &size) < 0 || ioctl(near, TIOCSCTTY, 0) < 0)
		fail(p, "NO_TERMINAL", "cannot make a terminal");
	for (int i = 0; i < 3; i++)
		if (dup2(near, i) < 0)
			fail(p, "NO_TERMINAL", "cannot connect the terminal");
	report(p, ENTER_TERMINAL, 0, "", "", far);
}

// What crun does for the application: its bounding set, its user, no new privileges.
static void drop_rights(const struct plan *p) {
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	uint32_t low = (uint32_t)p->capabilities, high = (uint32_t)(p->capabilities >> 32);
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3] = {{.effective = low, .permitted = low},
									{.effective = high, .permitted = high}};
	struct rlimit files = {p->open_files, p->open_files};

	if (p->open_files > 0)
		setrlimit(RLIMIT_NOFILE, &files);
	// So that programs that open /dev/stdout or /dev/stderr by name may do so under another user.
	for (int i = 0; i < 3 && !p->enter->request->terminal; i++)
		(void)!fchown(i, p->user.uid, p->user.gid);
	for (int i = 0; i <= 63; i++)
		if ((p->capabilities >> i & 1) == 0 && prctl(PR_CAPBSET_DROP, i) < 0 && errno != EINVAL)
			fail(p, "INTERNAL", "cannot drop capabilities");
	if (setgroups(p->user.group_count, p->user.groups) < 0 || setresgid(p->user.gid, p->user.gid, p->user.gid) < 0 ||
	    setresuid(p->user.uid, p->user.uid, p->user.uid) < 0)
		fail(p, "INTERNAL", "cannot become the user");
	if (p->user.uid == 0 && syscall(SYS_capset, &header, data) < 0)
		fail(p, "INTERNAL", "cannot set capabilities");
	if (p->no_new_privileges && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail(p, "INTERNAL", "cannot set no_new_privs");
}

static void run_shell(const struct plan *p) __attribute__((noreturn));
static void run_shell(const struct plan *p) {
	// bash's start files would set a prompt of their own.
	static const char *const shells[][4] = {
		{"/bin/bash", "bash", "--norc", "--noprofile"}, {"/bin/sh", "sh"}, {"/bin/ash", "ash"}, {"/bin/busybox", "busybox", "sh"}};
	for (size_t i = 0; i < sizeof(shells) / sizeof(*shells); i++) {
		const char *argv[4] = {shells[i][1], shells[i][2], shells[i][3], NULL};
		execve(shells[i][0], (char *const *)(uintptr_t)argv, p->env);
		if (errno != ENOENT)
			break;
	}
	fail(p, "NO_SHELL", "the image has no shell that can be run (/bin/bash, /bin/sh, /bin/ash, /bin/busybox)");
}

static void run_program(const struct plan *p) __attribute__((noreturn));
static void run_program(const struct plan *p) {
	char what[256];

	// The search for the program is by the container's PATH.
	environ = p->env;
	execvp(p->argv[0], p->argv);
	snprintf(what, sizeof(what), "cannot run %.200s", p->argv[0]);
	fail(p, errno == ENOENT || errno == ENOTDIR ? "NOT_FOUND" : "NOT_EXECUTABLE", what);
}

static void become_program(const struct plan *p) __attribute__((noreturn));
static void become_program(const struct plan *p) {
	setsid();
	if (p->enter->request->terminal)
		open_terminal(p);
	drop_rights(p);
	umask(022);
	if (chdir(p->folder) < 0)
		fail(p, "FOLDER_NOT_FOUND", "cannot enter the working folder");
	if (p->enter->request->op == SESSION_SHELL)
		run_shell(p);
	run_program(p);
}

static void enter_for_files(const struct plan *p) __attribute__((noreturn));
static void enter_for_files(const struct plan *p) {
	struct error e = {0};

	if (setns(p->pidfd, CLONE_NEWNS) < 0)
		fail(p, "INTERNAL", "cannot enter the container's file systems");
	int r = files_run(p->enter->request, &p->user, &e);
	if (r < 0)
		report(p, ENTER_FAILED, 0, e.name[0] != '\0' ? e.name : "FILES", e.message, -1);
	_exit(r < 0 ? 1 : 0);
}

static void enter(const struct plan *p) __attribute__((noreturn));
static void enter(const struct plan *p) {
	// Until it is the program, no process of the container's may look into it.
	prctl(PR_SET_DUMPABLE, 0);
	become_ordinary();
	connect_standard(p);
	close_others(p);
	if (is_for_files(p->enter->request))
		enter_for_files(p);
	if (write(p->cgroup_procs, "0", 1) != 1)
		fail(p, "INTERNAL", "cannot join the application's cgroup");
	if (setns(p->pidfd, CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWCGROUP) < 0)
		fail(p, "INTERNAL", "cannot enter the container");
	pid_t pid = fork();
	if (pid < 0)
		fail(p, "INTERNAL", "cannot make a process in the container");
	if (pid == 0)
		become_program(p);
	report(p, ENTER_PID, (int)pid, "", "", -1);
	_exit(0);
}

// ------------------------------------------------------------------------------------------------------------------------------

pid_t enter_container(const struct enter *n, bool *ret_direct, struct error *e) {
	cleanup_plan struct plan p = {.enter = n, .pidfd = -1, .cgroup_procs = -1};
	int r = plan(&p, e);

	if (r < 0)
		return r;
	*ret_direct = is_for_files(n->request);
	pid_t pid = fork();
	if (pid == 0)
		enter(&p);
	return pid > 0 ? pid : error_errno(e, "cannot make a process");
}

int enter_receive(int socket, struct enter_report *ret, int *ret_fd) {
	size_t count = 1;

	*ret_fd = -1;
	ssize_t n = recv_with_fds(socket, ret, sizeof(*ret), ret_fd, &count);
	if (n <= 0)
		return (int)n;
	if (count == 0)
		*ret_fd = -1;
	if (n == sizeof(*ret)) {
		ret->code[sizeof(ret->code) - 1] = ret->message[sizeof(ret->message) - 1] = '\0';
		return 1;
	}
	if (*ret_fd >= 0)
		close(*ret_fd);
	*ret_fd = -1;
	return -EBADMSG;
}
