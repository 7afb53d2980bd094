// stasisd: API, artifact store, edge, lifecycle and builds, in one process without privileges.
//
//     stasisd --config FILE [--launcher-fd N]
//
// It is started by stasis-launch, which gives it its end of their socket pair as descriptor 3. Start: configuration, then on a worker store, first
// key, images, and the microVMs that outlived the last stasisd; only when all of them are in order the API and the edge begin to listen. SIGTERM and
// SIGINT: no more requests, every running microVM is suspended, end.
#include "api/api.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "edge/edge.h"
#include "images/images.h"
#include "launch/launch.h"
#include "logs/logs.h"
#include "microvms/launcher.h"
#include "microvms/lifecycle.h"
#include "microvms/watcher.h"
#include "stasisd/engine.h"
#include "stasisd/workers.h"
#include "store/artifacts.h"

#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STOP_WAIT_MS 2000 // for work that is about to end anyway

static struct engine engine;

// Of the loop thread.
static struct {
	uv_signal_t term, interrupt;
	bool starting, serving, stopping, launcher_lost;
	int status;
	uint64_t begun_ms;
} process = {.starting = true};

static void finish(void *unused) {
	uv_close((uv_handle_t *)&process.term, NULL);
	uv_close((uv_handle_t *)&process.interrupt, NULL);
	timers_end(&engine);
	logs_end(&engine);
	loop_queue_stop(&engine);
	uv_stop(engine.loop);
}

static void suspend_all(void *unused) {
	microvms_suspend_all(&engine);
	loop_submit(&engine, finish, NULL);
}

static void requests_ended(void *unused) {
	if (process.serving)
		edge_stop(&engine);
	if (process.launcher_lost || worker_submit(suspend_all, NULL) < 0)
		finish(NULL);
}

static void stop(int status) {
	if (process.stopping)
		return;
	process.stopping = true;
	process.status = status;
	if (process.starting)
		return; // as soon as that is over
	log_info("stasisd.stop");
	if (engine.api != NULL)
		api_stop(&engine, requests_ended, NULL);
	else
		requests_ended(NULL);
}

static void on_signal(uv_signal_t *handle, int number) {
	log_info("stasisd.signal", LOG_U("number", number));
	stop(0);
}

static void launcher_is_lost(void *unused) {
	process.launcher_lost = true;
	log_error("launcher.lost", LOG_S("message", "stasis-launch has ended; stasisd ends too"));
	stop(1);
}

static void on_launcher_lost(void *unused) {
	loop_submit(&engine, launcher_is_lost, NULL);
}

static void start_ended(bool good) {
	process.starting = false;
	if (process.stopping) {
		process.stopping = false;
		stop(process.status);
	} else if (!good) {
		stop(1);
	}
}

static void start_failed(void *unused) {
	start_ended(false);
}

static void serve(void *unused) {
	struct error e;
	if (process.stopping) {
		start_ended(true);
		return;
	}
	int r = api_start(&engine, &e);
	if (r == 0) {
		r = edge_start(&engine, &e);
		process.serving = r == 0;
	}
	if (r < 0)
		log_error("stasisd.start", LOG_S("message", e.message));
	else
		log_info("stasisd.ready", LOG_S("api", engine.config.api_listen), LOG_S("artifacts", engine.config.s3_listen),
			 LOG_S("edge", engine.config.edge_listen), LOG_U("ms", monotonic_ms() - process.begun_ms));
	start_ended(r == 0);
}

static void start(void *unused) {
	struct error e;
	int r = make_folders(engine.config.state_folder, 0750, &e);
	if (r == 0)
		r = store_open(engine.config.state_folder, &engine.store, &e);
	if (r == 0)
		r = access_start(&engine, &e);
	if (r == 0)
		r = artifacts_start(engine.store, engine.config.state_folder, (uint64_t)engine.config.artifact_limit, &engine.artifacts,
				    &e);
	if (r == 0)
		r = logs_start(&engine, &e);
	if (r == 0)
		r = microvms_start(&engine, &e); // first, because it ends the slots that builds of the last stasisd were using
	if (r == 0)
		r = images_start(&engine, &e);
	if (r < 0)
		log_error("stasisd.start", LOG_S("message", e.message));
	loop_submit(&engine, r == 0 ? serve : start_failed, NULL);
}

static void set_log_level(const char *name) {
	static const char *const names[] = {"debug", "info", "warn", "error"};
	for (int i = 0; i < 4; i++)
		if (strcmp(names[i], name) == 0)
			log_set_level((enum log_level)i);
}

static int set_up(int launcher_fd, struct error *e) {
	int r = uv_signal_init(engine.loop, &process.term);
	if (r == 0)
		r = uv_signal_init(engine.loop, &process.interrupt);
	if (r == 0)
		r = uv_signal_start(&process.term, on_signal, SIGTERM);
	if (r == 0)
		r = uv_signal_start(&process.interrupt, on_signal, SIGINT);
	if (r < 0)
		return error_set(e, r, "cannot wait for signals: %s", uv_strerror(r));
	r = loop_queue_start(&engine, e);
	if (r == 0)
		r = watcher_start(&engine.watcher, e);
	if (r == 0)
		r = launcher_open(launcher_fd, engine.watcher, &engine.launcher, e);
	if (r < 0)
		return r;
	const struct launcher_events events = {.ended = microvms_on_slot_ended, .lost = on_launcher_lost, .arg = &engine};
	launcher_listen(engine.launcher, &events);
	return worker_submit(start, NULL);
}

static int run(const char *config_path, int launcher_fd) {
	struct error e = {0};
	int r = config_read(config_path, &engine.config, &e);
	if (r < 0) {
		log_error("stasisd.config", LOG_S("message", e.message));
		return 2;
	}
	set_log_level(engine.config.log_level);
	snprintf(engine.version, sizeof(engine.version), "%s", STASIS_VERSION);
	process.begun_ms = monotonic_ms();
	log_info("stasisd.start", LOG_S("version", engine.version), LOG_S("state", engine.config.state_folder));
	engine.loop = uv_default_loop();
	r = set_up(launcher_fd, &e);
	if (r < 0) {
		log_error("stasisd.start", LOG_S("message", e.message));
		return 1;
	}
	uv_run(engine.loop, UV_RUN_DEFAULT);
	// Builds that are under way are cut off; the next start says so in their records.
	if (workers_wait_idle(STOP_WAIT_MS) && engine.store != NULL)
		store_close(engine.store);
	log_info("stasisd.end", LOG_U("status", process.status));
	return process.status;
}

static int usage(int status) {
	fprintf(status == 0 ? stdout : stderr,
		"usage: stasisd --config FILE [--launcher-fd N]\n\n"
		"The engine of Stasis without its privileged part. stasis-launch starts it; see docs/configuration.md for FILE.\n\n"
		"  --config FILE     the configuration, a JSON object\n"
		"  --launcher-fd N   the connection to stasis-launch (default %d)\n"
		"  --version         print the version\n",
		LAUNCH_STASISD_FD);
	return status;
}

int main(int argc, char **argv) {
	static const struct option options[] = {{"config", required_argument, NULL, 'c'},
						{"launcher-fd", required_argument, NULL, 'l'},
						{"version", no_argument, NULL, 'v'},
						{"help", no_argument, NULL, 'h'},
						{0}};
	const char *config = NULL;
	int launcher_fd = LAUNCH_STASISD_FD;
	for (int o; (o = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		switch (o) {
		case 'c':
			config = optarg;
			break;
		case 'l':
			launcher_fd = (int)strtol(optarg, NULL, 10);
			break;
		case 'v':
			printf("stasisd %s\n", STASIS_VERSION);
			return 0;
		case 'h':
			return usage(0);
		default:
			return usage(2);
		}
	}
	if (config == NULL || optind != argc)
		return usage(2);
	signal(SIGPIPE, SIG_IGN);
	fcntl(launcher_fd, F_SETFD, FD_CLOEXEC);
	return run(config, launcher_fd);
}
