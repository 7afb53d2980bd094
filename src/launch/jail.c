// The jail; see jail.h.
//
// The child builds it step by step, as root in namespaces of its own, and gives up what it has on the way: first the file system, then the
// descriptors, the capabilities, the uid. The last step is execveat() of the VMM by descriptor, since there is no file to name any more. A step
// that fails is told to the parent over a pipe that closes by itself when the VMM starts. The VMM loads its system call filter itself.
#include "launch/jail.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "vmm/control.h"

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

#define DESCRIPTORS_MAX 4096 // vsock streams, disks
#define LAST_CAPABILITY 63

static int make_root(const char *root) {
	if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ||
	    mount("stasis", root, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,mode=0555") < 0)
		return -errno;
	if (chdir(root) < 0 || mkdir("proc", 0555) < 0)
		return -errno;
	// The VMM reads which pages of its guest were written from its own /proc/self/pagemap; it sees no other process.
	if (mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "subset=pid,hidepid=invisible") < 0)
		return -errno;
	if (mount("", root, NULL, MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC, "size=16k,mode=0555") < 0)
		return -errno;
	if (syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		return -errno;
	return 0;
}

// Lays the descriptors where the VMM expects them; *program and *report move out of the way. Everything else is closed.
static int lay_descriptors(const struct jail *j, int *program, int *report) {
	const int given[] = {j->control, j->vsock, j->kvm, j->tap};
	int high[6];
	for (int i = 0; i < 6; i++) {
		int from = i < 4 ? given[i] : i == 4 ? *program : *report;
		high[i] = fcntl(from, F_DUPFD_CLOEXEC, 64);
		if (high[i] < 0)
			return -errno;
	}
	if (dup2(high[0], VMM_FD_CONTROL) < 0 || dup2(high[1], VMM_FD_VSOCK) < 0 || dup2(high[2], VMM_FD_KVM) < 0 ||
	    dup2(high[3], VMM_FD_TAP) < 0 || dup3(high[4], VMM_FD_FIRST_FREE, O_CLOEXEC) < 0 ||
	    dup3(high[5], VMM_FD_FIRST_FREE + 1, O_CLOEXEC) < 0)
		return -errno;
	*program = VMM_FD_FIRST_FREE;
	*report = VMM_FD_FIRST_FREE + 1;
	int nothing = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (nothing >= 0)
		dup2(nothing, STDIN_FILENO);
	return syscall(SYS_close_range, VMM_FD_FIRST_FREE + 2, ~0u, 0) < 0 ? -errno : 0;
}

static int set_limits(void) {
	static const struct {
		__rlimit_resource_t what;
		rlim_t most;
	} limits[] = {{RLIMIT_NOFILE, DESCRIPTORS_MAX},
		      {RLIMIT_CORE, 0},
		      {RLIMIT_MEMLOCK, 64 << 10},
		      {RLIMIT_MSGQUEUE, 0},
		      {RLIMIT_NICE, 0},
		      {RLIMIT_RTPRIO, 0}};
	for (size_t i = 0; i < sizeof(limits) / sizeof(limits[0]); i++)
		if (setrlimit(limits[i].what, &(struct rlimit){limits[i].most, limits[i].most}) < 0)
			return -errno;
	return 0;
}

static int drop_privileges(uid_t uid) {
	for (int capability = 0; capability <= LAST_CAPABILITY; capability++)
		if (prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) < 0 && errno != EINVAL)
			return -errno;
	// Root's last act: from here on there is no way back. The permitted sets go with the uid.
	if (setgroups(0, NULL) < 0 || setresgid(uid, uid, uid) < 0 || setresuid(uid, uid, uid) < 0)
		return -errno;
	return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ? -errno : 0;
}

struct failure {
	int code;
	char step[32];
};

// Everything up to the execution. *step names what was tried last.
static int enter(const struct jail *j, int *program, int *report, const char **step) {
	*step = "network namespace";
	if (setns(j->netns, CLONE_NEWNET) < 0)
		return -errno;
	*step = "descriptors"; // while there is a /dev/null to open
	int r = lay_descriptors(j, program, report);
	if (r < 0)
		return r;
	*step = "file system";
	if ((r = make_root(j->root)) < 0)
		return r;
	*step = "limits";
	if (setsid() < 0 || sethostname("stasis", 6) < 0)
		return -errno;
	if ((r = set_limits()) < 0)
		return r;
	*step = "privileges";
	return drop_privileges(j->uid);
}

static _Noreturn void child(const struct jail *j, int report) {
	struct failure f = {0};
	const char *step;
	int program = j->program;
	char *const arguments[] = {(char[]){"stasis-vmm"}, NULL}, *const environment[] = {NULL};
	sigset_t none;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(077);
	f.code = enter(j, &program, &report, &step);
	if (f.code == 0) {
		step = "execution of stasis-vmm";
		syscall(SYS_execveat, program, "", arguments, environment, AT_EMPTY_PATH);
		f.code = -errno;
	}
	snprintf(f.step, sizeof(f.step), "%s", step);
	write_full(report, &f, sizeof(f));
	_exit(127);
}

pid_t jail_start(const struct jail *j, int *ret_pidfd, struct error *e) {
	int ends[2], pidfd = -1;
	if (pipe2(ends, O_CLOEXEC) < 0)
		return error_errno(e, "cannot create a pipe");
	struct clone_args arguments = {
		.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_PIDFD | CLONE_INTO_CGROUP,
		.pidfd = (uint64_t)(uintptr_t)&pidfd,
		.exit_signal = SIGCHLD,
		.cgroup = (uint64_t)j->cgroup,
	};
	pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof(arguments));
	if (pid == 0)
		child(j, ends[1]);
	close(ends[1]);
	if (pid < 0) {
		close(ends[0]);
		return error_errno(e, "cannot start a VMM");
	}
	struct failure f;
	int r = read_full(ends[0], &f, sizeof(f));
	close(ends[0]);
	if (r == 0) {
		f.step[sizeof(f.step) - 1] = '\0';
		waitpid(pid, NULL, 0);
		close(pidfd);
		return error_set(e, f.code, "cannot jail a VMM (%s): %s", f.step, strerror(-f.code));
	}
	*ret_pidfd = pidfd;
	return pid;
}
