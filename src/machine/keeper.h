// The process that keeps the machine: parent of QEMU, and writer of its console log. See keeper.c.
#pragma once

#include "base/error.h"

#define CONSOLE_LOG_BYTES (4u << 20) // then console.log becomes console.log.1

// Starts QEMU in the background, in a session of its own. `lock` is the locked lock file; it stays locked until QEMU has ended. `folder` is
// <home>/machine. Returns once the background process is there; what becomes of QEMU is told by the log and the lock.
int keeper_start(const char *folder, char *const *argv, int lock, struct error *e);
