// The configuration of the engine: one JSON object, checked member by member against one table (docs/configuration.md).
#include "stasisd/engine.h"

#include "base/cleanup.h"
#include "base/io.h"

#include <jansson.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_BYTES_MAX (64 * 1024)

enum member_kind {
	MEMBER_TEXT,
	MEMBER_PATH,    // absolute
	MEMBER_ADDRESS, // host:port
	MEMBER_URL,     // http:// or https://, or empty
	MEMBER_ACCOUNT, // twelve digits
	MEMBER_CHOICE,  // one of `choices`
	MEMBER_INT,
	MEMBER_INT64,
	MEMBER_REAL,
	MEMBER_OBJECT, // kept as JSON text
};

struct member {
	const char *name;
	enum member_kind kind;
	size_t offset, size;
	const char *text;    // default of texts
	const char *choices; // "one|other"
	double least, most, number;
};

#define TEXT(n, k, field, def) \
	{ .name = (n), .kind = (k), .offset = offsetof(struct config, field), .size = sizeof(((struct config *)0)->field), .text = (def) }
#define CHOICE(n, field, all, def)                                                                                                         \
	{                                                                                                                                  \
		.name = (n), .kind = MEMBER_CHOICE, .offset = offsetof(struct config, field), .size = sizeof(((struct config *)0)->field), \
		.text = (def), .choices = (all)                                                                                            \
	}
#define NUMBER(n, k, field, lo, hi, def) \
	{ .name = (n), .kind = (k), .offset = offsetof(struct config, field), .least = (lo), .most = (hi), .number = (def) }

static const struct member members[] = {
	TEXT("stateFolder", MEMBER_PATH, state_folder, "/var/lib/stasis"),
	TEXT("runFolder", MEMBER_PATH, run_folder, "/run/stasis"),
	TEXT("assetsFolder", MEMBER_PATH, assets_folder, "/usr/lib/stasis/assets"),
	TEXT("apiListen", MEMBER_ADDRESS, api_listen, "127.0.0.1:7411"),
	TEXT("artifactsListen", MEMBER_ADDRESS, s3_listen, "127.0.0.1:7412"),
	TEXT("edgeListen", MEMBER_ADDRESS, edge_listen, "127.0.0.1:7443"),
	TEXT("edgeDomain", MEMBER_TEXT, edge_domain, "microvm.localhost"),
	NUMBER("edgePublicPort", MEMBER_INT, edge_public_port, 1, 65535, 7443),
	TEXT("region", MEMBER_TEXT, region, "us-east-1"),
	TEXT("account", MEMBER_ACCOUNT, account, "000000000000"),
	TEXT("accessKeyId", MEMBER_TEXT, key_id, ""),
	TEXT("secretAccessKey", MEMBER_TEXT, key_secret, ""),
	TEXT("s3Endpoint", MEMBER_URL, s3_endpoint, ""),
	TEXT("s3AccessKeyId", MEMBER_TEXT, s3_key_id, ""),
	TEXT("s3SecretAccessKey", MEMBER_TEXT, s3_key_secret, ""),
	TEXT("s3Region", MEMBER_TEXT, s3_region, "us-east-1"),
	CHOICE("s3Addressing", s3_addressing, "path|virtual", "path"),
	TEXT("artifactsDomain", MEMBER_TEXT, artifacts_domain, "localhost"),
	NUMBER("artifactStoreLimitBytes", MEMBER_INT64, artifact_store_limit, 0, 1125899906842624.0, 0),
	NUMBER("defaultTimeoutScale", MEMBER_REAL, default_timeout_scale, 0.1, 1000, 1),
	TEXT("baseAliases", MEMBER_OBJECT, base_alias, "{}"),
	TEXT("defaultBase", MEMBER_TEXT, default_base, "debian"),
	TEXT("nameservers", MEMBER_TEXT, nameservers, ""),
	NUMBER("artifactLimitBytes", MEMBER_INT64, artifact_limit, 1 << 20, 1099511627776.0, 1073741824),
	NUMBER("imageDiskBytes", MEMBER_INT64, image_disk_limit, 256 << 20, 1099511627776.0, 8589934592.0),
	NUMBER("builderMemoryMib", MEMBER_INT64, builder_memory_mib, 256, 262144, 2048),
	NUMBER("builderVcpus", MEMBER_INT, builder_vcpus, 1, 16, 2),
	NUMBER("concurrentBuilds", MEMBER_INT, concurrent_builds, 1, 64, 1),
	NUMBER("buildLimitSeconds", MEMBER_INT64, build_limit_s, 10, 86400, 3600),
	CHOICE("logLevel", log_level, "debug|info|warn|error", "info"),
	NUMBER("microvmLogBytes", MEMBER_INT64, microvm_log_bytes, 65536, 1073741824, 8388608),
	NUMBER("buildLogBytes", MEMBER_INT64, build_log_bytes, 65536, 1073741824, 16777216),
	NUMBER("logRetentionSeconds", MEMBER_INT64, log_retention_s, 0, 315360000, 604800),
	NUMBER("logTotalBytes", MEMBER_INT64, log_total_bytes, 0, 1099511627776.0, 1073741824),
	TEXT("cloudWatchEndpoint", MEMBER_URL, cloudwatch_endpoint, ""),
	TEXT("cloudWatchAccessKeyId", MEMBER_TEXT, cloudwatch_key_id, ""),
	TEXT("cloudWatchSecretAccessKey", MEMBER_TEXT, cloudwatch_key_secret, ""),
	TEXT("cloudWatchRegion", MEMBER_TEXT, cloudwatch_region, "us-east-1"),
	CHOICE("cloudWatchRuntime", cloudwatch_runtime, "role|always", "role"),
	TEXT("networks", MEMBER_OBJECT, networks, "{}"),
	TEXT("roles", MEMBER_OBJECT, roles, "{}"),
	TEXT("quotas", MEMBER_OBJECT, quotas, "{}"),
	NUMBER("maximumDurationSeconds", MEMBER_INT64, maximum_duration_s, 1, INT32_MAX, 28800),
	NUMBER("connectionsPerVcpu", MEMBER_INT, connections_per_vcpu, 0, 100000, 1024),
	NUMBER("requestsPerSecondPerVcpu", MEMBER_INT, requests_per_s_per_vcpu, 0, 1000000, 0),
	NUMBER("bytesPerSecondPerVcpu", MEMBER_INT64, bytes_per_s_per_vcpu, 0, 1099511627776.0, 0),
	NUMBER("hostMemoryMib", MEMBER_INT64, host_memory_mib, 0, 1 << 30, 0),
	NUMBER("hostReserveMib", MEMBER_INT64, host_reserve_mib, 0, 1 << 20, 128),
	TEXT("metricsToken", MEMBER_TEXT, metrics_token, ""),
};
#define MEMBERS (sizeof(members) / sizeof(members[0]))

static void put_text(struct config *c, const struct member *m, const char *text) {
	memset((char *)c + m->offset, 0, m->size);
	memcpy((char *)c + m->offset, text, strlen(text));
}

static void put_number(struct config *c, const struct member *m, double v) {
	char *at = (char *)c + m->offset;
	if (m->kind == MEMBER_INT) {
		int i = (int)v;
		memcpy(at, &i, sizeof(i));
	} else if (m->kind == MEMBER_INT64) {
		int64_t i = (int64_t)v;
		memcpy(at, &i, sizeof(i));
	} else {
		memcpy(at, &v, sizeof(v));
	}
}

static bool is_address(const char *s) {
	const char *colon = strrchr(s, ':');
	if (colon == NULL || colon == s || colon[1] == '\0' || strlen(colon + 1) > 5)
		return false;
	for (const char *p = colon + 1; *p != '\0'; p++)
		if (*p < '0' || *p > '9')
			return false;
	return strtol(colon + 1, NULL, 10) <= 65535;
}

// A scheme, a host, no user, no query.
static bool is_url(const char *s) {
	size_t scheme = strncmp(s, "http://", 7) == 0 ? 7 : strncmp(s, "https://", 8) == 0 ? 8 : 0;
	return scheme > 0 && s[scheme] != '\0' && s[scheme] != '/' && strpbrk(s, " @?#\\") == NULL;
}

static bool is_account(const char *s) {
	return strlen(s) == 12 && strspn(s, "0123456789") == 12;
}

static bool is_choice(const char *choices, const char *s) {
	for (size_t n; *choices != '\0'; choices += n + (choices[n] == '|')) {
		n = strcspn(choices, "|");
		if (strlen(s) == n && strncmp(choices, s, n) == 0)
			return true;
	}
	return false;
}

static int take_text(struct config *c, const struct member *m, const char *text, const char *name, struct error *e) {
	if (strlen(text) >= m->size)
		return error_set(e, -EINVAL, "%s: \"%s\" is longer than %zu bytes", name, m->name, m->size - 1);
	if (m->kind == MEMBER_PATH && text[0] != '/')
		return error_set(e, -EINVAL, "%s: \"%s\" must be an absolute path, not \"%s\"", name, m->name, text);
	if (m->kind == MEMBER_ADDRESS && !is_address(text))
		return error_set(e, -EINVAL, "%s: \"%s\" must be an address and a port such as \"127.0.0.1:7411\", not \"%s\"", name,
				 m->name, text);
	if (m->kind == MEMBER_URL && text[0] != '\0' && !is_url(text))
		return error_set(e, -EINVAL, "%s: \"%s\" must be a URL such as \"https://s3.example.org\", not \"%s\"", name, m->name,
				 text);
	if (m->kind == MEMBER_ACCOUNT && !is_account(text))
		return error_set(e, -EINVAL, "%s: \"%s\" must be twelve digits, not \"%s\"", name, m->name, text);
	if (m->kind == MEMBER_CHOICE && !is_choice(m->choices, text))
		return error_set(e, -EINVAL, "%s: \"%s\" must be one of %s, not \"%s\"", name, m->name, m->choices, text);
	put_text(c, m, text);
	return 0;
}

static int take_member(struct config *c, const struct member *m, const json_t *v, const char *name, struct error *e) {
	if (m->kind <= MEMBER_CHOICE) {
		if (!json_is_string(v))
			return error_set(e, -EINVAL, "%s: \"%s\" must be a string", name, m->name);
		return take_text(c, m, json_string_value(v), name, e);
	}
	if (m->kind == MEMBER_OBJECT) {
		if (!json_is_object(v))
			return error_set(e, -EINVAL, "%s: \"%s\" must be an object", name, m->name);
		cleanup_free char *text = json_dumps(v, JSON_COMPACT);
		if (text == NULL)
			return error_set(e, -ENOMEM, "%s: out of memory", name);
		return take_text(c, m, text, name, e);
	}
	if (m->kind == MEMBER_REAL ? !json_is_number(v) : !json_is_integer(v))
		return error_set(e, -EINVAL, "%s: \"%s\" must be a%s number", name, m->name, m->kind == MEMBER_REAL ? "" : " whole");
	double number = json_number_value(v);
	if (!(number >= m->least && number <= m->most))
		return error_set(e, -EINVAL, "%s: \"%s\" must be between %.15g and %.15g, not %.15g", name, m->name, m->least, m->most,
				 number);
	put_number(c, m, number);
	return 0;
}

int config_parse(const char *text, size_t size, const char *name, struct config *ret, struct error *e) {
	struct config c = {0};
	for (size_t i = 0; i < MEMBERS; i++) {
		if (members[i].kind <= MEMBER_CHOICE || members[i].kind == MEMBER_OBJECT)
			put_text(&c, &members[i], members[i].text);
		else
			put_number(&c, &members[i], members[i].number);
	}
	json_error_t parse;
	json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &parse);
	if (root == NULL)
		return error_set(e, -EINVAL, "%s, line %d: %s", name, parse.line, parse.text);
	int r = json_is_object(root) ? 0 : error_set(e, -EINVAL, "%s: the configuration must be one JSON object", name);
	for (void *i = r == 0 ? json_object_iter(root) : NULL; i != NULL && r == 0; i = json_object_iter_next(root, i)) {
		const struct member *m = NULL;
		for (size_t k = 0; k < MEMBERS && m == NULL; k++)
			if (strcmp(members[k].name, json_object_iter_key(i)) == 0)
				m = &members[k];
		r = m == NULL ? error_set(e, -EINVAL, "%s: unknown member \"%.64s\"; see docs/configuration.md", name,
					  json_object_iter_key(i))
			      : take_member(&c, m, json_object_iter_value(i), name, e);
	}
	json_decref(root);
	if (r == 0 && (c.key_id[0] == '\0') != (c.key_secret[0] == '\0'))
		r = error_set(e, -EINVAL, "%s: \"accessKeyId\" and \"secretAccessKey\" belong together; one of them is missing", name);
	if (r == 0 && (c.cloudwatch_key_id[0] == '\0') != (c.cloudwatch_key_secret[0] == '\0'))
		r = error_set(e, -EINVAL,
			      "%s: \"cloudWatchAccessKeyId\" and \"cloudWatchSecretAccessKey\" belong together; one of them is missing",
			      name);
	if (r == 0)
		*ret = c;
	return r;
}

int config_read(const char *path, struct config *ret, struct error *e) {
	cleanup_free char *text = NULL;
	size_t size = 0;
	int r = read_file(path, CONFIG_BYTES_MAX, &text, &size, e);
	if (r < 0)
		return r;
	return config_parse(text, size, path, ret, e);
}
