// Port accesses: serial port, and the few registers through which a guest powers itself off or reboots. Everything else reads as all ones.
#include "vmm/arch/x86_64/x86.h"
#include "vmm/vm.h"

#include <string.h>

#define SLEEP_ENABLE 0x20
#define KEYBOARD_RESET 0xfe

static void write_port(struct vcpu *v, uint16_t port, uint8_t value) {
	struct vm *vm = v->vm;
	if (port >= PORT_SERIAL && port < PORT_SERIAL + SERIAL_PORTS) {
		vm_lock(vm);
		bool raise = serial_write(&vm->serial, &vm->console, port - PORT_SERIAL, value);
		vm_unlock(vm);
		if (raise)
			arch_interrupt(vm, SERIAL_LINE);
	} else if (port == PORT_SLEEP_CONTROL) {
		if ((value & SLEEP_ENABLE) != 0 && (value >> 2 & 7) == SLEEP_TYPE_OFF)
			vm_guest_ended(vm, VMM_EXIT_POWEROFF, "the guest powered itself off");
	} else if (port == PORT_RESET) {
		if (value == RESET_VALUE)
			vm_guest_ended(vm, VMM_EXIT_RESET, "the guest rebooted (ACPI reset register)");
	} else if (port == PORT_KEYBOARD_CONTROL && value == KEYBOARD_RESET) {
		vm_guest_ended(vm, VMM_EXIT_RESET, "the guest rebooted (keyboard controller)");
	}
}

static uint8_t read_port(struct vcpu *v, uint16_t port) {
	if (port >= PORT_SERIAL && port < PORT_SERIAL + SERIAL_PORTS) {
		vm_lock(v->vm);
		uint8_t value = serial_read(&v->vm->serial, port - PORT_SERIAL);
		vm_unlock(v->vm);
		return value;
	}
	// The keyboard controller is never busy; there is no sleep to wake from.
	return port == PORT_KEYBOARD_CONTROL || port == PORT_SLEEP_STATUS ? 0 : 0xff;
}

void ports_access(struct vcpu *v) {
	struct kvm_run *run = v->run;
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t unit = run->io.size, room = v->vm->host->run_size;
	if (unit == 0 || run->io.data_offset > room || unit * run->io.count > room - run->io.data_offset)
		return;
	for (uint32_t i = 0; i < run->io.count; i++, data += unit) {
		// The devices here have registers of one byte: a wider access reaches the first one.
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			write_port(v, run->io.port, data[0]);
		} else {
			memset(data, 0xff, unit);
			data[0] = read_port(v, run->io.port);
		}
	}
}
