// The operator's networks: what connectors may lead to. See networks.c.
#pragma once

#include "base/error.h"
#include "launch/options.h"

#include <stddef.h>
#include <stdint.h>

// Reads the member "networks" of the engine's configuration into o->networks. Called when the command line has been read: a network must not
// lie in --range. -EINVAL with a message that names the member.
int networks_read(const char *config, size_t size, struct options *o, struct error *e);

// The networks that an egress names, one bit each by their place in o->networks. -ENOENT when one is not configured.
int networks_find(const struct options *o, const struct egress *g, uint32_t *ret, struct error *e);

// Whether `inner` is the same as `outer`, or a part of it.
bool network_is_within(struct network inner, struct network outer);

// Networks that nobody can be let into: loopback, link-local (cloud metadata), multicast and what lies above. Ends with a prefix of 0.
extern const struct network networks_never[];
