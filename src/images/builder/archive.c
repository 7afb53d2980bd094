// Reading the artifact with libarchive's zip reader (the seeking one: names and sizes come from the central directory).
//
// Two passes over the same bytes. The first one reads names and declared sizes only, so that a bad archive fails before a byte is written.
// The second one unpacks, and trusts nothing that the first one saw: the limits hold for what really comes out of the decompressor.
// libarchive's own checks (no absolute names, no "..", nothing through links) stand behind ours.

#include "images/builder/archive.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <archive.h>
#include <archive_entry.h>
#include <ctype.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

#define NAME_MAX_BYTES 4000
#define COMPONENT_MAX_BYTES 255
#define INVALID "ARCHIVE_INVALID"

static void cleanup_reader_fn(struct archive **a) {
	if (*a != NULL)
		archive_read_free(*a);
}
static void cleanup_writer_fn(struct archive **a) {
	if (*a != NULL)
		archive_write_free(*a);
}
#define cleanup_reader __attribute__((cleanup(cleanup_reader_fn)))
#define cleanup_writer __attribute__((cleanup(cleanup_writer_fn)))

struct cursor {
	struct archive_source source;
	uint64_t at;
	uint8_t buffer[65536];
};

static la_ssize_t cursor_read(struct archive *a, void *context, const void **ret) {
	struct cursor *c = context;
	uint64_t left = c->at < c->source.size ? c->source.size - c->at : 0;
	size_t n = left < sizeof(c->buffer) ? (size_t)left : sizeof(c->buffer);
	if (c->source.fd < 0) {
		*ret = c->source.data + c->at;
	} else {
		int r = n > 0 ? pread_full(c->source.fd, c->buffer, n, c->at) : 0;
		if (r < 0) {
			archive_set_error(a, -r, "cannot read the artifact: %s", strerror(-r));
			return -1;
		}
		*ret = c->buffer;
	}
	c->at += n;
	return (la_ssize_t)n;
}

static la_int64_t cursor_seek(struct archive *a, void *context, la_int64_t offset, int whence) {
	struct cursor *c = context;
	int64_t from = whence == SEEK_SET ? 0 : whence == SEEK_CUR ? (int64_t)c->at : (int64_t)c->source.size;
	int64_t to;
	if (__builtin_add_overflow(from, offset, &to) || to < 0 || (uint64_t)to > c->source.size) {
		archive_set_error(a, EINVAL, "it points beyond its own end");
		return ARCHIVE_FATAL;
	}
	c->at = (uint64_t)to;
	return to;
}

static la_int64_t cursor_skip(struct archive *a, void *context, la_int64_t request) {
	struct cursor *c = context;
	uint64_t left = c->source.size - c->at;
	uint64_t n = request < 0 ? 0 : (uint64_t)request < left ? (uint64_t)request : left;
	c->at += n;
	return (la_int64_t)n;
}

// Text of a stranger's, made fit for one line of a message.
static const char *printable(const char *s, char to[static 128]) {
	size_t n = 0;
	for (; s != NULL && s[n] != 0 && n < 120; n++)
		to[n] = (unsigned char)s[n] < 0x20 || s[n] == 0x7f ? '?' : s[n];
	while (n > 0 && s[n] != 0 && ((unsigned char)to[n - 1] & 0xc0) == 0x80)
		n--; // do not cut a character in the middle
	if (n > 0 && s[n] != 0 && (unsigned char)to[n - 1] >= 0xc0)
		n--;
	strcpy(to + n, s != NULL && s[n] != 0 ? "…" : "");
	return to;
}

static bool is_utf8(const char *text) {
	const uint8_t *s = (const uint8_t *)text;
	while (*s != 0) {
		size_t more = *s < 0x80 ? 0 : *s >= 0xc2 && *s < 0xe0 ? 1 : *s >= 0xe0 && *s < 0xf0 ? 2 : *s >= 0xf0 && *s < 0xf5 ? 3 : 9;
		if (more == 9)
			return false;
		// Overlong forms, surrogates, and beyond U+10FFFF: RFC 3629, section 4.
		if ((*s == 0xe0 && s[1] < 0xa0) || (*s == 0xed && s[1] >= 0xa0) || (*s == 0xf0 && s[1] < 0x90) ||
		    (*s == 0xf4 && s[1] >= 0x90))
			return false;
		for (s++; more > 0; more--, s++)
			if ((*s & 0xc0) != 0x80)
				return false;
	}
	return true;
}

// Walks over a path's components and follows how deep it is below the folder; -1 when it leaves it or is not acceptable at all.
static int depth_of(const char *path, int depth, bool dots_allowed) {
	while (*path != 0) {
		size_t n = strcspn(path, "/");
		if (n > COMPONENT_MAX_BYTES)
			return -1;
		if (n == 2 && path[0] == '.' && path[1] == '.') {
			if (!dots_allowed || --depth < 0)
				return -1;
		} else if (n > 0 && !(n == 1 && path[0] == '.')) {
			depth++;
		}
		path += n;
		while (*path == '/')
			path++;
	}
	return depth;
}

bool archive_name_is_safe(const char *name) {
	return name[0] != 0 && name[0] != '/' && strlen(name) <= NAME_MAX_BYTES && depth_of(name, 0, false) >= 0 && is_utf8(name);
}

bool archive_link_is_safe(const char *name, const char *target) {
	if (!archive_name_is_safe(name) || target[0] == 0 || target[0] == '/' || strlen(target) > NAME_MAX_BYTES)
		return false;
	int parent = depth_of(name, 0, false) - 1;
	return parent >= 0 && depth_of(target, parent, true) >= 0;
}

static int read_problem(struct archive *a, struct error *e) {
	const char *why = archive_error_string(a);
	char text[128];
	return error_named(e, -EBADMSG, INVALID,
			   "The artifact is not a readable zip: %s. Make it again with 'zip -r app.zip .' and check it with 'unzip -t'.",
			   why != NULL ? printable(why, text) : "it is damaged");
}

static int open_reader(struct cursor *c, struct archive **ret, struct error *e) {
	if (c->source.size == 0)
		return error_named(e, -EBADMSG, INVALID, "The artifact is empty; it must be a zip with a Dockerfile at its root.");
	struct archive *a = archive_read_new();
	if (a == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	*ret = a;
	archive_read_support_format_zip_seekable(a);
	archive_read_set_read_callback(a, cursor_read);
	archive_read_set_seek_callback(a, cursor_seek);
	archive_read_set_skip_callback(a, cursor_skip);
	archive_read_set_callback_data(a, c);
	return archive_read_open1(a) == ARCHIVE_OK ? 0 : read_problem(a, e);
}

// The two methods that every zip tool writes. The others may ask for gigabytes of memory before the first byte (LZMA's dictionary, PPMd's
// model). libarchive tells the method of the entry at hand only here: "ZIP 2.0 (deflation)".
static int check_method(struct archive *a, const char *name, struct error *e) {
	const char *format = archive_format_name(a);
	const char *method = format != NULL ? strchr(format, '(') : NULL;
	if (method == NULL || strcmp(method, "(uncompressed)") == 0 || strcmp(method, "(deflation)") == 0)
		return 0;
	return error_named(
		e, -EBADMSG, INVALID,
		"The artifact's entry '%s' is compressed by another method than deflate %s; make the zip with 'zip -r app.zip .'.", name,
		method);
}

static int check_entry(struct archive *a, struct archive_entry *entry, const struct archive_limits *l, struct archive_summary *sum,
		       struct error *e) {
	char text[128];
	const char *name = archive_entry_pathname(entry);
	if (++sum->entries > l->entries)
		return error_named(e, -EBADMSG, INVALID,
				   "The artifact has more than %" PRIu64 " entries; leave out what the Dockerfile does not need.",
				   l->entries);
	if (name == NULL || !is_utf8(name))
		return error_named(e, -EBADMSG, INVALID,
				   "The artifact has a file name that is not UTF-8 (entry %" PRIu64 "); rename the file.", sum->entries);
	printable(name, text);
	if (!archive_name_is_safe(name))
		return error_named(
			e, -EBADMSG, INVALID,
			"The artifact's entry '%s' has an absolute, overlong or '..' path; zip the folder's content with relative names.",
			text);
	if (archive_entry_is_encrypted(entry))
		return error_named(e, -EBADMSG, INVALID, "The artifact's entry '%s' is encrypted; make the zip without a password.", text);
	int r = check_method(a, text, e);
	if (r < 0)
		return r;
	mode_t type = archive_entry_filetype(entry);
	if (type == AE_IFLNK) {
		const char *target = archive_entry_symlink(entry);
		if (target == NULL || !archive_link_is_safe(name, target))
			return error_named(e, -EBADMSG, INVALID,
					   "The artifact's symbolic link '%s' leads out of the archive; make it relative, or create it in "
					   "the Dockerfile.",
					   text);
	} else if (type != AE_IFREG && type != AE_IFDIR) {
		return error_named(e, -EBADMSG, INVALID, "The artifact's entry '%s' is neither a file, a folder nor a link; leave it out.",
				   text);
	}
	int64_t size = archive_entry_size_is_set(entry) && type == AE_IFREG ? archive_entry_size(entry) : 0;
	if (size < 0 || (uint64_t)size > l->bytes || sum->bytes + (uint64_t)size > l->bytes)
		return error_named(e, -EBADMSG, INVALID,
				   "The artifact unpacks to more than %" PRIu64 " MiB; leave out what the Dockerfile does not need.",
				   l->bytes >> 20);
	return 0;
}

// The name without a leading "./".
static const char *plain_name(const char *name) {
	while (name[0] == '.' && name[1] == '/')
		for (name += 2; *name == '/'; name++)
			;
	return name;
}

int archive_check(const struct archive_source *s, const struct archive_limits *l, const char *dockerfile, struct archive_summary *ret,
		  struct error *e) {
	cleanup_free struct cursor *c = calloc(1, sizeof(*c));
	if (c == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	c->source = *s;
	cleanup_reader struct archive *a = NULL;
	*ret = (struct archive_summary){0};
	int r = open_reader(c, &a, e);
	if (r < 0)
		return r;
	const char *wanted = plain_name(dockerfile);
	struct archive_entry *entry;
	while ((r = archive_read_next_header(a, &entry)) == ARCHIVE_OK || r == ARCHIVE_WARN) {
		r = check_entry(a, entry, l, ret, e);
		if (r < 0)
			return r;
		if (archive_entry_filetype(entry) == AE_IFDIR)
			continue;
		const char *name = plain_name(archive_entry_pathname(entry));
		const char *base = strrchr(name, '/');
		if (strcmp(name, wanted) == 0)
			ret->has_dockerfile = true;
		else if (strcasecmp(base != NULL ? base + 1 : name, wanted) == 0 && ret->elsewhere[0] == 0)
			printable(name, ret->elsewhere);
		if (archive_entry_filetype(entry) == AE_IFREG && archive_entry_size_is_set(entry))
			ret->bytes += (uint64_t)archive_entry_size(entry);
	}
	return r == ARCHIVE_EOF ? 0 : read_problem(a, e);
}

static int write_problem(struct archive *disk, const char *name, struct error *e) {
	char text[128];
	int code = archive_errno(disk);
	printable(name, text);
	if (code == ENOSPC || code == EDQUOT)
		return error_named(e, -ENOSPC, "DISK_STORAGE_FULL", "The artifact does not fit on the builder's disk (at '%s').", text);
	const char *why = archive_error_string(disk);
	char reason[128];
	return error_named(e, -EBADMSG, INVALID, "The artifact's entry '%s' cannot be unpacked: %s.", text,
			   why != NULL ? printable(why, reason) : strerror(code));
}

static int unpack_data(struct archive *a, struct archive *disk, const char *name, const struct archive_limits *l,
		       struct archive_summary *sum, struct error *e) {
	const void *data;
	size_t size;
	la_int64_t offset;
	int r;
	// A warning is a wrong checksum or size.
	while ((r = archive_read_data_block(a, &data, &size, &offset)) == ARCHIVE_OK) {
		sum->bytes += size;
		if (offset < 0 || sum->bytes > l->bytes || (uint64_t)offset > l->bytes)
			return error_named(e, -EBADMSG, INVALID,
					   "The artifact unpacks to more than %" PRIu64
					   " MiB; leave out what the Dockerfile does not need.",
					   l->bytes >> 20);
		if (archive_write_data_block(disk, data, size, offset) < ARCHIVE_OK)
			return write_problem(disk, name, e);
	}
	return r == ARCHIVE_EOF ? 0 : read_problem(a, e);
}

// Modes as the zip says, within reason: no set-id bits (the owner is not the one who set them), and what has no mode at all gets the
// usual one.
static void set_mode(struct archive_entry *entry) {
	bool folder = archive_entry_filetype(entry) == AE_IFDIR;
	mode_t mode = archive_entry_perm(entry) & 0777;
	if (mode == 0)
		mode = folder ? 0755 : 0644;
	archive_entry_set_perm(entry, mode | (folder ? 0700 : 0400));
}

int archive_unpack(const struct archive_source *s, const struct archive_limits *l, struct archive_summary *ret, struct error *e) {
	cleanup_free struct cursor *c = calloc(1, sizeof(*c));
	if (c == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	c->source = *s;
	cleanup_reader struct archive *a = NULL;
	cleanup_writer struct archive *disk = archive_write_disk_new();
	if (disk == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	archive_write_disk_set_options(disk, ARCHIVE_EXTRACT_PERM | ARCHIVE_EXTRACT_TIME | ARCHIVE_EXTRACT_UNLINK |
						     ARCHIVE_EXTRACT_SECURE_SYMLINKS | ARCHIVE_EXTRACT_SECURE_NODOTDOT |
						     ARCHIVE_EXTRACT_SECURE_NOABSOLUTEPATHS);
	*ret = (struct archive_summary){0};
	int r = open_reader(c, &a, e);
	if (r < 0)
		return r;
	struct archive_entry *entry;
	while ((r = archive_read_next_header(a, &entry)) == ARCHIVE_OK || r == ARCHIVE_WARN) {
		r = check_entry(a, entry, l, ret, e);
		if (r < 0)
			return r;
		set_mode(entry);
		const char *name = archive_entry_pathname(entry);
		if (archive_write_header(disk, entry) < ARCHIVE_WARN)
			return write_problem(disk, name, e);
		r = archive_entry_filetype(entry) == AE_IFREG ? unpack_data(a, disk, name, l, ret, e) : 0;
		if (r < 0)
			return r;
		if (archive_write_finish_entry(disk) < ARCHIVE_WARN)
			return write_problem(disk, name, e);
	}
	if (r != ARCHIVE_EOF)
		return read_problem(a, e);
	return archive_write_close(disk) == ARCHIVE_OK ? 0 : write_problem(disk, "(folders)", e);
}
