// Files of the application's container, packed and unpacked as tar archives: what a session's put and get do, in a process of their own that is
// in the container's mount namespace.
#pragma once

#include "guest/session_request.h"
#include "guest/users.h"

// put: unpacks standard input. Into the folder `path`, or, when there is no such folder, in the place of `path` (whose parent must exist). New files
// belong to `user`. get: packs the file or folder `path` to standard output. Notices go to standard error, a line each.
int files_run(const struct session_request *q, const struct user *user, struct error *e);
