// The KVM calls that only x86-64 has; see vmm/seccomp_list.h.
#pragma once

// clang-format off
#define SECCOMP_ARCH_IOCTLS(X)                                                                                                \
	X(KVM_SET_TSS_ADDR)                                                                                                   \
	X(KVM_SET_CPUID2)                                                                                                     \
	X(KVM_GET_SREGS)                                                                                                      \
	X(KVM_SET_SREGS)                                                                                                      \
	X(KVM_GET_MSRS) X(KVM_SET_MSRS) X(KVM_GET_LAPIC) X(KVM_SET_LAPIC) X(KVM_GET_XSAVE) X(KVM_GET_XSAVE2) X(KVM_SET_XSAVE) \
		X(KVM_GET_XCRS) X(KVM_SET_XCRS) X(KVM_GET_DEBUGREGS) X(KVM_SET_DEBUGREGS) X(KVM_GET_CLOCK) X(KVM_SET_CLOCK)   \
			X(KVM_GET_TSC_KHZ) X(KVM_SET_TSC_KHZ) X(KVM_KVMCLOCK_CTRL)
// clang-format on
