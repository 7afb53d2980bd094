// A running guest agent for tests: the real one, its loop on a thread, reached over its two Unix sockets as stasisd reaches it over vsock.
#pragma once

#include "guest/agent.h"

#include <jansson.h>
#include <pthread.h>

struct fixture {
	struct agent agent;
	struct agent_options options;
	pthread_t thread;
	char folder[64]; // a fresh one; holds the sockets and, in "run", what the agent writes
	char run[80], control_path[96], streams_path[96], build_program[96], resolv_conf[96];
	int result;
};

// Starts an agent whose build program is a shell script with that text (NULL: there is none). `image`: folder with the application's root file
// system. Fails the test when it cannot.
struct fixture *fixture_start(const char *build_script, const char *image);
// Sends poweroff, waits for the loop to end, removes the folder.
void fixture_stop(struct fixture *f);

int fixture_control(const struct fixture *f);
int fixture_stream(const struct fixture *f, const char *request_line);
int fixture_events(const struct fixture *f); // EVENTS, with its OK read

// Requests are given as in json_pack(3), without "id".
void send_request_text(int fd, const char *json);
void send_request(int fd, int id, const char *op, json_t *members); // takes the reference
json_t *receive_reply(int fd);                                      // NULL at the end of the connection
json_t *call(int fd, const char *op, json_t *members);              // takes the reference; checks the id

struct event_frame {
	int kind;
	uint64_t time_ns;
	size_t size;
	char data[GUEST_EVENT_BYTES_MAX + 1]; // NUL-terminated
};
// False at the end of the connection.
bool receive_event(int fd, struct event_frame *ret);

// Reads exactly n bytes; fails the test otherwise, or after 10 s.
void read_exactly(int fd, void *to, size_t n);
