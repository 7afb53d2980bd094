// What the commands print: JSON, tables, sizes, times, progress.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/clock.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void print_json(const json_t *value) {
	json_dumpf(value, stdout, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_ENCODE_ANY);
	putchar('\n');
}

const char *json_text(const json_t *object, const char *key) {
	const char *v = json_string_value(json_object_get(object, key));
	return v == NULL ? "" : v;
}

void table_row(struct table *t, const char *const *cells) {
	if (t->rows == t->room) {
		size_t room = t->room == 0 ? 16 : t->room * 2;
		char **more = realloc(t->cells, room * t->columns * sizeof(char *));
		if (more == NULL)
			return;
		t->cells = more;
		t->room = room;
	}
	for (size_t i = 0; i < t->columns; i++)
		t->cells[t->rows * t->columns + i] = strdup(cells[i]);
	t->rows++;
}

void table_print(struct table *t) {
	for (size_t row = 0; row <= t->rows; row++) {
		for (size_t i = 0; i < t->columns; i++) {
			size_t width = strlen(t->titles[i]);
			for (size_t k = 0; k < t->rows; k++) {
				const char *cell = t->cells[k * t->columns + i];
				if (cell != NULL && strlen(cell) > width)
					width = strlen(cell);
			}
			const char *text = row == 0 ? t->titles[i] : t->cells[(row - 1) * t->columns + i];
			bool last = i + 1 == t->columns;
			printf("%-*s%s", last ? 0 : (int)width, text == NULL ? "" : text, last ? "\n" : "  ");
		}
	}
	for (size_t i = 0; i < t->rows * t->columns; i++)
		free(t->cells[i]);
	free(t->cells);
	t->cells = NULL;
	t->rows = t->room = 0;
}

void format_time(double epoch_seconds, char to[32]) {
	time_t when = (time_t)epoch_seconds;
	struct tm parts;
	if (epoch_seconds <= 0 || localtime_r(&when, &parts) == NULL)
		snprintf(to, 32, "-");
	else
		strftime(to, 32, "%Y-%m-%d %H:%M:%S", &parts);
}

void format_size(double bytes, char to[16]) {
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	size_t unit = 0;
	while (bytes >= 1024 && unit < 4) {
		bytes /= 1024;
		unit++;
	}
	snprintf(to, 16, unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

static struct {
	uint64_t since;
	bool open;
	char text[200];
} progress;

static void finish_line(void) {
	if (progress.open)
		fprintf(stderr, "\r\033[K  %s (%.1f s)\n", progress.text, (double)(monotonic_ns() - progress.since) / 1e9);
	progress.open = false;
}

void progress_step(const char *format, ...) {
	char text[200];
	va_list ap;
	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);
	if (strcmp(text, progress.text) == 0) {
		if (progress.open)
			fprintf(stderr, "\r\033[K  %s … %.0f s", text, (double)(monotonic_ns() - progress.since) / 1e9);
		return;
	}
	finish_line();
	memcpy(progress.text, text, sizeof(text));
	progress.since = monotonic_ns();
	if (isatty(STDERR_FILENO)) {
		progress.open = true;
		fprintf(stderr, "  %s …", text);
	} else {
		fprintf(stderr, "  %s\n", text);
	}
}

void progress_done(void) {
	finish_line();
	progress.text[0] = '\0';
}
