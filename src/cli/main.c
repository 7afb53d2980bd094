// `stasis`: the table of commands, help, and the option parsing that they share.
#include "cli/cli.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct command {
	const char *name, *summary;
	int (*run)(struct cli *, int, char **);
	const char *group;
} commands[] = {
	{"up", "start the engine (in a virtual machine of its own where KVM cannot be used)", cmd_up, "Engine"},
	{"down", "suspend what runs and stop the engine", cmd_down, NULL},
	{"status", "say whether the engine runs and what it holds", cmd_status, NULL},
	{"doctor", "say how this host can run Stasis, and why", cmd_doctor, NULL},
	{"credentials", "print the environment that AWS's tools need", cmd_credentials, NULL},
	{"machine", "run a command inside the machine", cmd_machine, NULL},
	{"image", "create, list, show and delete images, follow their builds", cmd_image, "Images and microVMs"},
	{"run", "launch a microVM from an image", cmd_run, NULL},
	{"ls", "list microVMs", cmd_ls, NULL},
	{"show", "show one microVM", cmd_show, NULL},
	{"suspend", "put a microVM to sleep: no process, no memory", cmd_suspend, NULL},
	{"resume", "wake a microVM", cmd_resume, NULL},
	{"terminate", "end microVMs for good", cmd_terminate, NULL},
	{"logs", "print what a microVM's application wrote", cmd_logs, NULL},
	{"shell", "open a shell in a microVM", cmd_shell, NULL},
	{"exec", "run a program in a microVM", cmd_exec, NULL},
	{"cp", "copy files and folders into a microVM or out of it", cmd_cp, NULL},
	{"token", "make a token for a microVM's endpoint", cmd_token, "Endpoints"},
	{"curl", "call a microVM's endpoint with a fresh token", cmd_curl, NULL},
};

static void print_help(FILE *to) {
	fputs("Stasis: stateful isolated sandboxes. Private copies of your application, each in a microVM of its own.\n\n"
	      "usage: stasis <command> [options]\n",
	      to);
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (commands[i].group != NULL)
			fprintf(to, "\n%s\n", commands[i].group);
		fprintf(to, "  %-12s %s\n", commands[i].name, commands[i].summary);
	}
	fputs("\nEvery command explains itself with --help and prints JSON with --json.\n"
	      "\nA first walk:\n"
	      "  stasis up\n"
	      "  stasis image create hello ./folder-with-a-Dockerfile\n"
	      "  stasis run hello\n"
	      "  stasis curl <id> /\n"
	      "\nExit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 the engine does not answer, 4 not found, 5 this host cannot.\n",
	      to);
}

int usage_error(const char *help, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	fputs("stasis: ", stderr);
	vfprintf(stderr, format, ap);
	va_end(ap);
	fprintf(stderr, "\n\n%s", help);
	return EXIT_USAGE;
}

bool parse_number(const char *text, long least, long most, long *ret) {
	char *end;
	errno = 0;
	long v = strtol(text, &end, 10);
	if (errno != 0 || end == text || *end != '\0' || v < least || v > most)
		return false;
	*ret = v;
	return true;
}

int next_option(struct cli *c, int argc, char **argv, const char *letters, const struct option *options, const char *help, int *code) {
	enum { OPTIONS_MAX = 32, JSON_OPTION = 0x1000, HELP_OPTION };
	struct option all[OPTIONS_MAX] = {{"json", no_argument, NULL, JSON_OPTION}, {"help", no_argument, NULL, HELP_OPTION}};
	size_t n = 2;
	for (; options != NULL && options->name != NULL && n < OPTIONS_MAX - 1; options++)
		all[n++] = *options;
	for (;;) {
		int o = getopt_long(argc, argv, letters, all, NULL);
		if (o == JSON_OPTION) {
			c->json = true;
			continue;
		}
		if (o == HELP_OPTION) {
			fputs(help, stdout);
			*code = EXIT_OK;
			return -2;
		}
		if (o == '?' || o == ':') {
			fprintf(stderr, "\n%s", help);
			*code = EXIT_USAGE;
			return -2;
		}
		return o;
	}
}

int main(int argc, char **argv) {
	struct cli c = {0};
	struct error e;
	int first = 1;
	if (first < argc && strcmp(argv[first], "--json") == 0) {
		c.json = true;
		first++;
	}
	if (first >= argc) {
		print_help(stderr);
		return EXIT_USAGE;
	}
	const char *name = argv[first];
	if (strcmp(name, "help") == 0 || strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0) {
		print_help(stdout);
		return EXIT_OK;
	}
	if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
		puts("stasis " STASIS_VERSION);
		return EXIT_OK;
	}
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		if (strcmp(commands[i].name, name) != 0)
			continue;
		if (settings_load(&c.settings, &e) < 0)
			return client_fail(&c, &e);
		int code = commands[i].run(&c, argc - first, argv + first);
		progress_done();
		if (fflush(stdout) != 0)
			return EXIT_FAILED;
		return code;
	}
	fprintf(stderr, "stasis: there is no command '%s'; 'stasis help' lists them\n", name);
	return EXIT_USAGE;
}
