// `stasis image …`: packs and uploads a folder, builds an image or its next version, follows the build.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/uuid.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define ARTIFACT_MAX (1u << 30)
#define ARTIFACT_BUCKET "stasis-artifacts"
#define PATH_ROOM IMAGE_PATH_ROOM

static const char image_help[] =
	"usage: stasis image <command>\n"
	"\n"
	"  create <name> <folder|zip|s3://bucket/key>   build an image from a Dockerfile and code, wait until it is ready\n"
	"  update <name> <folder|zip|s3://bucket/key>   build its next version; the one before can be launched meanwhile\n"
	"  ls                                           list images\n"
	"  versions <name>                              list an image's versions, newest first\n"
	"  show <name>[:<version>]                      an image, a version of it (the newest) and its build\n"
	"  logs <name>[:<version>] [--follow]           the build's output\n"
	"  activate <name>:<version>                    let it be launched again\n"
	"  deactivate <name>:<version>                  launch nothing from it any more; what runs goes on\n"
	"  tag <name> [KEY=VALUE...] [--remove KEY]     set and remove tags; print them\n"
	"  public <name> [<port> [--off]]               ports that may be called without a token\n"
	"  rm <name>[:<version>]                        delete an image, or one version, that has no living microVM\n";

#define BUILD_OPTIONS                                                                                                                \
	"  --memory MIB          512, 1024, 2048 (default), 4096 or 8192: baseline; the microVM sees four times that\n"              \
	"  --env KEY=VALUE       environment of the application; may be given again\n"                                               \
	"  --hooks LIST          of ready,validate,run,resume,suspend,terminate: the application answers them (needs --hook-port)\n" \
	"  --hook-port PORT      where it does\n"                                                                                    \
	"  --hook-timeout NAME=S time-out of one hook in seconds; may be given again\n"                                              \
	"  --capabilities all    all Linux capabilities inside the microVM, instead of Docker's default set\n"                       \
	"  --egress WHERE        what the build and, by default, its microVMs may reach: none, internet (default), or a network "    \
	"connector\n"                                                                                                                \
	"  --description TEXT\n"                                                                                                     \
	"  --no-wait             return once the build is queued\n"                                                                  \
	"  --json\n"

static const char create_help[] =
	"usage: stasis image create <name> <folder|zip|s3://bucket/key> [options]\n"
	"\n"
	"Builds an image: runs the Dockerfile inside a microVM, starts the application once and snapshots it. A folder is packed (its "
	"Dockerfile at\n"
	"the root) and uploaded to the artifact store first.\n"
	"\n" BUILD_OPTIONS;

static const char update_help[] = "usage: stasis image update <name> <folder|zip|s3://bucket/key> [options]\n"
				  "\n"
				  "Builds the next version of an image. It replaces the whole configuration: what is not said is as 'image "
				  "create' has it by default, not "
				  "as in the\n"
				  "version before. That one can be launched meanwhile, and goes on being launched when the build fails.\n"
				  "\n" BUILD_OPTIONS;

// The code artifact's URI: given, or made by packing and uploading.
static int upload(const struct cli *c, const char *name, const char *source, char uri[512], struct error *e) {
	if (strncmp(source, "s3://", 5) == 0) {
		snprintf(uri, 512, "%s", source);
		return 0;
	}
	struct stat st;
	if (stat(source, &st) < 0)
		return error_errno(e, "cannot find %s", source);
	cleanup_free char *data = NULL;
	size_t size;
	progress_step(S_ISDIR(st.st_mode) ? "packing %s" : "reading %s", source);
	int r = S_ISDIR(st.st_mode) ? archive_folder(source, ARTIFACT_MAX, &data, &size, e)
				    : read_file(source, ARTIFACT_MAX, &data, &size, e);
	if (r < 0)
		return r;
	char id[UUID_TEXT], key[160], bytes[16];
	uuid_new(id);
	snprintf(key, sizeof(key), "%.64s-%s.zip", name, id);
	format_size((double)size, bytes);
	progress_step("uploading %s", bytes);
	r = client_put_object(&c->settings, ARTIFACT_BUCKET, key, data, size, e);
	snprintf(uri, 512, "s3://" ARTIFACT_BUCKET "/%s", key);
	return r;
}

// Prints what the build log has beyond *offset; *ret_complete says whether the build has ended.
static int print_log(const struct cli *c, const char *path, unsigned long long *offset, bool *ret_complete, FILE *to, struct error *e) {
	char full[PATH_ROOM + 40];
	snprintf(full, sizeof(full), "%s?offset=%llu", path, *offset);
	cleanup_free char *data = NULL;
	size_t size;
	struct client_header headers[] = {{.name = "X-Stasis-Next-Offset"}, {.name = "X-Stasis-Complete"}};
	int r = client_get(&c->settings, full, &data, &size, headers, 2, e);
	if (r < 0)
		return r;
	fwrite(data, 1, size, to);
	fflush(to);
	*offset = headers[0].value[0] != '\0' ? strtoull(headers[0].value, NULL, 10) : *offset + size;
	*ret_complete = strcmp(headers[1].value, "true") == 0;
	return 0;
}

static int log_path(const struct cli *c, const char *name, const char *version, char to[PATH_ROOM]) {
	char arn[320], escaped[1000];
	image_arn(c, name, arn);
	if (!client_escape(arn, escaped, sizeof(escaped)))
		return -1;
	return snprintf(to, PATH_ROOM, "/_stasis/images/%s/versions/%s/log", escaped, version);
}

// Follows a build to its end. Returns 0 when the version is SUCCESSFUL.
static int follow(const struct cli *c, const char *name, const char *version, FILE *to, struct error *e) {
	char path[PATH_ROOM], rest[64], log[PATH_ROOM];
	snprintf(rest, sizeof(rest), "/versions/%s/builds", version);
	image_path(c, name, rest, path);
	log_path(c, name, version, log);
	unsigned long long offset = 0;
	for (;;) {
		json_t *builds = NULL;
		bool complete = false;
		int r = client_call(&c->settings, "GET", path, NULL, &builds, e);
		if (r < 0)
			return r;
		const json_t *build = json_array_get(json_object_get(builds, "items"), 0);
		char state[32], reason[512];
		snprintf(state, sizeof(state), "%s", json_text(build, "buildState"));
		snprintf(reason, sizeof(reason), "%s", json_text(build, "stateReason"));
		json_decref(builds);
		bool ended = strcmp(state, "SUCCESSFUL") == 0 || strcmp(state, "FAILED") == 0;
		// The log is read after the state, so that the last words of an ended build are not missed.
		for (unsigned long long before = offset + 1; before != offset;) {
			before = offset;
			if ((r = print_log(c, log, &offset, &complete, to, e)) < 0 && r != -ENOENT)
				return r;
		}
		if (ended)
			return strcmp(state, "SUCCESSFUL") == 0 ? 0 : error_named(e, -EIO, "BuildFailed", "%s", reason);
		usleep(200 * 1000);
	}
}

static int add_hook(json_t *hooks, const char *name, const char *suffix, json_t *value) {
	static const char *const of_image[] = {"ready", "validate"}, *const of_microvm[] = {"run", "resume", "suspend", "terminate"};
	const char *group = NULL;
	for (size_t i = 0; i < 2; i++)
		if (strcmp(name, of_image[i]) == 0)
			group = "microvmImageHooks";
	for (size_t i = 0; i < 4; i++)
		if (strcmp(name, of_microvm[i]) == 0)
			group = "microvmHooks";
	if (group == NULL) {
		json_decref(value);
		return -1;
	}
	json_t *g = json_object_get(hooks, group);
	if (g == NULL) {
		json_object_set_new(hooks, group, json_object());
		g = json_object_get(hooks, group);
	}
	char key[64];
	snprintf(key, sizeof(key), "%s%s", name, suffix);
	return json_object_set_new(g, key, value);
}

struct create_options {
	json_t *body, *env, *hooks;
	bool wait;
	bool update; // of an image that there is
	const char *help;
};

enum { O_MEMORY = 1, O_ENV, O_HOOKS, O_PORT, O_TIMEOUT, O_CAPS, O_EGRESS, O_DESCRIPTION, O_NO_WAIT };

static int set_option(struct cli *c, struct create_options *o, int which, char *value) {
	struct error e;
	long number;
	char *equals = value == NULL ? NULL : strchr(value, '=');
	switch (which) {
	case O_MEMORY:
		if (!parse_number(value, 1, 1 << 20, &number))
			return usage_error(o->help, "--memory takes a number of MiB, not '%s'", value);
		json_object_set_new(o->body, "resources", json_pack("[{s:I}]", "minimumMemoryInMiB", (json_int_t)number));
		return -1;
	case O_ENV:
		if (equals == NULL || equals == value)
			return usage_error(o->help, "--env takes KEY=VALUE, not '%s'", value);
		*equals = '\0';
		json_object_set_new(o->env, value, json_string(equals + 1));
		return -1;
	case O_HOOKS:
		for (char *save = NULL, *name = strtok_r(value, ",", &save); name != NULL; name = strtok_r(NULL, ",", &save))
			if (add_hook(o->hooks, name, "", json_string("ENABLED")) != 0)
				return usage_error(o->help, "there is no hook '%s'", name);
		return -1;
	case O_PORT:
		if (!parse_number(value, 1, 65535, &number))
			return usage_error(o->help, "--hook-port takes a port from 1 to 65535, not '%s'", value);
		json_object_set_new(o->hooks, "port", json_integer(number));
		return -1;
	case O_TIMEOUT:
		if (equals == NULL || !parse_number(equals + 1, 1, 3600, &number))
			return usage_error(o->help, "--hook-timeout takes HOOK=SECONDS, not '%s'", value);
		*equals = '\0';
		if (add_hook(o->hooks, value, "TimeoutInSeconds", json_integer(number)) != 0)
			return usage_error(o->help, "there is no hook '%s'", value);
		return -1;
	case O_CAPS:
		if (strcmp(value, "all") != 0)
			return usage_error(o->help, "--capabilities takes 'all', not '%s'", value);
		json_object_set_new(o->body, "additionalOsCapabilities", json_pack("[s]", "ALL"));
		return -1;
	case O_EGRESS:
		return add_egress(c, o->body, value, &e) < 0 ? client_fail(c, &e) : -1;
	case O_DESCRIPTION:
		json_object_set_new(o->body, "description", json_string(value));
		return -1;
	case O_NO_WAIT:
		o->wait = false;
		return -1;
	default:
		return EXIT_USAGE;
	}
}

static int create(struct cli *c, struct create_options *o, const char *name, const char *source) {
	struct error e;
	char uri[512], arn[200], role[200];
	if (upload(c, name, source, uri, &e) < 0)
		return client_fail(c, &e);
	snprintf(arn, sizeof(arn), "arn:aws:lambda:%s:aws:microvm-image:debian", c->settings.region);
	snprintf(role, sizeof(role), "arn:aws:iam::%s:role/stasis", c->settings.account);
	json_object_set_new(o->body, "baseImageArn", json_string(arn));
	json_object_set_new(o->body, "buildRoleArn", json_string(role));
	json_object_set_new(o->body, "codeArtifact", json_pack("{s:s}", "uri", uri));
	if (json_object_size(o->env) > 0)
		json_object_set(o->body, "environmentVariables", o->env);
	if (json_object_size(o->hooks) > 0)
		json_object_set(o->body, "hooks", o->hooks);
	json_t *image = NULL;
	char path[PATH_ROOM];
	int r;
	if (o->update) {
		progress_step("building the next version of %s", name);
		image_path(c, name, "", path);
		r = client_call(&c->settings, "PUT", path, o->body, &image, &e);
	} else {
		progress_step("creating the image %s", name);
		json_object_set_new(o->body, "name", json_string(name));
		r = client_call(&c->settings, "POST", "/2025-09-09/microvm-images", o->body, &image, &e);
	}
	if (r < 0)
		return client_fail(c, &e);
	progress_done();
	if (o->wait)
		r = follow(c, json_text(image, "imageArn"), json_text(image, "imageVersion"), stderr, &e);
	if (r == 0 && c->json) {
		json_t *now = NULL;
		image_path(c, name, "", path);
		r = client_call(&c->settings, "GET", path, NULL, &now, &e);
		if (r == 0)
			print_json(now);
		json_decref(now);
	} else if (r == 0) {
		printf("%s\n", json_text(image, "imageArn"));
	}
	json_decref(image);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

static int image_create(struct cli *c, int argc, char **argv) { // and update
	static const struct option options[] = {{"memory", required_argument, NULL, O_MEMORY},
						{"env", required_argument, NULL, O_ENV},
						{"hooks", required_argument, NULL, O_HOOKS},
						{"hook-port", required_argument, NULL, O_PORT},
						{"hook-timeout", required_argument, NULL, O_TIMEOUT},
						{"capabilities", required_argument, NULL, O_CAPS},
						{"egress", required_argument, NULL, O_EGRESS},
						{"description", required_argument, NULL, O_DESCRIPTION},
						{"no-wait", no_argument, NULL, O_NO_WAIT},
						{0}};
	struct create_options o = {.body = json_object(), .env = json_object(), .hooks = json_object(), .wait = true};
	o.update = strcmp(argv[0], "update") == 0;
	o.help = o.update ? update_help : create_help;
	int code = -1, which;
	while (code < 0 && (which = next_option(c, argc, argv, "", options, o.help, &code)) >= 0)
		code = set_option(c, &o, which, optarg);
	if (code < 0 && argc - optind != 2)
		code = usage_error(o.help, "'image %s' takes a name and a source", argv[0]);
	if (code < 0)
		code = create(c, &o, argv[optind], argv[optind + 1]);
	json_decref(o.body);
	json_decref(o.env);
	json_decref(o.hooks);
	return code;
}

static void print_images(const json_t *all) {
	static const char *const titles[] = {"NAME", "STATE", "VERSION", "CREATED"};
	struct table t = {.titles = titles, .columns = 4};
	for (size_t i = 0; i < json_array_size(all); i++) {
		const json_t *item = json_array_get(all, i);
		char when[32];
		format_time(json_number_value(json_object_get(item, "createdAt")), when);
		const char *version = json_text(item, "latestActiveImageVersion");
		table_row(&t, (const char *const[]){json_text(item, "name"), json_text(item, "state"), version[0] ? version : "-", when});
	}
	table_print(&t);
}

static int image_ls(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis image ls [--json]\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	json_t *all = NULL;
	struct error e;
	if (client_list(&c->settings, "/2025-09-09/microvm-images", &all, &e) < 0)
		return client_fail(c, &e);
	if (c->json)
		print_json(all);
	else
		print_images(all);
	json_decref(all);
	return EXIT_OK;
}

// The newest version, which may be one that is being built.
static int newest_version(const struct cli *c, const char *arn, char to[32], struct error *e) {
	char path[PATH_ROOM];
	json_t *page = NULL;
	image_path(c, arn, "/versions?maxResults=1", path);
	int r = client_call(&c->settings, "GET", path, NULL, &page, e);
	if (r == 0)
		snprintf(to, 32, "%s", json_text(json_array_get(json_object_get(page, "items"), 0), "imageVersion"));
	json_decref(page);
	return r;
}

static void print_stages(const struct cli *c, const char *path) {
	cleanup_free char *data = NULL;
	size_t size;
	struct error e;
	if (client_get(&c->settings, path, &data, &size, NULL, 0, &e) < 0)
		return;
	json_t *o = json_loadb(data, size, 0, NULL), *item;
	size_t i;
	json_array_foreach(json_object_get(o, "stages"), i, item)
		printf("  %-28s %10.1f ms  %s\n", json_text(item, "name"),
		       (double)json_integer_value(json_object_get(item, "durationUs")) / 1e3, json_text(item, "detail"));
	json_decref(o);
}

static int image_show(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis image show <name>[:<version>] [--json]\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'image show' takes one name");
	char name[320], version[32], path[PATH_ROOM], rest[96];
	json_t *image = NULL, *details = NULL, *builds = NULL, *build = NULL;
	struct error e;
	image_split(c, argv[optind], name, version);
	image_path(c, name, "", path);
	int r = client_call(&c->settings, "GET", path, NULL, &image, &e);
	if (r == 0 && version[0] == '\0')
		r = newest_version(c, name, version, &e);
	if (r == 0) {
		snprintf(rest, sizeof(rest), "/versions/%s", version);
		image_path(c, name, rest, path);
		r = client_call(&c->settings, "GET", path, NULL, &details, &e);
	}
	if (r == 0) {
		snprintf(rest, sizeof(rest), "/versions/%s/builds", version);
		image_path(c, name, rest, path);
		r = client_call(&c->settings, "GET", path, NULL, &builds, &e);
	}
	const char *build_id = json_text(json_array_get(json_object_get(builds, "items"), 0), "buildId");
	if (r == 0 && build_id[0] != '\0') {
		snprintf(rest, sizeof(rest), "/versions/%s/builds/%s", version, build_id);
		image_path(c, name, rest, path);
		r = client_call(&c->settings, "GET", path, NULL, &build, &e);
	}
	if (r == 0 && c->json) {
		json_t *all = json_pack("{s:O, s:O, s:O?}", "image", image, "version", details, "build", build);
		print_json(all);
		json_decref(all);
	} else if (r == 0) {
		char when[32], memory[16], disk[16];
		const json_t *sizes = json_object_get(build, "snapshotBuild");
		format_time(json_number_value(json_object_get(image, "createdAt")), when);
		format_size(json_number_value(json_object_get(sizes, "memorySnapshotSizeInBytes")), memory);
		format_size(json_number_value(json_object_get(sizes, "diskSnapshotSizeInBytes")), disk);
		printf("name       %s\narn        %s\nstate      %s\ncreated    %s\nversion    %s (%s, %s)\nbuild      %s %s\n",
		       json_text(image, "name"), json_text(image, "imageArn"), json_text(image, "state"), when, version,
		       json_text(details, "state"), json_text(details, "status"), json_text(build, "buildState"),
		       json_text(build, "stateReason"));
		if (json_is_object(sizes))
			printf("snapshot   memory %s, disk %s\n", memory, disk);
		char arn[1000], stages[PATH_ROOM];
		if (client_escape(json_text(image, "imageArn"), arn, sizeof(arn))) {
			snprintf(stages, sizeof(stages), "/_stasis/images/%s/versions/%s/stages", arn, version);
			puts("stages");
			print_stages(c, stages);
		}
	}
	json_decref(image);
	json_decref(details);
	json_decref(builds);
	json_decref(build);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

static int image_logs(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis image logs <name>[:<version>] [--follow] [--since T] [--until T]\n\n"
				   "  T   '10m' (s, m, h, d: so long ago) or '2026-01-31T12:00:00Z'\n";
	static const struct option options[] = {{"follow", no_argument, NULL, 'f'},
						{"version", required_argument, NULL, 'v'},
						{"since", required_argument, NULL, LOG_SINCE},
						{"until", required_argument, NULL, LOG_UNTIL},
						{0}};
	struct log_options o = {.follow = false};
	char name[320], version[32], chosen[32] = "";
	int code = -1, which;
	while (code < 0 && (which = next_option(c, argc, argv, "f", options, help, &code)) >= 0) {
		if (which == 'v')
			snprintf(chosen, sizeof(chosen), "%s", optarg);
		else
			code = log_option(help, &o, which, optarg);
	}
	if (code >= 0)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'image logs' takes one name");
	struct error e;
	image_split(c, argv[optind], name, version);
	if (chosen[0] != '\0')
		memcpy(version, chosen, sizeof(version));
	int r = version[0] == '\0' ? newest_version(c, name, version, &e) : 0;
	char path[PATH_ROOM];
	log_path(c, name, version, path);
	if (r == 0)
		r = log_print(c, path, &o, &e);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

int cmd_image(struct cli *c, int argc, char **argv) {
	static const struct {
		const char *name;
		int (*run)(struct cli *, int, char **);
	} verbs[] = {{"create", image_create},     {"update", image_create},       {"ls", image_ls},        {"versions", image_versions},
		     {"show", image_show},         {"logs", image_logs},           {"rm", image_rm},        {"tag", image_tag},
		     {"activate", image_activate}, {"deactivate", image_activate}, {"public", image_public}};
	if (argc < 2)
		return usage_error(image_help, "'image' takes a command");
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (strcmp(argv[1], verbs[i].name) == 0)
			return verbs[i].run(c, argc - 1, argv + 1);
	if (strcmp(argv[1], "--help") == 0) {
		fputs(image_help, stdout);
		return EXIT_OK;
	}
	return usage_error(image_help, "there is no command 'image %s'", argv[1]);
}
