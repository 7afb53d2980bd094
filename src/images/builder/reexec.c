// A library that the builder's dynamic loader puts before all others (/etc/ld.so.preload), for buildah's sake.
//
// buildah starts itself again for nearly everything it does in a container. Twice for every RUN it first copies its 20 MB program into
// a memory file and runs that copy (containers/storage, pkg/unshare/unshare.c, after CVE-2019-5736: a container must not be able to
// write to the program that started it). In the builder nobody could: its disk is read-only and it lives for one build. The copies are
// what a RUN costs most, above all where the processor is emulated and every new page of code is translated anew.
//
// The copying code is C, and nothing else in buildah calls these two functions: it opens /proc/self/exe (and gets an empty file to
// copy), and runs what it copied with fexecve() (and runs /proc/self/exe itself).

#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SELF "/proc/self/exe"

__attribute__((visibility("default"))) int open(const char *path, int flags, ...) {
	mode_t mode = 0;
	if ((flags & (O_CREAT | O_TMPFILE)) != 0) {
		va_list arguments;
		va_start(arguments, flags);
		mode = va_arg(arguments, mode_t);
		va_end(arguments);
	}
	return (int)syscall(SYS_openat, AT_FDCWD, strcmp(path, SELF) == 0 ? "/dev/null" : path, flags, mode);
}

__attribute__((visibility("default"))) int fexecve(int fd, char *const arguments[], char *const environment[]) {
	return execve(SELF, arguments, environment);
}
