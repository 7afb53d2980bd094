// Images and their versions: builds inside the builder microVM, snapshots of the initialised application, activation, deletion.
#pragma once

#include "base/error.h"
#include "store/store.h"

#include <stdbool.h>

struct engine;

// Fails builds that a crash cut off, finishes deletions, removes half-made files, makes sure that the builder's snapshot exists (made at the first start on a
// host: its CPU is part of it). [worker]
int images_start(struct engine *en, struct error *e);

// What CreateMicrovmImage and UpdateMicrovmImage ask for.
struct image_request {
	const char *account, *name; // of a new image
	const char *tags_json;      // of a new image; NULL: none
	const char *config_json;    // of the version: the members of the request, defaults filled in
	struct store_token *token;  // NULL: none; its answer is made by …
	char *(*answer)(const struct store_image *, const struct store_version *); // … this from the new records. NULL: out of memory
};

// Records image, version 1.0 and its build (CREATING, PENDING), fills the records, and queues the build. -EEXIST (named ValidationException):
// the name is taken. [worker]
int image_create(struct engine *en, const struct image_request *r, struct store_image *ret, struct store_version *ret_version,
		 struct error *e);
// Records a further version of the image and its build (UPDATING, PENDING), and queues the build. ConflictException when the image is not at
// rest. [worker]
int image_update(struct engine *en, const struct store_image *image, const struct image_request *r, struct store_image *ret,
		 struct store_version *ret_version, struct error *e);

// Makes a version ACTIVE (which it can be when its build was successful) or INACTIVE: then nothing is launched from it. [worker]
int image_set_status(struct engine *en, const struct store_image *image, const char *version, bool active, struct error *e);

// Mark DELETING, and then remove files and records behind the caller's back; 0 also when somebody has begun already. Refused while another
// change of the image is under way (an image: ValidationException, a version: ConflictException), with living microVMs, and for the last
// version of an image (ValidationException). [worker]
int image_delete(struct engine *en, const struct store_image *image, struct error *e);
int image_delete_version(struct engine *en, const struct store_image *image, const char *version, struct error *e);

// The base images that Stasis provides, for ListManagedMicrovmImages and for FROM: name ("debian", "python"), version.
struct base_image {
	const char *name;
	const char *version;
	int64_t created_ms;
};
size_t base_images(struct engine *en, const struct base_image **ret);
