// From what a user types to the names that the API wants.
#include "cli/cli.h"

#include "base/uuid.h"

#include <stdio.h>
#include <string.h>

void image_arn(const struct cli *c, const char *given, char to[320]) {
	if (strncmp(given, "arn:", 4) == 0)
		snprintf(to, 320, "%s", given);
	else
		snprintf(to, 320, "arn:aws:lambda:%s:%s:microvm-image:%.128s", c->settings.region, c->settings.account, given);
}

void role_arn(const struct cli *c, const char *given, char to[300]) {
	if (strncmp(given, "arn:", 4) == 0)
		snprintf(to, 300, "%.299s", given);
	else
		snprintf(to, 300, "arn:aws:iam::%s:role/%.200s", c->settings.account, given);
}

struct search {
	const char *prefix;
	char found[64];
	size_t count;
};

static int look(const struct cli *c, struct search *s, struct error *e) {
	char path[1400] = "/2025-09-09/microvms?maxResults=50", next[1300];
	for (;;) {
		json_t *page = NULL;
		int r = client_call(&c->settings, "GET", path, NULL, &page, e);
		if (r < 0)
			return r;
		size_t i;
		json_t *item;
		json_array_foreach(json_object_get(page, "items"), i, item) {
			const char *id = json_text(item, "microvmId");
			const char *uuid = strncmp(id, "microvm-", 8) == 0 ? id + 8 : id;
			size_t n = strlen(s->prefix);
			if (strncmp(id, s->prefix, n) != 0 && strncmp(uuid, s->prefix, n) != 0)
				continue;
			snprintf(s->found, sizeof(s->found), "%s", id);
			s->count++;
		}
		bool more = client_escape(json_text(page, "nextToken"), next, sizeof(next)) && next[0] != '\0';
		json_decref(page);
		if (!more)
			return 0;
		snprintf(path, sizeof(path), "/2025-09-09/microvms?maxResults=50&nextToken=%s", next);
	}
}

int microvm_id(const struct cli *c, const char *given, char to[64], struct error *e) {
	const char *uuid = strncmp(given, "microvm-", 8) == 0 ? given + 8 : given;
	if (uuid_is_valid(uuid)) {
		snprintf(to, 64, "microvm-%s", uuid);
		return 0;
	}
	if (strlen(uuid) == 0 || strlen(uuid) > 36)
		return error_named(e, -ENOENT, "ResourceNotFoundException", "no microVM has an id that begins with '%s'", given);
	struct search s = {.prefix = given};
	int r = look(c, &s, e);
	if (r < 0)
		return r;
	if (s.count == 0)
		return error_named(e, -ENOENT, "ResourceNotFoundException", "no microVM has an id that begins with '%s': see 'stasis ls'",
				   given);
	if (s.count > 1)
		return error_set(e, -EINVAL, "%zu microVMs have an id that begins with '%s': give more of it", s.count, given);
	memcpy(to, s.found, sizeof(s.found));
	return 0;
}
