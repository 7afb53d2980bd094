// `stasis image versions`, `activate`, `deactivate`, `rm`, `tag`, `public`.
#include "cli/cli.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define DELETE_WAIT_S 60

static void print_versions(const json_t *all) {
	static const char *const titles[] = {"VERSION", "STATE", "STATUS", "CREATED", "REASON"};
	struct table t = {.titles = titles, .columns = 5};
	for (size_t i = 0; i < json_array_size(all); i++) {
		const json_t *v = json_array_get(all, i);
		char when[32];
		format_time(json_number_value(json_object_get(v, "createdAt")), when);
		table_row(&t, (const char *const[]){json_text(v, "imageVersion"), json_text(v, "state"), json_text(v, "status"), when,
						    json_text(v, "stateReason")});
	}
	table_print(&t);
}

int image_versions(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis image versions <name> [--json]\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'image versions' takes one name");
	char path[IMAGE_PATH_ROOM];
	json_t *all = NULL;
	struct error e;
	image_path(c, argv[optind], "/versions", path);
	if (client_list(&c->settings, path, &all, &e) < 0)
		return client_fail(c, &e);
	if (c->json)
		print_json(all);
	else
		print_versions(all);
	json_decref(all);
	return EXIT_OK;
}

static void version_path(const struct cli *c, const char *arn, const char *version, char to[IMAGE_PATH_ROOM]) {
	char escaped[100], rest[112];
	if (!client_escape(version, escaped, sizeof(escaped)))
		escaped[0] = '\0';
	snprintf(rest, sizeof(rest), "/versions/%s", escaped);
	image_path(c, arn, rest, to);
}

int image_activate(struct cli *c, int argc, char **argv) {
	bool active = strcmp(argv[0], "activate") == 0;
	const char *help =
		active ? "usage: stasis image activate <name>:<version> [--json]\n\nLets a version be launched again.\n"
		       : "usage: stasis image deactivate <name>:<version> [--json]\n\nLaunches nothing from a version any more, until it "
			 "is activated again. What runs goes on.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	char arn[320], version[32] = "", path[IMAGE_PATH_ROOM];
	if (argc - optind == 1)
		image_split(c, argv[optind], arn, version);
	if (version[0] == '\0')
		return usage_error(help, "'image %s' takes a name and a version: <name>:<version>", argv[0]);
	json_t *answer = NULL, *body = json_pack("{s:s}", "status", active ? "ACTIVE" : "INACTIVE");
	struct error e;
	version_path(c, arn, version, path);
	int r = client_call(&c->settings, "PATCH", path, body, &answer, &e);
	json_decref(body);
	if (r < 0)
		return client_fail(c, &e);
	if (c->json)
		print_json(answer);
	else
		printf("%s is %s\n", argv[optind], json_text(answer, "status"));
	json_decref(answer);
	return EXIT_OK;
}

// Deletion goes on behind the answer: waits until the call on the path finds nothing.
static int wait_gone(const struct cli *c, const char *path, struct error *e) {
	for (int i = 0; i < DELETE_WAIT_S * 10; i++) {
		json_t *now = NULL;
		int r = client_call(&c->settings, "GET", path, NULL, &now, e);
		if (r == -ENOENT)
			return 0;
		bool failed = r == 0 && strcmp(json_text(now, "state"), "DELETE_FAILED") == 0;
		if (failed)
			r = error_set(e, -EIO, "the deletion failed (%s): look into the engine's log, and try again",
				      json_text(now, "stateReason"));
		json_decref(now);
		if (r < 0)
			return r;
		usleep(100 * 1000);
	}
	return error_set(e, -ETIMEDOUT, "the deletion has begun, but is not done after %d seconds", DELETE_WAIT_S);
}

int image_rm(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis image rm <name>[:<version>]\n\nDeletes an image with all its versions, or one version of it. Living "
		"microVMs must be terminated before.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'image rm' takes one name");
	char arn[320], version[32], path[IMAGE_PATH_ROOM];
	json_t *answer = NULL;
	struct error e;
	image_split(c, argv[optind], arn, version);
	if (version[0] == '\0')
		image_path(c, arn, "", path);
	else
		version_path(c, arn, version, path);
	int r = client_call(&c->settings, "DELETE", path, NULL, &answer, &e);
	if (r == 0)
		r = wait_gone(c, path, &e);
	if (r == 0 && c->json)
		print_json(answer);
	json_decref(answer);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

static int tags_path(const struct cli *c, const char *given, const char *query, char to[IMAGE_PATH_ROOM]) {
	char arn[320], escaped[1000];
	image_arn(c, given, arn);
	if (!client_escape(arn, escaped, sizeof(escaped)))
		return -1;
	return snprintf(to, IMAGE_PATH_ROOM, "/2017-03-31/tags/%s%s", escaped, query);
}

static int remove_tag(const struct cli *c, const char *name, const char *key, struct error *e) {
	char escaped[1600], query[1640], path[IMAGE_PATH_ROOM];
	if (!client_escape(key, escaped, sizeof(escaped)))
		return error_set(e, -EINVAL, "the tag's key is too long: it can have 128 characters");
	snprintf(query, sizeof(query), "?tagKeys=%s", escaped);
	tags_path(c, name, query, path);
	return client_call(&c->settings, "DELETE", path, NULL, NULL, e);
}

static int change_tags(const struct cli *c, const char *name, const json_t *set, const json_t *removed, struct error *e) {
	char path[IMAGE_PATH_ROOM];
	int r = 0;
	size_t i;
	json_t *key, *keys = (json_t *)(uintptr_t)removed; // jansson's iterators take no const
	tags_path(c, name, "", path);
	if (json_object_size(set) > 0) {
		json_t *body = json_pack("{s:O}", "Tags", set);
		r = client_call(&c->settings, "POST", path, body, NULL, e);
		json_decref(body);
	}
	json_array_foreach(keys, i, key) {
		if (r == 0)
			r = remove_tag(c, name, json_string_value(key), e);
	}
	return r;
}

static int print_tags(const struct cli *c, const char *name, struct error *e) {
	char path[IMAGE_PATH_ROOM];
	const char *key;
	json_t *value, *answer = NULL;
	tags_path(c, name, "", path);
	int r = client_call(&c->settings, "GET", path, NULL, &answer, e);
	if (r < 0)
		return r;
	json_t *tags = json_object_get(answer, "Tags");
	if (c->json)
		print_json(tags);
	else
		json_object_foreach(tags, key, value) printf("%s=%s\n", key, json_string_value(value));
	json_decref(answer);
	return 0;
}

int image_tag(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis image tag <name> [KEY=VALUE...] [--remove KEY]... [--json]\n\nSets tags, keeps the others, removes "
		"those named, and prints what there is then.\n";
	static const struct option options[] = {{"remove", required_argument, NULL, 'r'}, {0}};
	json_t *set = json_object(), *removed = json_array();
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0)
		json_array_append_new(removed, json_string(optarg));
	if (which != -2 && optind == argc)
		code = usage_error(help, "'image tag' takes a name");
	for (int i = optind + 1; i < argc && code < 0; i++) {
		char *equals = strchr(argv[i], '=');
		if (equals == NULL || equals == argv[i]) {
			code = usage_error(help, "a tag is KEY=VALUE, not '%s'", argv[i]);
		} else {
			*equals = '\0';
			json_object_set_new(set, argv[i], json_string(equals + 1));
		}
	}
	struct error e;
	if (code < 0) {
		int r = change_tags(c, argv[optind], set, removed, &e);
		if (r == 0)
			r = print_tags(c, argv[optind], &e);
		code = r < 0 ? client_fail(c, &e) : EXIT_OK;
	}
	json_decref(set);
	json_decref(removed);
	return code;
}

int image_public(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis image public <name> [<port> [--off]] [--json]\n\n"
		"Lets requests to a port of the image's microVMs in without a token, for pages that anyone may open. A request that names "
		"no\n"
		"port reaches 8080 if that is public, or else the lowest public port. Without a port: shows which there are.\n\n"
		"  --off   a token is needed again\n";
	static const struct option options[] = {{"off", no_argument, NULL, 'o'}, {0}};
	bool off = false;
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0)
		off = true;
	if (which == -2)
		return code;
	int given = argc - optind;
	long port = 0;
	if (given < 1 || given > 2 || (off && given != 2))
		return usage_error(help, "'image public' takes a name and, with --off always, a port");
	if (given == 2 && !parse_number(argv[optind + 1], 1, 65535, &port))
		return usage_error(help, "a port is 1 to 65535, not '%s'", argv[optind + 1]);
	char arn[320], escaped[1000], path[1200];
	json_t *answer = NULL;
	struct error e;
	image_arn(c, argv[optind], arn);
	if (!client_escape(arn, escaped, sizeof(escaped)))
		return usage_error(help, "'%s' is no image", argv[optind]);
	int n = snprintf(path, sizeof(path), "/_stasis/images/%s/public-ports", escaped);
	if (given == 2)
		snprintf(path + n, sizeof(path) - (size_t)n, "/%ld", port);
	if (client_call(&c->settings, given == 1 ? "GET" : off ? "DELETE" : "PUT", path, NULL, &answer, &e) < 0)
		return client_fail(c, &e);
	const json_t *ports = json_object_get(answer, "publicPorts");
	if (c->json)
		print_json(answer);
	for (size_t i = 0; !c->json && given == 1 && i < json_array_size(ports); i++)
		printf("%lld\n", (long long)json_integer_value(json_array_get(ports, i)));
	json_decref(answer);
	return EXIT_OK;
}
