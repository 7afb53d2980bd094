// The client of CloudWatch Logs; see cloudwatch.h.
#include "logs/cloudwatch.h"

#include "base/cleanup.h"
#include "base/json.h"
#include "stasisd/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

#define ANSWER_MAX 8192
#define NAME_MAX_SHOWN 47

struct answer {
	char data[ANSWER_MAX];
	size_t size;
};

static size_t receive(char *data, size_t one, size_t n, void *arg) {
	struct answer *a = arg;
	(void)one; // always 1, says libcurl
	size_t keep = n < sizeof(a->data) - a->size ? n : sizeof(a->data) - a->size;
	memcpy(a->data + a->size, data, keep);
	a->size += keep;
	return n;
}

static int on_progress(void *arg, curl_off_t a, curl_off_t b, curl_off_t c, curl_off_t d) {
	const struct cloudwatch *w = arg;
	return atomic_load(w->stop) ? 1 : 0;
}

static void initialise_curl(void) {
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

int cloudwatch_open(const struct config *c, const _Atomic bool *stop, struct cloudwatch *ret) {
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, initialise_curl);
	*ret = (struct cloudwatch){.config = c, .stop = stop, .curl = curl_easy_init()};
	return ret->curl == NULL ? -ENOMEM : 0;
}

void cloudwatch_close(struct cloudwatch *w) {
	curl_easy_cleanup(w->curl);
	w->curl = NULL;
}

static void set_options(struct cloudwatch *w, const char *credentials, const char *sigv4, const char *body, struct curl_slist *headers,
			struct answer *a) {
	CURL *curl = w->curl;
	curl_easy_reset(curl);
	curl_easy_setopt(curl, CURLOPT_URL, w->config->cloudwatch_endpoint);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L);
	curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(curl, CURLOPT_TIMEOUT, 60L);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
	curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body);
	curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, receive);
	curl_easy_setopt(curl, CURLOPT_WRITEDATA, a);
	curl_easy_setopt(curl, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(curl, CURLOPT_XFERINFOFUNCTION, on_progress);
	curl_easy_setopt(curl, CURLOPT_XFERINFODATA, w);
	if (w->config->cloudwatch_key_id[0] != '\0') {
		curl_easy_setopt(curl, CURLOPT_AWS_SIGV4, sigv4);
		curl_easy_setopt(curl, CURLOPT_USERPWD, credentials);
	}
}

// Posts the body; *ret is the answer's JSON or NULL. Returns the HTTP status, or 0 when there was none.
static long post(struct cloudwatch *w, const char *operation, const char *body, json_t **ret, struct error *e) {
	char target[80], credentials[300], sigv4[80];
	struct answer *a = calloc(1, sizeof(*a));
	long status = 0;
	*ret = NULL;
	snprintf(target, sizeof(target), "X-Amz-Target: Logs_20140328.%s", operation);
	snprintf(credentials, sizeof(credentials), "%s:%s", w->config->cloudwatch_key_id, w->config->cloudwatch_key_secret);
	snprintf(sigv4, sizeof(sigv4), "aws:amz:%s:logs", w->config->cloudwatch_region);
	struct curl_slist *headers = curl_slist_append(NULL, target);
	headers = curl_slist_append(headers, "Content-Type: application/x-amz-json-1.1");
	if (a == NULL || headers == NULL) {
		error_set(e, -ENOMEM, "out of memory");
	} else {
		set_options(w, credentials, sigv4, body, headers, a);
		CURLcode code = curl_easy_perform(w->curl);
		if (code != CURLE_OK)
			error_set(e, -EIO, "%s: %s", w->config->cloudwatch_endpoint, curl_easy_strerror(code));
		else
			curl_easy_getinfo(w->curl, CURLINFO_RESPONSE_CODE, &status);
		if (status != 0)
			*ret = json_parse_object(a->data, a->size, ANSWER_MAX, "the answer", NULL);
	}
	curl_slist_free_all(headers);
	free(a);
	return status;
}

// The error's name without the name space in front of it and the address behind it.
static void error_name(const json_t *answer, char to[NAME_MAX_SHOWN + 1]) {
	const char *type = NULL;
	to[0] = '\0';
	if (answer == NULL || member_string(answer, "__type", MEMBER_OPTIONAL, 256, &type, NULL) < 0 || type == NULL)
		return;
	const char *hash = strrchr(type, '#');
	snprintf(to, NAME_MAX_SHOWN + 1, "%s", hash == NULL ? type : hash + 1);
	to[strcspn(to, ":")] = '\0';
}

static enum cloudwatch_verdict verdict_of(long status, const char *name) {
	static const struct {
		const char *name;
		enum cloudwatch_verdict verdict;
	} known[] = {
		{"ResourceAlreadyExistsException", CLOUDWATCH_DONE}, {"DataAlreadyAcceptedException", CLOUDWATCH_DONE},
		{"ResourceNotFoundException", CLOUDWATCH_MISSING},   {"InvalidParameterException", CLOUDWATCH_INVALID},
		{"ValidationException", CLOUDWATCH_INVALID},         {"SerializationException", CLOUDWATCH_INVALID},
		{"ThrottlingException", CLOUDWATCH_LATER},           {"OperationAbortedException", CLOUDWATCH_LATER},
		{"ServiceUnavailableException", CLOUDWATCH_LATER},   {"LimitExceededException", CLOUDWATCH_DENIED},
	};
	if (status == 200)
		return CLOUDWATCH_DONE;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (strcmp(known[i].name, name) == 0)
			return known[i].verdict;
	return status == 413 ? CLOUDWATCH_INVALID : status >= 400 && status < 500 && status != 429 ? CLOUDWATCH_DENIED : CLOUDWATCH_LATER;
}

// Takes the reference of the body.
static enum cloudwatch_verdict call(struct cloudwatch *w, const char *operation, json_t *body, json_t **ret_answer, struct error *e) {
	cleanup_free char *text = body == NULL ? NULL : json_dumps(body, JSON_COMPACT);
	cleanup_json json_t *answer = NULL;
	json_decref(body);
	if (text == NULL) {
		error_set(e, -ENOMEM, "out of memory");
		return CLOUDWATCH_LATER;
	}
	char name[NAME_MAX_SHOWN + 1];
	long status = post(w, operation, text, &answer, e);
	error_name(answer, name);
	enum cloudwatch_verdict v = status == 0 ? CLOUDWATCH_LATER : verdict_of(status, name);
	if (v != CLOUDWATCH_DONE && status != 0) {
		const char *message = json_string_value(json_object_get(answer, "message"));
		error_named(e, -EIO, name, "%s answered %s with HTTP status %ld %s: %.200s", w->config->cloudwatch_endpoint, operation,
			    status, name, message == NULL ? "" : message);
	}
	if (ret_answer != NULL)
		*ret_answer = take_ptr(answer);
	return v;
}

enum cloudwatch_verdict cloudwatch_create(struct cloudwatch *w, const char *group, const char *stream, struct error *e) {
	for (int attempt = 0;; attempt++) {
		enum cloudwatch_verdict v =
			call(w, "CreateLogStream", json_pack("{s:s, s:s}", "logGroupName", group, "logStreamName", stream), NULL, e);
		if (v != CLOUDWATCH_MISSING || attempt > 0)
			return v;
		v = call(w, "CreateLogGroup", json_pack("{s:s}", "logGroupName", group), NULL, e);
		if (v != CLOUDWATCH_DONE)
			return v;
	}
}

enum cloudwatch_verdict cloudwatch_put(struct cloudwatch *w, const char *group, const char *stream, json_t *events, bool *ret_rejected,
				       struct error *e) {
	cleanup_json json_t *answer = NULL;
	enum cloudwatch_verdict v =
		call(w, "PutLogEvents", json_pack("{s:s, s:s, s:o}", "logGroupName", group, "logStreamName", stream, "logEvents", events),
		     &answer, e);
	*ret_rejected = v == CLOUDWATCH_DONE && json_is_object(json_object_get(answer, "rejectedLogEventsInfo"));
	return v;
}
