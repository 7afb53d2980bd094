// Commands of the machine's owner, run inside the machine: `stasis machine exec`, for looking at the engine, and for tests and benchmarks.
//
// A virtio-serial port named EXEC_PORT_NAME leads to a Unix socket in the user's folder (mode 0700), so that only who owns the machine can use
// it; microVMs cannot reach it. One command at a time. Every frame is `u8 kind, u32 size (little-endian), bytes`.
//
//     to the machine    EXEC_RUN     the command, for /bin/sh -c
//     from the machine  EXEC_OUTPUT, EXEC_ERROR  what it wrote
//                       EXEC_STATUS  one u32: exit status (128 + signal when killed), the end
#pragma once

#include "base/error.h"

#include <stdint.h>

#define EXEC_PORT_NAME "stasis.exec"
#define EXEC_COMMAND_MAX (256u << 10)
#define EXEC_DATA_MAX 4096u

enum exec_kind { EXEC_RUN = 1, EXEC_OUTPUT = 2, EXEC_ERROR = 3, EXEC_STATUS = 4 };

// Inside the machine: looks for the port and serves it for ever; returns only on errors. For a process of its own.
int exec_serve(struct error *e);

// On the host: runs a command through the socket, copies what it writes to standard output and error. *ret_status gets its exit status.
int exec_run(const char *socket_path, const char *command, int *ret_status, struct error *e);
