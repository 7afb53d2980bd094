// Memory layers: finding out which pages belong into one, and writing it; see layer.h.
//
// Two passes. The first looks at each page that can matter (never at one that was not touched: looking would make it exist) and
// notes it in a bitmap. Then runs are formed; short gaps between them are closed when there are more runs than a restore should have to
// map. The second pass writes header, table and the pages, straight from guest memory; a zero page inside a run stays a hole.
#include "base/cleanup.h"
#include "base/io.h"
#include "vmm/layer.h"
#include "vmm/page_set.h"
#include "vmm/pagemap.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>
#define XXH_STATIC_LINKING_ONLY // the state may lie on the stack: the library is linked statically
#include <xxhash.h>

// Each is one mmap() at restore: 5 us natively, 200 us inside the machine. Of a freshly booted Debian kernel 17000 pages make 270 runs; in 32
// extents there are 4 % of zero pages between them, which are holes in the file.
#define FULL_EXTENTS 32
#define FULL_GAP 32              // closed in any case
#define DIFFERENCE_EXTENTS 65536 // read in batches at restore, so there may be many
#define GAP_MAX 65536
#define WRITE_VECTORS 256

struct plan {
	const struct layers *layers;
	const struct memory *memory;
	int pagemap_fd;
	bool difference;
	uint64_t *base; // pages that the first layer has data for; NULL: none
	uint64_t *data; // pages to store
	uint64_t *zero; // pages that have become zero (difference only)
	struct stasis_layer_extent *extents;
	uint64_t extent_count, extent_room;
};

static void plan_free(struct plan *p) {
	free(p->base);
	free(p->data);
	free(p->zero);
	free(p->extents);
}

static bool page_is_zero(const uint8_t *page) {
	typedef uint64_t block __attribute__((vector_size(64), aligned(64), may_alias));
	const block *b = (const void *)page;
	for (unsigned i = 0; i < PAGE_BYTES / sizeof(block); i += 4) {
		block any = b[i] | b[i + 1] | b[i + 2] | b[i + 3];
		if ((any[0] | any[1] | any[2] | any[3] | any[4] | any[5] | any[6] | any[7]) != 0)
			return false;
	}
	return true;
}

static int plan_prepare(struct plan *p, struct error *e) {
	const struct memory *m = p->memory;
	p->data = page_set_new(m);
	p->zero = p->difference ? page_set_new(m) : NULL;
	if (p->layers->count > 0)
		p->base = page_set_new(m);
	if (p->data == NULL || (p->difference && p->zero == NULL) || (p->layers->count > 0 && p->base == NULL))
		return error_set(e, -ENOMEM, "out of memory writing a memory layer");
	for (uint64_t i = 0; i < p->layers->base_count; i++) {
		const struct stasis_layer_extent *x = &p->layers->base[i];
		uint64_t first = page_index(m, x->first_page);
		for (uint64_t n = 0; x->kind == STASIS_EXTENT_DATA && n < x->page_count; n++)
			page_set_add(p->base, first + n);
	}
	return 0;
}

static int look_at_page(void *arg, const struct memory_region *r, uint64_t page_in_region, uint64_t entry) {
	struct plan *p = arg;
	uint64_t index = page_index(p->memory, r->guest / PAGE_BYTES + page_in_region);
	const uint8_t *page = r->host + page_in_region * PAGE_BYTES;
	bool exists = (entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) != 0;
	bool in_base = p->base != NULL && page_set_has(p->base, index);
	bool in_own = p->layers->own != NULL && page_set_has(p->layers->own, index);
	bool written = exists && (entry & PAGEMAP_FILE) == 0;
	if (p->difference ? !written && !in_own : !exists && !in_base && !in_own)
		return 0;
	if (!page_is_zero(page))
		page_set_add(p->data, index);
	else if (p->difference && in_base)
		page_set_add(p->zero, index);
	return 0;
}

static int look_at_memory(struct plan *p, struct error *e) {
	return pagemap_each(p->memory, p->pagemap_fd, look_at_page, p, e);
}

// The next run of pages in `set` at or behind *at and before `end`. Returns false when there is none.
static bool next_run(const uint64_t *set, uint64_t *at, uint64_t end, uint64_t *ret_first) {
	uint64_t i = *at;
	while (i < end && !page_set_has(set, i))
		i = set[i / 64] == 0 ? (i / 64 + 1) * 64 : i + 1;
	if (i >= end)
		return false;
	*ret_first = i;
	while (i < end && page_set_has(set, i))
		i++;
	*at = i;
	return true;
}

// Closes the gaps between stored runs up to `close` pages, and longer ones until there are at most `most` runs (as far as gaps up to GAP_MAX
// pages allow).
static int close_gaps(struct plan *p, uint64_t close, uint64_t most, struct error *e) {
	cleanup_free uint32_t *gaps = calloc(GAP_MAX + 1, sizeof(uint32_t));
	if (gaps == NULL)
		return error_set(e, -ENOMEM, "out of memory writing a memory layer");
	uint64_t runs = 0, region_start = 0;
	for (unsigned i = 0; i < p->memory->count; i++) {
		uint64_t end = region_start + p->memory->regions[i].size / PAGE_BYTES, at = region_start, first, before = UINT64_MAX;
		while (next_run(p->data, &at, end, &first)) {
			if (before != UINT64_MAX && first - before <= GAP_MAX)
				gaps[first - before]++;
			before = at;
			runs++;
		}
		region_start = end;
	}
	for (uint64_t g = 1; g <= close; g++)
		runs -= gaps[g];
	while (runs > most && close < GAP_MAX)
		runs -= gaps[++close];
	if (close == 0)
		return 0;
	region_start = 0;
	for (unsigned i = 0; i < p->memory->count; i++) {
		uint64_t end = region_start + p->memory->regions[i].size / PAGE_BYTES, at = region_start, first, before = UINT64_MAX;
		while (next_run(p->data, &at, end, &first)) {
			for (uint64_t g = before; before != UINT64_MAX && first - before <= close && g < first; g++)
				page_set_add(p->data, g);
			before = at;
		}
		region_start = end;
	}
	return 0;
}

static int add_extent(struct plan *p, uint64_t first_page, uint64_t pages, uint32_t kind, struct error *e) {
	if (p->extent_count == STASIS_LAYER_EXTENTS_MAX)
		return error_set(e, -E2BIG, "the memory layer would need more than %u extents", STASIS_LAYER_EXTENTS_MAX);
	if (p->extent_count == p->extent_room) {
		uint64_t room = p->extent_room == 0 ? 256 : p->extent_room * 2;
		struct stasis_layer_extent *more = realloc(p->extents, room * sizeof(*more));
		if (more == NULL)
			return error_set(e, -ENOMEM, "out of memory writing a memory layer");
		p->extents = more;
		p->extent_room = room;
	}
	p->extents[p->extent_count++] = (struct stasis_layer_extent){.first_page = first_page, .page_count = pages, .kind = kind};
	return 0;
}

// What kind of extent a page belongs to; a gap that was closed is data, also where it is zero.
static uint32_t kind_of(const struct plan *p, uint64_t index) {
	return page_set_has(p->data, index) ? STASIS_EXTENT_DATA : p->zero != NULL && page_set_has(p->zero, index) ? STASIS_EXTENT_ZERO : 0;
}

static int form_extents(struct plan *p, struct error *e) {
	uint64_t index = 0;
	for (unsigned i = 0; i < p->memory->count; i++) {
		const struct memory_region *r = &p->memory->regions[i];
		uint64_t pages = r->size / PAGE_BYTES, start = 0;
		uint32_t kind = 0;
		for (uint64_t n = 0; n <= pages; n++) {
			if (kind == 0 && n < pages && n % 64 == 0 && index % 64 == 0 && pages - n >= 64 && p->data[(index + n) / 64] == 0 &&
			    (p->zero == NULL || p->zero[(index + n) / 64] == 0)) {
				n += 63;
				continue;
			}
			uint32_t now = n < pages ? kind_of(p, index + n) : 0;
			if (now == kind)
				continue;
			int done = kind == 0 ? 0 : add_extent(p, r->guest / PAGE_BYTES + start, n - start, kind, e);
			if (done < 0)
				return done;
			kind = now;
			start = n;
		}
		index += pages;
	}
	return 0;
}

struct write_batch {
	int fd;
	uint64_t offset, bytes; // where the batch starts in the file, and its size
	unsigned count;
	struct iovec vectors[WRITE_VECTORS];
};

static int write_batch_run(struct write_batch *b, struct error *e) {
	struct iovec *v = b->vectors;
	unsigned left = b->count;
	while (left > 0) {
		ssize_t put = pwritev(b->fd, v, (int)left, (off_t)b->offset);
		if (put < 0 && errno == EINTR)
			continue;
		if (put <= 0)
			return put < 0 ? error_errno(e, "cannot write the memory layer")
				       : error_set(e, -EIO, "cannot write the memory layer");
		b->offset += (uint64_t)put;
		while (left > 0 && (size_t)put >= v->iov_len) {
			put -= (ssize_t)v->iov_len;
			v++;
			left--;
		}
		if (left > 0) {
			v->iov_base = (uint8_t *)v->iov_base + put;
			v->iov_len -= (size_t)put;
		}
	}
	b->count = 0;
	b->bytes = 0;
	return 0;
}

static int write_batch_add(struct write_batch *b, void *from, uint64_t bytes, uint64_t offset, struct error *e) {
	if (b->count == WRITE_VECTORS || (b->count > 0 && b->offset + b->bytes != offset)) {
		int r = write_batch_run(b, e);
		if (r < 0)
			return r;
	}
	if (b->count == 0)
		b->offset = offset;
	b->vectors[b->count++] = (struct iovec){.iov_base = from, .iov_len = (size_t)bytes};
	b->bytes += bytes;
	return 0;
}

// Writes an extent's pages. A full layer may have zero pages inside an extent: those stay holes.
static int write_extent(const struct plan *p, struct write_batch *b, const struct stasis_layer_extent *x, struct error *e) {
	uint8_t *from = memory_at(p->memory, x->first_page * PAGE_BYTES, x->page_count * PAGE_BYTES);
	if (p->difference)
		return write_batch_add(b, from, x->page_count * PAGE_BYTES, x->offset, e);
	for (uint64_t n = 0; n < x->page_count;) {
		uint64_t end = n;
		while (end < x->page_count && !page_is_zero(from + end * PAGE_BYTES))
			end++;
		if (end > n) {
			int r = write_batch_add(b, from + n * PAGE_BYTES, (end - n) * PAGE_BYTES, x->offset + n * PAGE_BYTES, e);
			if (r < 0)
				return r;
		}
		n = end + 1;
	}
	return 0;
}

static uint64_t place_extents(struct plan *p) {
	uint64_t at = sizeof(struct stasis_layer_header) + p->extent_count * sizeof(struct stasis_layer_extent);
	at = (at + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
	for (uint64_t i = 0; i < p->extent_count; i++)
		if (p->extents[i].kind == STASIS_EXTENT_DATA) {
			p->extents[i].offset = at;
			at += p->extents[i].page_count * PAGE_BYTES;
		}
	return at;
}

static int write_table(const struct plan *p, int fd, uint64_t file_bytes, const uint8_t *id, struct error *e) {
	struct stasis_layer_header h = {.magic = STASIS_LAYER_MAGIC,
					.version = STASIS_LAYER_VERSION,
					.page_bytes = PAGE_BYTES,
					.memory_bytes = p->memory->size,
					.extent_count = p->extent_count,
					.file_bytes = file_bytes};
	memcpy(h.id, id, sizeof(h.id));
	if (p->difference)
		memcpy(h.base_id, p->layers->ids[0], sizeof(h.base_id));
	XXH3_state_t state;
	XXH3_64bits_reset(&state);
	XXH3_64bits_update(&state, &h, sizeof(h));
	size_t table = (size_t)p->extent_count * sizeof(struct stasis_layer_extent);
	if (table > 0)
		XXH3_64bits_update(&state, p->extents, table);
	h.checksum = XXH3_64bits_digest(&state);
	struct iovec v[2] = {{.iov_base = &h, .iov_len = sizeof(h)}, {.iov_base = p->extents, .iov_len = table}};
	for (unsigned i = 0, at = 0; i < 2; at += v[i].iov_len, i++) {
		int r = pwrite_full(fd, v[i].iov_base, v[i].iov_len, at);
		if (r < 0)
			return error_set(e, r, "cannot write the memory layer: %s", strerror(-r));
	}
	return 0;
}

static int write_plan(struct plan *p, int fd, const uint8_t *id, struct error *e) {
	uint64_t file_bytes = place_extents(p);
	if (ftruncate(fd, (off_t)file_bytes) < 0)
		return error_errno(e, "cannot make the memory layer %llu bytes long", (unsigned long long)file_bytes);
	cleanup_free struct write_batch *b = malloc(sizeof(*b));
	if (b == NULL)
		return error_set(e, -ENOMEM, "out of memory writing a memory layer");
	b->fd = fd;
	b->count = 0;
	b->bytes = 0;
	int r = 0;
	for (uint64_t i = 0; i < p->extent_count && r == 0; i++)
		if (p->extents[i].kind == STASIS_EXTENT_DATA)
			r = write_extent(p, b, &p->extents[i], e);
	if (r == 0)
		r = write_batch_run(b, e);
	// Last, so that a file that was not finished has no header.
	return r < 0 ? r : write_table(p, fd, file_bytes, id, e);
}

int memory_layer_write(const struct layers *l, const struct memory *m, int pagemap_fd, int fd, bool difference,
		       uint8_t ret_id[static STASIS_ID_BYTES], struct error *e) {
	if (difference && l->count == 0)
		return error_set(e, -EINVAL, "this microVM was booted, not restored: there is no layer that its memory could differ from");
	if (difference && pagemap_fd < 0)
		return error_set(e, -ENOTSUP,
				 "cannot tell which pages were written: /proc/self/pagemap was not there when the VMM started; mount /proc "
				 "in its jail");
	if (getrandom(ret_id, STASIS_ID_BYTES, 0) != STASIS_ID_BYTES)
		return error_errno(e, "cannot make an identity for the memory layer");
	__attribute__((cleanup(plan_free))) struct plan p = {.layers = l, .memory = m, .pagemap_fd = pagemap_fd, .difference = difference};
	int r = plan_prepare(&p, e);
	if (r == 0)
		r = look_at_memory(&p, e);
	if (r == 0)
		r = difference ? close_gaps(&p, 0, DIFFERENCE_EXTENTS, e) : close_gaps(&p, FULL_GAP, FULL_EXTENTS, e);
	if (r == 0)
		r = form_extents(&p, e);
	return r < 0 ? r : write_plan(&p, fd, ret_id, e);
}
