// Bounded logs; see output_log.h.
#include "microvms/output_log.h"

#include "base/clock.h"
#include "base/io.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *const stream_names[] = {"?", "stdout", "stderr", "stasis"};

int output_log_open(struct output_log *l, const char *path, uint64_t limit, bool rotate, struct error *e) {
	*l = (struct output_log){.fd = -1, .limit = limit, .rotate = rotate, .last_done = true};
	if (strlen(path) + 2 >= sizeof(l->path))
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", path);
	memcpy(l->path, path, strlen(path) + 1);
	l->fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (l->fd < 0)
		return error_errno(e, "cannot open %s", path);
	struct stat st;
	if (fstat(l->fd, &st) == 0)
		l->size = (uint64_t)st.st_size;
	return 0;
}

void output_log_close(struct output_log *l) {
	if (l->fd >= 0)
		close(l->fd);
	l->fd = -1;
}

static void rotate(struct output_log *l) {
	char older[OUTPUT_LOG_PATH + 4];
	snprintf(older, sizeof(older), "%s.1", l->path);
	int fd = -1;
	if (rename(l->path, older) == 0)
		fd = open(l->path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	if (fd < 0) {
		l->full = true;
		return;
	}
	close(l->fd);
	l->fd = fd;
	l->size = 0;
}

static void put(struct output_log *l, const char *data, size_t size) {
	if (l->full || l->fd < 0 || size == 0)
		return;
	if (write_full(l->fd, data, size) < 0) {
		l->full = true; // most likely the disk; the application goes on without its log
		return;
	}
	l->size += size;
}

// At the start of a line: makes room, then writes the prefix.
static void begin_line(struct output_log *l, int kind, uint64_t realtime) {
	if (!l->full && l->size >= l->limit) {
		if (l->rotate) {
			rotate(l);
		} else {
			static const char notice[] = "(the log is full: the rest is not kept)\n";
			put(l, notice, sizeof(notice) - 1);
			l->full = true;
		}
	}
	time_t seconds = (time_t)(realtime / 1000000000u);
	struct tm parts;
	char prefix[80], stamp[40];
	gmtime_r(&seconds, &parts);
	strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &parts);
	int n = snprintf(prefix, sizeof(prefix), "%s.%03uZ %s ", stamp, (unsigned)(realtime % 1000000000u / 1000000u), stream_names[kind]);
	put(l, prefix, (size_t)n);
	l->open_kind = kind;
}

static void remember(struct output_log *l, const char *data, size_t size) {
	for (size_t i = 0; i < size; i++) {
		if (data[i] == '\n' || data[i] == '\r') {
			l->last_done = true;
			continue;
		}
		if (l->last_done) {
			l->last_size = 0;
			l->last_done = false;
		}
		if (l->last_size < sizeof(l->last) - 1)
			l->last[l->last_size++] = (unsigned char)data[i] < ' ' ? ' ' : data[i];
		l->last[l->last_size] = '\0';
	}
}

void output_log_write(struct output_log *l, int kind, uint64_t realtime, const char *data, size_t size) {
	if (kind < 1 || kind > 3)
		return;
	remember(l, data, size);
	if (l->open_kind != 0 && l->open_kind != kind) {
		put(l, "\n", 1);
		l->open_kind = 0;
	}
	while (size > 0) {
		if (l->open_kind == 0)
			begin_line(l, kind, realtime);
		const char *newline = memchr(data, '\n', size);
		size_t n = newline == NULL ? size : (size_t)(newline - data) + 1;
		put(l, data, n);
		if (newline != NULL)
			l->open_kind = 0;
		// A line without end must not get around the limit.
		else if (l->size > l->limit + l->limit / 4) {
			put(l, "\n", 1);
			l->open_kind = 0;
		}
		data += n;
		size -= n;
	}
}

void output_log_note(struct output_log *l, const char *format, ...) {
	char line[1024];
	va_list ap;
	va_start(ap, format);
	int n = vsnprintf(line, sizeof(line) - 1, format, ap);
	va_end(ap);
	size_t size = n < 0 ? 0 : (size_t)n < sizeof(line) - 1 ? (size_t)n : sizeof(line) - 2;
	line[size++] = '\n';
	output_log_write(l, 3, realtime_ns(), line, size);
}
