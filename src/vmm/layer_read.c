// Memory layers: checking and mapping; see layer.h.
#include "base/cleanup.h"
#include "base/io.h"
#include "vmm/layer.h"
#include "vmm/page_set.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#define XXH_STATIC_LINKING_ONLY // the state may lie on the stack: the library is linked statically
#include <xxhash.h>

// Mapping an extent costs as much as reading some pages of it, and what was written once is likely to be touched again.
#define READ_PAGES_MAX 16
#define READ_VECTORS 256
// A mapping per extent: the kernel allows 65530 for a process (vm.max_map_count), and each costs.
#define BASE_EXTENTS_MAX 16384

static uint64_t checksum_of(const uint8_t *table, uint64_t size) {
	struct stasis_layer_header h;
	memcpy(&h, table, sizeof(h));
	h.checksum = 0;
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, &h, sizeof(h));
	XXH3_64bits_update(&state, table + sizeof(h), (size_t)size - sizeof(h));
	return XXH3_64bits_digest(&state);
}

static int check_header(const struct stasis_layer_header *h, uint64_t file_bytes, const struct memory *m, struct error *e) {
	if (memcmp(h->magic, STASIS_LAYER_MAGIC, sizeof(h->magic)) != 0)
		return error_set(e, -EBADMSG, "this is not a memory layer of Stasis");
	if (h->version == 0 || h->version > STASIS_LAYER_VERSION)
		return error_set(e, -EPROTONOSUPPORT, "the memory layer has format version %u, this VMM reads up to %u: use a newer Stasis",
				 h->version, STASIS_LAYER_VERSION);
	if (h->page_bytes != STASIS_PAGE_BYTES)
		return error_set(e, -EBADMSG, "the memory layer has pages of %u bytes instead of %u", h->page_bytes, STASIS_PAGE_BYTES);
	if (h->file_bytes > file_bytes)
		return error_set(e, -EBADMSG, "the memory layer is cut off: %llu of %llu bytes", (unsigned long long)file_bytes,
				 (unsigned long long)h->file_bytes);
	if (h->memory_bytes != m->size)
		return error_set(e, -EBADMSG, "the memory layer is of %llu MiB of memory, the microVM has %llu MiB",
				 (unsigned long long)h->memory_bytes >> 20, (unsigned long long)m->size >> 20);
	if (h->extent_count > STASIS_LAYER_EXTENTS_MAX)
		return error_set(e, -EBADMSG, "the memory layer is damaged: it claims %llu extents", (unsigned long long)h->extent_count);
	return 0;
}

static int check_extent(const struct stasis_layer_extent *x, uint64_t *next_page, uint64_t data_at, uint64_t file_bytes,
			const struct memory *m) {
	if (x->page_count == 0 || x->first_page < *next_page || x->page_count > page_count(m) || x->first_page > UINT64_MAX / PAGE_BYTES)
		return -EBADMSG;
	if (memory_at(m, x->first_page * PAGE_BYTES, x->page_count * PAGE_BYTES) == NULL)
		return -EBADMSG;
	*next_page = x->first_page + x->page_count;
	if (x->kind == STASIS_EXTENT_ZERO)
		return x->offset == 0 ? 0 : -EBADMSG;
	if (x->kind != STASIS_EXTENT_DATA || x->offset % PAGE_BYTES != 0 || x->offset < data_at || x->offset > file_bytes ||
	    x->page_count * PAGE_BYTES > file_bytes - x->offset)
		return -EBADMSG;
	return 0;
}

int memory_layer_check_table(const void *table, uint64_t table_size, uint64_t file_bytes, const struct memory *m, struct error *e) {
	struct stasis_layer_header h;
	if (table_size < sizeof(h))
		return error_set(e, -EBADMSG, "the memory layer is cut off: it has %llu bytes", (unsigned long long)file_bytes);
	memcpy(&h, table, sizeof(h));
	int r = check_header(&h, file_bytes, m, e);
	if (r < 0)
		return r;
	if (table_size != sizeof(h) + h.extent_count * sizeof(struct stasis_layer_extent))
		return error_set(e, -EBADMSG, "the memory layer is cut off: its table has %llu extents",
				 (unsigned long long)h.extent_count);
	if (h.checksum != checksum_of(table, table_size))
		return error_set(e, -EBADMSG, "the memory layer is damaged: the checksum of its table is wrong");
	uint64_t next = 0;
	for (uint64_t i = 0; i < h.extent_count; i++) {
		struct stasis_layer_extent x;
		memcpy(&x, (const uint8_t *)table + sizeof(h) + i * sizeof(x), sizeof(x));
		if (check_extent(&x, &next, table_size, h.file_bytes, m) < 0)
			return error_set(e, -EBADMSG, "the memory layer's extent %llu is malformed", (unsigned long long)i);
	}
	return 0;
}

int memory_layer_read_table(int fd, const struct memory *m, struct stasis_layer_header *ret, struct stasis_layer_extent **ret_extents,
			    struct error *e) {
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot examine the memory layer");
	uint64_t file_bytes = (uint64_t)st.st_size;
	struct stasis_layer_header h;
	if (file_bytes < sizeof(h))
		return error_set(e, -EBADMSG, "the memory layer is cut off: it has %llu bytes", (unsigned long long)file_bytes);
	int r = pread_full(fd, &h, sizeof(h), 0);
	if (r < 0)
		return error_set(e, r, "cannot read the memory layer: %s", strerror(-r));
	r = check_header(&h, file_bytes, m, e);
	if (r < 0)
		return r;
	uint64_t table_size = sizeof(h) + h.extent_count * sizeof(struct stasis_layer_extent);
	if (table_size > file_bytes)
		return error_set(e, -EBADMSG, "the memory layer is cut off: its table has %llu extents",
				 (unsigned long long)h.extent_count);
	cleanup_free uint8_t *table = malloc(table_size);
	if (table == NULL)
		return error_set(e, -ENOMEM, "out of memory reading a memory layer");
	r = pread_full(fd, table, table_size, 0);
	if (r < 0)
		return error_set(e, r, "cannot read the memory layer: %s", strerror(-r));
	r = memory_layer_check_table(table, table_size, file_bytes, m, e);
	if (r < 0)
		return r;
	memcpy(ret, table, sizeof(*ret));
	memmove(table, table + sizeof(h), table_size - sizeof(h));
	*ret_extents = (struct stasis_layer_extent *)(void *)take_ptr(table);
	return 0;
}

static int map_extent(const struct memory *m, int fd, const struct stasis_layer_extent *x, struct error *e) {
	uint64_t bytes = x->page_count * PAGE_BYTES;
	void *at = memory_at(m, x->first_page * PAGE_BYTES, bytes);
	int flags = MAP_PRIVATE | MAP_FIXED | MAP_NORESERVE;
	void *got = x->kind == STASIS_EXTENT_DATA ? mmap(at, (size_t)bytes, PROT_READ | PROT_WRITE, flags, fd, (off_t)x->offset)
						  : mmap(at, (size_t)bytes, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
	return got == at ? 0 : error_errno(e, "cannot map a memory layer of %llu pages", (unsigned long long)x->page_count);
}

// Short extents that lie behind each other in the file, read with one call.
struct read_batch {
	int fd;
	uint64_t offset, bytes;
	unsigned count;
	struct iovec vectors[READ_VECTORS];
};

static int read_batch_run(struct read_batch *b, struct error *e) {
	if (b->count == 0)
		return 0;
	struct iovec *v = b->vectors;
	unsigned left = b->count;
	while (left > 0) {
		ssize_t got = preadv(b->fd, v, (int)left, (off_t)b->offset);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return got < 0 ? error_errno(e, "cannot read the memory layer")
				       : error_set(e, -EBADMSG, "the memory layer is cut off");
		b->offset += (uint64_t)got;
		while (left > 0 && (size_t)got >= v->iov_len) {
			got -= (ssize_t)v->iov_len;
			v++;
			left--;
		}
		if (left > 0) {
			v->iov_base = (uint8_t *)v->iov_base + got;
			v->iov_len -= (size_t)got;
		}
	}
	b->count = 0;
	b->bytes = 0;
	return 0;
}

static int read_batch_add(struct read_batch *b, const struct memory *m, const struct stasis_layer_extent *x, struct error *e) {
	if (b->count == READ_VECTORS || (b->count > 0 && b->offset + b->bytes != x->offset)) {
		int r = read_batch_run(b, e);
		if (r < 0)
			return r;
	}
	if (b->count == 0)
		b->offset = x->offset;
	uint64_t bytes = x->page_count * PAGE_BYTES;
	b->vectors[b->count++] = (struct iovec){.iov_base = memory_at(m, x->first_page * PAGE_BYTES, bytes), .iov_len = (size_t)bytes};
	b->bytes += bytes;
	return 0;
}

static void id_text(const uint8_t *id, char to[static 2 * STASIS_ID_BYTES + 1]) {
	static const char digits[] = "0123456789abcdef";
	for (unsigned i = 0; i < STASIS_ID_BYTES; i++) {
		to[2 * i] = digits[id[i] >> 4];
		to[2 * i + 1] = digits[id[i] & 15];
	}
	to[2 * STASIS_ID_BYTES] = '\0';
}

static int check_identity(unsigned layer, const uint8_t *wanted, const uint8_t *found, struct error *e) {
	if (memcmp(wanted, found, STASIS_ID_BYTES) == 0)
		return 0;
	char a[2 * STASIS_ID_BYTES + 1], b[2 * STASIS_ID_BYTES + 1];
	id_text(wanted, a);
	id_text(found, b);
	return error_set(e, -ESTALE, "wrong memory layer: layer %u has to be %s, this file is %s", layer, a, b);
}

static int restore_base(struct layers *l, const struct memory *m, int fd, const uint8_t *id, struct error *e) {
	static const uint8_t none[STASIS_ID_BYTES];
	struct stasis_layer_header h;
	int r = memory_layer_read_table(fd, m, &h, &l->base, e);
	if (r < 0)
		return r;
	l->base_count = h.extent_count;
	r = check_identity(0, id, h.id, e);
	if (r < 0)
		return r;
	if (memcmp(h.base_id, none, sizeof(none)) != 0)
		return error_set(e, -EINVAL, "the first memory layer is a difference; give the image's layer first");
	if (h.extent_count > BASE_EXTENTS_MAX)
		return error_set(e, -EBADMSG, "the memory layer has %llu extents, at most %u can be mapped",
				 (unsigned long long)h.extent_count, BASE_EXTENTS_MAX);
	for (uint64_t i = 0; i < h.extent_count; i++)
		if (l->base[i].kind == STASIS_EXTENT_DATA) {
			r = map_extent(m, fd, &l->base[i], e);
			if (r < 0)
				return r;
		}
	return 0;
}

static int restore_own(struct layers *l, const struct memory *m, int fd, const uint8_t *id, struct error *e) {
	struct stasis_layer_header h;
	cleanup_free struct stasis_layer_extent *extents = NULL;
	int r = memory_layer_read_table(fd, m, &h, &extents, e);
	if (r < 0)
		return r;
	r = check_identity(1, id, h.id, e);
	if (r == 0)
		r = check_identity(0, h.base_id, l->ids[0], e);
	if (r < 0)
		return r;
	l->own = page_set_new(m);
	cleanup_free struct read_batch *batch = malloc(sizeof(*batch));
	if (l->own == NULL || batch == NULL)
		return error_set(e, -ENOMEM, "out of memory restoring a memory layer");
	batch->fd = fd;
	batch->count = 0;
	batch->bytes = 0;
	for (uint64_t i = 0; i < h.extent_count && r == 0; i++) {
		const struct stasis_layer_extent *x = &extents[i];
		uint64_t first = page_index(m, x->first_page);
		for (uint64_t p = 0; p < x->page_count; p++)
			page_set_add(l->own, first + p);
		if (x->page_count > READ_PAGES_MAX)
			r = map_extent(m, fd, x, e);
		else if (x->kind == STASIS_EXTENT_DATA)
			r = read_batch_add(batch, m, x, e);
		else
			memset(memory_at(m, x->first_page * PAGE_BYTES, x->page_count * PAGE_BYTES), 0, x->page_count * PAGE_BYTES);
	}
	return r < 0 ? r : read_batch_run(batch, e);
}

int memory_layers_restore(struct layers *l, struct memory *m, const int *fds, unsigned count, const uint8_t (*ids)[STASIS_ID_BYTES],
			  struct error *e) {
	if (count == 0 || count > LAYERS_MAX)
		return error_set(e, -EINVAL, "a microVM has 1 to %u memory layers, not %u", LAYERS_MAX, count);
	memcpy(l->ids, ids, count * sizeof(l->ids[0]));
	int r = restore_base(l, m, fds[0], ids[0], e);
	if (r == 0 && count == 2)
		r = restore_own(l, m, fds[1], ids[1], e);
	if (r == 0)
		l->count = count;
	return r;
}
