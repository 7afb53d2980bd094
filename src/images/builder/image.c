// Reading containers/storage: overlay-images/images.json names an image's top layer, overlay-layers/layers.json every layer's parent,
// overlay/<layer>/diff holds the files, overlay-images/<image>/=<base64 of the blob's name> the configuration. Reading these files, rather
// than asking buildah, saves starting it twice: half a second each on an emulated processor.

#include "images/builder/image.h"

#include "base/base64.h"
#include "base/cleanup.h"
#include "base/io.h"

#include <errno.h>
#include <jansson.h>
#include <string.h>

#define STORE_JSON_MAX (64u << 20)
#define CONFIG_MAX (4u << 20)

static void cleanup_json_fn(json_t **j) {
	json_decref(*j);
}
#define cleanup_json __attribute__((cleanup(cleanup_json_fn)))

// A list that is not there is an empty one: a Dockerfile of FROM alone leaves buildah's own store empty.
static json_t *load(const char *store, const char *name, struct error *e) {
	char path[PATH_MAX];
	cleanup_free char *text = NULL;
	size_t size;
	snprintf(path, sizeof(path), "%s/%s", store, name);
	int r = read_file(path, STORE_JSON_MAX, &text, &size, e);
	if (r < 0)
		return r == -ENOENT ? json_array() : NULL;
	json_error_t why;
	json_t *j = json_loadb(text, size, 0, &why);
	if (j == NULL || !json_is_array(j)) {
		error_set(e, -EBADMSG, "buildah's store is damaged: %s is not a JSON list: %s", path, why.text);
		json_decref(j);
		return NULL;
	}
	return j;
}

static const char *text_of(const json_t *object, const char *key) {
	const char *s = json_string_value(json_object_get(object, key));
	return s != NULL ? s : "";
}

static const json_t *with_id(const json_t *list, const char *id) {
	for (size_t i = 0; i < json_array_size(list); i++)
		if (strcmp(text_of(json_array_get(list, i), "id"), id) == 0)
			return json_array_get(list, i);
	return NULL;
}

static int read_config(const char *store, const char *id, struct image *ret, struct error *e) {
	char digest[IMAGE_ID_MAX + 8], name[BASE64_ROOM(sizeof(digest))], path[PATH_MAX];
	snprintf(digest, sizeof(digest), "sha256:%s", id);
	base64_encode(name, digest, strlen(digest));
	snprintf(path, sizeof(path), "%s/overlay-images/%s/=%s", store, id, name);
	return read_file(path, CONFIG_MAX, &ret->config, &ret->config_size, e);
}

int image_read(const char *store, const char *bases, const char *id, struct image *ret, struct error *e) {
	*ret = (struct image){0};
	if (strlen(id) != 64 || strspn(id, "0123456789abcdef") != 64)
		return error_set(e, -EBADMSG, "buildah named the image strangely: '%.80s'", id);
	cleanup_json json_t *images = load(store, "overlay-images/images.json", e);
	cleanup_json json_t *own = images != NULL ? load(store, "overlay-layers/layers.json", e) : NULL;
	cleanup_json json_t *base = own != NULL ? load(bases, "overlay-layers/layers.json", e) : NULL;
	cleanup_json json_t *base_images = base != NULL ? load(bases, "overlay-images/images.json", e) : NULL;
	if (base_images == NULL)
		return -EBADMSG;
	const json_t *image = with_id(images, id);
	const char *home = image != NULL ? store : bases;
	if (image == NULL)
		image = with_id(base_images, id);
	if (image == NULL)
		return error_set(e, -ENOENT, "the image %.12s is not in buildah's store", id);

	struct image_layer chain[IMAGE_LAYERS_MAX];
	size_t n = 0;
	const char *layer = text_of(image, "layer");
	while (layer[0] != 0) {
		const json_t *record = with_id(own, layer);
		const char *where = store;
		if (record == NULL) {
			record = with_id(base, layer);
			where = bases;
		}
		if (record == NULL || strlen(layer) >= IMAGE_ID_MAX || strchr(layer, '/') != NULL)
			return error_set(e, -ENOENT, "layer %.12s of the image is not in buildah's store", layer);
		if (n == IMAGE_LAYERS_MAX)
			return error_named(e, -E2BIG, "CONTAINER_BUILD_FAILED", "The image has more than %d layers.", IMAGE_LAYERS_MAX);
		snprintf(chain[n].id, sizeof(chain[n].id), "%s", layer);
		snprintf(chain[n].diff, sizeof(chain[n].diff), "%s/overlay/%s/diff", where, layer);
		n++;
		layer = text_of(record, "parent");
	}
	for (size_t i = 0; i < n; i++)
		ret->layers[i] = chain[n - 1 - i];
	ret->layer_count = n;
	return read_config(home, id, ret, e);
}

int image_check_config(const char *config, size_t size, struct error *e) {
	json_error_t why;
	cleanup_json json_t *document = json_loadb(config, size, 0, &why);
	const json_t *c = json_object_get(document, "config");
	if (document == NULL)
		return error_set(e, -EBADMSG, "buildah wrote an image configuration that is not JSON: %s", why.text);
	if (json_array_size(json_object_get(c, "Entrypoint")) == 0 && json_array_size(json_object_get(c, "Cmd")) == 0)
		return error_named(
			e, -ENOEXEC, "CONTAINER_BUILD_FAILED",
			"The image says neither ENTRYPOINT nor CMD, so that there is nothing to start; add one of them to the Dockerfile.");
	return 0;
}
