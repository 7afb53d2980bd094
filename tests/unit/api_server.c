// The API and the artifact store as a program of their own, with stand-ins for builds and microVMs: what the tests with the AWS SDK talk to.
// Usage: api_server <folder>. Prints one line of JSON with the addresses and a key, and ends on SIGTERM or when its standard input does.
#include "api/api.h"
#include "api_neighbours.h"
#include "stasisd/engine.h"
#include "stasisd/workers.h"
#include "store/artifacts.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct engine engine = {.version = "0.0.0-test"};
static uv_signal_t term;
static uv_pipe_t input;
static bool stopping;

static void stopped(void *arg) {
	(void)arg;
	uv_close((uv_handle_t *)&term, NULL);
	uv_close((uv_handle_t *)&input, NULL);
	// The last worker may still be on its way out of loop_submit().
	workers_wait_idle(5000);
	loop_queue_stop(&engine);
}

static void stop(void) {
	if (!stopping)
		api_stop(&engine, stopped, NULL);
	stopping = true;
}

static void on_signal(uv_signal_t *s, int number) {
	(void)s;
	(void)number;
	stop();
}

static void on_alloc(uv_handle_t *h, size_t wanted, uv_buf_t *buf) {
	static char room[64];
	(void)h;
	(void)wanted;
	*buf = uv_buf_init(room, sizeof(room));
}

static void on_input(uv_stream_t *s, ssize_t n, const uv_buf_t *buf) {
	(void)s;
	(void)buf;
	if (n < 0)
		stop();
}

static int start(const char *folder, struct error *e) {
	struct config *c = &engine.config;
	snprintf(c->metrics_token, sizeof(c->metrics_token), "a-token-for-prometheus");
	snprintf(c->state_folder, sizeof(c->state_folder), "%s", folder);
	strcpy(c->api_listen, "127.0.0.1:0");
	strcpy(c->s3_listen, "127.0.0.1:0");
	strcpy(c->edge_domain, "microvm.localhost");
	c->edge_public_port = 7443;
	strcpy(c->region, "us-east-1");
	strcpy(c->account, "000000000000");
	strcpy(c->default_base, "debian");
	c->artifact_limit = 64 << 20;
	engine.loop = uv_default_loop();
	int r = loop_queue_start(&engine, e);
	if (r >= 0)
		r = store_open(folder, &engine.store, e);
	struct store_key one = {"AKIDSTASISTEST000001", "secret/one+two=three", "000000000000"},
			 two = {"AKIDSTASISTEST000002", "another", "111111111111"};
	if (r >= 0)
		r = store_put_key(engine.store, &one, e);
	if (r >= 0)
		r = store_put_key(engine.store, &two, e);
	if (r >= 0)
		r = neighbours_start(&engine, e);
	if (r >= 0)
		r = api_start(&engine, e);
	return r;
}

int main(int argc, char **argv) {
	struct error e = {0};
	signal(SIGPIPE, SIG_IGN);
	if (argc != 2 || start(argv[1], &e) < 0) {
		fprintf(stderr, "api_server: %s\n", e.message);
		return 1;
	}
	uv_signal_init(engine.loop, &term);
	uv_signal_start(&term, on_signal, SIGTERM);
	uv_pipe_init(engine.loop, &input, 0);
	uv_pipe_open(&input, 0);
	uv_read_start((uv_stream_t *)&input, on_alloc, on_input);
	printf("{\"api\":\"http://127.0.0.1:%d\",\"artifacts\":\"http://127.0.0.1:%d\"}\n", api_port(&engine), api_artifacts_port(&engine));
	fflush(stdout);
	uv_run(engine.loop, UV_RUN_DEFAULT);
	artifacts_stop(engine.artifacts);
	store_close(engine.store);
	neighbours_stop();
	uv_loop_close(engine.loop);
	return 0;
}
