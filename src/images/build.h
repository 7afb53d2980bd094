// Inside src/images/: what the parts of a build share.
#pragma once

#include "images/images.h"
#include "images/settings.h"
#include "microvms/output_log.h"
#include "microvms/slot.h"
#include "microvms/stages.h"
#include "stasisd/engine.h"

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define IMAGE_PATH 512
#define BUILD_LOG_LIMIT (16 * 1024 * 1024)
#define NAMESERVERS_MAX 4

struct queued_build {
	struct queued_build *next;
	struct build *build;
};

struct images {
	struct engine *en;
	pthread_mutex_t lock; // of the queue
	struct queued_build *first, **last;
	int running;
	struct base_image *bases;
	size_t base_count;
	pthread_mutex_t builder_lock; // one makes the builder's snapshot, the others wait
	char builder_key[1024];       // what it must have been made from
	char system_disk[IMAGE_PATH]; // this engine's copy of the system disk; images hold links to it
};

struct build {
	struct engine *en;
	struct store_image image;
	struct store_version version;
	struct store_build record;
	struct image_settings settings;
	json_t *config;
	char folder[IMAGE_PATH]; // images/<uuid>/<version>
	struct output_log log;
	struct stages stages;
	uint64_t deadline_ms; // monotonic
	struct slot slot;     // of the step at hand
};

// Milliseconds left of the build's time, at most `limit`; at least 1.
int build_time_left(const struct build *b, int limit);
// `milliseconds` on a host of ordinary speed, as configured for this one (defaultTimeoutScale).
int scaled_ms(const struct engine *en, int milliseconds);
// Name servers for guests: those configured, or the host's.
json_t *guest_nameservers(const struct engine *en);
// Opens a file, appending the descriptor to fds. Returns it or a negative errno.
int build_open(const char *folder, const char *name, int flags, int *fds, size_t *nfds, struct error *e);
// An unnamed sparse file of that size in a folder, for reading and writing.
int build_temporary(const char *folder, uint64_t size, struct error *e);
// Pauses the VM and writes a full snapshot to <folder>/state and <folder>/memory, durably; the VMM still stands afterwards. Close every stream of
// the guest before, so that clones need not reset any.
int build_snapshot(struct slot *s, const char *folder, struct error *e);
// Prefers what the VMM says about the guest's end to the broken connection that it caused.
int build_explain(struct slot *s, int code, struct error *e);
void build_boot_request(struct vmm_boot *request, uint32_t memory_mib, uint32_t vcpus);

// builder.c: the builder microVM -----------------------------------------------------------------------------------------------
// Makes the builder's snapshot when it is missing or made from other assets. [worker]
int builder_prepare(struct engine *en, struct error *e);
// Runs the Dockerfile: leaves disk.ext4 in the build's folder and its bytes of content in *ret_bytes.
int builder_run(struct build *b, uint64_t *ret_bytes, struct error *e);

// initialise.c: boots the image, waits until it is ready, snapshots it, validates it -----------------------------------------------
int image_initialise(struct build *b, struct error *e);

// assets.c ----------------------------------------------------------------------------------------------------------------------
int images_read_assets(struct engine *en, struct error *e);

// recover.c ---------------------------------------------------------------------------------------------------------------------
int images_recover(struct engine *en, struct error *e);

// versions.c --------------------------------------------------------------------------------------------------------------------
// The errors of the API.
int image_is_missing(const char *arn, struct error *e);
int image_is_busy(const char *state, struct error *e);
// The second step of a deletion: files, then records. What cannot be removed is DELETE_FAILED.
void image_remove(struct engine *en, const char *uuid);
void image_remove_version(struct engine *en, const char *uuid, const char *version);

// record.c ----------------------------------------------------------------------------------------------------------------------
void version_folder(const struct engine *en, const char *image_uuid, const char *version, char to[IMAGE_PATH]);
void build_free(struct build *b);
int build_record_begin(struct build *b, struct error *e);
int build_record_success(struct build *b, struct error *e); // the files are there; their sizes are recorded
// Records the end of a version's build that failed, and removes its files but for the log.
int build_record_failure(struct engine *en, struct store_image *i, struct store_version *v, struct store_build *r, const char *reason,
			 struct error *e);

// pipeline.c --------------------------------------------------------------------------------------------------------------------
int build_queue(struct engine *en, struct build *b, struct error *e); // takes over b
