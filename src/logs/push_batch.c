// One batch of a log's lines as events of PutLogEvents. Limits of the call: 1 MiB with 26 bytes for each event, 10,000 events, 24 hours from the first to the
// last, times in order. PUSH_BATCH_BYTES of a log keep all but the last by themselves: a line has at least 33 bytes.
#include "logs/push_batch.h"

#include "logs/log_lines.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SPAN_MS (24LL * 3600 * 1000 - 1)

_Static_assert(PUSH_BATCH_BYTES / 33 < 10000 && PUSH_BATCH_BYTES + 26 * (PUSH_BATCH_BYTES / 33) < 1 << 20, "a batch must fit one call");

// What a guest wrote need not be UTF-8, which JSON is: then its bytes beyond ASCII become '?'.
static json_t *message_of(const char *text, size_t size) {
	json_t *message = size == 0 ? json_string(" ") : json_stringn(text, size);
	if (message != NULL)
		return message;
	char *copy = malloc(size);
	if (copy == NULL)
		return NULL;
	for (size_t i = 0; i < size; i++)
		copy[i] = (unsigned char)text[i] < 0x80 ? text[i] : '?';
	message = json_stringn(copy, size);
	free(copy);
	return message;
}

static bool add_event(struct push_batch *b, int64_t ms, const char *text, size_t size) {
	json_t *event = json_pack("{s:I, s:o}", "timestamp", (json_int_t)ms, "message", message_of(text, size));
	return event != NULL && json_array_append_new(b->events, event) == 0;
}

// The text of a line behind its stamp and the name of its stream.
static void strip(const char **text, size_t *size) {
	const char *end = *text + *size, *at = *text + LOG_STAMP + 1;
	const char *space = memchr(at, ' ', (size_t)(end - at));
	*text = space == NULL ? end : space + 1;
	*size = (size_t)(end - *text);
}

// False: the line is not of this batch any more, or memory is out.
static bool add_line(struct push_batch *b, const char *line, size_t size) {
	int64_t ms = b->last_ms;
	if (size > 0 && line[size - 1] == '\n')
		size--;
	if (log_stamp_parse(line, size, &ms))
		strip(&line, &size);
	if (ms < b->last_ms)
		ms = b->last_ms;
	if (b->first_ms == 0)
		b->first_ms = ms;
	if (ms - b->first_ms > SPAN_MS || !add_event(b, ms, line, size))
		return false;
	b->last_ms = ms;
	return true;
}

int push_batch_start(struct push_batch *b, int64_t last_ms) {
	*b = (struct push_batch){.events = json_array(), .last_ms = last_ms};
	return b->events == NULL ? -ENOMEM : 0;
}

bool push_batch_note(struct push_batch *b, int64_t ms, const char *text) {
	b->last_ms = b->first_ms = ms > b->last_ms ? ms : b->last_ms;
	return add_event(b, b->last_ms, text, strlen(text));
}

size_t push_batch_take(struct push_batch *b, const char *data, size_t size, bool all) {
	size_t at = 0;
	while (at < size) {
		const char *end = memchr(data + at, '\n', size - at);
		size_t n = end == NULL ? size - at : (size_t)(end - data - at) + 1;
		// A line without end waits for it, unless it fills a batch by itself.
		if (end == NULL && !all && !(at == 0 && size == PUSH_BATCH_BYTES))
			break;
		if (!add_line(b, data + at, n))
			break;
		at += n;
	}
	return at;
}
