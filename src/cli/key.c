// `stasis key …`: access keys and what they may do.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/json.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

#define PATH_ROOM 600

static const char key_help[] = "usage: stasis key <command>\n"
			       "\n"
			       "  create [options]              make a key; its secret is shown this once\n"
			       "  ls                            list keys\n"
			       "  show <id>                     a key and its policy\n"
			       "  set <id> [options]            give a key another policy or name\n"
			       "  disable <id>, enable <id>     refuse its calls, and take them again\n"
			       "  rm <id>…                      remove keys for good\n";

static int key_path(const char *id, char to[PATH_ROOM], struct error *e) {
	char escaped[400];
	if (!client_escape(id, escaped, sizeof(escaped)))
		return error_set(e, -EINVAL, "'%.40s…' is no access key id", id);
	snprintf(to, PATH_ROOM, "/_stasis/keys/%s", escaped);
	return 0;
}

static void print_key(const json_t *o) {
	char when[32];
	format_time(json_number_value(json_object_get(o, "createdAt")), when);
	printf("access key id      %s\n", json_text(o, "accessKeyId"));
	if (json_text(o, "secretAccessKey")[0] != '\0')
		printf("secret access key  %s\n", json_text(o, "secretAccessKey"));
	printf("account            %s\nname               %s\nstate              %s%s\ncreated            %s\n", json_text(o, "account"),
	       json_text(o, "name"), json_is_true(json_object_get(o, "enabled")) ? "enabled" : "disabled",
	       json_is_true(json_object_get(o, "configured")) ? " (from the configuration)" : "", when);
	cleanup_free char *policy = json_dumps(json_object_get(o, "policy"), JSON_COMPACT | JSON_PRESERVE_ORDER);
	printf("policy             %s\n", policy == NULL ? "" : policy);
}

static int show_result(const struct cli *c, int r, json_t *answer, const struct error *e) {
	if (r == 0 && c->json)
		print_json(answer);
	else if (r == 0)
		print_key(answer);
	json_decref(answer);
	return r < 0 ? client_fail(c, e) : EXIT_OK;
}

struct key_options {
	struct policy_options policy;
	const char *account, *name;
	bool operators;
};

enum { O_ACCOUNT = 1, O_NAME, O_OPERATOR };

static int parse(struct cli *c, int argc, char **argv, const char *help, struct key_options *o) {
	static const struct option options[] = {{"account", required_argument, NULL, O_ACCOUNT},
						{"name", required_argument, NULL, O_NAME},
						{"operator", no_argument, NULL, O_OPERATOR},
						POLICY_OPTIONS,
						{0}};
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0) {
		if (which == O_ACCOUNT)
			o->account = optarg;
		else if (which == O_NAME)
			o->name = optarg;
		else if (which == O_OPERATOR)
			o->operators = true;
		else
			policy_option(&o->policy, which, optarg);
	}
	return which == -2 ? code : -1;
}

// The request's body. NULL: *e is set.
static json_t *body_of(const struct cli *c, struct key_options *o, struct error *e) {
	json_t *policy = NULL;
	if (policy_document(c, &o->policy, o->account == NULL ? c->settings.account : o->account, &policy, e) < 0)
		return NULL;
	json_t *body = json_object();
	if (policy != NULL)
		json_object_set_new(body, "policy", policy);
	if (o->account != NULL)
		json_object_set_new(body, "account", json_string(o->account));
	if (o->name != NULL)
		json_object_set_new(body, "name", json_string(o->name));
	if (o->operators)
		json_object_set_new(body, "operator", json_true());
	return body;
}

static int key_create(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis key create [options]\n"
				   "\n"
				   "Makes an access key. Without a policy it may do everything in its account, but nothing to the engine.\n"
				   "\n"
				   "  --account ACCOUNT        twelve digits (default: the engine's first account)\n"
				   "  --name NAME              what messages call it\n"
				   "  --operator               everything in its account, and the operator's calls: keys, roles, status, "
				   "shutdown\n" POLICY_OPTIONS_HELP "  --json\n";
	struct key_options o = {.account = NULL};
	int code = parse(c, argc, argv, help, &o);
	if (code >= 0)
		return code;
	if (argc != optind)
		return usage_error(help, "'key create' takes options only");
	struct error e;
	json_t *answer = NULL;
	cleanup_json json_t *body = body_of(c, &o, &e);
	int r = body == NULL ? e.code : client_call(&c->settings, "POST", "/_stasis/keys", body, &answer, &e);
	return show_result(c, r, answer, &e);
}

static int key_set(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis key set <id> [options]\n"
				   "\n"
				   "  --name NAME              what messages call it\n"
				   "  --operator               everything, the operator's calls too\n" POLICY_OPTIONS_HELP "  --json\n";
	struct key_options o = {.account = NULL};
	int code = parse(c, argc, argv, help, &o);
	if (code >= 0)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'key set' takes one id");
	struct error e;
	char path[PATH_ROOM];
	json_t *answer = NULL;
	cleanup_json json_t *body = body_of(c, &o, &e);
	int r = body == NULL ? e.code : key_path(argv[optind], path, &e);
	if (r == 0)
		r = client_call(&c->settings, "PATCH", path, body, &answer, &e);
	return show_result(c, r, answer, &e);
}

static int key_ls(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis key ls [--json]\n";
	static const char *const titles[] = {"ACCESS KEY ID", "ACCOUNT", "NAME", "STATE", "CREATED"};
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	struct table t = {.titles = titles, .columns = 5};
	struct error e;
	json_t *answer = NULL, *item;
	size_t i;
	if (client_call(&c->settings, "GET", "/_stasis/keys", NULL, &answer, &e) < 0)
		return client_fail(c, &e);
	json_array_foreach(json_object_get(answer, "items"), i, item) {
		char when[32];
		bool enabled = json_is_true(json_object_get(item, "enabled")),
		     configured = json_is_true(json_object_get(item, "configured"));
		format_time(json_number_value(json_object_get(item, "createdAt")), when);
		table_row(&t, (const char *const[]){json_text(item, "accessKeyId"), json_text(item, "account"), json_text(item, "name"),
						    configured ? "configured"
						    : enabled  ? "enabled"
							       : "disabled",
						    when});
	}
	if (c->json)
		print_json(json_object_get(answer, "items"));
	else
		table_print(&t);
	json_decref(answer);
	return EXIT_OK;
}

// One call about one key, which takes no options.
static int simple(struct cli *c, int argc, char **argv, const char *help, const char *method, const json_t *body) {
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'key %s' takes one id", argv[0]);
	char path[PATH_ROOM];
	struct error e;
	json_t *answer = NULL;
	int r = key_path(argv[optind], path, &e);
	if (r == 0)
		r = client_call(&c->settings, method, path, body, &answer, &e);
	return show_result(c, r, answer, &e);
}

static int key_show(struct cli *c, int argc, char **argv) {
	return simple(c, argc, argv, "usage: stasis key show <id> [--json]\n", "GET", NULL);
}

static int key_disable(struct cli *c, int argc, char **argv) {
	cleanup_json json_t *body = json_pack("{s:b}", "enabled", 0);
	return simple(c, argc, argv, "usage: stasis key disable <id> [--json]\n", "PATCH", body);
}

static int key_enable(struct cli *c, int argc, char **argv) {
	cleanup_json json_t *body = json_pack("{s:b}", "enabled", 1);
	return simple(c, argc, argv, "usage: stasis key enable <id> [--json]\n", "PATCH", body);
}

static int key_rm(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis key rm <id>…\n";
	int code = -1, worst = EXIT_OK;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc == optind)
		return usage_error(help, "'key rm' takes at least one id");
	for (int i = optind; i < argc; i++) {
		char path[PATH_ROOM];
		struct error e;
		int r = key_path(argv[i], path, &e);
		if (r == 0)
			r = client_call(&c->settings, "DELETE", path, NULL, NULL, &e);
		if (r < 0)
			worst = client_fail(c, &e);
	}
	return worst;
}

int cmd_key(struct cli *c, int argc, char **argv) {
	static const struct verb verbs[] = {{"create", key_create},   {"ls", key_ls},         {"show", key_show}, {"set", key_set},
					    {"disable", key_disable}, {"enable", key_enable}, {"rm", key_rm},     {NULL, NULL}};
	return run_verb(c, argc, argv, verbs, key_help);
}
