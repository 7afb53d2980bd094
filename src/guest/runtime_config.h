// The OCI runtime configuration (runtime-spec 1.0.2, config.md) that crun is given for the application.
#pragma once

#include "guest/image_config.h"
#include "guest/users.h"

#include <stdbool.h>
#include <stdint.h>

#define RUNTIME_CGROUP "/app"

struct runtime_options {
	const struct image_config *image;
	const struct user *user;
	const json_t *env; // object of strings that win over the image's, or NULL
	bool all_capabilities;
	uint64_t available_capabilities; // a bit per capability that the kernel and our own rights allow
	const char *hostname;
	const char *root;  // folder with the application's root file system
	const char *files; // folder with the resolv.conf, hosts and hostname to be bound into /etc
	uint64_t shm_bytes;
	uint64_t open_files; // RLIMIT_NOFILE, soft and hard
};

// Returns a new reference, or NULL with *e set.
json_t *runtime_config(const struct runtime_options *o, struct error *e);

// The value of an environment variable in such a configuration; borrowed, NULL: there is none.
const char *runtime_variable(const json_t *config, const char *name);

// A bit per capability that an array of names ("CAP_CHOWN") has.
uint64_t runtime_capability_bits(const json_t *names);
