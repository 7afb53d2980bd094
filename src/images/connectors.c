// Connectors are given as lists of ARNs. The service's own are told by their names; which networks the account's own lead to was resolved by the API
// when the configuration was made ("egressNetworks"): nothing is looked up here.
#include "images/connectors.h"

#include "base/json.h"

#include <string.h>

#define CONFIG_LIMIT (1024 * 1024)

// Whether an entry of a list is the service's connector of that name.
static bool is_managed(const json_t *list, size_t i, const char *name) {
	const char *arn = json_string_value(json_array_get(list, i)), *last = arn == NULL ? NULL : strrchr(arn, ':');
	return last != NULL && strcmp(last + 1, name) == 0;
}

void read_egress(const json_t *config, const struct egress *inherited, struct egress *ret) {
	const json_t *connectors = json_object_get(config, "egressNetworkConnectors"),
		     *networks = json_object_get(config, "egressNetworks");
	if (json_array_size(connectors) == 0) {
		*ret = *inherited;
		return;
	}
	*ret = (struct egress){.base = LAUNCH_EGRESS_NONE};
	for (size_t i = 0; i < json_array_size(connectors); i++)
		if (is_managed(connectors, i, "INTERNET_EGRESS"))
			ret->base = LAUNCH_EGRESS_INTERNET;
	for (size_t i = 0; i < json_array_size(networks) && i < LAUNCH_NETWORKS_MAX; i++) {
		const char *name = json_string_value(json_array_get(networks, i));
		if (name != NULL && strlen(name) < LAUNCH_NETWORK_MAX)
			memcpy(ret->networks[ret->network_count++], name, strlen(name) + 1);
	}
}

static json_t *parse_run(const char *text) {
	return text == NULL ? NULL : json_parse_object(text, strlen(text), CONFIG_LIMIT, "run", NULL);
}

void run_egress(const char *run_config_json, const struct egress *inherited, struct egress *ret) {
	cleanup_json json_t *config = parse_run(run_config_json);
	read_egress(config, inherited, ret);
}

unsigned ingress_of(const json_t *connectors) {
	unsigned all = 0;
	if (json_array_size(connectors) == 0)
		return INGRESS_HTTP;
	for (size_t i = 0; i < json_array_size(connectors); i++) {
		if (is_managed(connectors, i, "HTTP_INGRESS") || is_managed(connectors, i, "ALL_INGRESS"))
			all |= INGRESS_HTTP;
		if (is_managed(connectors, i, "SHELL_INGRESS") || is_managed(connectors, i, "ALL_INGRESS"))
			all |= INGRESS_SHELL;
	}
	return all;
}

unsigned run_ingress(const char *run_config_json) {
	cleanup_json json_t *config = parse_run(run_config_json);
	return ingress_of(json_object_get(config, "ingressNetworkConnectors"));
}
