// What this host's KVM offers to an x86-64 guest; asked once, when the VMM starts.
#include "vmm/arch/x86_64/x86.h"

#include <stdlib.h>
#include <sys/ioctl.h>

struct needed {
	unsigned capability;
	const char *name;
};

static const struct needed needed[] = {
	{KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP"},
	{KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI"},
	{KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},
	{KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},
	{KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
	{KVM_CAP_ADJUST_CLOCK, "KVM_CAP_ADJUST_CLOCK"},
	{KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},
};

static int capability(int kvm_fd, unsigned c) {
	int r = ioctl(kvm_fd, KVM_CHECK_EXTENSION, c);
	return r < 0 ? 0 : r;
}

int arch_host_probe(int kvm_fd, struct arch_host **ret, struct error *e) {
	for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++)
		if (capability(kvm_fd, needed[i].capability) == 0)
			return error_set(e, -ENOTSUP, "this host's KVM lacks %s; Linux 4.10 or newer has it", needed[i].name);
	static struct arch_host h;
	int xsave2 = capability(kvm_fd, KVM_CAP_XSAVE2);
	h.has_xsave2 = xsave2 > 0;
	h.xsave_bytes = xsave2 > (int)sizeof(struct kvm_xsave) ? (uint32_t)xsave2 : (uint32_t)sizeof(struct kvm_xsave);
	h.has_xcrs = capability(kvm_fd, KVM_CAP_XCRS) > 0;
	h.has_debugregs = capability(kvm_fd, KVM_CAP_DEBUGREGS) > 0;
	h.has_tsc_khz = capability(kvm_fd, KVM_CAP_GET_TSC_KHZ) > 0;
	h.has_tsc_scaling = capability(kvm_fd, KVM_CAP_TSC_CONTROL) > 0;
	h.cpuid = cpuid_new();
	if (h.cpuid == NULL)
		return error_set(e, -ENOMEM, "out of memory");
	h.cpuid->nent = CPUID_ENTRIES_MAX;
	if (ioctl(kvm_fd, KVM_GET_SUPPORTED_CPUID, h.cpuid) < 0)
		return error_errno(e, "KVM_GET_SUPPORTED_CPUID");
	cpuid_filter(h.cpuid, capability(kvm_fd, KVM_CAP_TSC_DEADLINE_TIMER) > 0);
	*ret = &h;
	return msrs_list(kvm_fd, &h.msrs, e);
}
