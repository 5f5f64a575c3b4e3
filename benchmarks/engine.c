/* A mock inference engine for benchmarks: the native API of llama.cpp and the OpenAI API, on loopback.
 *
 *   engine --port 9100 [--slots 512] [--context 32768]
 *
 * One thread, one epoll loop. Each token is one SSE frame, one HTTP chunk and one send(), as with real
 * engines; its text says when it was sent (stamp.h). How many tokens, how fast and how late is said in the
 * prompt (engine_api.c). A stream ends early only when its client leaves, and that is counted.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "engine_api.h"
#include "stamp.h"
#include "timers.h"

enum { EVENTS_PER_WAIT = 512, PASSES_PER_WAIT = 4, READ_SIZE = 65536, BODY_LIMIT = 64 << 20 };

static const size_t NOT_READY = (size_t)-1;

struct connection {
    struct timer timer;         /* first, so that a timer is its connection; due: the next token */
    int fd;
    bool closed;
    bool close_when_idle;       /* the client asked for one answer only */
    struct http_reader request;
    struct buffer body;         /* of the running request */
    struct buffer unread;       /* what came while an answer was on its way */
    struct buffer unsent;       /* what the kernel would not take yet; no token is made while it waits */
    struct order order;
    int slot;                   /* -1 = no generation runs */
    unsigned place;             /* the next token's */
    int64_t interval_ns;        /* between tokens; 0 = unpaced */
    bool shift_phase;           /* the next interval is cut at random, so that streams spread out */
    size_t ready_place;         /* in `ready`, or NOT_READY */
};

static struct engine_facts facts = {.slots = 512, .context = 32768};
static struct timers timers;
static struct connection **ready; /* unpaced streams that may send */
static size_t ready_count;
static struct connection **dead;  /* closed while events for them may still be in hand */
static size_t dead_count, dead_room;
static int poller;

/* ---- connections ---- */

static void add_body(void *owner, const char *bytes, size_t count)
{
    struct connection *c = owner;
    if (c->body.count + count <= BODY_LIMIT) buffer_add(&c->body, bytes, count);
}

static void watch(struct connection *c, int operation, bool for_writing)
{
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (for_writing ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(poller, operation, c->fd, &e);
}

static void accept_all(int listener)
{
    for (int fd; (fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0;) {
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->slot = -1;
        c->ready_place = NOT_READY;
        http_reset(&c->request, false, add_body, c);
        watch(c, EPOLL_CTL_ADD, false);
    }
}

static void leave_ready(struct connection *c)
{
    if (c->ready_place == NOT_READY) return;
    struct connection *last = ready[--ready_count];
    ready[c->ready_place] = last;
    last->ready_place = c->ready_place;
    c->ready_place = NOT_READY;
}

static void enter_ready(struct connection *c)
{
    if (c->ready_place != NOT_READY) return;
    c->ready_place = ready_count;
    ready[ready_count++] = c;
}

/* A free slot, or the one that is wanted if that is free; -1 = none. */
static int take_slot(int wanted)
{
    for (unsigned i = 0; i < facts.slots; i++) {
        if (facts.slot_busy[i] || (wanted >= 0 && (int)i != wanted)) continue;
        facts.slot_busy[i] = true;
        facts.busy++;
        return (int)i;
    }
    return -1;
}

static void free_slot(struct connection *c)
{
    if (c->slot < 0) return;
    facts.slot_busy[c->slot] = false;
    facts.busy--;
    c->slot = -1;
}

static void stop_generation(struct connection *c)
{
    timers_remove(&timers, &c->timer);
    leave_ready(c);
    free_slot(c);
}

static void close_connection(struct connection *c)
{
    if (c->closed) return;
    if (c->slot >= 0) facts.aborts++;
    stop_generation(c);
    close(c->fd);
    c->closed = true;
    if (dead_count == dead_room) {
        dead_room = dead_room ? dead_room * 2 : 256;
        dead = realloc(dead, dead_room * sizeof *dead);
    }
    dead[dead_count++] = c;
}

static void free_dead(void)
{
    while (dead_count) {
        struct connection *c = dead[--dead_count];
        buffer_free(&c->body);
        buffer_free(&c->unread);
        buffer_free(&c->unsent);
        free(c);
    }
}

/* Sends, and keeps what the kernel does not take. The connection may be closed afterwards. */
static void send_bytes(struct connection *c, const char *bytes, size_t count, int flags)
{
    size_t sent = 0;
    if (c->unsent.count == 0) {
        ssize_t n = send(c->fd, bytes, count, MSG_NOSIGNAL | flags);
        if (n < 0 && errno != EAGAIN) {
            close_connection(c);
            return;
        }
        sent = n > 0 ? (size_t)n : 0;
        if (sent < count) watch(c, EPOLL_CTL_MOD, true);
    }
    buffer_add(&c->unsent, bytes + sent, count - sent);
}

static void after_answer(struct connection *c);

/* ---- generation ---- */

static int64_t next_due(struct connection *c, int64_t now)
{
    if (c->order.in_phase) return (now / c->interval_ns + 1) * c->interval_ns;
    int64_t step = c->interval_ns;
    if (c->shift_phase) step = (int64_t)((double)step * random() / RAND_MAX);
    c->shift_phase = false;
    return c->timer.due_ns + step;
}

/* Sends one token; ends the stream behind the last one. */
static void send_token(struct connection *c)
{
    char frame[FRAME_ROOM + FINISH_ROOM];
    size_t count = api_frame(frame, &c->order, c->place++, monotonic_ns());
    facts.frames++;
    bool last = c->place == c->order.tokens;
    if (last) {
        count += api_finish(frame + count, &c->order, c->slot);
        stop_generation(c);
    }
    send_bytes(c, frame, count, 0);
    if (last) after_answer(c);
    else if (!c->closed && c->unsent.count) leave_ready(c);
}

static void send_due_tokens(void)
{
    int64_t now = monotonic_ns();
    for (struct timer *t; (t = timers_first(&timers)) && t->due_ns <= now;) {
        struct connection *c = (struct connection *)t;
        if (c->interval_ns == 0) { /* only the first token was delayed */
            timers_remove(&timers, t);
            enter_ready(c);
        } else if (c->unsent.count) { /* the reader is slower than the pace: skip a beat */
            timers_set(&timers, t, now + c->interval_ns);
        } else {
            timers_set(&timers, t, next_due(c, now));
            send_token(c);
        }
    }
}

/* One token for each unpaced stream, from the back: a stream that ends is replaced by the last, which had its turn. */
static void send_ready_tokens(void)
{
    for (size_t i = ready_count; i-- > 0;)
        send_token(ready[i]);
}

static void start_generation(struct connection *c)
{
    facts.requests++;
    c->slot = take_slot(c->order.slot);
    if (c->slot < 0) {
        struct buffer refusal = {0};
        api_no_slot(&refusal);
        send_bytes(c, refusal.bytes, refusal.count, 0);
        buffer_free(&refusal);
        return;
    }
    if (!c->order.stream) { /* answered at once: the pace is for streams */
        struct buffer reply = {0};
        facts.frames += c->order.tokens;
        api_whole(&reply, &c->order, c->slot, monotonic_ns());
        free_slot(c);
        send_bytes(c, reply.bytes, reply.count, 0);
        buffer_free(&reply);
        return;
    }
    c->place = 0;
    c->interval_ns = c->order.rate > 0 ? (int64_t)(1e9 / c->order.rate) : 0;
    c->shift_phase = !c->order.in_phase;
    char progress[FRAME_ROOM];
    size_t count = api_progress(progress, &c->order, c->slot);
    send_bytes(c, stream_head, strlen(stream_head), MSG_MORE);
    if (!c->closed && count) send_bytes(c, progress, count, 0);
    if (c->closed) return;
    if (c->interval_ns || c->order.delay_ms > 0)
        timers_set(&timers, &c->timer, monotonic_ns() + (int64_t)(c->order.delay_ms * 1e6));
    else
        enter_ready(c);
}

/* ---- requests ---- */

static bool is_answering(const struct connection *c)
{
    return c->slot >= 0 || c->unsent.count > 0;
}

static void handle_request(struct connection *c)
{
    struct buffer reply = {0};
    const char *body = c->body.count ? c->body.bytes : "";
    c->close_when_idle = c->request.close_after;
    if (api_read(&c->request, body, &facts, &c->order, &reply)) start_generation(c);
    else send_bytes(c, reply.bytes, reply.count, 0);
    buffer_free(&reply);
    c->body.count = 0;
    http_reset(&c->request, false, add_body, c);
}

/* Reads requests for as long as no answer is on its way; keeps the rest for later. */
static void take_bytes(struct connection *c, const char *bytes, size_t count)
{
    while (!c->closed && count > 0 && !is_answering(c)) {
        size_t used = http_read(&c->request, bytes, count);
        bytes += used;
        count -= used;
        if (c->request.phase == HTTP_BROKEN) close_connection(c);
        else if (c->request.phase == HTTP_DONE) handle_request(c);
    }
    if (!c->closed) buffer_add(&c->unread, bytes, count);
}

/* Goes on after an answer: closes if that was asked, else reads what came meanwhile. */
static void after_answer(struct connection *c)
{
    if (c->closed || is_answering(c)) return;
    if (c->close_when_idle) {
        close_connection(c);
    } else if (c->unread.count) {
        struct buffer waiting = c->unread;
        c->unread = (struct buffer){0};
        take_bytes(c, waiting.bytes, waiting.count);
        buffer_free(&waiting);
    }
}

static void read_all(struct connection *c)
{
    static char bytes[READ_SIZE];
    while (!c->closed) {
        ssize_t n = recv(c->fd, bytes, sizeof bytes, 0);
        if (n > 0) take_bytes(c, bytes, (size_t)n);
        else if (n == 0 || errno != EAGAIN) close_connection(c);
        if (n < (ssize_t)sizeof bytes) break;
    }
}

static void write_waiting(struct connection *c)
{
    ssize_t n = send(c->fd, c->unsent.bytes, c->unsent.count, MSG_NOSIGNAL);
    if (n < 0) {
        if (errno != EAGAIN) close_connection(c);
        return;
    }
    buffer_drop(&c->unsent, (size_t)n);
    if (c->unsent.count) return;
    watch(c, EPOLL_CTL_MOD, false);
    if (c->slot >= 0 && c->timer.place == 0) enter_ready(c);
}

/* ---- the loop ---- */

static void handle_event(struct connection *c, uint32_t events)
{
    if (c->closed) return;
    if (events & EPOLLOUT && c->unsent.count) write_waiting(c);
    if (!c->closed && events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP)) read_all(c);
    if (!c->closed && events & (EPOLLRDHUP | EPOLLERR | EPOLLHUP)) close_connection(c);
    after_answer(c);
}

/* How long epoll may sleep: not at all while an unpaced stream can send, else until the next token is due. */
static const struct timespec *wait_limit(struct timespec *limit)
{
    struct timer *first = timers_first(&timers);
    *limit = (struct timespec){0};
    if (ready_count) return limit;
    if (!first) return NULL;
    int64_t left = first->due_ns - monotonic_ns();
    if (left > 0) *limit = (struct timespec){left / 1000000000, left % 1000000000};
    return limit;
}

static void run(int listener)
{
    struct epoll_event events[EVENTS_PER_WAIT];
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = NULL};
    poller = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &e);
    for (;;) {
        struct timespec limit;
        int count = epoll_pwait2(poller, events, EVENTS_PER_WAIT, wait_limit(&limit), NULL);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr) handle_event(events[i].data.ptr, events[i].events);
            else accept_all(listener);
        }
        send_due_tokens();
        for (int pass = 0; pass < PASSES_PER_WAIT; pass++)
            send_ready_tokens();
        free_dead();
    }
}

static int listen_on(int port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) {
        perror("engine: cannot listen");
        exit(1);
    }
    return fd;
}

int main(int count, char **words)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},
        {"slots", required_argument, NULL, 's'},
        {"context", required_argument, NULL, 'c'},
        {0},
    };
    int port = 9100;
    for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) {
        if (option == 'p') port = atoi(optarg);
        else if (option == 's') facts.slots = (unsigned)atoi(optarg);
        else if (option == 'c') facts.context = (unsigned)atoi(optarg);
        else return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    facts.slot_busy = calloc(facts.slots, sizeof *facts.slot_busy);
    ready = calloc(facts.slots, sizeof *ready); /* a ready stream holds a slot, so there are no more */
    run(listen_on(port));
}
