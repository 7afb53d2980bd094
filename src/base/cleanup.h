// Scope-bound clean-up. A variable marked with one of these releases what it holds when it leaves its scope; `take_fd()` and
// `take_ptr()` move the content out.
#pragma once

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free_fn(void *p) {
	free(*(void **)p);
}
static inline void cleanup_close_fn(const int *fd) {
	if (*fd >= 0)
		close(*fd);
}
static inline void cleanup_file_fn(FILE **f) {
	if (*f != NULL)
		fclose(*f);
}
static inline void cleanup_dir_fn(DIR **d) {
	if (*d != NULL)
		closedir(*d);
}

#define cleanup_free __attribute__((cleanup(cleanup_free_fn)))
#define cleanup_close __attribute__((cleanup(cleanup_close_fn)))
#define cleanup_file __attribute__((cleanup(cleanup_file_fn)))
#define cleanup_dir __attribute__((cleanup(cleanup_dir_fn)))

static inline int take_fd(int *fd) {
	int v = *fd;
	*fd = -1;
	return v;
}
#define take_ptr(p)                         \
	({                                  \
		__typeof__(p) taken_ = (p); \
		(p) = NULL;                 \
		taken_;                     \
	})
