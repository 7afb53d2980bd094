// File trees to and from archives; see tree.h.
//
// Unpacking resolves every path with openat2(2) and RESOLVE_BENEATH, so a link in the tree (of the archive's own making, or one that was there before)
// is followed only as far as it stays below the folder. A file is written under a name of its own and renamed when it is complete.
#include "base/tree.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/tar.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#define CHUNK 65536
#define DEPTH_MAX 128
#define COMPONENT_MAX 255
#define TEMPORARY ".stasis-cp-"

// Unpacking. ------------------------------------------------------------------------------------------------------------------

struct unpack {
	const struct tree_options *o;
	int folder;
	struct tar_reader reader;
	char path[TAR_PATH_MAX + 1];   // of the entry, checked
	char target[TAR_PATH_MAX + 1]; // of a hard link, checked
	char top[COMPONENT_MAX + 1];   // the archive's own name of its tree, with o->top
	int parent, file;              // where the entry goes; the file that is being written
	char temporary[40];
	uint64_t bytes;
};

// Checks a path and brings it into its plain form: no ".", no doubled slashes; ret may become empty (the folder itself).
static int check_path(const char *path, char ret[TAR_PATH_MAX + 1], struct error *e) {
	size_t n = 0;
	ret[0] = '\0';
	if (path[0] == '/')
		return error_set(e, -EINVAL, "the archive has a path that begins with a slash: %.200s", path);
	while (*path != '\0') {
		size_t size = strcspn(path, "/");
		if (size == 2 && memcmp(path, "..", 2) == 0)
			return error_set(e, -EINVAL, "the archive has a path with ..: %.200s", path);
		if (size > COMPONENT_MAX)
			return error_set(e, -ENAMETOOLONG, "the archive has a name of more than %d bytes: %.200s", COMPONENT_MAX, path);
		if (size > 0 && !(size == 1 && *path == '.')) {
			if (n > 0)
				ret[n++] = '/';
			memcpy(ret + n, path, size);
			n += size;
			ret[n] = '\0';
		}
		path += size;
		path += strspn(path, "/");
	}
	return 0;
}

// Puts o->top in the place of the tree's own name.
static int rename_top(struct unpack *u, char path[TAR_PATH_MAX + 1], struct error *e) {
	char whole[TAR_PATH_MAX + 1];
	size_t n = strcspn(path, "/");
	if (u->o->top == NULL || n == 0)
		return 0;
	if (u->top[0] == '\0') {
		memcpy(u->top, path, n);
		u->top[n] = '\0';
	}
	if (strlen(u->top) != n || memcmp(u->top, path, n) != 0)
		return error_set(e, -EINVAL, "the archive has more than one tree (%.200s beside %.200s): copy it into a folder", path,
				 u->top);
	if ((size_t)snprintf(whole, sizeof(whole), "%s%s", u->o->top, path + n) >= sizeof(whole))
		return error_set(e, -ENAMETOOLONG, "a path becomes too long: %.200s", path);
	strcpy(path, whole);
	return 0;
}

static int take_path(struct unpack *u, const char *from, char to[TAR_PATH_MAX + 1], struct error *e) {
	int r = check_path(from, to, e);
	return r < 0 ? r : rename_top(u, to, e);
}

static int open_beneath(int folder, const char *path, uint64_t flags) {
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS};
	int fd = (int)syscall(SYS_openat2, folder, path, &how, sizeof(how));
	return fd < 0 ? -errno : fd;
}

static int give_away(const struct unpack *u, int parent, const char *name) {
	return !u->o->own || fchownat(parent, name, u->o->uid, u->o->gid, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : -errno;
}

// Opens the folder `path` below ("": itself), and makes what is missing of it.
static int open_folder(const struct unpack *u, const char *path, struct error *e) {
	int fd = open_beneath(u->folder, path[0] == '\0' ? "." : path, O_PATH | O_DIRECTORY);
	if (fd != -ENOENT)
		return fd >= 0 ? fd
			       : error_set(e, fd, "cannot use the folder %.200s: %s", path,
					   fd == -EXDEV ? "a link in it leads outside" : strerror(-fd));
	char above[TAR_PATH_MAX + 1];
	const char *slash = strrchr(path, '/'), *name = slash != NULL ? slash + 1 : path;
	snprintf(above, sizeof(above), "%.*s", slash != NULL ? (int)(slash - path) : 0, path);
	cleanup_close int parent = open_folder(u, above, e);
	if (parent < 0)
		return parent;
	if (mkdirat(parent, name, 0755) < 0 || give_away(u, parent, name) < 0)
		return error_errno(e, "cannot make the folder %.200s", path);
	fd = open_beneath(u->folder, path, O_PATH | O_DIRECTORY);
	return fd >= 0 ? fd : error_set(e, fd, "cannot use the folder %.200s: %s", path, strerror(-fd));
}

// Opens the folder that `path` is in; *name points behind it.
static int open_parent(const struct unpack *u, const char *path, const char **name, struct error *e) {
	char above[TAR_PATH_MAX + 1];
	const char *slash = strrchr(path, '/');
	*name = slash != NULL ? slash + 1 : path;
	snprintf(above, sizeof(above), "%.*s", slash != NULL ? (int)(slash - path) : 0, path);
	return open_folder(u, above, e);
}

static int make_folder(const struct unpack *u, const struct tar_entry *t, struct error *e) {
	cleanup_close int there = open_beneath(u->folder, u->path, O_PATH | O_DIRECTORY);
	if (there >= 0)
		return 0; // and stays as it is
	cleanup_close int fd = open_folder(u, u->path, e);
	if (fd < 0)
		return fd;
	// Permissions cannot be set by an O_PATH descriptor.
	cleanup_close int folder = open_beneath(fd, ".", O_RDONLY | O_DIRECTORY);
	if (folder < 0 || fchmod(folder, (t->mode & u->o->mode_mask) | 0700) < 0)
		return error_errno(e, "cannot set the permissions of %.200s", u->path);
	return 0;
}

static void new_temporary(struct unpack *u) {
	uint64_t number = 0;
	(void)!getrandom(&number, sizeof(number), 0);
	snprintf(u->temporary, sizeof(u->temporary), TEMPORARY "%016llx", (unsigned long long)number);
}

// The complete file or link gets its name.
static int put_in_place(struct unpack *u, const char *name, struct error *e) {
	if (renameat(u->parent, u->temporary, u->parent, name) == 0) {
		// Two names of one file: renaming does nothing then.
		unlinkat(u->parent, u->temporary, 0);
		return 0;
	}
	int code = -errno;
	unlinkat(u->parent, u->temporary, 0);
	return error_set(e, code, "cannot put %.200s in place: %s", u->path,
			 code == -EISDIR ? "a folder of that name is there" : strerror(-code));
}

static int begin_file(struct unpack *u, const struct tar_entry *t, struct error *e) {
	if (u->o->bytes_max > 0 && (t->size > u->o->bytes_max || u->bytes > u->o->bytes_max - t->size))
		return error_set(e, -EFBIG, "the files have more than the %llu bytes that are accepted",
				 (unsigned long long)u->o->bytes_max);
	u->bytes += t->size;
	u->file = openat(u->parent, u->temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	return u->file >= 0 ? 0 : error_errno(e, "cannot make %.200s", u->path);
}

static int finish_file(struct unpack *u, struct error *e) {
	const struct tar_entry *t = &u->reader.entry;
	struct timespec times[2] = {{.tv_nsec = UTIME_NOW}, {.tv_sec = t->mtime}};
	const char *slash = strrchr(u->path, '/');
	cleanup_close int fd = take_fd(&u->file);
	if ((u->o->own && fchown(fd, u->o->uid, u->o->gid) < 0) || fchmod(fd, t->mode & u->o->mode_mask) < 0 || futimens(fd, times) < 0) {
		error_errno(e, "cannot set owner, permissions or time of %.200s", u->path);
		unlinkat(u->parent, u->temporary, 0);
		return -EACCES;
	}
	return put_in_place(u, slash != NULL ? slash + 1 : u->path, e);
}

static int make_symlink(struct unpack *u, const struct tar_entry *t, const char *name, struct error *e) {
	if (symlinkat(t->target, u->parent, u->temporary) < 0 || give_away(u, u->parent, u->temporary) < 0)
		return error_errno(e, "cannot make the link %.200s", u->path);
	return put_in_place(u, name, e);
}

static int make_hardlink(struct unpack *u, const struct tar_entry *t, const char *name, struct error *e) {
	const char *target_name;
	struct stat st;
	int r = take_path(u, t->target, u->target, e);
	if (r < 0)
		return r;
	if (u->target[0] == '\0')
		return error_set(e, -EINVAL, "the hard link %.200s leads to no file", u->path);
	cleanup_close int target = open_parent(u, u->target, &target_name, e);
	if (target < 0)
		return target;
	if (linkat(target, target_name, u->parent, u->temporary, 0) < 0)
		return error_errno(e, "cannot link %.200s to %.200s", u->path, u->target);
	if (fstatat(u->parent, u->temporary, &st, AT_SYMLINK_NOFOLLOW) < 0 || !S_ISREG(st.st_mode)) {
		unlinkat(u->parent, u->temporary, 0);
		return error_set(e, -EINVAL, "the hard link %.200s leads to no file", u->path);
	}
	return put_in_place(u, name, e);
}

static int begin_entry(struct unpack *u, struct error *e) {
	const struct tar_entry *t = &u->reader.entry;
	const char *name;
	int r = take_path(u, t->path, u->path, e);
	if (r < 0)
		return r;
	// The folder itself, as "./".
	if (u->path[0] == '\0')
		return t->type == TAR_FOLDER ? 0 : error_set(e, -EINVAL, "the archive has a file without a name");
	if (t->type == TAR_FOLDER)
		return make_folder(u, t, e);
	if (u->parent >= 0)
		close(u->parent);
	u->parent = open_parent(u, u->path, &name, e);
	if (u->parent < 0)
		return u->parent;
	new_temporary(u);
	if (t->type == TAR_SYMLINK)
		return make_symlink(u, t, name, e);
	if (t->type == TAR_HARDLINK)
		return make_hardlink(u, t, name, e);
	r = begin_file(u, t, e);
	return r < 0 || t->size > 0 ? r : finish_file(u, e);
}

static int take_content(struct unpack *u, const void *data, size_t size, struct error *e) {
	int r = write_full(u->file, data, size);
	if (r < 0)
		return error_set(e, r, "cannot write %.200s: %s", u->path, strerror(-r));
	return u->reader.left == 0 ? finish_file(u, e) : 0;
}

// Takes in a piece of the archive. Returns 1 at its end.
static int take_piece(struct unpack *u, const uint8_t *data, size_t size, struct error *e) {
	while (size > 0) {
		enum tar_event event;
		const void *content;
		size_t content_size;
		ssize_t n = tar_read(&u->reader, data, size, &event, &content, &content_size, e);
		int r = n < 0 ? (int)n : 0;
		if (r == 0 && event == TAR_ENTRY)
			r = begin_entry(u, e);
		else if (r == 0 && event == TAR_CONTENT)
			r = take_content(u, content, content_size, e);
		if (r < 0)
			return r;
		if (event == TAR_END)
			return 1;
		data += n;
		size -= (size_t)n;
	}
	return 0;
}

static int unpack_all(struct unpack *u, uint8_t *buffer, struct error *e) {
	bool ended = false;
	for (;;) {
		ssize_t n = u->o->read(u->o->arg, buffer, CHUNK);
		if (n < 0)
			return error_set(e, (int)n, "the archive cannot be read: %s", strerror((int)-n));
		if (n == 0)
			return ended ? 0 : error_set(e, -EBADMSG, "the archive is cut off");
		// Padding behind the end is read, so that its writer can finish.
		int r = ended ? 1 : take_piece(u, buffer, (size_t)n, e);
		if (r < 0)
			return r;
		ended = r > 0;
	}
}

int tree_unpack(int folder, const struct tree_options *o, struct error *e) {
	cleanup_free struct unpack *u = calloc(1, sizeof(*u));
	cleanup_free uint8_t *buffer = malloc(CHUNK);
	if (u == NULL || buffer == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	u->o = o;
	u->folder = folder;
	u->parent = u->file = -1;
	int r = unpack_all(u, buffer, e);
	if (u->file >= 0) {
		close(u->file);
		unlinkat(u->parent, u->temporary, 0);
	}
	if (u->parent >= 0)
		close(u->parent);
	return r;
}

// Packing. --------------------------------------------------------------------------------------------------------------------

struct pack {
	const struct tree_options *o;
	dev_t device;
	struct tar_entry entry;
	size_t path_size;
	uint8_t head[TAR_HEAD_MAX];
	uint8_t chunk[CHUNK];
};

static int pack_entry(struct pack *p, int parent, const char *name, unsigned depth, struct error *e);

static void notice(const struct pack *p, const char *what) {
	char text[512];
	if (p->o->notice == NULL)
		return;
	snprintf(text, sizeof(text), "left out: %.400s: %s", p->entry.path, what);
	p->o->notice(p->o->arg, text);
}

static int put(struct pack *p, const void *data, size_t size, struct error *e) {
	int r = p->o->write(p->o->arg, data, size);
	return r == 0 ? 0 : error_set(e, r, "the archive cannot be written: %s", strerror(-r));
}

static int put_head(struct pack *p, enum tar_type type, const struct stat *st, struct error *e) {
	p->entry.type = type;
	p->entry.mode = st->st_mode & 07777;
	p->entry.mtime = st->st_mtim.tv_sec;
	p->entry.size = type == TAR_FILE ? (uint64_t)st->st_size : 0;
	return put(p, p->head, tar_write_head(&p->entry, p->head), e);
}

static int put_zeros(struct pack *p, size_t size, struct error *e) {
	memset(p->chunk, 0, size);
	return size == 0 ? 0 : put(p, p->chunk, size, e);
}

static int pack_file(struct pack *p, int fd, const struct stat *st, struct error *e) {
	uint64_t left = (uint64_t)st->st_size;
	int r = put_head(p, TAR_FILE, st, e);
	while (r == 0 && left > 0) {
		ssize_t n = read(fd, p->chunk, left < CHUNK ? (size_t)left : CHUNK);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? error_errno(e, "cannot read %.200s", p->entry.path)
				     : error_set(e, -EIO, "%.200s became shorter while it was read", p->entry.path);
		r = put(p, p->chunk, (size_t)n, e);
		left -= (uint64_t)n;
	}
	return r < 0 ? r : put_zeros(p, tar_padding((uint64_t)st->st_size), e);
}

static int pack_link(struct pack *p, int parent, const char *name, const struct stat *st, struct error *e) {
	ssize_t n = readlinkat(parent, name, p->entry.target, sizeof(p->entry.target) - 1);
	if (n <= 0)
		return error_errno(e, "cannot read the link %.200s", p->entry.path);
	p->entry.target[n] = '\0';
	return put_head(p, TAR_SYMLINK, st, e);
}

// Packs what is in a folder; takes the descriptor.
static int pack_folder(struct pack *p, int fd, const struct stat *st, unsigned depth, struct error *e) {
	cleanup_dir DIR *d = fdopendir(fd);
	if (d == NULL) {
		close(fd);
		return error_set(e, -ENOMEM, "out of memory");
	}
	if (depth > DEPTH_MAX)
		return error_set(e, -ELOOP, "%.200s lies deeper than %d folders", p->entry.path, DEPTH_MAX);
	int r = put_head(p, TAR_FOLDER, st, e);
	while (r == 0) {
		errno = 0;
		struct dirent *entry = readdir(d);
		if (entry == NULL)
			return errno == 0 ? 0 : error_errno(e, "cannot read the folder %.200s", p->entry.path);
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
			r = pack_entry(p, dirfd(d), entry->d_name, depth + 1, e);
	}
	return r;
}

// Packs an open file or folder; takes the descriptor.
static int pack_open(struct pack *p, int fd, unsigned depth, struct error *e) {
	cleanup_close int owned = fd;
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot look at %.200s", p->entry.path);
	if (S_ISDIR(st.st_mode))
		return pack_folder(p, take_fd(&owned), &st, depth, e);
	if (S_ISREG(st.st_mode))
		return pack_file(p, fd, &st, e);
	notice(p, "no file, folder or link");
	return 0;
}

static int pack_named(struct pack *p, int parent, const char *name, unsigned depth, struct error *e) {
	struct stat st;
	if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : error_errno(e, "cannot look at %.200s", p->entry.path); // gone meanwhile
	if (S_ISLNK(st.st_mode))
		return pack_link(p, parent, name, &st, e);
	if (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode)) {
		notice(p, "no file, folder or link");
		return 0;
	}
	if (st.st_dev != p->device) {
		notice(p, "on another file system");
		return 0;
	}
	// Not blocking: what lies there now may be another thing than a moment ago.
	int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return errno == ENOENT ? 0 : error_errno(e, "cannot open %.200s", p->entry.path);
	return pack_open(p, fd, depth, e);
}

static int pack_entry(struct pack *p, int parent, const char *name, unsigned depth, struct error *e) {
	size_t before = p->path_size, n = strlen(name);
	if (before + 1 + n > TAR_PATH_MAX)
		return error_set(e, -ENAMETOOLONG, "the path of %.200s is too long", name);
	p->entry.path[before] = '/';
	memcpy(p->entry.path + before + 1, name, n + 1);
	p->path_size = before + 1 + n;
	int r = pack_named(p, parent, name, depth, e);
	p->path_size = before;
	p->entry.path[before] = '\0';
	return r;
}

// The last part of a path that is a name; "root" when there is none.
static void top_name(const char *path, char to[COMPONENT_MAX + 1]) {
	size_t end = strlen(path);
	while (end > 0 && path[end - 1] == '/')
		end--;
	size_t start = end;
	while (start > 0 && path[start - 1] != '/')
		start--;
	snprintf(to, COMPONENT_MAX + 1, "%.*s", (int)(end - start), path + start);
	if (to[0] == '\0' || strcmp(to, ".") == 0 || strcmp(to, "..") == 0)
		strcpy(to, "root");
}

int tree_pack(const char *path, const struct tree_options *o, struct error *e) {
	cleanup_free struct pack *p = calloc(1, sizeof(*p));
	struct stat st;
	if (p == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	p->o = o;
	top_name(path, p->entry.path);
	p->path_size = strlen(p->entry.path);
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open %.200s", path);
	if (fstat(fd, &st) < 0 || (!S_ISDIR(st.st_mode) && !S_ISREG(st.st_mode))) {
		close(fd);
		return error_set(e, -EINVAL, "%.200s is no file and no folder", path);
	}
	p->device = st.st_dev;
	int r = pack_open(p, fd, 0, e);
	return r < 0 ? r : put_zeros(p, 2 * TAR_BLOCK, e);
}
