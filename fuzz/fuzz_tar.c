// tar archives. Besides memory errors it looks for answers that depend on how the bytes were cut, and writes again what it reads.
#include "base/tar.h"

#include <stdlib.h>
#include <string.h>

static void require(bool fine) {
	if (!fine)
		abort();
}

static uint64_t mix(uint64_t hash, const void *data, size_t size) {
	for (size_t i = 0; i < size; i++)
		hash = (hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
	return hash;
}

// Writes the entry anew and reads that.
static void again(const struct tar_entry *t) {
	static uint8_t head[TAR_HEAD_MAX];
	static struct tar_reader r;
	enum tar_event event = TAR_MORE;
	const void *content;
	size_t size = tar_write_head(t, head), content_size;
	memset(&r, 0, sizeof(r));
	require(size <= TAR_HEAD_MAX && size % TAR_BLOCK == 0);
	for (size_t at = 0; event != TAR_ENTRY;) {
		ssize_t n = tar_read(&r, head + at, size - at, &event, &content, &content_size, NULL);
		require(n > 0);
		at += (size_t)n;
	}
	bool folder_by_name = t->type == TAR_FILE && t->path[strlen(t->path) - 1] == '/';
	require(folder_by_name || (r.entry.type == t->type && r.entry.size == t->size));
	require(strcmp(r.entry.path, t->path) == 0 && r.entry.mode == t->mode);
	require(t->type < TAR_SYMLINK || strcmp(r.entry.target, t->target) == 0);
}

static uint64_t read_all(const uint8_t *data, size_t size, size_t step, bool rewrite) {
	static struct tar_reader r;
	uint64_t hash = 14695981039346656037u;
	memset(&r, 0, sizeof(r));
	for (size_t at = 0; at < size;) {
		enum tar_event event;
		const void *content;
		size_t content_size, n = size - at < step ? size - at : step;
		ssize_t used = tar_read(&r, data + at, n, &event, &content, &content_size, NULL);
		if (used < 0)
			return mix(hash, "bad", 3);
		if (event == TAR_END)
			return mix(hash, "end", 3);
		require(used > 0 && (size_t)used <= n);
		if (event == TAR_ENTRY) {
			hash = mix(hash, r.entry.path, strlen(r.entry.path) + 1);
			hash = mix(hash, r.entry.target, strlen(r.entry.target) + 1);
			hash = mix(hash, &r.entry.size, sizeof(r.entry.size));
			require(r.entry.path[0] != '\0' && r.entry.mode <= 07777);
			if (rewrite)
				again(&r.entry);
		}
		if (event == TAR_CONTENT) {
			require((const uint8_t *)content >= data && (const uint8_t *)content + content_size <= data + size);
			hash = mix(hash, content, content_size);
		}
		at += (size_t)used;
	}
	return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	require(read_all(data, size, SIZE_MAX, true) == read_all(data, size, 1, false));
	return 0;
}
