// Worker threads and the queue into the loop: everything submitted runs once, blocking jobs do not starve others, and order holds in the loop.
#include "base/clock.h"
#include "stasisd/workers.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

static _Atomic int count;

static void add_one(void *unused) {
	count++;
}

static void sleep_briefly(void *unused) {
	usleep(300000);
	count++;
}

static void test_all_run(void **state) {
	count = 0;
	for (int i = 0; i < 20000; i++)
		assert_int_equal(worker_submit(add_one, NULL), 0);
	assert_true(workers_wait_idle(20000));
	assert_int_equal(count, 20000);
	assert_in_range(workers_count(), 1, WORKERS_MAX);
}

static void test_blocking_ones_do_not_starve(void **state) {
	count = 0;
	uint64_t from = monotonic_ms();
	for (int i = 0; i < 100; i++)
		assert_int_equal(worker_submit(sleep_briefly, NULL), 0);
	assert_false(workers_wait_idle(10));
	assert_true(workers_wait_idle(20000));
	assert_int_equal(count, 100);
	assert_in_range(monotonic_ms() - from, 290, 10000); // not 30 s
}

static void submit_more(void *unused) {
	for (int i = 0; i < 10; i++)
		worker_submit(add_one, NULL);
}

static void test_jobs_submit_jobs(void **state) {
	count = 0;
	for (int i = 0; i < 100; i++)
		assert_int_equal(worker_submit(submit_more, NULL), 0);
	assert_true(workers_wait_idle(20000));
	assert_int_equal(count, 1000);
}

static struct engine en;
static int order[1000], ran;
static pthread_t loop_thread;

static void note(void *arg) {
	assert_true(pthread_equal(pthread_self(), loop_thread));
	order[ran++] = *(int *)arg;
}

static void end(void *unused) {
	loop_queue_stop(&en);
}

static void *run_loop(void *loop) {
	uv_run(loop, UV_RUN_DEFAULT);
	return NULL;
}

static void test_loop_submit(void **state) {
	static int numbers[1000];
	uv_loop_t loop;
	struct error e;
	uv_loop_init(&loop);
	en.loop = &loop;
	assert_int_equal(loop_queue_start(&en, &e), 0);
	assert_int_equal(pthread_create(&loop_thread, NULL, run_loop, &loop), 0);
	for (int i = 0; i < 1000; i++) {
		numbers[i] = i;
		loop_submit(&en, note, &numbers[i]);
	}
	loop_submit(&en, end, NULL);
	pthread_join(loop_thread, NULL);
	assert_int_equal(ran, 1000);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(order[i], i);
	assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void) {
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_all_run), cmocka_unit_test(test_blocking_ones_do_not_starve),
					   cmocka_unit_test(test_jobs_submit_jobs), cmocka_unit_test(test_loop_submit)};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
