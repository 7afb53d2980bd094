// `stasis connector …`: network connectors, which say what microVMs may reach besides nothing and the internet.
#include "cli/cli.h"

#include "base/uuid.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define CONNECTORS "/2026-04-04/network-connectors"
#define PATH_ROOM 1600
#define POLL_US 100000

static const char connector_help[] = "usage: stasis connector <command>\n"
				     "\n"
				     "  create <name> --subnet ID    a connector to networks that the engine's operator configured\n"
				     "  ls                           list connectors\n"
				     "  show <name>                  a connector's state and networks\n"
				     "  rm <name>                    delete a connector that nothing uses\n"
				     "\n"
				     "Then 'stasis run <image> --egress <name>'. Names, ids and ARNs are accepted.\n";

static int get(const struct cli *c, const char *name, json_t **ret, struct error *e) {
	char path[600];
	connector_path(name, path);
	return client_call(&c->settings, "GET", path, NULL, ret, e);
}

static void print_connector(const json_t *o) {
	const json_t *vpc = json_object_get(json_object_get(o, "Configuration"), "VpcEgressConfiguration");
	json_t *subnet;
	size_t i;
	printf("name       %s\narn        %s\nstate      %s%s%s\nmodified   %s\nsubnets    ", json_text(o, "Name"), json_text(o, "Arn"),
	       json_text(o, "State"), json_text(o, "StateReasonCode")[0] != '\0' ? ": " : "",
	       json_text(o, "StateReasonCode")[0] != '\0' ? json_text(o, "StateReason") : "", json_text(o, "LastModified"));
	json_array_foreach(json_object_get(vpc, "SubnetIds"), i, subnet) printf("%s%s", i == 0 ? "" : ", ", json_string_value(subnet));
	putchar('\n');
	if (json_text(o, "LastUpdateStatus")[0] != '\0')
		printf("update     %s %s\n", json_text(o, "LastUpdateStatus"), json_text(o, "LastUpdateStatusReason"));
}

// Polls until it is no longer PENDING.
static int wait_for(const struct cli *c, const char *id, json_t **ret, struct error *e) {
	for (;; usleep(POLL_US)) {
		json_t *o = NULL;
		int r = get(c, id, &o, e);
		if (r < 0)
			return r;
		if (strcmp(json_text(o, "State"), "PENDING") == 0) {
			json_decref(o);
			continue;
		}
		*ret = o;
		return strcmp(json_text(o, "State"), "FAILED") == 0
			       ? error_named(e, -EIO, json_text(o, "StateReasonCode"), "%s", json_text(o, "StateReason"))
			       : 0;
	}
}

static int create(struct cli *c, json_t *body) {
	json_t *answer = NULL, *now = NULL;
	struct error e;
	int r = client_call(&c->settings, "POST", CONNECTORS, body, &answer, &e);
	if (r == 0)
		r = wait_for(c, json_text(answer, "Id"), &now, &e);
	if (r == 0 && c->json)
		print_json(now);
	else if (r == 0)
		printf("%s\n", json_text(now, "Arn"));
	json_decref(answer);
	json_decref(now);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

static int connector_create(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis connector create <name> --subnet ID… [--role ARN] [--json]\n\n"
				   "  --subnet ID   a network of the engine's configuration (\"networks\"); may be given again\n"
				   "  --role ARN    recorded as OperatorRole\n";
	static const struct option options[] = {{"subnet", required_argument, NULL, 's'}, {"role", required_argument, NULL, 'r'}, {0}};
	char role[200], token[UUID_TEXT];
	int code = -1, which;
	uuid_new(token);
	snprintf(role, sizeof(role), "arn:aws:iam::%s:role/stasis", c->settings.account);
	json_t *subnets = json_array();
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0) {
		if (which == 's')
			json_array_append_new(subnets, json_string(optarg));
		else
			snprintf(role, sizeof(role), "%s", optarg);
	}
	if (which != -2 && argc - optind != 1)
		code = usage_error(help, "'connector create' takes one name");
	else if (which != -2 && json_array_size(subnets) == 0)
		code = usage_error(help, "'connector create' takes at least one --subnet");
	if (code >= 0) {
		json_decref(subnets);
		return code;
	}
	json_t *body = json_pack("{s:s, s:s, s:s, s:{s:{s:o, s:s, s:[s]}}}", "Name", argv[optind], "OperatorRole", role, "ClientToken",
				 token, "Configuration", "VpcEgressConfiguration", "SubnetIds", subnets, "NetworkProtocol", "IPv4",
				 "AssociatedComputeResourceTypes", "MicroVm");
	code = create(c, body);
	json_decref(body);
	return code;
}

static int connector_ls(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis connector ls [--json]\n";
	static const char *const titles[] = {"NAME", "STATE", "ID", "MODIFIED"};
	struct table t = {.titles = titles, .columns = 4};
	char path[PATH_ROOM] = CONNECTORS "?MaxItems=100", next[1300];
	struct error e;
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	json_t *all = json_array();
	for (bool more = true; more;) {
		json_t *page = NULL, *item;
		size_t i;
		if (client_call(&c->settings, "GET", path, NULL, &page, &e) < 0) {
			json_decref(all);
			return client_fail(c, &e);
		}
		json_array_foreach(json_object_get(page, "NetworkConnectors"), i, item) {
			table_row(&t, (const char *const[]){json_text(item, "Name"), json_text(item, "State"), json_text(item, "Id"),
							    json_text(item, "LastModified")});
			json_array_append(all, item);
		}
		more = client_escape(json_text(page, "NextMarker"), next, sizeof(next)) && next[0] != '\0';
		json_decref(page);
		snprintf(path, sizeof(path), CONNECTORS "?MaxItems=100&Marker=%s", next);
	}
	if (c->json)
		print_json(all);
	else
		table_print(&t);
	json_decref(all);
	return EXIT_OK;
}

static int connector_show(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis connector show <name> [--json]\n";
	json_t *o = NULL;
	struct error e;
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'connector show' takes one name");
	if (get(c, argv[optind], &o, &e) < 0)
		return client_fail(c, &e);
	if (c->json)
		print_json(o);
	else
		print_connector(o);
	json_decref(o);
	return EXIT_OK;
}

static int connector_rm(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis connector rm <name> [--json]\n";
	char path[600];
	json_t *answer = NULL;
	struct error e;
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'connector rm' takes one name");
	connector_path(argv[optind], path);
	int r = client_call(&c->settings, "DELETE", path, NULL, &answer, &e);
	// Deletion goes on behind the answer; the command returns when the name is free again.
	while (r == 0 && get(c, json_text(answer, "Id"), NULL, &e) == 0)
		usleep(POLL_US);
	if (r == 0 && c->json)
		print_json(answer);
	json_decref(answer);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

int cmd_connector(struct cli *c, int argc, char **argv) {
	static const struct {
		const char *name;
		int (*run)(struct cli *, int, char **);
	} verbs[] = {{"create", connector_create}, {"ls", connector_ls}, {"show", connector_show}, {"rm", connector_rm}};
	if (argc < 2)
		return usage_error(connector_help, "'connector' takes a command");
	for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
		if (strcmp(argv[1], verbs[i].name) == 0)
			return verbs[i].run(c, argc - 1, argv + 1);
	if (strcmp(argv[1], "--help") == 0) {
		fputs(connector_help, stdout);
		return EXIT_OK;
	}
	return usage_error(connector_help, "there is no command 'connector %s'", argv[1]);
}
