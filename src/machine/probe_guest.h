// The guest of the KVM probe: position-dependent 64-bit code, and where in guest memory things lie. See probe_guest.c.
#pragma once

#include <stdint.h>

#define PROBE_MEMORY 0x200000u // one 2 MiB page, mapped one to one
#define PROBE_GDT 0x1000u
#define PROBE_IDT 0x2000u
#define PROBE_PML4 0x3000u
#define PROBE_PDPT 0x4000u
#define PROBE_PD 0x5000u
#define PROBE_DATA 0x6000u // enum probe_step is written here, as it goes
#define PROBE_XSAVE 0x7000u
#define PROBE_CODE 0x10000u
#define PROBE_STACK 0x20000u
#define PROBE_PORT 0xf4
#define PROBE_CODE_SELECTOR 0x08
#define PROBE_DATA_SELECTOR 0x10

enum probe_step {
	PROBE_STEP_NONE,
	PROBE_STEP_STARTED,
	PROBE_STEP_CMPXCHG16B,
	PROBE_STEP_INT3,  // int3 was taken and iretq came back
	PROBE_STEP_XSAVE, // xsetbv, xsave, xrstor
	PROBE_STEP_LOOP,
	PROBE_STEP_DONE,
};

extern const uint8_t probe_guest_start[], probe_guest_end[], probe_guest_breakpoint[];
