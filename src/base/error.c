// The error object; see error.h.
#include "base/error.h"

#include <stdio.h>
#include <string.h>

static void set(struct error *e, int code, const char *name, const char *format, va_list ap) {
	if (e == NULL)
		return;
	e->code = code;
	snprintf(e->name, sizeof(e->name), "%s", name);
	vsnprintf(e->message, sizeof(e->message), format, ap);
}

int error_set(struct error *e, int code, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	set(e, code, "", format, ap);
	va_end(ap);
	return code;
}

int error_named(struct error *e, int code, const char *name, const char *format, ...) {
	va_list ap;
	va_start(ap, format);
	set(e, code, name, format, ap);
	va_end(ap);
	return code;
}

int error_errno(struct error *e, const char *format, ...) {
	int saved = errno;
	va_list ap;
	va_start(ap, format);
	set(e, -saved, "", format, ap);
	va_end(ap);
	if (e != NULL) {
		size_t n = strlen(e->message);
		snprintf(e->message + n, sizeof(e->message) - n, ": %s", strerror(saved));
	}
	return -saved;
}

int error_wrap(struct error *e, int code, const char *format, ...) {
	if (e == NULL)
		return code;
	char inner[ERROR_MESSAGE_MAX];
	snprintf(inner, sizeof(inner), "%s", e->message);
	va_list ap;
	va_start(ap, format);
	vsnprintf(e->message, sizeof(e->message), format, ap);
	va_end(ap);
	size_t n = strlen(e->message);
	snprintf(e->message + n, sizeof(e->message) - n, ": %s", inner);
	e->code = code;
	return code;
}
