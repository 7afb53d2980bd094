// The shapes of request bodies, as the service's public model states them (spec sections 1.4 to 1.6).
#include "api/validate.h"
#include "store/store.h"

#include <string.h>

#define END \
	{ NULL, NULL, false }

static bool is_letter_or_digit(char c) {
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static bool all_of(const char *s, const char *also) {
	for (; *s != '\0'; s++)
		if (!is_letter_or_digit(*s) && strchr(also, *s) == NULL)
			return false;
	return true;
}

// Patterns with '+' want a character; those with '*' do not.
bool is_image_name(const char *s) {
	return s[0] != '\0' && all_of(s, "-_");
}

bool is_without_space(const char *s) {
	return s[0] != '\0' && strpbrk(s, " \t\n\v\f\r") == NULL;
}

static bool is_log_group(const char *s) {
	return s[0] != '\0' && all_of(s, "_-/.#");
}

static bool is_log_stream(const char *s) {
	return strpbrk(s, ":*") == NULL;
}

// arn:aws[a-z\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+
bool is_role_arn(const char *s) {
	if (strncmp(s, "arn:aws", 7) != 0)
		return false;
	s += 7;
	while ((*s >= 'a' && *s <= 'z') || *s == '-')
		s++;
	if (strncmp(s, ":iam::", 6) != 0)
		return false;
	s += 6;
	for (int i = 0; i < 12; i++, s++)
		if (*s < '0' || *s > '9')
			return false;
	if (strncmp(s, ":role", 5) != 0)
		return false;
	s += 5;
	return s[0] != '\0' && all_of(s, "+=,.@-_/");
}

// ([\p{L}\p{Z}\p{N}_.:/=+\-@]*). Beyond ASCII every character passes: what Unicode calls a letter is not worth a table here.
static bool is_tag_text(const char *s) {
	for (; *s != '\0'; s++)
		if ((unsigned char)*s < 0x80 && !is_letter_or_digit(*s) && strchr(" _.:/=+-@", *s) == NULL)
			return false;
	return true;
}

static const char *const enabled_values[] = {"ENABLED", "DISABLED", NULL};
static const char *const architecture_values[] = {"ARM_64", "X86_64", NULL};
static const char *const chipset_values[] = {"GRAVITON", "X86_64", NULL};
static const char *const status_values[] = {"ACTIVE", "INACTIVE", NULL};
static const char *const capability_values[] = {"ALL", NULL};

static const struct shape any_string = {.kind = SHAPE_STRING};
static const struct shape boolean = {.kind = SHAPE_BOOLEAN};
static const struct shape any_integer = {.kind = SHAPE_INTEGER, .min = INT32_MIN};
static const struct shape image_name = {.kind = SHAPE_STRING, .min = 1, .max = 64, .matches = is_image_name, .pattern = "[a-zA-Z0-9-_]+"};
const struct shape shape_identifier = {.kind = SHAPE_STRING, .min = 1, .max = 256};
const struct shape shape_without_space = {.kind = SHAPE_STRING, .min = 1, .max = 2048, .matches = is_without_space, .pattern = "[^\\s]+"};
static const struct shape not_blank = {.kind = SHAPE_STRING, .min = 1, .max = 2048};
static const struct shape role_arn = {.kind = SHAPE_STRING,
				      .min = 20,
				      .max = 2048,
				      .matches = is_role_arn,
				      .pattern = "arn:aws[a-z\\-]*:iam::[0-9]{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+"};
static const struct shape client_token = {.kind = SHAPE_STRING, .min = 1, .max = 128};
static const struct shape enabled = {.kind = SHAPE_STRING, .values = enabled_values};
static const struct shape runtime_timeout = {.kind = SHAPE_INTEGER, .min = 1, .max = 60};
static const struct shape build_timeout = {.kind = SHAPE_INTEGER, .min = 1, .max = 3600};
static const struct shape port = {.kind = SHAPE_INTEGER, .min = 1, .max = 65535};

static const struct shape code_artifact = {.kind = SHAPE_UNION, .members = (const struct shape_member[]){{"uri", &not_blank, false}, END}};

static const struct shape empty_structure = {.kind = SHAPE_STRUCTURE, .members = (const struct shape_member[]){END}};
static const struct shape log_group = {
	.kind = SHAPE_STRING, .min = 1, .max = 512, .matches = is_log_group, .pattern = "[a-zA-Z0-9_\\-/.#]+"};
static const struct shape log_stream = {.kind = SHAPE_STRING, .min = 1, .max = 512, .matches = is_log_stream, .pattern = "[^:*]*"};
static const struct shape cloud_watch = {
	.kind = SHAPE_STRUCTURE,
	.members = (const struct shape_member[]){{"logGroup", &log_group, false}, {"logStream", &log_stream, false}, END}};
static const struct shape logging = {
	.kind = SHAPE_UNION,
	.members = (const struct shape_member[]){{"disabled", &empty_structure, false}, {"cloudWatch", &cloud_watch, false}, END}};

static const struct shape image_connectors = {.kind = SHAPE_LIST, .max = 1, .element = &not_blank};
static const struct shape run_connectors = {.kind = SHAPE_LIST, .max = 10, .element = &not_blank};

static const struct shape architecture = {.kind = SHAPE_STRING, .values = architecture_values};
static const struct shape chipset = {.kind = SHAPE_STRING, .values = chipset_values};
static const struct shape cpu_configuration = {.kind = SHAPE_STRUCTURE,
					       .members = (const struct shape_member[]){{"architecture", &architecture, true}, END}};
static const struct shape cpu_configurations = {.kind = SHAPE_LIST, .element = &cpu_configuration};

static const struct shape resource = {.kind = SHAPE_STRUCTURE,
				      .members = (const struct shape_member[]){{"minimumMemoryInMiB", &any_integer, true}, END}};
static const struct shape resources = {.kind = SHAPE_LIST, .max = 1, .element = &resource};

static const struct shape capability = {.kind = SHAPE_STRING, .values = capability_values};
static const struct shape capabilities = {.kind = SHAPE_LIST, .element = &capability};

static const struct shape microvm_hooks = {.kind = SHAPE_STRUCTURE,
					   .members = (const struct shape_member[]){{"run", &enabled, false},
										    {"runTimeoutInSeconds", &runtime_timeout, false},
										    {"resume", &enabled, false},
										    {"resumeTimeoutInSeconds", &runtime_timeout, false},
										    {"suspend", &enabled, false},
										    {"suspendTimeoutInSeconds", &runtime_timeout, false},
										    {"terminate", &enabled, false},
										    {"terminateTimeoutInSeconds", &runtime_timeout, false},
										    END}};
static const struct shape image_hooks = {.kind = SHAPE_STRUCTURE,
					 .members = (const struct shape_member[]){{"ready", &enabled, false},
										  {"readyTimeoutInSeconds", &build_timeout, false},
										  {"validate", &enabled, false},
										  {"validateTimeoutInSeconds", &build_timeout, false},
										  END}};
static const struct shape hooks = {
	.kind = SHAPE_STRUCTURE,
	.members = (const struct shape_member[]){
		{"port", &port, false}, {"microvmHooks", &microvm_hooks, false}, {"microvmImageHooks", &image_hooks, false}, END}};

static const struct shape environment_key = {.kind = SHAPE_STRING, .min = 1, .max = 256, .matches = is_without_space, .pattern = "[^\\s]+"};
static const struct shape environment_value = {.kind = SHAPE_STRING, .max = 4096, .sensitive = true};
static const struct shape environment = {.kind = SHAPE_MAP, .max = 50, .key = &environment_key, .element = &environment_value};

static const struct shape tag_key = {
	.kind = SHAPE_STRING, .min = 1, .max = 128, .matches = is_tag_text, .pattern = "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)"};
static const struct shape tag_value = {
	.kind = SHAPE_STRING, .max = 256, .matches = is_tag_text, .pattern = "([\\p{L}\\p{Z}\\p{N}_.:/=+\\-@]*)"};
static const struct shape tag_keys = {.kind = SHAPE_LIST, .min = 1, .element = &tag_key};
static const struct shape tags = {.kind = SHAPE_MAP, .max = STORE_TAGS_MAX, .key = &tag_key, .element = &tag_value};

// What both creation and update say.
#define IMAGE_MEMBERS                                                                                                           \
	{"baseImageArn", &shape_without_space, true}, {"baseImageVersion", &shape_without_space, false},                        \
		{"buildRoleArn", &role_arn, true}, {"codeArtifact", &code_artifact, true}, {"description", &any_string, false}, \
		{"logging", &logging, false}, {"egressNetworkConnectors", &image_connectors, false},                            \
		{"cpuConfigurations", &cpu_configurations, false}, {"resources", &resources, false},                            \
		{"additionalOsCapabilities", &capabilities, false}, {"hooks", &hooks, false},                                   \
		{"environmentVariables", &environment, false}, {                                                                \
		"clientToken", &client_token, false                                                                             \
	}

const struct shape shape_create_image = {
	.kind = SHAPE_STRUCTURE,
	.members = (const struct shape_member[]){{"name", &image_name, true}, IMAGE_MEMBERS, {"tags", &tags, false}, END}};

const struct shape shape_update_image = {.kind = SHAPE_STRUCTURE, .members = (const struct shape_member[]){IMAGE_MEMBERS, END}};

static const struct shape version_status = {.kind = SHAPE_STRING, .values = status_values};

const struct shape shape_update_version = {.kind = SHAPE_STRUCTURE,
					   .members = (const struct shape_member[]){{"status", &version_status, true}, END}};

const struct shape shape_tag_resource = {.kind = SHAPE_STRUCTURE, .members = (const struct shape_member[]){{"Tags", &tags, true}, END}};
// The query of UntagResource, as a body would say it.
const struct shape shape_untag_resource = {.kind = SHAPE_STRUCTURE,
					   .members = (const struct shape_member[]){{"TagKeys", &tag_keys, true}, END}};

// The filters of ListMicrovmImageBuilds, likewise.
const struct shape shape_build_filters = {
	.kind = SHAPE_STRUCTURE,
	.members = (const struct shape_member[]){
		{"architecture", &architecture, false}, {"chipset", &chipset, false}, {"chipsetGeneration", &any_string, false}, END}};

static const struct shape run_image = {.kind = SHAPE_STRING, .min = 1, .max = 256};
static const struct shape idle_duration = {.kind = SHAPE_INTEGER, .min = 60, .max = 28800};
static const struct shape suspended_duration = {.kind = SHAPE_INTEGER, .min = 0};
static const struct shape idle_policy = {.kind = SHAPE_STRUCTURE,
					 .members = (const struct shape_member[]){{"maxIdleDurationSeconds", &idle_duration, true},
										  {"suspendedDurationSeconds", &suspended_duration, true},
										  {"autoResumeEnabled", &boolean, true},
										  END}};
static const struct shape payload = {.kind = SHAPE_STRING, .max = 4096, .sensitive = true};
static const struct shape maximum_duration = {.kind = SHAPE_INTEGER, .min = 1}; // the most is configured: microvm.c

const struct shape shape_run = {.kind = SHAPE_STRUCTURE,
				.members = (const struct shape_member[]){{"imageIdentifier", &run_image, true},
									 {"imageVersion", &shape_without_space, false},
									 {"ingressNetworkConnectors", &run_connectors, false},
									 {"egressNetworkConnectors", &run_connectors, false},
									 {"executionRoleArn", &role_arn, false},
									 {"idlePolicy", &idle_policy, false},
									 {"logging", &logging, false},
									 {"runHookPayload", &payload, false},
									 {"maximumDurationInSeconds", &maximum_duration, false},
									 {"clientToken", &client_token, false},
									 END}};

static const struct shape expiration = {.kind = SHAPE_INTEGER, .min = 1};
static const struct shape port_range = {
	.kind = SHAPE_STRUCTURE, .members = (const struct shape_member[]){{"startPort", &port, true}, {"endPort", &port, true}, END}};
static const struct shape port_specification = {
	.kind = SHAPE_UNION,
	.members = (const struct shape_member[]){
		{"port", &port, false}, {"range", &port_range, false}, {"allPorts", &empty_structure, false}, END}};
static const struct shape allowed_ports = {.kind = SHAPE_LIST, .min = 1, .element = &port_specification};

const struct shape shape_auth_token = {
	.kind = SHAPE_STRUCTURE,
	.members = (const struct shape_member[]){{"expirationInMinutes", &expiration, true}, {"allowedPorts", &allowed_ports, true}, END}};

const struct shape shape_shell_auth_token = {.kind = SHAPE_STRUCTURE,
					     .members = (const struct shape_member[]){{"expirationInMinutes", &expiration, true}, END}};

// Network connectors (spec section 7.3). What the service wants although its model does not is checked in connector.c.
static bool is_id(const char *s, const char *prefix) {
	size_t n = strlen(prefix);
	return strncmp(s, prefix, n) == 0 && all_of(s + n, "");
}

static bool is_subnet_id(const char *s) {
	return is_id(s, "subnet-") && strpbrk(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == NULL;
}

static bool is_group_id(const char *s) {
	return is_id(s, "sg-");
}

static const char *const protocol_values[] = {"IPv4", "DualStack", NULL};
static const char *const compute_values[] = {"MicroVm", NULL};
static const struct shape subnet_id = {.kind = SHAPE_STRING, .max = 1024, .matches = is_subnet_id, .pattern = "subnet-[0-9a-z]*"};
static const struct shape group_id = {.kind = SHAPE_STRING, .max = 1024, .matches = is_group_id, .pattern = "sg-[0-9a-zA-Z]*"};
static const struct shape subnet_ids = {.kind = SHAPE_LIST, .min = 1, .max = 16, .element = &subnet_id};
static const struct shape group_ids = {.kind = SHAPE_LIST, .max = 5, .element = &group_id};
static const struct shape protocol = {.kind = SHAPE_STRING, .values = protocol_values};
static const struct shape compute_type = {.kind = SHAPE_STRING, .values = compute_values};
static const struct shape compute_types = {.kind = SHAPE_LIST, .min = 1, .max = 1, .element = &compute_type};
static const struct shape vpc_egress = {.kind = SHAPE_STRUCTURE,
					.members = (const struct shape_member[]){{"SubnetIds", &subnet_ids, true},
										 {"SecurityGroupIds", &group_ids, false},
										 {"NetworkProtocol", &protocol, false},
										 {"AssociatedComputeResourceTypes", &compute_types, false},
										 END}};
static const struct shape connector_configuration = {
	.kind = SHAPE_UNION, .members = (const struct shape_member[]){{"VpcEgressConfiguration", &vpc_egress, false}, END}};
static const struct shape core_token = {.kind = SHAPE_STRING, .min = 1, .max = 64};

const struct shape shape_create_connector = {.kind = SHAPE_STRUCTURE,
					     .members = (const struct shape_member[]){{"Name", &image_name, true},
										      {"Configuration", &connector_configuration, true},
										      {"OperatorRole", &role_arn, false},
										      {"ClientToken", &core_token, false},
										      {"Tags", &tags, false},
										      END}};
const struct shape shape_update_connector = {.kind = SHAPE_STRUCTURE,
					     .members = (const struct shape_member[]){{"Configuration", &connector_configuration, false},
										      {"OperatorRole", &role_arn, false},
										      {"ClientToken", &core_token, false},
										      END}};
