// The API of stasisd: the operations of `lambda-microvms` (and the operator's own below /_stasis/) on config.api_listen, and the artifact
// store's S3 operations on config.s3_listen. Every request is signed (SigV4) with a key of the store.
#pragma once

#include "base/error.h"

struct engine;

// Opens en->artifacts when nobody has yet, and starts both servers. Sets en->api. [loop thread]
int api_start(struct engine *en, struct error *e);

// Takes no more requests, lets those under way finish (at most 5 s), then calls done(arg). en->api is NULL afterwards; en->artifacts stays, as builds
// may still read from it. [loop thread]
void api_stop(struct engine *en, void (*done)(void *arg), void *arg);

// The ports, of interest when the configuration says 0. [loop thread]
int api_port(const struct engine *en);
int api_artifacts_port(const struct engine *en);
