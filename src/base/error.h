// The one error shape of Stasis.
//
// A function that can fail returns a negative errno and, where it takes a `struct error *`, fills it with a message that names the thing
// and the remedy. The object is written only on failure. Callers that only need the code may pass NULL.
#pragma once

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>

#define ERROR_MESSAGE_MAX 512

struct error {
	int code;      // negative errno
	char name[48]; // optional machine-readable name ("CONTAINER_BUILD_FAILED"); empty when there is none
	char message[ERROR_MESSAGE_MAX];
};

// Sets *e (if not NULL) and returns code, which must be negative.
int error_set(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

// The same with a machine-readable name.
int error_named(struct error *e, int code, const char *name, const char *format, ...) __attribute__((format(printf, 4, 5)));

// error_set() with ": <text of errno>" appended; takes the code from errno.
int error_errno(struct error *e, const char *format, ...) __attribute__((format(printf, 2, 3)));

// Puts "context: " before the message that *e has already. Returns code unchanged.
int error_wrap(struct error *e, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));
