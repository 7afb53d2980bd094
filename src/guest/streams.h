// New connections of the streams port: the request line, and who takes the stream. Inside of the agent.
#pragma once

#include "guest/agent.h"

#include <stddef.h>
#include <stdint.h>

#define STREAM_LINE_MAX 64

enum stream_kind { STREAM_TCP, STREAM_EVENTS, STREAM_SESSION };

struct stream_request {
	enum stream_kind kind;
	uint16_t port;
};

// Parses the request line at the start of `data`. Returns its size with the line feed, 0 when it is not complete yet, -EINVAL when it is no request.
ssize_t stream_request_parse(const char *data, size_t size, struct stream_request *ret);

// Takes a connected, non-blocking socket; owned from now on.
void stream_take(struct agent *a, int fd);
void stream_close_all(struct agent *a);
