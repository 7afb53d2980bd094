// The artifact store's S3 front: addressing, signatures, routing, answers. Source: Amazon S3 API Reference (2006-03-01).
//
// Buckets are addressed by path (/bucket/key) or by host (bucket.localhost:7412; artifactsDomain in the configuration). A sub-resource that is
// not supported is refused as not implemented instead of being taken for the object itself.
#include "api/s3.h"

#include "api/api_internal.h"
#include "api/xml.h"
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define SHA256_OF_NOTHING "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// Answers ---------------------------------------------------------------------------------------------------------------------------

static int status_of(const char *name) {
	static const struct {
		const char *name;
		int status;
	} known[] = {
		{"AccessDenied", 403},
		{"AuthorizationHeaderMalformed", 400},
		{"AuthorizationQueryParametersError", 400},
		{"BadDigest", 400},
		{"BucketAlreadyExists", 409},
		{"BucketAlreadyOwnedByYou", 409},
		{"BucketNotEmpty", 409},
		{"EntityTooLarge", 400},
		{"ExpiredToken", 400},
		{"EntityTooSmall", 400},
		{"IncompleteBody", 400},
		{"InvalidAccessKeyId", 403},
		{"InvalidArgument", 400},
		{"InvalidBucketName", 400},
		{"InvalidDigest", 400},
		{"InvalidPart", 400},
		{"InvalidPartOrder", 400},
		{"InvalidRange", 416},
		{"InsufficientStorage", 507},
		{"InvalidRequest", 400},
		{"InvalidStorageClass", 400},
		{"InvalidToken", 400},
		{"InvalidURI", 400},
		{"KeyTooLongError", 400},
		{"MalformedXML", 400},
		{"MetadataTooLarge", 400},
		{"MethodNotAllowed", 405},
		{"NoSuchBucket", 404},
		{"NoSuchKey", 404},
		{"NoSuchUpload", 404},
		{"NotImplemented", 501},
		{"PreconditionFailed", 412},
		{"QuotaExceeded", 403},
		{"RequestTimeTooSkewed", 403},
		{"RequestTimeout", 400},
		{"ServiceUnavailable", 503},
		{"SignatureDoesNotMatch", 403},
		{"SlowDown", 503},
		{"TooManyBuckets", 400},
		{"TooManyMultipartUploads", 400},
		{"XAmzContentSHA256Mismatch", 400},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].name, name) == 0)
			return known[i].status;
	return 500;
}

void s3_answer_xml(struct s3_call *c, int status, const struct text *body) {
	static const char declaration[] = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
	cleanup_text all = {0};
	text_puts(&all, declaration);
	text_add(&all, body->data, body->size);
	exchange_header(c->x, "content-type", "application/xml");
	if (all.bad || body->bad)
		exchange_reply(c->x, 500, NULL, 0);
	else
		exchange_reply(c->x, status, all.data, all.size);
}

static void send_error(struct s3_call *c, const char *name, const char *message) {
	int status = status_of(name);
	if (status == 500)
		name = "InternalError";
	cleanup_text body = {0};
	char resource[512];
	snprintf(resource, sizeof(resource), "%.*s", (int)(c->path.size < 500 ? c->path.size : 500), c->path.size == 0 ? "" : c->path.data);
	text_puts(&body, "<Error>");
	xml_element(&body, "Code", name);
	xml_element(&body, "Message", message);
	xml_element(&body, "Resource", resource);
	xml_element(&body, "RequestId", exchange_id(c->x));
	text_puts(&body, "</Error>");
	log_at(status == 500 ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, "artifacts.refused", LOG_S("error", name), LOG_S("message", message),
	       LOG_S("resource", resource), LOG_S("requestId", exchange_id(c->x)));
	s3_answer_xml(c, status, &body);
}

int s3_fail(struct s3_call *c, const char *name, const char *format, ...) {
	cleanup_free char *message = NULL;
	va_list ap;
	va_start(ap, format);
	if (vasprintf(&message, format, ap) < 0)
		message = NULL;
	va_end(ap);
	send_error(c, name, message == NULL ? "" : message);
	return -1;
}

int s3_fail_with(struct s3_call *c, const struct error *e) {
	// A disk that takes no more may also be met while the records are written.
	const char *name = e->name[0] != '\0'   ? e->name
			   : e->code == -ENOSPC ? "InsufficientStorage"
			   : e->code == -EROFS  ? "ServiceUnavailable"
						: "";
	send_error(c, name, e->message);
	return -1;
}

const char *s3_refusal(int status, const char **type) {
	*type = "application/xml";
	switch (status) {
	case 431:
		return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>RequestHeaderSectionTooLarge</Code><Message>Your request "
		       "header section exceeds "
		       "the maximum allowed size.</Message></Error>";
	case 503:
		return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request "
		       "rate.</Message></Error>";
	default:
		return "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>BadRequest</Code><Message>An error occurred when parsing "
		       "the HTTP "
		       "request.</Message></Error>";
	}
}

void s3_time(int64_t ms, char to[static 32]) {
	time_t t = (time_t)(ms / 1000);
	struct tm tm;
	size_t n = strftime(to, 32, "%Y-%m-%dT%H:%M:%S", gmtime_r(&t, &tm));
	snprintf(to + n, 32 - n, ".%03dZ", (int)(ms % 1000));
}

void s3_http_time(int64_t ms, char to[static 40]) {
	time_t t = (time_t)(ms / 1000);
	struct tm tm;
	strftime(to, 40, "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&t, &tm));
}

// Requests --------------------------------------------------------------------------------------------------------------------------

char *s3_query(const struct s3_call *c, const char *name) {
	char *value = NULL;
	return query_find(c->query, name, &value) == 1 ? value : NULL;
}

bool s3_has_query(const struct s3_call *c, const char *name) {
	char *value = s3_query(c, name);
	free(value);
	return value != NULL;
}

bool s3_is_own(struct s3_call *c, const char *bucket, const char *owner_header) {
	struct bucket b;
	struct error e = {0};
	const struct http_header *expected = http_find(c->head, owner_header);
	if (artifacts_get_bucket(c->en->artifacts, c->key.account, bucket, &b, &e) < 0)
		s3_fail_with(c, &e);
	else if (expected != NULL && !slice_equals(expected->value, b.account))
		s3_fail(c, "AccessDenied", "Access Denied: the bucket's owner is not the one that %s expects", owner_header);
	else
		return true;
	return false;
}

bool s3_own_bucket(struct s3_call *c) {
	return s3_is_own(c, c->bucket, "x-amz-expected-bucket-owner");
}

bool s3_is_utf8(const char *s) {
	const unsigned char *p = (const unsigned char *)s;
	while (*p != '\0') {
		int more = *p < 0x80 ? 0 : (*p & 0xe0) == 0xc0 ? 1 : (*p & 0xf0) == 0xe0 ? 2 : (*p & 0xf8) == 0xf0 ? 3 : -1;
		unsigned value = more <= 0 ? *p : *p & (0x3fu >> more);
		if (more < 0)
			return false;
		for (int i = 0; i < more; i++) {
			if ((*++p & 0xc0) != 0x80)
				return false;
			value = value << 6 | (*p & 0x3f);
		}
		if ((more == 1 && value < 0x80) || (more == 2 && (value < 0x800 || (value >= 0xd800 && value < 0xe000))) ||
		    (more == 3 && (value < 0x10000 || value > 0x10ffff)))
			return false;
		p++;
	}
	return true;
}

static bool ends_with_nocase(const char *s, const char *end) {
	size_t n = strlen(s), d = strlen(end);
	return n > d && strcasecmp(s + n - d, end) == 0;
}

// The bucket of a host such as bucket.<domain>:7412 or bucket.s3.<domain>; false when the host names none.
static bool bucket_of_host(const struct http_head *h, const char *domain, char to[static 256]) {
	const struct http_header *host = http_find(h, "host");
	char name[256];
	if (host == NULL || host->value.size >= sizeof(name))
		return false;
	snprintf(name, sizeof(name), "%.*s", (int)host->value.size, host->value.data);
	name[strcspn(name, ":")] = '\0';
	char below[160];
	snprintf(below, sizeof(below), ".%s", domain);
	if (domain[0] == '\0' || !ends_with_nocase(name, below))
		return false;
	name[strlen(name) - strlen(below)] = '\0';
	if (ends_with_nocase(name, ".s3"))
		name[strlen(name) - 3] = '\0';
	if (!artifacts_bucket_name_is_valid(name))
		return false;
	snprintf(to, 256, "%s", name);
	return true;
}

static bool read_address(struct s3_call *c) {
	target_split(c->head->target, &c->path, &c->query);
	if (c->path.size == 0 || c->path.data[0] != '/') {
		s3_fail(c, "InvalidURI", "Couldn't parse the specified URI.");
		return false;
	}
	const char *rest = c->path.data + 1;
	size_t rest_size = c->path.size - 1;
	if (!bucket_of_host(c->head, c->en->config.artifacts_domain, c->bucket)) {
		const char *slash = memchr(rest, '/', rest_size);
		size_t n = slash == NULL ? rest_size : (size_t)(slash - rest);
		if (n >= sizeof(c->bucket)) {
			s3_fail(c, "InvalidBucketName", "The specified bucket is not valid.");
			return false;
		}
		snprintf(c->bucket, sizeof(c->bucket), "%.*s", (int)n, rest);
		rest += n + (slash == NULL ? 0 : 1);
		rest_size -= n + (slash == NULL ? 0 : 1);
	}
	c->object = malloc(rest_size + 1);
	ssize_t size = c->object == NULL ? -1 : percent_decode(rest, rest_size, c->object);
	if (size >= 0)
		c->object[size] = '\0';
	if (size < 0 || strlen(c->object) != (size_t)size || !s3_is_utf8(c->object)) {
		s3_fail(c, "InvalidURI", "Couldn't parse the specified URI: keys are percent-encoded UTF-8");
		return false;
	}
	if (size > OBJECT_KEY_MAX) {
		s3_fail(c, "KeyTooLongError", "Your key is too long");
		return false;
	}
	return true;
}

static void fail_signature(struct s3_call *c, enum sigv4_verdict v, const struct error *e) {
	switch (v) {
	case SIGV4_MISSING:
		s3_fail(c, "AccessDenied", "Access Denied: the request is not signed");
		return;
	case SIGV4_MALFORMED:
	case SIGV4_SCOPE:
		s3_fail(c, c->signature.presigned ? "AuthorizationQueryParametersError" : "AuthorizationHeaderMalformed", "%s", e->message);
		return;
	case SIGV4_SKEWED:
		s3_fail(c, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large. %s",
			e->message);
		return;
	case SIGV4_EXPIRED:
	case SIGV4_UNSIGNED:
		s3_fail(c, "AccessDenied", "%s", e->message);
		return;
	default:
		s3_fail(c, "SignatureDoesNotMatch",
			"The request signature we calculated does not match the signature you provided. Check your key and signing "
			"method.");
	}
}

static bool is_payload(const char *s) {
	static const char *const words[] = {"UNSIGNED-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
					    "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"};
	for (size_t i = 0; i < sizeof(words) / sizeof(words[0]); i++)
		if (strcmp(s, words[i]) == 0)
			return true;
	return strlen(s) == 64 && strspn(s, "0123456789abcdef") == 64;
}

static bool identify(struct s3_call *c) {
	struct error e = {0};
	switch (access_identify(c->en, &c->signature, c->head, &c->key, c->principal, &e)) {
	case ACCESS_KNOWN:
		return true;
	case ACCESS_UNKNOWN:
		s3_fail(c, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records.");
		return false;
	case ACCESS_BAD_TOKEN:
		s3_fail(c, "InvalidToken", "The provided token is malformed or otherwise invalid.");
		return false;
	case ACCESS_EXPIRED:
		s3_fail(c, "ExpiredToken", "The provided token has expired.");
		return false;
	case ACCESS_FAILED:
		break;
	}
	s3_fail_with(c, &e);
	return false;
}

static bool authenticate(struct s3_call *c) {
	struct error e = {0};
	enum sigv4_verdict v = sigv4_parse(c->head, "s3", &c->signature, &e);
	if (v != SIGV4_FINE) {
		fail_signature(c, v, &e);
		return false;
	}
	if (!identify(c))
		return false;
	const struct http_header *stated = http_find(c->head, "x-amz-content-sha256");
	cleanup_free char *in_query = s3_query(c, "X-Amz-Content-Sha256");
	if (stated != NULL && stated->value.size < sizeof(c->payload))
		snprintf(c->payload, sizeof(c->payload), "%.*s", (int)stated->value.size, stated->value.data);
	else if (stated == NULL && c->signature.presigned)
		snprintf(c->payload, sizeof(c->payload), "%s", in_query == NULL ? "UNSIGNED-PAYLOAD" : in_query);
	else if (stated == NULL) // curl leaves it out where there is no body; a body would not have this hash
		snprintf(c->payload, sizeof(c->payload), "%s", SHA256_OF_NOTHING);
	if (!is_payload(c->payload)) {
		s3_fail(c, "InvalidRequest",
			"x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, "
			"STREAMING-AWS4-HMAC-SHA256-PAYLOAD, "
			"STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER, or a valid sha256 value.");
		return false;
	}
	v = sigv4_check(&c->signature, c->head, c->key.secret, c->payload, (int64_t)(realtime_ms() / 1000), &e);
	if (v != SIGV4_FINE)
		fail_signature(c, v, &e);
	return v == SIGV4_FINE;
}

// Routing -----------------------------------------------------------------------------------------------------------------------------

// Sub-resources, each of which makes another operation of the same path. Those without an operation are not implemented.
static const char *const sub_resources[] = {
	"accelerate",        "acl",        "analytics",    "attributes",        "cors",        "encryption",     "intelligent-tiering",
	"inventory",         "legal-hold", "lifecycle",    "logging",           "metrics",     "notification",   "object-lock",
	"ownershipControls", "policy",     "policyStatus", "publicAccessBlock", "replication", "requestPayment", "restore",
	"retention",         "select",     "tagging",      "torrent",           "versionId",   "versions",       "website",
};

static bool is_method(const struct s3_call *c, const char *method) {
	return slice_equals(c->head->method, method);
}

static void route_bucket(struct s3_call *c) {
	if (is_method(c, "POST") && s3_has_query(c, "delete"))
		s3_delete_objects(c);
	else if (is_method(c, "PUT"))
		s3_create_bucket(c);
	else if (is_method(c, "DELETE"))
		s3_delete_bucket(c);
	else if (is_method(c, "HEAD"))
		s3_head_bucket(c);
	else if (is_method(c, "GET") && s3_has_query(c, "location"))
		s3_get_location(c);
	else if (is_method(c, "GET") && s3_has_query(c, "uploads"))
		s3_list_uploads(c);
	else if (is_method(c, "GET") && s3_has_query(c, "versioning"))
		s3_get_versioning(c);
	else if (is_method(c, "GET"))
		s3_list_objects(c);
	else
		s3_fail(c, "MethodNotAllowed", "The specified method is not allowed against this resource.");
}

static void route_object(struct s3_call *c) {
	bool upload = s3_has_query(c, "uploadId"), copy = http_find(c->head, "x-amz-copy-source") != NULL;
	if (is_method(c, "PUT") && upload)
		(copy ? s3_copy_part : s3_upload_part)(c);
	else if (is_method(c, "PUT"))
		(copy ? s3_copy_object : s3_put_object)(c);
	else if (is_method(c, "POST") && s3_has_query(c, "uploads"))
		s3_create_upload(c);
	else if (is_method(c, "POST") && upload)
		s3_complete_upload(c);
	else if (is_method(c, "DELETE") && upload)
		s3_abort_upload(c);
	else if (is_method(c, "DELETE"))
		s3_delete_object(c);
	else if (is_method(c, "GET") && s3_has_query(c, "tagging"))
		s3_get_tags(c);
	else if ((is_method(c, "GET") || is_method(c, "HEAD")) && !upload)
		s3_get_object(c);
	else if (is_method(c, "GET"))
		s3_list_parts(c);
	else
		s3_fail(c, "MethodNotAllowed", "The specified method is not allowed against this resource.");
}

static void run_call(struct s3_call *c) {
	if (!read_address(c) || !authenticate(c))
		return;
	for (size_t i = 0; i < sizeof(sub_resources) / sizeof(sub_resources[0]); i++) {
		bool tags = strcmp(sub_resources[i], "tagging") == 0 && is_method(c, "GET") && c->object[0] != '\0';
		if (!tags && s3_has_query(c, sub_resources[i])) {
			s3_fail(c, "NotImplemented", "The artifact store does not have '%s'", sub_resources[i]);
			return;
		}
	}
	if (!s3_check_access(c))
		return;
	if (c->bucket[0] == '\0' && is_method(c, "GET"))
		s3_list_buckets(c);
	else if (c->bucket[0] == '\0')
		s3_fail(c, "MethodNotAllowed", "The specified method is not allowed against this resource.");
	else if (c->object[0] == '\0')
		route_bucket(c);
	else
		route_object(c);
}

void s3_handle(struct exchange *x, void *arg) {
	struct s3_call c = {.en = arg, .x = x, .head = exchange_head(x), .path = {"", 0}};
	uint64_t started = monotonic_ns();
	exchange_header(x, "x-amz-request-id", "%s", exchange_id(x));
	exchange_header(x, "server", "Stasis");
	run_call(&c);
	free(c.object);
	store_key_clear(&c.key);
	log_debug("artifacts.call", LOG_S("bucket", c.bucket), LOG_S("requestId", exchange_id(x)),
		  LOG_U("us", (monotonic_ns() - started) / 1000));
}
