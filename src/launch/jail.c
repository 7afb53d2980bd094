// The jail of a VMM: what lies between a guest that has taken over its VMM and the host.
//
// The child is made in new PID, mount, IPC and UTS namespaces and directly in its cgroup; it is in the slot's network namespace. Its root
// is an empty read-only tmpfs, with nothing but a /proc of its own PID namespace (only processes, of which there is one). It becomes a
// uid and gid that nothing else on the host has, without any capability, unable to gain one (no_new_privs), with a few limits, an empty
// environment and the descriptors that it needs. The system call filter it loads itself (src/vmm/seccomp.h).
//
// No signal is tied to its parent's death: microVMs outlive stasis-launch.
#include "launch/jail.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "vmm/control.h"

#include <cap-ng.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define HIGH_FD 100 // descriptors are moved here before the low numbers are given out

struct failure {
	int code;
	char what[64];
};

// What failed goes through the pipe that exec closes.
static void fail(int report, const char *what) {
	struct failure f = {.code = errno};
	snprintf(f.what, sizeof(f.what), "%s", what);
	write_full(report, &f, sizeof(f));
	_exit(126);
}

static int make_root(const char *folder) {
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("jail", folder, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0555,size=4k,nr_inodes=4") < 0 || chdir(folder) < 0 ||
	    mkdir("proc", 0555) < 0 || mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY, "subset=pid") < 0)
		return -1;
	// The old root is stacked upon the new one, and then taken away (man 2 pivot_root).
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -1;
	return mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

static int set_limits(void) {
	static const struct {
		__rlimit_resource_t what;
		rlim_t most;
	} limits[] = {
		{RLIMIT_NOFILE, 4096}, // vsock streams, disks
		{RLIMIT_NPROC, 256},   // of its own uid
		{RLIMIT_CORE, 0},      {RLIMIT_MEMLOCK, 64 << 10}, {RLIMIT_MSGQUEUE, 0}, {RLIMIT_NICE, 0}, {RLIMIT_RTPRIO, 0},
	};
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
		if (setrlimit(limits[i].what, &(struct rlimit){limits[i].most, limits[i].most}) < 0)
			return -1;
	return 0;
}

static int drop_privileges(uid_t uid) {
	capng_clear(CAPNG_SELECT_ALL);
	// While still root: the bounding set; ids; then what is left of the sets.
	if (capng_apply(CAPNG_SELECT_BOUNDS) != 0 || setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 ||
	    setresuid(uid, uid, uid) < 0 || capng_apply(CAPNG_SELECT_CAPS) != 0 || capng_apply(CAPNG_SELECT_AMBIENT) != 0)
		return -1;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
}

static void reset_signals(void) {
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int s = 1; s < NSIG; s++)
		signal(s, SIG_DFL);
}

// Puts the descriptors at their numbers. All of them, and those kept until exec, are moved out of the way first.
static int place_descriptors(const struct jail *j, int *program, int *report) {
	const int from[] = {-1, j->log, j->log, j->control, j->vsock, j->kvm, j->tap};
	int moved[VMM_FD_FIRST_FREE];
	*program = fcntl(*program, F_DUPFD_CLOEXEC, HIGH_FD);
	*report = fcntl(*report, F_DUPFD_CLOEXEC, HIGH_FD);
	for (int i = 0; i < VMM_FD_FIRST_FREE; i++) {
		moved[i] = from[i] < 0 ? open("/dev/null", O_RDONLY | O_CLOEXEC) : fcntl(from[i], F_DUPFD_CLOEXEC, HIGH_FD);
		if (moved[i] < 0)
			return -1;
	}
	for (int i = 0; i < VMM_FD_FIRST_FREE; i++)
		if (dup2(moved[i], i) < 0)
			return -1;
	if (*program < 0 || *report < 0)
		return -1;
	return close_range(VMM_FD_FIRST_FREE, ~0u, CLOSE_RANGE_CLOEXEC);
}

static void be_vmm(const struct jail *j, int report) {
	int program = j->program;
	reset_signals();
	if (setsid() < 0)
		fail(report, "setsid");
	setpriority(PRIO_PROCESS, 0, 0);
	if (place_descriptors(j, &program, &report) < 0)
		fail(report, "placing descriptors");
	if (make_root(j->folder) < 0)
		fail(report, "making its root");
	if (sethostname("vmm", 3) < 0)
		fail(report, "sethostname");
	umask(077);
	if (set_limits() < 0)
		fail(report, "setting its limits");
	if (drop_privileges(j->uid) < 0)
		fail(report, "dropping privileges");
	char name[] = "stasis-vmm";
	char *const argv[] = {name, NULL}, *const environment[] = {NULL};
	syscall(SYS_execveat, program, "", argv, environment, AT_EMPTY_PATH);
	fail(report, "executing stasis-vmm");
}

pid_t jail_start(const struct jail *j, int *ret_pidfd, struct error *e) {
	int fds[2];
	int pidfd = -1;
	if (pipe2(fds, O_CLOEXEC) < 0)
		return error_errno(e, "cannot make a pipe");
	cleanup_close int from = fds[0];
	cleanup_close int to = fds[1];
	struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_INTO_CGROUP | CLONE_PARENT |
					   CLONE_PIDFD,
				  .pidfd = (uintptr_t)&pidfd,
				  .cgroup = (uint64_t)j->cgroup};
	long pid = syscall(SYS_clone3, &args, sizeof(args));
	if (pid < 0)
		return (pid_t)error_errno(e, "cannot start a VMM (clone3)");
	if (pid == 0)
		be_vmm(j, to);
	close(take_fd(&to));
	struct failure f;
	int code = read_full(from, &f, sizeof(f));
	if (code == -ENODATA) {
		*ret_pidfd = pidfd;
		return (pid_t)pid;
	}
	close(pidfd);
	if (code < 0)
		return (pid_t)error_set(e, code, "a VMM died while it was started");
	f.what[sizeof(f.what) - 1] = '\0';
	return (pid_t)error_set(e, -EIO, "a VMM could not be started: %s: %s", f.what, strerror(f.code));
}
