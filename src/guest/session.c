// One session; see session.h.
//
// A session is a machine that pump() moves as far as it goes: frames from the host one by one (the next is not read while input of the one
// before waits for the program), output into one frame at a time (nothing is read from the program while a frame waits for the host). So
// each direction has one buffer, and the slower side makes the faster one wait.
//
// It ends when the program has ended and what it wrote until then is sent, whoever else may still hold its output open. When the host goes
// first, the program's group gets SIGHUP and, five seconds later, SIGKILL.
#include "guest/session.h"

#include "base/clock.h"
#include "guest/enter.h"
#include "guest/guest.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define REQUEST_TIMEOUT_NS 10000000000ull
#define HANG_UP_NS 5000000000ull
#define FAREWELL_NS 10000000000ull // for the host to close after the last frame
#define ROUNDS_AT_ONCE 16          // before others get their turn
#define END_OF_TRANSMISSION 4      // what a terminal takes for the end of input

struct session {
	struct sessions *all;
	struct session *previous, *next;
	struct source host, report;
	struct source input, output[2]; // the program's; with a terminal input and output[0] are two descriptors of its other end
	struct child entry, main;
	struct timer timer;
	char *early; // what the host sent with the request line
	size_t early_at, early_size;
	char *request;
	size_t request_size;
	bool begun, terminal, had_terminal, resized;
	bool host_ended; // nobody is there any more
	bool main_known; // the program's process id is, or was, known
	bool drained[2]; // nothing lies in that output now
	bool last_framed, farewell;
	bool pumping, again;
	int status;
	struct winsize size;
	struct enter_report failure; // code empty: none
	size_t in_used, in_at;       // of `in`; in_at: payload that the program has taken
	size_t out_at, out_used;
	uint8_t in[GUEST_SESSION_HEADER + GUEST_SESSION_BYTES_MAX], out[GUEST_SESSION_HEADER + GUEST_SESSION_BYTES_MAX];
};

static void pump(struct session *s);

static void close_end(struct session *s, struct source *end) {
	// Two descriptors of one terminal: closing alone would leave this one in the set.
	if (end->fd >= 0)
		loop_watch(s->all->loop, end, 0);
	loop_close_source(s->all->loop, end);
}

static void release(struct session *s) {
	struct sessions *all = s->all;

	loop_disarm(all->loop, &s->timer);
	close_end(s, &s->host);
	close_end(s, &s->report);
	close_end(s, &s->input);
	close_end(s, &s->output[0]);
	close_end(s, &s->output[1]);
	*(s->previous != NULL ? &s->previous->next : &all->first) = s->next;
	if (s->next != NULL)
		s->next->previous = s->previous;
	all->count--;
	free(s->early);
	free(s->request);
	free(s);
}

static bool processes_left(const struct session *s) {
	return s->entry.pid > 0 || s->main.pid > 0 || s->report.fd >= 0;
}

static void signal_program(struct session *s, int number) {
	// Its process group; files are handled by a process that has none of its own.
	if (s->main.pid > 0 && kill(-s->main.pid, number) < 0)
		kill(s->main.pid, number);
}

static void fail(struct session *s, const char *code, const char *message) {
	if (s->failure.code[0] != '\0')
		return;
	snprintf(s->failure.code, sizeof(s->failure.code), "%s", code);
	snprintf(s->failure.message, sizeof(s->failure.message), "%s", message);
}

// The host breaks the protocol: the program goes, and what was wrong is told in place of its exit code.
static void refuse(struct session *s, const char *message) {
	fail(s, "INVALID_REQUEST", message);
	signal_program(s, SIGKILL);
}

// The host is gone.
static void hang_up(struct session *s) {
	s->host_ended = true;
	close_end(s, &s->host);
	close_end(s, &s->input);
	close_end(s, &s->output[0]);
	close_end(s, &s->output[1]);
	if (processes_left(s)) {
		signal_program(s, SIGHUP);
		loop_arm(s->all->loop, &s->timer, monotonic_ns() + HANG_UP_NS);
	}
}

static void timed_out(struct timer *t) {
	struct session *s = container_of(t, struct session, timer);

	if (s->host_ended) {
		signal_program(s, SIGKILL);
	} else if (s->farewell) {
		release(s);
	} else {
		fail(s, "REQUEST_TIMEOUT", "the request did not come within ten seconds");
		pump(s);
	}
}

// To the host. ----------------------------------------------------------------------------------------------------------------

// Sends what waits. False when the host is gone.
static bool flush(struct session *s) {
	while (s->out_at < s->out_used) {
		ssize_t n = send(s->host.fd, s->out + s->out_at, s->out_used - s->out_at, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN;
		s->out_at += (size_t)n;
	}
	s->out_at = s->out_used = 0;
	return true;
}

// Completes the frame whose bytes lie behind the header's place in `out` already.
static void finish_frame(struct session *s, enum guest_session_out kind, size_t size) {
	uint32_t length = (uint32_t)size + 1;

	memcpy(s->out, &length, sizeof(length));
	s->out[4] = (uint8_t)kind;
	s->out_at = 0;
	s->out_used = GUEST_SESSION_HEADER + size;
}

static void frame_failure(struct session *s) {
	json_t *o = json_pack("{s:s, s:s}", "code", s->failure.code, "message", s->failure.message);
	// A message with a path that is no UTF-8 has no JSON.
	if (o == NULL)
		o = json_pack("{s:s, s:s}", "code", s->failure.code, "message", "the message cannot be shown: it is not UTF-8");
	size_t n = o == NULL ? 0 : json_dumpb(o, (char *)s->out + GUEST_SESSION_HEADER, GUEST_SESSION_BYTES_MAX, JSON_COMPACT);
	json_decref(o);
	finish_frame(s, GUEST_SESSION_FAILED, n);
}

static void frame_exit(struct session *s) {
	int32_t code = WIFEXITED(s->status) ? WEXITSTATUS(s->status) : 128 + WTERMSIG(s->status);
	memcpy(s->out + GUEST_SESSION_HEADER, &code, sizeof(code));
	finish_frame(s, GUEST_SESSION_EXIT, sizeof(code));
}

// Takes a piece of output into a frame. Returns whether something moved.
static bool take_output(struct session *s, int which) {
	struct source *end = &s->output[which];

	if (end->fd < 0)
		return false;
	ssize_t n = read(end->fd, s->out + GUEST_SESSION_HEADER, GUEST_SESSION_BYTES_MAX);
	if (n < 0 && errno == EINTR)
		return true;
	s->drained[which] = n < 0 && errno == EAGAIN;
	if (n > 0) {
		finish_frame(s, which == 0 ? GUEST_SESSION_OUTPUT : GUEST_SESSION_ERROR_OUTPUT, (size_t)n);
		return true;
	}
	// A terminal that nobody has open gives EIO.
	if (!s->drained[which])
		close_end(s, end);
	return false;
}

static bool is_drained(const struct session *s, int which) {
	return s->output[which].fd < 0 || s->drained[which];
}

static bool is_over(const struct session *s) {
	if (!s->begun)
		return s->failure.code[0] != '\0';
	return !processes_left(s) && is_drained(s, 0) && is_drained(s, 1);
}

// Output, then the last frame, then our end. False when the host is gone.
static bool give(struct session *s, bool *moved) {
	bool was_waiting = s->out_used > 0;

	if (!flush(s))
		return false;
	*moved |= was_waiting && s->out_used == 0;
	for (int i = 0; i < 2 && s->out_used == 0; i++) {
		if (!take_output(s, i))
			continue;
		*moved = true;
		if (!flush(s))
			return false;
	}
	if (s->out_used > 0 || s->farewell || !is_over(s))
		return true;
	if (!s->last_framed) {
		if (s->failure.code[0] == '\0' && !s->main_known)
			fail(s, "INTERNAL", "the program could not be started");
		if (s->failure.code[0] != '\0')
			frame_failure(s);
		else
			frame_exit(s);
		s->last_framed = true;
		if (!flush(s))
			return false;
	}
	if (s->out_used == 0) {
		s->farewell = true;
		shutdown(s->host.fd, SHUT_WR);
		loop_arm(s->all->loop, &s->timer, monotonic_ns() + FAREWELL_NS);
	}
	return true;
}

// Beginning. ------------------------------------------------------------------------------------------------------------------

static void entry_ended(struct child *c, int status) {
	struct session *s = container_of(c, struct session, entry);
	c->pid = 0;
	pump(s);
}

static void main_ended(struct child *c, int status) {
	struct session *s = container_of(c, struct session, main);
	c->pid = 0;
	s->status = status;
	// Its output must be looked at once more.
	s->drained[0] = s->drained[1] = false;
	pump(s);
}

static void watch_main(struct session *s, pid_t pid) {
	s->main.pid = pid;
	s->main_known = true;
	children_watch(s->all->children, &s->main);
}

static void take_terminal(struct session *s, int fd) {
	struct stat st;

	if (s->input.fd >= 0 || s->host_ended || fstat(fd, &st) < 0 || !S_ISCHR(st.st_mode) || st.st_rdev != makedev(5, 2)) {
		close(fd);
		return;
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	s->had_terminal = true;
	s->output[0].fd = fd;
	s->input.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (s->resized)
		ioctl(fd, TIOCSWINSZ, &s->size);
}

static void report_ready(struct source *source, uint32_t events) {
	struct session *s = container_of(source, struct session, report);
	struct enter_report r;
	int fd;

	int n = enter_receive(source->fd, &r, &fd);
	if (n == -EAGAIN || n == -EINTR)
		return;
	if (n <= 0) {
		close_end(s, source);
		pump(s);
		return;
	}
	if (r.kind == ENTER_PID && !s->main_known && r.value > 1) {
		watch_main(s, (pid_t)r.value);
		if (s->host_ended || s->failure.code[0] != '\0')
			signal_program(s, SIGKILL);
	} else if (r.kind == ENTER_TERMINAL && fd >= 0) {
		take_terminal(s, fd);
		fd = -1;
	} else if (r.kind == ENTER_FAILED) {
		fail(s, r.code, r.message);
	}
	if (fd >= 0)
		close(fd);
	pump(s);
}

// A pipe to or from the program: our end goes to *end, the other to *theirs.
static int make_pipe(struct source *end, bool to_program, int *theirs) {
	int ends[2];

	if (pipe2(ends, O_CLOEXEC) < 0)
		return -errno;
	end->fd = ends[to_program ? 1 : 0];
	*theirs = ends[to_program ? 0 : 1];
	return fcntl(end->fd, F_SETFL, O_NONBLOCK) < 0 ? -errno : 0;
}

static void close_theirs(int *fds, size_t n) {
	for (size_t i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

static void start_program(struct session *s, const struct session_request *q) {
	int theirs[3] = {-1, -1, -1}, reports[2] = {-1, -1}, r = 0;
	struct error e = {0};
	bool direct = false;

	s->terminal = q->terminal;
	if (!q->terminal && ((r = make_pipe(&s->input, true, &theirs[0])) < 0 || (r = make_pipe(&s->output[0], false, &theirs[1])) < 0 ||
			     (r = make_pipe(&s->output[1], false, &theirs[2])) < 0))
		error_set(&e, r, "cannot make pipes: %s", strerror(-r));
	if (r == 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, reports) < 0)
		r = error_errno(&e, "cannot make a socket");
	pid_t pid = r < 0 ? r
			  : enter_container(&(struct enter){.application = s->all->application,
							    .request = q,
							    .input = theirs[0],
							    .output = theirs[1],
							    .error_output = theirs[2],
							    .report = reports[1]},
					    &direct, &e);
	close_theirs(theirs, 3);
	close_theirs(&reports[1], 1);
	s->report.fd = reports[0];
	if (pid < 0) {
		close_end(s, &s->report);
		fail(s, e.name[0] != '\0' ? e.name : "INTERNAL", e.message);
		return;
	}
	if (loop_watch(s->all->loop, &s->report, EPOLLIN) < 0)
		close_end(s, &s->report);
	if (direct) {
		watch_main(s, pid);
	} else {
		s->entry.pid = pid;
		children_watch(s->all->children, &s->entry);
	}
}

static void begin(struct session *s) {
	struct session_request q;
	struct error e = {0};

	loop_disarm(s->all->loop, &s->timer);
	s->begun = true;
	if (session_request_parse(s->request, s->request_size, &q, &e) < 0)
		fail(s, "INVALID_REQUEST", e.message);
	else
		start_program(s, &q);
	session_request_free(&q);
	free(s->request);
	s->request = NULL;
}

// From the host. --------------------------------------------------------------------------------------------------------------

static void add_to_request(struct session *s, const uint8_t *data, size_t size) {
	if (s->begun || s->request_size + size > GUEST_SESSION_REQUEST_MAX) {
		refuse(s, s->begun ? "the request was given already" : "the request is longer than 128 KiB");
		return;
	}
	char *more = realloc(s->request, s->request_size + size + 1);
	if (more == NULL) {
		fail(s, "INTERNAL", "out of memory");
		return;
	}
	memcpy(more + s->request_size, data, size);
	s->request = more;
	s->request_size += size;
}

static void resize(struct session *s, const uint8_t *data, size_t size) {
	uint16_t columns, rows;

	if (size != 4)
		return;
	memcpy(&columns, data, 2);
	memcpy(&rows, data + 2, 2);
	s->size = (struct winsize){.ws_col = columns, .ws_row = rows};
	s->resized = true;
	if (s->terminal && s->input.fd >= 0)
		ioctl(s->input.fd, TIOCSWINSZ, &s->size);
}

// Input that came before the program has its terminal, which may be reported after the program's number, waits; with pipes there is always one,
// until the program closes it.
static bool input_can_come(const struct session *s) {
	return s->terminal && !s->had_terminal && s->report.fd >= 0;
}

// Hands the frame's bytes to the program. False: the rest must wait.
static bool deliver(struct session *s) {
	size_t size = s->in_used - GUEST_SESSION_HEADER;

	while (s->in_at < size) {
		if (s->input.fd < 0)
			return !input_can_come(s); // nobody reads it: thrown away
		ssize_t n = write(s->input.fd, s->in + GUEST_SESSION_HEADER + s->in_at, size - s->in_at);
		if (n < 0 && errno == EAGAIN)
			return false;
		if (n < 0 && errno != EINTR)
			close_end(s, &s->input);
		else if (n > 0)
			s->in_at += (size_t)n;
	}
	return true;
}

// Acts on the frame in `in`. False: it must wait there.
static bool act(struct session *s) {
	const uint8_t *data = s->in + GUEST_SESSION_HEADER;
	size_t size = s->in_used - GUEST_SESSION_HEADER;

	switch (s->in[4]) {
	case GUEST_SESSION_REQUEST:
		add_to_request(s, data, size);
		return true;
	case GUEST_SESSION_BEGIN:
		if (s->begun || s->request == NULL)
			refuse(s, s->begun ? "the request was given already" : "there is no request");
		else
			begin(s);
		return true;
	case GUEST_SESSION_INPUT:
		return deliver(s);
	case GUEST_SESSION_INPUT_END:
		if (s->terminal) {
			// A terminal's input does not end by closing.
			s->in[4] = GUEST_SESSION_INPUT;
			s->in[GUEST_SESSION_HEADER] = END_OF_TRANSMISSION;
			s->in_used = GUEST_SESSION_HEADER + 1;
			s->in_at = 0;
			return deliver(s);
		}
		close_end(s, &s->input);
		return true;
	case GUEST_SESSION_RESIZE:
		resize(s, data, size);
		return true;
	case GUEST_SESSION_SIGNAL:
		if (size == 1 && data[0] >= 1 && data[0] <= 31)
			signal_program(s, data[0]);
		return true;
	default:
		refuse(s, "a frame of a kind that this guest agent does not know");
		return true;
	}
}

// Reads at most n bytes. Returns how many, 0: nothing there now, -1: the host is gone.
static ssize_t receive(struct session *s, void *to, size_t n) {
	size_t early = s->early_size - s->early_at;

	if (early > 0) {
		n = n < early ? n : early;
		memcpy(to, s->early + s->early_at, n);
		s->early_at += n;
		return (ssize_t)n;
	}
	ssize_t got = recv(s->host.fd, to, n, MSG_DONTWAIT);
	if (got > 0)
		return got;
	return got < 0 && (errno == EAGAIN || errno == EINTR) ? 0 : -1;
}

// Whole size of the frame that is coming, or 0 when its header says nonsense.
static size_t frame_wanted(const struct session *s) {
	uint32_t length;

	if (s->in_used < GUEST_SESSION_HEADER)
		return GUEST_SESSION_HEADER;
	memcpy(&length, s->in, sizeof(length));
	return length >= 1 && length <= GUEST_SESSION_BYTES_MAX + 1 ? GUEST_SESSION_HEADER - 1 + length : 0;
}

// Whether a whole frame lies in `in`, and waits for the program.
static bool frame_waits(const struct session *s) {
	return s->in_used >= GUEST_SESSION_HEADER && s->in_used == frame_wanted(s);
}

// One step of reading. Returns whether something moved; false in *alive when the host is gone.
static bool take(struct session *s, bool *alive) {
	if (frame_waits(s)) {
		if (!act(s))
			return false;
		s->in_used = s->in_at = 0;
		return true;
	}
	size_t wanted = frame_wanted(s);
	if (wanted == 0) {
		*alive = false;
		return false;
	}
	ssize_t n = receive(s, s->in + s->in_used, wanted - s->in_used);
	*alive = n >= 0;
	if (n <= 0)
		return false;
	s->in_used += (size_t)n;
	return true;
}

// What comes behind the last frame is of no use, but its end is waited for, so that what we sent arrives.
static bool drain_host(struct session *s) {
	char data[4096];
	ssize_t n;

	do
		n = recv(s->host.fd, data, sizeof(data), MSG_DONTWAIT);
	while (n > 0);
	return n < 0 && (errno == EAGAIN || errno == EINTR);
}

// The machine. ----------------------------------------------------------------------------------------------------------------

static int watch_all(struct session *s) {
	struct loop *l = s->all->loop;
	bool blocked = frame_waits(s) && !s->farewell;
	// While nothing is read, only the host's end is looked out for.
	int r = loop_watch(l, &s->host, (blocked ? EPOLLRDHUP : EPOLLIN) | (s->out_used > 0 ? EPOLLOUT : 0u));

	if (r == 0 && s->input.fd >= 0)
		r = loop_watch(l, &s->input, blocked ? EPOLLOUT : 0u);
	for (int i = 0; i < 2 && r == 0; i++)
		if (s->output[i].fd >= 0)
			r = loop_watch(l, &s->output[i], s->out_used == 0 ? EPOLLIN : 0u);
	return r;
}

static bool move(struct session *s) {
	bool moved = true, alive = true;

	// What came early is no event of the socket's, so it is not left lying.
	for (int i = 0; alive && moved && (i < ROUNDS_AT_ONCE || s->early_at < s->early_size); i++) {
		moved = false;
		if (s->farewell)
			alive = drain_host(s);
		else if (s->begun || s->failure.code[0] == '\0')
			moved = take(s, &alive);
		if (alive && !give(s, &moved))
			alive = false;
	}
	return alive && watch_all(s) == 0;
}

static void pump(struct session *s) {
	s->again = true;
	if (s->pumping)
		return;
	s->pumping = true;
	while (s->again) {
		s->again = false;
		if (!s->host_ended && !move(s))
			hang_up(s);
	}
	s->pumping = false;
	if (s->host_ended && !processes_left(s))
		release(s);
}

static void host_ready(struct source *source, uint32_t events) {
	struct session *s = container_of(source, struct session, host);

	if (frame_waits(s) && (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0)
		hang_up(s);
	pump(s);
}

static void input_ready(struct source *source, uint32_t events) {
	pump(container_of(source, struct session, input));
}

static void output_ready(struct source *source, uint32_t events) {
	pump(container_of(source, struct session, output[0]));
}

static void error_output_ready(struct source *source, uint32_t events) {
	pump(container_of(source, struct session, output[1]));
}

static struct session *new_session(struct sessions *all, int host, const void *early, size_t early_size) {
	struct session *s = all->count < GUEST_SESSIONS_MAX ? calloc(1, sizeof(*s)) : NULL;

	if (s == NULL)
		return NULL;
	if (early_size > 0 && (s->early = malloc(early_size)) == NULL) {
		free(s);
		return NULL;
	}
	if (early_size > 0)
		memcpy(s->early, early, early_size);
	s->early_size = early_size;
	s->all = all;
	s->host = (struct source){.fd = host, .ready = host_ready};
	s->report = (struct source){.fd = -1, .ready = report_ready};
	s->input = (struct source){.fd = -1, .ready = input_ready};
	s->output[0] = (struct source){.fd = -1, .ready = output_ready};
	s->output[1] = (struct source){.fd = -1, .ready = error_output_ready};
	s->entry.ended = entry_ended;
	s->main.ended = main_ended;
	s->timer.fire = timed_out;
	s->next = all->first;
	if (all->first != NULL)
		all->first->previous = s;
	all->first = s;
	all->count++;
	return s;
}

void session_start(struct sessions *all, int host, const void *early, size_t early_size) {
	struct session *s = new_session(all, host, early, early_size);

	if (s == NULL) {
		(void)!send(host, "ERR EMFILE\n", 11, MSG_NOSIGNAL | MSG_DONTWAIT);
		close(host);
		return;
	}
	if (send(host, "OK\n", 3, MSG_NOSIGNAL | MSG_DONTWAIT) != 3) {
		release(s);
		return;
	}
	loop_arm(all->loop, &s->timer, monotonic_ns() + REQUEST_TIMEOUT_NS);
	pump(s);
}

void sessions_init(struct sessions *all, struct loop *l, struct children *c, const struct application *a) {
	*all = (struct sessions){.loop = l, .children = c, .application = a};
}

void sessions_end(struct sessions *all) {
	for (struct session *s = all->first, *next; s != NULL; s = next) {
		next = s->next;
		if (s->entry.pid > 0)
			kill(s->entry.pid, SIGKILL);
		signal_program(s, SIGKILL);
		hang_up(s);
		pump(s);
	}
	// Reap them, so that nothing of ours calls back later.
	while (all->first != NULL)
		loop_step(all->loop, -1);
}
