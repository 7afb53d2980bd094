// The assets that set-up made: their manifest, the base images that it names, and this engine's copy of the system disk.
#include "images/build.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MANIFEST_MAX (4 << 20)

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

int images_read_assets(struct engine *en, struct error *e) {
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
