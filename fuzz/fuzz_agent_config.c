// What an image brings: USER, passwd, group and the OCI configuration, up to the runtime configuration for crun. The input holds the four, separated by
// NUL: user, passwd, group, configuration.
#include "guest/runtime_config.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

struct piece {
	const char *data;
	size_t size;
};

static struct piece next_piece(const char **at, size_t *left) {
	const char *end = *left > 0 ? memchr(*at, '\0', *left) : NULL;
	struct piece p = {*at, end != NULL ? (size_t)(end - *at) : *left};
	size_t taken = p.size + (end != NULL);
	*at += taken;
	*left -= taken;
	return p;
}

static void configure(const struct image_config *image, const struct user *user, bool all) {
	struct error e = {0};
	json_t *c = runtime_config(&(struct runtime_options){.image = image,
							     .user = user,
							     .all_capabilities = all,
							     .available_capabilities = ~0ull,
							     .hostname = "h",
							     .root = "/r",
							     .files = "/f",
							     .shm_bytes = 4096,
							     .open_files = 1024},
				   &e);
	if (c == NULL)
		abort();
	char *text = json_dumps(c, 0);
	if (text == NULL)
		abort();
	free(text);
	json_decref(c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	const char *at = (const char *)data;
	struct piece spec = next_piece(&at, &size), passwd = next_piece(&at, &size), group = next_piece(&at, &size);
	struct image_config image;
	struct error e = {0};
	struct user user;
	char text[257];

	if (spec.size >= sizeof(text))
		return 0;
	memcpy(text, spec.data, spec.size);
	text[spec.size] = '\0';
	int r = user_resolve(text, passwd.data, passwd.size, group.data, group.size, &user, &e);
	if (r == 0 && (user.uid > 2147483647 || user.gid > 2147483647 || user.group_count > USER_GROUPS_MAX || user.home[0] != '/'))
		abort();
	int parsed = image_config_parse(at, size, &image, &e);
	if (parsed == 0 && json_array_size(image.args) == 0)
		abort();
	if (r == 0 && parsed == 0) {
		configure(&image, &user, false);
		configure(&image, &user, true);
	}
	image_config_free(&image);
	return 0;
}
