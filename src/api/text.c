// Growing texts and percent-encoding; see text.h.
#include "api/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool reserve(struct text *t, size_t size) {
	if (t->bad || size > TEXT_LIMIT || t->size + size > TEXT_LIMIT) {
		t->bad = true;
		return false;
	}
	if (t->room - t->size > size)
		return true;
	size_t wanted = t->room == 0 ? 256 : t->room;
	while (wanted - t->size <= size)
		wanted *= 2;
	char *more = realloc(t->data, wanted);
	if (more == NULL) {
		t->bad = true;
		return false;
	}
	t->data = more;
	t->room = wanted;
	return true;
}

void text_add(struct text *t, const void *data, size_t size) {
	if (!reserve(t, size))
		return;
	if (size > 0)
		memcpy(t->data + t->size, data, size);
	t->size += size;
	t->data[t->size] = '\0';
}

void text_puts(struct text *t, const char *s) {
	text_add(t, s, strlen(s));
}

void text_format(struct text *t, const char *format, ...) {
	char *s = NULL;
	va_list ap;
	va_start(ap, format);
	int n = vasprintf(&s, format, ap);
	va_end(ap);
	if (n < 0) {
		t->bad = true;
		return;
	}
	text_add(t, s, (size_t)n);
	free(s);
}

static bool unreserved(unsigned char c) {
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_' || c == '~';
}

void text_encode(struct text *t, const char *data, size_t size, bool keep_slash) {
	static const char digits[] = "0123456789ABCDEF";
	if (size > TEXT_LIMIT / 3 || !reserve(t, size * 3)) {
		t->bad = true;
		return;
	}
	char *to = t->data + t->size;
	for (size_t i = 0; i < size; i++) {
		unsigned char c = (unsigned char)data[i];
		if (unreserved(c) || (keep_slash && c == '/')) {
			*to++ = (char)c;
		} else {
			*to++ = '%';
			*to++ = digits[c >> 4];
			*to++ = digits[c & 15];
		}
	}
	*to = '\0';
	t->size = (size_t)(to - t->data);
}

static int digit(char c) {
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

ssize_t percent_decode(const char *from, size_t size, char *to) {
	size_t n = 0;
	for (size_t i = 0; i < size; i++) {
		if (from[i] != '%') {
			to[n++] = from[i];
			continue;
		}
		int high = i + 2 < size ? digit(from[i + 1]) : -1, low = i + 2 < size ? digit(from[i + 2]) : -1;
		if (high < 0 || low < 0)
			return -EBADMSG;
		to[n++] = (char)(high << 4 | low);
		i += 2;
	}
	return (ssize_t)n;
}

void target_split(struct slice target, struct slice *path, struct slice *query) {
	const char *mark = memchr(target.data, '?', target.size);
	*path = (struct slice){target.data, mark == NULL ? target.size : (size_t)(mark - target.data)};
	*query = mark == NULL ? (struct slice){"", 0} : (struct slice){mark + 1, target.size - path->size - 1};
}

int query_next(struct slice *query, const char *name, char **ret) {
	const char *at = query->data, *end = query->data + query->size;
	size_t n = strlen(name);
	while (at < end) {
		const char *stop = memchr(at, '&', (size_t)(end - at));
		if (stop == NULL)
			stop = end;
		const char *equals = memchr(at, '=', (size_t)(stop - at));
		if (equals == NULL)
			equals = stop;
		if ((size_t)(equals - at) == n && memcmp(at, name, n) == 0) {
			const char *value = equals < stop ? equals + 1 : stop;
			char *copy = malloc((size_t)(stop - value) + 1);
			if (copy == NULL)
				return -ENOMEM;
			ssize_t size = percent_decode(value, (size_t)(stop - value), copy);
			if (size < 0 || memchr(copy, '\0', (size_t)size) != NULL) {
				free(copy);
				return -EBADMSG;
			}
			copy[size] = '\0';
			*ret = copy;
			const char *rest = stop < end ? stop + 1 : end;
			*query = (struct slice){rest, (size_t)(end - rest)};
			return 1;
		}
		at = stop + 1;
	}
	return 0;
}

int query_find(struct slice query, const char *name, char **ret) {
	return query_next(&query, name, ret);
}
