// A bounded log file of what an application or a build wrote: lines of `<time> <stream> <text>`.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTPUT_LOG_PATH 512
#define OUTPUT_TAIL 400

struct output_log {
	int fd;
	char path[OUTPUT_LOG_PATH];
	uint64_t size, limit;
	bool rotate; // at the limit: keep one older file (<path>.1) and begin anew; otherwise stop with a notice
	bool full;
	int open_kind;          // stream whose line is not finished; 0: at the start of a line
	char last[OUTPUT_TAIL]; // the newest line that was not empty, for reasons
	size_t last_size;
	bool last_done; // the next byte begins a new line
};

// Opens for appending. [may block]
int output_log_open(struct output_log *l, const char *path, uint64_t limit, bool rotate, struct error *e);
void output_log_close(struct output_log *l);

// kind: 1 standard output, 2 standard error, 3 Stasis itself. Control characters other than tab and newline are written as they are; a
// line that another stream interrupts is ended first.
void output_log_write(struct output_log *l, int kind, uint64_t realtime_ns, const char *data, size_t size);

// One line of Stasis's own.
void output_log_note(struct output_log *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
