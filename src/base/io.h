// Whole reads and writes, files, and descriptors passed between processes.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// Read or write exactly n bytes, retrying on EINTR and short transfers. Return 0 or a negative errno; an early end of file is -ENODATA.
int read_full(int fd, void *to, size_t n);
int write_full(int fd, const void *from, size_t n);
int pread_full(int fd, void *to, size_t n, uint64_t offset);
int pwrite_full(int fd, const void *from, size_t n, uint64_t offset);

// Reads a file of at most `limit` bytes into a fresh buffer, NUL-terminated beyond its size. The caller frees *ret.
// -EFBIG when it is larger.
int read_file(const char *path, size_t limit, char **ret, size_t *ret_size, struct error *e);

// Replaces the file at `path` with the given content, durably: temporary file in the same folder, fsync, rename, fsync of the folder.
int write_file_durably(const char *path, const void *data, size_t size, mode_t mode, struct error *e);

// fsync of a folder, so that names created or removed in it survive a power cut.
int sync_folder(const char *path, struct error *e);

// Creates a folder and its parents (mode 0755 for parents). Existing ones are fine.
int make_folders(const char *path, mode_t mode, struct error *e);

// Removes a file or a whole tree, never following symbolic links; a missing one is fine.
int remove_tree(const char *path, struct error *e);

#define FDS_MAX 16

// Sends one message with up to FDS_MAX descriptors over a Unix socket. Returns 0 or a negative errno.
int send_with_fds(int sock, const void *data, size_t size, const int *fds, size_t nfds);

// Receives one message (SOCK_SEQPACKET). Returns its size, 0 at the end of the connection, or a negative errno; -EMSGSIZE when it did not
// fit. Descriptors come with FD_CLOEXEC; the caller owns them. *nfds: in, room in fds; out, how many came (surplus ones are closed
// and the call fails with -EMSGSIZE).
ssize_t recv_with_fds(int sock, void *data, size_t size, int *fds, size_t *nfds);

// Listens on, or connects to, a Unix socket of the given type (SOCK_STREAM, SOCK_SEQPACKET). Returns the descriptor or a negative errno.
int unix_listen(const char *path, int type, int backlog, struct error *e);
int unix_connect(const char *path, int type, struct error *e);

void close_all(int *fds, size_t n);
