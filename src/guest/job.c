// Blocking work on a thread; see job.h.
#include "guest/job.h"

#include <pthread.h>
#include <stddef.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define STACK (128u << 10)

static void *run(void *arg) {
	struct job *j = arg;
	uint64_t one = 1;
	int fd = j->source.fd;

	j->result = j->work(j);
	(void)!write(fd, &one, sizeof(one));
	return NULL;
}

static void over(struct source *s, uint32_t events) {
	struct job *j = container_of(s, struct job, source);

	loop_close_source(j->loop, s);
	j->done(j);
}

int job_start(struct job *j, struct loop *l) {
	pthread_attr_t attr;
	pthread_t thread;

	j->loop = l;
	j->source = (struct source){.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK), .ready = over};
	if (j->source.fd < 0)
		return -errno;
	int r = loop_watch(l, &j->source, EPOLLIN);
	if (r == 0) {
		pthread_attr_init(&attr);
		pthread_attr_setstacksize(&attr, STACK);
		pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
		r = -pthread_create(&thread, &attr, run, j);
		pthread_attr_destroy(&attr);
	}
	if (r < 0)
		loop_close_source(l, &j->source);
	return r;
}
