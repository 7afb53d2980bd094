// Control groups; see cgroup.h.
#include "launch/cgroup.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define ROOT "/sys/fs/cgroup"
#define PARENT ROOT "/stasis"
#define PATH_ROOM 256
#define TASKS_MAX "96" // 32 vCPUs, the main thread, disk workers

static int write_text(const char *path, const char *text) {
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static int set(const char *vmm, const char *file, const char *text, struct error *e) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), PARENT "/%s/%s", vmm, file);
	int r = write_text(path, text);
	return r < 0 ? error_set(e, r, "cannot write %s to %s: %s", text, path, strerror(-r)) : 0;
}

int cgroup_start(struct error *e) {
	struct statfs fs;
	if (statfs(ROOT, &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
		return error_set(e, -ENOTSUP,
				 ROOT " is not a cgroup v2 hierarchy: boot the host with systemd.unified_cgroup_hierarchy=1 (the default "
				      "since Debian 11)");
	int r = write_text(ROOT "/cgroup.subtree_control", "+memory +cpu +pids");
	if (r < 0)
		return error_set(e, r, "cannot enable the controllers memory, cpu and pids in " ROOT ": %s", strerror(-r));
	if (mkdir(PARENT, 0755) < 0 && errno != EEXIST)
		return error_errno(e, "cannot create " PARENT);
	r = write_text(PARENT "/cgroup.subtree_control", "+memory +cpu +pids");
	return r < 0 ? error_set(e, r, "cannot enable the controllers in " PARENT ": %s", strerror(-r)) : 0;
}

int cgroup_make(const char *vmm, struct error *e) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), PARENT "/%s", vmm);
	if (mkdir(path, 0755) < 0)
		return error_errno(e, "cannot create %s", path);
	int r = set(vmm, "pids.max", TASKS_MAX, e);
	cleanup_close int fd = r < 0 ? -1 : open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r == 0 && fd < 0)
		r = error_errno(e, "cannot open %s", path);
	if (r < 0) {
		rmdir(path);
		return r;
	}
	return take_fd(&fd);
}

int cgroup_limit(const char *vmm, uint64_t memory_bytes, uint32_t cpus, struct error *e) {
	char text[64];
	snprintf(text, sizeof(text), "%llu", (unsigned long long)memory_bytes);
	int r = set(vmm, "memory.max", text, e);
	if (r < 0)
		return r;
	snprintf(text, sizeof(text), "%llu 100000", 100000ull * cpus);
	return set(vmm, "cpu.max", text, e);
}

int cgroup_kill(const char *vmm) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), PARENT "/%s/cgroup.kill", vmm);
	int r = write_text(path, "1");
	return r == -ENOENT ? 0 : r;
}

bool cgroup_is_populated(const char *vmm) {
	char path[PATH_ROOM];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), PARENT "/%s/cgroup.events", vmm);
	return read_file(path, 4096, &text, NULL, NULL) == 0 && strstr(text, "populated 1") != NULL;
}

int cgroup_remove(const char *vmm) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), PARENT "/%s", vmm);
	return rmdir(path) < 0 && errno != ENOENT ? -errno : 0;
}
