// What stands in for the edge's neighbours in its tests: microVMs that are answers of a table, and a VMM's vsock socket that leads to a port
// on this host. The edge itself is the real one.
#pragma once

#include "stasisd/engine.h"

#include <stdbool.h>
#include <stdint.h>

#define DOUBLE_RUNNING "00000000-0000-4000-8000-000000000001"
#define DOUBLE_SUSPENDED "00000000-0000-4000-8000-000000000002" // wakes within double_wake_ms
#define DOUBLE_ASLEEP "00000000-0000-4000-8000-000000000003"
#define DOUBLE_GONE "00000000-0000-4000-8000-000000000004"
#define DOUBLE_FAILED "00000000-0000-4000-8000-000000000005"
#define DOUBLE_DEAD "00000000-0000-4000-8000-000000000006" // its vsock socket does not exist
#define DOUBLE_SHUT "00000000-0000-4000-8000-000000000007" // its connectors let no requests in

extern int double_wake_ms;
extern _Atomic unsigned double_opened;  // calls of microvm_open()
extern _Atomic unsigned double_held;    // calls not answered yet, and routes not given back
extern _Atomic unsigned double_active;  // microvm_route_active()
extern _Atomic unsigned double_streams; // connections to the vsock socket so far

extern uint16_t double_tls[8]; // ports where the application speaks TLS

// The id of the microVM behind an endpoint.
const char *double_id(const char *endpoint);

// Starts the vsock socket in `folder`: guest port `guest` leads to 127.0.0.1:`host`, others to themselves.
int double_start(const char *folder, uint16_t guest, uint16_t host);
// Takes a socket that somebody else listens on instead.
void double_use(const char *path);
// Cuts all streams, as the end of a VMM does.
void double_cut(void);

// Sleep, of all microVMs at once: what the edge has written is taken out of the sockets, the streams are kept, and the VMM ends. A wake by
// the edge comes after double_wake_ms when double_auto_resume says so; or it fails.
#define DOUBLE_PUBLIC 8080
extern _Atomic int64_t double_tokens_since; // of DOUBLE_FAILED
enum double_wake { DOUBLE_WAKES, DOUBLE_STAYS, DOUBLE_FAILS };
extern _Atomic int double_on_wake;       // enum double_wake
extern _Atomic unsigned double_wakes;    // times that the edge asked for
extern _Atomic unsigned double_detached; // streams that wait for somebody to take them over
void double_sleep(struct engine *en);
void double_awake(struct engine *en); // returns when the edge knows
void double_end(struct engine *en);   // they are terminated
extern _Atomic int double_unanswered; // microvm_route_asked() less microvm_route_answered()
