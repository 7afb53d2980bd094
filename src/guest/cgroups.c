// cgroup.kill (Linux 5.14); see cgroups.h.
#include "guest/cgroups.h"

#include "base/cleanup.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>

void kill_cgroup(const char *mounted_at, const char *cgroup) {
	char path[PATH_MAX];

	snprintf(path, sizeof(path), "%s%s/cgroup.kill", mounted_at, cgroup);
	cleanup_close int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)!write(fd, "1", 1);
}
