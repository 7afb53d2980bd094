// The VMM's state file: frames, and the x86-64 sections (CPUID, IOAPIC, vCPU, serial port). The input is a state file; its size and checksum
// are put right first, so that what lies behind them is reached.
#include "vmm/arch/x86_64/x86.h"
#include "vmm/serial.h"
#include "vmm/state_file.h"

#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY
#include <xxhash.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void fix(uint8_t *data, size_t size) {
	struct stasis_state_header h;
	if (size < sizeof(h))
		return;
	memcpy(&h, data, sizeof(h));
	h.file_bytes = size;
	h.checksum = 0;
	memcpy(data, &h, sizeof(h));
	h.checksum = XXH3_64bits(data, size);
	memcpy(data, &h, sizeof(h));
}

static void read_sections(const struct state_file *f) {
	struct reader r;
	struct vcpu_state vcpu;
	struct serial serial;
	struct ioapic ioapic;
	struct kvm_cpuid2 *cpuid = cpuid_new(), *host = cpuid_new();
	if (cpuid != NULL && host != NULL && state_find(f, STASIS_SECTION_CPUID, 0, &r, NULL) == 0 && cpuid_load(cpuid, &r) == 0) {
		struct error e;
		(void)cpuid_check(cpuid, host, &e);
		cpuid_filter(cpuid, true);
		cpuid_set_topology(cpuid, 3, 4);
	}
	free(cpuid);
	free(host);
	for (uint32_t i = 0; i < 4; i++)
		if (state_find(f, STASIS_SECTION_VCPU, i, &r, NULL) == 0 && vcpu_state_parse(&r, &vcpu) == 0) {
			volatile uint8_t last = vcpu.xsave[vcpu.xsave_bytes - 1];
			if (vcpu.msr_count > 0)
				last = vcpu.msrs[(size_t)vcpu.msr_count * 12 - 1];
			(void)last;
		}
	ioapic_init(&ioapic, -1);
	if (state_find(f, STASIS_SECTION_IOAPIC, 0, &r, NULL) == 0 && ioapic_load(&ioapic, &r))
		for (unsigned i = 0; i < IOAPIC_PINS; i++)
			ioapic_write(&ioapic, 0x10, ioapic_read(&ioapic, 0x10));
	if (state_find(f, STASIS_SECTION_SERIAL, 0, &r, NULL) == 0 && serial_load(&serial, &r))
		for (unsigned i = 0; i < SERIAL_PORTS; i++)
			(void)serial_read(&serial, i);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
	struct state_file f;
	struct error e;
	if (size > STASIS_STATE_BYTES_MAX)
		return 0;
	(void)(state_parse(data, size, STASIS_ARCHITECTURE_X86_64, &f, &e) == 0);
	uint8_t *copy = malloc(size + 1);
	if (copy == NULL)
		return 0;
	memcpy(copy, data, size);
	fix(copy, size);
	if (state_parse(copy, size, STASIS_ARCHITECTURE_X86_64, &f, &e) == 0)
		read_sections(&f);
	free(copy);
	return 0;
}
