// Lines of logs; see log_lines.h. Stamps are compared as text: they have one width, and sort as their times do.
#include "logs/log_lines.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

void log_stamp(int64_t ms, char to[LOG_STAMP + 1]) {
	static const int64_t most = 253402300799999; // the last millisecond of the year 9999
	int64_t shown = ms < 0 ? 0 : ms > most ? most : ms;
	time_t seconds = (time_t)(shown / 1000);
	struct tm parts;
	char text[LOG_STAMP + 8];
	gmtime_r(&seconds, &parts);
	size_t n = strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S", &parts);
	snprintf(text + n, sizeof(text) - n, ".%03dZ", (int)(shown % 1000));
	memcpy(to, text, LOG_STAMP);
	to[LOG_STAMP] = '\0';
}

static bool has_stamp(const char *line, size_t size) {
	static const char form[] = "dddd-dd-ddTdd:dd:dd.dddZ ";
	if (size < sizeof(form) - 1)
		return false;
	for (size_t i = 0; i < sizeof(form) - 1; i++)
		if (form[i] == 'd' ? line[i] < '0' || line[i] > '9' : line[i] != form[i])
			return false;
	return true;
}

static int number(const char *digits, int n) {
	int v = 0;
	for (int i = 0; i < n; i++)
		v = v * 10 + (digits[i] - '0');
	return v;
}

bool log_stamp_parse(const char *line, size_t size, int64_t *ret_ms) {
	if (!has_stamp(line, size))
		return false;
	struct tm parts = {.tm_year = number(line, 4) - 1900,
			   .tm_mon = number(line + 5, 2) - 1,
			   .tm_mday = number(line + 8, 2),
			   .tm_hour = number(line + 11, 2),
			   .tm_min = number(line + 14, 2),
			   .tm_sec = number(line + 17, 2)};
	*ret_ms = (int64_t)timegm(&parts) * 1000 + number(line + 20, 3);
	return true;
}

void log_filter_start(struct log_filter *f, int64_t since_ms, int64_t until_ms) {
	*f = (struct log_filter){.active = since_ms > 0 || until_ms > 0, .showing = true};
	if (since_ms > 0)
		log_stamp(since_ms, f->since);
	if (until_ms > 0)
		log_stamp(until_ms, f->until);
}

// A line that begins without a stamp belongs to the one before it.
static void judge(struct log_filter *f, const char *line, size_t size) {
	if (has_stamp(line, size))
		f->showing = (f->since[0] == '\0' || memcmp(line, f->since, LOG_STAMP) >= 0) &&
			     (f->until[0] == '\0' || memcmp(line, f->until, LOG_STAMP) < 0);
}

size_t log_filter_take(struct log_filter *f, char *data, size_t size, size_t *used) {
	size_t kept = 0, at = 0;
	*used = size;
	if (!f->active)
		return size;
	while (at < size) {
		const char *end = memchr(data + at, '\n', size - at);
		size_t n = end == NULL ? size - at : (size_t)(end - data - at) + 1;
		if (!f->inside && end == NULL && n <= LOG_STAMP) {
			*used = at;
			break;
		}
		if (!f->inside)
			judge(f, data + at, n);
		if (f->showing) {
			memmove(data + kept, data + at, n);
			kept += n;
		}
		f->inside = end == NULL;
		at += n;
	}
	return kept;
}
