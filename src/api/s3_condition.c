// Conditions of S3 requests: on the object that is read, on the object that is replaced or deleted, and on what is asked for at all. Source: RFC 9110
// section 13, and "Conditional requests" in the Amazon S3 User Guide.
#include "api/s3.h"

#include <stdio.h>
#include <string.h>
#include <strings.h>
#include <time.h>

// Reading ---------------------------------------------------------------------------------------------------------------------------

static bool lists_etag(struct slice list, const char *etag) {
	char quoted[ETAG_MAX + 4];
	snprintf(quoted, sizeof(quoted), "\"%s\"", etag);
	return slice_equals(list, "*") || slice_has_token(list, quoted) || slice_has_token(list, etag);
}

// Seconds since the epoch; -1 when the text is no date, and then there is no condition.
static int64_t parse_date(struct slice text) {
	char copy[40];
	struct tm tm = {0};
	if (text.size >= sizeof(copy))
		return -1;
	snprintf(copy, sizeof(copy), "%.*s", (int)text.size, text.data);
	const char *end = strptime(copy, "%a, %d %b %Y %H:%M:%S GMT", &tm);
	return end == NULL || *end != '\0' ? -1 : (int64_t)timegm(&tm);
}

static const struct http_header *find(const struct s3_call *c, const char *prefix, const char *name) {
	char full[64];
	snprintf(full, sizeof(full), "%s%s", prefix, name);
	return http_find(c->head, full);
}

enum s3_verdict s3_read_condition(const struct s3_call *c, const char *prefix, const struct object *o) {
	const struct http_header *match = find(c, prefix, "if-match"), *none = find(c, prefix, "if-none-match"),
				 *since = find(c, prefix, "if-modified-since"), *until = find(c, prefix, "if-unmodified-since");
	int64_t modified = o->modified_ms / 1000, date = -1;
	if (match != NULL && !lists_etag(match->value, o->etag))
		return S3_CONDITION_FAILED;
	if (match == NULL && until != NULL && (date = parse_date(until->value)) >= 0 && modified > date)
		return S3_CONDITION_FAILED;
	if (none != NULL)
		return lists_etag(none->value, o->etag) ? S3_NOT_MODIFIED : S3_CONDITION_MET;
	if (since != NULL && (date = parse_date(since->value)) >= 0 && modified <= date)
		return S3_NOT_MODIFIED;
	return S3_CONDITION_MET;
}

// Writing ---------------------------------------------------------------------------------------------------------------------------

bool s3_write_condition(struct s3_call *c, struct object_condition *ret) {
	const struct http_header *match = http_find(c->head, "if-match"), *none = http_find(c->head, "if-none-match");
	*ret = (struct object_condition){.if_none_match = none != NULL};
	if (none != NULL && (match != NULL || !slice_equals(none->value, "*"))) {
		s3_fail(c, "NotImplemented", "A write may have If-None-Match: * or If-Match: <ETag>, not both and nothing else");
		return false;
	}
	if (match == NULL)
		return true;
	struct slice v = match->value;
	if (v.size >= 2 && v.data[0] == '"' && v.data[v.size - 1] == '"')
		v = (struct slice){v.data + 1, v.size - 2};
	if (v.size == 0 || v.size >= sizeof(ret->if_match)) {
		s3_fail(c, "InvalidArgument", "If-Match must be one ETag");
		return false;
	}
	snprintf(ret->if_match, sizeof(ret->if_match), "%.*s", (int)v.size, v.data);
	return true;
}

static bool is_private(struct slice acl) {
	return slice_equals(acl, "private") || slice_equals(acl, "bucket-owner-full-control") || slice_equals(acl, "bucket-owner-read");
}

static bool refuse(struct s3_call *c, const char *header) {
	s3_fail(c, "NotImplemented", "A header you provided implies functionality that is not implemented: %s", header);
	return false;
}

bool s3_accept_write(struct s3_call *c) {
	static const char *const others[] = {"x-amz-write-offset-bytes",
					     "x-amz-server-side-encryption",
					     "x-amz-server-side-encryption-customer-algorithm",
					     "x-amz-copy-source-server-side-encryption-customer-algorithm",
					     "x-amz-grant-full-control",
					     "x-amz-grant-read",
					     "x-amz-grant-read-acp",
					     "x-amz-grant-write-acp",
					     "x-amz-object-lock-mode",
					     "x-amz-object-lock-retain-until-date",
					     "x-amz-object-lock-legal-hold"};
	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		if (http_find(c->head, others[i]) != NULL)
			return refuse(c, others[i]);
	const struct http_header *tags = http_find(c->head, "x-amz-tagging"), *acl = http_find(c->head, "x-amz-acl"),
				 *class = http_find(c->head, "x-amz-storage-class");
	if (tags != NULL && tags->value.size > 0)
		return refuse(c, "x-amz-tagging");
	if (acl != NULL && !is_private(acl->value))
		return refuse(c, "x-amz-acl (objects of the artifact store are private)");
	if (class != NULL && !slice_equals(class->value, "STANDARD")) {
		s3_fail(c, "InvalidStorageClass", "The storage class you specified is not valid: the artifact store has STANDARD only");
		return false;
	}
	if (s3_announced_size(c) > (uint64_t)c->en->config.artifact_limit) {
		s3_fail(c, "EntityTooLarge", "Your proposed upload exceeds the maximum allowed size of %lld bytes (artifactLimitBytes)",
			(long long)c->en->config.artifact_limit);
		return false;
	}
	return true;
}

// Numbers -----------------------------------------------------------------------------------------------------------------------------

bool s3_parse_number(struct slice text, uint64_t *ret) {
	*ret = 0;
	if (text.size == 0 || text.size > 18)
		return false;
	for (size_t i = 0; i < text.size; i++) {
		if (text.data[i] < '0' || text.data[i] > '9')
			return false;
		*ret = *ret * 10 + (uint64_t)(text.data[i] - '0');
	}
	return true;
}

bool s3_query_number(struct s3_call *c, const char *name, uint64_t most, uint64_t *ret) {
	char *text = s3_query(c, name);
	uint64_t n = 0;
	if (text == NULL)
		return true;
	bool fine = s3_parse_number((struct slice){text, strlen(text)}, &n);
	free(text);
	if (fine)
		*ret = n < most ? n : most;
	else
		s3_fail(c, "InvalidArgument", "Provided %s not an integer or within integer range", name);
	return fine;
}

int s3_part_number(struct s3_call *c) {
	char *text = s3_query(c, "partNumber");
	uint64_t n = 0;
	bool fine = text != NULL && s3_parse_number((struct slice){text, strlen(text)}, &n) && n >= 1 && n <= 10000;
	free(text);
	if (fine)
		return (int)n;
	s3_fail(c, "InvalidArgument", "Part number must be an integer between 1 and 10000, inclusive");
	return 0;
}
