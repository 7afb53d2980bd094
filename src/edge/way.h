// The way to one microVM: what all streams to it have in common, through its sleeps. Private to upstream.c and way.c.
//
// A stream is in one of three lists: it waits in line for a connection to the VMM, is being greeted, or is settled (open, or over). Few are
// greeted at a time: an application's backlog is short, and a connection attempt that finds it full is lost for a second. While the microVM
// sleeps, all that are to go on wait in line.
#pragma once

#include "edge/upstream.h"
#include "microvms/microvms.h"

#define WAY_GREETINGS_MAX 16 // connections that are being made at a time
#define WAY_STREAMS_MAX 960  // below what VMM and agent bear (1024)

struct way {
	struct microvm_follower follower;
	struct edge *edge;
	struct microvm_route *route;
	TAILQ_ENTRY(way) link;
	struct upstream_list waiting, greeting, settled;
	unsigned greeting_count, settled_count;
	unsigned pins;
};

// The way that belongs to a route; NULL when out of memory. It lives as long as it has streams or is pinned.
struct way *way_of(struct edge *ed, struct microvm_route *route);
// Puts a stream into one of the lists (out of that which it is in). `first`: at its head.
void way_put(struct upstream *u, struct upstream_list *list, bool first);
// Takes it out for good.
void way_remove(struct upstream *u);
void way_pin(struct way *w);
void way_unpin(struct way *w);
struct upstream *way_any(const struct way *w); // of its streams; NULL: there is none
// Greets those in line, as many as may be.
void way_serve(struct way *w);
bool way_is_awake(const struct way *w);

// upstream.c, for the way's news.
void upstream_begin(struct upstream *u);                    // connects; it has been put into `greeting`
void upstream_halt(struct upstream *u);                     // writes nothing from now on
void upstream_detach(struct upstream *u);                   // the VMM is about to go
void upstream_go_on(struct upstream *u);                    // the VMM was not to go after all
void upstream_lose(struct upstream *u, const char *reason); // it will never be reached again
bool upstream_wants(const struct upstream *u);              // something waits for the microVM to wake
bool upstream_presses(const struct upstream *u);            // somebody does, whom a resume that fails does no harm
