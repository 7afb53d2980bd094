// Connections of the control port. Inside of the agent.
#pragma once

#include "guest/agent.h"

// Takes a connected, non-blocking socket; owned from now on.
void control_take(struct agent *a, int fd);
void control_close_all(struct agent *a);
