// Quotas of accounts: memory, images, versions, builds, and how often they call (docs/access.md); and whether the host has room for one more
// microVM. Without configuration nothing is limited but by the host's memory.
//
// Admission cannot be raced: whoever is admitted holds the account (or the host) until what was asked for is recorded, so that the next
// one's sum has it. There is one stasisd for a store, so that a lock of the process is enough.
#pragma once

#include "base/error.h"

#include <stdbool.h>
#include <stdint.h>

struct engine;
struct call;
struct quotas; // opaque

// Reads config.quotas and sets en->quotas, which stays. -EINVAL: a member is wrong; the message names it.
int quotas_start(struct engine *en, struct error *e);

// Takes one call of this operation from the account's bucket. False: it was empty; failed and answered with Retry-After.
bool quota_rate(struct call *c);

struct quota_hold {
	void *account; // what is locked; NULL: nothing
	bool host;     // room_unlock() is to be called
};
void quota_release(struct quota_hold *h);
#define cleanup_quota_hold __attribute__((cleanup(quota_release))) struct quota_hold

// Whether the account may have one more image (with its first version and its build), one more version of an image (with its build), one more
// microVM of so much memory as its image asks for. True: *hold, which was empty, is to be released once it is recorded. False: failed and
// answered.
bool quota_admit_image(struct call *c, struct quota_hold *hold);
bool quota_admit_version(struct call *c, const char *image_uuid, struct quota_hold *hold);
bool quota_admit_microvm(struct call *c, int64_t memory_mib, struct quota_hold *hold);
