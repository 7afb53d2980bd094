// The way to one microVM; see way.h.
#include "edge/way.h"

#include <stdlib.h>

static void on_news(struct microvm_follower *f, enum microvm_news news, const char *why);

struct way *way_of(struct edge *ed, struct microvm_route *route) {
	struct microvm_follower *f = microvm_route_follower(route);
	if (f != NULL)
		return (struct way *)(void *)((char *)f - offsetof(struct way, follower));
	struct way *w = calloc(1, sizeof(*w));
	if (w == NULL)
		return NULL;
	*w = (struct way){.follower.news = on_news, .edge = ed, .route = route};
	TAILQ_INIT(&w->waiting);
	TAILQ_INIT(&w->greeting);
	TAILQ_INIT(&w->settled);
	TAILQ_INSERT_TAIL(&ed->ways, w, link);
	microvm_route_follow(route, &w->follower);
	return w;
}

void way_pin(struct way *w) {
	w->pins++;
}

struct upstream *way_any(const struct way *w) {
	const struct upstream_list *const lists[] = {&w->waiting, &w->greeting, &w->settled};
	for (size_t i = 0; i < 3; i++)
		if (!TAILQ_EMPTY(lists[i]))
			return TAILQ_FIRST(lists[i]);
	return NULL;
}

void way_unpin(struct way *w) {
	if (--w->pins > 0 || way_any(w) != NULL)
		return;
	TAILQ_REMOVE(&w->edge->ways, w, link);
	microvm_route_leave(w->route);
	free(w);
}

void way_remove(struct upstream *u) {
	struct way *w = u->way;
	if (u->place == NULL)
		return;
	TAILQ_REMOVE(u->place, u, way_link);
	w->greeting_count -= u->place == &w->greeting;
	w->settled_count -= u->place == &w->settled;
	u->place = NULL;
}

void way_put(struct upstream *u, struct upstream_list *list, bool first) {
	struct way *w = u->way;
	way_remove(u);
	u->place = list;
	if (first)
		TAILQ_INSERT_HEAD(list, u, way_link);
	else
		TAILQ_INSERT_TAIL(list, u, way_link);
	w->greeting_count += list == &w->greeting;
	w->settled_count += list == &w->settled;
}

bool way_is_awake(const struct way *w) {
	return microvm_route_latest(w->route) == MICROVM_AWAKE;
}

void way_serve(struct way *w) {
	struct upstream *u;
	while (way_is_awake(w) && w->greeting_count < WAY_GREETINGS_MAX && w->greeting_count + w->settled_count < WAY_STREAMS_MAX &&
	       (u = TAILQ_FIRST(&w->waiting)) != NULL) {
		way_put(u, &w->greeting, false);
		upstream_begin(u);
	}
}

static void each(struct upstream_list *list, void (*fn)(struct upstream *u)) {
	struct upstream *u = TAILQ_FIRST(list), *next;
	for (; u != NULL; u = next) {
		next = TAILQ_NEXT(u, way_link);
		fn(u);
	}
}

static bool anyone_wakes(const struct way *w) {
	const struct upstream *u;
	TAILQ_FOREACH(u, &w->waiting, way_link) {
		if (upstream_wants(u) || upstream_presses(u))
			return true;
	}
	return false;
}

static void lose_waiting(struct way *w, const char *reason, bool all) {
	struct upstream *u = TAILQ_FIRST(&w->waiting), *next;
	for (; u != NULL; u = next) {
		next = TAILQ_NEXT(u, way_link);
		if (all || upstream_wants(u))
			upstream_lose(u, reason);
	}
}

// None of these calls sessions: they are told when the loop comes to it, so that the lists stand still meanwhile.
static void on_news(struct microvm_follower *f, enum microvm_news news, const char *why) {
	struct way *w = (struct way *)(void *)((char *)f - offsetof(struct way, follower));
	way_pin(w);
	switch (news) {
	case MICROVM_HALTS:
		each(&w->greeting, upstream_halt);
		each(&w->settled, upstream_halt);
		break;
	case MICROVM_SLEEPS:
		each(&w->greeting, upstream_detach);
		each(&w->settled, upstream_detach);
		if (anyone_wakes(w))
			microvm_route_wake(w->route);
		break;
	case MICROVM_AWAKE:
		each(&w->settled, upstream_go_on);
		way_serve(w);
		break;
	case MICROVM_SLEEPS_ON:
		lose_waiting(w, why, false);
		break;
	case MICROVM_ENDS:
		lose_waiting(w, "the microVM has ended", true);
		break;
	}
	way_unpin(w);
}
