// The build program: runs in the builder microVM as /usr/lib/stasis/build, started by the guest agent for one build.
//
//     build REQUEST.json RESULT.json
//
// The request is the agent protocol's `build` operation (docs/agent-protocol.md), the result is its reply without `id`. What a
// user should see in the build's log goes to standard output. The exit status is 0 when the build succeeded and 1 when it did not; both
// write a result.
//
// How a build goes, on disks known by their serials (artifact, scratch, bases, output):
//
//   1. scratch becomes buildah's store and working space, bases its read-only additional store
//   2. the zip is checked and unpacked into scratch
//   3. buildah runs the Dockerfile, with the network of the builder, and commits one layer above the base image
//   4. output becomes the root file system. Where the image stands on one of our base images, that base's file system is copied block
//      by block from bases (a sequential copy of what is used), and only the layers above are merged file by file. Other images are merged
//      into a fresh file system.
//   5. the image's configuration goes to /.stasis/config.json, and the disk is flushed
//
// The builder is thrown away after one build, so nothing is cleaned up here but what makes the disks complete.

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "images/builder/archive.h"
#include "images/builder/disks.h"
#include "images/builder/image.h"
#include "images/builder/run.h"
#include "images/builder/tree.h"

#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <locale.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>

#define SCRATCH "/var/lib/containers"
#define STORE SCRATCH "/storage"
#define CONTEXT SCRATCH "/context"
#define IMAGE_ID_FILE SCRATCH "/image-id"
#define BASES "/var/lib/stasis/bases"
#define BASES_STORE BASES "/storage"
#define OUTPUT "/run/stasis-output"
#define REQUEST_MAX (1u << 20)
#define ALIASES_MAX 64
#define NAMESERVERS_MAX 8
#define STEPS 4
#define FULL "DISK_STORAGE_FULL"
#define FAILED "CONTAINER_BUILD_FAILED"

struct request {
	json_t *json;
	const char *dockerfile;
	uint64_t artifact_bytes;
	struct archive_limits limits;
	bool network;
};

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void say(const char *format, ...) {
	char line[1024];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	n = n < 0 ? 0 : n < (int)sizeof(line) - 1 ? n : (int)sizeof(line) - 2;
	line[n++] = '\n';
	write_full(1, line, (size_t)n);
}

static uint64_t step_began;

static void step_begins(int number, const char *what) {
	step_began = monotonic_ms();
	say("[stasis] step %d/%d: %s", number, STEPS, what);
}

static void step_ends(int number, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void step_ends(int number, const char *format, ...) {
	char what[512];
	va_list args;
	va_start(args, format);
	vsnprintf(what, sizeof(what), format, args);
	va_end(args);
	uint64_t ms = monotonic_ms() - step_began;
	say("[stasis] step %d/%d: %s in %" PRIu64 ".%02" PRIu64 " s", number, STEPS, what, ms / 1000, ms % 1000 / 10);
}

static uint64_t number_of(const json_t *o, const char *key, uint64_t otherwise) {
	const json_t *v = json_object_get(o, key);
	return json_is_integer(v) && json_integer_value(v) >= 0 ? (uint64_t)json_integer_value(v) : otherwise;
}

static int read_request(const char *path, struct request *ret, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size;
	int r = read_file(path, REQUEST_MAX, &text, &size, e);
	if (r < 0)
		return r;
	json_error_t why;
	ret->json = json_loadb(text, size, 0, &why);
	if (!json_is_object(ret->json))
		return error_set(e, -EBADMSG, "the build request is not a JSON object: %s", why.text);
	const char *dockerfile = json_string_value(json_object_get(ret->json, "dockerfile"));
	const char *format = json_string_value(json_object_get(ret->json, "outputFormat"));
	const json_t *network = json_object_get(ret->json, "network");
	ret->dockerfile = dockerfile != NULL ? dockerfile : "Dockerfile";
	ret->artifact_bytes = number_of(ret->json, "artifactBytes", 0);
	ret->limits.bytes = number_of(ret->json, "unpackedBytesMax", 4ull << 30);
	ret->limits.entries = number_of(ret->json, "entriesMax", 100000);
	ret->network = network == NULL || !json_is_false(network);
	if (format != NULL && strcmp(format, "ext4") != 0)
		return error_set(e, -EINVAL, "the output format '%s' is not known; 'ext4' is", format);
	if (!archive_name_is_safe(ret->dockerfile))
		return error_set(e, -EINVAL, "the Dockerfile's name '%s' is not a relative path below the archive", ret->dockerfile);
	return 0;
}

static int make_folder(const char *path, struct error *e) {
	return mkdir(path, 0755) < 0 && errno != EEXIST ? error_errno(e, "cannot create %s", path) : 0;
}

static int mount_disk(const char *device, const char *at, unsigned long flags, const char *options, struct error *e) {
	int r = make_folder(at, e);
	if (r == 0 && mount(device, at, "ext4", flags, options) < 0)
		r = error_errno(e, "cannot mount %s at %s", device, at);
	return r;
}

// The name servers that the request names, or those that the agent has set up already.
static int set_nameservers(const json_t *json, struct error *e) {
	const json_t *list = json_object_get(json, "nameservers");
	size_t count = json_array_size(list);
	if (count == 0)
		return 0;
	char text[NAMESERVERS_MAX * 80] = "";
	size_t n = 0;
	for (size_t i = 0; i < count && i < NAMESERVERS_MAX; i++) {
		const char *address = json_string_value(json_array_get(list, i));
		if (address == NULL || strlen(address) > 64 || strspn(address, "0123456789abcdefABCDEF.:%") != strlen(address))
			return error_set(e, -EINVAL, "the request's name server %zu is not an address", i);
		n += (size_t)snprintf(text + n, sizeof(text) - n, "nameserver %s\n", address);
	}
	cleanup_close int fd = open("/run/resolv.conf", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	int r = fd < 0 ? -errno : write_full(fd, text, n);
	return r < 0 ? error_set(e, r, "cannot write /run/resolv.conf: %s", strerror(-r)) : 0;
}

static int prepare(const struct request *q, struct error *e) {
	struct disk scratch, bases;
	int r = disk_find("scratch", &scratch, e);
	if (r == 0)
		r = disk_find("bases", &bases, e);
	if (r == 0)
		r = disk_format(&scratch, "scratch", (const char *const[]){"-O", "^has_journal", "-i", "8192", NULL}, e);
	if (r == 0)
		r = mount_disk(scratch.path, SCRATCH, MS_NOATIME, "noinit_itable,nobarrier,noauto_da_alloc", e);
	if (r == 0)
		r = mount_disk(bases.path, BASES, MS_RDONLY | MS_NOATIME, NULL, e);
	static const char *const folders[] = {STORE, CONTEXT, SCRATCH "/tmp", SCRATCH "/cache"};
	for (size_t i = 0; i < sizeof(folders) / sizeof(folders[0]) && r == 0; i++)
		r = make_folder(folders[i], e);
	return r < 0 ? r : set_nameservers(q->json, e);
}

static int unpack(const struct request *q, struct error *e) {
	struct disk artifact;
	int r = disk_find("artifact", &artifact, e);
	if (r < 0)
		return r;
	uint64_t size = q->artifact_bytes != 0 ? q->artifact_bytes : artifact.size;
	if (size > artifact.size)
		return error_set(e, -EINVAL, "the request says %" PRIu64 " bytes of artifact, but its disk has %" PRIu64, size,
				 artifact.size);
	cleanup_close int fd = open(artifact.path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, "cannot open the artifact's disk");
	struct archive_source source = {.fd = fd, .size = size};
	struct archive_summary sum;
	r = archive_check(&source, &q->limits, q->dockerfile, &sum, e);
	if (r < 0)
		return r;
	if (!sum.has_dockerfile && sum.elsewhere[0] != 0 && strchr(sum.elsewhere, '/') == NULL)
		return error_named(e, -ENOENT, "ARCHIVE_DOCKERFILE_NOT_FOUND",
				   "The artifact has no %s at its root, but has '%s'; rename it.", q->dockerfile, sum.elsewhere);
	if (!sum.has_dockerfile && sum.elsewhere[0] != 0)
		return error_named(
			e, -ENOENT, "ARCHIVE_DOCKERFILE_NOT_FOUND",
			"The artifact has no %s at its root, but has '%s'; zip the content of that folder rather than the folder.",
			q->dockerfile, sum.elsewhere);
	if (!sum.has_dockerfile)
		return error_named(e, -ENOENT, "ARCHIVE_DOCKERFILE_NOT_FOUND", "The artifact has no %s at its root.", q->dockerfile);
	if (chdir(CONTEXT) < 0)
		return error_errno(e, "cannot enter " CONTEXT);
	r = archive_unpack(&source, &q->limits, &sum, e);
	if (r < 0)
		return r;
	step_ends(1, "%" PRIu64 " entries, %" PRIu64 " KiB", sum.entries, (sum.bytes + 1023) >> 10);
	return chdir("/") < 0 ? error_errno(e, "cannot enter /") : 0;
}

static bool is_full(const char *folder) {
	struct statvfs fs;
	return statvfs(folder, &fs) == 0 && ((uint64_t)fs.f_bavail * fs.f_frsize < (1u << 20) || fs.f_favail == 0);
}

static int build_failed(struct run_lines *lines, int status, struct error *e) {
	// What buildah adds to a syntax error for its own developers.
	char *step = strstr(lines->failure, " &imagebuilder.Step{");
	if (step != NULL)
		*step = 0;
	if (lines->no_space || is_full(SCRATCH))
		return error_named(e, -ENOSPC, FULL, "The builder's disk is full: %.200s",
				   lines->failure[0] != 0 ? lines->failure : lines->output);
	const char *why = lines->failure[0] != 0 ? lines->failure : lines->output;
	char usual[64];
	if (why[0] == 0) {
		snprintf(usual, sizeof(usual), "buildah ended with status %d", status);
		why = usual;
	}
	if (lines->failure[0] != 0 && lines->output[0] != 0)
		return error_named(e, -EIO, FAILED, "The container image build failed: %.280s (last output: %.150s)", why, lines->output);
	return error_named(e, -EIO, FAILED, "The container image build failed: %.400s", why);
}

static int run_buildah(const struct request *q, struct error *e) {
	static const char *const environment[] = {
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TMPDIR=" SCRATCH "/tmp", "LANG=C.UTF-8", "GOGC=400", NULL};
	const char *argv[32 + ALIASES_MAX] = {"buildah",        "bud",       "--isolation", "chroot", "--format",    "oci",
					      "--layers=false", "--network", "host",        "--file", q->dockerfile, "--iidfile",
					      IMAGE_ID_FILE};
	size_t n = 13;
	char aliases[ALIASES_MAX][320];
	size_t count = 0;
	const char *name;
	json_t *base;
	json_object_foreach(json_object_get(q->json, "baseAliases"), name, base) {
		if (count == ALIASES_MAX || !json_is_string(base))
			return error_set(e, -EINVAL, "the request's baseAliases are not at most %d names of base images", ALIASES_MAX);
		int length = snprintf(aliases[count], sizeof(aliases[0]), "--build-context=%s=container-image://%s", name,
				      json_string_value(base));
		if (length >= (int)sizeof(aliases[0]))
			return error_set(e, -ENAMETOOLONG, "the base image alias '%.100s' is too long", name);
		argv[n++] = aliases[count++];
	}
	argv[n++] = CONTEXT;
	struct run_lines lines;
	const struct run_options o = {.environment = environment, .folder = CONTEXT, .no_network = !q->network};
	int r = run_program(argv, &o, &lines, e);
	if (r > 0)
		return build_failed(&lines, r, e);
	return r;
}

static int read_built_image(struct image *ret, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size;
	int r = read_file(IMAGE_ID_FILE, 200, &text, &size, e);
	if (r < 0)
		return r;
	text[strcspn(text, "\n")] = 0;
	const char *id = strncmp(text, "sha256:", 7) == 0 ? text + 7 : text;
	return image_read(STORE, BASES_STORE, id, ret, e);
}

// Fills the output disk with the file system of the highest layer that bases has one for. Returns how many layers that covers; 0 (and an
// empty file system) when there is none, or when the disk is smaller than it. *ret_size: of the file system in bytes.
static ssize_t start_output(const struct disk *output, const struct image *image, uint64_t *ret_size, struct error *e) {
	for (size_t n = image->layer_count; n > 0; n--) {
		char path[PATH_MAX];
		snprintf(path, sizeof(path), BASES "/rootfs/%s.ext4", image->layers[n - 1].id);
		cleanup_close int template = open(path, O_RDONLY | O_CLOEXEC | O_DIRECT);
		struct stat st;
		if (template <0 || fstat(template, &st) < 0 || (uint64_t)st.st_size > output->size)
			continue;
		*ret_size = (uint64_t)st.st_size;
		int r = disk_write_template(output, template, e);
		return r < 0 ? r : (ssize_t)n;
	}
	*ret_size = output->size;
	return disk_format(output, "rootfs", (const char *const[]){"-J", "size=32", NULL}, e);
}

static int write_config(const struct image *image, struct error *e) {
	struct stat st;
	// The application's tree may hold anything at this name.
	int r = lstat(OUTPUT "/.stasis", &st) == 0 ? remove_tree(OUTPUT "/.stasis", e) : 0;
	if (r < 0)
		return r;
	if (mkdir(OUTPUT "/.stasis", 0700) < 0)
		return error_errno(e, "cannot create /.stasis in the image's root file system");
	return write_file_durably(OUTPUT "/.stasis/config.json", image->config, image->config_size, 0600, e);
}

static int fill_output(const struct image *image, size_t covered, uint64_t *bytes, struct error *e) {
	struct statvfs fs;
	int r = 0;
	for (size_t i = covered; i < image->layer_count && r == 0; i++)
		r = tree_merge(image->layers[i].diff, OUTPUT, e);
	if (r == 0)
		r = write_config(image, e);
	rmdir(OUTPUT "/lost+found"); // nothing that an image should have; one that is in use stays
	if (r == 0 && statvfs(OUTPUT, &fs) < 0)
		r = error_errno(e, "cannot look at the output's file system");
	if (r == 0)
		*bytes = (uint64_t)(fs.f_blocks - fs.f_bfree) * fs.f_frsize;
	return r;
}

// Mount points that the runtime wants, in images that lack them (FROM scratch).
static int make_mount_points(struct error *e) {
	static const char *const names[] = {OUTPUT "/proc", OUTPUT "/sys", OUTPUT "/dev", OUTPUT "/etc", OUTPUT "/tmp"};
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct stat st;
		if (lstat(names[i], &st) == 0)
			continue;
		if (mkdir(names[i], 0755) < 0 || (i == 4 && chmod(names[i], 01777) < 0))
			return error_errno(e, "cannot create %s", names[i]);
	}
	return 0;
}

static int write_output(const struct image *image, uint64_t *bytes, struct error *e) {
	struct disk output;
	int r = disk_find("output", &output, e);
	if (r < 0)
		return r;
	uint64_t size;
	ssize_t covered = start_output(&output, image, &size, e);
	if (covered < 0)
		return (int)covered;
	// No write barriers and rare commits: only the finished disk counts, and unmounting flushes it.
	r = mount_disk(output.path, OUTPUT, MS_NOATIME, "noinit_itable,nobarrier,noauto_da_alloc,commit=600", e);
	if (r < 0)
		return r;
	if (size < output.size)
		r = disk_grow(OUTPUT, output.size, e);
	if (r == 0)
		r = fill_output(image, (size_t)covered, bytes, e);
	if (r == 0)
		r = make_mount_points(e);
	if (umount(OUTPUT) < 0 && r == 0)
		r = error_errno(e, "cannot unmount the output's file system");
	cleanup_close int fd = open(output.path, O_RDWR | O_CLOEXEC);
	if (r == 0 && (fd < 0 || fsync(fd) < 0))
		r = error_errno(e, "cannot flush the output disk");
	return r;
}

static int build(const struct request *q, uint64_t *bytes, struct error *e) {
	step_begins(1, "unpack the artifact");
	int r = prepare(q, e);
	if (r == 0)
		r = unpack(q, e);
	if (r < 0)
		return r;

	step_begins(2, "run the Dockerfile");
	r = run_buildah(q, e);
	if (r < 0)
		return r;
	step_ends(2, "image built");

	step_begins(3, "read the image");
	cleanup_free struct image *image = calloc(1, sizeof(*image));
	if (image == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	r = read_built_image(image, e);
	cleanup_free char *config = image->config;
	if (r == 0)
		r = image_check_config(config, image->config_size, e);
	if (r < 0)
		return r;
	step_ends(3, "%zu layers", image->layer_count);

	step_begins(4, "write the root file system");
	r = write_output(image, bytes, e);
	if (r == 0)
		step_ends(4, "%" PRIu64 " MiB", *bytes >> 20);
	return r;
}

static json_t *failure(int r, const struct error *e) {
	const char *code = e->name[0] != 0 ? e->name : r == -ENOSPC ? FULL : "INTERNAL_PLATFORM_ERROR";
	say("[stasis] failed: %s: %s", code, e->message);
	json_t *result = json_pack("{s:b, s:s, s:s}", "ok", 0, "code", code, "message", e->message);
	// A message that was cut inside a character, or quotes a line that is not UTF-8.
	return result != NULL ? result
			      : json_pack("{s:b, s:s, s:s}", "ok", 0, "code", code, "message", "The build failed; its log says why.");
}

int main(int argc, char **argv) {
	if (argc != 3) {
		fprintf(stderr, "usage: build REQUEST.json RESULT.json\n");
		return 2;
	}
	setvbuf(stdout, NULL, _IONBF, 0);
	setrlimit(RLIMIT_NOFILE, &(struct rlimit){.rlim_cur = 65536, .rlim_max = 65536});
	signal(SIGPIPE, SIG_IGN);
	umask(022);

	struct request q = {0};
	struct error e = {0};
	uint64_t bytes = 0;
	int r = read_request(argv[1], &q, &e);
	// libarchive hands out names in the locale's encoding.
	if (r == 0 && setlocale(LC_CTYPE, "C.UTF-8") == NULL)
		r = error_set(&e, -ENOENT, "the builder's disk lacks the locale C.UTF-8");
	if (r == 0)
		r = build(&q, &bytes, &e);
	json_t *result = r == 0 ? json_pack("{s:b, s:I}", "ok", 1, "rootfsBytes", (json_int_t)bytes) : failure(r, &e);
	if (result == NULL || json_dump_file(result, argv[2], JSON_COMPACT) < 0) {
		fprintf(stderr, "cannot write %s\n", argv[2]);
		return 1;
	}
	json_decref(result);
	json_decref(q.json);
	return r == 0 ? 0 : 1;
}
