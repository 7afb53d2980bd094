// A 16550 serial port (National Semiconductor PC16550D data sheet) that only transmits: every byte goes to the console log at once, so
// its transmitter is always empty.
#pragma once

#include "base/wire.h"
#include "vmm/console.h"

#include <stdbool.h>
#include <stdint.h>

#define SERIAL_PORTS 8
#define SERIAL_SAVE_BYTES 16

struct serial {
	uint8_t interrupt_enable, line_control, modem_control, scratch, fifo_control;
	uint8_t divisor_low, divisor_high;
	bool transmit_pending; // transmitter-empty interrupt not yet taken notice of
};

uint8_t serial_read(struct serial *s, unsigned port);
// Returns whether an interrupt has to be raised.
bool serial_write(struct serial *s, struct console *c, unsigned port, uint8_t value);
void serial_save(const struct serial *s, struct writer *w);
bool serial_load(struct serial *s, struct reader *r);
