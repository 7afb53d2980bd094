// The state file; see state_file.h.
#include "vmm/state_file.h"

#include "base/io.h"

#include <stdlib.h>
#include <sys/stat.h>
#define XXH_STATIC_LINKING_ONLY // the state may lie on the stack: the library is linked statically
#include <xxhash.h>

#define FIRST_ROOM 32768u
#define CHECKSUM_OFFSET offsetof(struct stasis_state_header, checksum)

static size_t padded(size_t n) {
	return (n + 7) & ~(size_t)7;
}

static bool make_room(struct state_writer *w, size_t more) {
	if (w->bad < 0)
		return false;
	if (more <= w->room - w->size)
		return true;
	size_t room = w->room == 0 ? FIRST_ROOM : w->room;
	while (room - w->size < more)
		room *= 2;
	uint8_t *data = room > STASIS_STATE_BYTES_MAX ? NULL : realloc(w->data, room);
	if (data == NULL) {
		w->bad = -ENOMEM;
		return false;
	}
	w->data = data;
	w->room = room;
	return true;
}

void state_writer_init(struct state_writer *w, uint32_t architecture) {
	*w = (struct state_writer){.data = NULL};
	struct stasis_state_header h = {.magic = STASIS_STATE_MAGIC, .version = STASIS_STATE_VERSION, .architecture = architecture};
	if (make_room(w, sizeof(h))) {
		memcpy(w->data, &h, sizeof(h));
		w->size = sizeof(h);
	}
}

void state_writer_free(struct state_writer *w) {
	free(w->data);
	*w = (struct state_writer){.bad = -EINVAL};
}

struct writer state_open(struct state_writer *w, uint32_t tag, uint32_t instance, size_t room) {
	struct writer none = {.bad = true};
	if (w->open_at != 0)
		w->bad = -EINVAL;
	if (!make_room(w, sizeof(struct stasis_section) + padded(room)))
		return none;
	struct stasis_section s = {.tag = tag, .instance = instance};
	memcpy(w->data + w->size, &s, sizeof(s));
	w->open_at = w->size;
	return writer_over(w->data + w->size + sizeof(s), room);
}

int state_close(struct state_writer *w, const struct writer *payload) {
	if (w->bad < 0)
		return w->bad;
	if (w->open_at == 0)
		return w->bad = -EINVAL;
	size_t at = w->open_at;
	w->open_at = 0;
	if (payload->bad)
		return -ENOSPC;
	struct stasis_section s;
	uint8_t *start = w->data + at + sizeof(s);
	size_t bytes = (size_t)(payload->at - start);
	memcpy(&s, w->data + at, sizeof(s));
	s.bytes = bytes;
	memcpy(w->data + at, &s, sizeof(s));
	memset(start + bytes, 0, padded(bytes) - bytes);
	w->size = at + sizeof(s) + padded(bytes);
	return 0;
}

static uint64_t checksum_of(const uint8_t *data, size_t size) {
	struct stasis_state_header h;
	memcpy(&h, data, sizeof(h));
	h.checksum = 0;
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, &h, sizeof(h));
	XXH3_64bits_update(&state, data + sizeof(h), size - sizeof(h));
	return XXH3_64bits_digest(&state);
}

int state_write(struct state_writer *w, int fd, struct error *e) {
	if (w->bad < 0)
		return error_set(e, w->bad, "cannot put the state together: out of memory");
	struct stasis_state_header h;
	memcpy(&h, w->data, sizeof(h));
	h.file_bytes = w->size;
	memcpy(w->data, &h, sizeof(h));
	h.checksum = checksum_of(w->data, w->size);
	memcpy(w->data, &h, sizeof(h));
	int r = pwrite_full(fd, w->data, w->size, 0);
	if (r < 0)
		return error_set(e, r, "cannot write the state file: %s", strerror(-r));
	return 0;
}

static const uint32_t known_tags[] = {
	STASIS_SECTION_MEMORY, STASIS_SECTION_DEVICES, STASIS_SECTION_VIRTIO, STASIS_SECTION_SERIAL,
	STASIS_SECTION_CPUID,  STASIS_SECTION_CLOCK,   STASIS_SECTION_IOAPIC, STASIS_SECTION_VCPU,
};

static void tag_text(uint32_t tag, char to[static 5]) {
	for (int i = 0; i < 4; i++) {
		char c = (char)(tag >> (8 * i));
		to[i] = c > ' ' && c < 0x7f ? c : '?';
	}
	to[4] = '\0';
}

static bool is_known(uint32_t tag) {
	for (size_t i = 0; i < sizeof(known_tags) / sizeof(known_tags[0]); i++)
		if (known_tags[i] == tag)
			return true;
	return false;
}

static const char *architecture_name(uint32_t a) {
	return a == STASIS_ARCHITECTURE_X86_64 ? "x86-64" : a == STASIS_ARCHITECTURE_ARM64 ? "arm64" : "an unknown architecture";
}

static int check_header(const uint8_t *data, size_t size, uint32_t architecture, struct error *e) {
	struct stasis_state_header h;
	if (size < sizeof(h))
		return error_set(e, -EBADMSG, "the state file is cut off: it has %zu bytes", size);
	memcpy(&h, data, sizeof(h));
	if (memcmp(h.magic, STASIS_STATE_MAGIC, sizeof(h.magic)) != 0)
		return error_set(e, -EBADMSG, "this is not a state file of Stasis");
	if (h.version == 0 || h.version > STASIS_STATE_VERSION)
		return error_set(e, -EPROTONOSUPPORT, "the state file has format version %u, this VMM reads up to %u: use a newer Stasis",
				 h.version, STASIS_STATE_VERSION);
	if (h.architecture != architecture)
		return error_set(e, -ENOEXEC, "the snapshot is for %s, this host is %s", architecture_name(h.architecture),
				 architecture_name(architecture));
	if (h.file_bytes > size)
		return error_set(e, -EBADMSG, "the state file is cut off: %zu of %llu bytes", size, (unsigned long long)h.file_bytes);
	if (h.file_bytes != size)
		return error_set(e, -EBADMSG, "the state file is damaged: %zu bytes instead of %llu", size,
				 (unsigned long long)h.file_bytes);
	if (h.checksum != checksum_of(data, size))
		return error_set(e, -EBADMSG, "the state file is damaged: its checksum is wrong");
	return 0;
}

int state_parse(const void *data, size_t size, uint32_t architecture, struct state_file *ret, struct error *e) {
	ret->data = data;
	ret->size = size;
	ret->owned = NULL;
	ret->count = 0;
	int r = check_header(data, size, architecture, e);
	if (r < 0)
		return r;
	struct reader in = reader_over(data, size);
	read_bytes(&in, sizeof(struct stasis_state_header));
	while (in.left > 0) {
		struct stasis_section s;
		read_copy(&in, &s, sizeof(s));
		char name[5];
		tag_text(s.tag, name);
		if (!in.bad && !is_known(s.tag))
			return error_set(e, -ENOTSUP, "the state file has a section '%s' that this VMM does not know", name);
		if (in.bad || s.bytes > in.left || ret->count == STASIS_SECTIONS_MAX)
			return error_set(e, -EBADMSG, "the state file is malformed at its section %u", ret->count);
		struct state_section *to = &ret->sections[ret->count++];
		*to = (struct state_section){.tag = s.tag, .instance = s.instance, .size = (size_t)s.bytes};
		to->data = read_bytes(&in, padded(to->size));
		if (to->data == NULL)
			return state_malformed(s.tag, s.instance, e);
		for (unsigned i = 0; i + 1 < ret->count; i++)
			if (ret->sections[i].tag == s.tag && ret->sections[i].instance == s.instance)
				return error_set(e, -EBADMSG, "the state file has section '%s' %u twice", name, s.instance);
	}
	return 0;
}

int state_read(int fd, uint32_t architecture, struct state_file *ret, struct error *e) {
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot examine the state file");
	if (st.st_size < (off_t)sizeof(struct stasis_state_header))
		return error_set(e, -EBADMSG, "the state file is cut off: it has %lld bytes", (long long)st.st_size);
	if (st.st_size > (off_t)STASIS_STATE_BYTES_MAX)
		return error_set(e, -EBADMSG, "the state file is damaged: it has %lld bytes", (long long)st.st_size);
	size_t size = (size_t)st.st_size;
	uint8_t *data = malloc(size);
	if (data == NULL)
		return error_set(e, -ENOMEM, "out of memory reading the state file");
	int r = pread_full(fd, data, size, 0);
	if (r < 0)
		error_set(e, r, "cannot read the state file: %s", strerror(-r));
	else
		r = state_parse(data, size, architecture, ret, e);
	if (r < 0)
		free(data);
	else
		ret->owned = data;
	return r;
}

void state_file_free(struct state_file *f) {
	free(f->owned);
	f->owned = NULL;
	f->count = 0;
}

int state_find(const struct state_file *f, uint32_t tag, uint32_t instance, struct reader *ret, struct error *e) {
	for (unsigned i = 0; i < f->count; i++) {
		const struct state_section *s = &f->sections[i];
		if (s->tag == tag && s->instance == instance) {
			*ret = reader_over(s->data, s->size);
			return 0;
		}
	}
	char name[5];
	tag_text(tag, name);
	*ret = (struct reader){.bad = true};
	return error_set(e, -ENODATA, "the state file has no section '%s' %u", name, instance);
}

int state_malformed(uint32_t tag, uint32_t instance, struct error *e) {
	char name[5];
	tag_text(tag, name);
	return error_set(e, -EBADMSG, "the state file's section '%s' %u is malformed", name, instance);
}
