// The MMIO transport's registers (virtio 1.2, section 4.2.2, version 2) and the device status machine (section 2.1).
//
// The driver cannot clear status bits but by a reset. FEATURES_OK sticks only for a subset of what is offered that has VERSION_1; queues can be
// set up between FEATURES_OK and DRIVER_OK only. Control registers are 32 bits wide; the configuration space takes any width.
#include "vmm/virtio/device.h"

#include <linux/virtio_mmio.h>
#include <string.h>

#define MAGIC 0x74726976u // "virt"
#define TRANSPORT_VERSION 2u
#define VENDOR 0x53415453u // "STAS"

static struct virtio_queue *selected(struct virtio_device *d) {
	return d->queue_select < d->queue_count ? &d->queues[d->queue_select] : NULL;
}

static uint32_t read_register(struct virtio_device *d, uint64_t offset) {
	const struct virtio_queue *q = selected(d);
	switch (offset) {
	case VIRTIO_MMIO_MAGIC_VALUE:
		return MAGIC;
	case VIRTIO_MMIO_VERSION:
		return TRANSPORT_VERSION;
	case VIRTIO_MMIO_DEVICE_ID:
		return d->id;
	case VIRTIO_MMIO_VENDOR_ID:
		return VENDOR;
	case VIRTIO_MMIO_DEVICE_FEATURES:
		return d->device_features_select < 2 ? (uint32_t)(d->offered >> (32 * d->device_features_select)) : 0;
	case VIRTIO_MMIO_QUEUE_NUM_MAX:
		return q != NULL ? q->size_max : 0;
	case VIRTIO_MMIO_QUEUE_READY:
		return q != NULL && q->ready;
	case VIRTIO_MMIO_INTERRUPT_STATUS:
		return d->isr;
	case VIRTIO_MMIO_STATUS:
		return d->status;
	case VIRTIO_MMIO_SHM_LEN_LOW: // no shared memory region: its length reads as all ones (section 4.2.2)
	case VIRTIO_MMIO_SHM_LEN_HIGH:
	case VIRTIO_MMIO_SHM_BASE_LOW:
	case VIRTIO_MMIO_SHM_BASE_HIGH:
		return UINT32_MAX;
	case VIRTIO_MMIO_CONFIG_GENERATION:
		return d->generation;
	default:
		return 0;
	}
}

uint64_t virtio_mmio_read(struct virtio_device *d, uint64_t offset, unsigned size) {
	if (size != 1 && size != 2 && size != 4 && size != 8)
		return 0;
	if (offset < VIRTIO_MMIO_CONFIG)
		return size == 4 ? read_register(d, offset) : 0;
	uint64_t at = offset - VIRTIO_MMIO_CONFIG, value = 0;
	if (at < d->config_size && size <= d->config_size - at)
		memcpy(&value, d->config + at, size);
	return value;
}

static void write_driver_features(struct virtio_device *d, uint32_t value) {
	if (d->driver_features_select >= 2 || (d->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0)
		return;
	unsigned shift = 32 * d->driver_features_select;
	d->accepted = (d->accepted & ~(0xffffffffull << shift)) | (uint64_t)value << shift;
}

static void write_status(struct virtio_device *d, uint32_t value) {
	if (value == 0) {
		device_reset(d);
		return;
	}
	uint32_t before = d->status;
	uint32_t settable = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK |
			    VIRTIO_CONFIG_S_FAILED;
	uint32_t now = before | (value & settable);
	bool acceptable = (d->accepted & ~d->offered) == 0 && (d->accepted >> VIRTIO_F_VERSION_1 & 1) != 0;
	if ((before & VIRTIO_CONFIG_S_FEATURES_OK) == 0 && !acceptable)
		now &= ~(uint32_t)VIRTIO_CONFIG_S_FEATURES_OK;
	if ((now & VIRTIO_CONFIG_S_FEATURES_OK) == 0)
		now &= ~(uint32_t)VIRTIO_CONFIG_S_DRIVER_OK;
	d->status = now;
	if ((before & VIRTIO_CONFIG_S_DRIVER_OK) == 0 && device_is_live(d))
		device_start(d);
}

static void write_queue_ready(struct virtio_device *d, struct virtio_queue *q, uint32_t value) {
	if (value == 0 && q->ready) {
		// The driver may use the memory for other things from now on.
		bool live = device_is_live(d);
		if (live && d->ops->stop != NULL)
			d->ops->stop(d);
		queue_clear(q);
		if (live)
			device_start(d);
	} else if (value == 1 && !q->ready && (d->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0 &&
		   (d->status & VIRTIO_CONFIG_S_DRIVER_OK) == 0) {
		if (!queue_enable(q))
			device_break(d, "queue with a bad size or address");
	}
}

static void set_low(uint64_t *address, uint32_t value) {
	*address = (*address & ~0xffffffffull) | value;
}
static void set_high(uint64_t *address, uint32_t value) {
	*address = (*address & 0xffffffffull) | (uint64_t)value << 32;
}

static void write_queue_register(struct virtio_device *d, uint64_t offset, uint32_t value) {
	struct virtio_queue *q = selected(d);
	if (q == NULL)
		return;
	if (offset == VIRTIO_MMIO_QUEUE_READY) {
		write_queue_ready(d, q, value);
		return;
	}
	if (q->ready)
		return;
	switch (offset) {
	case VIRTIO_MMIO_QUEUE_NUM:
		q->size = value;
		break;
	case VIRTIO_MMIO_QUEUE_DESC_LOW:
		set_low(&q->descriptor_address, value);
		break;
	case VIRTIO_MMIO_QUEUE_DESC_HIGH:
		set_high(&q->descriptor_address, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_LOW:
		set_low(&q->available_address, value);
		break;
	case VIRTIO_MMIO_QUEUE_AVAIL_HIGH:
		set_high(&q->available_address, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_LOW:
		set_low(&q->used_address, value);
		break;
	case VIRTIO_MMIO_QUEUE_USED_HIGH:
		set_high(&q->used_address, value);
		break;
	default:
		break;
	}
}

static void write_register(struct virtio_device *d, uint64_t offset, uint32_t value) {
	switch (offset) {
	case VIRTIO_MMIO_DEVICE_FEATURES_SEL:
		d->device_features_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES_SEL:
		d->driver_features_select = value;
		break;
	case VIRTIO_MMIO_DRIVER_FEATURES:
		write_driver_features(d, value);
		break;
	case VIRTIO_MMIO_QUEUE_SEL:
		d->queue_select = value;
		break;
	case VIRTIO_MMIO_QUEUE_NOTIFY:
		if (value < d->queue_count)
			queue_kick(&d->queues[value]);
		break;
	case VIRTIO_MMIO_INTERRUPT_ACK:
		d->isr &= ~value;
		break;
	case VIRTIO_MMIO_STATUS:
		write_status(d, value);
		break;
	default:
		write_queue_register(d, offset, value);
		break;
	}
}

static void write_config(struct virtio_device *d, uint64_t at, unsigned size, uint64_t value) {
	if (at < d->config_writable_from || at >= d->config_writable_to || size > d->config_writable_to - at)
		return;
	memcpy(d->config + at, &value, size);
	if (d->ops->config_written != NULL)
		d->ops->config_written(d);
}

void virtio_mmio_write(struct virtio_device *d, uint64_t offset, unsigned size, uint64_t value) {
	if (size != 1 && size != 2 && size != 4 && size != 8)
		return;
	if (offset >= VIRTIO_MMIO_CONFIG)
		write_config(d, offset - VIRTIO_MMIO_CONFIG, size, value);
	else if (size == 4)
		write_register(d, offset, (uint32_t)value);
}
