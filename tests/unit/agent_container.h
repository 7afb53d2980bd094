// What the tests with the real crun share: an image whose only program is agent_app, and surroundings as in a guest (a mount namespace of its own
// with cgroup2 where a guest has it). Needs root, crun and cgroup v2; where these are not to be had, container_usable stays false.
#pragma once

#include "agent_fixture.h"

extern const char *container_program; // the static program agent_app; set it before
extern char container_image[];        // folder of the root file system
extern bool container_usable;         // with capabilities "all"
extern bool container_default_usable; // and with "default"

// For cmocka's groups.
int container_set_up(void **state);
int container_tear_down(void **state);

// Writes a file of the image.
void container_put(const char *name, const void *data, size_t size, mode_t mode);
// Writes the image's configuration; `config` is the JSON of its member "config".
void container_configure(const char *config);
// As fixture_stop(), and whatever is left of the container goes.
void container_stop(struct fixture *f);
