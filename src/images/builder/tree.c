// Merging a layer: one walk over the layer's tree with a pair of open folders per level, so that no path is ever resolved again
// (and no link followed) while somebody's strange tree is copied.

#include "images/builder/tree.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <search.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>

#define DEPTH_MAX 1000
#define COPY_SIZE (256u << 10)
#define XATTR_LIST_MAX 65536
#define XATTR_VALUE_MAX 65536
#define OPAQUE "trusted.overlay.opaque"

struct link_seen {
	ino_t inode;
	char path[]; // below the target, of the first name
};

struct merge {
	int root;            // the target
	void *links;         // tsearch(3) tree of struct link_seen
	char path[PATH_MAX]; // of the folder being worked on, below the target; "" is the target itself
	char *names, *value; // room for extended attributes
	char *buffer;
	struct error *error;
};

static void cleanup_merge_fn(struct merge *m) {
	tdestroy(m->links, free);
	free(m->names);
	free(m->value);
	free(m->buffer);
	if (m->root >= 0)
		close(m->root);
}
#define cleanup_merge __attribute__((cleanup(cleanup_merge_fn)))

static int fail(struct merge *m, const char *what, const char *name) {
	int code = errno;
	if (code == ENOSPC || code == EDQUOT)
		return error_named(m->error, -ENOSPC, "DISK_STORAGE_FULL",
				   "The image's root file system does not fit on its disk (at /%s/%s).", m->path, name);
	errno = code;
	return error_errno(m->error, "cannot %s /%s/%s", what, m->path, name);
}

static int open_folder(int at, const char *name) {
	return openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
}

static bool is_dot(const char *name) {
	return name[0] == '.' && (name[1] == 0 || (name[1] == '.' && name[2] == 0));
}

// Removes what is called `name`, whatever it is. A missing one is fine.
static int remove_name(int at, const char *name, int depth) {
	if (unlinkat(at, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -1;
	if (depth > DEPTH_MAX) {
		errno = ELOOP;
		return -1;
	}
	int fd = open_folder(at, name);
	if (fd < 0)
		return -1;
	cleanup_dir DIR *d = fdopendir(fd);
	if (d == NULL) {
		close(fd);
		return -1;
	}
	for (const struct dirent *entry; (entry = readdir(d)) != NULL;)
		if (!is_dot(entry->d_name) && remove_name(dirfd(d), entry->d_name, depth + 1) < 0)
			return -1;
	return unlinkat(at, name, AT_REMOVEDIR);
}

static int empty_folder(int fd) {
	int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
	if (d == NULL)
		return -1;
	for (const struct dirent *entry; (entry = readdir(d)) != NULL;)
		if (!is_dot(entry->d_name) && remove_name(fd, entry->d_name, 0) < 0)
			return -1;
	return 0;
}

static bool is_overlays_own(const char *attribute) {
	return strncmp(attribute, "trusted.overlay.", 16) == 0;
}

// Sets on `to` the extended attributes of `from` (open descriptors, or paths below /proc/self/fd for links).
static int copy_attributes(struct merge *m, const char *from, const char *to) {
	ssize_t size = llistxattr(from, m->names, XATTR_LIST_MAX);
	if (size < 0)
		return errno == ENOTSUP ? 0 : -1;
	for (const char *name = m->names; name < m->names + size; name += strlen(name) + 1) {
		if (is_overlays_own(name))
			continue;
		ssize_t n = lgetxattr(from, name, m->value, XATTR_VALUE_MAX);
		if (n < 0 || (lsetxattr(to, name, m->value, (size_t)n, 0) < 0 && errno != ENOTSUP))
			return -1;
	}
	return 0;
}

// Owner, mode, attributes and times of an entry that has been made; in this order: changing the owner clears set-id bits and
// capabilities, and everything changes times.
static int copy_metadata(struct merge *m, int from, int to, const char *name, const struct stat *st) {
	if (fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		return fail(m, "set the owner of", name);
	if (!S_ISLNK(st->st_mode) && fchmodat(to, name, st->st_mode & 07777, 0) < 0)
		return fail(m, "set the mode of", name);
	char source[NAME_MAX + 64], target[NAME_MAX + 64];
	snprintf(source, sizeof(source), "/proc/self/fd/%d/%s", from, name);
	snprintf(target, sizeof(target), "/proc/self/fd/%d/%s", to, name);
	if (copy_attributes(m, source, target) < 0)
		return fail(m, "copy the attributes of", name);
	const struct timespec times[2] = {st->st_atim, st->st_mtim};
	if (utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) < 0)
		return fail(m, "set the times of", name);
	return 0;
}

static bool is_zero(const char *data, size_t size) {
	return size == COPY_SIZE && data[0] == 0 && memcmp(data, data + 1, size - 1) == 0;
}

// Large runs of zeros become holes: buildah's layers have none.
static int copy_bytes(struct merge *m, int in, int out, off_t at, off_t end) {
	while (at < end) {
		size_t want = end - at < (off_t)COPY_SIZE ? (size_t)(end - at) : COPY_SIZE;
		ssize_t n = pread(in, m->buffer, want, at);
		if (n == 0)
			break;
		if (n > 0) {
			int r = is_zero(m->buffer, (size_t)n) ? 0 : pwrite_full(out, m->buffer, (size_t)n, (uint64_t)at);
			if (r < 0) {
				errno = -r;
				return -1;
			}
			at += n;
		} else if (errno != EINTR) {
			return -1;
		}
	}
	return 0;
}

// Copies the content, holes as holes.
static int copy_content(struct merge *m, int in, int out, const struct stat *st) {
	bool sparse = (off_t)st->st_blocks * 512 < st->st_size;
	if (!sparse && st->st_size < (off_t)COPY_SIZE)
		return copy_bytes(m, in, out, 0, st->st_size);
	for (off_t at = 0; at < st->st_size;) {
		off_t data = lseek(in, at, SEEK_DATA);
		if (data < 0 && errno == ENXIO)
			break;
		off_t hole = data < 0 ? -1 : lseek(in, data, SEEK_HOLE);
		if (hole < 0 || copy_bytes(m, in, out, data, hole) < 0)
			return -1;
		at = hole;
	}
	return ftruncate(out, st->st_size);
}

static int copy_file(struct merge *m, int from, int to, const char *name, const struct stat *st) {
	cleanup_close int in = openat(from, name, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NOATIME);
	if (in < 0)
		return fail(m, "read", name);
	cleanup_close int out = openat(to, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (out < 0)
		return fail(m, "create", name);
	return copy_content(m, in, out, st) < 0 ? fail(m, "copy", name) : 0;
}

static int copy_symlink(struct merge *m, int from, int to, const char *name) {
	char target[PATH_MAX];
	ssize_t n = readlinkat(from, name, target, sizeof(target) - 1);
	if (n < 0)
		return fail(m, "read the link", name);
	target[n] = 0;
	return symlinkat(target, to, name) < 0 ? fail(m, "create the link", name) : 0;
}

static int compare_links(const void *a, const void *b) {
	const struct link_seen *x = a, *y = b;
	return x->inode < y->inode ? -1 : x->inode > y->inode;
}

static const char *known_link(struct merge *m, ino_t inode) {
	const struct link_seen wanted = {.inode = inode};
	struct link_seen *const *found = tfind(&wanted, &m->links, compare_links);
	return found != NULL ? (*found)->path : NULL;
}

static int remember_link(struct merge *m, ino_t inode, const char *name) {
	size_t room = strlen(m->path) + strlen(name) + 2;
	struct link_seen *seen = malloc(sizeof(*seen) + room);
	if (seen == NULL)
		return fail(m, "remember", name);
	seen->inode = inode;
	snprintf(seen->path, room, "%s%s%s", m->path, m->path[0] != 0 ? "/" : "", name);
	if (tsearch(seen, &m->links, compare_links) == NULL) {
		free(seen);
		return fail(m, "remember", name);
	}
	return 0;
}

static int merge_file(struct merge *m, int from, int to, const char *name, const struct stat *st) {
	if (remove_name(to, name, 0) < 0)
		return fail(m, "replace", name);
	const char *first = st->st_nlink > 1 ? known_link(m, st->st_ino) : NULL;
	if (first != NULL)
		return linkat(m->root, first, to, name, 0) < 0 ? fail(m, "link", name) : 0;
	int r;
	if (S_ISREG(st->st_mode))
		r = copy_file(m, from, to, name, st);
	else if (S_ISLNK(st->st_mode))
		r = copy_symlink(m, from, to, name);
	else
		r = mknodat(to, name, st->st_mode, st->st_rdev) < 0 ? fail(m, "create", name) : 0;
	if (r == 0)
		r = copy_metadata(m, from, to, name, st);
	if (r == 0 && st->st_nlink > 1)
		r = remember_link(m, st->st_ino, name);
	return r;
}

static int merge_folder(struct merge *m, int from, int to, int depth);

static int merge_subfolder(struct merge *m, int from, int to, const char *name, const struct stat *st, int depth) {
	struct stat old;
	bool exists = fstatat(to, name, &old, AT_SYMLINK_NOFOLLOW) == 0;
	if (exists && !S_ISDIR(old.st_mode)) {
		if (unlinkat(to, name, 0) < 0)
			return fail(m, "replace", name);
		exists = false;
	}
	if (!exists && mkdirat(to, name, 0700) < 0)
		return fail(m, "create", name);
	cleanup_close int in = open_folder(from, name);
	cleanup_close int out = open_folder(to, name);
	if (in < 0 || out < 0)
		return fail(m, "open", name);
	char opaque = 0;
	if (exists && fgetxattr(in, OPAQUE, &opaque, 1) == 1 && opaque == 'y' && empty_folder(out) < 0)
		return fail(m, "empty", name);

	size_t length = strlen(m->path);
	int n = snprintf(m->path + length, sizeof(m->path) - length, "%s%s", length > 0 ? "/" : "", name);
	if (n < 0 || (size_t)n >= sizeof(m->path) - length) {
		m->path[length] = 0;
		errno = ENAMETOOLONG;
		return fail(m, "copy", name);
	}
	int r = merge_folder(m, in, out, depth + 1);
	if (r < 0)
		return r;
	m->path[length] = 0;
	return copy_metadata(m, from, to, name, st);
}

static int merge_folder(struct merge *m, int from, int to, int depth) {
	if (depth > DEPTH_MAX) {
		errno = ELOOP;
		return fail(m, "copy a tree of more than 1000 levels at", "");
	}
	int copy = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	cleanup_dir DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
	if (d == NULL)
		return fail(m, "list", "");
	for (const struct dirent *entry; errno = 0, (entry = readdir(d)) != NULL;) {
		const char *name = entry->d_name;
		struct stat st;
		if (is_dot(name))
			continue;
		if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			return fail(m, "look at", name);
		int r;
		if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0))
			r = remove_name(to, name, 0) < 0 ? fail(m, "remove", name) : 0;
		else if (S_ISDIR(st.st_mode))
			r = merge_subfolder(m, from, to, name, &st, depth);
		else
			r = merge_file(m, from, to, name, &st);
		if (r < 0)
			return r;
	}
	return errno != 0 ? fail(m, "list", "") : 0;
}

int tree_merge(const char *from, const char *to, struct error *e) {
	cleanup_merge struct merge m = {.root = open(to, O_RDONLY | O_DIRECTORY | O_CLOEXEC), .error = e};
	cleanup_close int source = open(from, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (m.root < 0 || source < 0)
		return error_errno(e, "cannot open %s", m.root < 0 ? to : from);
	m.names = malloc(XATTR_LIST_MAX);
	m.value = malloc(XATTR_VALUE_MAX);
	m.buffer = malloc(COPY_SIZE);
	if (m.names == NULL || m.value == NULL || m.buffer == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	struct stat st;
	if (fstat(source, &st) < 0)
		return error_errno(e, "cannot look at %s", from);
	int r = merge_folder(&m, source, m.root, 0);
	// 0555 is what containers/storage gives to layers that say nothing about the root folder itself.
	bool said = st.st_uid != 0 || st.st_gid != 0 || (st.st_mode & 07777) != 0555;
	return r < 0 || !said ? r : copy_metadata(&m, source, m.root, ".", &st);
}
