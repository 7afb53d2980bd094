// What a client of HTTP/2 sends once TLS is open: the session, its streams and their heads, up to the gate, which no input passes. The input
// is cut into pieces by its own first byte.
#include "base/io.h"
#include "base/log.h"
#include "edge/connection.h"
#include "edge/h2_session.h"

#include <stdlib.h>
#include <string.h>

static struct engine engine;
static struct edge *ed;
static size_t sent;

static size_t take(struct connection *c, const void *data, size_t size) {
	sent += size;
	return size;
}

static bool waits(const struct connection *c) {
	return false;
}

static void nothing(struct connection *c) {
	c->again = true;
}

static void idle(struct connection *c, bool is) {
	c->idle = is;
}

static void finish(struct connection *c, bool linger) {
	c->phase = CONNECTION_FINISHING;
}

static void cut(struct connection *c) {
	c->phase = CONNECTION_CLOSED;
}

static const struct transport_ops transport = {
	.write = take, .waits = waits, .idle = idle, .pump = nothing, .finish = finish, .half_close = nothing, .abort = cut};

int LLVMFuzzerInitialize(int *argc, char ***argv) {
	static uv_loop_t loop;
	char folder[] = "/tmp/fuzz-h2-XXXXXX";
	log_set_level(LOG_LEVEL_ERROR);
	ed = calloc(1, sizeof(*ed));
	if (ed == NULL || uv_loop_init(&loop) < 0 || mkdtemp(folder) == NULL || token_keys_open(folder, &ed->keys, NULL) < 0)
		abort();
	remove_tree(folder, NULL);
	engine.loop = &loop;
	ed->engine = &engine;
	ed->tokens = token_cache_new();
	ed->stopping = true; // nothing is put off to a later turn of the loop
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
	if (size < 1)
		return 0;
	size_t step = input[0] == 0 ? SIZE_MAX : input[0], at = 1;
	struct connection c = {.edge = ed, .transport = &transport, .idle = true};
	if (h2_session_start(&c) < 0)
		abort();
	while (at < size && c.phase == CONNECTION_OPEN) {
		if (!buffer_want(&ed->buffers, &c.in, BUFFER_SMALL))
			abort();
		buffer_compact(&c.in);
		size_t n = size - at < step ? size - at : step;
		n = n < buffer_room(&c.in) ? n : buffer_room(&c.in);
		buffer_append(&c.in, input + at, n);
		at += n;
		c.ops->run(&c);
		c.ops->sweep(&c, 0);
	}
	c.ops->end(&c);
	buffer_release(&ed->buffers, &c.in);
	return 0;
}
