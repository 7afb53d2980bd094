// Counters; see metrics.h.
//
// microVMs lie in a table of sets, chosen by a hash of the id, with four places each. One lock guards all: it is held for a few additions, and
// while the text is copied out, not while it is written.
#include "stasisd/metrics.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WAYS 4
#define SETS (METRICS_MICROVMS / WAYS)
#define ID_ROOM 48
#define CLASSES 5 // of statuses: 1xx to 5xx
#define STAGES 96

// Upper bounds in milliseconds; the last bucket has none.
static const unsigned bounds_ms[] = {1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000};
#define BUCKETS (sizeof(bounds_ms) / sizeof(bounds_ms[0]) + 1)

struct histogram {
	uint64_t buckets[BUCKETS]; // each for itself, not summed up
	uint64_t sum_us;
};

struct counters {
	uint64_t classes[CLASSES], bytes_in, bytes_out;
	struct histogram latency;
};

struct entry {
	char id[ID_ROOM];
	uint64_t used; // a clock of requests
	struct counters counters;
};

struct stage {
	const char *operation, *name;
	struct histogram duration;
};

struct metrics {
	uint64_t clock;
	struct counters all, other;
	struct histogram held; // requests that had to wait for their microVM
	struct entry microvms[SETS][WAYS];
	struct stage stages[STAGES];
	size_t stage_count;
};

static struct metrics metrics;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void observe(struct histogram *h, uint64_t us) {
	size_t i = 0;
	while (i < BUCKETS - 1 && us > bounds_ms[i] * 1000u)
		i++;
	h->buckets[i]++;
	h->sum_us += us;
}

static void add(struct counters *to, int class, uint64_t bytes_in, uint64_t bytes_out, uint64_t us) {
	to->classes[class]++;
	to->bytes_in += bytes_in;
	to->bytes_out += bytes_out;
	observe(&to->latency, us);
}

static void merge(struct counters *to, const struct counters *from) {
	for (size_t i = 0; i < CLASSES; i++)
		to->classes[i] += from->classes[i];
	to->bytes_in += from->bytes_in;
	to->bytes_out += from->bytes_out;
	for (size_t i = 0; i < BUCKETS; i++)
		to->latency.buckets[i] += from->latency.buckets[i];
	to->latency.sum_us += from->latency.sum_us;
}

static struct counters *counters_of(const char *id) {
	uint32_t hash = 2166136261u;
	for (const char *c = id; *c != '\0'; c++)
		hash = (hash ^ (uint8_t)*c) * 16777619u;
	struct entry *set = metrics.microvms[hash % SETS], *oldest = &set[0];
	for (size_t i = 0; i < WAYS; i++) {
		if (strcmp(set[i].id, id) == 0) {
			oldest = &set[i];
			break;
		}
		if (set[i].used < oldest->used)
			oldest = &set[i];
	}
	if (strcmp(oldest->id, id) != 0) {
		merge(&metrics.other, &oldest->counters);
		memset(oldest, 0, sizeof(*oldest));
		snprintf(oldest->id, sizeof(oldest->id), "%s", id);
	}
	oldest->used = ++metrics.clock;
	return &oldest->counters;
}

void metrics_request(const char *microvm, int status, uint64_t bytes_in, uint64_t bytes_out, uint64_t ms, uint64_t held_ms) {
	int class = status / 100 - 1;
	class = class < 0 ? 4 : class >= CLASSES ? CLASSES - 1 : class;
	pthread_mutex_lock(&lock);
	add(&metrics.all, class, bytes_in, bytes_out, ms * 1000);
	if (microvm[0] != '\0' && strlen(microvm) < ID_ROOM)
		add(counters_of(microvm), class, bytes_in, bytes_out, ms * 1000);
	if (held_ms > 0)
		observe(&metrics.held, held_ms * 1000);
	pthread_mutex_unlock(&lock);
}

void metrics_stage(const char *operation, const char *stage, uint64_t us) {
	pthread_mutex_lock(&lock);
	size_t i = 0;
	while (i < metrics.stage_count &&
	       (strcmp(metrics.stages[i].operation, operation) != 0 || strcmp(metrics.stages[i].name, stage) != 0))
		i++;
	if (i == metrics.stage_count && i < STAGES)
		metrics.stages[metrics.stage_count++] = (struct stage){.operation = operation, .name = stage};
	if (i < STAGES)
		observe(&metrics.stages[i].duration, us);
	pthread_mutex_unlock(&lock);
}

// Text. -----------------------------------------------------------------------------------------------------------------------

static void head(FILE *f, const char *name, const char *type, const char *help) {
	fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void put_histogram(FILE *f, const char *name, const char *labels, const struct histogram *h) {
	uint64_t sum = 0;
	const char *comma = labels[0] != '\0' ? "," : "";
	for (size_t i = 0; i < BUCKETS; i++) {
		sum += h->buckets[i];
		if (i < BUCKETS - 1)
			fprintf(f, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, labels, comma, bounds_ms[i] / 1000.0, (unsigned long long)sum);
		else
			fprintf(f, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, labels, comma, (unsigned long long)sum);
	}
	fprintf(f, "%s_sum{%s} %.6f\n%s_count{%s} %llu\n", name, labels, (double)h->sum_us / 1e6, name, labels, (unsigned long long)sum);
}

// One family at a time, as the format wants it.
enum family { FAMILY_REQUESTS, FAMILY_IN, FAMILY_OUT, FAMILY_LATENCY, FAMILIES };

static void put_counters(FILE *f, const char *prefix, enum family family, const char *labels, const struct counters *c) {
	static const char *const names[] = {"requests_total", "received_bytes_total", "sent_bytes_total", "request_duration_seconds"};
	char name[96];
	snprintf(name, sizeof(name), "%s_%s", prefix, names[family]);
	if (family == FAMILY_LATENCY) {
		put_histogram(f, name, labels, &c->latency);
	} else if (family == FAMILY_REQUESTS) {
		for (size_t i = 0; i < CLASSES; i++)
			fprintf(f, "%s{%s%sclass=\"%zuxx\"} %llu\n", name, labels, labels[0] != '\0' ? "," : "", i + 1,
				(unsigned long long)c->classes[i]);
	} else {
		fprintf(f, "%s{%s} %llu\n", name, labels, (unsigned long long)(family == FAMILY_IN ? c->bytes_in : c->bytes_out));
	}
}

static void put_families(FILE *f, const struct metrics *m) {
	static const char *const types[] = {"counter", "counter", "counter", "histogram"};
	static const char *const suffixes[] = {"requests_total", "received_bytes_total", "sent_bytes_total", "request_duration_seconds"};
	static const char *const help[] = {"Requests answered at endpoints, by class of status; 4xx has clients that left.",
					   "Content that clients sent.", "Content that clients were sent.",
					   "From the first byte of a request to the last of its answer; of a stream, its life."};
	char name[96], label[80];
	for (size_t i = 0; i < FAMILIES; i++) {
		snprintf(name, sizeof(name), "stasis_edge_%s", suffixes[i]);
		head(f, name, types[i], help[i]);
		put_counters(f, "stasis_edge", (enum family)i, "", &m->all);
	}
	for (size_t i = 0; i < FAMILIES; i++) {
		snprintf(name, sizeof(name), "stasis_microvm_%s", suffixes[i]);
		head(f, name, types[i], help[i]);
		for (size_t at = 0; at < METRICS_MICROVMS; at++) {
			const struct entry *x = &m->microvms[at / WAYS][at % WAYS];
			snprintf(label, sizeof(label), "microvm=\"%s\"", x->id);
			if (x->id[0] != '\0')
				put_counters(f, "stasis_microvm", (enum family)i, label, &x->counters);
		}
		put_counters(f, "stasis_microvm", (enum family)i, "microvm=\"other\"", &m->other);
	}
}

char *metrics_text(size_t *size) {
	char *text = NULL, label[128];
	struct metrics *m = malloc(sizeof(*m));
	FILE *f = m != NULL ? open_memstream(&text, size) : NULL;
	if (f == NULL) {
		free(m);
		return NULL;
	}
	pthread_mutex_lock(&lock);
	*m = metrics;
	pthread_mutex_unlock(&lock);
	put_families(f, m);
	head(f, "stasis_edge_held_seconds", "histogram", "How long requests waited until their microVM was awake; those that did.");
	put_histogram(f, "stasis_edge_held_seconds", "", &m->held);
	head(f, "stasis_stage_duration_seconds", "histogram", "Stages of lifecycle operations; the whole under the operation's own name.");
	for (size_t i = 0; i < m->stage_count; i++) {
		snprintf(label, sizeof(label), "operation=\"%.40s\",stage=\"%.40s\"", m->stages[i].operation, m->stages[i].name);
		put_histogram(f, "stasis_stage_duration_seconds", label, &m->stages[i].duration);
	}
	free(m);
	bool bad = ferror(f) != 0;
	if (fclose(f) != 0 || bad) {
		free(text);
		return NULL;
	}
	return text;
}
