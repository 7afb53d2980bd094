// The console log; see console.h.
#include "vmm/console.h"

#include "base/io.h"

#include <sys/stat.h>
#include <unistd.h>

#define LIMIT_MIN 4096u
#define MOVE_BYTES 4096u

void console_open(struct console *c, int fd, uint64_t limit) {
	struct stat st;
	*c = (struct console){.fd = fd, .limit = limit < LIMIT_MIN ? LIMIT_MIN : limit};
	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode))
		c->size = (uint64_t)st.st_size;
}

// Keeps the newest half of the limit. A file that cannot be read back is emptied.
static void make_room(struct console *c) {
	uint8_t block[MOVE_BYTES];
	uint64_t keep = c->limit / 2, from = c->size > keep ? c->size - keep : 0, to = 0;
	while (from < c->size) {
		size_t n = c->size - from < sizeof(block) ? (size_t)(c->size - from) : sizeof(block);
		if (pread_full(c->fd, block, n, from) < 0 || pwrite_full(c->fd, block, n, to) < 0) {
			to = 0;
			break;
		}
		from += n;
		to += n;
	}
	if (ftruncate(c->fd, (off_t)to) == 0)
		c->size = to;
}

void console_flush(struct console *c) {
	size_t n = c->pending;
	c->pending = 0;
	if (n == 0 || c->fd < 0)
		return;
	if (c->size + n > c->limit)
		make_room(c);
	if (c->size + n <= c->limit && pwrite_full(c->fd, c->buffer, n, c->size) == 0)
		c->size += n;
}

void console_put(struct console *c, uint8_t byte) {
	c->total++;
	c->buffer[c->pending++] = (char)byte;
	if (byte == '\n' || c->pending == sizeof(c->buffer))
		console_flush(c);
}
