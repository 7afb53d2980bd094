// The API of stasisd: the operations of `lambda-microvms` (and the operator's own below /_stasis/) on config.api_listen, and the artifact
// store's S3 operations on config.s3_listen. Every request is signed (SigV4) with a key of the store.
#pragma once

#include "base/error.h"

struct engine;

// What the configuration says about access: its key is stored, those of earlier configurations go, and so with roles. Before anybody calls. [worker]
int access_start(struct engine *en, struct error *e);

// Opens en->artifacts and reads en->quotas when nobody has yet, and starts both servers. Sets en->api. [loop thread]
int api_start(struct engine *en, struct error *e);

// Takes no more requests, lets those under way finish (at most 5 s), then calls done(arg). en->api is NULL afterwards; en->artifacts and en->quotas
// stay, as builds may still read from the former and calls that took too long may still look at the latter. [loop thread]
void api_stop(struct engine *en, void (*done)(void *arg), void *arg);

// The ports, of interest when the configuration says 0. [loop thread]
int api_port(const struct engine *en);
int api_artifacts_port(const struct engine *en);
