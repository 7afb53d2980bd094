// Working sets: recording, the file, checking; see working_set.h.
#include "vmm/working_set.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "vmm/page_set.h"
#include "vmm/pagemap.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <xxhash.h>

#define MAPPINGS_MAX 32768 // the kernel allows 65530 for a process (vm.max_map_count)

int working_set_record(const struct layers *l, const struct memory *m, struct error *e) {
	uint64_t pages = 0;
	for (uint64_t i = 0; i < l->base_count; i++)
		pages += l->base[i].kind == STASIS_EXTENT_DATA ? l->base[i].page_count : 0;
	uint64_t step = pages / MAPPINGS_MAX + 1; // of a large image, windows of some pages
	for (uint64_t i = 0; i < l->base_count; i++) {
		const struct stasis_layer_extent *x = &l->base[i];
		if (x->kind != STASIS_EXTENT_DATA)
			continue;
		for (uint64_t at = 0; at < x->page_count; at += 2 * step) {
			uint64_t n = x->page_count - at < step ? x->page_count - at : step;
			void *host = memory_at(m, (x->first_page + at) * PAGE_BYTES, n * PAGE_BYTES);
			if (madvise(host, (size_t)(n * PAGE_BYTES), MADV_RANDOM) < 0)
				return error_errno(e, "cannot divide the memory's mapping to record a working set");
		}
	}
	return 0;
}

struct recording {
	const struct memory *memory;
	struct stasis_working_set_run *runs;
	uint32_t count, room;
	struct error *error;
};

static int add_page(struct recording *c, uint64_t page, uint32_t written) {
	struct stasis_working_set_run *last = c->count > 0 ? &c->runs[c->count - 1] : NULL;
	if (last != NULL && last->first_page + last->page_count == page && last->written == written && last->page_count < UINT32_MAX) {
		last->page_count++;
		return 0;
	}
	if (c->count == STASIS_WORKING_SET_RUNS_MAX)
		return error_set(c->error, -E2BIG, "the working set has more than %u runs of pages", STASIS_WORKING_SET_RUNS_MAX);
	if (c->count == c->room) {
		uint32_t room = c->room == 0 ? 1024 : c->room * 2;
		struct stasis_working_set_run *more = realloc(c->runs, room * sizeof(*more));
		if (more == NULL)
			return error_set(c->error, -ENOMEM, "out of memory recording a working set");
		c->runs = more;
		c->room = room;
	}
	c->runs[c->count++] = (struct stasis_working_set_run){.first_page = page, .page_count = 1, .written = written};
	return 0;
}

static int look_at_page(void *arg, const struct memory_region *r, uint64_t page, uint64_t entry) {
	struct recording *c = arg;
	if ((entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)) == 0)
		return 0;
	return add_page(c, r->guest / PAGE_BYTES + page, (entry & PAGEMAP_FILE) == 0);
}

int working_set_write(const struct layers *l, const struct memory *m, int pagemap_fd, int fd, struct error *e) {
	if (pagemap_fd < 0)
		return error_set(e, -ENOTSUP, "cannot tell which pages were used: /proc/self/pagemap was not there when the VMM started");
	struct recording c = {.memory = m, .error = e};
	int r = pagemap_each(m, pagemap_fd, look_at_page, &c, e);
	size_t size = sizeof(struct stasis_working_set_header) + c.count * sizeof(*c.runs);
	cleanup_free uint8_t *file = r < 0 ? NULL : calloc(1, size);
	if (r == 0 && file == NULL)
		r = error_set(e, -ENOMEM, "out of memory recording a working set");
	if (r == 0) {
		struct stasis_working_set_header h = {.magic = STASIS_WORKING_SET_MAGIC,
						      .version = STASIS_WORKING_SET_VERSION,
						      .run_count = c.count,
						      .memory_bytes = m->size};
		memcpy(h.base_id, l->ids[0], sizeof(h.base_id));
		memcpy(file, &h, sizeof(h));
		if (c.count > 0)
			memcpy(file + sizeof(h), c.runs, c.count * sizeof(*c.runs));
		h.checksum = XXH3_64bits(file, size);
		memcpy(file, &h, sizeof(h));
		r = pwrite_full(fd, file, size, 0);
		if (r < 0)
			error_set(e, r, "cannot write the working set: %s", strerror(-r));
	}
	free(c.runs);
	return r;
}

static int check_runs(const uint8_t *from, uint32_t count, const struct memory *m, struct error *e) {
	uint64_t next = 0;
	for (uint32_t i = 0; i < count; i++) {
		struct stasis_working_set_run x;
		memcpy(&x, from + i * sizeof(x), sizeof(x));
		if (x.page_count == 0 || x.first_page < next || x.first_page > UINT64_MAX / PAGE_BYTES || x.written > 1 ||
		    memory_at(m, x.first_page * PAGE_BYTES, (uint64_t)x.page_count * PAGE_BYTES) == NULL)
			return error_set(e, -EBADMSG, "the working set's run %u is malformed", i);
		next = x.first_page + x.page_count;
	}
	return 0;
}

int working_set_check(void *file, uint64_t size, const uint8_t base_id[static STASIS_ID_BYTES], const struct memory *m, struct error *e) {
	struct stasis_working_set_header h;
	if (size < sizeof(h))
		return error_set(e, -EBADMSG, "the working set is cut off: it has %llu bytes", (unsigned long long)size);
	memcpy(&h, file, sizeof(h));
	if (memcmp(h.magic, STASIS_WORKING_SET_MAGIC, sizeof(h.magic)) != 0)
		return error_set(e, -EBADMSG, "this is not a working set of Stasis");
	if (h.version == 0 || h.version > STASIS_WORKING_SET_VERSION)
		return error_set(e, -EPROTONOSUPPORT, "the working set has format version %u, this VMM reads up to %u: use a newer Stasis",
				 h.version, STASIS_WORKING_SET_VERSION);
	if (h.run_count > STASIS_WORKING_SET_RUNS_MAX || size != sizeof(h) + h.run_count * sizeof(struct stasis_working_set_run))
		return error_set(e, -EBADMSG, "the working set is cut off: %llu bytes with %u runs", (unsigned long long)size, h.run_count);
	uint64_t checksum = h.checksum;
	h.checksum = 0;
	memcpy(file, &h, sizeof(h));
	if (XXH3_64bits(file, (size_t)size) != checksum)
		return error_set(e, -EBADMSG,
				 "the working set is damaged: its checksum is wrong; without the file the image starts, slower");
	if (h.memory_bytes != m->size || memcmp(h.base_id, base_id, sizeof(h.base_id)) != 0)
		return error_set(e, -ESTALE, "the working set belongs to another snapshot; without the file the image starts, slower");
	return check_runs((const uint8_t *)file + sizeof(h), h.run_count, m, e);
}

int working_set_read(int fd, const struct layers *l, const struct memory *m, struct stasis_working_set_run **ret_runs, uint32_t *ret_count,
		     struct error *e) {
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot examine the working set");
	size_t head = sizeof(struct stasis_working_set_header);
	if (st.st_size < (off_t)head || st.st_size > (off_t)(head + STASIS_WORKING_SET_RUNS_MAX * sizeof(**ret_runs)))
		return error_set(e, -EBADMSG, "the working set cannot have %lld bytes", (long long)st.st_size);
	cleanup_free uint8_t *file = malloc((size_t)st.st_size);
	if (file == NULL)
		return error_set(e, -ENOMEM, "out of memory reading a working set");
	int r = pread_full(fd, file, (size_t)st.st_size, 0);
	if (r < 0)
		return error_set(e, r, "cannot read the working set: %s", strerror(-r));
	r = working_set_check(file, (uint64_t)st.st_size, l->ids[0], m, e);
	if (r < 0)
		return r;
	*ret_count = (uint32_t)(((size_t)st.st_size - head) / sizeof(**ret_runs));
	memmove(file, file + head, (size_t)st.st_size - head);
	*ret_runs = (struct stasis_working_set_run *)(void *)take_ptr(file);
	return 0;
}
