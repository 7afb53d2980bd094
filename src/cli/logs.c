// Printing logs: those of microVMs (`stasis logs`) and of builds (`stasis image logs`), by time, and followed.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/clock.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PATH_ROOM 1700
#define CONSOLE_LOOK_US 500000 // the console is the VMM's: nobody is told when it grows

// "90", "90s", "10m", "2h", "3d" ago, or a date of RFC 3339 in UTC. False: it is neither.
static bool parse_time(const char *text, int64_t *ret_ms) {
	char *end;
	errno = 0;
	long long n = strtoll(text, &end, 10);
	static const struct {
		const char *unit;
		int64_t seconds;
	} units[] = {{"", 1}, {"s", 1}, {"m", 60}, {"h", 3600}, {"d", 86400}};
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++) {
		if (end == text || errno != 0 || n < 0 || n > 100000000 || strcmp(end, units[i].unit) != 0)
			continue;
		int64_t ms = (int64_t)realtime_ms() - n * units[i].seconds * 1000;
		*ret_ms = ms < 1 ? 1 : ms;
		return true;
	}
	struct tm parts = {0};
	const char *rest = strptime(text, "%Y-%m-%dT%H:%M:%S", &parts);
	if (rest == NULL)
		return false;
	int64_t ms = (int64_t)timegm(&parts) * 1000;
	if (*rest == '.') {
		int64_t scale = 100;
		for (rest++; *rest >= '0' && *rest <= '9'; rest++, scale /= 10)
			ms += (*rest - '0') * scale;
	}
	*ret_ms = ms;
	return ms > 0 && (*rest == '\0' || strcmp(rest, "Z") == 0);
}

int log_option(const char *help, struct log_options *o, int which, const char *value) {
	if (which == 'f')
		o->follow = true;
	else if (!parse_time(value, which == LOG_SINCE ? &o->since_ms : &o->until_ms))
		return usage_error(help, "times are '10m' (s, m, h, d: so long ago) or '2026-01-31T12:00:00Z', not '%s'", value);
	if (o->follow && o->until_ms > 0)
		return usage_error(help, "--follow goes on for ever: it cannot have --until");
	return -1;
}

int log_print(const struct cli *c, const char *path, const struct log_options *o, struct error *e) {
	char full[PATH_ROOM], range[96];
	snprintf(range, sizeof(range), "since=%lld&until=%lld", (long long)o->since_ms, (long long)o->until_ms);
	if (o->follow) {
		snprintf(full, sizeof(full), "%s?follow=true&since=%lld", path, (long long)o->since_ms);
		return client_stream(&c->settings, full, stdout, e);
	}
	for (unsigned long long offset = 0, before = 1; before != offset;) {
		cleanup_free char *data = NULL;
		size_t size;
		struct client_header headers[] = {{.name = "X-Stasis-Next-Offset"}, {.name = "X-Stasis-Kept"}};
		before = offset;
		snprintf(full, sizeof(full), "%s?offset=%llu&%s", path, offset, range);
		int r = client_get(&c->settings, full, &data, &size, headers, 2, e);
		if (r < 0)
			return r;
		fwrite(data, 1, size, stdout);
		if (strcmp(headers[1].value, "false") == 0)
			fprintf(stderr, "stasis: nothing is kept of this log\n");
		offset = strtoull(headers[0].value, NULL, 10);
	}
	return 0;
}

static int print_console(const struct cli *c, const char *path, bool follow, struct error *e) {
	for (unsigned long long offset = 0;;) {
		char full[PATH_ROOM + 40];
		cleanup_free char *data = NULL;
		size_t size;
		struct client_header headers[] = {{.name = "X-Stasis-Next-Offset"}, {.name = "X-Stasis-Complete"}};
		snprintf(full, sizeof(full), "%s?offset=%llu", path, offset);
		int r = client_get(&c->settings, full, &data, &size, headers, 2, e);
		if (r < 0)
			return r;
		fwrite(data, 1, size, stdout);
		fflush(stdout);
		offset = strtoull(headers[0].value, NULL, 10);
		if (size == 0 && (!follow || strcmp(headers[1].value, "true") == 0))
			return 0;
		if (size == 0)
			usleep(CONSOLE_LOOK_US);
	}
}

int cmd_logs(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis logs <id> [--follow] [--since T] [--until T] [--console]\n\n"
		"Prints what the application wrote on standard output and error, also after the microVM's end.\n\n"
		"  -f, --follow   go on as more comes, until the microVM has ended\n"
		"  --since T      only lines from that time on: '10m' (s, m, h, d: so long ago) or '2026-01-31T12:00:00Z'\n"
		"  --until T      only lines before that time\n"
		"  --console      the guest kernel's console instead\n";
	static const struct option options[] = {{"follow", no_argument, NULL, 'f'},
						{"since", required_argument, NULL, LOG_SINCE},
						{"until", required_argument, NULL, LOG_UNTIL},
						{"console", no_argument, NULL, 'c'},
						{0}};
	struct log_options o = {.follow = false};
	bool console = false;
	int code = -1, which;
	while (code < 0 && (which = next_option(c, argc, argv, "f", options, help, &code)) >= 0) {
		if (which == 'c')
			console = true;
		else
			code = log_option(help, &o, which, optarg);
	}
	if (code >= 0)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'logs' takes one id");
	if (console && (o.since_ms > 0 || o.until_ms > 0))
		return usage_error(help, "the console has no times");
	char id[64], path[PATH_ROOM];
	struct error e;
	int r = microvm_id(c, argv[optind], id, &e);
	snprintf(path, sizeof(path), "/_stasis/microvms/%s/%s", id, console ? "console" : "log");
	if (r == 0)
		r = console ? print_console(c, path, o.follow, &e) : log_print(c, path, &o, &e);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}
