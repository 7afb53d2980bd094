// A writer of ACPI machine language (ACPI 6.5, chapter 20), for what the DSDT of a microVM needs. Sticky: when the buffer is full nothing more
// is written and `bad` is set.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define AML_DEPTH_MAX 8

struct aml {
	uint8_t *data;
	size_t size, room;
	bool bad;
	size_t open[AML_DEPTH_MAX]; // where the content of each open package starts
	unsigned depth;
};

void aml_init(struct aml *a, void *data, size_t room);

// Names of four characters, padded with '_' ("_HID", "COM1").
void aml_name(struct aml *a, const char *name); // Name (name, …): the value follows
void aml_string(struct aml *a, const char *s);
void aml_integer(struct aml *a, uint64_t v);

// Each of these is ended by aml_end().
void aml_scope(struct aml *a, const char *root_name); // Scope (\name)
void aml_device(struct aml *a, const char *name);
void aml_method(struct aml *a, const char *name, unsigned arguments, bool serialized);
void aml_package(struct aml *a, unsigned elements);
void aml_if_argument_equals(struct aml *a, uint64_t value); // If (Arg0 == value)
void aml_resources(struct aml *a);                          // Name (_CRS, ResourceTemplate () …)
void aml_end(struct aml *a);
void aml_end_resources(struct aml *a);

void aml_notify(struct aml *a, const char *scope, const char *name, uint8_t value); // Notify (\scope.name, value)

// Inside aml_resources().
void aml_memory32(struct aml *a, uint32_t base, uint32_t bytes);
void aml_ports(struct aml *a, uint16_t base, uint8_t count);
void aml_interrupt_edge(struct aml *a, uint32_t line); // active high, exclusive
