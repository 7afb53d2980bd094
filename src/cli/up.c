// The commands on the engine: up, down, status, doctor, credentials, machine exec.
//
// `up` decides by the KVM probe where the engine runs: on the host (as root, by stasis-launch) or in the machine. Either way it hands the
// engine one configuration file, $STASIS_HOME/engine/config.json, with an access key made here at the first `up`, waits until the
// engine answers, and remembers where that is in $STASIS_HOME/engine.json for the other commands.
#include "cli/cli.h"
#include "cli/host_engine.h"

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/json.h"
#include "machine/exec.h"
#include "machine/machine.h"
#include "machine/probe.h"
#include "machine/qemu.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#define PORT_BASE 7411 // API; the artifact store is the next one, the edge is at +32
#define EDGE_OFFSET 32
#define OPERATOR_FILE_MAX 65536
#define START_TIMEOUT_MS 180000

static bool engine_answers(const struct settings *s, json_t **ret_health) {
	cleanup_free char *text = NULL;
	size_t size;
	struct error e;
	if (client_get(s, "/_stasis/health", &text, &size, NULL, 0, &e) < 0)
		return false;
	json_t *o = json_loadb(text, size, 0, NULL);
	bool ok = strcmp(json_text(o, "status"), "ok") == 0;
	if (ok && ret_health != NULL)
		*ret_health = json_incref(o);
	json_decref(o);
	return ok;
}

static void random_text(const char *alphabet, size_t n, char *to) {
	unsigned char bytes[64];
	if (n > sizeof(bytes) || getrandom(bytes, n, 0) != (ssize_t)n)
		abort();
	size_t letters = strlen(alphabet);
	for (size_t i = 0; i < n; i++)
		to[i] = alphabet[bytes[i] % letters];
	to[n] = '\0';
}

struct up_options {
	long port_base;
	long memory_mib, cpus;
	const char *where; // "machine", "host", or NULL: as the probe says
};

// Addresses and key of the engine to be started. A key of an earlier `up` is kept: clients know it.
static void choose(struct settings *s, const struct up_options *o) {
	snprintf(s->api, sizeof(s->api), "http://127.0.0.1:%ld", o->port_base);
	snprintf(s->artifacts, sizeof(s->artifacts), "http://127.0.0.1:%ld", o->port_base + 1);
	snprintf(s->edge, sizeof(s->edge), "127.0.0.1:%ld", o->port_base + EDGE_OFFSET);
	if (s->key_id[0] == '\0') {
		memcpy(s->key_id, "AKIA", 4);
		random_text("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16, s->key_id + 4);
		random_text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/", 40, s->key_secret);
	}
}

// What the operator decides: members of the engine's configuration in $STASIS_HOME/operator.json, when there is one.
static int add_operators_members(const struct settings *s, json_t *config, struct error *e) {
	static const char *const ours[] = {"apiListen",    "artifactsListen", "edgeListen",     "edgePublicPort",
					   "assetsFolder", "accessKeyId",     "secretAccessKey"};
	char path[CLI_PATH_MAX];
	cleanup_free char *text = NULL;
	size_t size;
	int r = settings_path(s, "operator.json", path, e);
	if (r < 0 || access(path, F_OK) < 0)
		return r;
	if ((r = read_file(path, OPERATOR_FILE_MAX, &text, &size, e)) < 0)
		return r;
	json_error_t where;
	cleanup_json json_t *members = json_loadb(text, size, JSON_REJECT_DUPLICATES, &where);
	if (!json_is_object(members))
		return error_set(e, -EINVAL, "%s must be a JSON object with members of docs/configuration.md%s%s", path,
				 members == NULL ? ": " : "", members == NULL ? where.text : "");
	for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
		if (json_object_get(members, ours[i]) != NULL)
			return error_set(e, -EINVAL, "%s: \"%s\" is decided by 'stasis up' itself: remove it", path, ours[i]);
	return json_object_update(config, members) < 0 ? error_set(e, -ENOMEM, "out of memory") : 0;
}

// In the machine everything listens on all of its addresses: only QEMU's forwarding from the host's loopback leads there.
static int write_config(const struct settings *s, const struct up_options *o, bool machine, struct error *e) {
	const char *address = machine ? "0.0.0.0" : "127.0.0.1";
	char api[64], artifacts[64], edge[64], assets[CLI_PATH_MAX + 16], path[CLI_PATH_MAX];
	snprintf(api, sizeof(api), "%s:%ld", address, machine ? (long)PORT_BASE : o->port_base);
	snprintf(artifacts, sizeof(artifacts), "%s:%ld", address, machine ? (long)PORT_BASE + 1 : o->port_base + 1);
	snprintf(edge, sizeof(edge), "%s:%ld", address, machine ? (long)PORT_BASE + EDGE_OFFSET : o->port_base + EDGE_OFFSET);
	snprintf(assets, sizeof(assets), "%s/assets", machine ? "/program" : s->program);
	json_t *c = json_pack("{s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:s, s:s}", "apiListen", api, "artifactsListen", artifacts, "edgeListen",
			      edge, "assetsFolder", assets, "edgePublicPort", (json_int_t)(o->port_base + EDGE_OFFSET), "region", s->region,
			      "account", s->account, "accessKeyId", s->key_id, "secretAccessKey", s->key_secret);
	// Under emulation a second of native work takes far longer, and QEMU's emulation of nested guests with two processors fails now and
	// then (docs/machine.md).
	if (machine) {
		json_object_set_new(c, "defaultTimeoutScale", json_real(10.0));
		json_object_set_new(c, "builderVcpus", json_integer(1));
	}
	int r = add_operators_members(s, c, e);
	cleanup_free char *text = json_dumps(c, JSON_INDENT(2));
	json_decref(c);
	if (r == 0)
		r = settings_path(s, "engine", path, e);
	if (r == 0)
		r = make_folders(path, 0700, e);
	if (r == 0)
		r = settings_path(s, "engine/config.json", path, e);
	if (r == 0)
		r = write_file_durably(path, text, strlen(text), 0600, e);
	return r;
}

static void on_progress(void *arg, const char *what) {
	progress_step("%s", what);
}

static int wait_until_up(const struct settings *s, bool machine, struct error *e) {
	uint64_t end = monotonic_ms() + START_TIMEOUT_MS;
	while (!engine_answers(s, NULL)) {
		if (monotonic_ms() > end)
			return error_set(e, -ETIMEDOUT, "the engine did not answer at %s within %d s: see %s", s->api,
					 START_TIMEOUT_MS / 1000,
					 machine ? "the machine's console log ('stasis status' names it)" : "its log");
		if (machine ? !machine_is_running(s->home) : !host_engine_is_running(s->home))
			return error_set(e, -ESRCH, "the engine ended while it started: see %s/%s", s->home,
					 machine ? "machine/console.log" : "engine.log");
		progress_step("starting the engine");
		usleep(100 * 1000);
	}
	return 0;
}

static int save_certificate(const struct settings *s, struct error *e) {
	cleanup_free char *pem = NULL;
	char path[CLI_PATH_MAX];
	size_t size;
	int r = client_get(s, "/_stasis/ca.pem", &pem, &size, NULL, 0, e);
	if (r == 0)
		r = settings_path(s, "ca.pem", path, e);
	return r == 0 ? write_file_durably(path, pem, size, 0644, e) : r;
}

static int start(struct cli *c, const struct up_options *o, struct error *e) {
	struct settings *s = &c->settings;
	struct kvm_probe_result probe;
	int r = kvm_probe(&probe);
	if (r < 0)
		return error_set(e, r, "the KVM probe could not run: %s", strerror(-r));
	bool machine = o->where != NULL ? strcmp(o->where, "machine") == 0 : !kvm_probe_is_usable(&probe);
	if (!machine && !kvm_probe_is_usable(&probe))
		return error_set(e, -ENOTSUP, "the engine cannot run on this host itself: %s %s", probe.reason, probe.remedy);
	fprintf(stderr, "stasis: %s\n", machine ? "the engine runs in a machine of its own" : "the engine runs on this host");
	if (machine && o->where == NULL)
		fprintf(stderr, "stasis: because %s\n", probe.reason);
	choose(s, o);
	snprintf(s->mode, sizeof(s->mode), "%s", machine ? "machine" : "host");
	if ((r = write_config(s, o, machine, e)) < 0)
		return r;
	if (machine) {
		struct machine_options options = {.home = s->home,
						  .program = s->program,
						  .memory_mib = (unsigned)o->memory_mib,
						  .cpus = (unsigned)o->cpus,
						  .api_port = (uint16_t)o->port_base,
						  .artifacts_port = (uint16_t)(o->port_base + 1),
						  .edge_port = (uint16_t)(o->port_base + EDGE_OFFSET),
						  .guest_api_port = PORT_BASE,
						  .guest_artifacts_port = PORT_BASE + 1,
						  .guest_edge_port = PORT_BASE + EDGE_OFFSET};
		r = machine_start(&options, on_progress, NULL, e);
	} else {
		r = host_engine_start(s->home, s->program, e);
	}
	if (r == 0)
		r = wait_until_up(s, machine, e);
	if (r == 0)
		r = save_certificate(s, e);
	if (r == 0)
		r = settings_save_engine(s, e);
	return r;
}

static void print_up(const struct cli *c) {
	const struct settings *s = &c->settings;
	if (c->json) {
		json_t *o = json_pack("{s:s, s:s, s:s, s:s}", "mode", s->mode, "api", s->api, "artifacts", s->artifacts, "edge", s->edge);
		print_json(o);
		json_decref(o);
	} else {
		printf("API        %s\nartifacts  %s\nendpoints  https://<id>.microvm.localhost:%s/\n", s->api, s->artifacts,
		       strrchr(s->edge, ':') + 1);
	}
}

int cmd_up(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis up [options]\n"
		"\n"
		"Starts the engine and waits until it answers. Does nothing when it runs already. What $STASIS_HOME/operator.json says\n"
		"is added to the engine's configuration.\n"
		"\n"
		"  --machine         in a virtual machine of its own, even if this host has usable KVM\n"
		"  --host            on this host itself (as root)\n"
		"  --memory MIB      of the machine (default: what is sensible for this host)\n"
		"  --cpus N          of the machine (default: 1; with more its emulation crashes now and then)\n"
		"  --port-base PORT  API at PORT, artifact store at PORT+1, endpoints at PORT+32 (default 7411)\n"
		"  --json\n";
	static const struct option options[] = {{"machine", no_argument, NULL, 'm'},         {"host", no_argument, NULL, 'h'},
						{"memory", required_argument, NULL, 'M'},    {"cpus", required_argument, NULL, 'c'},
						{"port-base", required_argument, NULL, 'p'}, {0}};
	struct up_options o = {.port_base = PORT_BASE};
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "", options, help, &code)) >= 0) {
		if (which == 'm' || which == 'h')
			o.where = which == 'm' ? "machine" : "host";
		else if (which == 'M' && !parse_number(optarg, 2048, 1 << 20, &o.memory_mib))
			return usage_error(help, "--memory takes a number of MiB from 2048, not '%s'", optarg);
		else if (which == 'c' && !parse_number(optarg, 1, 64, &o.cpus))
			return usage_error(help, "--cpus takes 1 to 64, not '%s'", optarg);
		else if (which == 'p' && !parse_number(optarg, 1024, 65535 - EDGE_OFFSET, &o.port_base))
			return usage_error(help, "--port-base takes 1024 to %d, not '%s'", 65535 - EDGE_OFFSET, optarg);
	}
	if (which == -2)
		return code;
	struct error e;
	// Asked with our own key: another home's engine may be on the same port.
	if (c->settings.mode[0] != '\0' && client_call(&c->settings, "GET", "/_stasis/status", NULL, NULL, &e) == 0) {
		print_up(c);
		return EXIT_OK;
	}
	int r = make_folders(c->settings.home, 0700, &e);
	if (r == 0)
		r = start(c, &o, &e);
	progress_done();
	if (r < 0) {
		client_fail(c, &e);
		return EXIT_UNUSABLE;
	}
	print_up(c);
	return EXIT_OK;
}

int cmd_down(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis down\n\nSuspends the microVMs that run, then stops the engine (and its machine). They "
				   "are there again after 'stasis up'.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	struct error e;
	struct settings *s = &c->settings;
	int r = 0;
	if (engine_answers(s, NULL)) {
		progress_step("suspending what runs");
		r = client_call(s, "POST", "/_stasis/shutdown", NULL, NULL, &e);
	}
	if (strcmp(s->mode, "machine") == 0) {
		progress_step("stopping the machine");
		r = machine_stop(s->home, &e);
	} else if (strcmp(s->mode, "host") == 0) {
		progress_step("stopping the engine");
		r = host_engine_stop(s->home, &e);
	}
	progress_done();
	return r < 0 ? client_fail(c, &e) : EXIT_OK;
}

int cmd_status(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis status [--json]\n\nExit code 0 when the engine answers, 3 when it does not.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	const struct settings *s = &c->settings;
	struct error e;
	json_t *status = NULL;
	if (s->mode[0] == '\0' || client_call(s, "GET", "/_stasis/status", NULL, &status, &e) < 0) {
		bool machine = strcmp(s->mode, "machine") == 0 && machine_is_running(s->home);
		if (c->json)
			printf("{\"running\": false, \"machine\": %s}\n", machine ? "true" : "false");
		else if (machine)
			printf("the machine runs, but the engine does not answer: see %s/machine/console.log\n", s->home);
		else
			puts("the engine is not running: start it with 'stasis up'");
		return EXIT_UNREACHABLE;
	}
	json_object_set_new(status, "running", json_true());
	json_object_set_new(status, "mode", json_string(s->mode));
	json_object_set_new(status, "api", json_string(s->api));
	if (c->json) {
		print_json(status);
	} else {
		const char *key;
		json_t *value;
		printf("running    %s\nAPI        %s\nartifacts  %s\nedge       %s\n",
		       strcmp(s->mode, "machine") == 0 ? "in a machine of its own" : "on this host", s->api, s->artifacts, s->edge);
		json_object_foreach(json_object_get(status, "microvms"), key, value)
			printf("microVMs   %-12s %lld\n", key, (long long)json_integer_value(value));
		if (strcmp(s->mode, "machine") == 0)
			printf("console    %s/machine/console.log\n", s->home);
	}
	json_decref(status);
	return EXIT_OK;
}

int cmd_doctor(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis doctor [--json]\n\nRuns a tiny guest on /dev/kvm and says how this host can run Stasis, and why.\n"
		"Exit code 0 when it can (natively or in the machine), 5 when it cannot.\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	struct kvm_probe_result probe;
	if (kvm_probe(&probe) < 0) {
		fputs("stasis: the KVM probe could not run\n", stderr);
		return EXIT_FAILED;
	}
	char path[QEMU_PATH_MAX];
	struct error e;
	bool usable = kvm_probe_is_usable(&probe), qemu = qemu_find(path, &e) == 0;
	const char *mode = usable ? "host" : qemu ? "machine" : "none";
	int version = qemu ? qemu_major_version(path) : 0;
	if (c->json) {
		json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:I, s:I, s:i}", "mode", mode, "kvm", kvm_probe_state_name(probe.state),
				      "reason", probe.reason, "remedy", probe.remedy, "createNs", (json_int_t)probe.create_ns, "runNs",
				      (json_int_t)probe.run_ns, "qemu", version);
		print_json(o);
		json_decref(o);
	} else {
		printf("KVM        %s\n", kvm_probe_state_name(probe.state));
		printf("because    %s\n", probe.reason);
		if (probe.remedy[0] != '\0')
			printf("remedy     %s\n", probe.remedy);
		if (!usable && version > 0 && version < QEMU_MAJOR_RELIABLE)
			printf("warning    QEMU %d emulates nested virtualisation with faults: about every second build fails. Install "
			       "QEMU %d "
			       "or newer (Debian 12: bookworm-backports)\n",
			       version, QEMU_MAJOR_RELIABLE);
		printf("so         %s\n", usable ? "microVMs run on this host's KVM"
					  : qemu ? "microVMs run in a machine of their own (QEMU emulates a host with KVM): everything "
						   "works, 3 to 40 times slower"
						 : "Stasis cannot run here: install QEMU (Debian: apt-get install qemu-system-x86)");
	}
	return strcmp(mode, "none") == 0 ? EXIT_UNUSABLE : EXIT_OK;
}

int cmd_credentials(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis credentials [--json]\n\n"
				   "Prints the environment that AWS's command line and SDKs need to talk to this engine:\n\n"
				   "  eval \"$(stasis credentials)\"\n";
	int code = -1;
	if (next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	const struct settings *s = &c->settings;
	if (s->key_id[0] == '\0') {
		struct error e;
		error_set(&e, -ECONNREFUSED, "no engine is known here: start it with 'stasis up'");
		return client_fail(c, &e);
	}
	char ca[CLI_PATH_MAX] = "";
	settings_path(s, "ca.pem", ca, NULL);
	const char *const lines[][2] = {{"AWS_ACCESS_KEY_ID", s->key_id},
					{"AWS_SECRET_ACCESS_KEY", s->key_secret},
					{"AWS_SESSION_TOKEN", s->key_token},
					{"AWS_REGION", s->region},
					{"AWS_DEFAULT_REGION", s->region},
					{"AWS_ENDPOINT_URL_LAMBDA_MICROVMS", s->api},
					{"AWS_ENDPOINT_URL_LAMBDA_CORE", s->api},
					{"AWS_ENDPOINT_URL_S3", s->artifacts},
					{"STASIS_CA", ca}};
	json_t *o = json_object();
	for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
		if (lines[i][1][0] == '\0')
			continue;
		json_object_set_new(o, lines[i][0], json_string(lines[i][1]));
		if (!c->json)
			printf("export %s='%s'\n", lines[i][0], lines[i][1]);
	}
	if (c->json)
		print_json(o);
	json_decref(o);
	return EXIT_OK;
}

int cmd_machine(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis machine exec <command>\n\n"
		"Runs a shell command as root inside the machine, and ends with its exit code: for looking at the engine from inside.\n"
		"Its state lies in /var/lib/stasis there, its run-time files in /run/stasis.\n";
	int code = -1;
	if (argc > 1 && strcmp(argv[1], "--help") == 0 && next_option(c, argc, argv, "", NULL, help, &code) == -2)
		return code;
	if (argc != 3 || strcmp(argv[1], "exec") != 0)
		return usage_error(help, "'machine' takes 'exec' and one command");
	struct error e;
	char path[CLI_PATH_MAX];
	int status = 0;
	int r = settings_path(&c->settings, "machine/exec.sock", path, &e);
	if (r == 0)
		r = exec_run(path, argv[2], &status, &e);
	return r < 0 ? client_fail(c, &e) : status;
}
