// The server side of control.sock (control.h).
#pragma once

#include "base/error.h"
#include "vmm/loop.h"

#include <stdbool.h>

#define CONTROL_CLIENTS_MAX 8

struct vm;
struct control_server;

struct control_client {
	struct control_server *server;
	int fd; // -1: free
	struct loop_handler handler;
};

struct control_server {
	struct vm *vm;
	struct loop *loop;
	int listen_fd;
	struct loop_handler listen_handler, exited_handler;
	struct control_client clients[CONTROL_CLIENTS_MAX];
	bool quit; // a client has asked for the end
};

// Serves `listen_fd` in the loop. *s must stay where it is.
int control_start(struct control_server *s, struct vm *vm, struct loop *loop, int listen_fd, struct error *e);
