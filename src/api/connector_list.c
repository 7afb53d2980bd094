// Lists of connectors in requests: what each ARN means, which go together, and which networks the account's own connectors lead to.
//
// Connectors are fixed for a microVM's life: what the list means is decided here, once, and kept in its configuration.
#include "api/call.h"
#include "base/cleanup.h"
#include "launch/launch.h"

#include <stdio.h>
#include <string.h>

#define MANAGED "network-connector:aws-network-connector:"

static const char *const ingress_names[] = {"HTTP_INGRESS", "ALL_INGRESS", "SHELL_INGRESS", "NO_INGRESS", NULL};
static const char *const egress_names[] = {"INTERNET_EGRESS", "NO_EGRESS", NULL};

static bool refuse(struct call *c, const char *format, const char *arn) {
	char message[ERROR_MESSAGE_MAX];
	snprintf(message, sizeof(message), "%s%.300s", format, arn);
	call_fail(c, 400, "ValidationException", "%s", message);
	return false;
}

// The name of a managed connector within its ARN; NULL: the account's own. False: failed and answered.
static bool managed_name(struct call *c, const char *text, const char *const *names, const char **ret) {
	struct arn arn;
	*ret = NULL;
	if (text == NULL || !parse_arn(text, &arn) || strncmp(arn.resource, "network-connector:", 18) != 0)
		return refuse(c, "Malformed network connector ARN", "");
	if (strcmp(arn.account, "aws") != 0)
		return true;
	size_t prefix = strlen(MANAGED);
	for (const char *const *name = names; strncmp(arn.resource, MANAGED, prefix) == 0 && *name != NULL; name++)
		if (strcmp(arn.resource + prefix, *name) == 0)
			*ret = *name;
	return *ret != NULL || refuse(c, "Unrecognized managed network connector ARN: ", text);
}

static json_t *default_list(struct call *c, const char *name) {
	char arn[ARN_MAX];
	snprintf(arn, sizeof(arn), "arn:aws:lambda:%s:aws:" MANAGED "%s", c->en->config.region, name);
	return json_pack("[s]", arn);
}

static const char *connector_at(const json_t *list, size_t i) {
	return json_string_value(json_array_get(list, i));
}

// `alone`, which means nothing at all, goes with nothing else.
static bool check_alone(struct call *c, const json_t *list, const char *alone, const char *kind) {
	size_t found = 0;
	for (size_t i = 0; i < json_array_size(list); i++) {
		const char *last = strrchr(connector_at(list, i), ':');
		found += strcmp(last + 1, alone) == 0;
	}
	if (found == 0 || found == json_array_size(list))
		return true;
	call_fail(c, 400, "ValidationException", "%s cannot be combined with other %s network connectors", alone, kind);
	return false;
}

bool put_ingress(struct call *c, const json_t *given, json_t *config) {
	const char *name;
	for (size_t i = 0; i < json_array_size(given); i++) {
		if (!managed_name(c, connector_at(given, i), ingress_names, &name))
			return false;
		if (name == NULL)
			return refuse(c, "An ingress network connector must be one of the service's, not ", connector_at(given, i));
	}
	if (!check_alone(c, given, "NO_INGRESS", "ingress"))
		return false;
	json_object_set_new(config, "ingressNetworkConnectors",
			    json_array_size(given) > 0 ? json_deep_copy(given) : default_list(c, "HTTP_INGRESS"));
	return true;
}

static bool has(const json_t *list, const char *text) {
	for (size_t i = 0; i < json_array_size(list); i++)
		if (strcmp(json_string_value(json_array_get(list, i)), text) == 0)
			return true;
	return false;
}

// Adds the networks of one of the account's connectors.
static bool add_networks(struct call *c, const char *arn, json_t *networks) {
	struct store_connector k;
	if (!find_connector(c, arn, &k))
		return false;
	cleanup_json json_t *config = json_stored(k.config);
	const json_t *subnets =
		json_object_get(json_object_get(json_object_get(config, "Configuration"), "VpcEgressConfiguration"), "SubnetIds");
	bool active = strcmp(k.state, "ACTIVE") == 0;
	if (!active)
		call_fail(c, 400, "ValidationException", "Network connector %.300s is %s; it must be ACTIVE", arn, k.state);
	for (size_t i = 0; i < json_array_size(subnets); i++)
		if (!has(networks, json_string_value(json_array_get(subnets, i))))
			json_array_append(networks, json_array_get(subnets, i));
	store_connector_clear(&k);
	return active;
}

bool put_egress(struct call *c, const json_t *given, const json_t *inherited, json_t *config) {
	const json_t *from = json_array_size(given) > 0 ? given : inherited;
	cleanup_json json_t *list = json_array_size(from) > 0 ? json_deep_copy(from) : default_list(c, "INTERNET_EGRESS");
	cleanup_json json_t *networks = json_array();
	const char *name;
	for (size_t i = 0; i < json_array_size(list); i++)
		if (!managed_name(c, connector_at(list, i), egress_names, &name) ||
		    (name == NULL && !add_networks(c, connector_at(list, i), networks)))
			return false;
	if (!check_alone(c, list, "NO_EGRESS", "egress"))
		return false;
	if (json_array_size(networks) > LAUNCH_NETWORKS_MAX) {
		call_fail(c, 400, "ValidationException",
			  "The egress network connectors have %zu subnets together; at most %d are supported", json_array_size(networks),
			  LAUNCH_NETWORKS_MAX);
		return false;
	}
	json_object_set(config, "egressNetworkConnectors", list);
	if (json_array_size(networks) > 0)
		json_object_set(config, "egressNetworks", networks);
	return true;
}
