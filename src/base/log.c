// The structured log; see log.h.
#include "base/log.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LINE_MAX_BYTES 4096
#define VALUE_MAX_BYTES 1024

static enum log_level least_level = LOG_LEVEL_INFO;

struct line {
	char text[LINE_MAX_BYTES];
	size_t size;
};

void log_set_level(enum log_level least) {
	least_level = least;
}

static void put(struct line *l, char c) {
	if (l->size < sizeof(l->text) - 1)
		l->text[l->size++] = c;
}

static void put_text(struct line *l, const char *s) {
	for (; *s != '\0'; s++)
		put(l, *s);
}

static bool is_plain(const char *s) {
	if (*s == '\0')
		return false;
	for (; *s != '\0'; s++)
		if ((unsigned char)*s <= ' ' || *s == '"' || *s == '=' || *s == '\\' || *s == 0x7f)
			return false;
	return true;
}

static void put_value(struct line *l, const char *s) {
	if (is_plain(s) && strlen(s) <= VALUE_MAX_BYTES) {
		put_text(l, s);
		return;
	}
	put(l, '"');
	for (size_t n = 0; *s != '\0' && n < VALUE_MAX_BYTES; s++, n++) {
		unsigned char c = (unsigned char)*s;
		if (c == '"' || c == '\\') {
			put(l, '\\');
			put(l, (char)c);
		} else if (c == '\n') {
			put_text(l, "\\n");
		} else if (c < ' ' || c == 0x7f) {
			char escape[8];
			snprintf(escape, sizeof(escape), "\\x%02x", c);
			put_text(l, escape);
		} else {
			put(l, (char)c);
		}
	}
	put(l, '"');
}

void log_event(enum log_level level, const char *event, const struct log_field *fields, size_t n) {
	static const char *const names[] = {"debug", "info", "warn", "error"};
	if (level < least_level)
		return;
	struct line l = {.size = 0};
	struct timespec now;
	struct tm parts;
	char stamp[64];
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &parts);
	size_t size = strftime(stamp, sizeof(stamp), "%Y-%m-%dT%H:%M:%S", &parts);
	snprintf(stamp + size, sizeof(stamp) - size, ".%03ldZ ", now.tv_nsec / 1000000);
	put_text(&l, stamp);
	put_text(&l, names[level]);
	put(&l, ' ');
	put_text(&l, event);
	for (size_t i = 0; i < n; i++) {
		if (fields[i].key == NULL)
			continue;
		put(&l, ' ');
		put_text(&l, fields[i].key);
		put(&l, '=');
		if (fields[i].text != NULL) {
			put_value(&l, fields[i].text);
		} else {
			char number[32];
			snprintf(number, sizeof(number), "%lld", (long long)fields[i].number);
			put_text(&l, number);
		}
	}
	l.text[l.size++] = '\n';
	ssize_t ignored = write(STDERR_FILENO, l.text, l.size);
	(void)ignored;
}
