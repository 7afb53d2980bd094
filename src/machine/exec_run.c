// The host's side of `stasis machine exec`; see exec.h.
#include "machine/exec.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int exec_run(const char *socket_path, const char *command, int *ret_status, struct error *e) {
	size_t length = strlen(command);
	if (length > EXEC_COMMAND_MAX)
		return error_set(e, -E2BIG, "the command is longer than %u KiB", EXEC_COMMAND_MAX >> 10);
	cleanup_close int sock = unix_connect(socket_path, SOCK_STREAM, e);
	if (sock < 0)
		return error_wrap(e, sock, "the machine cannot be reached");
	uint8_t head[5] = {EXEC_RUN};
	uint32_t size = (uint32_t)length;
	memcpy(head + 1, &size, sizeof(size));
	int r = write_full(sock, head, sizeof(head));
	if (r == 0)
		r = write_full(sock, command, length);
	while (r == 0) {
		char data[EXEC_DATA_MAX];
		r = read_full(sock, head, sizeof(head));
		if (r < 0)
			break;
		memcpy(&size, head + 1, sizeof(size));
		if (size > sizeof(data) || (head[0] == EXEC_STATUS && size != sizeof(uint32_t)))
			return error_set(e, -EBADMSG, "the machine answered with a malformed frame");
		if ((r = read_full(sock, data, size)) < 0)
			break;
		if (head[0] == EXEC_STATUS) {
			uint32_t code;
			memcpy(&code, data, sizeof(code));
			*ret_status = (int)code;
			return 0;
		}
		r = write_full(head[0] == EXEC_OUTPUT ? STDOUT_FILENO : STDERR_FILENO, data, size);
	}
	return error_set(e, r, "the connection to the machine broke: %s", strerror(-r));
}
