// Whole reads and writes, files, descriptors; see io.h.
#include "base/io.h"

#include "base/cleanup.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

int read_full(int fd, void *to, size_t n) {
	char *p = to;
	while (n > 0) {
		ssize_t got = read(fd, p, n);
		if (got == 0)
			return -ENODATA;
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += got;
		n -= (size_t)got;
	}
	return 0;
}

int write_full(int fd, const void *from, size_t n) {
	const char *p = from;
	while (n > 0) {
		ssize_t put = write(fd, p, n);
		if (put < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += put;
		n -= (size_t)put;
	}
	return 0;
}

int pread_full(int fd, void *to, size_t n, uint64_t offset) {
	char *p = to;
	while (n > 0) {
		ssize_t got = pread(fd, p, n, (off_t)offset);
		if (got == 0)
			return -ENODATA;
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += got;
		n -= (size_t)got;
		offset += (uint64_t)got;
	}
	return 0;
}

int pwrite_full(int fd, const void *from, size_t n, uint64_t offset) {
	const char *p = from;
	while (n > 0) {
		ssize_t put = pwrite(fd, p, n, (off_t)offset);
		if (put < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		p += put;
		n -= (size_t)put;
		offset += (uint64_t)put;
	}
	return 0;
}

int read_file(const char *path, size_t limit, char **ret, size_t *ret_size, struct error *e) {
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open %s", path);
	size_t room = 4096, size = 0;
	cleanup_free char *data = malloc(room + 1);
	if (data == NULL)
		return error_set(e, -ENOMEM, "out of memory reading %s", path);
	for (;;) {
		if (size == room) {
			if (room > limit)
				return error_set(e, -EFBIG, "%s is larger than %zu bytes", path, limit);
			room *= 2;
			char *more = realloc(data, room + 1);
			if (more == NULL)
				return error_set(e, -ENOMEM, "out of memory reading %s", path);
			data = more;
		}
		ssize_t got = read(fd, data + size, room - size);
		if (got == 0)
			break;
		if (got < 0) {
			if (errno == EINTR)
				continue;
			return error_errno(e, "cannot read %s", path);
		}
		size += (size_t)got;
	}
	if (size > limit)
		return error_set(e, -EFBIG, "%s is larger than %zu bytes", path, limit);
	data[size] = '\0';
	*ret = take_ptr(data);
	if (ret_size != NULL)
		*ret_size = size;
	return 0;
}

static int parent_of(const char *path, char *to, size_t room, struct error *e) {
	const char *slash = strrchr(path, '/');
	size_t n = slash == NULL ? 1 : slash == path ? 1 : (size_t)(slash - path);
	if (n >= room)
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", path);
	if (slash == NULL)
		memcpy(to, ".", 2);
	else {
		memcpy(to, path, n);
		to[n] = '\0';
	}
	return 0;
}

int sync_folder(const char *path, struct error *e) {
	cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open the folder %s", path);
	if (fsync(fd) < 0)
		return error_errno(e, "cannot sync the folder %s", path);
	return 0;
}

int write_file_durably(const char *path, const void *data, size_t size, mode_t mode, struct error *e) {
	char folder[4096], temporary[4096];
	int r = parent_of(path, folder, sizeof(folder), e);
	if (r < 0)
		return r;
	int n = snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path);
	if (n < 0 || (size_t)n >= sizeof(temporary))
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", path);
	cleanup_close int fd = mkostemp(temporary, O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot create %s", temporary);
	r = write_full(fd, data, size);
	if (r < 0)
		error_set(e, r, "cannot write %s: %s", temporary, strerror(-r));
	else if (fchmod(fd, mode) < 0 || fsync(fd) < 0)
		r = error_errno(e, "cannot write %s", temporary);
	else if (rename(temporary, path) < 0)
		r = error_errno(e, "cannot rename %s to %s", temporary, path);
	if (r < 0) {
		unlink(temporary);
		return r;
	}
	return sync_folder(folder, e);
}

int make_folders(const char *path, mode_t mode, struct error *e) {
	char partial[4096];
	size_t n = strlen(path);
	if (n == 0 || n >= sizeof(partial))
		return error_set(e, -ENAMETOOLONG, "cannot create a folder of %zu bytes of name", n);
	for (size_t i = 1; i <= n; i++) {
		if (path[i] != '/' && path[i] != '\0')
			continue;
		memcpy(partial, path, i);
		partial[i] = '\0';
		if (mkdir(partial, path[i] == '\0' ? mode : 0755) < 0 && errno != EEXIST)
			return error_errno(e, "cannot create the folder %s", partial);
	}
	return 0;
}

static int remove_at(int folder, const char *name) {
	if (unlinkat(folder, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	int fd = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	cleanup_dir DIR *dir = fdopendir(fd);
	if (dir == NULL) {
		close(fd);
		return -ENOMEM;
	}
	for (struct dirent *entry; (entry = readdir(dir)) != NULL;) {
		if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
			continue;
		int r = remove_at(fd, entry->d_name);
		if (r < 0)
			return r;
	}
	if (unlinkat(folder, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		return -errno;
	return 0;
}

int remove_tree(const char *path, struct error *e) {
	int r = remove_at(AT_FDCWD, path);
	if (r < 0)
		return error_set(e, r, "cannot remove %s: %s", path, strerror(-r));
	return 0;
}

int send_with_fds(int sock, const void *data, size_t size, const int *fds, size_t nfds) {
	if (nfds > FDS_MAX)
		return -EINVAL;
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	} control = {0};
	struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1};
	if (nfds > 0) {
		m.msg_control = control.space;
		m.msg_controllen = CMSG_SPACE(sizeof(int) * nfds);
		struct cmsghdr *c = CMSG_FIRSTHDR(&m);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * nfds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * nfds);
	}
	ssize_t put;
	do
		put = sendmsg(sock, &m, MSG_NOSIGNAL);
	while (put < 0 && errno == EINTR);
	if (put < 0)
		return -errno;
	return (size_t)put == size ? 0 : -EMSGSIZE;
}

ssize_t recv_with_fds(int sock, void *data, size_t size, int *fds, size_t *nfds) {
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(sizeof(int) * FDS_MAX)];
	} control;
	struct iovec part = {.iov_base = data, .iov_len = size};
	struct msghdr m = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof(control.space)};
	size_t room = nfds == NULL ? 0 : *nfds, count = 0;
	ssize_t got;
	do
		got = recvmsg(sock, &m, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return -errno;
	bool surplus = (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c != NULL; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < n; i++) {
			int fd;
			memcpy(&fd, CMSG_DATA(c) + i * sizeof(int), sizeof(int));
			if (count < room)
				fds[count++] = fd;
			else {
				close(fd);
				surplus = true;
			}
		}
	}
	if (surplus) {
		close_all(fds, count);
		count = 0;
		got = -EMSGSIZE;
	}
	if (nfds != NULL)
		*nfds = count;
	return got;
}

static int unix_address(const char *path, struct sockaddr_un *to, struct error *e) {
	*to = (struct sockaddr_un){.sun_family = AF_UNIX};
	if (strlen(path) >= sizeof(to->sun_path))
		return error_set(e, -ENAMETOOLONG, "the socket path %s is longer than %zu bytes", path, sizeof(to->sun_path) - 1);
	memcpy(to->sun_path, path, strlen(path) + 1);
	return 0;
}

int unix_listen(const char *path, int type, int backlog, struct error *e) {
	struct sockaddr_un address;
	int r = unix_address(path, &address, e);
	if (r < 0)
		return r;
	cleanup_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_errno(e, "cannot create a socket for %s", path);
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_errno(e, "cannot bind %s", path);
	if (listen(fd, backlog) < 0)
		return error_errno(e, "cannot listen on %s", path);
	return take_fd(&fd);
}

int unix_connect(const char *path, int type, struct error *e) {
	struct sockaddr_un address;
	int r = unix_address(path, &address, e);
	if (r < 0)
		return r;
	cleanup_close int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return error_errno(e, "cannot create a socket for %s", path);
	do
		r = connect(fd, (struct sockaddr *)&address, sizeof(address));
	while (r < 0 && errno == EINTR);
	if (r < 0)
		return error_errno(e, "cannot connect to %s", path);
	return take_fd(&fd);
}

void close_all(int *fds, size_t n) {
	for (size_t i = 0; i < n; i++) {
		if (fds[i] >= 0)
			close(fds[i]);
		fds[i] = -1;
	}
}
