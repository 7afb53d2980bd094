// Scattered bytes: copies to and from lists of segments.
#include "vmm/virtio/device.h"

#include <string.h>

// A position in a list of segments.
struct cursor {
	const struct iovec *iov;
	unsigned left;
	size_t skip; // bytes of *iov that lie behind us
};

static struct cursor cursor_at(const struct iovec *iov, unsigned count, size_t offset) {
	struct cursor c = {.iov = iov, .left = count, .skip = offset};
	while (c.left > 0 && c.skip >= c.iov->iov_len) {
		c.skip -= c.iov->iov_len;
		c.iov++;
		c.left--;
	}
	return c;
}

// The next contiguous piece of at most n bytes; an empty one at the end of the list.
static struct iovec cursor_take(struct cursor *c, size_t n) {
	while (c->left > 0) {
		size_t there = c->iov->iov_len - c->skip;
		struct iovec piece = {.iov_base = (uint8_t *)c->iov->iov_base + c->skip, .iov_len = there < n ? there : n};
		c->skip += piece.iov_len;
		if (c->skip == c->iov->iov_len) {
			c->iov++;
			c->left--;
			c->skip = 0;
		}
		if (piece.iov_len > 0)
			return piece;
	}
	return (struct iovec){0};
}

size_t iov_read(const struct iovec *iov, unsigned count, size_t offset, void *to, size_t n) {
	struct cursor c = cursor_at(iov, count, offset);
	size_t done = 0;
	while (done < n) {
		struct iovec piece = cursor_take(&c, n - done);
		if (piece.iov_len == 0)
			break;
		memcpy((uint8_t *)to + done, piece.iov_base, piece.iov_len);
		done += piece.iov_len;
	}
	// What was copied must not be fetched again from guest memory by the compiler: a check could then see other bytes than the use.
	__asm__ volatile("" ::: "memory");
	return done;
}

size_t iov_write(const struct iovec *iov, unsigned count, size_t offset, const void *from, size_t n) {
	struct cursor c = cursor_at(iov, count, offset);
	size_t done = 0;
	while (done < n) {
		struct iovec piece = cursor_take(&c, n - done);
		if (piece.iov_len == 0)
			break;
		memcpy(piece.iov_base, (const uint8_t *)from + done, piece.iov_len);
		done += piece.iov_len;
	}
	return done;
}

size_t iov_zero(const struct iovec *iov, unsigned count, size_t offset, size_t n) {
	struct cursor c = cursor_at(iov, count, offset);
	size_t done = 0;
	while (done < n) {
		struct iovec piece = cursor_take(&c, n - done);
		if (piece.iov_len == 0)
			break;
		memset(piece.iov_base, 0, piece.iov_len);
		done += piece.iov_len;
	}
	return done;
}

unsigned iov_slice(const struct iovec *iov, unsigned count, size_t offset, size_t n, struct iovec *to) {
	struct cursor c = cursor_at(iov, count, offset);
	unsigned used = 0;
	size_t done = 0;
	while (done < n) {
		struct iovec piece = cursor_take(&c, n - done);
		if (piece.iov_len == 0)
			break;
		to[used++] = piece;
		done += piece.iov_len;
	}
	return used;
}
