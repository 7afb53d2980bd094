// The logs of microVMs and builds after they were written: where they lie, how long they stay, and that they are pushed elsewhere.
//
// A microVM's log outlives it: it lies in <state>/logs/<uuid>, and goes when logRetentionSeconds have passed since the microVM's end, or earlier, oldest
// first, when the logs of ended microVMs take more than logTotalBytes. A build's log lies with its image version and goes with it.
#pragma once

#include "base/error.h"
#include "logs/log_files.h"

#include <stdint.h>

struct engine;
struct logs; // en->logs; NULL (in tests of other things) keeps and pushes nothing

// Makes en->logs: finds the logs of microVMs that have ended and what was not pushed yet. [worker]
int logs_start(struct engine *en, struct error *e);
// Ends pushing at once; what is left goes on at the next start. [loop thread]
void logs_end(struct engine *en);
void logs_free(struct engine *en); // once no worker runs any more

// <state>/logs/<uuid> of a microVM's id.
void logs_of_microvm(const struct engine *en, const char *id, char to[LOG_FOLDER_MAX]);
// <state>/images/<image uuid>/<version>/log
void logs_of_build(const struct engine *en, const char *image_uuid, const char *version, char to[LOG_FOLDER_MAX]);

// The microVM has ended: keeps its guest's console beside its log, pushes the rest, and counts it among those that are removed in time. `folder`: the
// microVM's own, which is about to be removed. [worker]
void logs_microvm_ended(struct engine *en, const char *id, const char *folder);
// Wakes who follows its log: its state has changed. [any]
void logs_wake_microvm(const struct engine *en, const char *id);
// The build has ended. [worker]
void logs_build_ended(struct engine *en, const char *image_uuid, const char *version);
