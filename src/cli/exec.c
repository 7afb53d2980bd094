// `stasis exec` and `stasis shell`: a program in a microVM, with this terminal or these pipes as its own.
//
// One poll loop: what the user types (or the pipe gives) goes out, what comes is written. Signals come as bytes of a signalfd. A raw terminal is
// put back on every way out: at exit, and in the handler of signals that end the program by themselves.
#include "cli/session.h"

#include "base/cleanup.h"
#include "base/io.h"
#include "base/json.h"

#include <getopt.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#define EXIT_NOT_EXECUTABLE 126 // as shells do
#define EXIT_NO_PROGRAM 127

// The terminal. ---------------------------------------------------------------------------------------------------------------

static struct termios before;
static volatile sig_atomic_t raw;

static void restore_terminal(void) {
	if (raw)
		tcsetattr(STDIN_FILENO, TCSADRAIN, &before);
	raw = 0;
}

static void on_fatal(int number) {
	restore_terminal();
	signal(number, SIG_DFL);
	raise(number);
}

static void make_raw(void) {
	static const int fatal[] = {SIGSEGV, SIGBUS, SIGABRT, SIGFPE, SIGILL, SIGQUIT, SIGPIPE};
	struct termios t;
	if (!isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &before) < 0)
		return;
	atexit(restore_terminal);
	for (size_t i = 0; i < sizeof(fatal) / sizeof(fatal[0]); i++)
		signal(fatal[i], on_fatal);
	t = before;
	cfmakeraw(&t);
	raw = tcsetattr(STDIN_FILENO, TCSADRAIN, &t) == 0;
}

static bool terminal_size(struct winsize *ret) {
	return ioctl(STDIN_FILENO, TIOCGWINSZ, ret) == 0 || ioctl(STDOUT_FILENO, TIOCGWINSZ, ret) == 0;
}

// The session. ----------------------------------------------------------------------------------------------------------------

struct run {
	struct session session;
	bool terminal, input; // input: standard input is (still) to be sent
	int signals;
	int code; // exit code, -1: none yet
	struct error error;
};

static void take(void *arg, const struct session_message *m) {
	struct run *r = arg;
	if (m->kind == SESSION_OUTPUT || m->kind == SESSION_ERROR_OUTPUT) {
		// Whoever reads us may be gone; the program is told by the end of the session.
		if (write_full(m->kind == SESSION_OUTPUT ? STDOUT_FILENO : STDERR_FILENO, m->data, m->size) < 0 && r->code < 0)
			r->code = EXIT_FAILED;
		return;
	}
	if (m->kind == SESSION_EXIT) {
		r->code = m->number;
		return;
	}
	session_failed(m, &r->error);
	r->code = strcmp(m->code, "NOT_FOUND") == 0        ? EXIT_NO_PROGRAM
		  : strcmp(m->code, "NOT_EXECUTABLE") == 0 ? EXIT_NOT_EXECUTABLE
							   : EXIT_FAILED;
}

static int take_all(struct run *r) {
	struct session_message m;
	int n;
	while (r->code < 0 && (n = session_receive(&r->session, false, &m, &r->error)) != 0) {
		if (n < 0)
			return n;
		take(r, &m);
	}
	return 0;
}

static int send_input(struct run *r) {
	char data[SESSION_CHUNK];
	ssize_t n = read(STDIN_FILENO, data, sizeof(data));
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return 0;
	if (n > 0)
		return session_send(&r->session, data, (size_t)n, &r->error);
	r->input = false;
	return session_send_json(&r->session, json_pack("{s:s}", "type", "end"), &r->error);
}

static int send_signal(struct run *r) {
	struct signalfd_siginfo info;
	struct winsize size;
	if (read(r->signals, &info, sizeof(info)) != sizeof(info))
		return 0;
	int number = (int)info.ssi_signo;
	if (number == SIGWINCH) {
		if (!r->terminal || !terminal_size(&size))
			return 0;
		return session_send_json(
			&r->session, json_pack("{s:s, s:i, s:i}", "type", "resize", "cols", size.ws_col, "rows", size.ws_row), &r->error);
	}
	if (!r->terminal)
		return session_send_json(&r->session, json_pack("{s:s, s:i}", "type", "signal", "signal", number), &r->error);
	// With a terminal ^C is typed; this one is meant for us.
	r->code = 128 + number;
	return 0;
}

static int serve(struct run *r) {
	int n = 0;
	if (!r->input)
		n = session_send_json(&r->session, json_pack("{s:s}", "type", "end"), &r->error);
	while (n == 0 && r->code < 0) {
		if ((n = take_all(r)) < 0 || r->code >= 0)
			break;
		struct pollfd p[3] = {{.fd = r->session.fd, .events = POLLIN},
				      {.fd = r->signals, .events = POLLIN},
				      {.fd = r->input ? STDIN_FILENO : -1, .events = POLLIN}};
		if (poll(p, 3, -1) < 0 && errno != EINTR)
			return error_errno(&r->error, "poll");
		if (p[1].revents != 0)
			n = send_signal(r);
		if (n == 0 && r->code < 0 && p[2].revents != 0)
			n = send_input(r);
	}
	// A session that ended while we were sending has said why.
	return r->code >= 0 ? 0 : n;
}

static int watch_signals(void) {
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGWINCH);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

// Runs the session to its end. Takes the reference of the request.
static int run(struct cli *c, const char *given, json_t *request, bool terminal, bool input) {
	cleanup_json json_t *owned = request;
	static struct run r;
	struct winsize size;
	char id[64];
	r = (struct run){.terminal = terminal, .input = input, .code = -1};
	if (request == NULL)
		return usage_error("", "the arguments must be text in UTF-8");
	if (terminal && terminal_size(&size)) {
		json_object_set_new(request, "columns", json_integer(size.ws_col));
		json_object_set_new(request, "rows", json_integer(size.ws_row));
	}
	int n = microvm_id(c, given, id, &r.error);
	if (n == 0)
		n = session_open(c, id, request, &r.session, &r.error);
	if (n < 0)
		return client_fail(c, &r.error);
	r.session.meanwhile = take;
	r.session.arg = &r;
	r.signals = watch_signals();
	if (terminal && input)
		make_raw();
	n = serve(&r);
	restore_terminal();
	session_close(&r.session);
	close(r.signals);
	if (n < 0)
		return client_fail(c, &r.error);
	if (r.error.message[0] != '\0')
		client_fail(c, &r.error);
	return r.code;
}

// Commands. -------------------------------------------------------------------------------------------------------------------

int cmd_shell(struct cli *c, int argc, char **argv) {
	static const char help[] = "usage: stasis shell <id> [--user USER] [--folder DIR]\n\n"
				   "Opens a shell in a microVM, as root; wakes it when it sleeps. Ends with the shell's exit code.\n\n"
				   "  --user USER    as in a Dockerfile's USER (default: root)\n"
				   "  --folder DIR   where to begin (default: the image's WORKDIR)\n";
	static const struct option options[] = {{"user", required_argument, NULL, 'u'}, {"folder", required_argument, NULL, 'w'}, {0}};
	cleanup_json json_t *request = json_pack("{s:s}", "op", "shell");
	int code = -1, which;
	while ((which = next_option(c, argc, argv, "u:w:", options, help, &code)) >= 0)
		json_object_set_new(request, which == 'u' ? "user" : "folder", json_string(optarg));
	if (which == -2)
		return code;
	if (argc - optind != 1)
		return usage_error(help, "'shell' takes one id");
	return run(c, argv[optind], json_incref(request), true, true);
}

static bool add_variable(json_t *request, const char *text) {
	const char *equals = strchr(text, '=');
	if (equals == NULL || equals == text)
		return false;
	json_t *env = json_object_get(request, "env");
	if (env == NULL) {
		env = json_object();
		json_object_set_new(request, "env", env);
	}
	return json_object_setn_new(env, text, (size_t)(equals - text), json_string(equals + 1)) == 0;
}

static json_t *arguments(char **argv, int n) {
	json_t *list = json_array();
	for (int i = 0; i < n; i++)
		if (json_array_append_new(list, json_string(argv[i])) < 0) {
			json_decref(list);
			return NULL;
		}
	return list;
}

int cmd_exec(struct cli *c, int argc, char **argv) {
	static const char help[] =
		"usage: stasis exec <id> [options] [--] <program> [arguments]\n\n"
		"Runs a program in a microVM's container; wakes it when it sleeps. Ends with the program's exit code.\n\n"
		"  -i, --input       send standard input\n"
		"  -t, --terminal    give it a terminal\n"
		"  --user USER       as in a Dockerfile's USER (default: root)\n"
		"  --folder DIR      working folder (default: the image's WORKDIR)\n"
		"  --env NAME=VALUE  set a variable; may be given again\n\n"
		"  stasis exec 3f2a -- ps aux\n"
		"  tar c . | stasis exec 3f2a -i -- tar x -C /data\n"
		"  stasis exec 3f2a -it -- python3\n";
	static const struct option options[] = {{"input", no_argument, NULL, 'i'},      {"terminal", no_argument, NULL, 't'},
						{"user", required_argument, NULL, 'u'}, {"folder", required_argument, NULL, 'w'},
						{"env", required_argument, NULL, 'e'},  {0}};
	cleanup_json json_t *request = json_pack("{s:s}", "op", "exec");
	bool input = false, terminal = false;
	const char *id = NULL;
	int code = -1, which;
	// Options may stand before and behind the id; what follows it is the program's.
	for (;;) {
		which = next_option(c, argc, argv, "+itu:w:e:", options, help, &code);
		if (which == 'i')
			input = true;
		else if (which == 't')
			terminal = true;
		else if (which == 'u' || which == 'w')
			json_object_set_new(request, which == 'u' ? "user" : "folder", json_string(optarg));
		else if (which == 'e' && !add_variable(request, optarg))
			return usage_error(help, "--env takes NAME=VALUE, not '%s'", optarg);
		else if (which == -2)
			return code;
		else if (which == -1 && id == NULL && optind < argc)
			id = argv[optind++];
		else if (which == -1)
			break;
	}
	if (id == NULL || optind >= argc)
		return usage_error(help, "'exec' takes an id and a program");
	json_t *args = arguments(argv + optind, argc - optind);
	const char *term = getenv("TERM");
	if (args == NULL)
		return usage_error(help, "arguments must be text in UTF-8");
	json_object_set_new(request, "args", args);
	json_object_set_new(request, "terminal", json_boolean(terminal));
	if (terminal && term != NULL && json_object_get(json_object_get(request, "env"), "TERM") == NULL) {
		cleanup_free char *variable = NULL;
		if (asprintf(&variable, "TERM=%s", term) > 0)
			add_variable(request, variable);
	}
	return run(c, id, json_incref(request), terminal, input);
}
