// See json_write.h. Most of an answer is strings without anything to escape, and times: both are copied or printed without detours.
#include "api/json_write.h"

#include <stdio.h>
#include <string.h>

static bool is_plain(unsigned char c) {
	return c >= 0x20 && c != '"' && c != '\\';
}

static void write_escaped(struct text *t, unsigned char c) {
	static const char from[] = "\"\\\b\f\n\r\t", to[] = "\"\\bfnrt";
	const char *at = strchr(from, c);
	if (c != '\0' && at != NULL)
		text_add(t, (char[]){'\\', to[at - from]}, 2);
	else
		text_format(t, "\\u%04X", c);
}

static void write_string(struct text *t, const char *s, size_t size) {
	text_add(t, "\"", 1);
	for (size_t i = 0; i < size;) {
		size_t n = i;
		while (n < size && is_plain((unsigned char)s[n]))
			n++;
		text_add(t, s + i, n - i);
		if (n < size)
			write_escaped(t, (unsigned char)s[n++]);
		i = n;
	}
	text_add(t, "\"", 1);
}

static void write_integer(struct text *t, json_int_t v) {
	char digits[24], *at = digits + sizeof(digits);
	unsigned long long left = v < 0 ? 0ull - (unsigned long long)v : (unsigned long long)v;
	do
		*--at = (char)('0' + left % 10);
	while ((left /= 10) != 0);
	if (v < 0)
		*--at = '-';
	text_add(t, at, (size_t)(digits + sizeof(digits) - at));
}

static void write_thousandths(struct text *t, long long all) {
	int fraction = (int)(all % 1000), digits = 3;
	write_integer(t, all / 1000);
	while (digits > 1 && fraction % 10 == 0) {
		fraction /= 10;
		digits--;
	}
	char text[5] = ".";
	for (int i = digits; i > 0; i--, fraction /= 10)
		text[i] = (char)('0' + fraction % 10);
	text_add(t, text, (size_t)digits + 1);
}

// Seconds with milliseconds, which all reals of the API are, without the printing of floating point; others by it.
static void write_real(struct text *t, double v) {
	if (v >= 1 && v < 1e10) {
		long long all = (long long)(v * 1000 + 0.5);
		double off = v * 1000 - (double)all;
		if (off < 1e-3 && off > -1e-3) {
			write_thousandths(t, all);
			return;
		}
	}
	char text[48];
	snprintf(text, sizeof(text), "%.13g", v);
	text_puts(t, text);
	if (strpbrk(text, ".e") == NULL)
		text_puts(t, ".0");
}

static void write_object(struct text *t, const json_t *v) {
	const char *mark = "{";
	json_t *o = json_incref((json_t *)(uintptr_t)v); // jansson's iterators take no const
	for (void *i = json_object_iter(o); i != NULL; i = json_object_iter_next(o, i)) {
		const char *name = json_object_iter_key(i);
		text_add(t, mark, 1);
		write_string(t, name, strlen(name));
		text_add(t, ":", 1);
		json_write(t, json_object_iter_value(i));
		mark = ",";
	}
	text_puts(t, *mark == '{' ? "{}" : "}");
	json_decref(o);
}

static void write_array(struct text *t, const json_t *v) {
	text_add(t, "[", 1);
	for (size_t i = 0; i < json_array_size(v); i++) {
		if (i > 0)
			text_add(t, ",", 1);
		json_write(t, json_array_get(v, i));
	}
	text_add(t, "]", 1);
}

void json_write(struct text *t, const json_t *v) {
	switch (json_typeof(v)) {
	case JSON_OBJECT:
		write_object(t, v);
		break;
	case JSON_ARRAY:
		write_array(t, v);
		break;
	case JSON_STRING:
		write_string(t, json_string_value(v), json_string_length(v));
		break;
	case JSON_INTEGER:
		write_integer(t, json_integer_value(v));
		break;
	case JSON_REAL:
		write_real(t, json_real_value(v));
		break;
	default:
		text_puts(t, json_is_true(v) ? "true" : json_is_false(v) ? "false" : "null");
	}
}
