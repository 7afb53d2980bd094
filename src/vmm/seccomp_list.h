// What the VMM may ask of the kernel after it has started; read by seccomp_generate.c. A violation ends the process, so what the C library does
// behind a call belongs here too.
#pragma once

#include "arch_seccomp.h" // of the architecture's folder
#include "vmm/kvm_new.h"

// Descriptors and memory that are there already; nothing is opened by name. io_uring: the disks' queue, made after start.
// clang-format off
#define SECCOMP_SYSCALLS(X)                                                                                                                \
	X(read)                                                                                                                            \
	X(write)                                                                                                                           \
	X(readv)                                                                                                                           \
	X(writev)                                                                                                                          \
	X(pread64) X(pwrite64) X(preadv) X(pwritev) X(preadv2) X(pwritev2) X(lseek) X(close) X(dup) X(fstat) X(newfstatat) X(ftruncate)    \
		X(fallocate) X(fsync) X(fdatasync) X(sync_file_range) X(epoll_wait) X(epoll_pwait) X(epoll_ctl) X(poll) X(ppoll)           \
			X(eventfd2) X(timerfd_create) X(timerfd_settime) X(accept4) X(recvmsg) X(sendmsg) X(recvfrom) X(sendto)            \
				X(shutdown) X(getsockopt) X(getsockname) X(munmap) X(mremap) X(madvise) X(brk) X(futex) X(set_robust_list) \
					X(rseq) X(rt_sigaction) X(rt_sigprocmask) X(rt_sigreturn) X(tgkill) X(getpid) X(gettid)            \
						X(sched_yield) X(sched_getaffinity) X(restart_syscall) X(exit) X(exit_group) X(getrandom)  \
							X(clock_gettime) X(clock_nanosleep) X(nanosleep) X(io_uring_setup)                 \
								X(io_uring_enter) X(io_uring_register)

// ioctl(2) by number.
#define SECCOMP_IOCTLS(X)                                                                                                                 \
	X(KVM_RUN)                                                                                                                        \
	X(KVM_SET_USER_MEMORY_REGION)                                                                                                     \
	X(KVM_CREATE_VCPU)                                                                                                                \
	X(KVM_ENABLE_CAP)                                                                                                                 \
	X(KVM_SIGNAL_MSI) X(KVM_PRE_FAULT_MEMORY) X(KVM_IOEVENTFD) X(KVM_GET_REGS) X(KVM_SET_REGS) X(KVM_GET_MP_STATE) X(KVM_SET_MP_STATE) X(KVM_GET_VCPU_EVENTS) \
		X(KVM_SET_VCPU_EVENTS) X(BLKGETSIZE64) X(TUNGETIFF) X(TUNSETOFFLOAD) X(TUNSETVNETHDRSZ) SECCOMP_ARCH_IOCTLS(X)
// clang-format on
