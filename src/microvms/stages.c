// Stage timing; see stages.h.
#include "microvms/stages.h"

#include "base/clock.h"
#include "base/log.h"
#include "stasisd/engine.h"
#include "stasisd/metrics.h"

#include <stdio.h>

void stages_begin(struct stages *s, const char *subject, const char *operation) {
	*s = (struct stages){.operation = operation};
	snprintf(s->subject, sizeof(s->subject), "%s", subject);
	s->begun_ns = s->last_ns = monotonic_ns();
}

static void add(struct stages *s, const char *name, uint64_t from_ns, uint64_t now_ns) {
	if (s->count == STAGES_MAX)
		return;
	int64_t us = (int64_t)((now_ns - from_ns) / 1000);
	s->list[s->count++] = (struct stage){.name = name, .started_ms = (int64_t)realtime_ms() - us / 1000, .us = us};
}

void stages_mark(struct stages *s, const char *name) {
	uint64_t now = monotonic_ns();
	add(s, name, s->last_ns, now);
	s->last_ns = now;
}

void stages_flush(struct engine *en, struct stages *s) {
	if (s->count == STAGES_MAX)
		s->count--; // the whole is worth more than its last step
	add(s, s->operation, s->begun_ns, s->last_ns);
	for (size_t i = 0; i < s->count; i++) {
		const struct stage *x = &s->list[i];
		log_info("stage", LOG_S("subject", s->subject), LOG_S("operation", s->operation), LOG_S("stage", x->name),
			 LOG_U("us", x->us));
		metrics_stage(s->operation, x->name, (uint64_t)x->us);
		struct error e;
		if (store_add_stage(en->store, s->subject, x->name, x->started_ms, x->us, s->operation, &e) < 0)
			log_warn("stage.store", LOG_S("subject", s->subject), LOG_S("message", e.message));
	}
	s->count = 0;
}
