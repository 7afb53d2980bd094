// Start and end of the API's two servers; see api.h.
#include "api/api.h"

#include "api/api_internal.h"
#include "api/call.h"
#include "api/quota.h"
#include "base/log.h"
#include "stasisd/engine.h"
#include "store/artifacts.h"

#include <stdlib.h>

#define API_BODY_MAX (1u << 20)

struct api {
	struct server *api, *s3;
	int running;
	void (*done)(void *arg);
	void *arg;
	struct engine *en;
};

int api_start(struct engine *en, struct error *e) {
	if (en->artifacts == NULL) {
		int r = artifacts_start(en->store, en->config.state_folder, (uint64_t)en->config.artifact_limit, &en->artifacts, e);
		if (r < 0)
			return r;
	}
	artifacts_limit_total(en->artifacts, (uint64_t)en->config.artifact_store_limit);
	int q = en->quotas == NULL ? quotas_start(en, e) : 0;
	if (q < 0)
		return q;
	struct api *a = calloc(1, sizeof(*a));
	if (a == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the API");
	a->en = en;
	const struct server_options api = {.name = "api",
					   .listen = en->config.api_listen,
					   .body_limit = API_BODY_MAX,
					   .connections_max = 1024,
					   .handlers_max = 128,
					   .handle = api_handle,
					   .is_quick = api_is_quick,
					   .refusal = api_refusal,
					   .arg = en};
	const struct server_options s3 = {.name = "artifacts",
					  .listen = en->config.s3_listen,
					  .stream = true,
					  .connections_max = 256,
					  .handlers_max = 64,
					  .handle = s3_handle,
					  .refusal = s3_refusal,
					  .arg = en};
	int r = server_start(en, &api, &a->api, e);
	if (r >= 0)
		r = server_start(en, &s3, &a->s3, e);
	if (r < 0) {
		if (a->api != NULL)
			server_stop(a->api, NULL, NULL);
		free(a);
		return r;
	}
	en->api = a;
	connectors_start(en);
	log_info("api.listening", LOG_S("api", en->config.api_listen), LOG_U("port", server_port(a->api)),
		 LOG_S("artifacts", en->config.s3_listen), LOG_U("artifactsPort", server_port(a->s3)));
	return 0;
}

int api_port(const struct engine *en) {
	return server_port(en->api->api);
}

int api_artifacts_port(const struct engine *en) {
	return server_port(en->api->s3);
}

static void one_stopped(void *arg) {
	struct api *a = arg;
	if (--a->running > 0)
		return;
	void (*done)(void *) = a->done;
	void *done_arg = a->arg;
	free(a);
	if (done != NULL)
		done(done_arg);
}

void api_stop(struct engine *en, void (*done)(void *arg), void *arg) {
	struct api *a = en->api;
	if (a == NULL) {
		if (done != NULL)
			done(arg);
		return;
	}
	en->api = NULL;
	a->running = 2;
	a->done = done;
	a->arg = arg;
	struct server *api = a->api, *s3 = a->s3;
	server_stop(api, one_stopped, a);
	server_stop(s3, one_stopped, a);
}
