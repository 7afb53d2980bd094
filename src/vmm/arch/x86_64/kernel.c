// Loading a Linux kernel: the 64-bit boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst). The bzImage unpacks itself.
#include "base/io.h"
#include "vmm/arch/x86_64/x86.h"
#include "vmm/vm.h"

#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>

// Offsets in a bzImage's first sectors, and the same in the zero page.
#define AT_SETUP_SECTORS 0x1f1
#define AT_HEADER_JUMP 0x201 // its second byte says where the header ends
#define AT_MAGIC 0x202
#define AT_VERSION 0x206
#define AT_LOADER 0x210
#define AT_LOAD_FLAGS 0x211
#define AT_INITRD 0x218
#define AT_INITRD_SIZE 0x21c
#define AT_CMDLINE 0x228
#define AT_INITRD_MAX 0x22c
#define AT_ALIGNMENT 0x230
#define AT_RELOCATABLE 0x234
#define AT_XLOAD_FLAGS 0x236
#define AT_CMDLINE_SIZE 0x238
#define AT_PREFERRED 0x258
#define AT_INIT_SIZE 0x260
#define HEADER_END_MIN 0x264
#define HEADER_END_MAX 0x290
// Offsets in the zero page alone.
#define AT_RSDP 0x070
#define AT_E820_COUNT 0x1e8
#define AT_E820 0x2d0

#define VERSION_MIN 0x20c
#define LOADED_HIGH 1
#define KERNEL_64 1
#define ENTRY_64 0x200
#define LOADER_UNDEFINED 0xff
#define SECTOR 512

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct image {
	uint8_t head[0x1000];
	uint64_t file_bytes, payload_at, payload_bytes;
	uint64_t load_at, init_size;
};

static uint64_t field(const uint8_t *head, unsigned at, unsigned size) {
	uint64_t v = 0;
	memcpy(&v, head + at, size);
	return v;
}

static void set_field(uint8_t *page, unsigned at, unsigned size, uint64_t v) {
	memcpy(page + at, &v, size);
}

static int file_size(int fd, const char *what, uint64_t *ret, struct error *e) {
	struct stat st;
	if (fstat(fd, &st) < 0)
		return error_errno(e, "cannot examine the %s", what);
	*ret = S_ISREG(st.st_mode) ? (uint64_t)st.st_size : 0;
	return 0;
}

static int read_image_head(int fd, struct image *k, struct error *e) {
	int r = file_size(fd, "kernel", &k->file_bytes, e);
	if (r < 0)
		return r;
	if (k->file_bytes < sizeof(k->head))
		return error_set(e, -ENOEXEC, "the kernel is not a bzImage: it has %" PRIu64 " bytes", k->file_bytes);
	r = pread_full(fd, k->head, sizeof(k->head), 0);
	if (r < 0)
		return error_set(e, r, "cannot read the kernel: %s", strerror(-r));
	if (memcmp(k->head + AT_MAGIC, "HdrS", 4) != 0 || field(k->head, AT_VERSION, 2) < VERSION_MIN)
		return error_set(e, -ENOEXEC, "the kernel is not a bzImage of boot protocol 2.12 or newer");
	if ((field(k->head, AT_XLOAD_FLAGS, 2) & KERNEL_64) == 0)
		return error_set(e, -ENOEXEC, "the kernel has no 64-bit entry");
	uint64_t sectors = k->head[AT_SETUP_SECTORS] == 0 ? 4 : k->head[AT_SETUP_SECTORS];
	k->payload_at = (sectors + 1) * SECTOR;
	k->payload_bytes = k->file_bytes > k->payload_at ? k->file_bytes - k->payload_at : 0;
	k->init_size = field(k->head, AT_INIT_SIZE, 4);
	if (k->init_size < k->payload_bytes)
		k->init_size = k->payload_bytes;
	if (k->payload_bytes <= ENTRY_64)
		return error_set(e, -ENOEXEC, "the kernel is cut off");
	return 0;
}

static int place_image(struct image *k, const struct memory *m, struct error *e) {
	uint64_t low_end = m->regions[0].size, preferred = field(k->head, AT_PREFERRED, 8);
	uint64_t alignment = field(k->head, AT_ALIGNMENT, 4);
	k->load_at = preferred;
	bool fits = preferred >= KERNEL_BASE && preferred <= low_end && k->init_size <= low_end - preferred;
	if (!fits && k->head[AT_RELOCATABLE] != 0 && alignment != 0)
		k->load_at = (KERNEL_BASE + alignment - 1) / alignment * alignment;
	if (k->load_at < KERNEL_BASE || k->load_at > low_end || k->init_size > low_end - k->load_at)
		return error_set(e, -ENOMEM,
				 "the kernel needs %" PRIu64 " MiB from %" PRIu64 " MiB on, the microVM has %" PRIu64 " MiB of memory",
				 k->init_size >> 20, k->load_at >> 20, m->size >> 20);
	return 0;
}

static int load_file(struct vm *vm, int fd, uint64_t offset, uint64_t bytes, uint64_t to, const char *what, struct error *e) {
	void *at = memory_at(&vm->memory, to, bytes);
	if (at == NULL)
		return error_set(e, -ENOMEM, "there is not enough memory for the %s", what);
	int r = pread_full(fd, at, (size_t)bytes, offset);
	return r < 0 ? error_set(e, r, "cannot read the %s: %s", what, strerror(-r)) : 0;
}

static int load_initrd(struct vm *vm, int fd, const struct image *k, struct kernel_info *ret, struct error *e) {
	int r = file_size(fd, "initrd", &ret->initrd_bytes, e);
	if (r < 0 || ret->initrd_bytes == 0)
		return r;
	uint64_t end = field(k->head, AT_INITRD_MAX, 4) + 1, kernel_end = k->load_at + k->init_size;
	if (end > vm->memory.regions[0].size)
		end = vm->memory.regions[0].size;
	if (ret->initrd_bytes > end || (end - ret->initrd_bytes) / PAGE_BYTES * PAGE_BYTES < kernel_end)
		return error_set(e, -ENOMEM,
				 "the initrd of %" PRIu64 " MiB does not fit behind the kernel: the microVM has %" PRIu64 " MiB of memory",
				 ret->initrd_bytes >> 20, vm->memory.size >> 20);
	ret->initrd_at = (end - ret->initrd_bytes) / PAGE_BYTES * PAGE_BYTES;
	return load_file(vm, fd, 0, ret->initrd_bytes, ret->initrd_at, "initrd", e);
}

static int load_cmdline(struct vm *vm, const struct image *k, const char *cmdline, struct error *e) {
	size_t bytes = strlen(cmdline) + 1;
	uint64_t most = field(k->head, AT_CMDLINE_SIZE, 4);
	void *to = memory_at(&vm->memory, BOOT_CMDLINE, bytes);
	if (bytes - 1 > most || to == NULL)
		return error_set(e, -E2BIG, "the kernel takes a command line of %" PRIu64 " bytes at most, this one has %zu", most,
				 bytes - 1);
	memcpy(to, cmdline, bytes);
	return 0;
}

static void add_e820(uint8_t *page, uint64_t from, uint64_t to, enum e820_type type) {
	if (to <= from)
		return;
	uint8_t *entry = page + AT_E820 + page[AT_E820_COUNT]++ * 20;
	set_field(entry, 0, 8, from);
	set_field(entry, 8, 8, to - from);
	set_field(entry, 16, 4, type);
}

static void fill_zero_page(uint8_t *page, const struct vm *vm, const struct image *k, const struct kernel_info *info, uint64_t rsdp) {
	unsigned end = AT_MAGIC + k->head[AT_HEADER_JUMP];
	if (end < HEADER_END_MIN)
		end = HEADER_END_MIN;
	if (end > HEADER_END_MAX)
		end = HEADER_END_MAX;
	memset(page, 0, PAGE_BYTES);
	memcpy(page + AT_SETUP_SECTORS, k->head + AT_SETUP_SECTORS, end - AT_SETUP_SECTORS);
	page[AT_LOADER] = LOADER_UNDEFINED;
	page[AT_LOAD_FLAGS] |= LOADED_HIGH;
	set_field(page, AT_INITRD, 4, info->initrd_at);
	set_field(page, AT_INITRD_SIZE, 4, info->initrd_bytes);
	set_field(page, AT_CMDLINE, 4, BOOT_CMDLINE);
	set_field(page, AT_RSDP, 8, rsdp);
	add_e820(page, 0, LOW_RAM_END, E820_RAM);
	add_e820(page, LOW_RAM_END, 0xa0000, E820_RESERVED);
	add_e820(page, ACPI_TABLES, LOW_RESERVED_END, E820_RESERVED);
	add_e820(page, KERNEL_BASE, vm->memory.regions[0].size, E820_RAM);
	if (vm->memory.count > 1)
		add_e820(page, HIGH_MEMORY, HIGH_MEMORY + vm->memory.regions[1].size, E820_RAM);
}

int kernel_load(struct vm *vm, int kernel_fd, int initrd_fd, const char *cmdline, uint64_t rsdp, struct kernel_info *ret, struct error *e) {
	struct image k;
	*ret = (struct kernel_info){.entry = 0};
	int r = read_image_head(kernel_fd, &k, e);
	if (r == 0)
		r = place_image(&k, &vm->memory, e);
	if (r == 0)
		r = load_file(vm, kernel_fd, k.payload_at, k.payload_bytes, k.load_at, "kernel", e);
	if (r == 0)
		r = load_initrd(vm, initrd_fd, &k, ret, e);
	if (r == 0)
		r = load_cmdline(vm, &k, cmdline, e);
	if (r < 0)
		return r;
	uint8_t *page = memory_at(&vm->memory, BOOT_PARAMS, PAGE_BYTES);
	if (page == NULL)
		return error_set(e, -ENOMEM, "there is too little memory");
	fill_zero_page(page, vm, &k, ret, rsdp);
	ret->load_at = k.load_at;
	ret->entry = k.load_at + ENTRY_64;
	return 0;
}
