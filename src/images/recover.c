// After a restart: builds that a crash cut off fail, deletions are finished, and files that no record names go.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/log.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct found {
	struct store_image *list;
	size_t count, room;
};

static int collect_image(const struct store_image *image, void *arg) {
	struct found *f = arg;
	if (f->count == f->room) {
		size_t room = f->room == 0 ? 64 : f->room * 2;
		struct store_image *more = realloc(f->list, room * sizeof(*more));
		if (more == NULL)
			return -ENOMEM;
		f->list = more;
		f->room = room;
	}
	f->list[f->count] = *image;
	f->list[f->count].tags = strdup(image->tags == NULL ? "{}" : image->tags);
	return f->list[f->count++].tags == NULL ? -ENOMEM : 0;
}

struct interrupted {
	struct store_version version;
	struct store_build build;
	bool found_version, found_build;
};

static bool is_unfinished(const char *state) {
	return strcmp(state, "PENDING") == 0 || strcmp(state, "IN_PROGRESS") == 0;
}

static int find_version(const struct store_version *v, void *arg) {
	struct interrupted *x = arg;
	if (!is_unfinished(v->state) && strcmp(v->state, "DELETING") != 0)
		return 0;
	x->version = *v;
	x->version.config = NULL;
	x->found_version = true;
	return 1;
}

static int find_build(const struct store_build *b, void *arg) {
	struct interrupted *x = arg;
	if (!is_unfinished(b->state))
		return 0;
	x->build = *b;
	x->found_build = true;
	return 1;
}

// An image that is CREATING or UPDATING has one version that is being built or deleted: the first fails, the second is finished.
static void finish_interrupted(struct engine *en, struct store_image *image) {
	struct interrupted x = {.found_version = false};
	struct error e;
	char next[STORE_CURSOR_MAX];
	int r = store_list_versions(en->store, image->uuid, NULL, SIZE_MAX, find_version, &x, next, &e);
	if (r >= 0 && x.found_version && strcmp(x.version.state, "DELETING") == 0) {
		image_remove_version(en, image->uuid, x.version.version);
		return;
	}
	if (r >= 0 && x.found_version)
		r = store_list_builds(en->store, image->uuid, x.version.version, NULL, SIZE_MAX, find_build, &x, next, &e);
	if (r >= 0 && x.found_version && x.found_build)
		r = build_record_failure(en, image, &x.version, &x.build,
					 "INTERNAL_PLATFORM_ERROR: The engine stopped while the image was being built. Build it again.",
					 &e);
	if (r < 0)
		log_error("build.interrupted", LOG_S("image", image->arn), LOG_S("message", e.message));
	else
		log_info("build.interrupted", LOG_S("image", image->arn), LOG_S("version", x.version.version));
}

// Folders of images that no record names.
static void remove_leftovers(struct engine *en, const struct found *known) {
	char path[IMAGE_PATH + 300];
	snprintf(path, sizeof(path), "%.300s/images", en->config.state_folder);
	cleanup_dir DIR *dir = opendir(path);
	for (const struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
		bool wanted = d->d_name[0] == '.';
		for (size_t i = 0; i < known->count && !wanted; i++)
			wanted = strcmp(known->list[i].uuid, d->d_name) == 0;
		if (wanted)
			continue;
		snprintf(path, sizeof(path), "%.300s/images/%.255s", en->config.state_folder, d->d_name);
		log_info("image.leftover", LOG_S("removed", path));
		remove_tree(path, NULL);
	}
}

// Folders of versions that no record names: their removal had not reached the disk.
static void remove_version_leftovers(struct engine *en, const char *uuid) {
	char path[IMAGE_PATH + 300];
	snprintf(path, sizeof(path), "%.300s/images/%.36s", en->config.state_folder, uuid);
	cleanup_dir DIR *dir = opendir(path);
	for (const struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
		struct store_version v;
		int r = d->d_name[0] == '.' ? 0 : store_get_version(en->store, uuid, d->d_name, &v, NULL);
		if (r == 0 && d->d_name[0] != '.')
			store_version_clear(&v);
		if (r != -ENOENT)
			continue;
		snprintf(path, sizeof(path), "%.300s/images/%.36s/%.255s", en->config.state_folder, uuid, d->d_name);
		log_info("image.leftover", LOG_S("removed", path));
		remove_tree(path, NULL);
	}
}

int images_recover(struct engine *en, struct error *e) {
	struct found found = {0};
	char cursor[STORE_CURSOR_MAX] = "", next[STORE_CURSOR_MAX] = "";
	int r;
	do {
		r = store_list_images(en->store, NULL, cursor, 100, collect_image, &found, next, e);
		memcpy(cursor, next, sizeof(cursor));
	} while (r >= 0 && cursor[0] != '\0');
	if (r >= 0)
		remove_leftovers(en, &found);
	for (size_t i = 0; i < found.count; i++) {
		struct store_image *image = &found.list[i];
		if (r >= 0)
			remove_version_leftovers(en, image->uuid);
		if (r >= 0 && strcmp(image->state, "DELETING") == 0)
			image_remove(en, image->uuid);
		else if (r >= 0 && (strcmp(image->state, "CREATING") == 0 || strcmp(image->state, "UPDATING") == 0))
			finish_interrupted(en, image);
		store_image_clear(image);
	}
	free(found.list);
	return r < 0 ? r : 0;
}
