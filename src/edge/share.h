// Each microVM's share of the edge, by its size (spec section 5): how many requests and tunnels may be open at once, how many may begin in a
// second, and how many bytes may pass. The first two are refused with 429; bytes wait, and whoever sends them feels it. Private to src/edge/.
#pragma once

#include "edge/state.h"

struct share;
struct shares;

// One who may have to wait for bytes: a session. Zeroed at first.
struct share_user {
	TAILQ_ENTRY(share_user) link;
	struct share *share;   // NULL: there are no limits
	bool waiting;          // for bytes: resume() comes
	struct connection *of; // pumped when bytes may pass again
};

enum share_verdict { SHARE_FINE, SHARE_CONNECTIONS, SHARE_REQUESTS, SHARE_NO_MEMORY };

// A request to this endpoint begins. Only with SHARE_FINE there is something to leave. [loop thread, as all here]
enum share_verdict share_enter(struct edge *ed, const char *endpoint, struct connection *of, struct share_user *u);
void share_leave(struct edge *ed, struct share_user *u);

// Whether bytes may pass now. If not, the connection is pumped once they may.
bool share_may_pass(struct edge *ed, struct share_user *u);
void share_passed(struct edge *ed, struct share_user *u, size_t bytes);

// Sets ed->shares; -ENOMEM. The timer is the edge's to close, and then shares_free() may be called.
int shares_start(struct edge *ed);
uv_handle_t *shares_timer(struct edge *ed);
void shares_free(struct edge *ed);
// With the edge's sweep: forgets those that nobody uses.
void shares_sweep(struct edge *ed);
