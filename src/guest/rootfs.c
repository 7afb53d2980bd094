// Reading inside a stranger's root file system; see rootfs.h. openat2(2) with RESOLVE_IN_ROOT does the confinement.
#include "guest/rootfs.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/syscall.h>

int rootfs_read(const char *root, const char *path, size_t limit, char **ret, size_t *size, struct error *e) {
	struct open_how how = {
		// Not blocking: a FIFO of that name must not hold the agent.
		.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
		.resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};
	struct stat st;

	cleanup_close int top = open(root, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (top < 0)
		return error_errno(e, "cannot open %s", root);
	cleanup_close int fd = (int)syscall(SYS_openat2, top, path, &how, sizeof(how));
	if (fd < 0)
		return error_errno(e, "cannot open %s in the image", path);
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot look at %s in the image", path);
	if (!S_ISREG(st.st_mode))
		return error_set(e, -EINVAL, "%s in the image is no regular file", path);
	if (st.st_size < 0 || (uint64_t)st.st_size > limit)
		return error_set(e, -EFBIG, "%s in the image has %lld bytes; at most %zu are accepted", path, (long long)st.st_size, limit);
	cleanup_free char *data = malloc((size_t)st.st_size + 1);
	if (data == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	int r = read_full(fd, data, (size_t)st.st_size);
	if (r < 0)
		return error_set(e, r, "cannot read %s in the image", path);
	data[st.st_size] = '\0';
	*size = (size_t)st.st_size;
	*ret = take_ptr(data);
	return 0;
}
