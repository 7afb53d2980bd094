// Images: builds inside the builder microVM, snapshots of the initialised application, deletion.
#pragma once

#include "base/error.h"
#include "store/store.h"

struct engine;

// Fails builds that a crash cut off, removes half-made files, makes sure that the builder's snapshot exists (made at the first start on a
// host: its CPU is part of it). [worker]
int images_start(struct engine *en, struct error *e);

// Records image, version 1.0 and its build (CREATING, PENDING), fills the records, and queues the build. -EEXIST (named ValidationException):
// the name is taken. [worker]
int image_create(struct engine *en, const char *account, const char *name, const char *config_json, const char *tags_json,
		 struct store_image *ret, struct store_version *ret_version, struct error *e);

// Marks DELETING and removes files and records; refused (ValidationException, ConflictException) while building or with living microVMs. [worker]
int image_delete(struct engine *en, const char *arn, struct error *e);

// The base images that Stasis provides, for ListManagedMicrovmImages and for FROM: name ("debian", "python"), version.
struct base_image {
	const char *name;
	const char *version;
	int64_t created_ms;
};
size_t base_images(struct engine *en, const struct base_image **ret);
