// The operator's calls about endpoints, below /_stasis/: revoking tokens, renewing the key that seals them, ports that need none.
#include "api/call.h"
#include "base/log.h"
#include "edge/edge.h"
#include "microvms/microvms.h"

#include <stdlib.h>

void operator_revoke_tokens(struct call *c) {
	struct store_microvm m;
	struct error e = {0};
	if (!find_microvm(c, c->labels[0], &m))
		return;
	if (microvm_revoke_tokens(c->en, m.id, &e) < 0) {
		call_fail_with(c, &e);
	} else {
		log_info("token.revoked", LOG_S("microvmId", m.id), LOG_S("by", c->principal));
		call_answer(c, 200, json_object());
	}
	store_microvm_clear(&m);
}

void operator_rotate_token_keys(struct call *c) {
	struct error e = {0};
	if (edge_rotate_token_keys(c->en, &e) == 0)
		call_answer(c, 200, json_object());
	else if (e.code == -EBUSY)
		call_fail(c, 409, "ConflictException", "%s", e.message);
	else
		call_fail_with(c, &e);
}

// Public ports ------------------------------------------------------------------------------------------------------------------------

static void answer_ports(struct call *c, const struct store_image *i) {
	uint16_t ports[STORE_PUBLIC_PORTS_MAX];
	size_t n = store_public_ports(c->en->store, i->uuid, ports);
	json_t *list = json_array();
	for (size_t k = 0; k < n; k++)
		json_array_append_new(list, json_integer(ports[k]));
	call_answer(c, 200, json_pack("{s:s, s:o}", "imageArn", i->arn, "publicPorts", list));
}

static void set_port(struct call *c, const struct store_image *i, bool on) {
	char *end = NULL;
	unsigned long port = c->labels[1][0] >= '0' && c->labels[1][0] <= '9' ? strtoul(c->labels[1], &end, 10) : 0;
	struct error e = {0};
	if (port < 1 || port > 65535 || *end != '\0') {
		call_fail(c, 400, "ValidationException", "'%.32s' is no port: it must be 1 to 65535", c->labels[1]);
		return;
	}
	int r = store_set_public_port(c->en->store, i->uuid, (uint16_t)port, on, &e);
	if (r == -EDQUOT || r == -ENOENT) {
		call_fail(c, 400, "ValidationException", "%s", e.message);
	} else if (r < 0) {
		call_fail_with(c, &e);
	} else {
		log_info(on ? "port.published" : "port.closed", LOG_S("image", i->arn), LOG_U("port", port), LOG_S("by", c->principal));
		answer_ports(c, i);
	}
}

static void with_image(struct call *c, void (*run)(struct call *, const struct store_image *, bool), bool on) {
	struct store_image i;
	if (!find_image(c, c->labels[0], &i))
		return;
	run(c, &i, on);
	store_image_clear(&i);
}

static void show_ports(struct call *c, const struct store_image *i, bool on) {
	(void)on;
	answer_ports(c, i);
}

void operator_public_ports(struct call *c) {
	with_image(c, show_ports, false);
}

void operator_publish_port(struct call *c) {
	with_image(c, set_port, true);
}

void operator_close_port(struct call *c) {
	with_image(c, set_port, false);
}
