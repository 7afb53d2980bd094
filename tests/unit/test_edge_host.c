// The edge as a program of its own, in front of a server on this host, for trying it with real clients and for measuring:
//
//     test_edge_host <folder> <port to listen on> <port of the server> [<milliseconds to wake>]
//     test_edge_host <folder> <port to listen on> <path of a vsock socket>
//
// Prints the port that it listens on (of interest when that was 0). The folder gets keys and certificates, and a file `token` with a token for all ports of each endpoint of test_edge_double.h
// (`<endpoint> <token>` a line), and one for the first one's shell. With STASIS_AGENT_STREAMS in the environment, sessions lead to the guest agent
// whose streams' socket that is; EDGE_HOST_TLS names guest ports where TLS is spoken, with commas. SIGUSR1 sends the microVMs to sleep, and a line
// `asleep` says that they are. SIGTERM and SIGINT end it.
#include "base/io.h"
#include "base/log.h"
#include "edge/edge.h"
#include "stasisd/workers.h"
#include "test_edge_double.h"

#include "base/clock.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uv_signal_t signals[2];

// The loop ends by itself once everything is closed.
static void on_signal(uv_signal_t *handle, int number) {
	struct engine *en = handle->data;
	edge_stop(en);
	loop_queue_stop(en);
	for (int i = 0; i < 2; i++)
		uv_close((uv_handle_t *)&signals[i], NULL);
}

static int write_tokens(const struct engine *en) {
	static const char *const endpoints[] = {DOUBLE_RUNNING, DOUBLE_SUSPENDED, DOUBLE_ASLEEP, DOUBLE_GONE, DOUBLE_FAILED, DOUBLE_DEAD};
	char text[8192], token[TOKEN_ROOM], path[300];
	size_t at = 0;
	for (size_t i = 0; i < sizeof(endpoints) / sizeof(endpoints[0]); i++) {
		struct token_claims c = {.kind = TOKEN_HTTP, .expires_ms = (int64_t)realtime_ms() + 3600 * 1000};
		snprintf(c.microvm, sizeof(c.microvm), "%s", double_id(endpoints[i]));
		if (token_add_all_ports(&c, NULL) < 0 || edge_mint_token(en, &c, token, NULL) < 0)
			return -1;
		at += (size_t)snprintf(text + at, sizeof(text) - at, "%s %s\n", endpoints[i], token);
	}
	// And one for the sessions of the first.
	struct token_claims c = {.kind = TOKEN_SHELL, .expires_ms = (int64_t)realtime_ms() + 3600 * 1000};
	snprintf(c.microvm, sizeof(c.microvm), "%s", double_id(DOUBLE_RUNNING));
	if (edge_mint_token(en, &c, token, NULL) < 0)
		return -1;
	at += (size_t)snprintf(text + at, sizeof(text) - at, "shell %s\n", token);
	snprintf(path, sizeof(path), "%s/token", en->config.state_folder);
	return write_file_durably(path, text, at, 0600, NULL);
}

static void *sleep_when_told(void *en) {
	sigset_t set;
	int number;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	while (sigwait(&set, &number) == 0) {
		double_sleep(en);
		printf("asleep\n");
		fflush(stdout);
	}
	return NULL;
}

static void read_tls_ports(void) {
	const char *at = getenv("EDGE_HOST_TLS");
	for (size_t i = 0; at != NULL && *at != '\0' && i < sizeof(double_tls) / sizeof(double_tls[0]); i++) {
		char *end;
		double_tls[i] = (uint16_t)strtoul(at, &end, 10);
		at = *end == ',' ? end + 1 : "";
	}
}

int main(int argc, char **argv) {
	if (argc < 4) {
		fprintf(stderr, "usage: test_edge_host <folder> <port> <server's port> [<wake ms> [<configuration>]]\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	pthread_sigmask(SIG_BLOCK, &set, NULL); // of all threads, for the one that waits for it
	static struct engine en;
	struct error e = {0};
	if (config_parse(argc > 5 ? argv[5] : "{}", argc > 5 ? strlen(argv[5]) : 2, "configuration", &en.config, &e) < 0) {
		fprintf(stderr, "test_edge_host: %s\n", e.message);
		return 2;
	}
	snprintf(en.config.state_folder, sizeof(en.config.state_folder), "%s", argv[1]);
	snprintf(en.config.edge_listen, sizeof(en.config.edge_listen), "127.0.0.1:%s", argv[2]);
	snprintf(en.config.edge_domain, sizeof(en.config.edge_domain), "microvm.localhost");
	double_wake_ms = argc > 4 ? atoi(argv[4]) : 100;
	// What the log costs is not what is measured.
	if (getenv("EDGE_HOST_QUIET") != NULL)
		log_set_level(LOG_LEVEL_WARN);
	read_tls_ports();
	en.loop = uv_default_loop();
	bool own = argv[3][0] != '/'; // a vsock socket of our own
	if (!own)
		double_use(argv[3]);
	if (make_folders(argv[1], 0700, &e) < 0 || loop_queue_start(&en, &e) < 0 ||
	    (own && double_start(argv[1], 8080, (uint16_t)atoi(argv[3])) < 0) || edge_start(&en, &e) < 0 || write_tokens(&en) < 0) {
		fprintf(stderr, "test_edge_host: %s\n", e.message);
		return 1;
	}
	for (int i = 0; i < 2; i++) {
		uv_signal_init(en.loop, &signals[i]);
		signals[i].data = &en;
		uv_signal_start(&signals[i], on_signal, i == 0 ? SIGTERM : SIGINT);
	}
	printf("%d\n", edge_port(&en));
	fflush(stdout);
	pthread_t sleeper;
	if (pthread_create(&sleeper, NULL, sleep_when_told, &en) != 0)
		return 1;
	pthread_detach(sleeper);
	uv_run(en.loop, UV_RUN_DEFAULT);
	return uv_loop_close(en.loop) == 0 ? 0 : 3; // nothing may be left open
}
