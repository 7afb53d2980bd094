// The state file of a snapshot: writer and checked reader of its header and sections (include/stasis/snapshot.h). What the sections
// contain is the business of those whose state it is.
#pragma once

#include "base/error.h"
#include "base/wire.h"
#include "stasis/snapshot.h"

#include <stddef.h>
#include <stdint.h>

// Grows as sections are added. All calls after a failed one fail too.
struct state_writer {
	uint8_t *data;
	size_t size, room;
	size_t open_at; // of the section that is being written; 0: none
	int bad;        // negative errno
};

void state_writer_init(struct state_writer *w, uint32_t architecture);
void state_writer_free(struct state_writer *w);

// Starts a section of at most `room` bytes and returns the writer of its payload, valid until the next call with w.
struct writer state_open(struct state_writer *w, uint32_t tag, uint32_t instance, size_t room);
// Ends the section; its size is what was written to `payload`. When that has run out of room the section is taken back and the call
// returns -ENOSPC, without spoiling *w.
int state_close(struct state_writer *w, const struct writer *payload);
// Fills in size and checksum and writes everything to fd from its beginning.
int state_write(struct state_writer *w, int fd, struct error *e);

struct state_section {
	uint32_t tag, instance;
	const uint8_t *data;
	size_t size;
};

struct state_file {
	const uint8_t *data; // owned when `owned` is set
	size_t size;
	uint8_t *owned;
	unsigned count;
	struct state_section sections[STASIS_SECTIONS_MAX];
};

// Checks header, checksum and the sections' frames over `size` bytes, which must stay valid. Errors: -EBADMSG damaged or cut off, -ENOEXEC other
// architecture, -EPROTONOSUPPORT newer version, -ENOTSUP an unknown section.
int state_parse(const void *data, size_t size, uint32_t architecture, struct state_file *ret, struct error *e);
// Reads the whole file and parses it. Release with state_file_free().
int state_read(int fd, uint32_t architecture, struct state_file *ret, struct error *e);
void state_file_free(struct state_file *f);

// A reader over the section's payload; -ENODATA with a message when there is none.
int state_find(const struct state_file *f, uint32_t tag, uint32_t instance, struct reader *ret, struct error *e);
// Says that a section is malformed: -EBADMSG.
int state_malformed(uint32_t tag, uint32_t instance, struct error *e);
