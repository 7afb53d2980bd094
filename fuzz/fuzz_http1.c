// HTTP/1.1 heads and bodies. Besides memory errors it looks for answers that depend on how the bytes were cut: the input is parsed at
// once and prefix by prefix, and its body decoded at once and byte by byte. The first byte of the input chooses request or response.
#include "base/http1.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void require(bool fine) {
	if (!fine)
		abort();
}

static void check_slice(struct slice s, const char *data, size_t size) {
	require(s.size == 0 || (s.data >= data && s.data + s.size <= data + size));
}

static ssize_t parse(int side, const char *data, size_t size, struct http_head *h) {
	return side == 0 ? http_parse_request(data, size, h, NULL) : http_parse_response(data, size, side == 2, h, NULL);
}

// Decodes and returns a hash of the content; *used gets the bytes consumed or the error.
static uint64_t decode(const struct http_head *h, const char *data, size_t size, size_t step, ssize_t *used, bool *done) {
	struct http_body b;
	http_body_start(&b, h);
	uint64_t hash = 14695981039346656037u;
	size_t at = 0;
	while (at < size && !b.done) {
		size_t piece = size - at < step ? size - at : step;
		struct slice s;
		ssize_t n = http_body_feed(&b, data + at, piece, &s, NULL);
		if (n < 0) {
			*used = n;
			*done = false;
			return 0;
		}
		require(n > 0 && (size_t)n <= piece);
		check_slice(s, data + at, (size_t)n);
		for (size_t i = 0; i < s.size; i++)
			hash = (hash ^ (uint8_t)s.data[i]) * 1099511628211u;
		at += (size_t)n;
	}
	*used = (ssize_t)at;
	*done = b.done;
	return hash;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t input_size) {
	if (input_size < 1)
		return 0;
	static struct http_head h, again;
	int side = input[0] % 3;
	const char *data = (const char *)input + 1;
	size_t size = input_size - 1;
	ssize_t n = parse(side, data, size, &h);
	if (size <= 600) {
		for (size_t prefix = 0; prefix < size; prefix++) {
			ssize_t r = parse(side, data, prefix, &again);
			require(n > 0 && prefix >= (size_t)n ? r == n : r == 0 || r == n);
		}
	}
	struct http_head body = {.body = HTTP_BODY_CHUNKED};
	if (n > 0) {
		require((size_t)n <= size && n <= HTTP_HEAD_MAX && h.header_count <= HTTP_HEADERS_MAX);
		for (size_t i = 0; i < h.header_count; i++) {
			check_slice(h.headers[i].name, data, (size_t)n);
			check_slice(h.headers[i].value, data, (size_t)n);
			require(h.headers[i].name.size > 0);
			require(memchr(h.headers[i].value.data, '\n', h.headers[i].value.size) == NULL);
		}
		check_slice(h.method, data, (size_t)n);
		check_slice(h.target, data, (size_t)n);
		check_slice(h.reason, data, (size_t)n);
		data += n;
		size -= (size_t)n;
		body = h;
	} else if (n == 0) {
		return 0;
	}
	ssize_t used[2];
	bool done[2];
	uint64_t hash[2] = {decode(&body, data, size, SIZE_MAX, &used[0], &done[0]), decode(&body, data, size, 1, &used[1], &done[1])};
	require(hash[0] == hash[1] && used[0] == used[1] && done[0] == done[1]);
	return 0;
}
