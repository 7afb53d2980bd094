// Structured log: one line per event on standard error, `time level event key=value …` (logfmt).
//
//     log_info("microvm.run", LOG_S("microvmId", id), LOG_U("ms", elapsed));
//
// Values are quoted when they need it and control characters are escaped, so that nothing a stranger wrote can forge a line.
#pragma once

#include <stddef.h>
#include <stdint.h>

enum log_level { LOG_LEVEL_DEBUG, LOG_LEVEL_INFO, LOG_LEVEL_WARN, LOG_LEVEL_ERROR };

struct log_field {
	const char *key;
	const char *text; // NULL: the number counts
	int64_t number;
};

#define LOG_S(k, v) ((struct log_field){.key = (k), .text = (v) == NULL ? "" : (v)})
#define LOG_U(k, v) ((struct log_field){.key = (k), .number = (int64_t)(v)})

// Lines below this level are dropped. Default: LOG_LEVEL_INFO.
void log_set_level(enum log_level least);

// Writes one line with one write(2); safe from any thread. Values are cut at 1 KiB, lines at 4 KiB.
void log_event(enum log_level level, const char *event, const struct log_field *fields, size_t n);

#define log_at(level, event, ...)                                                         \
	log_event(level, event, (const struct log_field[]){{.key = NULL}, ##__VA_ARGS__}, \
		  sizeof((const struct log_field[]){{.key = NULL}, ##__VA_ARGS__}) / sizeof(struct log_field))
#define log_debug(event, ...) log_at(LOG_LEVEL_DEBUG, event, ##__VA_ARGS__)
#define log_info(event, ...) log_at(LOG_LEVEL_INFO, event, ##__VA_ARGS__)
#define log_warn(event, ...) log_at(LOG_LEVEL_WARN, event, ##__VA_ARGS__)
#define log_error(event, ...) log_at(LOG_LEVEL_ERROR, event, ##__VA_ARGS__)
