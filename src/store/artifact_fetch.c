// Opening artifacts for builds: from the built-in store, or fetched from an S3-compatible endpoint with libcurl, which signs.
//
// A fetched artifact is streamed into a file without a name in the artifact folder, never beyond the limit, and vanishes with its last
// descriptor. Errors are named as the service names a build's reasons (spec section 2.3).
#include "base/cleanup.h"
#include "base/clock.h"
#include "base/io.h"
#include "stasisd/engine.h"
#include "store/artifact_files.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define ANSWER_KEPT 2048 // bytes of an error's body, to find its code in

struct fetch {
	CURL *curl;
	int fd;
	uint64_t size, limit;
	bool too_large;
	int write_error;
	char answer[ANSWER_KEPT + 1];
	size_t answer_size;
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

static int status_error(const struct fetch *f, long status, const char *uri, struct error *e) {
	const char *code = strstr(f->answer, "<Code>");
	if (code != NULL && strncmp(code + 6, "NoSuchBucket<", 13) == 0)
		return error_named(e, -ENOENT, "S3_NO_SUCH_BUCKET",
				   "The bucket of %s does not exist: create it, or correct codeArtifact.uri", uri);
	switch (status) {
	case 404:
		return error_named(e, -ENOENT, "S3_NO_SUCH_KEY", "There is no %s: upload the zip, or correct codeArtifact.uri", uri);
	case 401:
	case 403:
		return error_named(e, -EACCES, "S3_ACCESS_DENIED",
				   "Reading %s was denied: check s3AccessKeyId and s3SecretAccessKey in the configuration", uri);
	case 301:
	case 307:
	case 308:
		return error_named(e, -EACCES, "S3_CROSS_REGION_ACCESS_DENIED",
				   "%s lies in another region than s3Region in the configuration", uri);
	default:
		return error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "Reading %s failed: the S3 endpoint answered with status %ld", uri,
				   status);
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
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, f);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	if (c->s3_key_id[0] != '\0') {
		curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, sigv4);
		curl_easy_setopt(curl, CURLOPT_USERPWD, credentials);
	}
}

// Percent-encodes a key as SigV4 wants it: all but unreserved characters and '/'.
static void encode_key(const char *key, char to[3 * OBJECT_KEY_MAX + 1]) {
	size_t n = 0;
	for (const unsigned char *p = (const unsigned char *)key; *p != '\0'; p++) {
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') || strchr("-._~/", *p) != NULL)
			to[n++] = (char)*p;
		else
			n += (size_t)snprintf(to + n, 4, "%%%02X", *p);
	}
	to[n] = '\0';
}

static void initialise_curl(void) {
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

static int fetch(const struct config *c, const struct artifacts *a, const char *uri, const char *bucket, const char *key, int *ret_fd,
		 uint64_t *ret_size, struct error *e) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, initialise_curl);
	char encoded[3 * OBJECT_KEY_MAX + 1], url[sizeof(encoded) + 400], credentials[300], sigv4[80];
	encode_key(key, encoded);
	size_t n = strlen(c->s3_endpoint);
	snprintf(url, sizeof(url), "%s%s%s/%s", c->s3_endpoint, n > 0 && c->s3_endpoint[n - 1] == '/' ? "" : "/", bucket, encoded);
	snprintf(credentials, sizeof(credentials), "%s:%s", c->s3_key_id, c->s3_key_secret);
	snprintf(sigv4, sizeof(sigv4), "aws:amz:%s:s3", c->s3_region[0] == '\0' ? "us-east-1" : c->s3_region);
	cleanup_close int fd = open(a->folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0)
		return error_errno(e, "cannot make a temporary file in %s", a->folder);
	struct fetch f = {.fd = fd, .limit = a->limit, .curl = curl_easy_init()};
	struct curl_slist *headers = curl_slist_append(NULL, "x-amz-content-sha256: UNSIGNED-PAYLOAD");
	if (f.curl == NULL || headers == NULL) {
		curl_easy_cleanup(f.curl);
		curl_slist_free_all(headers);
		return error_set(e, -ENOMEM, "out of memory fetching %s", uri);
	}
	set_options(f.curl, c, url, credentials, sigv4, headers, &f);
	CURLcode code = curl_easy_perform(f.curl);
	long status = 0;
	curl_easy_getinfo(f.curl, CURLINFO_RESPONSE_CODE, &status);
	curl_easy_cleanup(f.curl);
	curl_slist_free_all(headers);
	if (f.too_large)
		return error_named(e, -EFBIG, "S3_INVALID_OBJECT",
				   "%s is larger than artifactLimitBytes (%llu) in the configuration allows", uri,
				   (unsigned long long)a->limit);
	if (f.write_error < 0)
		return error_named(e, f.write_error, "DISK_STORAGE_FULL", "cannot store %s: %s", uri, strerror(-f.write_error));
	if (code != CURLE_OK)
		return error_named(e, -EIO, "INTERNAL_PLATFORM_ERROR", "Reading %s from %s failed: %s", uri, c->s3_endpoint,
				   curl_easy_strerror(code));
	if (status != 200)
		return status_error(&f, status, uri, e);
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
	if (en->config.s3_endpoint[0] != '\0')
		return fetch(&en->config, en->artifacts, uri, bucket, key, ret_fd, ret_size, e);
	return open_stored(en->artifacts, account, uri, bucket, key, ret_fd, ret_size, e);
}

int artifacts_open(struct engine *en, const char *uri, int *ret_fd, uint64_t *ret_size, struct error *e) {
	return artifacts_open_for(en, NULL, uri, ret_fd, ret_size, e);
}
