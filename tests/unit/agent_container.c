// An application in a container, for tests of the guest agent; see agent_container.h.
#include "agent_container.h"

#include "base/io.h"

#include <linux/capability.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define CAPABILITY_SYS_RESOURCE 24

const char *container_program;
char container_image[] = "/tmp/stasis-crun-XXXXXX";
bool container_usable, container_default_usable;

void container_put(const char *name, const void *data, size_t size, mode_t mode) {
	char path[256];
	snprintf(path, sizeof(path), "%s/%s", container_image, name);
	assert_int_equal(write_file_durably(path, data, size, mode, NULL), 0);
}

void container_configure(const char *config) {
	char text[1024];
	int n = snprintf(text, sizeof(text), "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":%s}", config);
	container_put(".stasis/config.json", text, (size_t)n, 0600);
}

static bool has_capability(int capability) {
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct data[2] = {0};
	return syscall(SYS_capget, &header, data) == 0 && (data[capability / 32].effective & (1u << (capability % 32))) != 0;
}

// As in a guest: a cgroup2 file system at the usual place, and orphans are ours.
static bool prepare_surroundings(void) {
	if (getuid() != 0 || access("/usr/bin/crun", X_OK) != 0 || unshare(CLONE_NEWNS) < 0 ||
	    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return false;
	umount2("/sys/fs/cgroup", MNT_DETACH);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	return mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, NULL) == 0 && access("/sys/fs/cgroup/cgroup.procs", W_OK) == 0;
}

int container_set_up(void **state) {
	char path[64], *program = NULL;
	size_t size = 0;

	container_usable = prepare_surroundings();
	// crun raises the limit of locked memory for its device filter, which not even root may do everywhere.
	container_default_usable = container_usable && has_capability(CAPABILITY_SYS_RESOURCE);
	if (!container_usable)
		return 0;
	if (mkdtemp(container_image) == NULL || chmod(container_image, 0755) < 0 ||
	    read_file(container_program, 64u << 20, &program, &size, NULL) < 0)
		return -1;
	for (size_t i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", container_image, (const char *const[]){".stasis", "etc", "proc"}[i]);
		mkdir(path, 0755);
	}
	container_put("app", program, size, 0755);
	container_put("etc/passwd", "root:x:0:0::/root:\nuser:x:1000:1001::/home/user:\n", 49, 0644);
	container_put("etc/group", "extra:x:44:user\n", 16, 0644);
	free(program);
	return 0;
}

int container_tear_down(void **state) {
	if (container_usable)
		remove_tree(container_image, NULL);
	return 0;
}

static void clean_up(struct fixture *f) {
	char state[128];
	snprintf(state, sizeof(state), "%s/crun", f->run);
	pid_t pid = fork();
	if (pid == 0) {
		// Mostly there is nothing left to delete, and crun says so.
		close(STDERR_FILENO);
		execl("/usr/bin/crun", "crun", "--root", state, "--cgroup-manager=cgroupfs", "delete", "--force", "app", NULL);
		_exit(127);
	}
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	rmdir("/sys/fs/cgroup/app");
}

void container_stop(struct fixture *f) {
	char folder[64];
	// crun delete must outlive the agent's folder, which fixture_stop() removes; the agent must not reap crun.
	snprintf(folder, sizeof(folder), "%s", f->folder);
	pid_t main_pid = f->agent.application.main.pid;
	if (main_pid > 0 && f->agent.application.state != APPLICATION_EXITED)
		kill(main_pid, SIGKILL);
	int fd = fixture_control(f);
	json_decref(call(fd, "poweroff", NULL));
	close(fd);
	pthread_join(f->thread, NULL);
	agent_end(&f->agent);
	clean_up(f);
	remove_tree(folder, NULL);
	free(f);
}
