// The log of what an application or a build wrote: lines of `<time> <stream> <text>` in segments (src/logs/log_files.h) of which the newest are
// kept. Its readers, and what is pushed elsewhere, are woken by every write. Thread-safe once it is open.
#pragma once

#include "base/error.h"
#include "logs/push.h"

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define OUTPUT_LOG_PATH 512
#define OUTPUT_TAIL 400

struct output_log {
	int fd; // -1: closed
	char folder[OUTPUT_LOG_PATH];
	pthread_mutex_t lock;
	uint64_t segment, size; // where the newest segment begins, and its bytes
	uint64_t limit;         // of all segments
	bool failing;           // the last write failed, most likely for want of room
	int open_kind;          // stream whose line is not finished; 0: at the start of a line
	char last[OUTPUT_TAIL]; // the newest line that was not empty, for reasons
	size_t last_size;
	bool last_done;           // the next byte begins a new line
	struct push_stream *push; // NULL: not pushed
};

// Opens for appending, makes the folder when it is missing. `push`: where its lines are pushed to, or NULL; the log's from now on. [may block]
int output_log_open(struct output_log *l, const char *folder, uint64_t limit, struct push_stream *push, struct error *e);
void output_log_close(struct output_log *l);

// kind: 1 standard output, 2 standard error, 3 Stasis itself. Control characters other than tab and newline are written as they are; a
// line that another stream interrupts is ended first. A time that lies in the future (guests say what they like) counts as now.
void output_log_write(struct output_log *l, int kind, uint64_t realtime_ns, const char *data, size_t size);

// One line of Stasis's own.
void output_log_note(struct output_log *l, const char *format, ...) __attribute__((format(printf, 2, 3)));
