// What all devices share besides registers and queues: making and ending, the way through reset, start and pause, save and load.
//
// The section of a device in a snapshot: the transport's part as device_save() writes it, then what the device's own save() adds. All of it is
// checked on load: features against those offered now, queues like those that a driver sets up.
#include "vmm/virtio/device.h"

#include "base/log.h"

#include <linux/virtio_mmio.h>
#include <linux/virtio_ring.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#define SECTION_VERSION 1u

static void notified(void *arg, uint32_t events) {
	struct virtio_queue *q = arg;
	if (q->ready && device_is_live(q->device))
		q->device->ops->notify(q->device, q->index);
}

static int queue_init(struct virtio_queue *q, struct virtio_device *d, unsigned index, unsigned size_max, struct error *e) {
	q->device = d;
	q->index = index;
	q->size_max = size_max;
	q->handler = (struct loop_handler){.ready = notified, .arg = q};
	q->notify_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (q->notify_fd < 0)
		return error_errno(e, "%s: cannot create an eventfd", d->ops->name);
	// Edge-triggered: every notification is one event, and the counter need not be read back.
	int r = loop_add(d->host.loop, q->notify_fd, EPOLLIN | EPOLLET, &q->handler);
	if (r < 0)
		return error_set(e, r, "%s: cannot watch a queue: %s", d->ops->name, strerror(-r));
	return 0;
}

int device_init(struct virtio_device *d, const struct virtio_host *host, unsigned line, uint32_t id, const struct virtio_ops *ops,
		const unsigned *queue_sizes, unsigned queue_count, struct error *e) {
	d->ops = ops;
	d->host = *host;
	d->line = line;
	d->id = id;
	d->offered = 1ull << VIRTIO_F_VERSION_1 | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC;
	for (unsigned i = 0; i < QUEUES_MAX; i++)
		d->queues[i].notify_fd = -1;
	d->queue_count = queue_count;
	for (unsigned i = 0; i < queue_count; i++) {
		int r = queue_init(&d->queues[i], d, i, queue_sizes[i], e);
		if (r < 0) {
			device_fini(d);
			return r;
		}
	}
	return 0;
}

void device_fini(struct virtio_device *d) {
	for (unsigned i = 0; i < d->queue_count; i++) {
		struct virtio_queue *q = &d->queues[i];
		if (q->notify_fd < 0)
			continue;
		loop_remove(d->host.loop, q->notify_fd);
		close(q->notify_fd);
		q->notify_fd = -1;
	}
}

void virtio_destroy(struct virtio_device *d) {
	if (d == NULL)
		return;
	device_fini(d);
	d->ops->destroy(d);
}

void device_interrupt(struct virtio_device *d, uint32_t why) {
	d->isr |= why;
	if (!d->quiet)
		d->host.interrupt(d->host.vm, d->line);
}

void device_config_changed(struct virtio_device *d) {
	d->generation++;
	if ((d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
		device_interrupt(d, VIRTIO_MMIO_INT_CONFIG);
}

int device_break(struct virtio_device *d, const char *what) {
	if ((d->status & VIRTIO_CONFIG_S_NEEDS_RESET) == 0) {
		// A guest may do this over and over: the log shows the first, second, fourth, eighth, … time.
		d->breaches++;
		if ((d->breaches & (d->breaches - 1)) == 0)
			log_warn("virtio.protocol_breach", LOG_S("device", d->ops->name), LOG_S("what", what), LOG_U("times", d->breaches));
		d->status |= VIRTIO_CONFIG_S_NEEDS_RESET;
		if ((d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0)
			device_interrupt(d, VIRTIO_MMIO_INT_CONFIG);
	}
	return -EPROTO;
}

void device_reset(struct virtio_device *d) {
	if (d->ops->stop != NULL)
		d->ops->stop(d);
	for (unsigned i = 0; i < d->queue_count; i++)
		queue_clear(&d->queues[i]);
	d->accepted = 0;
	d->status = 0;
	d->isr = 0;
	d->device_features_select = d->driver_features_select = d->queue_select = 0;
	if (d->ops->reset != NULL)
		d->ops->reset(d);
}

void device_start(struct virtio_device *d) {
	if (d->ops->start != NULL)
		d->ops->start(d);
	for (unsigned i = 0; i < d->queue_count; i++) {
		if (d->queues[i].ready)
			queue_kick(&d->queues[i]);
	}
}

int virtio_notify_fd(struct virtio_device *d, unsigned queue) {
	return queue < d->queue_count ? d->queues[queue].notify_fd : -EINVAL;
}

unsigned virtio_queue_count(const struct virtio_device *d) {
	return d->queue_count;
}

int virtio_quiesce(struct virtio_device *d, struct error *e) {
	if (d->quiet)
		return 0;
	if (d->ops->stop != NULL)
		d->ops->stop(d);
	int r = d->ops->quiesce != NULL ? d->ops->quiesce(d, e) : 0;
	if (r < 0) {
		if (device_is_live(d))
			device_start(d);
		return r;
	}
	d->quiet = true;
	return 0;
}

void virtio_resume(struct virtio_device *d) {
	if (!d->quiet)
		return;
	d->quiet = false;
	if (d->ops->resume != NULL)
		d->ops->resume(d);
	if (device_is_live(d))
		device_start(d);
	// A bit that the driver has not acknowledged may belong to an edge that was lost between the two processes; one too many is harmless.
	if (d->isr != 0)
		d->host.interrupt(d->host.vm, d->line);
}

static void queue_save(const struct virtio_queue *q, struct writer *w) {
	write_u8(w, q->ready);
	write_u32(w, q->size);
	write_u64(w, q->descriptor_address);
	write_u64(w, q->available_address);
	write_u64(w, q->used_address);
	write_u16(w, q->next_available);
	write_u16(w, q->next_used);
}

static int queue_load(struct virtio_queue *q, struct reader *r) {
	uint8_t ready = read_u8(r);
	q->size = read_u32(r);
	q->descriptor_address = read_u64(r);
	q->available_address = read_u64(r);
	q->used_address = read_u64(r);
	uint16_t next_available = read_u16(r);
	uint16_t next_used = read_u16(r);
	if (r->bad || ready > 1 || (ready == 1 && !queue_enable(q)))
		return -EBADMSG;
	q->next_available = next_available;
	q->next_used = next_used;
	q->signalled_valid = false;
	return 0;
}

int virtio_save(struct virtio_device *d, struct writer *w) {
	write_u32(w, SECTION_VERSION);
	write_u32(w, d->id);
	write_u64(w, d->accepted);
	write_u32(w, d->status);
	write_u32(w, d->isr);
	write_u32(w, d->generation);
	write_u32(w, d->device_features_select);
	write_u32(w, d->driver_features_select);
	write_u32(w, d->queue_select);
	write_u32(w, d->queue_count);
	for (unsigned i = 0; i < d->queue_count; i++)
		queue_save(&d->queues[i], w);
	if (d->ops->save != NULL)
		d->ops->save(d, w);
	return w->bad ? -ENOSPC : 0;
}

static int load_transport(struct virtio_device *d, struct reader *r, struct error *e) {
	uint32_t version = read_u32(r), id = read_u32(r);
	if (r->bad)
		return error_set(e, -EBADMSG, "%s: the device's state is cut off", d->ops->name);
	if (version != SECTION_VERSION)
		return error_set(e, -EPROTONOSUPPORT,
				 "%s: state version %u is not known to this VMM (it knows %u); use the VMM that saved it", d->ops->name,
				 version, SECTION_VERSION);
	if (id != d->id)
		return error_set(e, -EBADMSG, "%s: the state is that of another device (virtio id %u)", d->ops->name, id);
	d->accepted = read_u64(r);
	d->status = read_u32(r);
	d->isr = read_u32(r) & (VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG);
	d->generation = read_u32(r);
	d->device_features_select = read_u32(r);
	d->driver_features_select = read_u32(r);
	d->queue_select = read_u32(r);
	uint32_t known = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_DRIVER_OK | VIRTIO_CONFIG_S_FEATURES_OK |
			 VIRTIO_CONFIG_S_NEEDS_RESET | VIRTIO_CONFIG_S_FAILED;
	bool running = (d->status & VIRTIO_CONFIG_S_DRIVER_OK) != 0, agreed = (d->status & VIRTIO_CONFIG_S_FEATURES_OK) != 0;
	if (agreed && (d->accepted & ~d->offered) != 0)
		return error_set(e, -EPROTONOSUPPORT,
				 "%s: the guest uses features (%#llx) that the device does not have as it is configured now", d->ops->name,
				 (unsigned long long)(d->accepted & ~d->offered));
	if (r->bad || (d->status & ~known) != 0 || (running && !agreed) || (agreed && (d->accepted >> VIRTIO_F_VERSION_1 & 1) == 0))
		return error_set(e, -EBADMSG, "%s: the device's state is damaged (status)", d->ops->name);
	return 0;
}

int virtio_load(struct virtio_device *d, struct reader *r, struct error *e) {
	d->quiet = true;
	int result = load_transport(d, r, e);
	if (result < 0)
		return result;
	if (read_u32(r) != d->queue_count)
		return error_set(e, -EBADMSG, "%s: the device's state is damaged (queue count)", d->ops->name);
	for (unsigned i = 0; i < d->queue_count; i++) {
		result = queue_load(&d->queues[i], r);
		if (result < 0)
			return error_set(e, result, "%s: the device's state is damaged (queue %u)", d->ops->name, i);
	}
	result = d->ops->load != NULL ? d->ops->load(d, r, e) : 0;
	if (result == 0 && r->bad)
		return error_set(e, -EBADMSG, "%s: the device's state is cut off", d->ops->name);
	return result;
}

int virtio_flush(struct virtio_device *d, struct error *e) {
	return d->ops->flush != NULL ? d->ops->flush(d, e) : 0;
}

void virtio_stats(const struct virtio_device *d, struct vmm_stats *s) {
	if (d->ops->stats != NULL)
		d->ops->stats(d, s);
}
