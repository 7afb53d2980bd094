// Worker threads for everything that blocks, and the way back into the libuv loop.
//
// Threads are made when work waits and nobody is idle, and end after ten idle seconds; their stacks are small, because hundreds of them may
// wait for guests at once. The process has two pools: one for all work, and one of a few threads for what only reads (READERS_MAX), where a burst
// of calls is worked off in a row instead of waking a thread each. The loop's queue is a list behind a mutex and one uv_async_t that wakes the
// loop.
#include "stasisd/workers.h"

#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_MS 10000
#if defined(__SANITIZE_ADDRESS__)
#define STACK_BYTES (1024 * 1024) // red zones and fake frames need room
#else
#define STACK_BYTES (256 * 1024)
#endif

struct job {
	struct job *next;
	void (*fn)(void *arg);
	void *arg;
};

struct job_list {
	struct job *first;
	struct job *last;
	size_t count;
};

static void list_put(struct job_list *l, struct job *j) {
	j->next = NULL;
	if (l->last == NULL)
		l->first = j;
	else
		l->last->next = j;
	l->last = j;
	l->count++;
}

static struct job *list_take(struct job_list *l) {
	struct job *j = l->first;
	if (j == NULL)
		return NULL;
	l->first = j->next;
	if (l->first == NULL)
		l->last = NULL;
	l->count--;
	return j;
}

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t work; // something was queued
	pthread_cond_t done; // nothing is queued or running any more
	struct job_list queue;
	size_t threads, idle, most;
};
#define POOL(n) \
	{ .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .most = (n) }

static struct pool workers = POOL(WORKERS_MAX), readers = POOL(READERS_MAX);

static bool is_idle(const struct pool *p) {
	return p->queue.count == 0 && p->idle == p->threads;
}

// A condition variable of the monotonic clock cannot be made statically; this waits by it.
static int wait_until(pthread_cond_t *c, pthread_mutex_t *lock, const struct timespec *monotonic) {
	return pthread_cond_clockwait(c, lock, CLOCK_MONOTONIC, monotonic);
}

static struct timespec after_ms(int ms) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += ms / 1000;
	t.tv_nsec += (long)(ms % 1000) * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

static void *work(void *arg) {
	struct pool *p = arg;
	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct job *j = list_take(&p->queue);
		if (j != NULL) {
			pthread_mutex_unlock(&p->lock);
			j->fn(j->arg);
			free(j);
			pthread_mutex_lock(&p->lock);
			continue;
		}
		struct timespec until = after_ms(IDLE_MS);
		p->idle++;
		if (is_idle(p))
			pthread_cond_broadcast(&p->done);
		int r = wait_until(&p->work, &p->lock, &until);
		p->idle--;
		if (r == ETIMEDOUT && p->queue.first == NULL)
			break;
	}
	p->threads--;
	if (is_idle(p))
		pthread_cond_broadcast(&p->done);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

static int thread_new(struct pool *p) {
	pthread_attr_t attributes;
	int r = pthread_attr_init(&attributes);
	if (r != 0)
		return -r;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_t thread;
	r = pthread_create(&thread, &attributes, work, p);
	pthread_attr_destroy(&attributes);
	return -r;
}

static int submit(struct pool *p, void (*fn)(void *arg), void *arg) {
	struct job *j = malloc(sizeof(*j));
	if (j == NULL)
		return -ENOMEM;
	*j = (struct job){.fn = fn, .arg = arg};
	pthread_mutex_lock(&p->lock);
	int r = p->queue.count >= WORKERS_QUEUE_MAX ? -EAGAIN : 0;
	if (r == 0 && p->queue.count >= p->idle && p->threads < p->most) {
		r = thread_new(p);
		if (r == 0)
			p->threads++;
		else if (p->threads > 0)
			r = 0; // those that there are will come to it
	}
	if (r == 0) {
		list_put(&p->queue, j);
		if (p->idle > 0)
			pthread_cond_signal(&p->work);
	}
	pthread_mutex_unlock(&p->lock);
	if (r < 0)
		free(j);
	return r;
}

int worker_submit(void (*fn)(void *arg), void *arg) {
	return submit(&workers, fn, arg);
}

int reader_submit(void (*fn)(void *arg), void *arg) {
	return submit(&readers, fn, arg);
}

static bool wait_idle(struct pool *p, const struct timespec *until) {
	pthread_mutex_lock(&p->lock);
	int r = 0;
	while (!is_idle(p) && r == 0)
		r = wait_until(&p->done, &p->lock, until);
	bool idle = is_idle(p);
	pthread_mutex_unlock(&p->lock);
	return idle;
}

bool workers_wait_idle(int timeout_ms) {
	struct timespec until = after_ms(timeout_ms);
	return wait_idle(&readers, &until) && wait_idle(&workers, &until);
}

static size_t count(struct pool *p) {
	pthread_mutex_lock(&p->lock);
	size_t n = p->threads;
	pthread_mutex_unlock(&p->lock);
	return n;
}

size_t workers_count(void) {
	return count(&workers) + count(&readers);
}

struct loop_queue {
	uv_async_t wake;
	pthread_mutex_t lock;
	struct job_list jobs;
};

static void run_queued(struct loop_queue *q) {
	pthread_mutex_lock(&q->lock);
	struct job_list taken = q->jobs;
	q->jobs = (struct job_list){0};
	pthread_mutex_unlock(&q->lock);
	for (struct job *j; (j = list_take(&taken)) != NULL;) {
		j->fn(j->arg);
		free(j);
	}
}

static void on_wake(uv_async_t *handle) {
	run_queued(handle->data);
}

int loop_queue_start(struct engine *en, struct error *e) {
	struct loop_queue *q = calloc(1, sizeof(*q));
	if (q == NULL)
		return error_set(e, -ENOMEM, "out of memory making the loop's queue");
	int r = uv_async_init(en->loop, &q->wake, on_wake);
	if (r < 0) {
		free(q);
		return error_set(e, r, "cannot make the loop's queue: %s", uv_strerror(r));
	}
	pthread_mutex_init(&q->lock, NULL);
	q->wake.data = q;
	en->queue = q;
	return 0;
}

static void on_closed(uv_handle_t *handle) {
	struct loop_queue *q = handle->data;
	pthread_mutex_destroy(&q->lock);
	free(q);
}

void loop_queue_stop(struct engine *en) {
	run_queued(en->queue);
	uv_close((uv_handle_t *)&en->queue->wake, on_closed);
	en->queue = NULL;
}

void loop_submit(struct engine *en, void (*fn)(void *arg), void *arg) {
	struct job *j = malloc(sizeof(*j));
	if (j == NULL) {
		// Whoever waits for this would wait for ever; there is nobody to tell.
		log_error("loop.submit", LOG_S("message", "out of memory: a call into the loop was lost"));
		return;
	}
	*j = (struct job){.fn = fn, .arg = arg};
	// Once the lock is released, the loop may take the job, end and free the queue.
	struct loop_queue *q = en->queue;
	pthread_mutex_lock(&q->lock);
	list_put(&q->jobs, j);
	uv_async_send(&q->wake);
	pthread_mutex_unlock(&q->lock);
}
