// What the control port's requests do. Inside of the agent.
#pragma once

#include "guest/agent.h"
#include "guest/request.h"

// A request that is being handled; embedded in its connection.
struct operation {
	struct agent *agent;
	bool active;
	int64_t id;
	void (*reply)(struct operation *o, json_t *reply); // takes the reference; called once per request
	struct hook *hook;                                 // hook: to be cancelled when nobody waits for it
	bool building;
};

// Starts handling a request whose fields are borrowed. o->reply() is called now or later.
void operation_begin(struct operation *o, struct agent *a, const struct request *q);

// Replies with an error right away (a request that could not be parsed).
void operation_refuse(struct operation *o, int64_t id, const struct error *e);

// The connection is gone: nothing of it will be answered. The operation's memory must stay while o->active; what can be ended is ended.
void operation_abandon(struct operation *o);
