// The command line `stasis`: what its files share.
//
// main.c has the table of commands; each command is one function `int cmd_<name>(struct cli *, int argc, char **argv)` (argv[0] is the
// command's name) that returns an exit code. Commands print results on standard output, everything else on standard error.
#pragma once

#include "base/error.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum exit_code {
	EXIT_OK = 0,
	EXIT_FAILED = 1,      // the operation was refused or failed
	EXIT_USAGE = 2,       // the command line is wrong
	EXIT_UNREACHABLE = 3, // the engine does not answer
	EXIT_NOT_FOUND = 4,   // no such image, microVM, …
	EXIT_UNUSABLE = 5,    // this host cannot run Stasis as asked (doctor, up)
};

#define CLI_PATH_MAX 512

// Where the engine answers and with which key; from $STASIS_HOME/engine.json, overridden by the environment.
struct settings {
	char home[CLI_PATH_MAX];
	char prefix[CLI_PATH_MAX];  // of the installation: bin/stasis, lib/stasis/…
	char program[CLI_PATH_MAX]; // <prefix>/lib/stasis
	char api[256];              // http://127.0.0.1:7411
	char artifacts[256];        // http://127.0.0.1:7412
	char edge[256];             // 127.0.0.1:7443: where endpoints' names lead
	char region[32];
	char account[13];
	char key_id[129];
	char key_secret[129];
	char key_token[1024]; // of temporary credentials; empty: none
	char mode[16];        // "machine", "host", or "" when the engine is not known
};

struct cli {
	struct settings settings;
	bool json; // --json: machine-readable results
};

// settings.c -------------------------------------------------------------------------------------------------------------------
int settings_load(struct settings *s, struct error *e);
int settings_save_engine(const struct settings *s, struct error *e); // writes engine.json (mode 0600)
// "<home>/<name>" into `to`.
int settings_path(const struct settings *s, const char *name, char to[CLI_PATH_MAX], struct error *e);

// client.c ---------------------------------------------------------------------------------------------------------------------
// Calls the API: signs, sends, reads. *ret is the JSON answer (may be NULL for an empty one), owned by the caller. On an error of the API
// e->name is its exception name and e->message its message; -ECONNREFUSED when the engine does not answer.
int client_call(const struct settings *s, const char *method, const char *path, const json_t *body, json_t **ret, struct error *e);

// All items of a list, page by page, as one array. `path` has no query.
int client_list(const struct settings *s, const char *path, json_t **ret, struct error *e);

// GET of raw bytes (operator namespace). The caller frees *ret. Header values are copied when asked for (name, room for 64 bytes).
struct client_header {
	const char *name;
	char value[64];
};
int client_get(const struct settings *s, const char *path, char **ret, size_t *ret_size, struct client_header *headers, size_t nheaders,
	       struct error *e);

// GET of bytes that are written to `to` as they come, for as long as they come.
int client_stream(const struct settings *s, const char *path, FILE *to, struct error *e);

// PUT of an object into the artifact store; makes the bucket when it is missing.
int client_put_object(const struct settings *s, const char *bucket, const char *key, const void *data, size_t size, struct error *e);

// Percent-encodes everything but unreserved characters. Returns false when it does not fit.
bool client_escape(const char *text, char *to, size_t room);

// Prints the error and returns the exit code that fits it.
int client_fail(const struct cli *c, const struct error *e);

// output.c ---------------------------------------------------------------------------------------------------------------------
void print_json(const json_t *value);
struct table {
	const char *const *titles;
	size_t columns;
	char **cells;
	size_t rows, room;
};
void table_row(struct table *t, const char *const *cells);
void table_print(struct table *t); // and releases
void format_time(double epoch_seconds, char to[32]);
void format_size(double bytes, char to[16]);
const char *json_text(const json_t *object, const char *key); // "" when absent or null

// Progress of long work on standard error: on a terminal one line that is rewritten, otherwise one plain line per step.
void progress_step(const char *format, ...) __attribute__((format(printf, 1, 2)));
void progress_done(void);

// archive.c --------------------------------------------------------------------------------------------------------------------
// Packs a folder (its content at the root of the archive) into a zip in memory; honours nothing but the file tree. The caller frees.
int archive_folder(const char *folder, size_t limit, char **ret, size_t *ret_size, struct error *e);

// names.c ----------------------------------------------------------------------------------------------------------------------
// Turns what a user types (name, ARN) into an image ARN.
void image_arn(const struct cli *c, const char *given, char to[320]);
// The same for NAME[:VERSION] and ARN[:VERSION]; version "" when there is none.
void image_split(const struct cli *c, const char *given, char arn[320], char version[32]);
// The path of the API's call on an image, with `rest` behind it.
#define IMAGE_PATH_ROOM 3200
int image_path(const struct cli *c, const char *given, const char *rest, char to[IMAGE_PATH_ROOM]);
// The same for the ARN of a role.
void role_arn(const struct cli *c, const char *given, char to[300]);
// Accepts a full id, its UUID, or an unambiguous beginning of it; asks the engine for the last. Fills `to`.
int microvm_id(const struct cli *c, const char *given, char to[64], struct error *e);
// Adds a connector to the body of a request. Egress: none, internet, or one of the account's own by name, id or ARN, which the engine is asked for.
// Ingress: http, shell, all, none.
int add_egress(const struct cli *c, json_t *body, const char *given, struct error *e);
int add_ingress(const struct cli *c, json_t *body, const char *given, struct error *e);
void connector_path(const char *given, char to[600]); // of the API

// image_version.c: the commands `image versions|activate|deactivate|rm|tag` -------------------------------------------------------
int image_versions(struct cli *c, int argc, char **argv);
int image_activate(struct cli *c, int argc, char **argv); // argv[0] says which way
int image_rm(struct cli *c, int argc, char **argv);
int image_tag(struct cli *c, int argc, char **argv);
int image_public(struct cli *c, int argc, char **argv);

// logs.c -----------------------------------------------------------------------------------------------------------------------
struct log_options {
	bool follow;
	int64_t since_ms, until_ms; // since the epoch; 0: none
};
enum { LOG_SINCE = 0x2000, LOG_UNTIL };
// Takes 'f', LOG_SINCE or LOG_UNTIL. Returns -1, or the exit code of a usage error.
int log_option(const char *help, struct log_options *o, int which, const char *value);
// Prints the log at that path of the operator's namespace.
int log_print(const struct cli *c, const char *path, const struct log_options *o, struct error *e);

// token.c ----------------------------------------------------------------------------------------------------------------------
int make_token(const struct cli *c, const char *id, const char *ports, int minutes, json_t **ret_token, struct error *e);

// policy_options.c -------------------------------------------------------------------------------------------------------------
// A policy from options: a document in a file, or allowed actions and what they may be done on.
struct policy_options {
	const char *file;            // --policy
	json_t *actions, *resources; // --allow, --on; NULL: none
};
#define POLICY_OPTIONS_HELP                                                                                                     \
	"  --policy FILE            a policy document in the language of IAM ('-': standard input)\n"                           \
	"  --allow ACTION           instead: an action that is allowed, such as lambda:RunMicrovm or 's3:*'; may be repeated\n" \
	"  --on RESOURCE            with --allow: on which ARN or image's name (default: all); may be repeated\n"
enum { O_POLICY = 0x100, O_ALLOW, O_ON };
#define POLICY_OPTIONS                                                                                \
	{"policy", required_argument, NULL, O_POLICY}, {"allow", required_argument, NULL, O_ALLOW}, { \
		"on", required_argument, NULL, O_ON                                                   \
	}
// False: not one of these options.
bool policy_option(struct policy_options *o, int which, const char *value);
// *ret is the document, owned by the caller, or NULL when no option was given; releases what the options hold. Images are the account's.
int policy_document(const struct cli *c, struct policy_options *o, const char *account, json_t **ret, struct error *e);

// Commands ---------------------------------------------------------------------------------------------------------------------
int cmd_up(struct cli *c, int argc, char **argv);
int cmd_down(struct cli *c, int argc, char **argv);
int cmd_status(struct cli *c, int argc, char **argv);
int cmd_doctor(struct cli *c, int argc, char **argv);
int cmd_credentials(struct cli *c, int argc, char **argv);
int cmd_machine(struct cli *c, int argc, char **argv);
int cmd_image(struct cli *c, int argc, char **argv);
int cmd_connector(struct cli *c, int argc, char **argv);
int cmd_run(struct cli *c, int argc, char **argv);
int cmd_ls(struct cli *c, int argc, char **argv);
int cmd_show(struct cli *c, int argc, char **argv);
int cmd_suspend(struct cli *c, int argc, char **argv);
int cmd_resume(struct cli *c, int argc, char **argv);
int cmd_terminate(struct cli *c, int argc, char **argv);
int cmd_token(struct cli *c, int argc, char **argv);
int cmd_curl(struct cli *c, int argc, char **argv);
int cmd_logs(struct cli *c, int argc, char **argv);
int cmd_key(struct cli *c, int argc, char **argv);
int cmd_role(struct cli *c, int argc, char **argv);
int cmd_shell(struct cli *c, int argc, char **argv);
int cmd_exec(struct cli *c, int argc, char **argv);
int cmd_cp(struct cli *c, int argc, char **argv);

// Option parsing for commands: wraps getopt_long with the common options (--json, --help). `help` is the command's help text.
struct option;
// Returns the option's value as getopt_long does, -1 at the end, and handles --json and --help itself: -2 means "done, exit with *code".
int next_option(struct cli *c, int argc, char **argv, const char *letters, const struct option *options, const char *help, int *code);
int usage_error(const char *help, const char *format, ...) __attribute__((format(printf, 2, 3)));
// A command of several: runs the verb that argv[1] names.
struct verb {
	const char *name; // NULL ends the list
	int (*run)(struct cli *, int, char **);
};
int run_verb(struct cli *c, int argc, char **argv, const struct verb *verbs, const char *help);
bool parse_number(const char *text, long least, long most, long *ret);
