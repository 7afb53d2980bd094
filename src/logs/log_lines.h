// The lines of a log, `<YYYY-MM-DDTHH:MM:SS.mmm>Z <stream> <text>`: their stamps, and which of them lie in a range of time.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LOG_STAMP 24 // characters, the Z included

// Writes the stamp of a time, and a NUL.
void log_stamp(int64_t ms, char to[LOG_STAMP + 1]);
// The time of a line that begins with a stamp and a space. False: it does not.
bool log_stamp_parse(const char *line, size_t size, int64_t *ret_ms);

// A filter over a log that comes in pieces.
struct log_filter {
	bool active;               // otherwise everything passes
	char since[LOG_STAMP + 1]; // "": from the beginning; lines of that time pass
	char until[LOG_STAMP + 1]; // "": to the end; lines of that time do not pass
	bool inside;               // of a line
	bool showing;              // that line, or what followed the last stamp
};
// Times are milliseconds since the epoch; 0: none.
void log_filter_start(struct log_filter *f, int64_t since_ms, int64_t until_ms);
// Moves what passes to the front of `data` and returns how many bytes that is. *used: how many bytes were looked at; what is left, less than a
// stamp, is to come again with what follows it.
size_t log_filter_take(struct log_filter *f, char *data, size_t size, size_t *used);
