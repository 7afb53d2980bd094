// Pushing logs in the shape of CloudWatch Logs (PutLogEvents) to the endpoint of the configuration (cloudWatchEndpoint).
//
// The log's own files are the queue: a stream remembers, in the file `push` beside the segments, up to which position its log was accepted, and goes
// on from there, also after a restart. So memory holds one batch per pusher, whatever happens at the other end; what the log's limit removes before
// it was accepted is lost, and that is said in the stream and in stasisd's log. Lines may come twice after a crash, never in another order.
#pragma once

#include "logs/log_files.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct engine;
struct logs;
struct push_stream;

#define PUSH_NAME_MAX 513 // of a group or stream: 512 characters and NUL

struct push_target {
	char group[PUSH_NAME_MAX], stream[PUSH_NAME_MAX];
};

// Where the log goes. `logging`: the member of the request (NULL or null: the defaults). False: nowhere, as nobody asked for it.
bool push_target_of_microvm(const struct engine *en, const json_t *run_config, const char *image_name, const char *version, const char *id,
			    int64_t started_ms, struct push_target *ret);
bool push_target_of_build(const struct engine *en, const json_t *image_config, const char *image_name, const char *version,
			  const char *build_id, int64_t started_ms, struct push_target *ret);

// The stream of the log in this folder. NULL: none is to be had (said in the log), or the engine pushes nothing.
struct push_stream *push_open(struct engine *en, const char *folder, const struct push_target *t);
void push_touch(struct push_stream *s); // its log has grown; NULL is fine. [any]
void push_close(struct push_stream *s); // NULL is fine

// Inside src/logs/ only. ---------------------------------------------------------------------------------------------------------
struct pusher;
int pusher_start(struct engine *en, struct pusher **ret, struct error *e);
void pusher_stop(struct pusher *p); // at once; requests under way are cut off
void pusher_free(struct pusher *p);
struct push_stream *push_open_in(struct pusher *p, const char *folder, const struct push_target *t);
// Goes on with the log in this folder when a push file lies there. `ended`: nobody writes it any more.
void push_resume(struct pusher *p, const char *folder, bool ended);
// The log is complete: its last line counts even without an end.
void push_ended(struct pusher *p, const char *folder);
// The log is about to be removed.
void push_forget(struct pusher *p, const char *folder);
