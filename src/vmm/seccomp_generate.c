// Makes the seccomp filter of stasis-vmm from seccomp_list.h, when Stasis is built: seccomp_generate <file> writes a C header with the BPF program.
#include "seccomp_list.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <linux/kvm.h>
#include <sched.h>
#include <seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#define CHECK(call)                                                                               \
	do {                                                                                      \
		int check_r = (call);                                                             \
		if (check_r < 0) {                                                                \
			fprintf(stderr, "seccomp_generate: %s: %s\n", #call, strerror(-check_r)); \
			exit(1);                                                                  \
		}                                                                                 \
	} while (0)

static void allow_all(scmp_filter_ctx f) {
#define ALLOW(name) CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(name), 0));
	SECCOMP_SYSCALLS(ALLOW)
#undef ALLOW
}

// The request's number is 32 bits wide; what a caller puts above is ignored by the kernel.
static void allow_ioctls(scmp_filter_ctx f) {
#define ALLOW(name) \
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1, SCMP_A1_32(SCMP_CMP_MASKED_EQ, 0xffffffff, (uint32_t)(name))));
	SECCOMP_IOCTLS(ALLOW)
#undef ALLOW
	CHECK(seccomp_syscall_priority(f, SCMP_SYS(ioctl), 255));
}

static void allow_with_conditions(scmp_filter_ctx f) {
	// Memory that can be executed is never made.
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1, SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0)));
	// Threads, not processes. clone3() keeps its flags in memory, where a filter cannot look; the C library does with clone() then.
	CHECK(seccomp_rule_add(f, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1, SCMP_A0(SCMP_CMP_MASKED_EQ, CLONE_THREAD, CLONE_THREAD)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, 3 /* F_GETFL */)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, 4 /* F_SETFL */)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, 2 /* F_SETFD */)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, 1030 /* F_DUPFD_CLOEXEC */)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME)));
	CHECK(seccomp_rule_add(f, SCMP_ACT_ERRNO(EPERM), SCMP_SYS(prctl), 1,
			       SCMP_A0(SCMP_CMP_EQ, 0x53564d41 /* PR_SET_VMA: names of malloc's */)));
}

static void write_header(const char *path, const unsigned char *bpf, size_t size) {
	FILE *out = fopen(path, "w");
	if (out == NULL) {
		perror(path);
		exit(1);
	}
	fprintf(out, "// Made by seccomp_generate.c from seccomp_list.h.\n#include <stdint.h>\n");
	fprintf(out, "static const uint8_t seccomp_filter[%zu] __attribute__((aligned(8))) = {", size);
	for (size_t i = 0; i < size; i++)
		fprintf(out, "%s%u,", i % 32 == 0 ? "\n" : "", bpf[i]);
	fprintf(out, "\n};\n");
	if (fclose(out) != 0) {
		perror(path);
		exit(1);
	}
}

int main(int argc, char **argv) {
	if (argc != 2) {
		fprintf(stderr, "usage: seccomp_generate <file>\n");
		return 1;
	}
	scmp_filter_ctx f = seccomp_init(SCMP_ACT_KILL_PROCESS);
	if (f == NULL)
		return 1;
	CHECK(seccomp_attr_set(f, SCMP_FLTATR_CTL_OPTIMIZE, 2));
	allow_all(f);
	allow_ioctls(f);
	allow_with_conditions(f);
	FILE *bpf = tmpfile();
	static unsigned char data[1 << 16];
	if (bpf == NULL)
		return 1;
	CHECK(seccomp_export_bpf(f, fileno(bpf)));
	rewind(bpf);
	size_t size = fread(data, 1, sizeof(data), bpf);
	if (size == 0 || size == sizeof(data))
		return 1;
	write_header(argv[1], data, size);
	fclose(bpf);
	seccomp_release(f);
	return 0;
}
