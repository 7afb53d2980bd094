// The AML writer; see aml.h. The numbers are those of ACPI 6.5, section 20.2, and for resources section 6.4.
#include "vmm/arch/x86_64/aml.h"

#include <string.h>

enum aml_op {
	OP_NAME = 0x08,
	OP_BYTE = 0x0a,
	OP_WORD = 0x0b,
	OP_DWORD = 0x0c,
	OP_STRING = 0x0d,
	OP_QWORD = 0x0e,
	OP_SCOPE = 0x10,
	OP_BUFFER = 0x11,
	OP_PACKAGE = 0x12,
	OP_METHOD = 0x14,
	OP_DUAL_NAME = 0x2e,
	OP_EXTENDED = 0x5b,
	OP_ROOT = 0x5c,
	OP_ARGUMENT0 = 0x68,
	OP_EXTENDED_DEVICE = 0x82,
	OP_NOTIFY = 0x86,
	OP_EQUAL = 0x93,
	OP_IF = 0xa0,
};

void aml_init(struct aml *a, void *data, size_t room) {
	*a = (struct aml){.data = data, .room = room};
}

static void put(struct aml *a, const void *from, size_t n) {
	if (a->bad || n > a->room - a->size) {
		a->bad = true;
		return;
	}
	memcpy(a->data + a->size, from, n);
	a->size += n;
}

static void put_byte(struct aml *a, unsigned v) {
	uint8_t b = (uint8_t)v;
	put(a, &b, 1);
}

static void put_segment(struct aml *a, const char *name) {
	char segment[4] = {'_', '_', '_', '_'};
	size_t n = strlen(name);
	if (n > sizeof(segment))
		a->bad = true;
	else
		memcpy(segment, name, n);
	put(a, segment, sizeof(segment));
}

static void open_package(struct aml *a) {
	if (a->depth == AML_DEPTH_MAX)
		a->bad = true;
	else
		a->open[a->depth++] = a->size;
}

// Puts PkgLength before the content: it counts itself, and its size depends on it (section 20.2.4).
void aml_end(struct aml *a) {
	if (a->depth == 0 || a->bad) {
		a->bad = true;
		return;
	}
	size_t at = a->open[--a->depth], content = a->size - at;
	uint8_t length[4];
	size_t n = content + 1 < 0x40 ? 1 : content + 2 < 0x1000 ? 2 : 3, total = content + n;
	if (total >= 0x100000 || n > a->room - a->size) {
		a->bad = true;
		return;
	}
	length[0] = n == 1 ? (uint8_t)total : (uint8_t)((n - 1) << 6 | (total & 0xf));
	length[1] = (uint8_t)(total >> 4);
	length[2] = (uint8_t)(total >> 12);
	memmove(a->data + at + n, a->data + at, content);
	memcpy(a->data + at, length, n);
	a->size += n;
}

void aml_name(struct aml *a, const char *name) {
	put_byte(a, OP_NAME);
	put_segment(a, name);
}

void aml_string(struct aml *a, const char *s) {
	put_byte(a, OP_STRING);
	put(a, s, strlen(s) + 1);
}

void aml_integer(struct aml *a, uint64_t v) {
	if (v <= 1) {
		put_byte(a, (unsigned)v); // ZeroOp, OneOp
		return;
	}
	unsigned bytes = v <= 0xff ? 1 : v <= 0xffff ? 2 : v <= 0xffffffff ? 4 : 8;
	put_byte(a, bytes == 1 ? OP_BYTE : bytes == 2 ? OP_WORD : bytes == 4 ? OP_DWORD : OP_QWORD);
	put(a, &v, bytes);
}

void aml_scope(struct aml *a, const char *root_name) {
	put_byte(a, OP_SCOPE);
	open_package(a);
	put_byte(a, OP_ROOT);
	put_segment(a, root_name);
}

void aml_device(struct aml *a, const char *name) {
	put_byte(a, OP_EXTENDED);
	put_byte(a, OP_EXTENDED_DEVICE);
	open_package(a);
	put_segment(a, name);
}

void aml_method(struct aml *a, const char *name, unsigned arguments, bool serialized) {
	put_byte(a, OP_METHOD);
	open_package(a);
	put_segment(a, name);
	put_byte(a, (arguments & 7) | (serialized ? 8u : 0));
}

void aml_package(struct aml *a, unsigned elements) {
	put_byte(a, OP_PACKAGE);
	open_package(a);
	put_byte(a, elements);
}

void aml_if_argument_equals(struct aml *a, uint64_t value) {
	put_byte(a, OP_IF);
	open_package(a);
	put_byte(a, OP_EQUAL);
	put_byte(a, OP_ARGUMENT0);
	aml_integer(a, value);
}

void aml_notify(struct aml *a, const char *scope, const char *name, uint8_t value) {
	put_byte(a, OP_NOTIFY);
	put_byte(a, OP_ROOT);
	put_byte(a, OP_DUAL_NAME);
	put_segment(a, scope);
	put_segment(a, name);
	aml_integer(a, value);
}

// The buffer's size comes before its content and is patched at the end, as a word.
void aml_resources(struct aml *a) {
	aml_name(a, "_CRS");
	put_byte(a, OP_BUFFER);
	open_package(a);
	put_byte(a, OP_WORD);
	put(a, "\0", 2);
}

void aml_end_resources(struct aml *a) {
	static const uint8_t end_tag[2] = {0x79, 0};
	put(a, end_tag, sizeof(end_tag));
	if (a->bad || a->depth == 0)
		return;
	size_t at = a->open[a->depth - 1];
	uint16_t bytes = (uint16_t)(a->size - at - 3);
	memcpy(a->data + at + 1, &bytes, sizeof(bytes));
	aml_end(a);
}

void aml_memory32(struct aml *a, uint32_t base, uint32_t bytes) {
	static const uint8_t head[4] = {0x86, 9, 0, 1}; // Memory32Fixed, writable
	put(a, head, sizeof(head));
	put(a, &base, sizeof(base));
	put(a, &bytes, sizeof(bytes));
}

void aml_ports(struct aml *a, uint16_t base, uint8_t count) {
	put_byte(a, 0x47); // IO, 16-bit decode
	put_byte(a, 1);
	put(a, &base, sizeof(base));
	put(a, &base, sizeof(base));
	put_byte(a, 1);
	put_byte(a, count);
}

void aml_interrupt_edge(struct aml *a, uint32_t line) {
	static const uint8_t head[5] = {0x89, 6, 0, 3, 1}; // Interrupt: consumer, edge, active high, exclusive; one line
	put(a, head, sizeof(head));
	put(a, &line, sizeof(line));
}
