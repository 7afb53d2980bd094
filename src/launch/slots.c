// The table of slots; see slots.h.
#include "launch/slots.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void clear(struct slot *slot) {
	*slot = (struct slot){.state = SLOT_FREE, .pidfd = -1, .routes = -1, .log = -1};
}

int slots_create(struct slots *s, unsigned count) {
	*s = (struct slots){.at = calloc(count, sizeof(*s->at)), .count = count};
	if (s->at == NULL)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++)
		clear(&s->at[i]);
	s->in_state[SLOT_FREE] = count;
	return 0;
}

void slots_free(struct slots *s) {
	free(s->at);
	*s = (struct slots){.at = NULL};
}

void slot_set_state(struct slots *s, unsigned number, enum slot_state state) {
	struct slot *slot = &s->at[number];
	s->in_state[slot->state]--;
	s->in_state[state]++;
	if (state == SLOT_FREE)
		clear(slot);
	slot->state = state;
}

int slots_claim(struct slots *s, unsigned number, const char *vmm) {
	if (number >= s->count || s->at[number].state != SLOT_FREE || strlen(vmm) >= LAUNCH_VMM_MAX)
		return -1;
	strcpy(s->at[number].vmm, vmm);
	slot_set_state(s, number, SLOT_MAKING);
	return (int)number;
}

int slots_reserve(struct slots *s, const char *vmm) {
	for (unsigned i = 0; i < s->count; i++) {
		unsigned number = (s->next + i) % s->count;
		if (slots_claim(s, number, vmm) >= 0) {
			s->next = (number + 1) % s->count;
			return (int)number;
		}
	}
	return -1;
}

int slots_find(const struct slots *s, const char *vmm) {
	for (unsigned i = 0; i < s->count; i++)
		if (s->at[i].state != SLOT_FREE && strcmp(s->at[i].vmm, vmm) == 0)
			return (int)i;
	return -1;
}

int slots_first(const struct slots *s, enum slot_state state, int after) {
	if (s->in_state[state] == 0)
		return -1;
	for (unsigned i = (unsigned)(after + 1); i < s->count; i++)
		if (s->at[i].state == state)
			return (int)i;
	return -1;
}

bool takes_push(struct takes *t, const struct launch_take *take) {
	if (t->count == LAUNCH_SLOTS_MAX)
		return false;
	t->at[(t->first + t->count++) % LAUNCH_SLOTS_MAX] = *take;
	return true;
}

bool takes_pop(struct takes *t, struct launch_take *ret) {
	if (t->count == 0)
		return false;
	*ret = t->at[t->first];
	t->first = (t->first + 1) % LAUNCH_SLOTS_MAX;
	t->count--;
	return true;
}

unsigned slots_wanted(const struct slots *s, unsigned waiting, unsigned pool, bool may_fill) {
	unsigned goal = waiting + (may_fill ? pool : 0), have = s->in_state[SLOT_MAKING] + s->in_state[SLOT_READY];
	unsigned missing = goal > have ? goal - have : 0;
	return missing < s->in_state[SLOT_FREE] ? missing : s->in_state[SLOT_FREE];
}
