// Pushing logs; see push.h.
//
// A stream that has grown is queued, and due PUSH_DELAY_MS later, so that a busy application makes batches instead of calls. At most PUSHERS_MAX
// workers push, as long as something is queued. When the endpoint is not to be reached or refuses everything, all of them pause, from one
// second to five minutes, longer with every failure.
#include "logs/push.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/json.h"
#include "base/log.h"
#include "logs/cloudwatch.h"
#include "logs/push_batch.h"
#include "stasisd/engine.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PUSH_DELAY_MS 1000
#define PUSHERS_MAX 2
#define PAUSE_LEAST_MS 1000
#define PAUSE_MOST_MS 300000
#define PUSH_FILE_MAX 16384

struct push_stream {
	struct push_stream *next;
	struct pusher *p;
	char folder[LOG_FOLDER_MAX];
	struct push_target target;
	unsigned references; // of logs that are open
	_Atomic bool queued;
	bool busy; // a worker has it: position and last_ms are the worker's
	_Atomic bool ended;
	uint64_t due_ms;   // monotonic
	uint64_t position; // of the log: everything before it was accepted
	int64_t last_ms;   // of the newest event
};

struct pusher {
	struct engine *en;
	pthread_mutex_t lock;
	pthread_cond_t changed; // monotonic
	struct push_stream *streams;
	unsigned running, failures;
	uint64_t pause_ms; // monotonic: nothing is sent before
	_Atomic bool stopping;
};

// Targets ---------------------------------------------------------------------------------------------------------------------------

// The names that the request gives; false when it says that there shall be no log.
static bool take_logging(const json_t *config, struct push_target *t) {
	const json_t *logging = json_object_get(config, "logging"), *cloudwatch = json_object_get(logging, "cloudWatch");
	if (json_is_object(json_object_get(logging, "disabled")))
		return false;
	const char *group = json_string_value(json_object_get(cloudwatch, "logGroup")),
		   *stream = json_string_value(json_object_get(cloudwatch, "logStream"));
	if (group != NULL)
		snprintf(t->group, sizeof(t->group), "%s", group);
	if (stream != NULL && stream[0] != '\0')
		snprintf(t->stream, sizeof(t->stream), "%s", stream);
	return true;
}

static void set_names(struct push_target *t, const char *image, const char *version, const char *who, const char *id, int64_t started_ms) {
	char day[16];
	time_t seconds = (time_t)(started_ms / 1000);
	struct tm parts;
	strftime(day, sizeof(day), "%Y/%m/%d", gmtime_r(&seconds, &parts));
	snprintf(t->group, sizeof(t->group), "/aws/lambda-microvms/%s", image);
	snprintf(t->stream, sizeof(t->stream), "%s[%s]%s%s", day, version, who, id);
}

bool push_target_of_microvm(const struct engine *en, const json_t *run_config, const char *image_name, const char *version, const char *id,
			    int64_t started_ms, struct push_target *ret) {
	// The service writes run-time logs with the rights of the execution role, and so none without one (spec section 8).
	bool role = json_is_string(json_object_get(run_config, "executionRoleArn"));
	if (!role && strcmp(en->config.cloudwatch_runtime, "always") != 0)
		return false;
	set_names(ret, image_name, version, "", id, started_ms);
	return take_logging(run_config, ret);
}

bool push_target_of_build(const struct engine *en, const json_t *image_config, const char *image_name, const char *version,
			  const char *build_id, int64_t started_ms, struct push_target *ret) {
	set_names(ret, image_name, version, "build-", build_id, started_ms);
	return take_logging(image_config, ret);
}

// The push file ---------------------------------------------------------------------------------------------------------------------

static int save(const struct push_stream *s) {
	char path[LOG_FOLDER_MAX + 16], fresh[LOG_FOLDER_MAX + 16];
	snprintf(path, sizeof(path), "%s/push", s->folder);
	snprintf(fresh, sizeof(fresh), "%s/push.new", s->folder);
	cleanup_json json_t *o = json_pack("{s:I, s:I, s:s, s:s}", "position", (json_int_t)s->position, "time", (json_int_t)s->last_ms,
					   "group", s->target.group, "stream", s->target.stream);
	cleanup_free char *text = o == NULL ? NULL : json_dumps(o, JSON_COMPACT);
	if (text == NULL)
		return -ENOMEM;
	// Not flushed: what a power cut takes of it is pushed twice.
	cleanup_close int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (fd < 0)
		return -errno;
	int r = write_full(fd, text, strlen(text));
	return r < 0 ? r : rename(fresh, path) < 0 ? -errno : 0;
}

// Reads the push file of the stream's folder into it.
static int load(struct push_stream *s) {
	char path[LOG_FOLDER_MAX + 16];
	cleanup_free char *text = NULL;
	size_t size = 0;
	snprintf(path, sizeof(path), "%s/push", s->folder);
	int r = read_file(path, PUSH_FILE_MAX, &text, &size, NULL);
	if (r < 0)
		return r;
	cleanup_json json_t *o = json_parse_object(text, size, PUSH_FILE_MAX, path, NULL);
	const char *group = NULL, *stream = NULL;
	int64_t position = 0, last_ms = 0;
	if (o == NULL || member_integer(o, "position", MEMBER_REQUIRED, 0, INT64_MAX, &position, NULL) < 0 ||
	    member_integer(o, "time", MEMBER_REQUIRED, 0, INT64_MAX, &last_ms, NULL) < 0 ||
	    member_string(o, "group", MEMBER_REQUIRED, PUSH_NAME_MAX - 1, &group, NULL) < 0 ||
	    member_string(o, "stream", MEMBER_REQUIRED, PUSH_NAME_MAX - 1, &stream, NULL) < 0)
		return -EBADMSG;
	s->position = (uint64_t)position;
	s->last_ms = last_ms;
	snprintf(s->target.group, sizeof(s->target.group), "%s", group);
	snprintf(s->target.stream, sizeof(s->target.stream), "%s", stream);
	return 0;
}

static bool has_more(const struct push_stream *s) {
	struct log_span span;
	return log_files_span(s->folder, &span) == 0 && span.end > s->position;
}

// Batches -----------------------------------------------------------------------------------------------------------------------------

enum push_result { PUSH_ALL, PUSH_MORE, PUSH_LATER };

// Says in the stream and in the log what the log's own limit took away.
static void note_lost(struct push_stream *s, struct push_batch *b, uint64_t lost) {
	char text[120];
	snprintf(text, sizeof(text), "(%llu bytes of output were dropped before they could be pushed)", (unsigned long long)lost);
	push_batch_note(b, s->last_ms == 0 ? (int64_t)realtime_ms() : s->last_ms, text);
	log_warn("push.dropped", LOG_S("stream", s->target.stream), LOG_U("bytes", lost));
}

static enum cloudwatch_verdict send_events(struct push_stream *s, struct cloudwatch *w, const struct push_batch *b, struct error *e) {
	bool rejected = false;
	enum cloudwatch_verdict v = cloudwatch_put(w, s->target.group, s->target.stream, json_incref(b->events), &rejected, e);
	if (v == CLOUDWATCH_MISSING) {
		v = cloudwatch_create(w, s->target.group, s->target.stream, e);
		if (v == CLOUDWATCH_DONE)
			v = cloudwatch_put(w, s->target.group, s->target.stream, json_incref(b->events), &rejected, e);
	}
	if (rejected)
		log_warn("push.rejected", LOG_S("stream", s->target.stream),
			 LOG_S("message", "some lines were not taken: they are too old, or the clocks are apart"));
	return v;
}

static enum push_result finish_batch(struct push_stream *s, struct cloudwatch *w, const struct push_batch *b, uint64_t position,
				     struct error *e) {
	enum cloudwatch_verdict v = json_array_size(b->events) == 0 ? CLOUDWATCH_DONE : send_events(s, w, b, e);
	if (v == CLOUDWATCH_INVALID)
		log_warn("push.dropped", LOG_S("stream", s->target.stream), LOG_U("events", json_array_size(b->events)),
			 LOG_S("message", e->message));
	else if (v != CLOUDWATCH_DONE)
		return PUSH_LATER;
	s->position = position;
	s->last_ms = b->last_ms;
	int r = save(s);
	if (r < 0)
		log_warn("push.position", LOG_S("stream", s->target.stream), LOG_S("message", strerror(-r)));
	return PUSH_MORE;
}

// Sends the next lines of the log.
static enum push_result push_some(struct push_stream *s, struct cloudwatch *w, struct error *e) {
	cleanup_free char *data = malloc(PUSH_BATCH_BYTES);
	struct push_batch b;
	bool ended = atomic_load(&s->ended); // before the log is read: then what was read is all
	uint64_t at = s->position;
	if (data == NULL || push_batch_start(&b, s->last_ms) < 0) {
		error_set(e, -ENOMEM, "out of memory");
		return PUSH_LATER;
	}
	enum push_result result = PUSH_ALL;
	ssize_t n = log_files_read(s->folder, &at, data, PUSH_BATCH_BYTES);
	if (n > 0 || at > s->position) {
		if (at > s->position)
			note_lost(s, &b, at - s->position);
		size_t taken = n < 0 ? 0 : push_batch_take(&b, data, (size_t)n, ended && (size_t)n < PUSH_BATCH_BYTES);
		if (taken > 0 || at > s->position)
			result = finish_batch(s, w, &b, at + taken, e);
	}
	json_decref(b.events);
	return result;
}

// The queue ---------------------------------------------------------------------------------------------------------------------------

static void push_job(void *arg);

// With the lock held.
static void enqueue(struct push_stream *s, uint64_t due_ms) {
	struct pusher *p = s->p;
	s->due_ms = due_ms;
	atomic_store(&s->queued, true);
	pthread_cond_signal(&p->changed);
	if (p->stopping || p->running >= PUSHERS_MAX)
		return;
	p->running++;
	if (worker_submit(push_job, p) < 0)
		p->running--; // with the next line, then
}

// With the lock held: nobody needs the stream any more.
static void release_idle(struct push_stream *s) {
	if (s->references > 0 || s->busy || atomic_load(&s->queued))
		return;
	struct push_stream **at = &s->p->streams;
	while (*at != s)
		at = &(*at)->next;
	*at = s->next;
	free(s);
}

// With the lock held: waits until a stream is due. NULL: nothing is queued, or it is to end.
static struct push_stream *next_due(struct pusher *p) {
	while (!p->stopping) {
		struct push_stream *first = NULL;
		for (struct push_stream *s = p->streams; s != NULL; s = s->next)
			if (atomic_load(&s->queued) && !s->busy && (first == NULL || s->due_ms < first->due_ms))
				first = s;
		if (first == NULL)
			return NULL;
		uint64_t due = first->due_ms > p->pause_ms ? first->due_ms : p->pause_ms;
		if (monotonic_ms() >= due)
			return first;
		struct timespec until = {.tv_sec = (time_t)(due / 1000), .tv_nsec = (long)(due % 1000) * 1000000};
		pthread_cond_timedwait(&p->changed, &p->lock, &until);
	}
	return NULL;
}

// With the lock held.
static void settle(struct push_stream *s, enum push_result result, const struct error *e) {
	struct pusher *p = s->p;
	uint64_t now = monotonic_ms();
	if (result == PUSH_LATER) {
		uint64_t pause = PAUSE_LEAST_MS;
		for (unsigned i = 0; i < p->failures && pause < PAUSE_MOST_MS; i++)
			pause *= 2;
		p->failures++;
		p->pause_ms = now + (pause < PAUSE_MOST_MS ? pause : PAUSE_MOST_MS);
		log_warn("push.failed", LOG_S("stream", s->target.stream), LOG_S("message", e->message),
			 LOG_U("againInMs", p->pause_ms - now));
		enqueue(s, now);
		return;
	}
	if (p->failures > 0)
		log_info("push.works", LOG_S("endpoint", p->en->config.cloudwatch_endpoint));
	p->failures = 0;
	p->pause_ms = 0;
	if (result == PUSH_MORE && has_more(s))
		enqueue(s, now);
}

static void push_job(void *arg) {
	struct pusher *p = arg;
	struct cloudwatch w = {.curl = NULL};
	bool open = cloudwatch_open(&p->en->config, &p->stopping, &w) == 0;
	pthread_mutex_lock(&p->lock);
	for (struct push_stream *s; open && (s = next_due(p)) != NULL;) {
		struct error e = {0};
		s->busy = true;
		atomic_store(&s->queued, false);
		pthread_mutex_unlock(&p->lock);
		enum push_result result = push_some(s, &w, &e);
		pthread_mutex_lock(&p->lock);
		s->busy = false;
		pthread_cond_broadcast(&p->changed);
		if (!p->stopping)
			settle(s, result, &e);
		release_idle(s);
	}
	p->running--;
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
	cloudwatch_close(&w);
}

// Streams -----------------------------------------------------------------------------------------------------------------------------

static struct push_stream *find(struct pusher *p, const char *folder) {
	struct push_stream *s = p->streams;
	while (s != NULL && strcmp(s->folder, folder) != 0)
		s = s->next;
	return s;
}

static struct push_stream *stream_new(struct pusher *p, const char *folder) {
	struct push_stream *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return NULL;
	s->p = p;
	snprintf(s->folder, sizeof(s->folder), "%s", folder);
	s->next = p->streams;
	p->streams = s;
	return s;
}

struct push_stream *push_open_in(struct pusher *p, const char *folder, const struct push_target *t) {
	int r = make_folders(folder, 0750, NULL);
	pthread_mutex_lock(&p->lock);
	struct push_stream *s = find(p, folder);
	if (s == NULL && (s = stream_new(p, folder)) != NULL)
		load(s); // a new one begins at the beginning
	if (s != NULL) {
		s->references++;
		if (!s->busy) {
			s->target = *t;
			r = r < 0 ? r : save(s);
		}
		if (has_more(s))
			enqueue(s, monotonic_ms());
	}
	pthread_mutex_unlock(&p->lock);
	if (s == NULL || r < 0)
		log_warn("push.open", LOG_S("stream", t->stream), LOG_S("message", s == NULL ? "out of memory" : strerror(-r)));
	return s;
}

void push_touch(struct push_stream *s) {
	if (s == NULL || atomic_load(&s->queued))
		return;
	pthread_mutex_lock(&s->p->lock);
	if (!atomic_load(&s->queued))
		enqueue(s, monotonic_ms() + PUSH_DELAY_MS);
	pthread_mutex_unlock(&s->p->lock);
}

void push_close(struct push_stream *s) {
	if (s == NULL)
		return;
	struct pusher *p = s->p;
	pthread_mutex_lock(&p->lock);
	s->references--;
	release_idle(s);
	pthread_mutex_unlock(&p->lock);
}

void push_resume(struct pusher *p, const char *folder, bool ended) {
	pthread_mutex_lock(&p->lock);
	struct push_stream *s = find(p, folder);
	bool fresh = s == NULL;
	if (fresh)
		s = stream_new(p, folder);
	if (s != NULL && fresh && load(s) == 0 && has_more(s)) {
		s->ended = ended;
		enqueue(s, monotonic_ms());
	} else if (s != NULL && !fresh) {
		s->ended = s->ended || ended;
		enqueue(s, monotonic_ms());
	} else if (s != NULL) {
		release_idle(s);
	}
	pthread_mutex_unlock(&p->lock);
}

void push_ended(struct pusher *p, const char *folder) {
	push_resume(p, folder, true);
}

void push_forget(struct pusher *p, const char *folder) {
	pthread_mutex_lock(&p->lock);
	struct push_stream *s = find(p, folder);
	while (s != NULL && s->busy) {
		pthread_cond_wait(&p->changed, &p->lock);
		s = find(p, folder);
	}
	if (s != NULL) {
		if (has_more(s))
			log_warn("push.dropped", LOG_S("stream", s->target.stream),
				 LOG_S("message", "the log was removed before all of it was pushed"));
		atomic_store(&s->queued, false);
		release_idle(s);
	}
	pthread_mutex_unlock(&p->lock);
}

int pusher_start(struct engine *en, struct pusher **ret, struct error *e) {
	struct pusher *p = calloc(1, sizeof(*p));
	if (p == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the pushing of logs");
	pthread_condattr_t monotonic;
	p->en = en;
	pthread_mutex_init(&p->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&p->changed, &monotonic);
	pthread_condattr_destroy(&monotonic);
	*ret = p;
	return 0;
}

void pusher_stop(struct pusher *p) {
	pthread_mutex_lock(&p->lock);
	atomic_store(&p->stopping, true);
	pthread_cond_broadcast(&p->changed);
	pthread_mutex_unlock(&p->lock);
}

void pusher_free(struct pusher *p) {
	for (struct push_stream *s = p->streams, *next; s != NULL; s = next) {
		next = s->next;
		free(s);
	}
	pthread_mutex_destroy(&p->lock);
	pthread_cond_destroy(&p->changed);
	free(p);
}
