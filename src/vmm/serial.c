// The serial port; see serial.h.
#include "vmm/serial.h"

enum register_offset { DATA, INTERRUPT_ENABLE, INTERRUPT_ID, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH };

#define IER_TRANSMIT 0x02
#define IER_BITS 0x0f
#define IIR_NONE 0x01
#define IIR_TRANSMIT 0x02
#define IIR_FIFOS 0xc0
#define FCR_ENABLE 0x01
#define LCR_DIVISOR 0x80
#define MCR_BITS 0x1f
#define MCR_LOOP 0x10
#define LSR_EMPTY 0x60     // holding register and transmitter
#define MSR_CONNECTED 0xb0 // carrier detect, data set ready, clear to send

static uint8_t modem_status(const struct serial *s) {
	uint8_t m = s->modem_control;
	if ((m & MCR_LOOP) == 0)
		return MSR_CONNECTED;
	// In loop-back the outputs are the inputs: RTS is CTS, DTR is DSR, OUT1 is RI, OUT2 is DCD.
	return (uint8_t)((m & 2) << 3 | (m & 1) << 5 | (m & 4) << 4 | (m & 8) << 4);
}

static uint8_t interrupt_id(struct serial *s) {
	uint8_t fifos = (s->fifo_control & FCR_ENABLE) != 0 ? IIR_FIFOS : 0;
	if (!s->transmit_pending || (s->interrupt_enable & IER_TRANSMIT) == 0)
		return fifos | IIR_NONE;
	s->transmit_pending = false;
	return fifos | IIR_TRANSMIT;
}

uint8_t serial_read(struct serial *s, unsigned port) {
	bool divisor = (s->line_control & LCR_DIVISOR) != 0;
	switch (port) {
	case DATA:
		return divisor ? s->divisor_low : 0;
	case INTERRUPT_ENABLE:
		return divisor ? s->divisor_high : s->interrupt_enable;
	case INTERRUPT_ID:
		return interrupt_id(s);
	case LINE_CONTROL:
		return s->line_control;
	case MODEM_CONTROL:
		return s->modem_control;
	case LINE_STATUS:
		return LSR_EMPTY;
	case MODEM_STATUS:
		return modem_status(s);
	case SCRATCH:
		return s->scratch;
	default:
		return 0xff;
	}
}

static bool transmitted(struct serial *s) {
	s->transmit_pending = true;
	return (s->interrupt_enable & IER_TRANSMIT) != 0;
}

static bool write_data(struct serial *s, struct console *c, uint8_t value) {
	if ((s->line_control & LCR_DIVISOR) != 0) {
		s->divisor_low = value;
		return false;
	}
	if ((s->modem_control & MCR_LOOP) == 0)
		console_put(c, value);
	return transmitted(s);
}

static bool write_interrupt_enable(struct serial *s, uint8_t value) {
	if ((s->line_control & LCR_DIVISOR) != 0) {
		s->divisor_high = value;
		return false;
	}
	bool was = (s->interrupt_enable & IER_TRANSMIT) != 0;
	s->interrupt_enable = value & IER_BITS;
	// Enabling the interrupt while the transmitter is empty raises it.
	return !was && transmitted(s);
}

bool serial_write(struct serial *s, struct console *c, unsigned port, uint8_t value) {
	switch (port) {
	case DATA:
		return write_data(s, c, value);
	case INTERRUPT_ENABLE:
		return write_interrupt_enable(s, value);
	case INTERRUPT_ID:
		s->fifo_control = value & FCR_ENABLE;
		return false;
	case LINE_CONTROL:
		s->line_control = value;
		return false;
	case MODEM_CONTROL:
		s->modem_control = value & MCR_BITS;
		return false;
	case SCRATCH:
		s->scratch = value;
		return false;
	default:
		return false;
	}
}

void serial_save(const struct serial *s, struct writer *w) {
	uint8_t bytes[SERIAL_SAVE_BYTES] = {s->interrupt_enable, s->line_control, s->modem_control, s->scratch,
					    s->fifo_control,     s->divisor_low,  s->divisor_high,  s->transmit_pending};
	write_bytes(w, bytes, sizeof(bytes));
}

bool serial_load(struct serial *s, struct reader *r) {
	const uint8_t *b = read_bytes(r, SERIAL_SAVE_BYTES);
	if (b == NULL)
		return false;
	*s = (struct serial){.interrupt_enable = b[0] & IER_BITS,
			     .line_control = b[1],
			     .modem_control = b[2] & MCR_BITS,
			     .scratch = b[3],
			     .fifo_control = b[4] & FCR_ENABLE,
			     .divisor_low = b[5],
			     .divisor_high = b[6],
			     .transmit_pending = b[7] != 0};
	return true;
}
