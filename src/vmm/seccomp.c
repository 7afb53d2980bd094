// Loading the filter; see seccomp.h.
#include "vmm/seccomp.h"

#include "seccomp_filter.h" // made by seccomp_generate.c: the array `seccomp_filter`

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int seccomp_enter(struct error *e) {
	_Static_assert(sizeof(seccomp_filter) % sizeof(struct sock_filter) == 0, "a filter is made of instructions");
	struct sock_fprog program = {.len = sizeof(seccomp_filter) / sizeof(struct sock_filter),
				     .filter = (struct sock_filter *)(uintptr_t)seccomp_filter};
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return error_errno(e, "PR_SET_NO_NEW_PRIVS");
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
		return error_errno(e, "cannot load the seccomp filter");
	return 0;
}
