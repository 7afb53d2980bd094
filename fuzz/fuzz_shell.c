// The shell's WebSocket against a client and a guest that both send anything. The input is cut into pieces: a byte that says whose it is and how
// long, then the piece. Besides memory errors it checks that what the guest gets is whole frames.
#include "../tests/unit/shell_double.h"

#include "guest/guest.h"

#include <stdlib.h>
#include <string.h>

static uint8_t frames[1 << 20];
static size_t frames_size;

static void drain(struct shell_double *d, bool slow) {
	static char data[65536];
	shell_double_take_client(d, data, slow ? 7 : sizeof(data));
	size_t n = shell_double_take_guest(d, data, slow ? 300 : sizeof(data));
	n = n < sizeof(frames) - frames_size ? n : sizeof(frames) - frames_size;
	memcpy(frames + frames_size, data, n);
	frames_size += n;
}

static void check_frames(void) {
	for (size_t at = 0; at + GUEST_SESSION_HEADER <= frames_size;) {
		uint32_t length;
		memcpy(&length, frames + at, 4);
		uint8_t kind = frames[at + 4];
		if (length < 1 || length > GUEST_SESSION_BYTES_MAX + 1 || kind < GUEST_SESSION_REQUEST || kind > GUEST_SESSION_SIGNAL)
			abort();
		at += 4 + length;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static const char head[] =
		"GET /shell HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
	static const char exec[] =
		"GET /_stasis/exec HTTP/1.1\r\nhost: a\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
	if (size < 1)
		return 0;
	struct shell_double *d = shell_double_new();
	int how = data[0];
	frames_size = 0;
	if (how & 4)
		d->guest_room = 600;
	if (how & 1)
		shell_double_client(d, head, sizeof(head) - 1);
	else if (how & 2)
		shell_double_client(d, exec, sizeof(exec) - 1);
	for (size_t at = 1; at < size;) {
		bool guest = (data[at] & 1) != 0;
		size_t n = (size_t)(data[at] >> 1) + 1;
		at++;
		n = n < size - at ? n : size - at;
		if (guest)
			shell_double_guest(d, data + at, n);
		else
			shell_double_client(d, data + at, n);
		drain(d, (how & 8) != 0);
		at += n;
	}
	if (how & 16)
		shell_double_guest_gone(d);
	for (int i = 0; i < 100; i++)
		drain(d, false);
	check_frames();
	shell_double_free(d);
	return 0;
}
