// Keeping and removing the logs of microVMs that have ended; see logs.h.
//
// What has ended is listed, oldest end first, with its bytes. A timer of the loop is set to the time when the first of them has been kept long
// enough, and every microVM that ends looks whether the sum has become too large: so nobody looks without a reason.
#include "logs/logs.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "logs/log_wake.h"
#include "logs/push.h"
#include "stasisd/engine.h"
#include "store/store.h"

#include <dirent.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ALARM_MOST_MS (24LL * 3600 * 1000)
#define ID_PREFIX "microvm-"

struct ended_log {
	struct ended_log *next;
	char uuid[UUID_TEXT];
	int64_t ended_ms; // since the epoch
	uint64_t bytes;
};

struct logs {
	struct engine *en;
	pthread_mutex_t lock;
	struct ended_log *oldest, *newest;
	uint64_t bytes;   // of all of them
	uv_timer_t alarm; // loop thread
	bool alarm_open;
	struct pusher *pusher; // NULL: nothing is pushed
};

// Names -----------------------------------------------------------------------------------------------------------------------------

void logs_of_microvm(const struct engine *en, const char *id, char to[LOG_FOLDER_MAX]) {
	size_t prefix = strncmp(id, ID_PREFIX, strlen(ID_PREFIX)) == 0 ? strlen(ID_PREFIX) : 0;
	snprintf(to, LOG_FOLDER_MAX, "%.300s/logs/%.47s", en->config.state_folder, id + prefix);
}

void logs_of_build(const struct engine *en, const char *image_uuid, const char *version, char to[LOG_FOLDER_MAX]) {
	snprintf(to, LOG_FOLDER_MAX, "%.300s/images/%.36s/%.15s/log", en->config.state_folder, image_uuid, version);
}

static uint64_t bytes_of(const char *folder) {
	struct log_span span;
	struct stat st;
	char console[LOG_FOLDER_MAX + 16];
	uint64_t bytes = log_files_span(folder, &span) == 0 ? span.end - span.first : 0;
	snprintf(console, sizeof(console), "%s/console.log", folder);
	return bytes + (stat(console, &st) == 0 ? (uint64_t)st.st_size : 0);
}

// Removing ----------------------------------------------------------------------------------------------------------------------------

// Takes the oldest out of the list when it has to go. NULL: none has.
static struct ended_log *take_due(struct logs *l) {
	const struct config *c = &l->en->config;
	struct ended_log *log = NULL;
	pthread_mutex_lock(&l->lock);
	bool due = l->oldest != NULL &&
		   ((int64_t)realtime_ms() - l->oldest->ended_ms >= c->log_retention_s * 1000 || l->bytes > (uint64_t)c->log_total_bytes);
	if (due) {
		log = l->oldest;
		l->oldest = log->next;
		if (l->oldest == NULL)
			l->newest = NULL;
		l->bytes -= log->bytes;
	}
	pthread_mutex_unlock(&l->lock);
	return log;
}

static void set_alarm(void *arg);

static void sweep(void *arg) {
	struct logs *l = arg;
	for (struct ended_log *log; (log = take_due(l)) != NULL; free(log)) {
		char folder[LOG_FOLDER_MAX];
		struct error e;
		logs_of_microvm(l->en, log->uuid, folder);
		if (l->pusher != NULL)
			push_forget(l->pusher, folder);
		if (remove_tree(folder, &e) < 0)
			log_warn("logs.remove", LOG_S("message", e.message));
	}
	loop_submit(l->en, set_alarm, l->en);
}

static void on_alarm(uv_timer_t *alarm) {
	struct logs *l = alarm->data;
	if (worker_submit(sweep, l) < 0)
		uv_timer_start(alarm, on_alarm, 60000, 0);
}

static void set_alarm(void *arg) {
	struct engine *en = arg;
	struct logs *l = en->logs;
	if (l == NULL || !l->alarm_open)
		return;
	pthread_mutex_lock(&l->lock);
	bool any = l->oldest != NULL;
	int64_t wait = any ? l->oldest->ended_ms + en->config.log_retention_s * 1000 - (int64_t)realtime_ms() : 0;
	pthread_mutex_unlock(&l->lock);
	if (!any)
		uv_timer_stop(&l->alarm);
	else
		uv_timer_start(&l->alarm, on_alarm, wait < 0 ? 0 : (uint64_t)(wait < ALARM_MOST_MS ? wait : ALARM_MOST_MS), 0);
}

static void open_alarm(void *arg) {
	struct engine *en = arg;
	uv_timer_init(en->loop, &en->logs->alarm);
	en->logs->alarm.data = en->logs;
	en->logs->alarm_open = true;
	set_alarm(en);
}

// Keeping -----------------------------------------------------------------------------------------------------------------------------

static int add_ended(struct logs *l, const char *uuid, int64_t ended_ms, uint64_t bytes) {
	struct ended_log *log = calloc(1, sizeof(*log));
	if (log == NULL)
		return -ENOMEM;
	*log = (struct ended_log){.ended_ms = ended_ms, .bytes = bytes};
	snprintf(log->uuid, sizeof(log->uuid), "%.36s", uuid);
	pthread_mutex_lock(&l->lock);
	// Nearly always it is the newest of all.
	struct ended_log **at = l->newest != NULL && l->newest->ended_ms <= ended_ms ? &l->newest->next : &l->oldest;
	while (*at != NULL && (*at)->ended_ms <= ended_ms)
		at = &(*at)->next;
	log->next = *at;
	*at = log;
	if (log->next == NULL)
		l->newest = log;
	l->bytes += bytes;
	pthread_mutex_unlock(&l->lock);
	return 0;
}

void logs_microvm_ended(struct engine *en, const char *id, const char *folder) {
	struct logs *l = en->logs;
	char to[LOG_FOLDER_MAX], from[LOG_FOLDER_MAX + 16], console[LOG_FOLDER_MAX + 16];
	struct error e;
	logs_of_microvm(en, id, to);
	if (l != NULL && make_folders(to, 0750, &e) == 0) {
		snprintf(from, sizeof(from), "%s/console.log", folder);
		snprintf(console, sizeof(console), "%s/console.log", to);
		if (rename(from, console) < 0 && errno != ENOENT)
			log_warn("logs.keep", LOG_S("microvmId", id), LOG_S("message", strerror(errno)));
		if (rmdir(to) < 0 && add_ended(l, id + strlen(ID_PREFIX), (int64_t)realtime_ms(), bytes_of(to)) < 0)
			log_warn("logs.keep", LOG_S("microvmId", id), LOG_S("message", "out of memory"));
		if (l->pusher != NULL)
			push_ended(l->pusher, to);
		sweep(l);
	}
}

void logs_wake_microvm(const struct engine *en, const char *id) {
	char folder[LOG_FOLDER_MAX];
	logs_of_microvm(en, id, folder);
	log_wake(folder);
}

void logs_build_ended(struct engine *en, const char *image_uuid, const char *version) {
	char folder[LOG_FOLDER_MAX];
	logs_of_build(en, image_uuid, version, folder);
	if (en->logs != NULL && en->logs->pusher != NULL)
		push_ended(en->logs->pusher, folder);
	log_wake(folder);
}

struct push_stream *push_open(struct engine *en, const char *folder, const struct push_target *t) {
	return en->logs == NULL || en->logs->pusher == NULL ? NULL : push_open_in(en->logs->pusher, folder, t);
}

// Start and end -------------------------------------------------------------------------------------------------------------------------

static void look_at(struct logs *l, const char *uuid) {
	struct store_microvm m = {0};
	char id[64], folder[LOG_FOLDER_MAX];
	struct stat st;
	snprintf(id, sizeof(id), ID_PREFIX "%.36s", uuid);
	logs_of_microvm(l->en, id, folder);
	int r = store_get_microvm(l->en->store, id, &m, NULL);
	bool ended = r == -ENOENT || (r == 0 && strcmp(m.state, "TERMINATED") == 0);
	if (ended && stat(folder, &st) == 0)
		add_ended(l, uuid, m.terminated_ms > 0 ? m.terminated_ms : (int64_t)st.st_mtime * 1000, bytes_of(folder));
	if (l->pusher != NULL)
		push_resume(l->pusher, folder, ended);
	store_microvm_clear(&m);
}

static void find_microvms(struct logs *l) {
	char path[LOG_FOLDER_MAX];
	snprintf(path, sizeof(path), "%.300s/logs", l->en->config.state_folder);
	cleanup_dir DIR *dir = opendir(path);
	for (const struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;)
		if (uuid_is_valid(d->d_name))
			look_at(l, d->d_name);
}

// Builds that a crash cut off have ended as well by the time that somebody pushes.
static void find_builds(struct logs *l) {
	char path[LOG_FOLDER_MAX];
	snprintf(path, sizeof(path), "%.300s/images", l->en->config.state_folder);
	cleanup_dir DIR *images = opendir(path);
	for (const struct dirent *i; images != NULL && (i = readdir(images)) != NULL;) {
		if (!uuid_is_valid(i->d_name))
			continue;
		snprintf(path, sizeof(path), "%.300s/images/%.36s", l->en->config.state_folder, i->d_name);
		cleanup_dir DIR *versions = opendir(path);
		for (const struct dirent *v; versions != NULL && (v = readdir(versions)) != NULL;) {
			if (v->d_name[0] == '.')
				continue;
			logs_of_build(l->en, i->d_name, v->d_name, path);
			push_resume(l->pusher, path, true);
		}
	}
}

int logs_start(struct engine *en, struct error *e) {
	struct logs *l = calloc(1, sizeof(*l));
	if (l == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the logs");
	l->en = en;
	pthread_mutex_init(&l->lock, NULL);
	int r = en->config.cloudwatch_endpoint[0] == '\0' ? 0 : pusher_start(en, &l->pusher, e);
	if (r < 0) {
		free(l);
		return r;
	}
	en->logs = l;
	find_microvms(l);
	if (l->pusher != NULL)
		find_builds(l);
	loop_submit(en, open_alarm, en);
	sweep(l);
	return 0;
}

void logs_end(struct engine *en) {
	struct logs *l = en->logs;
	if (l == NULL)
		return;
	if (l->pusher != NULL)
		pusher_stop(l->pusher);
	if (l->alarm_open)
		uv_close((uv_handle_t *)&l->alarm, NULL);
	l->alarm_open = false;
}

void logs_free(struct engine *en) {
	struct logs *l = en->logs;
	if (l == NULL)
		return;
	if (l->pusher != NULL)
		pusher_free(l->pusher);
	for (struct ended_log *log = l->oldest, *next; log != NULL; log = next) {
		next = log->next;
		free(log);
	}
	pthread_mutex_destroy(&l->lock);
	free(l);
	en->logs = NULL;
}
