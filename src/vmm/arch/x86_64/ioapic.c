// The I/O interrupt controller; see ioapic.h.
#include "vmm/arch/x86_64/ioapic.h"

#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>

#define REGISTER_SELECT 0x00
#define REGISTER_WINDOW 0x10
#define INDEX_ID 0x00
#define INDEX_VERSION 0x01
#define INDEX_ARBITRATION 0x02
#define INDEX_REDIRECTION 0x10
#define VERSION (0x11u | (IOAPIC_PINS - 1) << 16)

#define MASKED (UINT64_C(1) << 16)
#define READ_ONLY (UINT64_C(1) << 12 | UINT64_C(1) << 14) // delivery status, remote IRR

void ioapic_init(struct ioapic *a, int vm_fd) {
	*a = (struct ioapic){.vm_fd = vm_fd};
	pthread_mutex_init(&a->lock, NULL);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		a->redirections[i] = MASKED;
}

static void deliver(struct ioapic *a, unsigned pin) {
	uint64_t r = a->redirections[pin];
	struct kvm_msi msi = {
		// Intel SDM volume 3, section 11.11: destination and its mode; vector and delivery mode.
		.address_lo = 0xfee00000u | (uint32_t)(r >> 56) << 12 | (uint32_t)(r >> 11 & 1) << 2,
		.data = (uint32_t)(r & 0xff) | (uint32_t)(r & 0x700),
	};
	// It fails when the guest names no existing vCPU: then the interrupt is lost, as on hardware.
	(void)ioctl(a->vm_fd, KVM_SIGNAL_MSI, &msi);
}

static void pulse(struct ioapic *a, unsigned pin) {
	if ((a->redirections[pin] & MASKED) != 0) {
		a->pending |= 1u << pin;
		return;
	}
	a->pending &= ~(1u << pin);
	deliver(a, pin);
}

void ioapic_pulse(struct ioapic *a, unsigned pin) {
	if (pin >= IOAPIC_PINS)
		return;
	pthread_mutex_lock(&a->lock);
	pulse(a, pin);
	pthread_mutex_unlock(&a->lock);
}

static uint32_t read_index(const struct ioapic *a) {
	uint32_t i = a->select - INDEX_REDIRECTION;
	if (a->select >= INDEX_REDIRECTION && i / 2 < IOAPIC_PINS)
		return (uint32_t)(a->redirections[i / 2] >> (i % 2 * 32));
	switch (a->select) {
	case INDEX_ID:
	case INDEX_ARBITRATION:
		return a->id;
	case INDEX_VERSION:
		return VERSION;
	default:
		return 0;
	}
}

static void write_index(struct ioapic *a, uint32_t value) {
	uint32_t i = a->select - INDEX_REDIRECTION;
	if (a->select == INDEX_ID)
		a->id = value & 0x0f000000;
	if (a->select < INDEX_REDIRECTION || i / 2 >= IOAPIC_PINS)
		return;
	uint64_t *r = &a->redirections[i / 2];
	unsigned shift = i % 2 * 32;
	*r = ((*r & ~(UINT64_C(0xffffffff) << shift)) | (uint64_t)value << shift) & ~READ_ONLY;
	if ((a->pending & 1u << i / 2) != 0)
		pulse(a, i / 2);
}

uint32_t ioapic_read(struct ioapic *a, uint64_t offset) {
	pthread_mutex_lock(&a->lock);
	uint32_t value = offset == REGISTER_SELECT ? a->select : offset == REGISTER_WINDOW ? read_index(a) : 0;
	pthread_mutex_unlock(&a->lock);
	return value;
}

void ioapic_write(struct ioapic *a, uint64_t offset, uint32_t value) {
	pthread_mutex_lock(&a->lock);
	if (offset == REGISTER_SELECT)
		a->select = value & 0xff;
	else if (offset == REGISTER_WINDOW)
		write_index(a, value);
	pthread_mutex_unlock(&a->lock);
}

void ioapic_save(struct ioapic *a, struct writer *w) {
	pthread_mutex_lock(&a->lock);
	write_u32(w, a->select);
	write_u32(w, a->id);
	write_u32(w, a->pending);
	write_u32(w, IOAPIC_PINS);
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		write_u64(w, a->redirections[i]);
	pthread_mutex_unlock(&a->lock);
}

bool ioapic_load(struct ioapic *a, struct reader *r) {
	a->select = read_u32(r) & 0xff;
	a->id = read_u32(r);
	a->pending = read_u32(r) & ((1u << IOAPIC_PINS) - 1);
	if (read_u32(r) != IOAPIC_PINS)
		return false;
	for (unsigned i = 0; i < IOAPIC_PINS; i++)
		a->redirections[i] = read_u64(r) & ~READ_ONLY;
	return !r->bad && r->left == 0;
}
