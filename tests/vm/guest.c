// A guest of a few hundred bytes for the VM tests: 64-bit, no operating system, entered like a Linux kernel (the tests put a bzImage
// header before it). What it does is the first word of its command line. It talks through the serial port and ends by ACPI power-off.
//
// It has to run on every KVM, also on ones that interpret guests instruction by instruction; so it is plain.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define GENERATION ((volatile u64 *)0x9f000)
#define MIB 0x100000UL
#define GIB 0x40000000UL
#define IOAPIC ((volatile u32 *)0xfec00000)
#define LAPIC ((volatile u32 *)0xfee00000)
#define VIRTIO 0xd0000000UL

static inline void outb(u16 port, u8 v) {
	__asm__ volatile("outb %0, %1" : : "a"(v), "Nd"(port));
}
static inline u8 inb(u16 port) {
	u8 v;
	__asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}
static inline u32 inl(u16 port) {
	u32 v;
	__asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port));
	return v;
}

static void put(const char *s) {
	while (*s)
		outb(0x3f8, (u8)*s++);
}
static void put_hex(u64 v) {
	for (int i = 60; i >= 0; i -= 4)
		outb(0x3f8, (u8) "0123456789abcdef"[v >> i & 15]);
}
static void put_value(const char *name, u64 v) {
	put(name);
	outb(0x3f8, '=');
	put_hex(v);
	outb(0x3f8, '\n');
}
static void power_off(void) {
	outb(0x604, 5 << 2 | 0x20);
	for (;;)
		__asm__ volatile("pause");
}

static int is(const char *word, const char *line) {
	while (*word && *word == *line)
		word++, line++;
	return *word == 0 && (*line == 0 || *line == ' ');
}
static u64 number_behind(const char *line) {
	u64 v = 0;
	while (*line && *line != ' ')
		line++;
	while (*line == ' ')
		line++;
	while (*line >= '0' && *line <= '9')
		v = v * 10 + (u64)(*line++ - '0');
	return v;
}

// Maps 4 to 8 GiB as well: tables in the boot loader's style behind its own.
static void map_high(void) {
	u64 *pdpt = (u64 *)0x9000, *tables = (u64 *)0x30000;
	for (u64 g = 0; g < 4; g++) {
		for (u64 i = 0; i < 512; i++)
			tables[g * 512 + i] = ((4 + g) << 30 | i << 21) | 0x83;
		pdpt[4 + g] = ((u64)tables + g * 4096) | 3;
	}
	__asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

// Writes a different word to each page of some places, reads them back.
static u64 pattern(u64 at, u64 seed) {
	return at * 0x9e3779b97f4a7c15UL ^ seed;
}
static void fill(u64 from, u64 pages, u64 stride, u64 seed) {
	for (u64 i = 0; i < pages; i++) {
		volatile u64 *p = (volatile u64 *)(from + i * stride * 4096);
		p[0] = pattern((u64)p, seed);
		p[511] = ~pattern((u64)p, seed);
	}
}
static u64 check(u64 from, u64 pages, u64 stride, u64 seed) {
	u64 wrong = 0;
	for (u64 i = 0; i < pages; i++) {
		volatile u64 *p = (volatile u64 *)(from + i * stride * 4096);
		wrong += p[0] != pattern((u64)p, seed) || p[511] != ~pattern((u64)p, seed);
	}
	return wrong;
}
static u64 not_zero(u64 from, u64 pages, u64 stride) {
	u64 wrong = 0;
	for (u64 i = 0; i < pages; i++) {
		volatile u64 *p = (volatile u64 *)(from + i * stride * 4096);
		wrong += p[0] != 0 || p[511] != 0;
	}
	return wrong;
}

static void do_memory(u64 high) {
	fill(64 * MIB, 1000, 1, 1);
	fill(100 * MIB, 20, 300, 2);
	if (high) {
		map_high();
		fill(4 * GIB, 100, 17, 3);
		fill(4 * GIB + 512 * MIB, 3, 1, 4);
	}
	u64 wrong = check(64 * MIB, 1000, 1, 1) + check(100 * MIB, 20, 300, 2);
	if (high)
		wrong += check(4 * GIB, 100, 17, 3) + check(4 * GIB + 512 * MIB, 3, 1, 4);
	put_value("wrong", wrong);
}

// Waits until the generation ID is another than the last that was seen: the guest has been restored. The first is seen before the guest says
// anything, for the snapshot may come right behind that.
static u64 seen[2];
static void see_generation(void) {
	seen[0] = GENERATION[0];
	seen[1] = GENERATION[1];
}
static void wait_for_restore(void) {
	while (GENERATION[0] == seen[0] && GENERATION[1] == seen[1])
		__asm__ volatile("pause");
	see_generation();
}

// Four lives, each with its own writes; after each restore everything before has to be there.
static void do_lives(void) {
	fill(32 * MIB, 500, 1, 10); // contiguous
	fill(40 * MIB, 200, 3, 11); // scattered
	fill(48 * MIB, 300, 1, 12); // will be zeroed later
	put("life 0\n");
	for (u64 life = 1;; life++) {
		wait_for_restore();
		u64 wrong = life == 1 ? check(32 * MIB, 500, 1, 10) : check(32 * MIB, 100, 5, 20 + life - 1);
		wrong += check(40 * MIB, 200, 3, 11);
		wrong += life == 1 ? check(48 * MIB, 300, 1, 12) : not_zero(48 * MIB, 300, 1);
		for (u64 l = 1; l < life; l++)
			wrong += check(56 * MIB + l * MIB, 70 + l, 2, 30 + l) + check(60 * MIB + l * MIB, 150, 1, 40 + l);
		put_value("life", life);
		put_value("wrong", wrong);
		fill(32 * MIB, 100, 5, 20 + life);
		fill(56 * MIB + life * MIB, 70 + life, 2, 30 + life);
		fill(60 * MIB + life * MIB, 150, 1, 40 + life);
		for (u64 i = 0; i < 300 * 512; i++)
			((volatile u64 *)(48 * MIB))[i] = 0;
		put("written\n");
	}
}

// Clones: each takes its identity from its generation ID, fills memory with it, and looks after a while whether it is still its own.
static void do_clones(void) {
	fill(32 * MIB, 256, 1, 7);
	put("ready\n");
	wait_for_restore();
	u64 mine = GENERATION[0], wrong = check(32 * MIB, 256, 1, 7);
	for (int round = 0; round < 5; round++) {
		fill(32 * MIB, 256, 1, mine + round);
		for (volatile int i = 0; i < 20000; i++)
			;
		wrong += check(32 * MIB, 256, 1, mine + round);
	}
	put_value("id", mine);
	put_value("wrong", wrong);
	power_off();
}

static void do_storm(u64 rounds) {
	u64 sum = 0;
	for (u64 i = 0; i < rounds; i++) {
		outb((u16)(i * 7), (u8)i);
		sum += inb((u16)(i * 13)) + inl((u16)(i * 5 + 0x1000));
		*(volatile u32 *)(VIRTIO + (i * 4 & 0xfffff)) = (u32)(i * 0x01010101);
		sum += *(volatile u32 *)(VIRTIO + (i * 12 & 0xfffff));
		*(volatile u64 *)(VIRTIO + 0x800000 + i * 8) = i;
		*(volatile u8 *)(VIRTIO + (i & 0xffff)) = (u8)i;
		IOAPIC[0] = (u32)i;
		IOAPIC[4] = (u32)(i * 0x10101);
		sum += IOAPIC[4];
	}
	put_value("stormed", rounds + 0 * sum);
	power_off();
}

// The generation ID's interrupt: through the IOAPIC in user space to the local APIC, as an edge.
static volatile u64 interrupts;
struct idt_entry {
	u16 low, selector;
	u8 ist, type;
	u16 middle;
	u32 high, zero;
} __attribute__((packed));
static struct idt_entry idt[256];

__asm__(".globl interrupt_entry\ninterrupt_entry:\n"
	"push %rax\n"
	"incq interrupts(%rip)\n"
	"mov $0xfee000b0, %eax\n"
	"movl $0, (%rax)\n"
	"pop %rax\n"
	"iretq\n");
extern char interrupt_entry[];

static void set_vector(u8 vector) {
	u64 at = (u64)interrupt_entry;
	struct {
		u16 limit;
		u64 base;
	} __attribute__((packed)) table = {sizeof(idt) - 1, (u64)idt};
	idt[vector] = (struct idt_entry){(u16)at, 0x10, 0, 0x8e, (u16)(at >> 16), (u32)(at >> 32), 0};
	__asm__ volatile("lidt %0" : : "m"(table));
}

static void do_interrupt(void) {
	set_vector(0x50);
	LAPIC[0xf0 / 4] = 0x1ff; // enabled
	IOAPIC[0] = 0x10 + 2 * 5;
	IOAPIC[4] = 0x50; // edge, fixed, to APIC 0
	IOAPIC[0] = 0x11 + 2 * 5;
	IOAPIC[4] = 0;
	put("armed\n");
	__asm__ volatile("sti");
	wait_for_restore();
	for (u64 i = 0; i < 50000000 && interrupts == 0; i++)
		__asm__ volatile("pause");
	put_value("interrupts", interrupts);
	power_off();
}

static void do_clock(void) {
	// The time-stamp counter goes on where it was: no jump back, and none ahead of more than the pause.
	u32 lo, hi;
	put("ready\n");
	__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
	u64 last = (u64)hi << 32 | lo, back = 0;
	for (;;) {
		__asm__ volatile("rdtsc" : "=a"(lo), "=d"(hi));
		u64 now = (u64)hi << 32 | lo;
		back += now < last;
		last = now;
		if (GENERATION[0] != seen[0])
			break;
	}
	put_value("back", back);
	power_off();
}

// Starts the other vCPUs with INIT and start-up IPIs (Intel SDM volume 3, section 9.4); each adds 1 and halts.
static volatile u32 *const started = (volatile u32 *)0x3000;
static void do_smp(u64 others) {
	// At 0x2000, in real mode: lock incl 0x3000; cli; hlt
	static const u8 code[] = {0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x30, 0xfa, 0xf4, 0xeb, 0xfd};
	for (u64 i = 0; i < sizeof(code); i++)
		((volatile u8 *)0x2000)[i] = code[i];
	*started = 0;
	LAPIC[0xf0 / 4] = 0x1ff;
	LAPIC[0x300 / 4] = 0xc4500; // INIT to all others
	for (volatile int i = 0; i < 100000; i++)
		;
	LAPIC[0x300 / 4] = 0xc4602; // start at 0x2000
	for (u64 i = 0; i < 200000000 && *started < others; i++)
		__asm__ volatile("pause");
	put_value("started", *started);
	power_off();
}

void run(const u8 *boot_params) {
	const char *line = (const char *)(u64) * (const u32 *)(boot_params + 0x228);
	see_generation();
	if (is("hello", line)) {
		put("hello\n");
		power_off();
	} else if (is("memory", line)) {
		do_memory(number_behind(line));
		power_off();
	} else if (is("lives", line)) {
		do_lives();
	} else if (is("clones", line)) {
		do_clones();
	} else if (is("restored", line)) {
		// For the benchmark: the first exit after a restore ends the guest.
		put("ready\n");
		wait_for_restore();
		power_off();
	} else if (is("spread", line)) {
		// As above, with scattered memory of so many MiB, to give a restore something to map.
		fill(16 * MIB, number_behind(line) * 85, 3, 5);
		put("ready\n");
		wait_for_restore();
		power_off();
	} else if (is("spin", line)) {
		put("spinning\n");
		__asm__ volatile("cli\n1: jmp 1b");
	} else if (is("fault", line)) {
		static const u8 no_table[10];
		put("faulting\n");
		__asm__ volatile("lidt %0" : : "m"(no_table));
		*(volatile u64 *)(1UL << 45) = 1; // a page fault that nobody handles
	} else if (is("reset", line)) {
		outb(0x64, 0xfe);
	} else if (is("acpireset", line)) {
		outb(0x606, 1);
	} else if (is("storm", line)) {
		do_storm(number_behind(line));
	} else if (is("interrupt", line)) {
		do_interrupt();
	} else if (is("clock", line)) {
		do_clock();
	} else if (is("smp", line)) {
		do_smp(number_behind(line));
	} else if (is("console", line)) {
		for (u64 i = 0; i < number_behind(line); i++)
			put_value("line", i);
		power_off();
	}
	put("unknown command\n");
	for (;;)
		__asm__ volatile("pause");
}
