// `stasis role …`: the roles that requests may name, and what those who have them may do.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/json.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define PATH_ROOM 1000

static const char role_help[] =
	"usage: stasis role <command>\n"
	"\n"
	"Without any role, every role that a request names is accepted, and may do nothing. Once there is one, only those that are\n"
	"defined may be named.\n"
	"\n"
	"  create <name|ARN> <policy>    define a role, or give it another policy\n"
	"  ls                            list roles\n"
	"  show <name|ARN>               a role and its policy\n"
	"  rm <name|ARN>…                remove roles\n";

static int role_path(const struct cli *c, const char *given, char to[PATH_ROOM], struct error *e) {
	char arn[300], escaped[900];
	role_arn(c, given, arn);
	if (!client_escape(arn, escaped, sizeof(escaped)))
		return error_set(e, -EINVAL, "'%.40s…' is no name of a role", given);
	snprintf(to, PATH_ROOM, "/_stasis/roles/%s", escaped);
	return 0;
}

static int show_result(const struct cli *c, int r, json_t *answer, const struct error *e) {
	if (r == 0 && c->json) {
		print_json(answer);
	} else if (r == 0) {
		cleanup_free char *policy = json_dumps(json_object_get(answer, "policy"), JSON_COMPACT | JSON_PRESERVE_ORDER);
		printf("role    %s%s\npolicy  %s\n", json_text(answer, "roleArn"),
		       json_is_true(json_object_get(answer, "configured")) ? " (from the configuration)" : "",
		       policy == NULL ? "" : policy);
	}
	json_decref(answer);
	return r < 0 ? client_fail(c, e) : EXIT_OK;
}

static int role_create(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis role create <name|ARN> <policy>\n"
		"\n"
		"Defines a role, or gives it another policy. A microVM that is run with it finds temporary credentials for it at\n"
		"http://169.254.169.254/, as on EC2.\n"
		"\n" POLICY_OPTIONS_HELP "  --json\n";
	static const struct option options[] = {POLICY_OPTIONS, {0}};
	struct policy_options o = {.file = NULL};
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0)
		policy_option(&o, which, optarg);
	if (which == -2)
		return code;
	if (argc - optind != 1 || (o.file == NULL && o.actions == NULL))
		return usage_error(help, "'role create' takes one name, and --policy or --allow");
	char path[PATH_ROOM];
	struct error e;
	json_t *policy = NULL, *answer = NULL;
	int r = role_path(c, argv[optind], path, &e);
	if (r == 0)
		r = policy_document(c, &o, c->settings.account, &policy, &e);
	cleanup_json json_t *body = r < 0 ? NULL : json_pack("{s:o}", "policy", policy);
	if (r == 0)
		r = client_call(&c->settings, "PUT", path, body, &answer, &e);
	return show_result(c, r, answer, &e);
}

static int role_ls(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis role ls [--json]\n";
	static const char *const titles[] = {"ROLE", "FROM", "CREATED"};
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	struct table t = {.titles = titles, .columns = 3};
	struct error e;
	json_t *answer = NULL, *item;
	size_t i;
	if (client_call(&c->settings, "GET", "/_stasis/roles", NULL, &answer, &e) < 0)
		return client_fail(c, &e);
	json_array_foreach(json_object_get(answer, "items"), i, item) {
		char when[32];
		format_time(json_number_value(json_object_get(item, "createdAt")), when);
		table_row(&t,
			  (const char *const[]){json_text(item, "roleArn"),
						json_is_true(json_object_get(item, "configured")) ? "configuration" : "operator", when});
	}
	if (c->json)
		print_json(json_object_get(answer, "items"));
	else
		table_print(&t);
	json_decref(answer);
	return EXIT_OK;
}

static int role_show(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis role show <name|ARN> [--json]\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'role show' takes one name");
	char path[PATH_ROOM];
	struct error e;
	json_t *answer = NULL;
	int r = role_path(c, argv[optind], path, &e);
	if (r == 0)
		r = client_call(&c->settings, "GET", path, NULL, &answer, &e);
	return show_result(c, r, answer, &e);
}

static int role_rm(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis role rm <name|ARN>…\n\nCredentials that microVMs have for it may do nothing from then on.\n";
	int code = -1, worst = EXIT_OK;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc == optind)
		return usage_error(help, "'role rm' takes at least one name");
	for (int i = optind; i < argc; i++) {
		char path[PATH_ROOM];
		struct error e;
		int r = role_path(c, argv[i], path, &e);
		if (r == 0)
			r = client_call(&c->settings, "DELETE", path, NULL, NULL, &e);
		if (r < 0)
			worst = client_fail(c, &e);
	}
	return worst;
}

int cmd_role(struct cli *c, int argc, char **argv) {
	static const struct verb verbs[] = {{"create", role_create}, {"ls", role_ls}, {"show", role_show}, {"rm", role_rm}, {NULL, NULL}};
	return run_verb(c, argc, argv, verbs, role_help);
}
