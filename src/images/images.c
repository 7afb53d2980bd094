// Images: start, create, delete, and the base images; see images.h.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANIFEST_MAX (4 << 20)
#define FIRST_VERSION "1.0"

// The assets' manifest. ---------------------------------------------------------------------------------------------------------

// The hash of an asset's file; NULL when the manifest has none.
static const char *asset_hash(const json_t *manifest, const char *asset) {
	return json_string_value(json_object_get(json_object_get(json_object_get(manifest, "assets"), asset), "sha256"));
}

static int read_bases(struct images *im, const json_t *manifest) {
	const json_t *list = json_object_get(manifest, "baseImages");
	size_t n = json_array_size(list);
	im->bases = calloc(n + 1, sizeof(*im->bases));
	if (im->bases == NULL)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++) {
		const json_t *base = json_array_get(list, i);
		const char *name = json_string_value(json_object_get(base, "name"));
		const char *version = json_string_value(json_object_get(base, "version"));
		char *own_name = name == NULL ? NULL : strdup(name), *own_version = version == NULL ? NULL : strdup(version);
		if (own_name == NULL || own_version == NULL) {
			free(own_name);
			free(own_version);
			continue;
		}
		im->bases[im->base_count++] = (struct base_image){
			.name = own_name, .version = own_version, .created_ms = json_integer_value(json_object_get(base, "createdMs"))};
	}
	return 0;
}

static int copy_file(const char *from, const char *to, struct error *e) {
	cleanup_close int in = open(from, O_RDONLY | O_CLOEXEC);
	if (in < 0)
		return error_errno(e, "cannot open %s", from);
	cleanup_close int out = open(to, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0640);
	if (out < 0)
		return error_errno(e, "cannot create %s", to);
	size_t size = 1 << 20;
	cleanup_free char *buffer = malloc(size);
	if (buffer == NULL)
		return error_set(e, -ENOMEM, "out of memory copying %s", from);
	for (ssize_t n; (n = read(in, buffer, size)) != 0;) {
		if (n < 0)
			return error_errno(e, "cannot read %s", from);
		int r = write_full(out, buffer, (size_t)n);
		if (r < 0)
			return error_set(e, r, "cannot write %s: %s", to, strerror(-r));
	}
	return fsync(out) < 0 ? error_errno(e, "cannot write %s", to) : 0;
}

// A snapshot belongs to the very system disk that its guest had, so assets that change must not change it: each image holds a link to the copy
// that it was made with, and a copy goes when nobody links to it any more.
static int keep_system_disk(struct engine *en, const char *hash, struct error *e) {
	struct images *im = en->images;
	char folder[IMAGE_PATH], from[IMAGE_PATH], new[IMAGE_PATH + 8];
	snprintf(folder, sizeof(folder), "%.300s/system", en->config.state_folder);
	snprintf(im->system_disk, sizeof(im->system_disk), "%.310s/%.64s.ext4", folder, hash);
	snprintf(from, sizeof(from), "%.300s/system.ext4", en->config.assets_folder);
	snprintf(new, sizeof(new), "%s.new", im->system_disk);
	int r = make_folders(folder, 0750, e);
	if (r < 0)
		return r;
	cleanup_dir DIR *dir = opendir(folder);
	for (const struct dirent *d; dir != NULL && (d = readdir(dir)) != NULL;) {
		struct stat st;
		char path[IMAGE_PATH + 300];
		snprintf(path, sizeof(path), "%s/%s", folder, d->d_name);
		if (strcmp(path, im->system_disk) != 0 && stat(path, &st) == 0 && S_ISREG(st.st_mode) && st.st_nlink == 1)
			unlink(path);
	}
	if (access(im->system_disk, R_OK) == 0)
		return 0;
	r = copy_file(from, new, e);
	if (r < 0)
		return r;
	if (rename(new, im->system_disk) < 0)
		return error_errno(e, "cannot rename %s", new);
	return sync_folder(folder, e);
}

static int read_manifest(struct engine *en, struct error *e) {
	struct images *im = en->images;
	char path[IMAGE_PATH];
	cleanup_free char *text = NULL;
	snprintf(path, sizeof(path), "%.300s/assets.json", en->config.assets_folder);
	size_t size = 0;
	int r = read_file(path, MANIFEST_MAX, &text, &size, e);
	if (r < 0)
		return error_wrap(e, r, "the assets are missing (make assets, or set assetsFolder)");
	json_error_t parse;
	json_t *manifest = json_loadb(text, size, 0, &parse);
	if (!json_is_object(manifest)) {
		json_decref(manifest);
		return error_set(e, -EBADMSG, "%s, line %d: %s", path, parse.line, parse.text);
	}
	static const char *const needed[] = {"kernel", "guest.initrd", "system", "builder", "bases"};
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]) && r == 0; i++)
		if (asset_hash(manifest, needed[i]) == NULL)
			r = error_set(e, -ENOENT, "%s does not name the asset \"%s\": make the assets again (make assets)", path,
				      needed[i]);
	if (r == 0)
		r = read_bases(im, manifest);
	if (r == 0) {
		snprintf(im->builder_key, sizeof(im->builder_key),
			 "stasis %.31s kernel %.64s initrd %.64s builder %.64s bases %.64s memory %lld vcpus %d artifact %lld disk %lld\n",
			 en->version, asset_hash(manifest, "kernel"), asset_hash(manifest, "guest.initrd"), asset_hash(manifest, "builder"),
			 asset_hash(manifest, "bases"), (long long)en->config.builder_memory_mib, en->config.builder_vcpus,
			 (long long)en->config.artifact_limit, (long long)en->config.image_disk_limit);
		r = keep_system_disk(en, asset_hash(manifest, "system"), e);
	}
	json_decref(manifest);
	return r;
}

size_t base_images(struct engine *en, const struct base_image **ret) {
	*ret = en->images == NULL ? NULL : en->images->bases;
	return en->images == NULL ? 0 : en->images->base_count;
}

// What a crash left behind. -----------------------------------------------------------------------------------------------------

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
	struct engine *en;
	struct store_image *image;
	struct store_version version;
	struct store_build build;
	bool found_version, found_build;
};

static bool is_unfinished(const char *state) {
	return strcmp(state, "PENDING") == 0 || strcmp(state, "IN_PROGRESS") == 0;
}

static int find_version(const struct store_version *v, void *arg) {
	struct interrupted *x = arg;
	if (x->found_version || !is_unfinished(v->state))
		return 0;
	x->version = *v;
	x->version.config = strdup(v->config);
	x->found_version = true;
	return 1;
}

static int find_build(const struct store_build *b, void *arg) {
	struct interrupted *x = arg;
	if (x->found_build || !is_unfinished(b->state))
		return 0;
	x->build = *b;
	x->found_build = true;
	return 1;
}

static void fail_interrupted(struct engine *en, struct store_image *image) {
	struct interrupted x = {.en = en, .image = image};
	struct error e;
	char next[STORE_CURSOR_MAX];
	int r = store_list_versions(en->store, image->uuid, NULL, 50, find_version, &x, next, &e);
	if (r >= 0 && x.found_version)
		r = store_list_builds(en->store, image->uuid, x.version.version, NULL, 50, find_build, &x, next, &e);
	if (r >= 0 && x.found_version && x.found_build)
		r = build_record_failure(en, image, &x.version, &x.build,
					 "INTERNAL_PLATFORM_ERROR: The engine stopped while the image was being built. Build it again.",
					 &e);
	if (r < 0)
		log_error("build.interrupted", LOG_S("image", image->arn), LOG_S("message", e.message));
	else
		log_info("build.interrupted", LOG_S("image", image->arn), LOG_S("version", x.version.version));
	store_version_clear(&x.version);
}

static void remove_image(struct engine *en, const char *uuid) {
	char folder[IMAGE_PATH];
	struct error e;
	snprintf(folder, sizeof(folder), "%.300s/images/%.36s", en->config.state_folder, uuid);
	int r = remove_tree(folder, &e);
	if (r == 0)
		r = store_delete_image(en->store, uuid, &e);
	if (r < 0)
		log_error("image.delete", LOG_S("image", uuid), LOG_S("message", e.message));
	else
		log_info("image.deleted", LOG_S("image", uuid));
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

static int clean_up(struct engine *en, struct error *e) {
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
		if (r >= 0 && strcmp(image->state, "DELETING") == 0)
			remove_image(en, image->uuid);
		else if (r >= 0 && (strcmp(image->state, "CREATING") == 0 || strcmp(image->state, "UPDATING") == 0))
			fail_interrupted(en, image);
		store_image_clear(image);
	}
	free(found.list);
	return r < 0 ? r : 0;
}

static void prepare_builder(void *arg) {
	struct error e;
	builder_prepare(arg, &e); // says itself when it fails; the next build tries again
}

int images_start(struct engine *en, struct error *e) {
	struct images *im = calloc(1, sizeof(*im));
	if (im == NULL)
		return error_set(e, -ENOMEM, "out of memory starting the images");
	im->en = en;
	im->last = &im->first;
	pthread_mutex_init(&im->lock, NULL);
	pthread_mutex_init(&im->builder_lock, NULL);
	en->images = im;
	char folder[IMAGE_PATH];
	snprintf(folder, sizeof(folder), "%.300s/images", en->config.state_folder);
	int r = make_folders(folder, 0750, e);
	if (r == 0)
		r = clean_up(en, e);
	if (r == 0)
		r = read_manifest(en, e);
	return r == 0 ? worker_submit(prepare_builder, en) : r;
}

// Create and delete. ------------------------------------------------------------------------------------------------------------

static struct build *build_new(struct engine *en, const char *account, const char *name, const char *config_json, const char *tags_json) {
	struct build *b = calloc(1, sizeof(*b));
	if (b == NULL)
		return NULL;
	int64_t now = (int64_t)realtime_ms();
	b->en = en;
	b->log.fd = -1;
	b->slot = SLOT_NONE;
	uuid_new(b->image.uuid);
	snprintf(b->image.account, sizeof(b->image.account), "%s", account);
	snprintf(b->image.name, sizeof(b->image.name), "%s", name);
	snprintf(b->image.arn, sizeof(b->image.arn), "arn:aws:lambda:%s:%s:microvm-image:%s", en->config.region, account, name);
	snprintf(b->image.state, sizeof(b->image.state), "CREATING");
	b->image.created_ms = b->image.updated_ms = b->version.created_ms = b->version.updated_ms = b->record.created_ms = now;
	b->image.tags = strdup(tags_json == NULL ? "{}" : tags_json);
	memcpy(b->version.image_uuid, b->image.uuid, UUID_TEXT);
	snprintf(b->version.version, sizeof(b->version.version), FIRST_VERSION);
	snprintf(b->version.state, sizeof(b->version.state), "PENDING");
	snprintf(b->version.status, sizeof(b->version.status), "INACTIVE");
	b->version.config = strdup(config_json);
	uuid_new(b->record.build_id);
	memcpy(b->record.image_uuid, b->image.uuid, UUID_TEXT);
	memcpy(b->record.version, b->version.version, sizeof(b->record.version));
	snprintf(b->record.state, sizeof(b->record.state), "PENDING");
	snprintf(b->record.architecture, sizeof(b->record.architecture), "X86_64");
	b->record.memory_bytes = b->record.code_bytes = b->record.disk_bytes = -1;
	b->config = json_loads(config_json, 0, NULL);
	version_folder(en, b->image.uuid, b->version.version, b->folder);
	if (b->image.tags == NULL || b->version.config == NULL || b->config == NULL) {
		build_free(b);
		return NULL;
	}
	return b;
}

int image_create(struct engine *en, const char *account, const char *name, const char *config_json, const char *tags_json,
		 struct store_image *ret, struct store_version *ret_version, struct error *e) {
	struct build *b = build_new(en, account, name, config_json, tags_json);
	if (b == NULL)
		return error_set(e, -ENOMEM, "out of memory creating an image");
	struct image_settings settings;
	int r = image_settings_read(config_json, en->config.default_timeout_scale, &settings, e);
	if (r < 0) {
		build_free(b);
		if (e != NULL)
			snprintf(e->name, sizeof(e->name), "ValidationException");
		return r;
	}
	*ret = b->image;
	*ret_version = b->version;
	ret->tags = strdup(b->image.tags);
	ret_version->config = strdup(config_json);
	r = ret->tags == NULL || ret_version->config == NULL ? error_set(e, -ENOMEM, "out of memory creating an image")
							     : store_add_image(en->store, &b->image, &b->version, &b->record, e);
	if (r == -EEXIST)
		error_named(e, r, "ValidationException", "A MicroVM image with the name '%s' already exists in this account", name);
	if (r == 0)
		r = build_queue(en, b, e);
	if (r < 0) {
		store_image_clear(ret);
		store_version_clear(ret_version);
		build_free(b);
	}
	return r;
}

static int count_one(const struct store_microvm *m, void *arg) {
	*(bool *)arg = true;
	return 1;
}

struct delete_job {
	struct engine *en;
	char uuid[UUID_TEXT];
};

static void run_delete(void *arg) {
	cleanup_free struct delete_job *job = arg;
	remove_image(job->en, job->uuid);
}

int image_delete(struct engine *en, const char *arn, struct error *e) {
	struct store_image image = {0};
	int r = store_get_image_by_arn(en->store, arn, &image, e);
	if (r == -ENOENT)
		return error_named(e, r, "ResourceNotFoundException", "MicroVMImage not found for MicroVMImageID: %s", arn);
	if (r < 0)
		return r;
	bool living = false;
	char next[STORE_CURSOR_MAX];
	const struct store_microvm_filter filter = {.image_arn = arn, .living = true};
	struct delete_job *job = malloc(sizeof(*job));
	if (strcmp(image.state, "DELETING") == 0) {
		r = 1; // somebody does it already
	} else if (strcmp(image.state, "CREATING") == 0 || strcmp(image.state, "UPDATING") == 0) {
		r = error_named(e, -EBUSY, "ValidationException", "Cannot delete MicroVM image in its current state: %s", arn);
	} else {
		r = store_list_microvms(en->store, &filter, NULL, 1, count_one, &living, next, e);
		if (living)
			r = error_named(e, -EBUSY, "ValidationException", "Cannot delete microvm image with running microvms.");
	}
	if (r >= 0 && job == NULL)
		r = error_set(e, -ENOMEM, "out of memory deleting an image");
	if (r == 0) {
		snprintf(image.state, sizeof(image.state), "DELETING");
		image.updated_ms = (int64_t)realtime_ms();
		r = store_update_image(en->store, &image, e);
	}
	if (r == 0) {
		*job = (struct delete_job){.en = en};
		memcpy(job->uuid, image.uuid, sizeof(job->uuid));
		if (worker_submit(run_delete, job) < 0)
			run_delete(job);
		job = NULL;
	}
	free(job);
	store_image_clear(&image);
	return r < 0 ? r : 0;
}
