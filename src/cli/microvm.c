// The commands on microVMs: run, ls, show, suspend, resume, terminate.
#include "cli/cli.h"

#include "base/cleanup.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATH_ROOM 1500

static void microvm_path(const char *id, const char *rest, char to[PATH_ROOM]) {
	snprintf(to, PATH_ROOM, "/2025-09-09/microvms/%s%s", id, rest);
}

static int get_microvm(const struct cli *c, const char *id, json_t **ret, struct error *e) {
	char path[PATH_ROOM];
	microvm_path(id, "", path);
	return client_call(&c->settings, "GET", path, NULL, ret, e);
}

// Polls until the microVM has left the states of passage. Returns -EIO, with its reason, when it ended in another state than wished for.
static int wait_for(const struct cli *c, const char *id, const char *wished, json_t **ret, struct error *e) {
	for (unsigned pause_us = 5000;; pause_us = pause_us < 200000 ? pause_us * 2 : pause_us) {
		json_t *o = NULL;
		int r = get_microvm(c, id, &o, e);
		if (r < 0)
			return r;
		const char *state = json_text(o, "state");
		bool there = strcmp(state, wished) == 0, ended = strcmp(state, "TERMINATED") == 0;
		if (!there && ended)
			r = error_named(e, -EIO, "MicrovmTerminated", "%s is TERMINATED: %s", id, json_text(o, "stateReason"));
		if (there && ret != NULL)
			*ret = o;
		else
			json_decref(o);
		if (there || ended)
			return r;
		usleep(pause_us);
	}
}

// The last part of each connector's ARN.
static void print_connectors(const json_t *o, const char *title, const char *member) {
	json_t *connector;
	size_t i;
	printf("%s", title);
	json_array_foreach(json_object_get(o, member), i, connector) {
		const char *arn = json_string_value(connector), *last = arn == NULL ? NULL : strrchr(arn, ':');
		printf("%s%s", i == 0 ? "" : ", ", last == NULL ? "?" : last + 1);
	}
	putchar('\n');
}

static void print_microvm(const struct cli *c, const json_t *o) {
	char started[32], ended[32];
	format_time(json_number_value(json_object_get(o, "startedAt")), started);
	format_time(json_number_value(json_object_get(o, "terminatedAt")), ended);
	const char *port = strrchr(c->settings.edge, ':');
	bool has_port = strchr(json_text(o, "endpoint"), ':') != NULL;
	printf("id         %s\nstate      %s%s%s\nimage      %s (version %s)\nendpoint   https://%s%s/\nstarted    %s\n",
	       json_text(o, "microvmId"), json_text(o, "state"), json_text(o, "stateReason")[0] ? ": " : "", json_text(o, "stateReason"),
	       json_text(o, "imageArn"), json_text(o, "imageVersion"), json_text(o, "endpoint"), has_port || port == NULL ? "" : port,
	       started);
	if (json_number_value(json_object_get(o, "terminatedAt")) > 0)
		printf("ended      %s\n", ended);
	print_connectors(o, "ingress    ", "ingressNetworkConnectors");
	print_connectors(o, "egress     ", "egressNetworkConnectors");
	const json_t *idle = json_object_get(o, "idlePolicy");
	if (json_is_object(idle))
		printf("idle       suspend after %lld s, keep for %lld s, %s\n",
		       (long long)json_integer_value(json_object_get(idle, "maxIdleDurationSeconds")),
		       (long long)json_integer_value(json_object_get(idle, "suspendedDurationSeconds")),
		       json_is_true(json_object_get(idle, "autoResumeEnabled")) ? "woken by requests" : "woken by 'stasis resume' only");
}

static const char run_help[] =
	"usage: stasis run <image>[:<version>] [options]\n"
	"\n"
	"Launches a microVM: a private copy of the image's snapshot, with an endpoint of its own. Prints its id.\n"
	"\n"
	"  --version V              a version of the image (default: the newest active one)\n"
	"  --idle SECONDS           suspend it when no byte has crossed its endpoint for so long (at least 60); a request wakes it\n"
	"  --no-auto-resume         with --idle: requests do not wake it\n"
	"  --suspended-for SECONDS  with --idle: terminate it when it has slept so long (default 28800)\n"
	"  --max-duration SECONDS   terminate it after so long in any case (default 28800)\n"
	"  --payload TEXT           handed to the application's run hook\n"
	"  --egress WHERE           what it may reach: none, internet, or a network connector; may be given again (default: the image's)\n"
	"  --ingress WHAT           what reaches it: http (default), shell, all or none; may be given again\n"
	"  --role NAME|ARN          the role whose credentials the application finds at 169.254.169.254\n"
	"  --no-wait                return as soon as it is recorded\n"
	"  --json\n";

enum { O_VERSION = 1, O_IDLE, O_NO_AUTO, O_SUSPENDED, O_MAXIMUM, O_PAYLOAD, O_EGRESS, O_INGRESS, O_ROLE, O_NO_WAIT };

struct run_options {
	json_t *body;
	long idle, suspended;
	bool auto_resume, wait;
};

static int set_run_option(struct cli *c, struct run_options *o, int which, const char *value) {
	struct error e;
	long number;
	switch (which) {
	case O_VERSION:
		json_object_set_new(o->body, "imageVersion", json_string(value));
		return -1;
	case O_IDLE:
		return parse_number(value, 1, 1 << 30, &o->idle) ? -1 : usage_error(run_help, "--idle takes seconds, not '%s'", value);
	case O_NO_AUTO:
		o->auto_resume = false;
		return -1;
	case O_SUSPENDED:
		return parse_number(value, 0, 1 << 30, &o->suspended)
			       ? -1
			       : usage_error(run_help, "--suspended-for takes seconds, not '%s'", value);
	case O_MAXIMUM:
		if (!parse_number(value, 1, 1 << 30, &number))
			return usage_error(run_help, "--max-duration takes seconds, not '%s'", value);
		json_object_set_new(o->body, "maximumDurationInSeconds", json_integer(number));
		return -1;
	case O_PAYLOAD:
		json_object_set_new(o->body, "runHookPayload", json_string(value));
		return -1;
	case O_EGRESS:
		return add_egress(c, o->body, value, &e) < 0 ? client_fail(c, &e) : -1;
	case O_INGRESS:
		return add_ingress(c, o->body, value, &e) < 0 ? usage_error(run_help, "%s", e.message) : -1;
	case O_ROLE: {
		char role[300];
		role_arn(c, value, role);
		json_object_set_new(o->body, "executionRoleArn", json_string(role));
		return -1;
	}
	case O_NO_WAIT:
		o->wait = false;
		return -1;
	default:
		return EXIT_USAGE;
	}
}

static int run(struct cli *c, const struct run_options *o, const char *image) {
	char arn[320], version[32];
	struct error e;
	image_split(c, image, arn, version);
	json_object_set_new(o->body, "imageIdentifier", json_string(arn));
	if (version[0] != '\0')
		json_object_set_new(o->body, "imageVersion", json_string(version));
	if (o->idle > 0)
		json_object_set_new(o->body, "idlePolicy",
				    json_pack("{s:I, s:I, s:b}", "maxIdleDurationSeconds", (json_int_t)o->idle, "suspendedDurationSeconds",
					      (json_int_t)o->suspended, "autoResumeEnabled", (int)o->auto_resume));
	json_t *answer = NULL;
	int r = client_call(&c->settings, "POST", "/2025-09-09/microvms", o->body, &answer, &e);
	if (r < 0)
		return client_fail(c, &e);
	if (o->wait) {
		char id[64];
		snprintf(id, sizeof(id), "%s", json_text(answer, "microvmId"));
		json_decref(answer);
		answer = NULL;
		r = wait_for(c, id, "RUNNING", &answer, &e);
	}
	if (r == 0 && c->json)
		print_json(answer);
	else if (r == 0)
		printf("%s\n", json_text(answer, "microvmId"));
	json_decref(answer);
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

int cmd_run(struct cli *c, int argc, char **argv) {
	static const struct option options[] = {{"version", required_argument, NULL, O_VERSION},
						{"idle", required_argument, NULL, O_IDLE},
						{"no-auto-resume", no_argument, NULL, O_NO_AUTO},
						{"suspended-for", required_argument, NULL, O_SUSPENDED},
						{"max-duration", required_argument, NULL, O_MAXIMUM},
						{"payload", required_argument, NULL, O_PAYLOAD},
						{"egress", required_argument, NULL, O_EGRESS},
						{"ingress", required_argument, NULL, O_INGRESS},
						{"role", required_argument, NULL, O_ROLE},
						{"no-wait", no_argument, NULL, O_NO_WAIT},
						{0}};
	struct run_options o = {.body = json_object(), .suspended = 28800, .auto_resume = true, .wait = true};
	int code = -1, which;
	while (code < 0 && (which = next_option(c, argc, argv, "", options, run_help, &code)) >= 0)
		code = set_run_option(c, &o, which, optarg);
	if (code < 0 && argc - optind != 1)
		code = usage_error(run_help, "'run' takes one image");
	if (code < 0)
		code = run(c, &o, argv[optind]);
	json_decref(o.body);
	return code;
}

int cmd_ls(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis ls [--all] [--json]\n\n  --all   terminated ones too\n";
	static const struct option options[] = {{"all", no_argument, NULL, 'a'}, {0}};
	static const char *const titles[] = {"ID", "STATE", "IMAGE", "VERSION", "STARTED"};
	bool every = false;
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "a", options, help, &code)) >= 0)
		every = true;
	if (which == -2)
		return code;
	struct table t = {.titles = titles, .columns = 5};
	json_t *all = json_array();
	char path[PATH_ROOM] = "/2025-09-09/microvms?maxResults=50", next[1300];
	struct error e;
	for (;;) {
		json_t *page = NULL, *item;
		size_t i;
		if (client_call(&c->settings, "GET", path, NULL, &page, &e) < 0) {
			json_decref(all);
			return client_fail(c, &e);
		}
		json_array_foreach(json_object_get(page, "items"), i, item) {
			char when[32];
			if (!every && strcmp(json_text(item, "state"), "TERMINATED") == 0)
				continue;
			const char *name = strrchr(json_text(item, "imageArn"), ':');
			format_time(json_number_value(json_object_get(item, "startedAt")), when);
			table_row(&t, (const char *const[]){json_text(item, "microvmId"), json_text(item, "state"),
							    name == NULL ? "" : name + 1, json_text(item, "imageVersion"), when});
			json_array_append(all, item);
		}
		bool more = client_escape(json_text(page, "nextToken"), next, sizeof(next)) && next[0] != '\0';
		json_decref(page);
		if (!more)
			break;
		snprintf(path, sizeof(path), "/2025-09-09/microvms?maxResults=50&nextToken=%s", next);
	}
	if (c->json)
		print_json(all);
	else
		table_print(&t);
	json_decref(all);
	return EXIT_OK;
}

static void print_stages(const struct cli *c, const char *id) {
	char path[PATH_ROOM];
	snprintf(path, sizeof(path), "/_stasis/microvms/%s/stages", id);
	cleanup_free char *data = NULL;
	size_t size, i;
	struct error e;
	if (client_get(&c->settings, path, &data, &size, NULL, 0, &e) < 0)
		return;
	json_t *o = json_loadb(data, size, 0, NULL), *item;
	puts("stages");
	json_array_foreach(json_object_get(o, "stages"), i, item)
		printf("  %-28s %10.1f ms  %s\n", json_text(item, "name"),
		       (double)json_integer_value(json_object_get(item, "durationUs")) / 1e3, json_text(item, "detail"));
	json_decref(o);
}

int cmd_show(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis show <id> [--json]\n\nAn id may be shortened as long as it stays unambiguous.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'show' takes one id");
	char id[64];
	json_t *o = NULL;
	struct error e;
	int r = microvm_id(c, argv[optind], id, &e);
	if (r == 0)
		r = get_microvm(c, id, &o, &e);
	if (r < 0)
		return client_fail(c, &e);
	if (c->json) {
		print_json(o);
	} else {
		print_microvm(c, o);
		print_stages(c, id);
	}
	json_decref(o);
	return EXIT_OK;
}

// suspend, resume and terminate differ in the call and in the state that is waited for. Several ids may be given; the worst exit code counts.
static int change(struct cli *c, int argc, char **argv, const char *help, const char *method, const char *rest, const char *wished) {
	static const struct option options[] = {{"no-wait", no_argument, NULL, 'n'}, {0}};
	bool waiting = true;
	int code = -1, which, worst = EXIT_OK;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0)
		waiting = false;
	if (which == -2)
		return code;
	if (optind == argc)
		return usage_error(help, "'%s' takes at least one id", argv[0]);
	json_t *all = json_array();
	for (int i = optind; i < argc; i++) {
		char id[64], path[PATH_ROOM];
		json_t *o = NULL;
		struct error e;
		int r = microvm_id(c, argv[i], id, &e);
		if (r == 0) {
			microvm_path(id, rest, path);
			r = client_call(&c->settings, method, path, NULL, NULL, &e);
		}
		if (r == 0)
			r = waiting ? wait_for(c, id, wished, &o, &e) : get_microvm(c, id, &o, &e);
		if (r < 0)
			worst = client_fail(c, &e);
		else if (c->json)
			json_array_append(all, o);
		else
			printf("%s %s\n", id, json_text(o, "state"));
		json_decref(o);
	}
	if (c->json)
		print_json(all);
	json_decref(all);
	return worst;
}

int cmd_suspend(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis suspend <id>… [--no-wait] [--json]\n\n"
		"Writes what differs from the image and ends the process. Memory, files and processes come back with the next request\n"
		"(with an idle policy that says so) or with 'stasis resume'.\n";
	return change(c, argc, argv, help, "POST", "/suspend", "SUSPENDED");
}

int cmd_resume(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis resume <id>… [--no-wait] [--json]\n";
	return change(c, argc, argv, help, "POST", "/resume", "RUNNING");
}

int cmd_terminate(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis terminate <id>… [--no-wait] [--json]\n\nEnds microVMs and removes their memory and disk for good.\n";
	return change(c, argc, argv, help, "DELETE", "", "TERMINATED");
}
