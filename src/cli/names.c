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

void image_split(const struct cli *c, const char *given, char arn[320], char version[32]) {
	// Behind the resource's type in an ARN, behind the beginning in a name: neither has a colon of its own.
	const char *type = strncmp(given, "arn:", 4) == 0 ? strstr(given, ":microvm-image:") : NULL;
	const char *name = type == NULL ? given : type + strlen(":microvm-image:"), *colon = strchr(name, ':');
	bool whole_arn = type == NULL && strncmp(given, "arn:", 4) == 0; // of something else: the engine says so
	char rest[320];
	snprintf(rest, sizeof(rest), "%.*s", colon == NULL || whole_arn ? 300 : (int)(colon - given), given);
	image_arn(c, rest, arn);
	snprintf(version, 32, "%.31s", colon == NULL || whole_arn ? "" : colon + 1);
}

int image_path(const struct cli *c, const char *given, const char *rest, char to[IMAGE_PATH_ROOM]) {
	char arn[320], escaped[1000];
	image_arn(c, given, arn);
	if (!client_escape(arn, escaped, sizeof(escaped)))
		return -1;
	return snprintf(to, IMAGE_PATH_ROOM, "/2025-09-09/microvm-images/%s%s", escaped, rest);
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

// Connectors.

static void managed_connector(const struct cli *c, const char *name, char to[200]) {
	snprintf(to, 200, "arn:aws:lambda:%.32s:aws:network-connector:aws-network-connector:%s", c->settings.region, name);
}

void connector_path(const char *given, char to[600]) {
	char escaped[500];
	snprintf(to, 600, "/2026-04-04/network-connectors/%s", client_escape(given, escaped, sizeof(escaped)) ? escaped : "-");
}

static void append(json_t *body, const char *member, const char *arn) {
	json_t *list = json_object_get(body, member);
	if (list == NULL)
		json_object_set_new(body, member, list = json_array());
	json_array_append_new(list, json_string(arn));
}

int add_egress(const struct cli *c, json_t *body, const char *given, struct error *e) {
	static const char member[] = "egressNetworkConnectors";
	char arn[200], path[600];
	bool none = strcmp(given, "none") == 0;
	if (none || strcmp(given, "internet") == 0) {
		managed_connector(c, none ? "NO_EGRESS" : "INTERNET_EGRESS", arn);
		append(body, member, arn);
		return 0;
	}
	if (strncmp(given, "arn:", 4) == 0) {
		append(body, member, given);
		return 0;
	}
	json_t *found = NULL;
	connector_path(given, path);
	int r = client_call(&c->settings, "GET", path, NULL, &found, e);
	if (r == 0)
		append(body, member, json_text(found, "Arn"));
	json_decref(found);
	return r;
}

int add_ingress(const struct cli *c, json_t *body, const char *given, struct error *e) {
	static const char *const words[][2] = {
		{"http", "HTTP_INGRESS"}, {"shell", "SHELL_INGRESS"}, {"all", "ALL_INGRESS"}, {"none", "NO_INGRESS"}};
	char arn[200];
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++) {
		if (strcmp(words[i][0], given) != 0)
			continue;
		managed_connector(c, words[i][1], arn);
		append(body, "ingressNetworkConnectors", arn);
		return 0;
	}
	return error_set(e, -EINVAL, "--ingress takes http, shell, all or none, not '%s'", given);
}
