// One cgroup per slot: what its VMM may use at most, and the means to end everything in it at once (cgroup.kill).
#include "launch/cgroup.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/uuid.h"

#include <dirent.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define PATH_ROOM 512
#define PIDS_MOST 256                // vCPU and device threads, io_uring workers
#define ALLOWANCE (96ull << 20)      // the VMM itself, page tables, kernel memory, files in the page cache
#define WAITING_BYTES (128ull << 20) // limit of a VMM that has no guest yet
#define PERIOD_US 100000u

static int write_control(const char *folder, const char *vmm, const char *file, const char *text) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), "%s%s%s/%s", folder, vmm[0] != '\0' ? "/" : "", vmm, file);
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	return write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static int enable_controllers(const char *folder, struct error *e) {
	static const char *const names[] = {"+memory", "+pids", "+cpu"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		int code = write_control(folder, "", "cgroup.subtree_control", names[i]);
		if (code < 0)
			return error_set(e, -ENOTSUP,
					 "cgroup v2 at %s has no controller \"%s\" (%s): boot with cgroup v2 alone "
					 "(systemd.unified_cgroup_hierarchy=1)",
					 folder, names[i] + 1, strerror(-code));
	}
	return 0;
}

int cgroup_start(const char *folder, struct error *e) {
	char parent[PATH_ROOM];
	snprintf(parent, sizeof(parent), "%s", folder);
	char *slash = strrchr(parent, '/');
	if (slash == NULL || slash == parent)
		return error_set(e, -EINVAL, "--cgroup %s is not below a mounted cgroup v2", folder);
	*slash = '\0';
	struct statfs fs;
	if (statfs(parent, &fs) < 0 || fs.f_type != CGROUP2_SUPER_MAGIC)
		return error_set(e, -ENOTSUP,
				 "%s is not cgroup v2, which Stasis needs: boot with systemd.unified_cgroup_hierarchy=1, or name its "
				 "folder with --cgroup",
				 parent);
	int code = enable_controllers(parent, e);
	if (code < 0)
		return code;
	if (mkdir(folder, 0755) < 0 && errno != EEXIST)
		return error_errno(e, "cannot make the cgroup %s", folder);
	return enable_controllers(folder, e);
}

static int set_number(const char *folder, const char *vmm, const char *file, uint64_t value) {
	char text[32];
	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	return write_control(folder, vmm, file, text);
}

int cgroup_create(const char *folder, const char *vmm, struct error *e) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), "%s/%s", folder, vmm);
	if (mkdir(path, 0755) < 0)
		return error_errno(e, "cannot make the cgroup %s", path);
	int code = set_number(folder, vmm, "pids.max", PIDS_MOST);
	if (code == 0)
		code = set_number(folder, vmm, "memory.max", WAITING_BYTES);
	if (code == 0)
		code = set_number(folder, vmm, "memory.oom.group", 1);
	if (code < 0)
		return error_set(e, code, "cannot set the limits of the cgroup %s: %s", path, strerror(-code));
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 ? error_errno(e, "cannot open the cgroup %s", path) : fd;
}

int cgroup_limit(const char *folder, const char *vmm, uint64_t memory_bytes, unsigned vcpus, struct error *e) {
	char text[48];
	snprintf(text, sizeof(text), "%u %u", vcpus * PERIOD_US, PERIOD_US);
	int code = write_control(folder, vmm, "cpu.max", text);
	if (code == 0)
		code = set_number(folder, vmm, "memory.max", memory_bytes + ALLOWANCE);
	return code < 0 ? error_set(e, code, "cannot set the limits of the cgroup %s/%s: %s", folder, vmm, strerror(-code)) : 0;
}

int cgroup_kill(const char *folder, const char *vmm) {
	return write_control(folder, vmm, "cgroup.kill", "1");
}

int cgroup_remove(const char *folder, const char *vmm) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), "%s/%s", folder, vmm);
	return rmdir(path) < 0 && errno != ENOENT ? -errno : 0;
}

bool cgroup_has(const char *folder, const char *vmm, pid_t pid) {
	char path[PATH_ROOM];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "%s/%s/cgroup.procs", folder, vmm);
	if (read_file(path, 65536, &text, NULL, NULL) < 0)
		return false;
	char *rest = NULL;
	for (char *line = strtok_r(text, "\n", &rest); line != NULL; line = strtok_r(NULL, "\n", &rest))
		if (strtol(line, NULL, 10) == pid)
			return true;
	return false;
}

void cgroup_list(const char *folder, void (*each)(void *arg, const char *vmm), void *arg) {
	cleanup_dir DIR *d = opendir(folder);
	struct dirent *entry;
	while (d != NULL && (entry = readdir(d)) != NULL)
		if (uuid_is_valid(entry->d_name))
			each(arg, entry->d_name);
}
