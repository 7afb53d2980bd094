// Packs a folder into the zip that CreateMicrovmImage wants: Dockerfile at the root, file modes and symbolic links kept.
#include "cli/cli.h"

#include "base/cleanup.h"

#include <archive.h>
#include <archive_entry.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct buffer {
	char *data;
	size_t size, room, limit;
};

static la_ssize_t collect(struct archive *a, void *arg, const void *data, size_t size) {
	struct buffer *b = arg;
	if (size > b->limit - b->size) {
		archive_set_error(a, EFBIG, "the archive would be larger than %zu MiB", b->limit >> 20);
		return -1;
	}
	if (b->size + size > b->room) {
		size_t room = b->room == 0 ? 65536 : b->room;
		while (room < b->size + size)
			room *= 2;
		char *more = realloc(b->data, room);
		if (more == NULL) {
			archive_set_error(a, ENOMEM, "out of memory");
			return -1;
		}
		b->data = more;
		b->room = room;
	}
	memcpy(b->data + b->size, data, size);
	b->size += size;
	return (la_ssize_t)size;
}

static int copy_content(struct archive *to, const char *path, struct error *e) {
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open %s", path);
	char block[65536];
	for (;;) {
		ssize_t n = read(fd, block, sizeof(block));
		if (n == 0)
			return 0;
		if (n < 0)
			return error_errno(e, "cannot read %s", path);
		if (archive_write_data(to, block, (size_t)n) < 0)
			return error_set(e, -EIO, "cannot pack %s: %s", path, archive_error_string(to));
	}
}

static int pack(struct archive *from, struct archive *to, struct archive_entry *entry, const char *folder, struct error *e) {
	size_t root = strlen(folder);
	for (;;) {
		int r = archive_read_next_header2(from, entry);
		if (r == ARCHIVE_EOF)
			return 0;
		if (r != ARCHIVE_OK)
			return error_set(e, -EIO, "cannot read %s: %s", folder, archive_error_string(from));
		archive_read_disk_descend(from);
		const char *path = archive_entry_pathname(entry);
		if (strncmp(path, folder, root) != 0 || path[root] != '/')
			continue;
		cleanup_free char *source = strdup(path), *inside = strdup(path + root + 1);
		if (source == NULL || inside == NULL)
			return error_set(e, -ENOMEM, "out of memory");
		archive_entry_set_pathname(entry, inside);
		if (archive_write_header(to, entry) != ARCHIVE_OK)
			return error_set(e, -EIO, "cannot pack %s: %s", source, archive_error_string(to));
		if (archive_entry_filetype(entry) == AE_IFREG && (r = copy_content(to, source, e)) < 0)
			return r;
	}
}

int archive_folder(const char *given, size_t limit, char **ret, size_t *ret_size, struct error *e) {
	cleanup_free char *folder = realpath(given, NULL);
	if (folder == NULL)
		return error_errno(e, "cannot find %s", given);
	cleanup_free char *dockerfile = NULL;
	if (asprintf(&dockerfile, "%s/Dockerfile", folder) < 0)
		return error_set(e, -ENOMEM, "out of memory");
	if (access(dockerfile, R_OK) < 0)
		return error_set(e, -ENOENT, "%s has no Dockerfile: the folder needs one at its root", folder);
	struct buffer b = {.limit = limit};
	struct archive *from = archive_read_disk_new(), *to = archive_write_new();
	struct archive_entry *entry = archive_entry_new();
	int r;
	if (from == NULL || to == NULL || entry == NULL)
		r = error_set(e, -ENOMEM, "out of memory");
	else if (archive_write_set_format_zip(to) != ARCHIVE_OK || archive_write_set_bytes_in_last_block(to, 1) != ARCHIVE_OK ||
		 archive_write_open(to, &b, NULL, collect, NULL) != ARCHIVE_OK)
		r = error_set(e, -EIO, "cannot write a zip: %s", archive_error_string(to));
	else if (archive_read_disk_set_standard_lookup(from) != ARCHIVE_OK || archive_read_disk_open(from, folder) != ARCHIVE_OK)
		r = error_set(e, -EIO, "cannot read %s: %s", folder, archive_error_string(from));
	else
		r = pack(from, to, entry, folder, e);
	if (r == 0 && archive_write_close(to) != ARCHIVE_OK)
		r = error_set(e, -EIO, "cannot finish the zip: %s", archive_error_string(to));
	archive_entry_free(entry);
	archive_write_free(to);
	archive_read_free(from);
	if (r < 0) {
		free(b.data);
		return r;
	}
	*ret = b.data;
	*ret_size = b.size;
	return 0;
}
