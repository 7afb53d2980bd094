// Ports of images that the operator has made public. They lie in the database and, sorted, in memory, because the edge looks there for every
// request without a token. They go with their image.
#include "store/db.h"

#include "base/cleanup.h"

#include <stdlib.h>
#include <string.h>

struct public_port {
	char image_uuid[UUID_TEXT];
	uint16_t port;
};

struct public_ports {
	pthread_rwlock_t lock;
	struct public_port *list; // by image and port
	size_t count;
};

static inline void unlock_fn(struct public_ports **p) {
	pthread_rwlock_unlock(&(*p)->lock);
}
#define PORTS_LOCKED(s, how)                                  \
	pthread_rwlock_##how##lock(&(s)->public_ports->lock); \
	__attribute__((cleanup(unlock_fn))) struct public_ports *p = (s)->public_ports

// Where the first of the list lies that is not before this one.
static size_t position(const struct public_ports *p, const char *image_uuid, uint16_t port) {
	size_t low = 0, high = p->count;
	while (low < high) {
		size_t middle = low + (high - low) / 2;
		int order = strcmp(p->list[middle].image_uuid, image_uuid);
		if (order < 0 || (order == 0 && p->list[middle].port < port))
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static bool is_at(const struct public_ports *p, size_t at, const char *image_uuid) {
	return at < p->count && strcmp(p->list[at].image_uuid, image_uuid) == 0;
}

static int insert(struct public_ports *p, const char *image_uuid, uint16_t port) {
	size_t at = position(p, image_uuid, port);
	if (is_at(p, at, image_uuid) && p->list[at].port == port)
		return 0;
	struct public_port *more = realloc(p->list, (p->count + 1) * sizeof(*more));
	if (more == NULL)
		return -ENOMEM;
	p->list = more;
	memmove(&more[at + 1], &more[at], (p->count - at) * sizeof(*more));
	more[at] = (struct public_port){.port = port};
	snprintf(more[at].image_uuid, UUID_TEXT, "%s", image_uuid);
	p->count++;
	return 0;
}

static void take_out(struct public_ports *p, size_t at, size_t n) {
	memmove(&p->list[at], &p->list[at + n], (p->count - at - n) * sizeof(*p->list));
	p->count -= n;
}

int public_ports_load(struct store *s, struct error *e) {
	s->public_ports = calloc(1, sizeof(*s->public_ports));
	if (s->public_ports == NULL)
		return error_set(e, -ENOMEM, "out of memory opening the store");
	pthread_rwlock_init(&s->public_ports->lock, NULL);
	db_statement st = NULL;
	int r = db_query(s, &st, e, "SELECT image_uuid, port FROM public_ports", "");
	while (r >= 0 && (r = db_step(s, st, e)) > 0) {
		char uuid[UUID_TEXT];
		db_text(st, 0, uuid, sizeof(uuid));
		if (insert(s->public_ports, uuid, (uint16_t)sqlite3_column_int(st, 1)) < 0)
			return error_set(e, -ENOMEM, "out of memory reading the public ports");
	}
	return r < 0 ? r : 0;
}

void public_ports_free(struct store *s) {
	if (s->public_ports == NULL)
		return;
	pthread_rwlock_destroy(&s->public_ports->lock);
	free(s->public_ports->list);
	free(s->public_ports);
	s->public_ports = NULL;
}

void public_ports_forget_image(struct store *s, const char *image_uuid) {
	PORTS_LOCKED(s, wr);
	size_t at = position(p, image_uuid, 0), n = 0;
	while (is_at(p, at + n, image_uuid))
		n++;
	take_out(p, at, n);
}

int store_set_public_port(struct store *s, const char *image_uuid, uint16_t port, bool on, struct error *e) {
	DB_LOCKED(s);
	PORTS_LOCKED(s, wr);
	size_t first = position(p, image_uuid, 0), n = 0, at = position(p, image_uuid, port);
	while (is_at(p, first + n, image_uuid))
		n++;
	bool there = is_at(p, at, image_uuid) && p->list[at].port == port;
	if (there == on)
		return 0;
	if (on && n >= STORE_PUBLIC_PORTS_MAX)
		return error_set(e, -EDQUOT, "an image has at most %d public ports", STORE_PUBLIC_PORTS_MAX);
	int r = on ? db_exec(s, e,
			     "INSERT INTO public_ports(image_uuid, port) SELECT uuid, ?2 FROM images WHERE uuid=?1 AND state NOT IN "
			     "('DELETING', 'DELETE_FAILED')",
			     "si", image_uuid, (int64_t)port)
		   : db_exec(s, e, "DELETE FROM public_ports WHERE image_uuid=? AND port=?", "si", image_uuid, (int64_t)port);
	if (r < 0)
		return r;
	if (!on)
		take_out(p, at, 1);
	else if (r == 0)
		return error_set(e, -ENOENT, "there is no such image");
	else if (insert(p, image_uuid, port) < 0)
		return error_set(e, -ENOMEM, "out of memory: the port is public after the next start");
	return 0;
}

size_t store_public_ports(struct store *s, const char *image_uuid, uint16_t ret[static STORE_PUBLIC_PORTS_MAX]) {
	PORTS_LOCKED(s, rd);
	size_t n = 0;
	for (size_t at = position(p, image_uuid, 0); is_at(p, at, image_uuid) && n < STORE_PUBLIC_PORTS_MAX; at++)
		ret[n++] = p->list[at].port;
	return n;
}

uint16_t store_public_port(struct store *s, const char *image_uuid, uint16_t port) {
	PORTS_LOCKED(s, rd);
	size_t at = position(p, image_uuid, port == 0 ? 8080 : port);
	if (is_at(p, at, image_uuid) && p->list[at].port == (port == 0 ? 8080 : port))
		return p->list[at].port;
	at = position(p, image_uuid, 0);
	return port == 0 && is_at(p, at, image_uuid) ? p->list[at].port : 0;
}
