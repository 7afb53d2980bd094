// Inside src/store/ only: the artifact store's own state.
#pragma once

#include "store/artifacts.h"

#define ARTIFACT_PATH_MAX 512

struct artifacts {
	struct store *store;
	char folder[300];
	uint64_t limit;
};

// The path of a bucket's file, or of its folder when `file` is NULL.
void artifact_path(const struct artifacts *a, const char *bucket, const char *file, char to[ARTIFACT_PATH_MAX]);
