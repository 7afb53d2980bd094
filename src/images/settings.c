// Reading an image version's configuration; see settings.h.
#include "images/settings.h"

#include "base/json.h"
#include "images/connectors.h"

#include <stdio.h>
#include <string.h>

#define CONFIG_LIMIT (1024 * 1024)

const char *const image_hook_names[HOOKS] = {"ready", "validate", "run", "resume", "suspend", "terminate"};

static const struct {
	uint32_t minimum_mib, vcpus, memory_mib;
} sizes[] = {{512, 1, 2048}, {1024, 2, 4096}, {2048, 4, 8192}, {4096, 8, 16384}, {8192, 16, 32768}}; // spec section 4.1
#define SIZES (sizeof(sizes) / sizeof(sizes[0]))
#define DEFAULT_SIZE 2 // 2048 MiB

// Seconds (spec section 4.3): hooks at build time 30, hooks at run time 1.
#define BUILD_HOOK_SECONDS 30
#define RUN_HOOK_SECONDS 1

static int read_size(const json_t *config, struct image_settings *s, struct error *e) {
	const json_t *first = json_array_get(json_object_get(config, "resources"), 0);
	int64_t mib = sizes[DEFAULT_SIZE].minimum_mib;
	int r = first == NULL ? 0 : member_integer(first, "minimumMemoryInMiB", MEMBER_OPTIONAL, 1, 1 << 20, &mib, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < SIZES; i++) {
		if (sizes[i].minimum_mib == mib) {
			s->minimum_mib = sizes[i].minimum_mib;
			s->memory_mib = sizes[i].memory_mib;
			s->vcpus = sizes[i].vcpus;
			return 0;
		}
	}
	return error_set(e, -EINVAL, "the image asks for %lld MiB of memory; 512, 1024, 2048, 4096 and 8192 are supported", (long long)mib);
}

static int read_hooks(const json_t *config, double scale, struct image_settings *s, struct error *e) {
	const json_t *hooks = json_object_get(config, "hooks");
	int64_t port = 0;
	int r = json_is_object(hooks) ? member_integer(hooks, "port", MEMBER_OPTIONAL, 1, 65535, &port, e) : 0;
	if (r < 0)
		return r;
	s->hook_port = (int)port;
	for (int i = 0; i < HOOKS; i++) {
		bool build = i == HOOK_READY || i == HOOK_VALIDATE;
		const json_t *group = json_object_get(hooks, build ? "microvmImageHooks" : "microvmHooks");
		const char *value = json_string_value(json_object_get(group, image_hook_names[i]));
		s->hooks[i].enabled = value != NULL && strcmp(value, "ENABLED") == 0;
		char key[48];
		snprintf(key, sizeof(key), "%sTimeoutInSeconds", image_hook_names[i]);
		int64_t seconds = 0;
		r = json_is_object(group) ? member_integer(group, key, MEMBER_OPTIONAL, 1, build ? 3600 : 60, &seconds, e) : 0;
		if (r < 0)
			return r;
		double standard = (build ? BUILD_HOOK_SECONDS : RUN_HOOK_SECONDS) * scale;
		s->hooks[i].timeout_ms = seconds > 0 ? (int)seconds * 1000 : standard < 3600 ? (int)(standard * 1000) : 3600000;
		if (s->hooks[i].enabled && port == 0)
			return error_set(e, -EINVAL, "the image enables the %s hook but names no hooks.port", image_hook_names[i]);
	}
	return 0;
}

int image_settings_read(const char *config_json, double scale, struct image_settings *ret, struct error *e) {
	struct image_settings s = {0};
	cleanup_json json_t *config = json_parse_object(config_json, strlen(config_json), CONFIG_LIMIT, "the image's configuration", e);
	if (config == NULL)
		return -EINVAL;
	int r = read_size(config, &s, e);
	if (r == 0)
		r = read_hooks(config, scale, &s, e);
	if (r < 0)
		return r;
	const json_t *capabilities = json_object_get(config, "additionalOsCapabilities");
	for (size_t i = 0; i < json_array_size(capabilities); i++) {
		const char *name = json_string_value(json_array_get(capabilities, i));
		s.all_capabilities = s.all_capabilities || (name != NULL && strcmp(name, "ALL") == 0);
	}
	read_egress(config, &(struct egress){.base = LAUNCH_EGRESS_INTERNET}, &s.egress);
	*ret = s;
	return 0;
}
