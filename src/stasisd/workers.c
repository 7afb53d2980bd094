// Worker threads for everything that blocks, and the way back into the libuv loop.
//
// Threads are made when work waits and nobody is idle, and end after ten idle seconds; their stacks are small, because hundreds of them may
// wait for guests at once. The pool is one per process. The loop's queue is a list behind a mutex and one uv_async_t that wakes the loop.
#include "stasisd/workers.h"

#include "base/clock.h"
#include "base/log.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define IDLE_SECONDS 10
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

static struct {
	pthread_mutex_t lock;
	pthread_cond_t work; // something was queued
	pthread_cond_t done; // a job ended
	struct job_list queue;
	size_t threads, idle;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static void *worker(void *unused) {
	pthread_mutex_lock(&pool.lock);
	for (;;) {
		struct job *j = list_take(&pool.queue);
		if (j != NULL) {
			pthread_mutex_unlock(&pool.lock);
			j->fn(j->arg);
			free(j);
			pthread_mutex_lock(&pool.lock);
			pthread_cond_broadcast(&pool.done);
			continue;
		}
		struct timespec until;
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_sec += IDLE_SECONDS;
		pool.idle++;
		pthread_cond_broadcast(&pool.done);
		int r = pthread_cond_timedwait(&pool.work, &pool.lock, &until);
		pool.idle--;
		if (r == ETIMEDOUT && pool.queue.first == NULL)
			break;
	}
	pool.threads--;
	pthread_cond_broadcast(&pool.done);
	pthread_mutex_unlock(&pool.lock);
	return NULL;
}

static int thread_new(void) {
	pthread_attr_t attributes;
	int r = pthread_attr_init(&attributes);
	if (r != 0)
		return -r;
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
	pthread_t thread;
	r = pthread_create(&thread, &attributes, worker, NULL);
	pthread_attr_destroy(&attributes);
	return -r;
}

int worker_submit(void (*fn)(void *arg), void *arg) {
	struct job *j = malloc(sizeof(*j));
	if (j == NULL)
		return -ENOMEM;
	*j = (struct job){.fn = fn, .arg = arg};
	pthread_mutex_lock(&pool.lock);
	int r = pool.queue.count >= WORKERS_QUEUE_MAX ? -EAGAIN : 0;
	if (r == 0 && pool.queue.count >= pool.idle && pool.threads < WORKERS_MAX) {
		r = thread_new();
		if (r == 0)
			pool.threads++;
		else if (pool.threads > 0)
			r = 0; // those that there are will come to it
	}
	if (r == 0) {
		list_put(&pool.queue, j);
		pthread_cond_signal(&pool.work);
	}
	pthread_mutex_unlock(&pool.lock);
	if (r < 0)
		free(j);
	return r;
}

bool workers_wait_idle(int timeout_ms) {
	struct timespec until;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += timeout_ms / 1000;
	until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_nsec -= 1000000000;
		until.tv_sec++;
	}
	pthread_mutex_lock(&pool.lock);
	int r = 0;
	while ((pool.queue.count > 0 || pool.idle < pool.threads) && r == 0)
		r = pthread_cond_timedwait(&pool.done, &pool.lock, &until);
	bool idle = pool.queue.count == 0 && pool.idle == pool.threads;
	pthread_mutex_unlock(&pool.lock);
	return idle;
}

size_t workers_count(void) {
	pthread_mutex_lock(&pool.lock);
	size_t n = pool.threads;
	pthread_mutex_unlock(&pool.lock);
	return n;
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
