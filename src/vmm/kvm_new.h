// Parts of KVM's interface that are newer than Debian 12's <linux/kvm.h> (Documentation/virt/kvm/api.rst, section 4.143).
#pragma once

#include <linux/kvm.h>
#include <stdint.h>

#ifndef KVM_PRE_FAULT_MEMORY
#define KVM_CAP_PRE_FAULT_MEMORY 236
struct kvm_pre_fault_memory {
	uint64_t gpa;  // moved on, and
	uint64_t size; // reduced, by what is done
	uint64_t flags;
	uint64_t padding[5];
};
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#endif
