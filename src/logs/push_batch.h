// Inside src/logs/ only: lines of a log become events; see push_batch.c.
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PUSH_BATCH_BYTES (255u << 10) // of a log; also the largest event

struct push_batch {
	json_t *events;
	int64_t first_ms; // 0: none yet
	int64_t last_ms;  // no event may be older
};

// `last_ms`: of the newest event of the batch before, 0 for none. -ENOMEM. The events are the caller's to release.
int push_batch_start(struct push_batch *b, int64_t last_ms);
// An event of Stasis's own, in front of the others.
bool push_batch_note(struct push_batch *b, int64_t ms, const char *text);
// Makes events of whole lines (with `all` also of a last one without end). Returns how many bytes were taken.
size_t push_batch_take(struct push_batch *b, const char *data, size_t size, bool all);
