// ListManagedMicrovmImages, ListManagedMicrovmImageVersions: the base images that Stasis provides, and the service's own name for the default
// one. There is one version of each, the newest: what an image was built from lies in its snapshot.
#include "api/call.h"
#include "images/images.h"

#include <string.h>

static void add(struct call *c, json_t *items, const char *name, int64_t created_ms) {
	char arn[ARN_MAX];
	managed_image_arn(c->en, name, arn);
	json_array_append_new(items, json_pack("{s:s, s:o, s:o}", "imageArn", arn, "createdAt", json_time(created_ms), "updatedAt",
					       json_time(created_ms)));
}

void list_managed_images(struct call *c) {
	struct call_page page;
	const struct base_image *list = NULL;
	if (!call_page(c, &page))
		return;
	json_t *items = json_array();
	size_t n = base_images(c->en, &list), first = (size_t)strtoul(page.after, NULL, 10);
	char next[STORE_CURSOR_MAX] = "";
	// Entry n is the alias.
	for (size_t i = first; i <= n; i++) {
		if (json_array_size(items) == page.limit) {
			snprintf(next, sizeof(next), "%zu", i);
			break;
		}
		if (i < n)
			add(c, items, list[i].name, list[i].created_ms);
		for (size_t k = 0; i == n && k < n; k++)
			if (strcmp(list[k].name, c->en->config.default_base) == 0)
				add(c, items, "al2023-1", list[k].created_ms);
	}
	call_answer_page(c, items, next);
}

void list_managed_versions(struct call *c) {
	struct call_page page;
	char arn[ARN_MAX];
	const char *resource = arn_resource(c->labels[0]);
	if (resource == NULL || strncmp(resource, "microvm-image:", 14) != 0) {
		call_fail(c, 400, "ValidationException", "Invalid ARN format: %.256s", c->labels[0]);
		return;
	}
	const struct base_image *base = find_base_image(c->en, c->labels[0], arn);
	if (base == NULL) {
		call_not_found(c, "MicroVMImage not found for MicroVMImageID: %.256s", c->labels[0]);
		return;
	}
	if (!call_page(c, &page))
		return;
	json_t *items = json_pack("[{s:s, s:s, s:o, s:s, s:o}]", "imageArn", arn, "imageVersion", base->version, "createdAt",
				  json_time(base->created_ms), "status", "AVAILABLE", "updatedAt", json_time(base->created_ms));
	call_answer_page(c, items, "");
}
