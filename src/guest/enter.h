// A new process in the application's container: in its cgroup and namespaces, with the rights of its programs. What it runs is a session's
// request: the shell, a program, or (in the mount namespace only) the agent's own code that packs and unpacks files.
//
// Nothing here waits: the processes on the way in may meet a frozen cgroup. They tell how it went over a socket; its end means that the
// program runs, or that all is over.
#pragma once

#include "guest/application.h"
#include "guest/session_request.h"

enum enter_report_kind {
	ENTER_PID,      // value: the program's process id, as the agent sees it
	ENTER_TERMINAL, // the terminal's other end comes with it
	ENTER_FAILED,   // code and message say why; the process ends
};

// One message of the socket.
struct enter_report {
	enum enter_report_kind kind;
	int value;
	char code[sizeof(((struct error *)0)->name)];
	char message[ERROR_MESSAGE_MAX];
};

struct enter {
	const struct application *application;
	const struct session_request *request;
	int input, output, error_output; // the program's; -1 with a terminal
	int report;                      // the socket's far end (SOCK_SEQPACKET)
};

// Starts the way in. *ret_direct: the process that was started is the one that does the work (files), so no ENTER_PID comes. Returns its
// process id or a negative errno, with e->name set for what the caller did wrong.
pid_t enter_container(const struct enter *n, bool *ret_direct, struct error *e);

// Receives one report; *ret_fd gets the terminal or -1. Returns 1, 0 at the end, or a negative errno (-EAGAIN: nothing there).
int enter_receive(int report, struct enter_report *ret, int *ret_fd);
