// Shares of microVMs; see share.h.
//
// A share is made by the first request and kept while anybody uses it or it has not recovered. Requests and bytes are credits that grow with
// time, to at most BURST_MS of the rate. Bytes are counted when they have passed, so that the credit may fall below zero by one piece; who
// finds it there waits, and a timer of the edge's looks after those who do.
#include "edge/share.h"

#include "edge/connection.h"
#include "microvms/microvms.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUCKETS 256
#define BURST_MS 1000
#define BYTES_BURST_MS 125
#define PACE_MS 10

LIST_HEAD(share_list, share);

struct share {
	LIST_ENTRY(share) link;
	char endpoint[UUID_TEXT];
	unsigned open, most; // requests and tunnels; 0: no limit
	int64_t requests;    // credit, in thousandths
	int64_t bytes;       // credit; may be negative
	int64_t requests_per_s, bytes_per_s;
	uint64_t at_ms; // when the credits were right
	TAILQ_HEAD(, share_user) waiting;
};

struct shares {
	struct share_list buckets[BUCKETS]; // by endpoint
	uv_timer_t pace;                    // runs while somebody waits
	unsigned waiting;
};

static void grow(struct edge *ed, struct share *s) {
	uint64_t now = uv_now(ed->engine->loop);
	int64_t ms = now - s->at_ms > 60000 ? 60000 : (int64_t)(now - s->at_ms);
	if (ms == 0)
		return;
	int64_t requests = s->requests + ms * s->requests_per_s, bytes = s->bytes + ms * s->bytes_per_s / 1000;
	int64_t most_requests = s->requests_per_s * BURST_MS, most_bytes = s->bytes_per_s * BYTES_BURST_MS / 1000;
	s->requests = requests < most_requests ? requests : most_requests;
	s->bytes = bytes < most_bytes ? bytes : most_bytes;
	s->at_ms = now;
}

static struct share *make(struct edge *ed, struct share_list *bucket, const char *endpoint) {
	const struct config *c = &ed->engine->config;
	struct share *s = calloc(1, sizeof(*s));
	if (s == NULL)
		return NULL;
	unsigned vcpus = microvm_vcpus(ed->engine, endpoint);
	memcpy(s->endpoint, endpoint, UUID_TEXT);
	s->most = (unsigned)c->connections_per_vcpu * vcpus;
	s->requests_per_s = (int64_t)c->requests_per_s_per_vcpu * vcpus;
	s->bytes_per_s = c->bytes_per_s_per_vcpu * vcpus;
	s->at_ms = uv_now(ed->engine->loop);
	s->requests = s->requests_per_s * BURST_MS;
	s->bytes = s->bytes_per_s * BYTES_BURST_MS / 1000;
	TAILQ_INIT(&s->waiting);
	LIST_INSERT_HEAD(bucket, s, link);
	return s;
}

static struct share_list *bucket_of(struct edge *ed, const char *endpoint) {
	unsigned hash = 2166136261u;
	for (int i = 0; i < UUID_TEXT - 1; i++)
		hash = (hash ^ (unsigned char)endpoint[i]) * 16777619u;
	return &ed->shares->buckets[hash % BUCKETS];
}

static struct share *find(struct edge *ed, const char *endpoint) {
	struct share_list *bucket = bucket_of(ed, endpoint);
	struct share *s;
	LIST_FOREACH(s, bucket, link)
	if (strcmp(s->endpoint, endpoint) == 0)
		return s;
	return make(ed, bucket, endpoint);
}

enum share_verdict share_enter(struct edge *ed, const char *endpoint, struct connection *of, struct share_user *u) {
	const struct config *c = &ed->engine->config;
	*u = (struct share_user){.of = of};
	if (c->connections_per_vcpu == 0 && c->requests_per_s_per_vcpu == 0 && c->bytes_per_s_per_vcpu == 0)
		return SHARE_FINE;
	struct share *s = find(ed, endpoint);
	if (s == NULL)
		return SHARE_NO_MEMORY;
	grow(ed, s);
	if (s->most > 0 && s->open >= s->most)
		return SHARE_CONNECTIONS;
	if (s->requests_per_s > 0 && s->requests < 1000)
		return SHARE_REQUESTS;
	if (s->requests_per_s > 0)
		s->requests -= 1000;
	s->open++;
	u->share = s;
	return SHARE_FINE;
}

static void stop_waiting(struct edge *ed, struct share_user *u) {
	if (!u->waiting)
		return;
	u->waiting = false;
	TAILQ_REMOVE(&u->share->waiting, u, link);
	if (--ed->shares->waiting == 0)
		uv_timer_stop(&ed->shares->pace);
}

void share_leave(struct edge *ed, struct share_user *u) {
	if (u->share == NULL)
		return;
	stop_waiting(ed, u);
	u->share->open--;
	u->share = NULL;
}

static void on_pace(uv_timer_t *timer) {
	struct edge *ed = timer->data;
	struct shares *all = ed->shares;
	for (size_t i = 0; i < BUCKETS && all->waiting > 0; i++) {
		struct share *s;
		LIST_FOREACH(s, &all->buckets[i], link) {
			grow(ed, s);
			// In the order in which they came; one that is pumped and must wait again is last then. Pumping is left to the end of the
			// turn, since it may end sessions.
			for (struct share_user *u; s->bytes > 0 && (u = TAILQ_FIRST(&s->waiting)) != NULL;) {
				stop_waiting(ed, u);
				edge_pump_later(ed, u->of);
			}
		}
	}
}

bool share_may_pass(struct edge *ed, struct share_user *u) {
	struct share *s = u->share;
	if (s == NULL || s->bytes_per_s == 0)
		return true;
	grow(ed, s);
	if (s->bytes > 0)
		return true;
	if (!u->waiting) {
		u->waiting = true;
		TAILQ_INSERT_TAIL(&s->waiting, u, link);
		if (ed->shares->waiting++ == 0) {
			ed->shares->pace.data = ed;
			uv_timer_start(&ed->shares->pace, on_pace, PACE_MS, PACE_MS);
		}
	}
	return false;
}

void share_passed(struct edge *ed, struct share_user *u, size_t bytes) {
	if (u->share != NULL && u->share->bytes_per_s > 0)
		u->share->bytes -= (int64_t)bytes;
}

static bool has_recovered(const struct share *s) {
	return s->open == 0 && s->requests >= s->requests_per_s * BURST_MS && s->bytes >= s->bytes_per_s * BYTES_BURST_MS / 1000;
}

void shares_sweep(struct edge *ed) {
	for (size_t i = 0; i < BUCKETS; i++) {
		struct share *s = LIST_FIRST(&ed->shares->buckets[i]), *next;
		for (; s != NULL; s = next) {
			next = LIST_NEXT(s, link);
			grow(ed, s);
			if (!has_recovered(s))
				continue;
			LIST_REMOVE(s, link);
			free(s);
		}
	}
}

int shares_start(struct edge *ed) {
	ed->shares = calloc(1, sizeof(*ed->shares));
	if (ed->shares == NULL)
		return -ENOMEM;
	uv_timer_init(ed->engine->loop, &ed->shares->pace);
	return 0;
}

uv_handle_t *shares_timer(struct edge *ed) {
	return (uv_handle_t *)&ed->shares->pace;
}

void shares_free(struct edge *ed) {
	for (size_t i = 0; ed->shares != NULL && i < BUCKETS; i++) {
		struct share *s;
		while ((s = LIST_FIRST(&ed->shares->buckets[i])) != NULL) {
			LIST_REMOVE(s, link);
			free(s);
		}
	}
	free(ed->shares);
	ed->shares = NULL;
}
