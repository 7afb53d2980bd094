// The engine on this host itself: started by `stasis up` as root, without a service manager.
#pragma once

#include "base/error.h"

#include <stdbool.h>

// Starts stasis-launch in the background with <home>/engine/config.json; its log goes to <home>/engine.log. Needs root.
int host_engine_start(const char *home, const char *program, struct error *e);
bool host_engine_is_running(const char *home);
// Asks it to end (it suspends what runs) and waits.
int host_engine_stop(const char *home, struct error *e);
