// What an image version's configuration (the members of the create request) says to those who build and run it.
#pragma once

#include "base/error.h"
#include "launch/launch.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum image_hook { HOOK_READY, HOOK_VALIDATE, HOOK_RUN, HOOK_RESUME, HOOK_SUSPEND, HOOK_TERMINATE, HOOKS };

struct hook_settings {
	bool enabled;
	int timeout_ms; // the default, scaled, when the image sets none
};

struct image_settings {
	uint32_t minimum_mib; // as asked for: 512, 1024, 2048, 4096, 8192
	uint32_t memory_mib;  // that the guest sees: four times that (spec section 4.1)
	uint32_t vcpus;
	int hook_port;
	struct hook_settings hooks[HOOKS];
	bool all_capabilities;
	struct egress egress;
};

extern const char *const image_hook_names[HOOKS]; // "ready", "validate", …

// `scale` multiplies the hook time-outs that the image does not set. Absent members have the service's defaults.
int image_settings_read(const char *config_json, double scale, struct image_settings *ret, struct error *e);
