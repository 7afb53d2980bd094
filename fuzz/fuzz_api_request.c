// The whole way of a request through the API: head, body, signature, routing, labels, JSON, validation, the real store, and the answer, which must be
// whole and valid. The input is an HTTP request as it comes from the network; unless its first byte is odd, it is signed here with a good key, so that
// what lies behind the signature is reached too.
#include "api/api_internal.h"
#include "api/exchange.h"
#include "api/policy.h"
#include "api/quota.h"
#include "api/sigv4.h"
#include "api/text.h"
#include "api_neighbours.h"
#include "base/clock.h"
#include "base/io.h"
#include "base/log.h"
#include "stasisd/engine.h"
#include "stasisd/workers.h"
#include "store/artifacts.h"
#include "store/db.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define ANSWER_MAX (4u << 20)
#define BODY_MAX (1u << 20)
#define SECRET "secret/one+two=three"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct engine engine = {.version = "0"};
static char folder[64];
static unsigned answers;

static void check(bool good) {
	if (!good)
		abort();
}

// In place of the server's loop: looks at the answer.
int exchange_post(struct exchange *x, const void *a, size_t a_size, const void *b, size_t b_size, bool last) {
	check(last && ++answers == 1);
	check(a_size > 12 && memcmp(a, "HTTP/1.1 ", 9) == 0 && a_size + b_size < ANSWER_MAX);
	struct http_head head;
	bool to_head = x->head.method.size == 4 && memcmp(x->head.method.data, "HEAD", 4) == 0;
	check(http_parse_response(a, a_size, to_head, &head, NULL) == (ssize_t)a_size);
	check(head.status == 204 || to_head || head.content_length == b_size);
	const struct http_header *type = http_find(&head, "content-type");
	if (b_size > 0 && type != NULL && slice_equals(type->value, "application/json")) {
		json_t *body = json_loadb(b, b_size, JSON_REJECT_DUPLICATES, NULL);
		check(body != NULL);
		json_decref(body);
	}
	// What is refused says what it is.
	check(head.status < 400 || http_find(&head, "x-amzn-errortype") != NULL);
	return 0;
}
void exchange_post_room(struct exchange *x) {
}
void exchange_post_continue(struct exchange *x) {
}

static void remove_folder(void) {
	remove_tree(folder, NULL);
}

// What the inputs of the corpus ask for.
static void add_records(void) {
	struct store_image i = {.uuid = "00000000-0000-4000-8000-000000000001",
				.account = "000000000000",
				.name = "a",
				.arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:a",
				.state = "CREATED",
				.latest_active_version = "1.0",
				.created_ms = 1,
				.tags = (char[]){"{}"}};
	struct store_version v = {.version = "1.0", .state = "SUCCESSFUL", .status = "ACTIVE", .created_ms = 1, .config = (char[]){"{}"}};
	struct store_build b = {.build_id = "b", .version = "1.0", .state = "SUCCESSFUL", .architecture = "X86_64", .created_ms = 1};
	struct store_microvm m = {.id = "microvm-1",
				  .account = "000000000000",
				  .endpoint = "e",
				  .version = "1.0",
				  .state = "RUNNING",
				  .started_ms = 1,
				  .config = (char[]){"{}"}};
	memcpy(v.image_uuid, i.uuid, UUID_TEXT);
	memcpy(b.image_uuid, i.uuid, UUID_TEXT);
	memcpy(m.image_uuid, i.uuid, UUID_TEXT);
	memcpy(m.image_arn, i.arn, sizeof(i.arn));
	check(store_add_image(engine.store, &i, &v, &b, NULL, NULL) == 0 && store_add_microvm(engine.store, &m, NULL, NULL) == 0);
}

static void open_engine(void) {
	static const char configuration[] =
		"{\"networks\":{\"subnet-a\":{\"cidrs\":[\"10.0.0.0/8\"]}},\"quotas\":{\"default\":{\"images\":9,\"memoryMib\":65536}}}";
	const struct store_key key = {
		.id = "AKIDSTASISTEST000001", .secret = SECRET, .account = "000000000000", .policy = (char[]){POLICY_EVERYTHING}};
	struct error e;
	struct config *c = &engine.config;
	strcpy(folder, "/dev/shm/fuzz.XXXXXX");
	check(mkdtemp(folder) != NULL && atexit(remove_folder) == 0);
	check(config_parse(configuration, strlen(configuration), "configuration", c, &e) == 0);
	strcpy(c->state_folder, folder);
	check(quotas_start(&engine, &e) == 0);
	check(store_open(folder, &engine.store, &e) == 0 && store_put_key(engine.store, &key, &e) == 0);
	check(db_set_flush(engine.store, false, &e) == 0 && neighbours_start(&engine, &e) == 0);
	check(artifacts_start(engine.store, folder, 1 << 20, &engine.artifacts, &e) == 0);
	check(artifacts_create_bucket(engine.artifacts, "000000000000", "bkt", &e) == 0);
	add_records();
}

static void start(void) {
	signal(SIGTERM, SIG_IGN); // POST /_stasis/shutdown works
	log_set_level(LOG_LEVEL_ERROR + 1);
	open_engine();
}

static int compare(const void *a, const void *b) {
	return strcmp(*(char *const *)a, *(char *const *)b);
}

// The query as it is signed: decoded, encoded, in order.
static void sign_query(struct text *t, struct slice query) {
	char *list[64];
	size_t n = 0;
	for (const char *at = query.data, *end = query.data + query.size; at < end && n < 64;) {
		const char *and = memchr(at, '&', (size_t)(end - at)), *stop = and == NULL ? end : and;
		const char *is = memchr(at, '=', (size_t)(stop - at));
		struct text one = {0};
		const char *parts[2] = {at, is == NULL ? stop : is + 1}, *ends[2] = {is == NULL ? stop : is, stop};
		for (int i = 0; i < 2 && stop > at; i++) {
			char *copy = malloc((size_t)(ends[i] - parts[i]) + 1);
			ssize_t m = percent_decode(parts[i], (size_t)(ends[i] - parts[i]), copy);
			text_encode(&one, copy, m < 0 ? 0 : (size_t)m, false);
			text_puts(&one, i == 0 ? "=" : "");
			free(copy);
		}
		if (stop > at)
			list[n++] = one.data;
		at = stop + 1;
	}
	qsort(list, n, sizeof(*list), compare);
	for (size_t i = 0; i < n; i++) {
		text_puts(t, i == 0 ? "" : "&");
		text_puts(t, list[i]);
		free(list[i]);
	}
}

// Writes the head anew with a signature over it. The body is signed as it is.
static void sign(struct text *to, const struct http_head *h, const char *body, size_t body_size) {
	struct sigv4 s = {.region = "us-east-1", .service = "lambda"};
	struct slice path, query;
	char digest[SIGV4_HEX], scope[80], signature[SIGV4_HEX];
	unsigned char key[32];
	time_t now = (time_t)(realtime_ms() / 1000);
	struct tm tm;
	gmtime_r(&now, &tm);
	strftime(s.amz_date, sizeof(s.amz_date), "%Y%m%dT%H%M%SZ", &tm);
	memcpy(s.date, s.amz_date, 8);
	target_split(h->target, &path, &query);
	cleanup_text canonical = {0}, string = {0};
	text_add(&canonical, h->method.data, h->method.size);
	text_puts(&canonical, "\n");
	text_encode(&canonical, path.data, path.size, true);
	text_puts(&canonical, "\n");
	sign_query(&canonical, query);
	sha256_hex(body, body_size, digest);
	text_format(&canonical, "\nhost:h\nx-amz-date:%s\n\nhost;x-amz-date\n%s", s.amz_date, digest);
	sha256_hex(canonical.data, canonical.size, digest);
	sigv4_scope(&s, scope);
	text_format(&string, "AWS4-HMAC-SHA256\n%s\n%s\n%s", s.amz_date, scope, digest);
	sigv4_key(&s, SECRET, key);
	sigv4_sign(key, string.data, string.size, signature);
	text_add(to, h->method.data, h->method.size);
	text_puts(to, " ");
	text_add(to, h->target.data, h->target.size);
	text_format(to,
		    " HTTP/1.1\r\nhost: h\r\nx-amz-date: %s\r\nauthorization: AWS4-HMAC-SHA256 Credential=AKIDSTASISTEST000001/%s, "
		    "SignedHeaders=host;x-amz-date, Signature=%s\r\n",
		    s.amz_date, scope, signature);
	for (size_t i = 0; i < h->header_count; i++) {
		const struct http_header *x = &h->headers[i];
		if (slice_equals_nocase(x->name, "host") || slice_equals_nocase(x->name, "x-amz-date") ||
		    slice_equals_nocase(x->name, "authorization"))
			continue;
		text_add(to, x->name.data, x->name.size);
		text_puts(to, ": ");
		text_add(to, x->value.data, x->value.size);
		text_puts(to, "\r\n");
	}
	text_puts(to, "\r\n");
}

// The body as the server collects it. False: it is malformed, or not all there.
static bool collect(struct exchange *x, const char *data, size_t size) {
	while (!x->body.done) {
		struct slice content;
		ssize_t n = http_body_feed(&x->body, data, size, &content, NULL);
		if (n < 0 || (n == 0 && !x->body.done) || x->size + content.size > BODY_MAX)
			return false;
		if (content.size > 0)
			check(exchange_add_body(x, content.data, content.size) == 0);
		data += n;
		size -= (size_t)n;
	}
	exchange_end_body(x);
	return true;
}

static void handle(const char *head, size_t head_size, const char *body, size_t body_size) {
	struct exchange *x = exchange_new(NULL, NULL);
	check(x != NULL);
	if (exchange_take_head(x, head, head_size) == 0 && collect(x, body, body_size)) {
		answers = 0;
		(void)api_is_quick(exchange_head(x));
		api_handle(x, &engine);
		check(answers == 1);
		check(workers_wait_idle(10000)); // deletions
	}
	exchange_release(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	static struct http_head h;
	static bool started;
	if (!started)
		start();
	started = true;
	if (size < 2)
		return 0;
	char *copy = malloc(size - 1);
	memcpy(copy, data + 1, size - 1);
	ssize_t n = http_parse_request(copy, size - 1, &h, NULL);
	if (n > 0 && (data[0] & 1) != 0) {
		handle(copy, (size_t)n, copy + n, size - 1 - (size_t)n);
	} else if (n > 0) {
		// What is signed is the content, not how it is framed.
		struct exchange *x = exchange_new(NULL, NULL);
		cleanup_text head = {0};
		if (exchange_take_head(x, copy, (size_t)n) == 0 && collect(x, copy + n, size - 1 - (size_t)n)) {
			sign(&head, &h, exchange_body(x).data, exchange_body(x).size);
			if (!head.bad)
				handle(head.data, head.size, copy + n, size - 1 - (size_t)n);
		}
		exchange_release(x);
	}
	free(copy);
	return 0;
}
