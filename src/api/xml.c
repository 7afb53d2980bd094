// The XML of S3; see xml.h.
#include "api/xml.h"

#include <stdio.h>
#include <string.h>

#define PATH_MAX_BYTES 256

void xml_escape(struct text *t, const char *s) {
	for (; *s != '\0'; s++) {
		unsigned char c = (unsigned char)*s;
		switch (c) {
		case '&':
			text_puts(t, "&amp;");
			break;
		case '<':
			text_puts(t, "&lt;");
			break;
		case '>':
			text_puts(t, "&gt;");
			break;
		case '"':
			text_puts(t, "&quot;");
			break;
		case '\r':
			text_puts(t, "&#13;");
			break;
		default:
			if (c < 0x20 && c != '\t' && c != '\n')
				text_puts(t, "?");
			else
				text_add(t, s, 1);
		}
	}
}

void xml_element(struct text *t, const char *name, const char *value) {
	text_format(t, "<%s>", name);
	xml_escape(t, value);
	text_format(t, "</%s>", name);
}

struct xml {
	const char *at, *end;
	char path[PATH_MAX_BYTES];
	int depth;
	char value[XML_VALUE_MAX + 1];
	size_t value_size;
};

static bool starts(const struct xml *x, const char *text) {
	size_t n = strlen(text);
	return (size_t)(x->end - x->at) >= n && memcmp(x->at, text, n) == 0;
}

// Skips behind the next occurrence of the text.
static bool skip_past(struct xml *x, const char *text) {
	size_t n = strlen(text);
	const char *found = memmem(x->at, (size_t)(x->end - x->at), text, n);
	if (found == NULL)
		return false;
	x->at = found + n;
	return true;
}

static void skip_space(struct xml *x) {
	while (x->at < x->end && strchr(" \t\r\n", *x->at) != NULL && *x->at != '\0')
		x->at++;
}

static bool name_character(char c) {
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.' || c == ':';
}

static size_t name_size(const struct xml *x) {
	size_t n = 0;
	while (x->at + n < x->end && name_character(x->at[n]))
		n++;
	return n;
}

static bool add_value(struct xml *x, const char *data, size_t size) {
	if (x->value_size + size > XML_VALUE_MAX)
		return false;
	memcpy(x->value + x->value_size, data, size);
	x->value_size += size;
	return true;
}

static bool add_character(struct xml *x, unsigned long c) {
	char out[4];
	if (c == 0 || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return false;
	if (c < 0x80) {
		out[0] = (char)c;
		return add_value(x, out, 1);
	}
	size_t n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
	for (size_t i = n - 1; i > 0; i--, c >>= 6)
		out[i] = (char)(0x80 | (c & 0x3f));
	out[0] = (char)((n == 2 ? 0xc0 : n == 3 ? 0xe0 : 0xf0) | c);
	return add_value(x, out, n);
}

static bool read_reference(struct xml *x) {
	static const struct {
		const char *name;
		char value;
	} known[] = {{"&amp;", '&'}, {"&lt;", '<'}, {"&gt;", '>'}, {"&quot;", '"'}, {"&apos;", '\''}};
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		if (starts(x, known[i].name)) {
			x->at += strlen(known[i].name);
			return add_value(x, &known[i].value, 1);
		}
	}
	if (!starts(x, "&#"))
		return false;
	x->at += 2;
	unsigned base = starts(x, "x") ? 16 : 10;
	x->at += base == 16 ? 1 : 0;
	unsigned long c = 0;
	int digits = 0;
	for (; x->at < x->end && *x->at != ';'; x->at++, digits++) {
		char d = *x->at;
		unsigned v = d >= '0' && d <= '9'   ? (unsigned)(d - '0')
			     : d >= 'a' && d <= 'f' ? (unsigned)(d - 'a' + 10)
			     : d >= 'A' && d <= 'F' ? (unsigned)(d - 'A' + 10)
						    : 99;
		if (v >= base || digits == 8)
			return false;
		c = c * base + v;
	}
	if (digits == 0 || x->at == x->end)
		return false;
	x->at++;
	return add_character(x, c);
}

static bool open_element(struct xml *x) {
	size_t n = name_size(x), used = strlen(x->path);
	if (n == 0 || x->depth == XML_DEPTH_MAX || used + n + 2 > sizeof(x->path))
		return false;
	snprintf(x->path + used, sizeof(x->path) - used, "%s%.*s", used == 0 ? "" : "/", (int)n, x->at);
	x->at += n;
	x->depth++;
	x->value_size = 0;
	return true;
}

// Skips attributes; leaves `at` behind '>'. *empty: the element ends here too.
static bool skip_attributes(struct xml *x, bool *empty) {
	*empty = false;
	for (;;) {
		skip_space(x);
		if (x->at == x->end)
			return false;
		if (*x->at == '>') {
			x->at++;
			return true;
		}
		if (starts(x, "/>")) {
			x->at += 2;
			*empty = true;
			return true;
		}
		size_t n = name_size(x);
		x->at += n;
		skip_space(x);
		if (n == 0 || !starts(x, "="))
			return false;
		x->at++;
		skip_space(x);
		char quote[2] = {x->at < x->end ? *x->at : '\0', '\0'};
		if (quote[0] != '"' && quote[0] != '\'')
			return false;
		x->at++;
		if (!skip_past(x, quote))
			return false;
	}
}

static int close_element(struct xml *x, bool (*element)(void *arg, const char *path, const char *value), void *arg) {
	x->value[x->value_size] = '\0';
	if (strlen(x->value) != x->value_size)
		return -EBADMSG;
	bool go_on = element(arg, x->path, x->value);
	char *slash = strrchr(x->path, '/');
	*(slash == NULL ? x->path : slash) = '\0';
	x->depth--;
	x->value_size = 0;
	return go_on ? 0 : -ECANCELED;
}

static bool closes_current(struct xml *x) {
	const char *slash = strrchr(x->path, '/'), *name = slash == NULL ? x->path : slash + 1;
	size_t n = name_size(x);
	if (x->depth == 0 || n != strlen(name) || memcmp(x->at, name, n) != 0)
		return false;
	x->at += n;
	skip_space(x);
	if (!starts(x, ">"))
		return false;
	x->at++;
	return true;
}

int xml_read(const char *data, size_t size, bool (*element)(void *arg, const char *path, const char *value), void *arg) {
	struct xml x = {.at = data, .end = data + size};
	bool began = false;
	if (starts(&x, "\xef\xbb\xbf"))
		x.at += 3;
	if (starts(&x, "<?xml") && !skip_past(&x, "?>"))
		return -EBADMSG;
	while (x.at < x.end) {
		if (x.depth == 0) {
			skip_space(&x);
			if (x.at == x.end)
				break;
		}
		bool fine = true;
		if (starts(&x, "<!--")) {
			fine = skip_past(&x, "-->");
		} else if (x.depth > 0 && starts(&x, "<![CDATA[")) {
			x.at += 9;
			const char *from = x.at;
			fine = skip_past(&x, "]]>") && add_value(&x, from, (size_t)(x.at - 3 - from));
		} else if (starts(&x, "</")) {
			x.at += 2;
			fine = closes_current(&x);
			int r = fine ? close_element(&x, element, arg) : 0;
			if (r < 0)
				return r;
		} else if (*x.at == '<') {
			bool empty;
			x.at++;
			fine = !(began && x.depth == 0) && open_element(&x) && skip_attributes(&x, &empty);
			began = true;
			int r = fine && empty ? close_element(&x, element, arg) : 0;
			if (r < 0)
				return r;
		} else if (x.depth == 0) {
			fine = false;
		} else if (*x.at == '&') {
			fine = read_reference(&x);
		} else {
			fine = add_value(&x, x.at, 1);
			x.at++;
		}
		if (!fine)
			return -EBADMSG;
	}
	return began && x.depth == 0 ? 0 : -EBADMSG;
}
