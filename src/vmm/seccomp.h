// The system calls that the VMM may make once it has started. The list is in seccomp_list.h; a filter is made from it when Stasis is built, so that
// nothing of it costs at start. A call that is not listed kills the process.
#pragma once

#include "base/error.h"

// For all threads of the process, for good.
int seccomp_enter(struct error *e);
