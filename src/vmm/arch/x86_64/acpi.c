// The ACPI tables of a microVM (ACPI 6.5): hardware-reduced, so that the guest looks for nothing that is not there.
//
// RSDP -> XSDT -> FADT (-> DSDT), MADT. The DSDT describes the virtio devices ("LNRO0005", as Linux's virtio_mmio knows them), the serial port, the
// generation ID (Microsoft, "Virtual Machine Generation ID", 2012) and the generic event device that announces its change.
#include "vmm/arch/x86_64/aml.h"
#include "vmm/arch/x86_64/x86.h"
#include "vmm/vm.h"

#include <stdio.h>
#include <string.h>

#define HEADER_BYTES 36
#define OEM_ID "STASIS"
#define OEM_TABLE "MICROVM "

struct table_writer {
	struct writer w;
	uint8_t *start;   // of the area
	uint64_t address; // guest physical address of the area
	uint8_t *table;   // that is being written
};

static uint8_t sum(const uint8_t *data, size_t n) {
	uint8_t s = 0;
	for (size_t i = 0; i < n; i++)
		s = (uint8_t)(s + data[i]);
	return s;
}

static void begin(struct table_writer *t, const char *signature, uint8_t revision) {
	size_t used = (size_t)(t->w.at - t->start);
	write_space(&t->w, (16 - used % 16) % 16);
	t->table = t->w.at;
	write_bytes(&t->w, signature, 4);
	write_u32(&t->w, 0); // length
	write_u8(&t->w, revision);
	write_u8(&t->w, 0); // checksum
	write_bytes(&t->w, OEM_ID, 6);
	write_bytes(&t->w, OEM_TABLE, 8);
	write_u32(&t->w, 1);
	write_bytes(&t->w, "STSS", 4);
	write_u32(&t->w, 1);
}

// Returns the guest physical address of the table.
static uint64_t end(struct table_writer *t) {
	if (t->w.bad)
		return 0;
	uint32_t length = (uint32_t)(t->w.at - t->table);
	memcpy(t->table + 4, &length, sizeof(length));
	t->table[9] = (uint8_t)-sum(t->table, length);
	return t->address + (uint64_t)(t->table - t->start);
}

static void add_virtio(struct aml *a, unsigned i) {
	char name[8];
	snprintf(name, sizeof(name), "VR%02X", i & 0xff);
	aml_device(a, name);
	aml_name(a, "_HID");
	aml_string(a, "LNRO0005");
	aml_name(a, "_UID");
	aml_integer(a, i);
	aml_resources(a);
	aml_memory32(a, (uint32_t)(MMIO_BASE + i * PAGE_BYTES), PAGE_BYTES);
	aml_interrupt_edge(a, DEVICE_LINE + i);
	aml_end_resources(a);
	aml_end(a);
}

static void add_serial(struct aml *a) {
	aml_device(a, "COM1");
	aml_name(a, "_HID");
	aml_string(a, "PNP0501");
	aml_name(a, "_UID");
	aml_integer(a, 1);
	aml_resources(a);
	aml_ports(a, PORT_SERIAL, SERIAL_PORTS);
	aml_interrupt_edge(a, SERIAL_LINE);
	aml_end_resources(a);
	aml_end(a);
}

static void add_generation(struct aml *a) {
	aml_device(a, "VGEN");
	aml_name(a, "_HID");
	aml_string(a, "QEMUVGID"); // the ID is not what drivers look for, the compatible one is
	aml_name(a, "_CID");
	aml_string(a, "VM_Gen_Counter");
	aml_name(a, "_DDN");
	aml_string(a, "VM_Gen_Counter");
	aml_name(a, "ADDR");
	aml_package(a, 2);
	aml_integer(a, GENERATION_PAGE);
	aml_integer(a, 0);
	aml_end(a);
	aml_end(a);
}

static void add_events(struct aml *a) {
	aml_device(a, "GED");
	aml_name(a, "_HID");
	aml_string(a, "ACPI0013");
	aml_name(a, "_UID");
	aml_integer(a, 0);
	aml_resources(a);
	aml_interrupt_edge(a, GENERATION_LINE);
	aml_end_resources(a);
	aml_method(a, "_EVT", 1, true);
	aml_if_argument_equals(a, GENERATION_LINE);
	aml_notify(a, "_SB", "VGEN", 0x80);
	aml_end(a);
	aml_end(a);
	aml_end(a);
}

static void add_power_off(struct aml *a) {
	aml_name(a, "_S5");
	aml_package(a, 4);
	aml_integer(a, SLEEP_TYPE_OFF);
	aml_integer(a, SLEEP_TYPE_OFF);
	aml_integer(a, 0);
	aml_integer(a, 0);
	aml_end(a);
}

static uint64_t write_dsdt(struct table_writer *t, unsigned devices) {
	begin(t, "DSDT", 2);
	struct aml a;
	aml_init(&a, t->w.at, t->w.left);
	aml_scope(&a, "_SB");
	for (unsigned i = 0; i < devices; i++)
		add_virtio(&a, i);
	add_serial(&a);
	add_generation(&a);
	add_events(&a);
	aml_end(&a);
	add_power_off(&a);
	write_space(&t->w, a.size);
	t->w.bad |= a.bad;
	return end(t);
}

int acpi_make_dsdt(uint8_t *to, size_t room, unsigned devices) {
	struct table_writer t = {.w = writer_over(to, room), .start = to};
	write_dsdt(&t, devices);
	return t.w.bad ? -ENOSPC : (int)(t.w.at - to);
}

static void write_port_register(struct writer *w, uint16_t port) {
	write_u8(w, 1); // system I/O
	write_u8(w, 8); // bits
	write_u8(w, 0);
	write_u8(w, 1); // byte access
	write_u64(w, port);
}

// ACPI 6.5, section 5.2.9.
static uint64_t write_fadt(struct table_writer *t, uint64_t dsdt) {
	enum { HW_REDUCED = 1 << 20, RESET_REGISTER = 1 << 10, NO_POWER_BUTTON = 1 << 4, NO_SLEEP_BUTTON = 1 << 5, WBINVD = 1 << 0 };
	enum { NO_VGA = 1 << 2, NO_MSI = 1 << 3, NO_RTC = 1 << 5 };
	static const uint8_t zeros[128];
	struct writer *w = &t->w;
	begin(t, "FACP", 6);
	write_u32(w, 0); // FACS
	write_u32(w, (uint32_t)dsdt);
	write_bytes(w, zeros, 65); // 44..108: fixed hardware, which does not exist
	write_u16(w, NO_VGA | NO_MSI | NO_RTC);
	write_u8(w, 0);
	write_u32(w, HW_REDUCED | RESET_REGISTER | NO_POWER_BUTTON | NO_SLEEP_BUTTON | WBINVD);
	write_port_register(w, PORT_RESET);
	write_u8(w, RESET_VALUE);
	write_u16(w, 0); // ARM
	write_u8(w, 5);  // minor version
	write_u64(w, 0); // FACS
	write_u64(w, dsdt);
	write_bytes(w, zeros, 96); // 148..243: fixed hardware
	write_port_register(w, PORT_SLEEP_CONTROL);
	write_port_register(w, PORT_SLEEP_STATUS);
	write_bytes(w, "STASISVM", 8); // hypervisor vendor
	return end(t);
}

// ACPI 6.5, section 5.2.12.
static uint64_t write_madt(struct table_writer *t, unsigned vcpus) {
	struct writer *w = &t->w;
	begin(t, "APIC", 5);
	write_u32(w, LAPIC_BASE);
	write_u32(w, 0);
	for (unsigned i = 0; i < vcpus; i++) {
		write_u8(w, 0); // local APIC
		write_u8(w, 8);
		write_u8(w, (uint8_t)i);
		write_u8(w, (uint8_t)i);
		write_u32(w, 1); // enabled
	}
	write_u8(w, 1); // IOAPIC
	write_u8(w, 12);
	write_u8(w, 0);
	write_u8(w, 0);
	write_u32(w, (uint32_t)IOAPIC_BASE);
	write_u32(w, 0);
	return end(t);
}

static uint64_t write_xsdt(struct table_writer *t, uint64_t fadt, uint64_t madt) {
	begin(t, "XSDT", 1);
	write_u64(&t->w, fadt);
	write_u64(&t->w, madt);
	return end(t);
}

// ACPI 6.5, section 5.2.5.3. Lies at the beginning of the area, where a guest without a boot loader looks for it.
static void write_rsdp(uint8_t *to, uint64_t xsdt) {
	struct writer w = writer_over(to, 36);
	write_bytes(&w, "RSD PTR ", 8);
	write_u8(&w, 0); // checksum
	write_bytes(&w, OEM_ID, 6);
	write_u8(&w, 2);
	write_u32(&w, 0); // RSDT
	write_u32(&w, 36);
	write_u64(&w, xsdt);
	write_u32(&w, 0); // extended checksum and reserved
	to[8] = (uint8_t)-sum(to, 20);
	to[32] = (uint8_t)-sum(to, 36);
}

int acpi_write(struct vm *vm, uint64_t *ret_rsdp, struct error *e) {
	uint8_t *area = memory_at(&vm->memory, ACPI_TABLES, ACPI_TABLES_BYTES);
	if (area == NULL)
		return error_set(e, -EINVAL, "there is too little memory for the ACPI tables");
	struct table_writer t = {.w = writer_over(area, ACPI_TABLES_BYTES), .start = area, .address = ACPI_TABLES};
	write_space(&t.w, 64); // the RSDP comes last
	uint64_t dsdt = write_dsdt(&t, vm->device_count);
	uint64_t fadt = write_fadt(&t, dsdt);
	uint64_t madt = write_madt(&t, vm->vcpu_count);
	uint64_t xsdt = write_xsdt(&t, fadt, madt);
	if (t.w.bad)
		return error_set(e, -ENOSPC, "the ACPI tables do not fit");
	write_rsdp(area, xsdt);
	*ret_rsdp = ACPI_TABLES;
	return 0;
}
