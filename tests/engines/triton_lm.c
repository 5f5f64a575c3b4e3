/* A Triton backend that speaks the contract of TensorRT-LLM's `ensemble`: text_input, max_tokens, stop_words, random_seed, …
 * in, a decoupled stream of text_output out. It says made-up words, decided by seed and text so far, so that a text which
 * is continued goes on as the unbroken one would have.
 *
 * Knobs stand in the prompt, anywhere: tokens=N (it ends by itself; 16), delay_ms=N (before each token), utf8=1 (characters
 * of two tokens each, the first of which brings no text), error_after=N (an error in the middle), error=N (at once, with
 * code N of TRITONSERVER_Error).
 *
 * A request with `sampling_parameters` is answered as Triton's vLLM backend answers it: stop strings are not said, and
 * finish_reason, num_input_tokens and num_output_tokens come with each response.
 *
 * The parts of Triton's C API that it needs are declared here: the wheel of the server has no headers. */
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct Error Error;
typedef struct Request Request;
typedef struct Input Input;
typedef struct Output Output;
typedef struct Response Response;
typedef struct Factory Factory;
typedef struct Instance Instance;
enum { INVALID_ARG = 3, CANCELLED = 7, UINT32 = 4, FP32 = 11, BYTES = 13, FINAL = 1, RELEASE_ALL = 1, CONTEXT = 4096 };

extern Error *TRITONSERVER_ErrorNew(int code, const char *message);
extern void TRITONSERVER_ErrorDelete(Error *);
extern Error *TRITONBACKEND_RequestInput(Request *, const char *name, Input **);
extern Error *TRITONBACKEND_InputProperties(Input *, const char **name, int *type, const int64_t **shape, uint32_t *dims,
                                            uint64_t *bytes, uint32_t *buffers);
extern Error *TRITONBACKEND_InputBuffer(Input *, uint32_t index, const void **, uint64_t *bytes, int *memory, int64_t *id);
extern Error *TRITONBACKEND_RequestIsCancelled(Request *, bool *);
extern Error *TRITONBACKEND_RequestRelease(Request *, uint32_t flags);
extern Error *TRITONBACKEND_ResponseFactoryNew(Factory **, Request *);
extern Error *TRITONBACKEND_ResponseFactoryDelete(Factory *);
extern Error *TRITONBACKEND_ResponseFactorySendFlags(Factory *, uint32_t flags);
extern Error *TRITONBACKEND_ResponseNewFromFactory(Response **, Factory *);
extern Error *TRITONBACKEND_ResponseDelete(Response *);
extern Error *TRITONBACKEND_ResponseOutput(Response *, Output **, const char *name, int type, const int64_t *shape,
                                           uint32_t dims);
extern Error *TRITONBACKEND_OutputBuffer(Output *, void **, uint64_t bytes, int *memory, int64_t *id);
extern Error *TRITONBACKEND_ResponseSend(Response *, uint32_t flags, Error *);
extern Error *TRITONBACKEND_ModelInstanceReportStatistics(Instance *, Request *, bool success, uint64_t exec_start,
                                                          uint64_t compute_start, uint64_t compute_end, uint64_t exec_end);

typedef struct {
    Request *request;
    Factory *factory;
    Instance *instance;
    char *prompt;
    char stops[16][256];
    int stop_count;
    long max_tokens;
    uint64_t seed;
    bool log_probs, stream, vllm;
    uint32_t prompt_tokens;
} Job;

static void ok(Error *error) {
    if (error) TRITONSERVER_ErrorDelete(error);
}

static uint64_t now_ns(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

/* All bytes of an input, or NULL when the request does not have it. The caller frees them. */
static char *bytes_of(Request *request, const char *name, uint64_t *size) {
    Input *input = NULL;
    Error *missing = TRITONBACKEND_RequestInput(request, name, &input);
    if (missing) {
        TRITONSERVER_ErrorDelete(missing);
        return NULL;
    }
    uint32_t buffers = 0;
    ok(TRITONBACKEND_InputProperties(input, NULL, NULL, NULL, NULL, size, &buffers));
    char *all = calloc(1, *size + 8);
    for (uint64_t at = 0, n = 0; n < buffers; n++) {
        const void *part = NULL;
        uint64_t length = 0;
        int memory = 0;
        int64_t id = 0;
        ok(TRITONBACKEND_InputBuffer(input, (uint32_t)n, &part, &length, &memory, &id));
        memcpy(all + at, part, length);
        at += length;
    }
    return all;
}

static uint64_t number_of(Request *request, const char *name, uint64_t otherwise) {
    uint64_t size = 0, value = 0;
    char *raw = bytes_of(request, name, &size);
    if (!raw) return otherwise;
    memcpy(&value, raw, size < 8 ? size : 8);
    free(raw);
    return value;
}

static long knob(const char *prompt, const char *name, long otherwise) {
    const char *at = strstr(prompt, name);
    return at ? strtol(at + strlen(name), NULL, 10) : otherwise;
}

static uint64_t mixed(uint64_t state, const char *text) {
    for (; *text; text++) state = (state ^ (unsigned char)*text) * 1099511628211u;
    return state;
}

/* An output of a response; false when the server does not take it any more. */
static bool put(Response *response, const char *name, int type, const void *value, uint64_t bytes) {
    Output *output = NULL;
    void *buffer = NULL;
    int memory = 0;
    int64_t id = 0, one[1] = {1};
    Error *error = TRITONBACKEND_ResponseOutput(response, &output, name, type, one, 1);
    if (!error) error = TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &id);
    if (!error) memcpy(buffer, value, bytes);
    ok(error);
    return !error;
}

static bool put_text(Response *response, const char *name, const char *text) {
    uint32_t length = (uint32_t)strlen(text);
    char *packed = malloc(length + 4u);
    memcpy(packed, &length, 4);
    memcpy(packed + 4, text, length);
    bool whole = put(response, name, BYTES, packed, length + 4u);
    free(packed);
    return whole;
}

/* One response; `reason` is why the text ends with it, or "None". */
static void say(Job *job, const char *text, const char *reason) {
    Response *response = NULL;
    float log_prob = -0.5f;
    uint32_t one = 1;
    Error *error = TRITONBACKEND_ResponseNewFromFactory(&response, job->factory);
    if (!error) {
        bool whole = put_text(response, "text_output", text);
        whole = whole && (!job->log_probs || put(response, "output_log_probs", FP32, &log_prob, sizeof log_prob));
        if (job->vllm) {
            whole = whole && put_text(response, "finish_reason", reason);
            whole = whole && put(response, "num_input_tokens", UINT32, &job->prompt_tokens, sizeof one);
            whole = whole && put(response, "num_output_tokens", UINT32, &one, sizeof one);
        }
        if (whole) ok(TRITONBACKEND_ResponseSend(response, 0, NULL));
        else ok(TRITONBACKEND_ResponseDelete(response));
    }
    ok(error);
}

static void fail(Job *job, int code, const char *message) {
    Response *response = NULL;
    Error *refused = TRITONBACKEND_ResponseNewFromFactory(&response, job->factory);
    Error *error = TRITONSERVER_ErrorNew(code, message);
    if (!refused) ok(TRITONBACKEND_ResponseSend(response, FINAL, error));
    ok(error);
    ok(refused);
}

/* Whether it ran to its end. */
static bool speak(Job *job) {
    static const char *const syllables[] = {"ba", "ke", "li", "mo", "nu", "ra", "so", "ti"};
    static const char *const wide[] = {"é", "ß", "€", "中", "文", "🙂", "𝄞", "ö"};
    const char *prompt = job->prompt;
    long own_end = knob(prompt, "tokens=", 16), delay_ms = knob(prompt, "delay_ms=", 0);
    long broken = knob(prompt, "error_after=", -1), refused = knob(prompt, "error=", -1);
    bool utf8 = knob(prompt, "utf8=", 0) != 0, stopped = false;
    uint64_t state = mixed(mixed(14695981039346656037u + job->seed * 7919u, ""), prompt);
    if (refused >= 0) return fail(job, (int)refused, "the prompt says so"), false;
    long words = 1;
    for (const char *at = prompt; *at; at++) words += *at == ' ';
    if (words > CONTEXT) {
        char message[128];
        snprintf(message, sizeof message, "Prompt length (%ld) exceeds maximum input length (%d).", words, CONTEXT);
        return fail(job, INVALID_ARG, message), false;
    }
    job->prompt_tokens = (uint32_t)words;
    size_t said = 0, room = 1u << 20;
    char *text = calloc(1, room);
    for (long n = 0; n < own_end && n < job->max_tokens && !stopped; n++) {
        bool cancelled = false;
        if (delay_ms) {
            struct timespec pause = {delay_ms / 1000, delay_ms % 1000 * 1000000};
            nanosleep(&pause, NULL);
        }
        ok(TRITONBACKEND_RequestIsCancelled(job->request, &cancelled));
        if (cancelled || n == broken) {
            fail(job, cancelled ? CANCELLED : 1, cancelled ? "cancelled" : "the prompt says so");
            free(text);
            return false;
        }
        char piece[16] = "";
        uint64_t pick = (state ^ state >> 29) * 2654435761u >> 16;
        if (!utf8) snprintf(piece, sizeof piece, " %s%s", syllables[pick & 7], syllables[pick >> 3 & 7]);
        else if (n % 2) snprintf(piece, sizeof piece, "%s", wide[pick & 7]);
        state = mixed(state, piece);
        size_t before = said;
        if (said + sizeof piece < room) said += (size_t)snprintf(text + said, sizeof piece, "%s", piece);
        /* As TensorRT-LLM has it the stop word is said, and is the last; vLLM leaves it out. */
        for (int s = 0; s < job->stop_count && !stopped; s++) {
            char *met = strstr(text, job->stops[s]);
            stopped = met != NULL;
            if (met && job->vllm) piece[met > text + before ? (size_t)(met - text) - before : 0] = 0;
        }
        if (job->stream) say(job, piece, stopped || n + 1 == own_end ? "stop" : n + 1 == job->max_tokens ? "length" : "None");
    }
    if (!job->stream) say(job, text, "None");
    free(text);
    ok(TRITONBACKEND_ResponseFactorySendFlags(job->factory, FINAL));
    return true;
}

/* vLLM's parameters, of a JSON that has no spaces; stop strings with escapes are never met. */
static void read_parameters(Job *job, const char *json) {
    job->vllm = true;
    job->max_tokens = knob(json, "\"max_tokens\":", 16);
    job->seed = (uint64_t)knob(json, "\"seed\":", 0);
    const char *at = strstr(json, "\"stop\":[");
    for (at = at ? at + 8 : NULL; at && *at == '"' && job->stop_count < 16; at += *at == ',') {
        const char *end = strchr(++at, '"');
        if (!end || end - at >= (long)sizeof job->stops[0]) return;
        if (end > at) memcpy(job->stops[job->stop_count++], at, (size_t)(end - at));
        at = end + 1;
    }
}

static void *run(void *argument) {
    Job *job = argument;
    uint64_t began = now_ns();
    bool done = speak(job);
    uint64_t end = now_ns();
    ok(TRITONBACKEND_ModelInstanceReportStatistics(job->instance, job->request, done, began, began, end, end));
    ok(TRITONBACKEND_ResponseFactoryDelete(job->factory));
    ok(TRITONBACKEND_RequestRelease(job->request, RELEASE_ALL));
    free(job->prompt);
    free(job);
    return NULL;
}

Error *TRITONBACKEND_ModelInstanceExecute(Instance *instance, Request **requests, uint32_t count) {
    for (uint32_t n = 0; n < count; n++) {
        Job *job = calloc(1, sizeof *job);
        uint64_t size = 0;
        job->request = requests[n];
        job->instance = instance;
        job->prompt = bytes_of(job->request, "text_input", &size);
        memmove(job->prompt, job->prompt + 4, size - 4);
        job->prompt[size - 4] = 0;
        job->max_tokens = (long)number_of(job->request, "max_tokens", 16);
        job->seed = number_of(job->request, "random_seed", 0);
        job->stream = number_of(job->request, "stream", 0);
        job->log_probs = number_of(job->request, "return_log_probs", 0);
        char *stops = bytes_of(job->request, "stop_words", &size);
        for (uint64_t at = 0; stops && at + 4 <= size && job->stop_count < 16;) {
            uint32_t length;
            memcpy(&length, stops + at, 4);
            if (length < sizeof job->stops[0]) memcpy(job->stops[job->stop_count], stops + at + 4, length);
            job->stop_count += job->stops[job->stop_count][0] != 0;
            at += 4 + length;
        }
        free(stops);
        char *parameters = bytes_of(job->request, "sampling_parameters", &size);
        if (parameters) read_parameters(job, parameters + 4);
        free(parameters);
        ok(TRITONBACKEND_ResponseFactoryNew(&job->factory, job->request));
        pthread_t thread;
        pthread_create(&thread, NULL, run, job);
        pthread_detach(thread);
    }
    return NULL;
}
