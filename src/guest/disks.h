// Disks by the serial that the VMM gave them (virtio 1.2, section 5.2.6.1: GET_ID).
#pragma once

#include "base/error.h"

#include <stddef.h>

// Writes the device's path ("/dev/vda") to `to`. -ENODEV when no disk has that serial.
int disk_find(const char *serial, char *to, size_t room, struct error *e);
