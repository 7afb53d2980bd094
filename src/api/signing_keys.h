// The keys that SigV4 derives from a secret for a day, region and service (four HMACs): made once, and kept for the calls that follow.
#pragma once

#include "api/sigv4.h"

// The same as sigv4_key(), from memory where it can. [any thread]
void signing_key(const struct sigv4 *s, const char *secret, unsigned char key[32]);
