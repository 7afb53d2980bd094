// One command to QEMU's monitor (QMP: docs/interop/qmp-spec.txt of QEMU).
#pragma once

#include "base/error.h"

#include <jansson.h>

// Connects, executes one command without arguments, and disconnects. *ret (may be NULL) gets the "return" member; the caller drops it.
// Gives up after 5 s.
int qmp_execute(const char *socket_path, const char *command, json_t **ret, struct error *e);
