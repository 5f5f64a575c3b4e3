/* A closed-loop load generator for streaming chat services.
 *
 *   loadgen --port P [--api chat|text|tasks] [--clients C] [--requests R] [--tokens N] [--rate T]
 *           [--in-phase] [--delay MS] [--whole] [--model mock] [--timeout S]
 *
 * C clients, each on one kept-alive connection, send R requests in all. Every answer must hold the stamps
 * 0..N-1 (stamp.h) in order, whatever surrounds them. `tasks` submits with POST /v1/tasks and then reads
 * GET /v1/tasks/{id}/stream on the same connection. Prints one JSON object. LOADGEN_BEARER is the key that it sends.
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
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buffer.h"
#include "http.h"
#include "stamp.h"

enum { EVENTS_PER_WAIT = 512, READ_SIZE = 65536, KEPT_OF_BODY = 400, STATUS_CODES = 600 };

enum api { CHAT, TEXT, TASKS };

static struct {
    int port, clients, requests;
    unsigned tokens;
    enum api api;
    bool in_phase, whole;
    double rate, delay_ms, timeout_s;
    const char *model;
} plan = {.port = 9100, .clients = 1, .requests = 1, .tokens = 16, .timeout_s = 90, .model = "mock"};

/* Measured times in microseconds. */
struct samples {
    double *us;
    size_t count, room;
};

static struct {
    int started, finished, ok, failed;
    int misplaced;              /* tokens out of order, twice, or lost */
    uint64_t tokens, bytes;
    int status[STATUS_CODES];
    char first_error[KEPT_OF_BODY * 2];
    struct samples frame;       /* client's receive - engine's send, per token */
    struct samples first_token; /* from sending the request */
    struct samples request;     /* from sending the request to the end of the answer */
} result;

struct client {
    int fd;                     /* -1 = not connected */
    bool busy;
    bool reading_task;          /* TASKS: submitted; the stream is being read */
    int64_t sent_ns, received_ns;
    struct http_reader answer;
    struct stamp_scanner scanner;
    unsigned expected;          /* place of the next token */
    size_t kept_count;
    char kept[KEPT_OF_BODY + 1]; /* the beginning of the body: for task ids and error messages */
};

static int poller;
static struct buffer request;

/* ---- samples ---- */

static void add_sample(struct samples *s, int64_t ns)
{
    if (s->count == s->room) {
        s->room = s->room ? s->room * 2 : 65536;
        s->us = realloc(s->us, s->room * sizeof *s->us);
    }
    s->us[s->count++] = (double)ns / 1000;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(const struct samples *sorted, double q)
{
    return sorted->count ? sorted->us[(size_t)(q * (double)(sorted->count - 1) + 0.5)] : -1;
}

static void print_samples(const char *name, struct samples *s)
{
    double sum = 0;
    qsort(s->us, s->count, sizeof *s->us, compare);
    for (size_t i = 0; i < s->count; i++) sum += s->us[i];
    printf("\"%s\":{\"p50\":%.1f,\"p90\":%.1f,\"p99\":%.1f,\"max\":%.1f,\"mean\":%.1f},", name, quantile(s, .5),
           quantile(s, .9), quantile(s, .99), quantile(s, 1), s->count ? sum / (double)s->count : -1);
}

/* ---- one request ---- */

/* A key that the server knows stands in the environment: arguments are seen by everybody. */
static const char *bearer(void)
{
    const char *key = getenv("LOADGEN_BEARER");
    return key && *key ? key : "bench";
}

static void make_request(void)
{
    char knobs[256];
    struct buffer body = {0};
    const char *path = plan.api == CHAT ? "/v1/chat/completions" : plan.api == TEXT ? "/v1/completions" : "/v1/tasks";
    snprintf(knobs, sizeof knobs, "Tell me a story. [bench n=%u rate=%g phase=%d delay=%g]", plan.tokens, plan.rate,
             plan.in_phase, plan.delay_ms);
    if (plan.api == TASKS) buffer_printf(&body, "{\"workload\":\"chat\",\"model_ref\":\"%s\",", plan.model);
    else buffer_printf(&body, "{\"model\":\"%s\",\"stream\":%s,", plan.model, plan.whole ? "false" : "true");
    if (plan.api == TEXT) buffer_printf(&body, "\"prompt\":\"%s\",", knobs);
    else buffer_printf(&body, "\"messages\":[{\"role\":\"user\",\"content\":\"%s\"}],", knobs);
    buffer_printf(&body, "\"max_tokens\":%u}", plan.tokens);
    buffer_printf(&request, "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
                            "Authorization: Bearer %s\r\nAccept: %s\r\nContent-Length: %zu\r\n\r\n%s",
                  path, plan.port, bearer(), plan.whole || plan.api == TASKS ? "application/json" : "text/event-stream",
                  body.count, body.bytes);
    buffer_free(&body);
}

static void note_token(struct client *c)
{
    if (c->scanner.place != c->expected) result.misplaced++;
    if (c->expected == 0) add_sample(&result.first_token, c->received_ns - c->sent_ns);
    c->expected = c->scanner.place + 1;
    result.tokens++;
    add_sample(&result.frame, c->received_ns - c->scanner.sent_ns);
}

static void take_body(void *owner, const char *bytes, size_t count)
{
    struct client *c = owner;
    size_t room = KEPT_OF_BODY - c->kept_count, keep = count < room ? count : room;
    memcpy(c->kept + c->kept_count, bytes, keep);
    c->kept_count += keep;
    c->kept[c->kept_count] = 0;
    const char *at = bytes;
    while (stamp_next(&c->scanner, &at, bytes + count))
        note_token(c);
}

static void expect_answer(struct client *c)
{
    c->kept_count = 0;
    c->scanner = (struct stamp_scanner){0};
    http_reset(&c->answer, true, take_body, c);
}

static void note_error(const struct client *c, const char *what)
{
    result.failed++;
    if (result.first_error[0]) return;
    snprintf(result.first_error, sizeof result.first_error, "%s: status %d, %u of %u tokens, body: %s", what,
             c->answer.status, c->expected, plan.tokens, c->kept_count ? c->kept : "");
    for (char *at = result.first_error; *at; at++) /* it is printed inside a JSON string */
        if (*at == '"' || *at == '\\' || (unsigned char)*at < 32 || (unsigned char)*at > 126) *at = '\'';
}

static void disconnect(struct client *c)
{
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
}

static bool reconnect(struct client *c)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)plan.port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        disconnect(c);
        return false;
    }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
    return true;
}

/* Sends the next request of the plan, if there is one left. */
static void start_request(struct client *c)
{
    c->busy = false;
    while (result.started < plan.requests) {
        result.started++;
        c->reading_task = false;
        c->expected = 0;
        expect_answer(c);
        if (c->fd >= 0 || reconnect(c)) {
            c->busy = true;
            c->sent_ns = monotonic_ns();
            if (send(c->fd, request.bytes, request.count, MSG_NOSIGNAL) == (ssize_t)request.count) return;
        }
        note_error(c, strerror(errno));
        disconnect(c);
        c->busy = false;
        result.finished++;
    }
}

static void finish_request(struct client *c, const char *failure)
{
    bool complete = c->expected == plan.tokens;
    result.finished++;
    if (c->answer.status > 0 && c->answer.status < STATUS_CODES) result.status[c->answer.status]++;
    if (!failure && c->answer.status != 200) failure = "refused";
    if (!failure && !complete) failure = "cut short";
    if (failure) {
        note_error(c, failure);
    } else {
        result.ok++;
        add_sample(&result.request, c->received_ns - c->sent_ns);
    }
    if (failure || c->answer.close_after) disconnect(c);
    start_request(c);
}

/* The task was accepted: reads its stream. */
static void read_task(struct client *c)
{
    static const char key[] = "\"task_id\":";
    char head[512];
    const char *id = strstr(c->kept, key);
    if (c->answer.status != 202 || !id) {
        finish_request(c, "not accepted");
        return;
    }
    id += strlen(key);
    id += strspn(id, " \"");
    int count = snprintf(head, sizeof head, "GET /v1/tasks/%.*s/stream HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n"
                                            "Authorization: Bearer %s\r\nAccept: text/event-stream\r\n\r\n",
                         (int)strcspn(id, "\""), id, plan.port, bearer());
    c->reading_task = true;
    expect_answer(c);
    if (send(c->fd, head, (size_t)count, MSG_NOSIGNAL) != count) finish_request(c, "lost connection");
}

static void take_bytes(struct client *c, const char *bytes, size_t count)
{
    while (c->busy && count > 0) {
        size_t used = http_read(&c->answer, bytes, count);
        bytes += used;
        count -= used;
        if (c->answer.phase == HTTP_BROKEN) finish_request(c, "no valid HTTP");
        else if (c->answer.phase != HTTP_DONE) continue;
        else if (plan.api == TASKS && !c->reading_task) read_task(c);
        else finish_request(c, NULL);
        return; /* nothing was asked for behind this answer, so nothing is left */
    }
}

static void read_some(struct client *c)
{
    static char bytes[READ_SIZE];
    ssize_t n = recv(c->fd, bytes, sizeof bytes, MSG_DONTWAIT);
    c->received_ns = monotonic_ns();
    if (n > 0) {
        result.bytes += (uint64_t)n;
        take_bytes(c, bytes, (size_t)n);
    } else if (n == 0 || errno != EAGAIN) {
        bool whole = c->answer.phase == HTTP_TO_CLOSE;
        c->answer.close_after = true;
        if (c->busy) finish_request(c, whole ? NULL : "connection closed");
        else disconnect(c);
    }
}

/* ---- the run ---- */

/* Returns how long it took in seconds. */
static double run(void)
{
    struct client *clients = calloc((size_t)plan.clients, sizeof *clients);
    struct epoll_event events[EVENTS_PER_WAIT];
    poller = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 0; i < plan.clients; i++) clients[i].fd = -1;
    for (int i = 0; i < plan.clients; i++) reconnect(&clients[i]); /* connecting is not measured */
    usleep(20000);
    int64_t begin = monotonic_ns(), limit = begin + (int64_t)(plan.timeout_s * 1e9);
    for (int i = 0; i < plan.clients; i++) start_request(&clients[i]);
    while (result.finished < plan.requests && monotonic_ns() < limit) {
        int count = epoll_wait(poller, events, EVENTS_PER_WAIT, 200);
        for (int i = 0; i < count; i++) {
            struct client *c = events[i].data.ptr;
            if (c->fd >= 0) read_some(c);
        }
    }
    return (double)(monotonic_ns() - begin) / 1e9;
}

static void print_result(double wall_s)
{
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_s = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                   (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    printf("{\"wall_s\":%.6f,\"ok\":%d,\"failed\":%d,\"unfinished\":%d,\"misplaced\":%d,\"tokens\":%llu,\"bytes\":%llu,",
           wall_s, result.ok, result.failed, plan.requests - result.finished, result.misplaced,
           (unsigned long long)result.tokens, (unsigned long long)result.bytes);
    printf("\"tok_s\":%.1f,\"req_s\":%.1f,", (double)result.tokens / wall_s, result.ok / wall_s);
    print_samples("first_token_us", &result.first_token);
    print_samples("frame_us", &result.frame);
    print_samples("request_us", &result.request);
    printf("\"loadgen_cpu_s\":%.4f,\"error\":\"%s\",\"status\":{", cpu_s, result.first_error);
    const char *comma = "";
    for (int code = 0; code < STATUS_CODES; code++) {
        if (!result.status[code]) continue;
        printf("%s\"%d\":%d", comma, code, result.status[code]);
        comma = ",";
    }
    puts("}}");
}

static enum api read_api(const char *name)
{
    if (strcmp(name, "chat") == 0) return CHAT;
    if (strcmp(name, "text") == 0) return TEXT;
    if (strcmp(name, "tasks") == 0) return TASKS;
    fprintf(stderr, "loadgen: --api takes chat, text or tasks, got %s\n", name);
    exit(2);
}

static void read_options(int count, char **words)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'},    {"api", required_argument, NULL, 'a'},
        {"clients", required_argument, NULL, 'c'}, {"requests", required_argument, NULL, 'r'},
        {"tokens", required_argument, NULL, 'n'},  {"rate", required_argument, NULL, 't'},
        {"in-phase", no_argument, NULL, 'i'},      {"delay", required_argument, NULL, 'd'},
        {"whole", no_argument, NULL, 'w'},         {"model", required_argument, NULL, 'm'},
        {"timeout", required_argument, NULL, 'l'}, {0},
    };
    for (int option; (option = getopt_long(count, words, "", options, NULL)) != -1;) {
        switch (option) {
        case 'p': plan.port = atoi(optarg); break;
        case 'a': plan.api = read_api(optarg); break;
        case 'c': plan.clients = atoi(optarg); break;
        case 'r': plan.requests = atoi(optarg); break;
        case 'n': plan.tokens = (unsigned)atoi(optarg); break;
        case 't': plan.rate = atof(optarg); break;
        case 'i': plan.in_phase = true; break;
        case 'd': plan.delay_ms = atof(optarg); break;
        case 'w': plan.whole = true; break;
        case 'm': plan.model = optarg; break;
        case 'l': plan.timeout_s = atof(optarg); break;
        default: exit(2);
        }
    }
    if (plan.clients > plan.requests) plan.clients = plan.requests;
}

int main(int count, char **words)
{
    read_options(count, words);
    signal(SIGPIPE, SIG_IGN);
    make_request();
    double wall_s = run();
    if (result.finished < plan.requests && !result.first_error[0])
        snprintf(result.first_error, sizeof result.first_error, "%d of %d requests did not end within %g s",
                 plan.requests - result.finished, plan.requests, plan.timeout_s);
    print_result(wall_s);
    return result.failed || result.finished < plan.requests ? 1 : 0;
}
