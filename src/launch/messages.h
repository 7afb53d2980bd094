// Checks what comes over the pair with stasisd (launch.h) before anything is done.
#pragma once

#include "base/error.h"
#include "launch/launch.h"

#include <stdbool.h>
#include <stddef.h>

#define LAUNCH_MEMORY_MAX (1ull << 42)
#define LAUNCH_VCPUS_MAX 64

union launch_request {
	struct launch_header header;
	struct launch_take take;
	struct launch_end end;
};

// Copies a message of `size` bytes to *ret if it is one of launch.h: size, magic, kind, ranges, names. -EBADMSG with a reason otherwise.
int launch_request_parse(const void *data, size_t size, union launch_request *ret, struct error *e);

bool network_name_is_valid(const char *name);
