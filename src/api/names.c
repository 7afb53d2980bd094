// Names that calls carry: ARNs of images and connectors, versions; and finding the records behind them.
#include "api/call.h"
#include "images/images.h"

#include <stdio.h>
#include <string.h>

#define MANAGED_CONNECTOR "network-connector:aws-network-connector:"
#define AWS_BASE_NAME "al2023-1" // the service's own base image: stands for config.default_base

struct arn {
	char region[33], account[13];
	const char *resource;
};

// arn:aws…:lambda:<region>:<account>:<resource>
static bool parse_arn(const char *text, struct arn *ret) {
	if (strncmp(text, "arn:aws", 7) != 0)
		return false;
	const char *at = text + 7;
	while ((*at >= 'a' && *at <= 'z') || *at == '-')
		at++;
	if (strncmp(at, ":lambda:", 8) != 0)
		return false;
	at += 8;
	size_t region = strcspn(at, ":");
	if (region == 0 || region >= sizeof(ret->region) || at[region] != ':')
		return false;
	snprintf(ret->region, sizeof(ret->region), "%.*s", (int)region, at);
	at += region + 1;
	size_t account = strcspn(at, ":");
	if (account == 0 || account >= sizeof(ret->account) || at[account] != ':')
		return false;
	snprintf(ret->account, sizeof(ret->account), "%.*s", (int)account, at);
	ret->resource = at + account + 1;
	return true;
}

const char *arn_resource(const char *text) {
	struct arn arn;
	return parse_arn(text, &arn) ? arn.resource : NULL;
}

static void deny(struct call *c, const char *resource) {
	call_fail(c, 403, "AccessDeniedException", "User: arn:aws:iam::%s:root is not authorized to perform: lambda:%s on resource: %.300s",
		  c->key.account, c->operation, resource);
}

bool is_own_image_arn(struct call *c, const char *text) {
	struct arn arn;
	bool fine = parse_arn(text, &arn);
	// With a slash it names no resource of the service, and nobody may do anything with those.
	if (fine && strncmp(arn.resource, "microvm-image/", 14) == 0) {
		deny(c, text);
		return false;
	}
	if (!fine || strncmp(arn.resource, "microvm-image:", 14) != 0 || !is_image_name(arn.resource + 14) ||
	    strlen(arn.resource + 14) >= NAME_MAX_BYTES || strlen(text) >= ARN_MAX) {
		call_fail(c, 400, "ValidationException", "Invalid ARN format: %.256s", text);
		return false;
	}
	if (strcmp(arn.account, c->key.account) != 0) {
		deny(c, text);
		return false;
	}
	return true;
}

bool find_image(struct call *c, const char *text, struct store_image *ret) {
	struct error e = {0};
	if (!is_own_image_arn(c, text))
		return false;
	int r = store_get_image_by_arn(c->en->store, text, ret, &e);
	if (r == -ENOENT)
		call_not_found(c, "MicroVMImage not found for MicroVMImageID: %s", text);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

void normalise_version(const char *text, char to[VERSION_TEXT]) {
	size_t digits = strspn(text, "0123456789");
	bool whole = digits > 0 && text[digits] == '\0';
	// A version that does not fit is none of ours.
	if (strlen(text) >= VERSION_TEXT - 2)
		text = "";
	int n = snprintf(to, VERSION_TEXT, "%s%s", text, whole && text[0] != '\0' ? ".0" : "");
	if (n < 0 || n >= VERSION_TEXT)
		to[0] = '\0';
}

bool find_version(struct call *c, const struct store_image *image, const char *version, struct store_version *ret) {
	char normal[VERSION_TEXT];
	struct error e = {0};
	normalise_version(version, normal);
	int r = store_get_version(c->en->store, image->uuid, normal, ret, &e);
	if (r == -ENOENT)
		call_not_found(c, "MicroVMImage not found for MicroVMImage: %s, Version: %.64s", image->arn, version);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

bool find_microvm(struct call *c, const char *id, struct store_microvm *ret) {
	struct error e = {0};
	int r = store_get_microvm(c->en->store, id, ret, &e);
	if (r == 0 && strcmp(ret->account, c->key.account) != 0) {
		store_microvm_clear(ret);
		r = -ENOENT;
	}
	if (r == -ENOENT)
		call_not_found(c, "MicroVM not found: %.256s", id);
	else if (r < 0)
		call_fail_with(c, &e);
	return r == 0;
}

// Base images -----------------------------------------------------------------------------------------------------------------------

void managed_image_arn(struct engine *en, const char *name, char to[ARN_MAX]) {
	snprintf(to, ARN_MAX, "arn:aws:lambda:%s:aws:microvm-image:%s", en->config.region, name);
}

const struct base_image *find_base_image(struct engine *en, const char *text, char canonical[ARN_MAX]) {
	struct arn arn;
	const char *name = text;
	if (parse_arn(text, &arn)) {
		if (strcmp(arn.account, "aws") != 0 || strncmp(arn.resource, "microvm-image:", 14) != 0)
			return NULL;
		name = arn.resource + 14;
	}
	const char *wanted = strcmp(name, AWS_BASE_NAME) == 0 ? en->config.default_base : name;
	const struct base_image *list = NULL;
	size_t n = base_images(en, &list);
	for (size_t i = 0; i < n; i++) {
		if (strcmp(list[i].name, wanted) == 0) {
			managed_image_arn(en, name, canonical);
			return &list[i];
		}
	}
	return NULL;
}

// Connectors ------------------------------------------------------------------------------------------------------------------------

bool check_connectors(struct call *c, const json_t *list, enum connector_kind kind) {
	static const char *const ingress[] = {"HTTP_INGRESS", "ALL_INGRESS", "SHELL_INGRESS", "NO_INGRESS", NULL};
	static const char *const egress[] = {"INTERNET_EGRESS", "NO_EGRESS", NULL};
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *text = json_string_value(json_array_get(list, i));
		struct arn arn;
		if (!parse_arn(text, &arn) || strncmp(arn.resource, "network-connector:", 18) != 0) {
			call_fail(c, 400, "ValidationException", "Malformed network connector ARN");
			return false;
		}
		bool known = false;
		if (strcmp(arn.account, "aws") == 0 && strncmp(arn.resource, MANAGED_CONNECTOR, strlen(MANAGED_CONNECTOR)) == 0)
			for (const char *const *name = kind == CONNECTOR_INGRESS ? ingress : egress; *name != NULL; name++)
				known = known || strcmp(arn.resource + strlen(MANAGED_CONNECTOR), *name) == 0;
		if (!known && strcmp(arn.account, "aws") == 0) {
			call_fail(c, 400, "ValidationException", "Unrecognized managed network connector ARN: %.300s", text);
			return false;
		}
		if (!known) {
			call_not_found(c, "Network connector not found: %.300s", text);
			return false;
		}
	}
	return true;
}

json_t *default_connector(struct call *c, const char *name) {
	char arn[ARN_MAX];
	snprintf(arn, sizeof(arn), "arn:aws:lambda:%s:aws:" MANAGED_CONNECTOR "%s", c->en->config.region, name);
	return json_pack("[s]", arn);
}
