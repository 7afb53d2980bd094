// The image that buildah built, as it lies in its store (containers/storage, overlay driver).
#pragma once

#include "base/error.h"

#include <limits.h>
#include <stddef.h>

#define IMAGE_LAYERS_MAX 200
#define IMAGE_ID_MAX 80

struct image_layer {
	char id[IMAGE_ID_MAX];
	char diff[PATH_MAX / 4]; // folder with the layer's files
};

struct image {
	struct image_layer layers[IMAGE_LAYERS_MAX]; // lowest first
	size_t layer_count;
	char *config; // the OCI image configuration (a JSON document)
	size_t config_size;
};

// Reads the image with that ID from `store`, whose layers may lie in `bases` (a read-only additional store). The caller frees ret->config.
int image_read(const char *store, const char *bases, const char *id, struct image *ret, struct error *e);

// Whether the configuration says what to start: -ENOEXEC, named CONTAINER_BUILD_FAILED, when there is neither ENTRYPOINT nor CMD.
int image_check_config(const char *config, size_t size, struct error *e);
