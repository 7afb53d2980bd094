// A binary heap of deadlines; see timers.h.
#include "microvms/timers.h"

#include <errno.h>
#include <stdlib.h>

void timers_init(struct timers *t) {
	*t = (struct timers){.count = 0};
	pthread_mutex_init(&t->lock, NULL);
}

void timers_free(struct timers *t) {
	pthread_mutex_destroy(&t->lock);
	free(t->heap);
}

static void put(struct timers *t, size_t place, struct timer *x) {
	t->heap[place - 1] = x;
	x->place = place;
}

static void sift_up(struct timers *t, struct timer *x, size_t place) {
	while (place > 1 && t->heap[place / 2 - 1]->due > x->due) {
		put(t, place, t->heap[place / 2 - 1]);
		place /= 2;
	}
	put(t, place, x);
}

static void sift_down(struct timers *t, struct timer *x, size_t place) {
	for (;;) {
		size_t child = 2 * place;
		if (child > t->count)
			break;
		if (child < t->count && t->heap[child]->due < t->heap[child - 1]->due)
			child++;
		if (t->heap[child - 1]->due >= x->due)
			break;
		put(t, place, t->heap[child - 1]);
		place = child;
	}
	put(t, place, x);
}

static void take_out(struct timers *t, struct timer *x) {
	size_t place = x->place;
	struct timer *last = t->heap[--t->count];
	x->place = 0;
	if (last == x)
		return;
	if (place > 1 && t->heap[place / 2 - 1]->due > last->due)
		sift_up(t, last, place);
	else
		sift_down(t, last, place);
}

int timers_set(struct timers *t, struct timer *x, int64_t due, bool *ret_earlier) {
	pthread_mutex_lock(&t->lock);
	int64_t before = t->count > 0 ? t->heap[0]->due : INT64_MAX;
	if (x->place == 0 && t->count == t->room) {
		size_t room = t->room == 0 ? 64 : t->room * 2;
		struct timer **more = realloc(t->heap, room * sizeof(*more));
		if (more == NULL) {
			pthread_mutex_unlock(&t->lock);
			return -ENOMEM;
		}
		t->heap = more;
		t->room = room;
	}
	if (x->place != 0)
		take_out(t, x);
	x->due = due;
	t->count++;
	sift_up(t, x, t->count);
	*ret_earlier = t->heap[0]->due < before;
	pthread_mutex_unlock(&t->lock);
	return 0;
}

void timers_clear(struct timers *t, struct timer *x) {
	pthread_mutex_lock(&t->lock);
	if (x->place != 0)
		take_out(t, x);
	pthread_mutex_unlock(&t->lock);
}

struct timer *timers_take(struct timers *t, int64_t now) {
	struct timer *x = NULL;
	pthread_mutex_lock(&t->lock);
	if (t->count > 0 && t->heap[0]->due <= now) {
		x = t->heap[0];
		take_out(t, x);
	}
	pthread_mutex_unlock(&t->lock);
	return x;
}

int64_t timers_next(struct timers *t) {
	pthread_mutex_lock(&t->lock);
	int64_t due = t->count > 0 ? t->heap[0]->due : -1;
	pthread_mutex_unlock(&t->lock);
	return due;
}
