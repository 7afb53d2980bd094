// One request and its answer, between the loop and a handler; see server.h and exchange.h.
#include "api/exchange.h"

#include "base/cleanup.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LOCKED(x) __attribute__((cleanup(unlock_fn), unused)) struct exchange *locked_ = lock_it(x)

static inline void unlock_fn(struct exchange **x) {
	pthread_mutex_unlock(&(*x)->lock);
}
static inline struct exchange *lock_it(struct exchange *x) {
	pthread_mutex_lock(&x->lock);
	return x;
}

struct exchange *exchange_new(struct server *s, struct connection *c) {
	struct exchange *x = calloc(1, sizeof(*x));
	if (x == NULL)
		return NULL;
	x->s = s;
	x->c = c;
	x->references = 1;
	uuid_new(x->id);
	pthread_mutex_init(&x->lock, NULL);
	pthread_cond_init(&x->changed, NULL);
	return x;
}

int exchange_take_head(struct exchange *x, const char *head, size_t size) {
	x->head_bytes = malloc(size);
	if (x->head_bytes == NULL)
		return -ENOMEM;
	memcpy(x->head_bytes, head, size);
	ssize_t n = http_parse_request(x->head_bytes, size, &x->head, NULL);
	if (n < 0)
		return (int)n;
	http_body_start(&x->body, &x->head);
	return 0;
}

void exchange_hold(struct exchange *x) {
	LOCKED(x);
	x->references++;
}

void exchange_release(struct exchange *x) {
	if (x == NULL)
		return;
	pthread_mutex_lock(&x->lock);
	int left = --x->references;
	pthread_mutex_unlock(&x->lock);
	if (left > 0)
		return;
	pthread_mutex_destroy(&x->lock);
	pthread_cond_destroy(&x->changed);
	free(x->head_bytes);
	free(x->buffer);
	free(x->headers);
	free(x);
}

// Loop side -------------------------------------------------------------------------------------------------------------------------

void exchange_break(struct exchange *x, int why) {
	LOCKED(x);
	x->broken = why;
	pthread_cond_broadcast(&x->changed);
	if (x->on_break != NULL)
		x->on_break(x->on_break_arg);
	x->on_break = NULL;
}

void exchange_break_body(struct exchange *x, int why) {
	LOCKED(x);
	x->body_error = why;
	pthread_cond_broadcast(&x->changed);
}

void exchange_end_body(struct exchange *x) {
	LOCKED(x);
	x->body_done = true;
	pthread_cond_broadcast(&x->changed);
}

size_t exchange_room(struct exchange *x) {
	LOCKED(x);
	size_t room = EXCHANGE_BODY_ROOM - x->size;
	x->starved = room < EXCHANGE_ROOM_LEAST;
	return x->starved ? 0 : room;
}

// A ring for streams; a collected body starts at 0 and grows.
static int make_room(struct exchange *x, size_t size) {
	if (x->room - x->size >= size)
		return 0;
	size_t wanted = x->room == 0 ? 4096 : x->room;
	while (wanted - x->size < size)
		wanted *= 2;
	char *more = malloc(wanted);
	if (more == NULL)
		return -ENOMEM;
	for (size_t i = 0; x->room > 0 && i < x->size;) {
		size_t at = (x->start + i) % x->room, n = x->room - at < x->size - i ? x->room - at : x->size - i;
		memcpy(more + i, x->buffer + at, n);
		i += n;
	}
	free(x->buffer);
	x->buffer = more;
	x->room = wanted;
	x->start = 0;
	return 0;
}

int exchange_add_body(struct exchange *x, const void *data, size_t size) {
	LOCKED(x);
	if (make_room(x, size) < 0)
		return -ENOMEM;
	const char *from = data;
	while (size > 0) {
		size_t at = (x->start + x->size) % x->room, n = x->room - at < size ? x->room - at : size;
		memcpy(x->buffer + at, from, n);
		x->size += n;
		from += n;
		size -= n;
	}
	pthread_cond_broadcast(&x->changed);
	return 0;
}

void exchange_written(struct exchange *x, size_t size) {
	LOCKED(x);
	x->queued -= size;
	pthread_cond_broadcast(&x->changed);
}

bool exchange_idle(struct exchange *x) {
	LOCKED(x);
	return x->queued == 0;
}

bool exchange_is_complete(struct exchange *x) {
	LOCKED(x);
	return x->complete;
}

bool exchange_is_endless(struct exchange *x) {
	LOCKED(x);
	return x->endless;
}

// Worker side: the request ------------------------------------------------------------------------------------------------------------

const struct http_head *exchange_head(const struct exchange *x) {
	return &x->head;
}

const char *exchange_id(const struct exchange *x) {
	return x->id;
}

struct slice exchange_body(const struct exchange *x) {
	return (struct slice){.data = x->buffer == NULL ? "" : x->buffer, .size = x->size};
}

ssize_t exchange_read(struct exchange *x, void *to, size_t room) {
	bool post_continue = false, post_room = false;
	size_t n = 0;
	pthread_mutex_lock(&x->lock);
	if (x->wants_continue) {
		x->wants_continue = false;
		post_continue = x->size == 0 && !x->body_done;
	}
	pthread_mutex_unlock(&x->lock);
	if (post_continue)
		exchange_post_continue(x);
	{
		LOCKED(x);
		while (x->size == 0 && !x->body_done && x->broken == 0 && x->body_error == 0)
			pthread_cond_wait(&x->changed, &x->lock);
		if (x->size == 0)
			return x->body_done ? 0 : x->body_error != 0 ? x->body_error : x->broken;
		if (x->broken != 0)
			return x->broken;
		n = x->room - x->start < x->size ? x->room - x->start : x->size;
		if (n > room)
			n = room;
		memcpy(to, x->buffer + x->start, n);
		x->start = (x->start + n) % x->room;
		x->size -= n;
		if (x->starved && EXCHANGE_BODY_ROOM - x->size >= 2 * EXCHANGE_ROOM_LEAST) {
			x->starved = false;
			post_room = true;
		}
	}
	if (post_room)
		exchange_post_room(x);
	return (ssize_t)n;
}

// Worker side: the answer -------------------------------------------------------------------------------------------------------------

int exchange_header(struct exchange *x, const char *name, const char *format, ...) {
	cleanup_free char *value = NULL;
	va_list ap;
	va_start(ap, format);
	int n = vasprintf(&value, format, ap);
	va_end(ap);
	if (n < 0) {
		value = NULL;
		return -ENOMEM;
	}
	for (char *p = value; *p != '\0'; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	size_t added = strlen(name) + (size_t)n + 4;
	if (x->headers_size + added > EXCHANGE_HEADERS_MAX)
		return -ENOMEM;
	char *more = realloc(x->headers, x->headers_size + added + 1);
	if (more == NULL)
		return -ENOMEM;
	x->headers = more;
	x->headers_size += (size_t)sprintf(more + x->headers_size, "%s: %s\r\n", name, value);
	return 0;
}

static const char *reason(int status) {
	static const struct {
		int status;
		const char *text;
	} known[] = {
		{200, "OK"},
		{201, "Created"},
		{202, "Accepted"},
		{204, "No Content"},
		{206, "Partial Content"},
		{304, "Not Modified"},
		{400, "Bad Request"},
		{402, "Payment Required"},
		{403, "Forbidden"},
		{404, "Not Found"},
		{405, "Method Not Allowed"},
		{408, "Request Timeout"},
		{409, "Conflict"},
		{411, "Length Required"},
		{412, "Precondition Failed"},
		{413, "Content Too Large"},
		{416, "Range Not Satisfiable"},
		{429, "Too Many Requests"},
		{431, "Request Header Fields Too Large"},
		{500, "Internal Server Error"},
		{501, "Not Implemented"},
		{503, "Service Unavailable"},
		{505, "HTTP Version Not Supported"},
		{507, "Insufficient Storage"},
	};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].status == status)
			return known[i].text;
	return "";
}

// The start line and all headers. NULL: out of memory.
static char *render_head(struct exchange *x, int status, uint64_t length) {
	char date[40], size[48] = "";
	time_t now = time(NULL);
	struct tm tm;
	strftime(date, sizeof(date), "%a, %d %b %Y %H:%M:%S GMT", gmtime_r(&now, &tm));
	if (x->endless)
		snprintf(size, sizeof(size), "%s", x->chunked ? "transfer-encoding: chunked\r\n" : "");
	else if (status != 204 && status != 304)
		snprintf(size, sizeof(size), "content-length: %llu\r\n", (unsigned long long)length);
	char *text = NULL;
	if (asprintf(&text, "HTTP/1.1 %d %s\r\ndate: %s\r\n%s%s%s\r\n", status, reason(status), date, x->headers == NULL ? "" : x->headers,
		     size, x->close_after ? "connection: close\r\n" : "") < 0)
		return NULL;
	return text;
}

static bool is_head(const struct exchange *x) {
	return x->head.method.data != NULL && slice_equals(x->head.method, "HEAD");
}

// Marks the answer as begun. An answer that comes before the end of the request's body ends the connection: what is left of the body is not
// worth reading.
static bool begin(struct exchange *x, uint64_t left) {
	LOCKED(x);
	if (x->begun)
		return false;
	x->begun = true;
	x->left = left;
	if (!x->body_done)
		x->close_after = true;
	return true;
}

// Copies to the loop's queue.
static int post(struct exchange *x, const void *a, size_t a_size, const void *b, size_t b_size) {
	bool last;
	{
		LOCKED(x);
		x->queued += a_size + b_size;
		last = x->left == 0;
	}
	int r = exchange_post(x, a, a_size, b, b_size, last);
	LOCKED(x);
	if (r < 0)
		x->queued -= a_size + b_size;
	else
		x->complete = last;
	return r;
}

void exchange_reply(struct exchange *x, int status, const void *body, size_t size) {
	if (!begin(x, 0))
		return;
	cleanup_free char *head = render_head(x, status, size);
	if (head != NULL)
		post(x, head, strlen(head), body, is_head(x) || status == 204 || status == 304 ? 0 : size);
}

int exchange_begin(struct exchange *x, int status, uint64_t length) {
	if (!begin(x, is_head(x) ? 0 : length))
		return -EALREADY;
	cleanup_free char *head = render_head(x, status, length);
	return head == NULL ? -ENOMEM : post(x, head, strlen(head), NULL, 0);
}

// A chunk's end comes with the head of the next one, or with the end of all.
static int post_chunk(struct exchange *x, const void *data, size_t size) {
	char head[32];
	int n = snprintf(head, sizeof(head), "%s%zx\r\n", x->continued ? "\r\n" : "", size);
	x->continued = true;
	return post(x, head, (size_t)n, data, size);
}

int exchange_write(struct exchange *x, const void *data, size_t size) {
	const char *p = data;
	while (size > 0) {
		size_t n = size < EXCHANGE_WRITE_MAX ? size : EXCHANGE_WRITE_MAX;
		{
			LOCKED(x);
			while (x->queued > EXCHANGE_QUEUE_MAX && x->broken == 0)
				pthread_cond_wait(&x->changed, &x->lock);
			if (x->broken != 0)
				return x->broken;
			if (n > x->left)
				return -EMSGSIZE;
			if (!x->endless)
				x->left -= n;
		}
		int r = x->chunked ? post_chunk(x, p, n) : post(x, p, n, NULL, 0);
		if (r < 0)
			return r;
		p += n;
		size -= n;
	}
	return 0;
}

int exchange_begin_endless(struct exchange *x, int status) {
	if (!begin(x, is_head(x) ? 0 : UINT64_MAX))
		return -EALREADY;
	{
		LOCKED(x);
		x->endless = true;
		x->chunked = x->head.minor_version > 0;
		x->close_after = x->close_after || !x->chunked;
	}
	cleanup_free char *head = render_head(x, status, 0);
	return head == NULL ? -ENOMEM : post(x, head, strlen(head), NULL, 0);
}

void exchange_end(struct exchange *x) {
	{
		LOCKED(x);
		if (!x->endless || x->left == 0)
			return;
		x->left = 0;
	}
	const char *end = !x->chunked ? "" : x->continued ? "\r\n0\r\n\r\n" : "0\r\n\r\n";
	post(x, end, strlen(end), NULL, 0);
}

void exchange_on_break(struct exchange *x, void (*fn)(void *arg), void *arg) {
	LOCKED(x);
	if (fn != NULL && x->broken != 0)
		fn(arg);
	x->on_break = x->broken == 0 ? fn : NULL;
	x->on_break_arg = arg;
}

bool exchange_answered(struct exchange *x) {
	LOCKED(x);
	return x->begun;
}
