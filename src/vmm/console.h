// The console log: what the guest writes to its serial port, the newest part of it, in a file of bounded size.
//
// When the file would grow beyond its limit the newer half is moved to its beginning and the rest is cut off.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct console {
	int fd; // -1: nowhere
	uint64_t limit, size;
	uint64_t total; // bytes that the guest has written
	size_t pending;
	char buffer[256];
};

// Goes on at the end of the file. The descriptor becomes the console's.
void console_open(struct console *c, int fd, uint64_t limit);
void console_put(struct console *c, uint8_t byte);
// Writes out what is held back for the end of a line.
void console_flush(struct console *c);
