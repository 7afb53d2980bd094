// The OCI image configuration that the build left on the image's disk at /.stasis/config.json
// (image-spec 1.0, config.md: {architecture, os, config: {Env, User, WorkingDir, Entrypoint, Cmd, …}}).
#pragma once

#include "base/json.h"

#define IMAGE_CONFIG_MAX (1u << 20) // bytes
#define IMAGE_CONFIG_PATH "/.stasis/config.json"

struct image_config {
	json_t *document;
	json_t *args;            // array of strings: Entrypoint and Cmd; never empty
	json_t *env;             // array of "NAME=value"
	const char *user;        // "" when not given
	const char *working_dir; // absolute; "/" when not given
};

// -EBADMSG/-EINVAL (named IMAGE_CONFIG_INVALID) when malformed, -ENOEXEC (named NO_COMMAND) without Entrypoint and Cmd. Release with
// image_config_free(), also after a failure.
int image_config_parse(const char *data, size_t size, struct image_config *ret, struct error *e);
void image_config_free(struct image_config *c);
