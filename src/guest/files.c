// Files of the container; see files.h.
#include "guest/files.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/tree.h"

#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

static ssize_t read_input(void *arg, void *to, size_t room) {
	ssize_t n;
	do
		n = read(STDIN_FILENO, to, room);
	while (n < 0 && errno == EINTR);
	return n < 0 ? -errno : n;
}

static int write_output(void *arg, const void *data, size_t size) {
	return write_full(STDOUT_FILENO, data, size);
}

static void tell(void *arg, const char *text) {
	dprintf(STDERR_FILENO, "%s\n", text);
}

// Splits off the last name of a path. False when it has none.
static bool split(const char *path, char folder[PATH_MAX], char name[NAME_MAX + 1]) {
	size_t end = strlen(path);
	while (end > 1 && path[end - 1] == '/')
		end--;
	size_t start = end;
	while (start > 0 && path[start - 1] != '/')
		start--;
	if (end == start || end - start > NAME_MAX)
		return false;
	snprintf(folder, PATH_MAX, "%.*s", (int)start, path);
	snprintf(name, NAME_MAX + 1, "%.*s", (int)(end - start), path + start);
	return strcmp(name, ".") != 0 && strcmp(name, "..") != 0;
}

static int put(const struct session_request *q, const struct user *user, struct error *e) {
	struct tree_options o = {.read = read_input, .mode_mask = 07777, .own = true, .uid = user->uid, .gid = user->gid};
	char folder[PATH_MAX], name[NAME_MAX + 1];

	umask(0);
	cleanup_close int into = open(q->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (into < 0) {
		if (!split(q->path, folder, name))
			return error_set(e, -EINVAL, "%.200s is no name for a file or folder", q->path);
		o.top = name;
		into = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (into < 0)
			return error_errno(e, "there is no folder %.200s", folder);
	}
	return tree_unpack(into, &o, e);
}

int files_run(const struct session_request *q, const struct user *user, struct error *e) {
	static const struct tree_options output = {.write = write_output, .notice = tell};

	return q->op == SESSION_PUT ? put(q, user, e) : tree_pack(q->path, &output, e);
}
