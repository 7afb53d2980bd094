// The state of stasis-launch and the rooms of its main loop. One thread; nothing in the loop waits for anything but epoll.
//
//     launcher.c  requests of stasisd, results of the maker      ending.c  ends slots and removes what they had
//     replies.c   what goes out to stasisd                        adopt.c   takes over what an earlier stasis-launch left
//     main.c      start, signals, the loop, the end
#pragma once

#include "launch/engine_process.h"
#include "launch/firewall.h"
#include "launch/maker.h"
#include "launch/options.h"
#include "launch/slots.h"

#include <stdbool.h>
#include <stdint.h>

// What an epoll event belongs to; for slots with the number in the low half.
enum watch { WATCH_SIGNALS = 1, WATCH_ENGINE, WATCH_MAKER, WATCH_LINKS, WATCH_PIDFD, WATCH_LOG };

#define REPLIES_MOST (2 * LAUNCH_SLOTS_MAX + 512)

struct replies {
	struct launch_reply *at; // ring of REPLIES_MOST
	unsigned first, count;
	bool listing; // a LAUNCH_LIST is being answered: the next slot is behind list_after
	int list_after;
	uint64_t list_sequence;
};

struct launcher {
	struct options options;
	int epoll, signals;
	int links;       // rtnetlink notifications of the host's namespace
	int host_routes; // rtnetlink requests there
	struct slots slots;
	struct takes takes;
	struct replies replies;
	struct engine_process engine;
	pid_t maker;
	int maker_sock;
	bool maker_hurries;     // its priority is normal
	uint64_t fill_after_ms; // the pool is not filled before
	unsigned failures;      // of the maker in a row
	bool stopping, killing;
	uint64_t stop_deadline_ms;
};

int launcher_watch(struct launcher *l, int fd, enum watch what, unsigned number, uint32_t events);

// launcher.c
void launcher_engine_readable(struct launcher *l);
void launcher_engine_gone(struct launcher *l);
void launcher_maker_readable(struct launcher *l);
void launcher_order(struct launcher *l); // orders slots if some are wanted now
void launcher_log_readable(struct launcher *l, unsigned number);
int launcher_start_maker(struct launcher *l, struct error *e);
struct firewall_member slot_member(const struct launcher *l, unsigned number);

// replies.c
int replies_create(struct replies *r);
void launcher_reply(struct launcher *l, const struct launch_header *to, int result, unsigned pid, const char *vmm, const char *text);
void launcher_flush(struct launcher *l); // sends what the socket takes
void launcher_list(struct launcher *l, const struct launch_header *to);
bool launcher_may_read(const struct launcher *l); // false while too much waits to be sent

// ending.c
void slot_end(struct launcher *l, unsigned number);
void slot_process_ended(struct launcher *l, unsigned number);
void launcher_links_readable(struct launcher *l);
void launcher_continue_ending(struct launcher *l); // to be called now and then while slots are ending

// adopt.c
void launcher_adopt(struct launcher *l);
