// The I/O interrupt controller (Intel 82093AA data sheet), in this process: the VM has a split irqchip, and what this one sends reaches the
// vCPUs' local APICs with KVM_SIGNAL_MSI. Without routes in KVM there is nothing whose change would wait for a grace period.
//
// All lines are pulses: a line that a guest has programmed as level-triggered is delivered as an edge too, and never remembered as
// "in service", so no end-of-interrupt message is needed. A pulse on a masked line is delivered when the line is unmasked.
#pragma once

#include "base/wire.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define IOAPIC_PINS 24
#define IOAPIC_BYTES 0x1000u

struct ioapic {
	pthread_mutex_t lock;
	int vm_fd;
	uint32_t select, id;
	uint64_t redirections[IOAPIC_PINS];
	uint32_t pending; // pulses that came while the line was masked
};

void ioapic_init(struct ioapic *a, int vm_fd);
void ioapic_pulse(struct ioapic *a, unsigned pin);
uint32_t ioapic_read(struct ioapic *a, uint64_t offset);
void ioapic_write(struct ioapic *a, uint64_t offset, uint32_t value);
void ioapic_save(struct ioapic *a, struct writer *w);
bool ioapic_load(struct ioapic *a, struct reader *r);
