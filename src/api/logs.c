// Logs below /_stasis/: of builds and of applications, by position, by time, and followed; and the guest's console.
//
//   ?offset=N              from that position on; answers with at most 256 KiB, X-Stasis-Next-Offset says where to go on
//   ?since=MS&until=MS     only lines of these times (milliseconds since the epoch; since included, until not)
//   ?follow=true           everything from there on, and what comes later, until the build or the microVM has ended
#include "logs/logs.h"
#include "api/call.h"
#include "base/cleanup.h"
#include "logs/log_lines.h"
#include "logs/log_wake.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define LOG_PIECE (256u << 10) // bytes of a log in one answer
#define FOLLOW_PIECE (64u << 10)

struct log_request {
	uint64_t offset;
	struct log_filter filter;
	bool follow;
};

// What a log is of: where it lies, and whether more can come.
struct log_source {
	struct engine *en;
	char folder[LOG_FOLDER_MAX];
	const char *microvm;              // its id; NULL: it is a build's
	const char *image_uuid, *version; // of a build
};

// The state is read before the log, so that a log called complete is.
static bool has_ended(const struct log_source *s) {
	if (s->microvm != NULL) {
		struct store_microvm m = {0};
		int r = store_get_microvm(s->en->store, s->microvm, &m, NULL);
		bool ended = r == -ENOENT || (r == 0 && strcmp(m.state, "TERMINATED") == 0);
		store_microvm_clear(&m);
		return ended;
	}
	struct store_version v = {0};
	int r = store_get_version(s->en->store, s->image_uuid, s->version, &v, NULL);
	bool ended = r == -ENOENT || (r == 0 && strcmp(v.state, "PENDING") != 0 && strcmp(v.state, "IN_PROGRESS") != 0);
	store_version_clear(&v);
	return ended;
}

// False: failed and answered.
static bool read_number(struct call *c, const char *name, const char *what, uint64_t *ret) {
	bool failed = false;
	cleanup_free char *text = call_query(c, name, &failed);
	if (failed)
		return false;
	if (text == NULL)
		return true;
	char *end;
	errno = 0;
	unsigned long long value = strtoull(text, &end, 10);
	if (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || value > INT64_MAX) {
		call_fail(c, 400, "ValidationException", "%s must be %s", name, what);
		return false;
	}
	*ret = value;
	return true;
}

static bool read_request(struct call *c, struct log_request *q) {
	static const char time[] = "a number of milliseconds since the epoch";
	uint64_t since = 0, until = 0;
	bool failed = false;
	*q = (struct log_request){.offset = 0};
	if (!read_number(c, "offset", "a number of bytes", &q->offset) || !read_number(c, "since", time, &since) ||
	    !read_number(c, "until", time, &until))
		return false;
	cleanup_free char *follow = call_query(c, "follow", &failed);
	if (failed)
		return false;
	if (follow != NULL && strcmp(follow, "true") != 0 && strcmp(follow, "false") != 0) {
		call_fail(c, 400, "ValidationException", "follow must be true or false");
		return false;
	}
	q->follow = follow != NULL && strcmp(follow, "true") == 0;
	if (q->follow && until > 0) {
		call_fail(c, 400, "ValidationException", "follow goes on for ever: it cannot have until");
		return false;
	}
	log_filter_start(&q->filter, (int64_t)since, (int64_t)until);
	return true;
}

// Pieces ----------------------------------------------------------------------------------------------------------------------------

static void answer_piece(struct call *c, const struct log_source *s, struct log_request *q) {
	cleanup_free char *piece = malloc(LOG_PIECE);
	if (piece == NULL) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	bool ended = has_ended(s);
	uint64_t at = q->offset;
	ssize_t n = log_files_read(s->folder, &at, piece, LOG_PIECE);
	if (n < 0 && n != -ENOENT) {
		call_fail(c, 500, "InternalServerException", "The log cannot be read: %s", strerror((int)-n));
		return;
	}
	struct log_span span = {0};
	log_files_span(s->folder, &span);
	size_t used = 0, kept = n > 0 ? log_filter_take(&q->filter, piece, (size_t)n, &used) : 0;
	exchange_header(c->x, "content-type", "text/plain; charset=utf-8");
	exchange_header(c->x, "x-stasis-next-offset", "%llu", (unsigned long long)(at + used));
	exchange_header(c->x, "x-stasis-complete", "%s", ended && at + used >= span.end ? "true" : "false");
	if (n == -ENOENT && ended)
		exchange_header(c->x, "x-stasis-kept", "false"); // removed by now, or there never was one
	exchange_reply(c->x, 200, piece, kept);
}

// Following -------------------------------------------------------------------------------------------------------------------------

// Sends what there is. Returns 0, or a negative errno when there is nobody to send to.
static int send_rest(struct call *c, const struct log_source *s, struct log_request *q, char *piece) {
	for (;;) {
		ssize_t n = log_files_read(s->folder, &q->offset, piece, FOLLOW_PIECE);
		if (n <= 0)
			return 0; // a log that cannot be read is one that does not grow
		size_t used, kept = log_filter_take(&q->filter, piece, (size_t)n, &used);
		int r = kept == 0 ? 0 : exchange_write(c->x, piece, kept);
		if (r < 0)
			return r;
		q->offset += used;
		if (used == 0)
			return 0;
	}
}

static void stop_waiting(void *arg) {
	log_wait_stop(arg);
}

static void follow(struct call *c, const struct log_source *s, struct log_request *q) {
	struct log_wait w;
	cleanup_free char *piece = malloc(FOLLOW_PIECE);
	if (piece == NULL || log_wait_begin(&w, s->folder) < 0) {
		call_fail(c, 429, "ThrottlingException", "%d logs are followed at the moment: end one of them", LOG_WAITERS_MAX);
		return;
	}
	exchange_header(c->x, "content-type", "text/plain; charset=utf-8");
	exchange_on_break(c->x, stop_waiting, &w);
	bool ended = exchange_begin_endless(c->x, 200) < 0;
	while (!ended) {
		ended = has_ended(s);
		if (send_rest(c, s, q, piece) < 0 || (!ended && !log_wait_next(&w)))
			break;
	}
	exchange_on_break(c->x, NULL, NULL);
	log_wait_end(&w);
	exchange_end(c->x);
}

static void answer_log(struct call *c, const struct log_source *s) {
	struct log_request q;
	if (!read_request(c, &q))
		return;
	if (q.follow)
		follow(c, s, &q);
	else
		answer_piece(c, s, &q);
}

void operator_build_log(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	if (find_version(c, &i, c->labels[1], &v)) {
		struct log_source s = {.en = c->en, .image_uuid = i.uuid, .version = v.version};
		logs_of_build(c->en, i.uuid, v.version, s.folder);
		answer_log(c, &s);
		store_version_clear(&v);
	}
	store_image_clear(&i);
}

void operator_microvm_log(struct call *c) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	struct log_source s = {.en = c->en, .microvm = m.id};
	logs_of_microvm(c->en, m.id, s.folder);
	answer_log(c, &s);
	store_microvm_clear(&m);
}

// The console -------------------------------------------------------------------------------------------------------------------------

// The VMM writes it, and moves its newest half to the front when it is full: its positions last until then.
static void answer_console(struct call *c, const char *path, bool ended) {
	uint64_t offset = 0;
	if (!read_number(c, "offset", "a number of bytes", &offset))
		return;
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	cleanup_free char *piece = malloc(LOG_PIECE);
	struct stat st = {.st_size = 0};
	if (piece == NULL || (fd < 0 && errno != ENOENT) || (fd >= 0 && fstat(fd, &st) < 0)) {
		call_fail(c, 500, "InternalServerException", "The console cannot be read: %s", strerror(errno));
		return;
	}
	if ((uint64_t)st.st_size < offset)
		offset = 0; // it was started anew
	ssize_t n = fd < 0 ? 0 : pread(fd, piece, LOG_PIECE, (off_t)offset);
	if (n < 0)
		n = 0;
	bool whole = offset + (size_t)n >= (uint64_t)st.st_size;
	exchange_header(c->x, "content-type", "text/plain; charset=utf-8");
	exchange_header(c->x, "x-stasis-next-offset", "%llu", (unsigned long long)(offset + (size_t)n));
	exchange_header(c->x, "x-stasis-complete", "%s", ended && whole ? "true" : "false");
	exchange_reply(c->x, 200, piece, (size_t)n);
}

void operator_microvm_console(struct call *c) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	char folder[LOG_FOLDER_MAX], path[LOG_FOLDER_MAX + 16];
	bool ended = strcmp(m.state, "TERMINATED") == 0;
	logs_of_microvm(c->en, m.id, folder);
	if (ended)
		snprintf(path, sizeof(path), "%s/console.log", folder);
	else
		snprintf(path, sizeof(path), "%.255s/microvms/%.40s/console.log", c->en->config.state_folder, m.id + strlen("microvm-"));
	answer_console(c, path, ended);
	store_microvm_clear(&m);
}
