// What stasisd counts: requests at endpoints, in all and by microVM, and how long the stages of lifecycle operations took. They lie in
// memory from the start of the process, and are read as Prometheus's text (docs/metrics.md).
//
// Bounded: METRICS_MICROVMS microVMs at a time; when another comes, the one that was quiet for longest is counted under "other" from then on.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define METRICS_MICROVMS 256

// A request (or a stream, when it is over) that the edge has answered. `microvm`: its id; empty when the token told none. [any; no allocation]
void metrics_request(const char *microvm, int status, uint64_t bytes_in, uint64_t bytes_out, uint64_t ms, uint64_t held_ms);

// A stage of an operation, or the whole operation under its own name. Both texts are static. [any; no allocation]
void metrics_stage(const char *operation, const char *stage, uint64_t us);

// The whole text; the caller frees it. NULL: out of memory. [any]
char *metrics_text(size_t *size);
