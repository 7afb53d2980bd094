// Bounded logs; see output_log.h.
#include "microvms/output_log.h"

#include "base/clock.h"
#include "base/io.h"
#include "logs/log_files.h"
#include "logs/log_lines.h"
#include "logs/log_wake.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define SEGMENTS 4 // of a full log

static const char *const stream_names[] = {"?", "stdout", "stderr", "stasis"};

static int open_segment(const struct output_log *l, uint64_t position) {
	char path[LOG_FOLDER_MAX + 24];
	log_files_path(l->folder, position, path);
	int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
	return fd < 0 ? -errno : fd;
}

// A crash may have cut the last line short.
static void end_last_line(struct output_log *l) {
	char last = '\n';
	if (l->size > 0 && pread_full(l->fd, &last, 1, l->size - 1) == 0 && last != '\n' && write_full(l->fd, "\n", 1) == 0)
		l->size++;
}

int output_log_open(struct output_log *l, const char *folder, uint64_t limit, struct push_stream *push, struct error *e) {
	*l = (struct output_log){.fd = -1, .limit = limit, .last_done = true};
	if (strlen(folder) >= sizeof(l->folder)) {
		push_close(push);
		return error_set(e, -ENAMETOOLONG, "the path %s is too long", folder);
	}
	memcpy(l->folder, folder, strlen(folder) + 1);
	struct log_span span = {0};
	int r = make_folders(folder, 0750, e);
	if (r == 0 && log_files_span(folder, &span) == 0) {
		l->segment = span.newest;
		l->size = span.end - span.newest;
	}
	if (r == 0 && (r = open_segment(l, l->segment)) < 0)
		error_set(e, r, "cannot open the log in %s: %s", folder, strerror(-r));
	if (r < 0) {
		push_close(push);
		return r;
	}
	l->fd = r;
	l->push = push;
	pthread_mutex_init(&l->lock, NULL);
	end_last_line(l);
	return 0;
}

void output_log_close(struct output_log *l) {
	if (l->fd < 0)
		return;
	close(l->fd);
	l->fd = -1;
	pthread_mutex_destroy(&l->lock);
	push_close(l->push);
	l->push = NULL;
}

// Begins a new segment; on failure the old one goes on.
static void rotate(struct output_log *l) {
	int fd = open_segment(l, l->segment + l->size);
	if (fd < 0)
		return;
	close(l->fd);
	l->fd = fd;
	l->segment += l->size;
	l->size = 0;
	log_files_trim(l->folder, l->limit - l->limit / SEGMENTS);
}

static void put(struct output_log *l, const char *data, size_t size) {
	if (l->failing || size == 0)
		return;
	if (write_full(l->fd, data, size) == 0) {
		l->size += size;
		return;
	}
	// The application goes on without its log until there is room again.
	l->failing = true;
	off_t end = lseek(l->fd, 0, SEEK_END);
	l->size = end < 0 ? l->size : (uint64_t)end;
}

static void put_prefix(struct output_log *l, int kind, int64_t ms) {
	char prefix[64];
	log_stamp(ms, prefix);
	int n = snprintf(prefix + LOG_STAMP, sizeof(prefix) - LOG_STAMP, " %s ", stream_names[kind]);
	put(l, prefix, LOG_STAMP + (size_t)n);
}

// At the start of a line: makes room, then writes the prefix.
static void begin_line(struct output_log *l, int kind, int64_t ms) {
	if (l->failing) {
		static const char notice[] = "(output was lost: it could not be written, most likely because the disk was full)\n";
		l->failing = false;
		end_last_line(l);
		put_prefix(l, 3, ms);
		put(l, notice, sizeof(notice) - 1);
	}
	if (l->size >= l->limit / SEGMENTS)
		rotate(l);
	put_prefix(l, kind, ms);
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

static void write_lines(struct output_log *l, int kind, int64_t ms, const char *data, size_t size) {
	if (l->open_kind != 0 && l->open_kind != kind) {
		put(l, "\n", 1);
		l->open_kind = 0;
		l->last_done = true;
	}
	remember(l, data, size);
	while (size > 0) {
		if (l->open_kind == 0)
			begin_line(l, kind, ms);
		const char *newline = memchr(data, '\n', size);
		size_t n = newline == NULL ? size : (size_t)(newline - data) + 1;
		put(l, data, n);
		if (newline != NULL) {
			l->open_kind = 0;
		} else if (l->size > l->limit / SEGMENTS + l->limit / 16) {
			// A line without end must not get around the limit.
			put(l, "\n", 1);
			l->open_kind = 0;
		}
		data += n;
		size -= n;
	}
}

void output_log_write(struct output_log *l, int kind, uint64_t realtime, const char *data, size_t size) {
	if (kind < 1 || kind > 3 || l->fd < 0)
		return;
	uint64_t now = realtime_ns();
	pthread_mutex_lock(&l->lock);
	write_lines(l, kind, (int64_t)((realtime < now ? realtime : now) / 1000000u), data, size);
	pthread_mutex_unlock(&l->lock);
	log_wake(l->folder);
	push_touch(l->push);
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
