// `stasis token` and `stasis curl`: the way to an endpoint.
//
// curl is the user's own: it gets the token, Stasis's certificate and the endpoint's address through a configuration file on a pipe, so that
// the token is not seen in the list of processes, and everything else that was given on the command line.
#include "cli/cli.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CURL_ARGUMENTS_MAX 256

static json_t *parse_ports(const char *text) {
	cleanup_free char *copy = strdup(text);
	json_t *list = json_array();
	for (char *save = NULL, *part = strtok_r(copy, ",", &save); part != NULL; part = strtok_r(NULL, ",", &save)) {
		long first, last;
		char *dash = strchr(part, '-');
		if (dash != NULL)
			*dash++ = '\0';
		if (strcmp(part, "all") == 0 && dash == NULL)
			json_array_append_new(list, json_pack("{s:{}}", "allPorts"));
		else if (!parse_number(part, 1, 65535, &first) || (dash != NULL && !parse_number(dash, first, 65535, &last))) {
			json_decref(list);
			return NULL;
		} else if (dash != NULL)
			json_array_append_new(
				list, json_pack("{s:{s:I, s:I}}", "range", "startPort", (json_int_t)first, "endPort", (json_int_t)last));
		else
			json_array_append_new(list, json_pack("{s:I}", "port", (json_int_t)first));
	}
	return list;
}

int make_token(const struct cli *c, const char *id, const char *ports, int minutes, json_t **ret_token, struct error *e) {
	json_t *list = parse_ports(ports);
	if (list == NULL || json_array_size(list) == 0) {
		json_decref(list);
		return error_set(e, -EINVAL, "'%s' is no list of ports: give for example 8080, 8000-8010, or all", ports);
	}
	char path[200];
	snprintf(path, sizeof(path), "/2025-09-09/microvms/%s/auth-token", id);
	json_t *body = json_pack("{s:I, s:o}", "expirationInMinutes", (json_int_t)minutes, "allowedPorts", list);
	int r = client_call(&c->settings, "POST", path, body, ret_token, e);
	json_decref(body);
	return r;
}

// `stasis token revoke <id>` and `stasis token rotate`.
static int change_tokens(struct cli *c, int argc, char **argv) {
	bool revoke = strcmp(argv[0], "revoke") == 0;
	const char *help =
		revoke ? "usage: stasis token revoke <id>\n\nRefuses all tokens of a microVM that were made until now. What is open goes "
			 "on.\n"
		       : "usage: stasis token rotate\n\nSeals new tokens with a new key. Old tokens stay valid until they expire.\n";
	char id[64], path[200] = "/_stasis/token-keys";
	struct error e;
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != (revoke ? 1 : 0))
		return usage_error(help, revoke ? "'token revoke' takes one id" : "'token rotate' takes nothing");
	int r = revoke ? microvm_id(c, argv[optind], id, &e) : 0;
	if (r == 0 && revoke)
		snprintf(path, sizeof(path), "/_stasis/microvms/%s/revoke-tokens", id);
	if (r == 0)
		r = client_call(&c->settings, "POST", path, NULL, NULL, &e);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

int cmd_token(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis token <id> [--ports LIST] [--minutes N] [--json]\n"
		"       stasis token revoke <id>\n"
		"       stasis token rotate\n\n"
		"Prints a token for the header X-aws-proxy-auth; refuses those of a microVM that were made until now; seals new\n"
		"ones with a new key.\n\n"
		"  --ports LIST   like 8080, 8000-8010 or all (default: all)\n"
		"  --minutes N    1 to 60 (default 15)\n";
	static const struct option options[] = {{"ports", required_argument, NULL, 'p'}, {"minutes", required_argument, NULL, 'm'}, {0}};
	const char *ports = "all";
	long minutes = 15;
	int code = -1, which;
	if (argc > 1 && (strcmp(argv[1], "revoke") == 0 || strcmp(argv[1], "rotate") == 0))
		return change_tokens(c, argc - 1, argv + 1);
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0) {
		if (which == 'p')
			ports = optarg;
		else if (!parse_number(optarg, 1, 60, &minutes))
			return usage_error(help, "--minutes takes 1 to 60, not '%s'", optarg);
	}
	if (which == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'token' takes one id");
	char id[64];
	json_t *answer = NULL;
	struct error e;
	int r = microvm_id(c, argv[optind], id, &e);
	if (r == 0)
		r = make_token(c, id, ports, (int)minutes, &answer, &e);
	if (r < 0)
		return client_fail(c, &e);
	if (c->json)
		print_json(answer);
	else
		puts(json_text(json_object_get(answer, "authToken"), "X-aws-proxy-auth"));
	json_decref(answer);
	return EXIT_OK;
}

static int run_curl(const char *options, char **arguments) {
	int ends[2];
	if (pipe(ends) < 0)
		return EXIT_FAILED;
	// The options are far smaller than a pipe, so that they can be written before anybody reads.
	if (write_full(ends[1], options, strlen(options)) < 0)
		return EXIT_FAILED;
	close(ends[1]);
	char config[32];
	snprintf(config, sizeof(config), "/dev/fd/%d", ends[0]);
	arguments[2] = config;
	fflush(stdout);
	execvp("curl", arguments);
	perror("stasis: cannot run curl (Debian: apt-get install curl)");
	return EXIT_FAILED;
}

int cmd_curl(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis curl <id> [path] [--port PORT] [curl's options]\n\n"
		"Calls the endpoint of a microVM with a fresh token, certificate and address filled in; wakes it when it sleeps.\n\n"
		"  stasis curl 3f2a /                        GET\n"
		"  stasis curl 3f2a /run -d 'print(6*7)'     POST\n"
		"  stasis curl 3f2a / --port 9000 -i         another port, with headers\n";
	const char *given = NULL, *path = "/", *port = NULL;
	char *rest[CURL_ARGUMENTS_MAX];
	int n = 0;
	bool have_path = false;
	rest[n++] = (char[]){"curl"};
	rest[n++] = (char[]){"--config"};
	rest[n++] = NULL;
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--help") == 0 && given == NULL) {
			fputs(help, stdout);
			return EXIT_OK;
		}
		if (strcmp(argv[i], "--json") == 0 && given == NULL)
			c->json = true;
		else if (strcmp(argv[i], "--port") == 0 && i + 1 < argc)
			port = argv[++i];
		else if (given == NULL && argv[i][0] != '-')
			given = argv[i];
		else if (!have_path && argv[i][0] == '/') {
			path = argv[i];
			have_path = true;
		} else if (n < CURL_ARGUMENTS_MAX - 1)
			rest[n++] = argv[i];
	}
	rest[n] = NULL;
	long number;
	if (given == NULL)
		return usage_error(help, "'curl' takes an id");
	if (port != NULL && !parse_number(port, 1, 65535, &number))
		return usage_error(help, "--port takes 1 to 65535, not '%s'", port);
	char id[64], name[300], ca[CLI_PATH_MAX], where[300];
	json_t *microvm = NULL, *token = NULL;
	struct error e;
	int r = microvm_id(c, given, id, &e);
	if (r == 0) {
		char api[200];
		snprintf(api, sizeof(api), "/2025-09-09/microvms/%s", id);
		r = client_call(&c->settings, "GET", api, NULL, &microvm, &e);
	}
	if (r == 0)
		r = make_token(c, id, port == NULL ? "8080" : port, 5, &token, &e);
	if (r == 0)
		r = settings_path(&c->settings, "ca.pem", ca, &e);
	if (r < 0) {
		json_decref(microvm);
		return client_fail(c, &e);
	}
	// endpoint: host or host:port; the address to connect to is the edge's.
	snprintf(name, sizeof(name), "%s", json_text(microvm, "endpoint"));
	char *colon = strchr(name, ':');
	const char *edge_port = strrchr(c->settings.edge, ':');
	const char *outside = colon != NULL ? colon + 1 : edge_port != NULL ? edge_port + 1 : "443";
	if (colon != NULL)
		*colon = '\0';
	snprintf(where, sizeof(where), "%s", c->settings.edge);
	char options[8192];
	int size =
		snprintf(options, sizeof(options),
			 "silent\nshow-error\nproxy = \"\"\ncacert = \"%s\"\nconnect-to = \"%s:%s:%s\"\nurl = \"https://%s:%s%s\"\n"
			 "header = \"X-aws-proxy-auth: %s\"\n%s%s%s",
			 ca, name, outside, where, name, outside, path, json_text(json_object_get(token, "authToken"), "X-aws-proxy-auth"),
			 port == NULL ? "" : "header = \"X-aws-proxy-port: ", port == NULL ? "" : port, port == NULL ? "" : "\"\n");
	json_decref(microvm);
	json_decref(token);
	if (size < 0 || (size_t)size >= sizeof(options) || strpbrk(path, "\"\\\n") != NULL)
		return usage_error(help, "the path is too long or has characters that must be percent-encoded");
	return run_curl(options, rest);
}
