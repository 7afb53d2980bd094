// WebSocket frames. Besides memory errors it looks for answers that depend on how the bytes were cut, and reads again what it writes. The
// first byte of the input chooses whose frames these are.
#include "base/websocket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct outcome {
	uint64_t hash;
	size_t used, messages;
	uint16_t failure;
};

static void require(bool fine) {
	if (!fine)
		abort();
}

static void mix(uint64_t *hash, const void *data, size_t size) {
	for (size_t i = 0; i < size; i++)
		*hash = (*hash ^ ((const uint8_t *)data)[i]) * 1099511628211u;
}

static struct outcome read_all(bool from_client, const uint8_t *input, size_t size, size_t step) {
	struct ws_reader r = {.from_client = from_client};
	struct outcome o = {.hash = 14695981039346656037u};
	uint8_t *data = malloc(size + 1);
	memcpy(data, input, size);
	while (o.used < size && !r.closed) {
		struct ws_piece p;
		size_t n = size - o.used < step ? size - o.used : step;
		ssize_t used = ws_read(&r, data + o.used, n, &p);
		if (used < 0) {
			require(used == -EBADMSG && (r.failure == WS_CODE_PROTOCOL_ERROR || r.failure == WS_CODE_NOT_UTF8));
			o.failure = r.failure;
			// How far it got within the bad frame depends on the cut.
			o.used = o.hash = 0;
			break;
		}
		require(used > 0 && (size_t)used <= n);
		bool control = p.kind >= WS_CLOSE;
		require(p.size == 0 || control || (p.data >= data && p.data + p.size <= data + size));
		require(!control || p.size <= WS_CONTROL_MAX);
		mix(&o.hash, p.data, p.size);
		if (p.last) {
			uint8_t kind = (uint8_t)p.kind;
			mix(&o.hash, &kind, 1);
			o.messages++;
		}
		o.used += (size_t)used;
	}
	free(data);
	return o;
}

static void write_and_read(const uint8_t *input, size_t size) {
	static const uint8_t mask[4] = {9, 8, 7, 6};
	uint8_t *data = malloc(size + WS_HEAD_MAX);
	size_t n = ws_write_head(data, WS_BINARY, true, size, mask);
	memcpy(data + n, input, size);
	ws_mask(data + n, size, mask, 0);
	struct ws_reader r = {.from_client = true};
	struct ws_piece p;
	require(ws_read(&r, data, n + size, &p) == (ssize_t)(n + size) && p.kind == WS_BINARY && p.last && p.size == size);
	require(memcmp(p.data, input, size) == 0);
	free(data);
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
	if (size < 1)
		return 0;
	bool from_client = (input[0] & 1) != 0;
	struct outcome whole = read_all(from_client, input + 1, size - 1, SIZE_MAX), bytes = read_all(from_client, input + 1, size - 1, 1);
	require(whole.hash == bytes.hash && whole.used == bytes.used && whole.messages == bytes.messages && whole.failure == bytes.failure);
	write_and_read(input, size);
	return 0;
}
