// The operator's own calls, below /_stasis/: health, certificate, status, logs, stages, shutdown. They are not part of the service's API.
#include "api/call.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "edge/edge.h"
#include "stasisd/metrics.h"

#include <fcntl.h>
#include <openssl/crypto.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#define LOG_PIECE (256u << 10) // bytes of a log in one answer

void operator_health(struct call *c) {
	call_answer(c, 200, json_pack("{s:s, s:s}", "status", "ok", "version", c->en->version));
}

void operator_certificate(struct call *c) {
	const char *pem = edge_ca_pem(c->en);
	if (pem == NULL) {
		call_not_found(c, "The edge has no certificate yet");
		return;
	}
	exchange_header(c->x, "content-type", "application/x-pem-file");
	exchange_reply(c->x, 200, pem, strlen(pem));
}

static uint64_t process_started_ns(void) {
	static uint64_t started;
	uint64_t expected = 0, now = monotonic_ns();
	__atomic_compare_exchange_n(&started, &expected, now, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	return __atomic_load_n(&started, __ATOMIC_RELAXED);
}

__attribute__((constructor)) static void note_start(void) {
	process_started_ns();
}

void operator_status(struct call *c) {
	struct store_counts n;
	struct error e = {0};
	if (store_count(c->en->store, &n, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	json_t *o = json_pack("{s:s, s:I, s:s, s:s, s:I, s:I}", "version", c->en->version, "uptimeSeconds",
			      (json_int_t)((monotonic_ns() - process_started_ns()) / 1000000000u), "region", c->en->config.region,
			      "account", c->key.account, "images", (json_int_t)n.images, "imageVersions", (json_int_t)n.versions);
	json_object_set_new(o, "microvms",
			    json_pack("{s:I, s:I, s:I, s:I, s:I}", "pending", (json_int_t)n.microvms_pending, "running",
				      (json_int_t)n.microvms_running, "suspended", (json_int_t)n.microvms_suspended, "changing",
				      (json_int_t)n.microvms_other, "terminated", (json_int_t)n.microvms_terminated));
	call_answer(c, 200, o);
}

void operator_shutdown(struct call *c) {
	call_answer(c, 200, json_object());
	// The same as a service manager's request to stop: stasisd suspends what runs, and ends.
	kill(getpid(), SIGTERM);
}

// Metrics: signed like other calls, or, since Prometheus cannot sign, with a token of the configuration's.

bool has_metrics_token(const struct call *c, const struct http_head *h) {
	static const char scheme[] = "Bearer ";
	const char *token = c->en->config.metrics_token;
	const struct http_header *given = http_find(h, "authorization");
	size_t size = strlen(token), n = sizeof(scheme) - 1;
	return size > 0 && given != NULL && given->value.size == n + size && strncasecmp(given->value.data, scheme, n) == 0 &&
	       CRYPTO_memcmp(given->value.data + n, token, size) == 0;
}

static void put_states(FILE *f, const struct store_counts *n) {
	const struct {
		const char *state;
		long long count;
	} states[] = {{"pending", n->microvms_pending},
		      {"running", n->microvms_running},
		      {"suspended", n->microvms_suspended},
		      {"changing", n->microvms_other}};
	fprintf(f, "# HELP stasis_microvms microVMs by state.\n# TYPE stasis_microvms gauge\n");
	for (size_t i = 0; i < sizeof(states) / sizeof(states[0]); i++)
		fprintf(f, "stasis_microvms{state=\"%s\"} %lld\n", states[i].state, states[i].count);
	fprintf(f, "# HELP stasis_uptime_seconds Since stasisd started.\n# TYPE stasis_uptime_seconds gauge\nstasis_uptime_seconds %llu\n",
		(unsigned long long)((monotonic_ns() - process_started_ns()) / 1000000000u));
}

void operator_metrics(struct call *c) {
	struct store_counts n;
	struct error e = {0};
	size_t size = 0, states_size = 0;
	if (store_count(c->en->store, &n, &e) < 0) {
		call_fail_with(c, &e);
		return;
	}
	cleanup_free char *text = metrics_text(&size);
	cleanup_free char *states = NULL;
	FILE *f = text != NULL ? open_memstream(&states, &states_size) : NULL;
	if (f != NULL) {
		put_states(f, &n);
		fwrite(text, 1, size, f);
	}
	if (f == NULL || fclose(f) != 0) {
		call_fail(c, 500, "InternalServerException", "out of memory");
		return;
	}
	exchange_header(c->x, "content-type", "text/plain; version=0.0.4; charset=utf-8");
	exchange_reply(c->x, 200, states, states_size);
}

// Logs --------------------------------------------------------------------------------------------------------------------------------

// Answers with what lies in the file behind ?offset=. A log that was cut at its front starts where it is. `complete` says that nothing more will come.
static void answer_log(struct call *c, const char *path, bool complete) {
	bool failed = false;
	cleanup_free char *text = call_query(c, "offset", &failed);
	if (failed)
		return;
	char *end = NULL;
	errno = 0;
	unsigned long long offset = text == NULL ? 0 : strtoull(text, &end, 10);
	if (text != NULL && (text[0] < '0' || text[0] > '9' || *end != '\0' || errno != 0 || offset > INT64_MAX)) {
		call_fail(c, 400, "ValidationException", "offset must be a number of bytes");
		return;
	}
	cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;
	if (fd < 0 && errno != ENOENT) {
		call_fail(c, 500, "InternalServerException", "The log cannot be read: %s", strerror(errno));
		return;
	}
	cleanup_free char *piece = malloc(LOG_PIECE);
	ssize_t n = 0;
	if (piece == NULL || (fd >= 0 && fstat(fd, &st) < 0)) {
		call_fail(c, 500, "InternalServerException", "The log cannot be read");
		return;
	}
	if (fd >= 0 && (uint64_t)st.st_size < offset)
		offset = 0; // it was started anew
	if (fd >= 0)
		n = pread(fd, piece, LOG_PIECE, (off_t)offset);
	if (n < 0)
		n = 0;
	bool end_reached = fd < 0 || offset + (size_t)n >= (uint64_t)st.st_size;
	exchange_header(c->x, "content-type", "text/plain; charset=utf-8");
	exchange_header(c->x, "x-stasis-next-offset", "%llu", offset + (unsigned long long)n);
	exchange_header(c->x, "x-stasis-complete", "%s", complete && end_reached ? "true" : "false");
	exchange_reply(c->x, 200, piece, (size_t)n);
}

void operator_build_log(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	// The state is read before the file, so that a log called complete is.
	if (find_version(c, &i, c->labels[1], &v)) {
		char path[400];
		snprintf(path, sizeof(path), "%s/images/%s/%s/build.log", c->en->config.state_folder, i.uuid, v.version);
		answer_log(c, path, strcmp(v.state, "PENDING") != 0 && strcmp(v.state, "IN_PROGRESS") != 0);
		store_version_clear(&v);
	}
	store_image_clear(&i);
}

static void microvm_log(struct call *c, const char *file) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	char path[400];
	snprintf(path, sizeof(path), "%.255s/microvms/%.40s/%.20s", c->en->config.state_folder, m.id + strlen("microvm-"), file);
	answer_log(c, path, strcmp(m.state, "TERMINATED") == 0);
	store_microvm_clear(&m);
}

void operator_microvm_log(struct call *c) {
	microvm_log(c, "app.log");
}

void operator_microvm_console(struct call *c) {
	microvm_log(c, "console.log");
}

// Stages ------------------------------------------------------------------------------------------------------------------------------

static int add_stage(const struct store_stage *g, void *arg) {
	json_array_append_new(arg, json_pack("{s:s, s:o, s:I, s:s}", "name", g->name, "startedAt", json_time(g->started_ms), "durationUs",
					     (json_int_t)g->duration_us, "detail", g->detail));
	return 0;
}

static void answer_stages(struct call *c, const char *subject) {
	json_t *stages = json_array();
	struct error e = {0};
	if (store_list_stages(c->en->store, subject, add_stage, stages, &e) < 0) {
		json_decref(stages);
		call_fail_with(c, &e);
		return;
	}
	call_answer(c, 200, json_pack("{s:o}", "stages", stages));
}

void operator_build_stages(struct call *c) {
	struct store_image i;
	struct store_version v;
	if (!find_image(c, c->labels[0], &i))
		return;
	if (find_version(c, &i, c->labels[1], &v)) {
		char subject[UUID_TEXT + VERSION_TEXT + 1];
		snprintf(subject, sizeof(subject), "%s/%s", i.uuid, v.version);
		answer_stages(c, subject);
		store_version_clear(&v);
	}
	store_image_clear(&i);
}

void operator_microvm_stages(struct call *c) {
	struct store_microvm m;
	if (!find_microvm(c, c->labels[0], &m))
		return;
	answer_stages(c, m.id);
	store_microvm_clear(&m);
}
