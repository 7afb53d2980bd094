// Leases, samples of what the application uses, and their address; see busy.h.
//
// Samples are taken only where the image asks for them, every five seconds while the guest runs: what was used between two of them counts as busy
// when it is above the threshold.
#include "guest/busy.h"

#include "base/clock.h"
#include "guest/guest.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SAMPLE_NS 5000000000ull
#define SAMPLE_TEXT_MAX 4096
#define NETWORK_BYTES_MIN 1024 // between two samples: probes of connections that are silent do not count
#define CPU_PERCENT_MAX 1600   // of 16 processors
#define LEASES_PATH "/leases"

// The image's choice.

static int parse_word(const char *word, size_t size, struct busy_policy *p, struct error *e) {
	char text[32] = "", *end;

	if (size < sizeof(text))
		memcpy(text, word, size);
	if (strcmp(text, "lease") == 0) {
		p->leases = true;
	} else if (strcmp(text, "network") == 0) {
		p->network = true;
	} else if (strcmp(text, "cpu") == 0) {
		p->cpu_percent = BUSY_CPU_PERCENT;
	} else if (strncmp(text, "cpu=", 4) == 0 && isdigit((unsigned char)text[4])) {
		unsigned long n = strtoul(text + 4, &end, 10);
		if (*end != '\0' || n < 1 || n > CPU_PERCENT_MAX)
			return error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID",
					   BUSY_VARIABLE ": \"%s\" must be cpu=<percent of one processor>, from 1 to %d", text,
					   CPU_PERCENT_MAX);
		p->cpu_percent = (unsigned)n;
	} else {
		return error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID",
				   BUSY_VARIABLE " holds \"%.*s\"; it may hold lease, cpu, cpu=<percent> and network, or none alone",
				   size > 64 ? 64 : (int)size, word);
	}
	return 0;
}

int busy_parse(const char *text, struct busy_policy *ret, struct error *e) {
	static const char apart[] = " \t,";
	struct busy_policy p = {.leases = text == NULL};
	bool none = false;
	size_t words = 0;

	for (const char *at = text == NULL ? "" : text; *(at += strspn(at, apart)) != '\0'; words++) {
		size_t size = strcspn(at, apart);
		if (size == 4 && memcmp(at, "none", 4) == 0) {
			none = true;
		} else {
			int r = parse_word(at, size, &p, e);
			if (r < 0)
				return r;
		}
		at += size;
	}
	if (none && words > 1)
		return error_named(e, -EINVAL, "IMAGE_CONFIG_INVALID", BUSY_VARIABLE ": \"none\" must stand alone");
	*ret = p;
	return 0;
}

// Being busy.

static void note(struct busy *b, uint64_t at_ns, const char *why, const char *name) {
	if (at_ns < b->last_ns)
		return;
	b->last_ns = at_ns;
	snprintf(b->why, sizeof(b->why), "%s%s", why, name);
}

// Leases that are over become the time of their end.
static void fold_leases(struct busy *b, uint64_t now) {
	for (size_t i = 0; i < BUSY_LEASES_MAX; i++) {
		struct busy_lease *l = &b->leases[i];
		if (l->name[0] == '\0' || l->until_ns > now)
			continue;
		note(b, l->until_ns, "lease ", l->name);
		l->name[0] = '\0';
	}
}

uint64_t busy_idle_ns(struct busy *b, char why[BUSY_WHY_MAX]) {
	uint64_t now = monotonic_ns();

	fold_leases(b, now);
	for (size_t i = 0; i < BUSY_LEASES_MAX; i++)
		if (b->leases[i].name[0] != '\0')
			note(b, now, "lease ", b->leases[i].name);
	memcpy(why, b->why, BUSY_WHY_MAX);
	return now - b->last_ns;
}

// Samples.

static uint64_t number_behind(const char *text, const char *key) {
	const char *at = strstr(text, key);
	return at == NULL ? 0 : strtoull(at + strlen(key), NULL, 10);
}

static bool read_text(int fd, char text[SAMPLE_TEXT_MAX]) {
	ssize_t n = fd < 0 ? -1 : pread(fd, text, SAMPLE_TEXT_MAX - 1, 0);
	text[n > 0 ? n : 0] = '\0';
	return n > 0;
}

// Bytes that came and went (proc(5), /proc/net/dev: the first and the ninth number behind the name). Nothing reaches a guest by this interface but the
// answers to what it asked for.
static uint64_t interface_bytes(const char *text) {
	const char *at = strstr(text, GUEST_INTERFACE ":");
	unsigned long long in = 0, out = 0;

	if (at != NULL && sscanf(at + strlen(GUEST_INTERFACE ":"), "%llu %*u %*u %*u %*u %*u %*u %*u %llu", &in, &out) != 2)
		return 0;
	return in + out;
}

static void sample(struct busy *b, bool first) {
	char text[SAMPLE_TEXT_MAX];
	uint64_t now = monotonic_ns(), passed_us = (now - b->sampled_ns) / 1000;

	if (read_text(b->cpu_fd, text)) {
		uint64_t us = number_behind(text, "usage_usec ");
		if (!first && us > b->cpu_us && (us - b->cpu_us) * 100 >= passed_us * b->policy.cpu_percent)
			note(b, now, "cpu", "");
		b->cpu_us = us;
	}
	if (read_text(b->network_fd, text)) {
		uint64_t bytes = interface_bytes(text);
		if (!first && bytes >= b->network_bytes + NETWORK_BYTES_MIN)
			note(b, now, "network", "");
		b->network_bytes = bytes;
	}
	b->sampled_ns = now;
	loop_arm(b->loop, &b->sampler, now + SAMPLE_NS);
}

static void sample_again(struct timer *t) {
	sample(container_of(t, struct busy, sampler), false);
}

// The address.

static size_t say(const struct http_head *h, int status, const char *text, char *to) {
	return local_http_write(h, status, "text/plain", "", text, to);
}

static bool good_name(struct slice name) {
	if (name.size == 0 || name.size > BUSY_LEASE_NAME_MAX)
		return false;
	for (size_t i = 0; i < name.size; i++)
		if (!isalnum((unsigned char)name.data[i]) && strchr("._-", name.data[i]) == NULL)
			return false;
	return true;
}

// "seconds=<n>" and nothing else; 0: it is not that.
static unsigned seconds_of(struct slice query) {
	static const char key[] = "seconds=";
	unsigned n = 0;

	if (query.size <= strlen(key) || query.size > strlen(key) + 5 || memcmp(query.data, key, strlen(key)) != 0)
		return 0;
	for (size_t i = strlen(key); i < query.size; i++) {
		if (!isdigit((unsigned char)query.data[i]))
			return 0;
		n = n * 10 + (unsigned)(query.data[i] - '0');
	}
	return n > BUSY_LEASE_SECONDS_MAX ? 0 : n;
}

// The lease of this name; "" finds a free place.
static struct busy_lease *find(struct busy *b, struct slice name) {
	for (size_t i = 0; i < BUSY_LEASES_MAX; i++)
		if (slice_equals(name, b->leases[i].name))
			return &b->leases[i];
	return NULL;
}

static size_t take_lease(struct busy *b, const struct http_head *h, struct slice name, struct slice query, char *to) {
	char body[128];
	unsigned seconds = seconds_of(query);
	struct busy_lease *l = find(b, name);

	if (!b->policy.leases)
		return say(h, 403, "The image's " BUSY_VARIABLE " does not name \"lease\".\n", to);
	if (seconds == 0)
		return say(h, 400, "Say how long: PUT /leases/<name>?seconds=<1 to 86400>\n", to);
	if (l == NULL)
		l = find(b, SLICE(""));
	if (l == NULL)
		return say(h, 429, "64 leases are held; end one of them.\n", to);
	memcpy(l->name, name.data, name.size);
	l->name[name.size] = '\0';
	l->until_ns = monotonic_ns() + seconds * 1000000000ull;
	snprintf(body, sizeof(body), "{\"name\":\"%s\",\"seconds\":%u}", l->name, seconds);
	return local_http_write(h, 200, "application/json", "", body, to);
}

static size_t end_lease(struct busy *b, const struct http_head *h, struct slice name, char *to) {
	struct busy_lease *l = find(b, name);

	if (l == NULL)
		return say(h, 404, "There is no such lease, or it is over.\n", to);
	note(b, monotonic_ns(), "lease ", l->name);
	l->name[0] = '\0';
	return say(h, 200, "", to);
}

static size_t list_leases(const struct busy *b, const struct http_head *h, char *to) {
	char body[BUSY_LEASES_MAX * (BUSY_LEASE_NAME_MAX + 32) + 32] = "{\"leases\":[";
	size_t n = strlen(body);
	uint64_t now = monotonic_ns();
	const char *comma = "";

	for (size_t i = 0; i < BUSY_LEASES_MAX; i++) {
		const struct busy_lease *l = &b->leases[i];
		if (l->name[0] == '\0')
			continue;
		n += (size_t)snprintf(body + n, sizeof(body) - n, "%s{\"name\":\"%s\",\"seconds\":%llu}", comma, l->name,
				      (unsigned long long)((l->until_ns - now + 999999999u) / 1000000000u));
		comma = ",";
	}
	snprintf(body + n, sizeof(body) - n, "]}");
	return local_http_write(h, 200, "application/json", "", body, to);
}

size_t busy_answer(struct busy *b, const struct http_head *h, char *to) {
	struct slice path = h->target, query = SLICE("");
	const char *mark = memchr(path.data, '?', path.size);

	if (mark != NULL) {
		query = (struct slice){mark + 1, path.size - (size_t)(mark - path.data) - 1};
		path.size = (size_t)(mark - path.data);
	}
	// A proxy that was talked into sending requests here adds this header.
	if (http_find(h, "X-Forwarded-For") != NULL)
		return say(h, 403, "", to);
	fold_leases(b, monotonic_ns());
	bool get = slice_equals(h->method, "GET") || slice_equals(h->method, "HEAD");
	if (slice_equals(path, "/suspend")) {
		if (!slice_equals(h->method, "POST"))
			return say(h, 405, "POST /suspend\n", to);
		events_push_json(b->events, "{\"event\":\"suspend\"}");
		return say(h, 202, "", to);
	}
	if (slice_equals(path, LEASES_PATH))
		return get ? list_leases(b, h, to) : say(h, 405, "GET /leases, PUT or DELETE /leases/<name>\n", to);
	struct slice name = {path.data + strlen(LEASES_PATH "/"), path.size - strlen(LEASES_PATH "/")};
	if (path.size <= strlen(LEASES_PATH "/") || memcmp(path.data, LEASES_PATH "/", strlen(LEASES_PATH "/")) != 0)
		return say(h, 404, "Here are /leases, /leases/<name> and /suspend.\n", to);
	if (!good_name(name))
		return say(h, 400, "A lease's name has 1 to 64 letters, digits, dots, dashes and underscores.\n", to);
	if (slice_equals(h->method, "PUT"))
		return take_lease(b, h, name, query, to);
	if (slice_equals(h->method, "DELETE"))
		return end_lease(b, h, name, to);
	return say(h, 405, "PUT or DELETE /leases/<name>\n", to);
}

static size_t answer(void *arg, const struct http_head *h, char *to) {
	return busy_answer(arg, h, to);
}

// Beginning and end.

void busy_init(struct busy *b, const struct local_http *at, struct events *v) {
	struct local_http options = *at;

	*b = (struct busy){.loop = at->loop, .events = v, .sampler.fire = sample_again, .cpu_fd = -1, .network_fd = -1};
	options.answer = answer;
	options.arg = b;
	local_http_init(&b->http, &options);
}

int busy_begin(struct busy *b, const struct busy_policy *policy, const char *cgroup, struct error *e) {
	char path[256];

	b->policy = *policy;
	snprintf(path, sizeof(path), "%s/cpu.stat", cgroup);
	if (policy->cpu_percent > 0 && (b->cpu_fd = open(path, O_RDONLY | O_CLOEXEC)) < 0)
		return error_errno(e, "cannot open %s", path);
	if (policy->network && (b->network_fd = open("/proc/net/dev", O_RDONLY | O_CLOEXEC)) < 0)
		return error_errno(e, "cannot open /proc/net/dev");
	if (policy->cpu_percent > 0 || policy->network)
		sample(b, true);
	return local_http_listen(&b->http, e);
}

void busy_end(struct busy *b) {
	local_http_close(&b->http);
	loop_disarm(b->loop, &b->sampler);
	if (b->cpu_fd >= 0)
		close(b->cpu_fd);
	if (b->network_fd >= 0)
		close(b->network_fd);
	b->cpu_fd = b->network_fd = -1;
}
