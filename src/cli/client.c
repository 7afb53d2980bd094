// HTTP to the engine: signed calls of the API, raw reads of the operator namespace, uploads to the artifact store. One connection is kept
// for the life of the process.
#include "cli/cli.h"
#include "cli/sign.h"

#include "base/cleanup.h"

#include <ctype.h>
#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANSWER_MAX (256u << 20)

struct answer {
	char *data;
	size_t size, room;
	long status;
	char error_type[96];
	struct client_header *headers;
	size_t nheaders;
	FILE *to; // where the bytes of a good answer go instead of `data`
};

static CURL *handle;

static size_t on_body(char *data, size_t one, size_t n, void *arg) {
	struct answer *a = arg;
	size_t size = one * n;
	long status = 0;
	curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
	if (a->to != NULL && status == 200)
		return fwrite(data, 1, size, a->to) == size && fflush(a->to) == 0 ? n : 0;
	if (size > ANSWER_MAX - a->size)
		return 0;
	if (a->size + size + 1 > a->room) {
		size_t room = (a->size + size + 1) * 2;
		char *more = realloc(a->data, room);
		if (more == NULL)
			return 0;
		a->data = more;
		a->room = room;
	}
	memcpy(a->data + a->size, data, size);
	a->size += size;
	a->data[a->size] = '\0';
	return size;
}

static void keep_header(const char *line, size_t size, const char *name, char *to, size_t room) {
	size_t n = strlen(name);
	if (size <= n || line[n] != ':' || strncasecmp(line, name, n) != 0)
		return;
	for (line += n + 1, size -= n + 1; size > 0 && isspace((unsigned char)*line); line++)
		size--;
	while (size > 0 && isspace((unsigned char)line[size - 1]))
		size--;
	if (size >= room)
		size = room - 1;
	memcpy(to, line, size);
	to[size] = '\0';
}

static size_t on_header(char *line, size_t one, size_t n, void *arg) {
	struct answer *a = arg;
	keep_header(line, one * n, "x-amzn-errortype", a->error_type, sizeof(a->error_type));
	for (size_t i = 0; i < a->nheaders; i++)
		keep_header(line, one * n, a->headers[i].name, a->headers[i].value, sizeof(a->headers[i].value));
	return one * n;
}

static struct curl_slist *add_header(struct curl_slist *list, const char *name, const char *value) {
	char line[1100];
	snprintf(line, sizeof(line), "%s: %s", name, value);
	return curl_slist_append(list, line);
}

struct request {
	const char *base;    // http://host:port
	const char *service; // NULL: unsigned
	const char *method, *path, *content_type;
	const void *body;
	size_t body_size;
};

static int perform(const struct settings *s, const struct request *q, struct answer *a, struct error *e) {
	if (handle == NULL && (handle = curl_easy_init()) == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	const char *host = strstr(q->base, "://");
	if (host == NULL)
		return error_set(e, -EINVAL, "'%s' is no address of the engine: it must look like http://127.0.0.1:7411", q->base);
	host += 3;
	struct curl_slist *headers = curl_slist_append(NULL, "Expect:");
	if (q->content_type != NULL)
		headers = add_header(headers, "Content-Type", q->content_type);
	if (q->service != NULL) {
		struct sign_input in = {q->service, s->region, s->key_id, s->key_secret, s->key_token,
					q->method,  host,      q->path,   q->body,       q->body_size};
		struct sign_output out;
		if (s->key_id[0] == '\0') {
			curl_slist_free_all(headers);
			return error_set(e, -ECONNREFUSED, "no engine is known here: start it with 'stasis up'");
		}
		int r = sign_request(&in, &out, e);
		if (r < 0) {
			curl_slist_free_all(headers);
			return r;
		}
		headers = add_header(headers, "X-Amz-Date", out.date);
		headers = add_header(headers, "X-Amz-Content-Sha256", out.content_sha256);
		headers = add_header(headers, "Authorization", out.authorization);
		if (s->key_token[0] != '\0')
			headers = add_header(headers, "X-Amz-Security-Token", s->key_token);
	}
	char url[8192];
	snprintf(url, sizeof(url), "%s%s", q->base, q->path);
	curl_easy_reset(handle);
	curl_easy_setopt(handle, CURLOPT_URL, url);
	curl_easy_setopt(handle, CURLOPT_PATH_AS_IS, 1L);
	curl_easy_setopt(handle, CURLOPT_CUSTOMREQUEST, q->method);
	curl_easy_setopt(handle, CURLOPT_HTTPHEADER, headers);
	curl_easy_setopt(handle, CURLOPT_PROXY, "");
	curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(handle, CURLOPT_TIMEOUT, a->to == NULL ? 600L : 0L);
	curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(handle, CURLOPT_WRITEDATA, a);
	curl_easy_setopt(handle, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(handle, CURLOPT_HEADERDATA, a);
	if (q->body != NULL) {
		curl_easy_setopt(handle, CURLOPT_POSTFIELDS, q->body);
		curl_easy_setopt(handle, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)q->body_size);
	}
	CURLcode code = curl_easy_perform(handle);
	curl_slist_free_all(headers);
	if (code == CURLE_COULDNT_CONNECT || code == CURLE_GOT_NOTHING || code == CURLE_RECV_ERROR)
		return error_set(e, -ECONNREFUSED, "the engine does not answer at %s: start it with 'stasis up', or see 'stasis status'",
				 q->base);
	if (code != CURLE_OK)
		return error_set(e, -EIO, "%s %s%s failed: %s", q->method, q->base, q->path, curl_easy_strerror(code));
	curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &a->status);
	return 0;
}

// Turns an error answer (restJson1: type in a header, message in the body) into the error object.
static int refused(const struct answer *a, struct error *e) {
	char name[48] = "";
	size_t n = strcspn(a->error_type, ":");
	snprintf(name, sizeof(name), "%.*s", (int)(n > 47 ? 47 : n), a->error_type);
	json_t *o = a->data == NULL ? NULL : json_loadb(a->data, a->size, 0, NULL);
	const char *message = json_text(o, "message");
	if (message[0] == '\0')
		message = json_text(o, "Message");
	int code = a->status == 404 ? -ENOENT : a->status == 403 ? -EACCES : a->status == 409 ? -EBUSY : a->status >= 500 ? -EIO : -EINVAL;
	if (message[0] != '\0')
		error_named(e, code, name, "%s", message);
	else
		error_named(e, code, name, "the engine answered with HTTP status %ld", a->status);
	json_decref(o);
	return code;
}

int client_call(const struct settings *s, const char *method, const char *path, const json_t *body, json_t **ret, struct error *e) {
	struct answer a = {0};
	cleanup_free char *text = body == NULL ? NULL : json_dumps(body, JSON_COMPACT);
	struct request q = {.base = s->api, .service = "lambda", .method = method, .path = path};
	if (text != NULL) {
		q.body = text;
		q.body_size = strlen(text);
		q.content_type = "application/json";
	} else if (strcmp(method, "POST") == 0) {
		q.body = "";
	}
	int r = perform(s, &q, &a, e);
	cleanup_free char *data = a.data;
	if (r < 0)
		return r;
	if (a.status < 200 || a.status > 299)
		return refused(&a, e);
	json_t *o = a.size == 0 ? json_object() : json_loadb(a.data, a.size, 0, NULL);
	if (o == NULL)
		return error_set(e, -EBADMSG, "the engine's answer to %s %s is not JSON", method, path);
	if (ret != NULL)
		*ret = o;
	else
		json_decref(o);
	return 0;
}

int client_list(const struct settings *s, const char *path, json_t **ret, struct error *e) {
	char page_path[4096], next[2048] = "";
	json_t *all = json_array();
	do {
		json_t *page = NULL;
		snprintf(page_path, sizeof(page_path), "%.1900s?maxResults=50%s%.2047s", path, next[0] == '\0' ? "" : "&nextToken=", next);
		int r = client_call(s, "GET", page_path, NULL, &page, e);
		if (r < 0) {
			json_decref(all);
			return r;
		}
		json_array_extend(all, json_object_get(page, "items"));
		if (!client_escape(json_text(page, "nextToken"), next, sizeof(next)))
			next[0] = '\0';
		json_decref(page);
	} while (next[0] != '\0');
	*ret = all;
	return 0;
}

int client_get(const struct settings *s, const char *path, char **ret, size_t *ret_size, struct client_header *headers, size_t nheaders,
	       struct error *e) {
	bool open = strcmp(path, "/_stasis/health") == 0 || strcmp(path, "/_stasis/ca.pem") == 0;
	struct answer a = {.headers = headers, .nheaders = nheaders};
	struct request q = {.base = s->api, .service = open ? NULL : "lambda", .method = "GET", .path = path};
	int r = perform(s, &q, &a, e);
	if (r == 0 && (a.status < 200 || a.status > 299))
		r = refused(&a, e);
	if (r < 0) {
		free(a.data);
		return r;
	}
	*ret = a.data != NULL ? a.data : strdup("");
	*ret_size = a.size;
	return *ret == NULL ? error_set(e, -ENOMEM, "out of memory") : 0;
}

int client_stream(const struct settings *s, const char *path, FILE *to, struct error *e) {
	struct answer a = {.to = to};
	struct request q = {.base = s->api, .service = "lambda", .method = "GET", .path = path};
	int r = perform(s, &q, &a, e);
	if (r == 0 && a.status != 200)
		r = refused(&a, e);
	free(a.data);
	return r;
}

static int put(const struct settings *s, const char *path, const void *data, size_t size, long *status, struct error *e) {
	struct answer a = {0};
	struct request q = {.base = s->artifacts,
			    .service = "s3",
			    .method = "PUT",
			    .path = path,
			    .body = data,
			    .body_size = size,
			    .content_type = "application/octet-stream"};
	int r = perform(s, &q, &a, e);
	cleanup_free char *text = a.data;
	*status = a.status;
	if (r == 0 && (a.status < 200 || a.status > 299) && a.status != 409)
		r = error_set(e, -EIO, "the artifact store answered PUT %s with HTTP status %ld: %.200s", path, a.status,
			      text == NULL ? "" : text);
	return r;
}

int client_put_object(const struct settings *s, const char *bucket, const char *key, const void *data, size_t size, struct error *e) {
	char path[2048];
	long status;
	snprintf(path, sizeof(path), "/%s", bucket);
	int r = put(s, path, "", 0, &status, e); // 409: it is ours already
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "/%s/%s", bucket, key);
	return put(s, path, data, size, &status, e);
}

bool client_escape(const char *text, char *to, size_t room) {
	size_t n = 0;
	for (; *text != '\0'; text++) {
		if (n + 4 > room)
			return false;
		if (isalnum((unsigned char)*text) || strchr("-._~", *text) != NULL)
			to[n++] = *text;
		else
			n += (size_t)snprintf(to + n, 4, "%%%02X", (unsigned char)*text);
	}
	to[n] = '\0';
	return true;
}

int client_fail(const struct cli *c, const struct error *e) {
	if (c->json) {
		json_t *o = json_pack("{s:s, s:s}", "error", e->name[0] != '\0' ? e->name : "Error", "message", e->message);
		json_dumpf(o, stderr, JSON_COMPACT);
		fputc('\n', stderr);
		json_decref(o);
	} else {
		fprintf(stderr, "stasis: %s%s%s\n", e->name, e->name[0] != '\0' ? ": " : "", e->message);
	}
	return e->code == -ECONNREFUSED ? EXIT_UNREACHABLE : e->code == -ENOENT ? EXIT_NOT_FOUND : EXIT_FAILED;
}
