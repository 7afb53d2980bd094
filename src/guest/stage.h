// From the initramfs to the system disk: what PID 1 does before it is the agent.
#pragma once

#include "base/error.h"

// Mounts the kernel's file systems, loads the modules, finds the system disk and makes it the root file system, brings the network up.
int stage_run(struct error *e);

// Says why on the console and powers the machine off.
void stage_give_up(const struct error *e) __attribute__((noreturn));
