// The API and the artifact store as a program of their own, with stand-ins for builds and microVMs: what the tests with the AWS SDK talk to.
// Usage: api_server <folder> [<configuration>], the latter as in a configuration file. Prints one line of JSON with the addresses and a key, and ends on SIGTERM or when its standard input does.
#include "api/api.h"
#include "api/policy.h"
#include "api_neighbours.h"
#include "logs/logs.h"
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
	neighbours_close_logs();
	logs_end(&engine);
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

static int put_other_key(struct error *e) {
	struct store_key two = {
		.id = "AKIDSTASISTEST000002", .secret = "another", .account = "111111111111", .policy = strdup(POLICY_ACCOUNT)};
	int r = store_put_key(engine.store, &two, e);
	store_key_clear(&two);
	return r;
}

static int start(const char *folder, const char *configuration, struct error *e) {
	struct config *c = &engine.config;
	int r = config_parse(configuration, strlen(configuration), "configuration", c, e);
	if (r < 0)
		return r;
	snprintf(c->metrics_token, sizeof(c->metrics_token), "a-token-for-prometheus");
	snprintf(c->state_folder, sizeof(c->state_folder), "%s", folder);
	strcpy(c->api_listen, "127.0.0.1:0");
	strcpy(c->s3_listen, "127.0.0.1:0");
	strcpy(c->key_id, "AKIDSTASISTEST000001");
	strcpy(c->key_secret, "secret/one+two=three");
	engine.loop = uv_default_loop();
	r = loop_queue_start(&engine, e);
	if (r >= 0)
		r = store_open(folder, &engine.store, e);
	if (r >= 0)
		r = access_start(&engine, e);
	if (r >= 0)
		r = put_other_key(e);
	if (r >= 0)
		r = neighbours_start(&engine, e);
	if (r >= 0)
		r = logs_start(&engine, e);
	if (r >= 0)
		r = api_start(&engine, e);
	return r;
}

int main(int argc, char **argv) {
	struct error e = {0};
	signal(SIGPIPE, SIG_IGN);
	if (argc < 2 || argc > 3 || start(argv[1], argc == 3 ? argv[2] : "{}", &e) < 0) {
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
	logs_free(&engine);
	artifacts_stop(engine.artifacts);
	store_close(engine.store);
	neighbours_stop();
	uv_loop_close(engine.loop);
	return 0;
}
