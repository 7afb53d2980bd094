// The lines of a log, as an application may have written them. A range of time, given by the first bytes, must pass the same bytes whether the log
// comes at once or in pieces; and the events that are made of it for a push are in order and whole.
#include "logs/log_lines.h"
#include "logs/push_batch.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BEFORE 12 // two times of four bytes, the size of pieces, what is pushed

static void check(bool good) {
	if (!good)
		abort();
}

// The log in pieces of at most `most` bytes; what a piece leaves comes again with the next one. *ret is as large as the log.
static size_t filter(const char *log, size_t size, size_t most, int64_t since, int64_t until, char *ret) {
	struct log_filter f;
	size_t kept = 0, at = 0, room = 0;
	log_filter_start(&f, since, until);
	char *piece = malloc(size + 1);
	while (at < size) {
		// A piece that holds no whole stamp is asked for again, with more.
		room = room + most > size - at ? size - at : room + most;
		size_t used;
		memcpy(piece, log + at, room);
		size_t n = log_filter_take(&f, piece, room, &used);
		check(n <= used && used <= room && room - used <= LOG_STAMP);
		memcpy(ret + kept, piece, n);
		kept += n;
		at += used;
		if (used == 0 && room == size - at)
			break;
		room = used == 0 ? room : 0;
	}
	free(piece);
	return kept;
}

static void push(const char *log, size_t size, int64_t last, bool all) {
	struct push_batch b;
	check(push_batch_start(&b, last) == 0);
	check(push_batch_take(&b, log, size, all) <= size);
	for (size_t i = 0; i < json_array_size(b.events); i++) {
		const json_t *event = json_array_get(b.events, i);
		int64_t ms = json_integer_value(json_object_get(event, "timestamp"));
		check(ms >= last && json_string_length(json_object_get(event, "message")) > 0);
		last = ms;
	}
	json_decref(b.events);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	if (size < BEFORE || size > PUSH_BATCH_BYTES)
		return -1;
	uint32_t since, until;
	memcpy(&since, data, 4);
	memcpy(&until, data + 4, 4);
	const char *log = (const char *)data + BEFORE;
	size -= BEFORE;
	char *whole = malloc(size + 1), *pieces = malloc(size + 1);
	size_t n = filter(log, size, size + 1, (int64_t)since * 1000, (int64_t)until * 1000, whole);
	size_t m = filter(log, size, (size_t)data[8] + 1, (int64_t)since * 1000, (int64_t)until * 1000, pieces);
	check(n == m && memcmp(whole, pieces, n) == 0);
	push(log, size, (int64_t)since * 1000, data[9] & 1);
	free(whole);
	free(pieces);
	return 0;
}
