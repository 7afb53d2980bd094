// The thread of a block device that does what may block.
//
// Jobs come as lists and are run in order; finished ones are collected and announced through an eventfd, once for each time that the collection
// was empty, so that several requests cost one wake-up on either side. The thread never takes the VM's device lock: whoever holds it may wait here.
#include "vmm/virtio/block.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STACK_BYTES (512u * 1024u)

struct list {
	struct block_job *first, *last;
};

struct block_worker {
	pthread_t thread;
	pthread_mutex_t mutex;
	pthread_cond_t work, idle;
	struct list todo, done;
	unsigned under_way; // submitted and not finished
	bool ending;
	int done_fd;
	void (*run)(void *arg, struct block_job *job);
	void *arg;
};

static void append(struct list *l, struct block_job *first, struct block_job *last) {
	last->next = NULL;
	if (l->first == NULL)
		l->first = first;
	else
		l->last->next = first;
	l->last = last;
}

static struct block_job *take_first(struct list *l) {
	struct block_job *job = l->first;
	l->first = job->next;
	job->next = NULL;
	return job;
}

static void finish(struct block_worker *w, struct block_job *job) {
	bool first = w->done.first == NULL;
	append(&w->done, job, job);
	w->under_way--;
	if (w->under_way == 0)
		pthread_cond_broadcast(&w->idle);
	uint64_t one = 1;
	// The counter cannot overflow: it is written once for each list that somebody takes.
	if (first && write(w->done_fd, &one, sizeof(one)) < 0)
		return;
}

static void *work(void *arg) {
	struct block_worker *w = arg;
	pthread_mutex_lock(&w->mutex);
	for (;;) {
		while (w->todo.first == NULL && !w->ending)
			pthread_cond_wait(&w->work, &w->mutex);
		if (w->todo.first == NULL)
			break;
		struct block_job *job = take_first(&w->todo);
		pthread_mutex_unlock(&w->mutex);
		w->run(w->arg, job);
		pthread_mutex_lock(&w->mutex);
		finish(w, job);
	}
	pthread_mutex_unlock(&w->mutex);
	return NULL;
}

static int start_thread(struct block_worker *w) {
	pthread_attr_t attributes;
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	// No signal is for this thread; SIGXFSZ stays pending, and the write that is too long fails with EFBIG.
	sigset_t all, before;
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	int r = pthread_create(&w->thread, &attributes, work, w);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	pthread_attr_destroy(&attributes);
	return -r;
}

int worker_start(struct block_worker **ret, void (*run)(void *arg, struct block_job *job), void *arg, struct error *e) {
	struct block_worker *w = calloc(1, sizeof(*w));
	if (w == NULL)
		return error_set(e, -ENOMEM, "block: no memory");
	w->run = run;
	w->arg = arg;
	w->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->done_fd < 0) {
		int r = error_errno(e, "block: cannot create an eventfd");
		free(w);
		return r;
	}
	pthread_mutex_init(&w->mutex, NULL);
	pthread_cond_init(&w->work, NULL);
	pthread_cond_init(&w->idle, NULL);
	int r = start_thread(w);
	if (r < 0) {
		close(w->done_fd);
		free(w);
		return error_set(e, r, "block: cannot start a thread: %s", strerror(-r));
	}
	*ret = w;
	return 0;
}

void worker_end(struct block_worker *w) {
	if (w == NULL)
		return;
	pthread_mutex_lock(&w->mutex);
	w->ending = true;
	pthread_cond_signal(&w->work);
	pthread_mutex_unlock(&w->mutex);
	pthread_join(w->thread, NULL);
	pthread_mutex_destroy(&w->mutex);
	pthread_cond_destroy(&w->work);
	pthread_cond_destroy(&w->idle);
	close(w->done_fd);
	free(w);
}

int worker_done_fd(const struct block_worker *w) {
	return w->done_fd;
}

void worker_submit(struct block_worker *w, struct block_job *first, struct block_job *last) {
	unsigned n = 1;
	for (const struct block_job *j = first; j != last; j = j->next)
		n++;
	pthread_mutex_lock(&w->mutex);
	bool asleep = w->todo.first == NULL;
	append(&w->todo, first, last);
	w->under_way += n;
	if (asleep)
		pthread_cond_signal(&w->work);
	pthread_mutex_unlock(&w->mutex);
}

struct block_job *worker_take_done(struct block_worker *w) {
	pthread_mutex_lock(&w->mutex);
	struct block_job *first = w->done.first;
	w->done = (struct list){0};
	pthread_mutex_unlock(&w->mutex);
	return first;
}

void worker_wait_idle(struct block_worker *w) {
	pthread_mutex_lock(&w->mutex);
	while (w->under_way > 0)
		pthread_cond_wait(&w->idle, &w->mutex);
	pthread_mutex_unlock(&w->mutex);
}
