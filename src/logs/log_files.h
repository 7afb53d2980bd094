// One log on the disk: a folder of segments, each named by the position of its first byte (16 hexadecimal digits), which is counted from the
// beginning of the log. So a position stays valid while old segments go, and a reader notices what it missed. Segments begin with a line.
#pragma once

#include "base/error.h"

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define LOG_FOLDER_MAX 512
#define LOG_SEGMENTS_MAX 64

struct log_span {
	uint64_t first, end; // positions of the oldest byte and behind the newest
	uint64_t newest;     // where the newest segment begins
};

// What is kept. -ENOENT: there is no such log, or nothing in it.
int log_files_span(const char *folder, struct log_span *ret);
void log_files_path(const char *folder, uint64_t position, char to[LOG_FOLDER_MAX + 24]);
// Reads at most `room` bytes at *position, which moves to the oldest byte when it is gone, and to the end when it is beyond it; the call reads from
// one segment. Returns how many (0: the end), -ENOENT, or another negative errno.
ssize_t log_files_read(const char *folder, uint64_t *position, void *to, size_t room);
// Removes the oldest segments, never the newest, until at most `limit` bytes are left.
void log_files_trim(const char *folder, uint64_t limit);
