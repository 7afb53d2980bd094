// tar archives; see tar.h.
#include "base/tar.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Where the fields of a header lie (POSIX.1-2017, pax, "ustar Interchange Format").
#define NAME_AT 0
#define NAME_SIZE 100
#define MODE_AT 100
#define SIZE_AT 124
#define SIZE_SIZE 12
#define MTIME_AT 136
#define CHECKSUM_AT 148
#define CHECKSUM_SIZE 8
#define TYPE_AT 156
#define LINK_AT 157
#define LINK_SIZE 100
#define MAGIC_AT 257
#define PREFIX_AT 345
#define PREFIX_SIZE 155

#define OCTAL_SIZE_MAX 077777777777ull

enum { PHASE_HEAD, PHASE_META, PHASE_META_PADDING, PHASE_CONTENT, PHASE_PADDING, PHASE_END };

// Writing. --------------------------------------------------------------------------------------------------------------------

static void put_octal(uint8_t *at, size_t size, uint64_t value) {
	char text[24];
	snprintf(text, sizeof(text), "%0*llo", (int)size - 1, (unsigned long long)value);
	memcpy(at, text, size);
}

static void put_checksum(uint8_t block[TAR_BLOCK]) {
	unsigned sum = 0;
	memset(block + CHECKSUM_AT, ' ', CHECKSUM_SIZE);
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += block[i];
	put_octal(block + CHECKSUM_AT, 7, sum);
	block[CHECKSUM_AT + 6] = '\0';
	block[CHECKSUM_AT + 7] = ' ';
}

static void put_header(uint8_t block[TAR_BLOCK], char type, const char *name, const char *target, uint64_t size, uint32_t mode,
		       int64_t mtime) {
	memset(block, 0, TAR_BLOCK);
	memcpy(block + NAME_AT, name, strnlen(name, NAME_SIZE));
	put_octal(block + MODE_AT, 8, mode & 07777);
	put_octal(block + MODE_AT + 8, 8, 0);
	put_octal(block + MODE_AT + 16, 8, 0);
	put_octal(block + SIZE_AT, SIZE_SIZE, size <= OCTAL_SIZE_MAX ? size : 0);
	put_octal(block + MTIME_AT, 12, mtime < 0 || (uint64_t)mtime > OCTAL_SIZE_MAX ? 0 : (uint64_t)mtime);
	block[TYPE_AT] = (uint8_t)type;
	memcpy(block + LINK_AT, target, strnlen(target, LINK_SIZE));
	memcpy(block + MAGIC_AT,
	       "ustar\0"
	       "00",
	       8);
	put_checksum(block);
}

// A record is "<length> <key>=<value>\n", and its length counts itself.
static size_t put_record(char *to, const char *key, const char *value) {
	size_t body = strlen(key) + strlen(value) + 3, length = body + 1;
	char digits[24];
	while (length != body + (size_t)snprintf(digits, sizeof(digits), "%zu", length))
		length = body + strlen(digits);
	return (size_t)sprintf(to, "%s %s=%s\n", digits, key, value);
}

size_t tar_write_head(const struct tar_entry *t, uint8_t to[static TAR_HEAD_MAX]) {
	static const char types[] = {[TAR_FILE] = '0', [TAR_FOLDER] = '5', [TAR_SYMLINK] = '2', [TAR_HARDLINK] = '1'};
	const char *target = t->type >= TAR_SYMLINK ? t->target : "";
	uint64_t size = t->type == TAR_FILE ? t->size : 0;
	size_t at = 0, records = 0;
	char *meta = (char *)to + TAR_BLOCK, number[24];
	if (strlen(t->path) > NAME_SIZE)
		records += put_record(meta + records, "path", t->path);
	if (strlen(target) > LINK_SIZE)
		records += put_record(meta + records, "linkpath", target);
	if (size > OCTAL_SIZE_MAX) {
		snprintf(number, sizeof(number), "%llu", (unsigned long long)size);
		records += put_record(meta + records, "size", number);
	}
	if (records > 0) {
		put_header(to, 'x', "pax", "", records, 0644, 0);
		memset(meta + records, 0, tar_padding(records));
		at = TAR_BLOCK + records + tar_padding(records);
	}
	put_header(to + at, types[t->type], t->path, target, size, t->mode, t->mtime);
	return at + TAR_BLOCK;
}

// Reading. --------------------------------------------------------------------------------------------------------------------

static int malformed(struct error *e, const char *what) {
	return error_set(e, -EBADMSG, "the archive is malformed: %s", what);
}

// A number in octal, ended by NUL or space, or (GNU) in base 256 with the top bit set.
static bool get_number(const uint8_t *at, size_t size, uint64_t *ret) {
	uint64_t v = 0;
	size_t i = 0, digits = 0;
	if (at[0] & 0x80) {
		if (at[0] != 0x80)
			return false;
		for (i = 1; i < size; i++) {
			if (v >> 55 != 0)
				return false;
			v = v << 8 | at[i];
		}
		*ret = v;
		return true;
	}
	while (i < size && at[i] == ' ')
		i++;
	for (; i < size && at[i] >= '0' && at[i] <= '7'; i++, digits++)
		v = v << 3 | (uint64_t)(at[i] - '0');
	*ret = v;
	return digits <= 21 && (i == size || at[i] == '\0' || at[i] == ' ');
}

static bool checksum_fits(const uint8_t block[TAR_BLOCK]) {
	uint64_t wanted;
	uint64_t sum = 0;
	for (size_t i = 0; i < TAR_BLOCK; i++)
		sum += i >= CHECKSUM_AT && i < CHECKSUM_AT + CHECKSUM_SIZE ? ' ' : block[i];
	return get_number(block + CHECKSUM_AT, CHECKSUM_SIZE, &wanted) && wanted == sum;
}

// A name in a field, perhaps below a prefix. The fields together are shorter than TAR_PATH_MAX.
static void get_name(char *to, const uint8_t *prefix, size_t prefix_size, const uint8_t *name, size_t size) {
	size_t n = strnlen((const char *)prefix, prefix_size);
	memcpy(to, prefix, n);
	if (n > 0)
		to[n++] = '/';
	size_t m = strnlen((const char *)name, size);
	memcpy(to + n, name, m);
	to[n + m] = '\0';
}

static int set_path(char to[TAR_PATH_MAX + 1], bool *has, const char *text, size_t size, struct error *e) {
	if (size == 0 || size > TAR_PATH_MAX || memchr(text, '\0', size) != NULL)
		return malformed(e, "a path is empty or longer than 4095 bytes");
	memcpy(to, text, size);
	to[size] = '\0';
	*has = true;
	return 0;
}

static int set_size(struct tar_reader *r, const char *text, size_t size, struct error *e) {
	uint64_t v = 0;
	if (size == 0 || size > 18)
		return malformed(e, "a size is no number");
	for (size_t i = 0; i < size; i++) {
		if (text[i] < '0' || text[i] > '9')
			return malformed(e, "a size is no number");
		v = v * 10 + (uint64_t)(text[i] - '0');
	}
	r->next_size = v;
	r->has_size = true;
	return 0;
}

static bool key_is(const char *key, size_t size, const char *text) {
	return size == strlen(text) && memcmp(key, text, size) == 0;
}

static int take_record(struct tar_reader *r, const char *key, size_t key_size, const char *value, size_t size, struct error *e) {
	if (key_is(key, key_size, "path"))
		return set_path(r->next_path, &r->has_path, value, size, e);
	if (key_is(key, key_size, "linkpath"))
		return set_path(r->next_target, &r->has_target, value, size, e);
	if (key_is(key, key_size, "size"))
		return set_size(r, value, size, e);
	if (key_size >= 10 && memcmp(key, "GNU.sparse", 10) == 0)
		return error_set(e, -ENOTSUP, "the archive has a sparse file in GNU's own form; make it without --sparse");
	return 0; // times, owners, attributes
}

static int take_records(struct tar_reader *r, struct error *e) {
	const char *at = r->meta, *end = r->meta + r->meta_size;
	while (at < end) {
		size_t length = 0, digits = 0;
		for (; at + digits < end && digits < 6 && at[digits] >= '0' && at[digits] <= '9'; digits++)
			length = length * 10 + (size_t)(at[digits] - '0');
		if (digits == 0 || length > (size_t)(end - at) || length < digits + 4 || at[digits] != ' ' || at[length - 1] != '\n')
			return malformed(e, "a pax record");
		const char *key = at + digits + 1, *equals = memchr(key, '=', length - digits - 1);
		if (equals == NULL)
			return malformed(e, "a pax record");
		int code = take_record(r, key, (size_t)(equals - key), equals + 1, (size_t)(at + length - 1 - (equals + 1)), e);
		if (code < 0)
			return code;
		at += length;
	}
	return 0;
}

static int take_meta(struct tar_reader *r, struct error *e) {
	if (r->meta_type == 'g')
		return 0;
	if (r->meta_type == 'x')
		return take_records(r, e);
	size_t n = strnlen(r->meta, r->meta_size);
	return r->meta_type == 'L' ? set_path(r->next_path, &r->has_path, r->meta, n, e)
				   : set_path(r->next_target, &r->has_target, r->meta, n, e);
}

static int begin_meta(struct tar_reader *r, char type, uint64_t size, struct error *e) {
	if (size > TAR_META_MAX)
		return malformed(e, "a header of more than 16 KiB");
	r->meta_type = type;
	r->meta_size = (size_t)size;
	r->padding = tar_padding(size);
	r->phase = PHASE_META;
	return 0;
}

static int type_of(char c, enum tar_type *ret, struct error *e) {
	switch (c) {
	case '0':
	case '\0':
	case '7':
		*ret = TAR_FILE;
		return 0;
	case '1':
		*ret = TAR_HARDLINK;
		return 0;
	case '2':
		*ret = TAR_SYMLINK;
		return 0;
	case '5':
		*ret = TAR_FOLDER;
		return 0;
	default:
		return error_set(e, -ENOTSUP, "the archive has an entry that is no file, folder or link (type '%c')",
				 c >= ' ' && c <= '~' ? c : '?');
	}
}

static int begin_entry(struct tar_reader *r, uint64_t size, struct error *e) {
	const uint8_t *b = r->block;
	struct tar_entry *t = &r->entry;
	uint64_t mode, mtime;
	bool ustar = memcmp(b + MAGIC_AT, "ustar", 5) == 0;
	int code = type_of((char)b[TYPE_AT], &t->type, e);
	if (code < 0)
		return code;
	if (!get_number(b + MODE_AT, 8, &mode) || !get_number(b + MTIME_AT, 12, &mtime))
		return malformed(e, "a mode or a time is no number");
	get_name(t->path, b + PREFIX_AT, ustar && b[MAGIC_AT + 5] == '\0' ? PREFIX_SIZE : 0, b + NAME_AT, NAME_SIZE);
	get_name(t->target, b, 0, b + LINK_AT, LINK_SIZE);
	if (r->has_path)
		strcpy(t->path, r->next_path);
	if (r->has_target)
		strcpy(t->target, r->next_target);
	if (r->has_size)
		size = r->next_size;
	r->has_path = r->has_target = r->has_size = false;
	t->mode = (uint32_t)mode & 07777;
	t->mtime = mtime <= OCTAL_SIZE_MAX ? (int64_t)mtime : 0;
	// Old archives know no folders but names that end with a slash.
	size_t n = strlen(t->path);
	if (t->type == TAR_FILE && n > 0 && t->path[n - 1] == '/')
		t->type = TAR_FOLDER;
	if (n == 0 || (t->type >= TAR_SYMLINK && t->target[0] == '\0'))
		return malformed(e, "an entry without a name");
	t->size = t->type == TAR_FILE ? size : 0;
	r->left = t->size;
	r->padding = tar_padding(t->size);
	r->phase = PHASE_CONTENT;
	return 1;
}

static bool is_zero(const uint8_t block[TAR_BLOCK]) {
	for (size_t i = 0; i < TAR_BLOCK; i++)
		if (block[i] != 0)
			return false;
	return true;
}

// Returns 1 when an entry begins.
static int take_block(struct tar_reader *r, struct error *e) {
	uint64_t size;
	r->used = 0;
	if (is_zero(r->block)) {
		r->phase = r->zero_block ? PHASE_END : PHASE_HEAD;
		r->zero_block = true;
		return 0;
	}
	if (r->zero_block)
		return malformed(e, "an entry behind the end");
	if (!checksum_fits(r->block))
		return malformed(e, "a wrong checksum");
	if (!get_number(r->block + SIZE_AT, SIZE_SIZE, &size))
		return malformed(e, "a size is no number");
	char type = (char)r->block[TYPE_AT];
	if (type == 'x' || type == 'g' || type == 'L' || type == 'K')
		return begin_meta(r, type, size, e);
	return begin_entry(r, size, e);
}

static size_t copy_into(void *to, size_t *used, size_t room, const void *data, size_t size) {
	size_t n = size < room - *used ? size : room - *used;
	memcpy((char *)to + *used, data, n);
	*used += n;
	return n;
}

static size_t skip_padding(struct tar_reader *r, size_t size) {
	size_t n = size < r->padding ? size : r->padding;
	r->padding -= n;
	if (r->padding == 0)
		r->phase = PHASE_HEAD;
	return n;
}

static ssize_t read_meta(struct tar_reader *r, const void *data, size_t size, struct error *e) {
	size_t n = copy_into(r->meta, &r->used, r->meta_size, data, size);
	if (r->used < r->meta_size)
		return (ssize_t)n;
	r->used = 0;
	int code = take_meta(r, e);
	r->phase = r->padding > 0 ? PHASE_META_PADDING : PHASE_HEAD;
	return code < 0 ? code : (ssize_t)n;
}

ssize_t tar_read(struct tar_reader *r, const void *data, size_t size, enum tar_event *ret, const void **content, size_t *content_size,
		 struct error *e) {
	size_t n;
	int code;
	*ret = TAR_MORE;
	*content = data;
	*content_size = 0;
	switch (r->phase) {
	case PHASE_HEAD:
		n = copy_into(r->block, &r->used, TAR_BLOCK, data, size);
		code = r->used == TAR_BLOCK ? take_block(r, e) : 0;
		if (code < 0)
			return code;
		*ret = code > 0 ? TAR_ENTRY : r->phase == PHASE_END ? TAR_END : TAR_MORE;
		// An empty header has nothing to wait for.
		if (r->phase == PHASE_META && r->meta_size == 0)
			r->phase = PHASE_HEAD;
		else if (r->phase == PHASE_CONTENT && r->left == 0)
			r->phase = PHASE_HEAD;
		return (ssize_t)n;
	case PHASE_META:
		return read_meta(r, data, size, e);
	case PHASE_CONTENT:
		n = size < r->left ? size : (size_t)r->left;
		r->left -= n;
		*ret = TAR_CONTENT;
		*content_size = n;
		if (r->left == 0)
			r->phase = r->padding > 0 ? PHASE_PADDING : PHASE_HEAD;
		return (ssize_t)n;
	case PHASE_META_PADDING:
	case PHASE_PADDING:
		return (ssize_t)skip_padding(r, size);
	default:
		*ret = TAR_END;
		return 0;
	}
}
