// The guest agent: the two ports of docs/agent-protocol.md and everything behind them, in one object driven by one loop.
//
// In a guest there is one, made by main.c. Tests make as many as they like: they hand it connected sockets and an environment that is
// not a whole machine.
#pragma once

#include "guest/application.h"
#include "guest/builder.h"
#include "guest/busy.h"
#include "guest/children.h"
#include "guest/events.h"
#include "guest/forward.h"
#include "guest/hook.h"
#include "guest/imds.h"
#include "guest/loop.h"
#include "guest/network.h"
#include "guest/session.h"

#include <stdbool.h>

struct agent_options {
	bool machine; // we are PID 1 of a guest: clock, random generator, network and power are ours
	struct application_paths application;
	const char *build_program;
	// Where the guest's programs ask for credentials, and say that they are busy; in a guest in a network namespace of our own.
	struct in_addr imds_address, busy_address;
	uint16_t imds_port, busy_port;
	const char *resolv_conf; // where name servers are written for the guest's own programs
};

struct agent {
	struct agent_options options;
	struct loop loop;
	struct children children;
	struct events events;
	struct forwards forwards;
	struct hooks hooks;
	struct network_side side; // in a guest
	struct imds imds;
	struct busy busy;
	struct application application;
	struct builder builder;
	struct sessions sessions;
	struct source control_listener, stream_listener;
	struct control *controls;
	struct opening *openings;
	size_t control_count, opening_count;
	struct timer accept_again; // after accept(2) failed for want of something
	int random_fd, meminfo_fd; // opened once: no names are looked up on the way of a restore
	json_t *identity;          // what the last resume said; or NULL
	bool ending;               // poweroff was asked for
	struct job power;
};

// The options of a guest.
struct agent_options agent_guest_options(void);

int agent_init(struct agent *a, const struct agent_options *o, struct error *e);
void agent_end(struct agent *a);

// Listening sockets (non-blocking) of the two ports; owned by the agent.
int agent_listen(struct agent *a, int control, int streams);

// A connection to one of the ports (any stream socket); owned by the agent.
void agent_take_control(struct agent *a, int fd);
void agent_take_stream(struct agent *a, int fd);

// One round of the loop. Returns 0, 1 when poweroff was asked for and everything is written (not in a machine: there the power goes), or a
// negative errno.
int agent_step(struct agent *a, int max_wait_ms);
