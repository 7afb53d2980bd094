// Opening artifacts for builds: from the built-in store, or fetched from an S3-compatible endpoint with libcurl, which signs.
//
// A bucket that the account has in the built-in store is read there, also when an endpoint is configured. A fetched artifact is streamed into a
// file without a name in the artifact folder, never beyond the limit, and vanishes with its last descriptor. Redirects are not followed: they
// would take the signature elsewhere. What may pass (no connection, 5xx, SlowDown) is tried again a little later. Errors are named as the
// service names a build's reasons (spec section 2.3).
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "stasisd/engine.h"
#include "store/artifact_files.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define ANSWER_KEPT 2048 // bytes of an error's body, to find its code in
#define ATTEMPTS 3
#define PAUSE_MS 200 // before the second attempt; then four times as long
#define URL_ROOM (3 * OBJECT_KEY_MAX + 400)

struct fetch {
	CURL *curl;
	int fd;
	uint64_t size, limit;
	bool too_large;
	int write_error;
	char answer[ANSWER_KEPT + 1];
	size_t answer_size;
	char code[48]; // S3's, "" when the answer has none
	char curl_message[CURL_ERROR_SIZE];
};

static size_t receive(char *data, size_t one, size_t n, void *arg) {
	struct fetch *f = arg;
	(void)one; // always 1, says libcurl
	long status = 0;
	curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, &status);
	if (status != 200) {
		size_t keep = n < ANSWER_KEPT - f->answer_size ? n : ANSWER_KEPT - f->answer_size;
		memcpy(f->answer + f->answer_size, data, keep);
		f->answer_size += keep;
		return n;
	}
	if (n > f->limit - f->size) {
		f->too_large = true;
		return 0;
	}
	f->write_error = write_full(f->fd, data, n);
	if (f->write_error < 0)
		return 0;
	f->size += n;
	return n;
}

// Takes the code out of <Error><Code>…</Code>: letters only, so that it may stand in a message.
static void find_code(struct fetch *f) {
	const char *at = strstr(f->answer, "<Code>");
	size_t n = 0;
	f->code[0] = '\0';
	if (at == NULL)
		return;
	for (at += 6; ((*at >= 'a' && *at <= 'z') || (*at >= 'A' && *at <= 'Z')) && n < sizeof(f->code) - 1; at++)
		f->code[n++] = *at;
	f->code[n] = '\0';
}

enum refusal { REFUSED_BUCKET, REFUSED_KEY, REFUSED_ACCESS, REFUSED_CLOCK, REFUSED_REGION, REFUSED_STATE, REFUSED_OTHER };

static enum refusal refusal_of(const struct fetch *f, long status) {
	static const struct {
		const char *code;
		enum refusal refusal;
	} known[] = {
		{"NoSuchBucket", REFUSED_BUCKET},
		{"NoSuchKey", REFUSED_KEY},
		{"AccessDenied", REFUSED_ACCESS},
		{"AllAccessDisabled", REFUSED_ACCESS},
		{"InvalidAccessKeyId", REFUSED_ACCESS},
		{"SignatureDoesNotMatch", REFUSED_ACCESS},
		{"ExpiredToken", REFUSED_ACCESS},
		{"RequestTimeTooSkewed", REFUSED_CLOCK},
		{"PermanentRedirect", REFUSED_REGION},
		{"TemporaryRedirect", REFUSED_REGION},
		{"AuthorizationHeaderMalformed", REFUSED_REGION},
		{"InvalidObjectState", REFUSED_STATE},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].code, f->code) == 0)
			return known[i].refusal;
	return status == 404                    ? REFUSED_KEY
	       : status == 401 || status == 403 ? REFUSED_ACCESS
	       : status >= 300 && status < 400  ? REFUSED_REGION
						: REFUSED_OTHER;
}

static int status_error(const struct fetch *f, long status, const char *uri, struct error *e) {
	switch (refusal_of(f, status)) {
	case REFUSED_BUCKET:
		return error_named(e, -ENOENT, "S3_NO_SUCH_BUCKET",
				   "The bucket of %s does not exist: create it, or correct codeArtifact.uri", uri);
	case REFUSED_KEY:
		return error_named(e, -ENOENT, "S3_NO_SUCH_KEY", "There is no %s: upload the zip, or correct codeArtifact.uri", uri);
	case REFUSED_ACCESS:
		return error_named(
			e, -EACCES, "S3_ACCESS_DENIED",
			"Reading %s was denied (%s): check s3AccessKeyId and s3SecretAccessKey in the configuration, and what they may "
			"read",
			uri, f->code[0] != '\0' ? f->code : "without a reason");
	case REFUSED_CLOCK:
		return error_named(e, -EACCES, "S3_ACCESS_DENIED",
				   "Reading %s was denied: the clocks of this host and of the S3 endpoint are too far apart", uri);
	case REFUSED_REGION:
		return error_named(
			e, -EACCES, "S3_CROSS_REGION_ACCESS_DENIED",
			"%s lies in another region than s3Region in the configuration, or behind another address than s3Endpoint (HTTP "
			"status %ld, %s); redirects are not followed",
			uri, status, f->code[0] != '\0' ? f->code : "no code");
	case REFUSED_STATE:
		return error_named(e, -EINVAL, "S3_INVALID_OBJECT",
				   "%s is archived: restore it, or copy it to a storage class of instant access", uri);
	default:
		return error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "Reading %s failed: the S3 endpoint answered with status %ld (%s)",
				   uri, status, f->code[0] != '\0' ? f->code : "no code");
	}
}

static void set_options(CURL *curl, const struct config *c, const char *url, const char *credentials, const char *sigv4,
			struct curl_slist *headers, struct fetch *f) {
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(curl, CURLOPT_LOW_SPEED_LIMIT, 1024L);
	curl_easy_setopt(curl, CURLOPT_LOW_SPEED_TIME, 30L);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT, (long)c->build_limit_s); // of the build that waits for it
	curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE, (curl_off_t)f->limit);
	curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, f->curl_message);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, f);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	if (c->s3_key_id[0] != '\0') {
		curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, sigv4);
		curl_easy_setopt(curl, CURLOPT_USERPWD, credentials);
	}
}

// Percent-encodes a key as SigV4 wants it: all but unreserved characters and '/'.
static size_t encode_key(const char *key, char *to) {
	size_t n = 0;
	for (const unsigned char *p = (const unsigned char *)key; *p != '\0'; p++) {
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || strchr("-._~/", *p) != NULL)
			to[n++] = (char)*p;
		else
			n += (size_t)snprintf(to + n, 4, "%%%02X", *p);
	}
	to[n] = '\0';
	return n;
}

// <endpoint>/<bucket>/<key>, or with the bucket in front of the endpoint's host.
static void make_url(const struct config *c, const char *bucket, const char *key, char to[URL_ROOM]) {
	size_t n = strlen(c->s3_endpoint), scheme = strcmp(c->s3_addressing, "virtual") == 0 ? strcspn(c->s3_endpoint, ":") + 3 : n;
	while (n > 0 && c->s3_endpoint[n - 1] == '/')
		n--;
	int used = scheme < n ? snprintf(to, URL_ROOM, "%.*s%s.%.*s/", (int)scheme, c->s3_endpoint, bucket, (int)(n - scheme),
					 c->s3_endpoint + scheme)
			      : snprintf(to, URL_ROOM, "%.*s/%s/", (int)n, c->s3_endpoint, bucket);
	encode_key(key, to + used);
}

static void initialise_curl(void) {
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

// Whether another attempt may end otherwise.
static bool may_pass(const struct fetch *f, CURLcode code, long status) {
	if (f->too_large || f->write_error < 0 || code == CURLE_FILESIZE_EXCEEDED || code == CURLE_URL_MALFORMAT ||
	    code == CURLE_PEER_FAILED_VERIFICATION)
		return false;
	return code != CURLE_OK || status == 429 || status >= 500;
}

static CURLcode attempt(const struct config *c, const char *url, struct fetch *f, long *status) {
	char credentials[300], sigv4[80];
	CURLcode code = CURLE_OUT_OF_MEMORY;
	snprintf(credentials, sizeof(credentials), "%s:%s", c->s3_key_id, c->s3_key_secret);
	snprintf(sigv4, sizeof(sigv4), "aws:amz:%s:s3", c->s3_region[0] == '\0' ? "us-east-1" : c->s3_region);
	struct curl_slist *headers = curl_slist_append(NULL, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
	f->curl = curl_easy_init();
	f->size = f->answer_size = 0;
	memset(f->answer, 0, sizeof(f->answer));
	if (f->curl != NULL && headers != NULL) {
		set_options(f->curl, c, url, credentials, sigv4, headers, f);
		code = curl_easy_perform(f->curl);
		curl_easy_getinfo(f->curl, CURLINFO_RESPONSE_CODE, status);
	}
	curl_easy_cleanup(f->curl);
	curl_slist_free_all(headers);
	find_code(f);
	return code;
}

static int judge(const struct config *c, const struct fetch *f, CURLcode code, long status, const char *uri, struct error *e) {
	if (f->too_large || code == CURLE_FILESIZE_EXCEEDED)
		return error_named(e, -EFBIG, "S3_INVALID_OBJECT",
				   "%s is larger than artifactLimitBytes (%llu) in the configuration allows", uri,
				   (unsigned long long)f->limit);
	if (f->write_error < 0)
		return error_named(e, f->write_error, "DISK_STORAGE_FULL", "cannot store %s: %s", uri, strerror(-f->write_error));
	if (code != CURLE_OK)
		return error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "Reading %s from %s failed: %s", uri, c->s3_endpoint,
				   f->curl_message[0] != '\0' ? f->curl_message : curl_easy_strerror(code));
	return status == 200 ? 0 : status_error(f, status, uri, e);
}

static int fetch(const struct config *c, const struct artifacts *a, const char *uri, const char *bucket, const char *key, int *ret_fd,
		 uint64_t *ret_size, struct error *e) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, initialise_curl);
	char url[URL_ROOM];
	make_url(c, bucket, key, url);
	cleanup_close int fd = open(a->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot make a temporary file in %s", a->folder);
	struct fetch f = {.fd = fd, .limit = a->limit};
	CURLcode code;
	long status = 0;
	for (unsigned i = 0, pause_ms = PAUSE_MS;; i++, pause_ms *= 4) {
		code = attempt(c, url, &f, &status);
		if (i + 1 == ATTEMPTS || !may_pass(&f, code, status))
			break;
		log_warn("artifact.again", LOG_S("uri", uri), LOG_U("status", status), LOG_S("message", f.curl_message));
		usleep(pause_ms * 1000);
		if (ftruncate(fd, 0) < 0 || lseek(fd, 0, SEEK_SET) < 0)
			return error_errno(e, "cannot use a temporary file in %s", a->folder);
	}
	int r = judge(c, &f, code, status, uri, e);
	if (r < 0)
		return r;
	*ret_size = f.size;
	*ret_fd = take_fd(&fd);
	return 0;
}

static int open_stored(struct artifacts *a, const char *account, const char *uri, const char *bucket, const char *key, int *ret_fd,
		       uint64_t *ret_size, struct error *e) {
	struct bucket b;
	int r = artifacts_get_bucket(a, account, bucket, &b, e);
	if (r == -ENOENT)
		return error_named(e, r, "S3_NO_SUCH_BUCKET", "The bucket of %s does not exist: create it, or correct codeArtifact.uri",
				   uri);
	if (r == -EACCES)
		return error_named(e, r, "S3_ACCESS_DENIED", "The bucket of %s belongs to another account", uri);
	if (r < 0)
		return r;
	struct object o;
	r = artifacts_open_object(a, bucket, key, ret_fd, &o, e);
	if (r == -ENOENT)
		return error_named(e, r, "S3_NO_SUCH_KEY", "There is no %s: upload the zip, or correct codeArtifact.uri", uri);
	if (r < 0)
		return r;
	*ret_size = o.size;
	object_clear(&o);
	return 0;
}

int artifacts_open_for(struct engine *en, const char *account, const char *uri, int *ret_fd, uint64_t *ret_size, struct error *e) {
	char bucket[BUCKET_MAX];
	const char *key;
	if (!artifacts_parse_uri(uri, bucket, &key))
		return error_named(e, -EINVAL, "S3_INVALID_OBJECT", "codeArtifact.uri must be s3://<bucket>/<key>, not %.200s", uri);
	struct bucket b;
	if (en->config.s3_endpoint[0] != '\0' && artifacts_get_bucket(en->artifacts, account, bucket, &b, NULL) < 0)
		return fetch(&en->config, en->artifacts, uri, bucket, key, ret_fd, ret_size, e);
	return open_stored(en->artifacts, account, uri, bucket, key, ret_fd, ret_size, e);
}

int artifacts_open(struct engine *en, const char *uri, int *ret_fd, uint64_t *ret_size, struct error *e) {
	return artifacts_open_for(en, NULL, uri, ret_fd, ret_size, e);
}
