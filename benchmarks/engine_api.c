#define _GNU_SOURCE
#include "engine_api.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json.h"
#include "stamp.h"

const char stream_head[] =
    "HTTP/1.1 200 OK\r\nServer: mock-engine\r\nContent-Type: text/event-stream\r\n"
    "Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n";

static const char chat_template[] =
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/* llama.cpp repeats these in the last frame of each answer; they are sent so that reading them is paid for. */
#define SAMPLING                                                                                      \
    "\"temperature\":0.800000011920929,\"dynatemp_range\":0.0,\"dynatemp_exponent\":1.0,\"top_k\":40,"  \
    "\"top_p\":0.949999988079071,\"min_p\":0.05000000074505806,\"top_n_sigma\":-1.0,"                   \
    "\"xtc_probability\":0.0,\"xtc_threshold\":0.10000000149011612,\"typical_p\":1.0,"                  \
    "\"repeat_last_n\":64,\"repeat_penalty\":1.0,\"presence_penalty\":0.0,\"frequency_penalty\":0.0,"    \
    "\"dry_multiplier\":0.0,\"dry_base\":1.75,\"dry_allowed_length\":2,\"dry_penalty_last_n\":64,"       \
    "\"mirostat\":0,\"mirostat_tau\":5.0,\"mirostat_eta\":0.10000000149011612,\"n_keep\":0,"            \
    "\"n_discard\":0,\"ignore_eos\":false,\"n_probs\":0,\"min_keep\":0,\"logit_bias\":[],"               \
    "\"grammar\":\"\",\"stop\":[],\"samplers\":[\"penalties\",\"dry\",\"top_n_sigma\",\"top_k\","         \
    "\"typ_p\",\"top_p\",\"min_p\",\"xtc\",\"temperature\"],\"speculative.types\":\"none\","             \
    "\"timings_per_token\":false,\"post_sampling_probs\":false,\"lora\":[]"

/* ---- answers that are no generation ---- */

static void reply_with(struct buffer *reply, const char *status, const char *type, const struct buffer *body)
{
    buffer_printf(reply, "HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\n\r\n", status, type, body->count);
    buffer_add(reply, body->bytes, body->count);
}

static void reply_error(struct buffer *reply, const char *status, const char *type, const char *message)
{
    struct buffer body = {0};
    buffer_printf(&body, "{\"error\":{\"code\":%d,\"type\":\"%s\",\"message\":\"%s\"}}", atoi(status), type, message);
    reply_with(reply, status, "application/json", &body);
    buffer_free(&body);
}

void api_no_slot(struct buffer *reply)
{
    reply_error(reply, "503 Service Unavailable", "unavailable_error",
                "every slot of the mock engine is taken: start it with more --slots");
}

static void write_health(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)facts, (void)request;
    buffer_add_text(body, "{\"status\":\"ok\"}");
}

static void write_props(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)request;
    buffer_printf(body, "{\"default_generation_settings\":{\"params\":{\"seed\":4294967295,\"n_predict\":-1,"
                        "\"stream\":false," SAMPLING "},\"n_ctx\":%u},\"total_slots\":%u,\"model_alias\":\"mock\","
                        "\"model_ftype\":\"all F32\",\"model_path\":\"mock.gguf\","
                        "\"modalities\":{\"vision\":false,\"audio\":false},\"endpoint_slots\":true,"
                        "\"endpoint_props\":true,\"endpoint_metrics\":true,\"chat_template\":",
                  facts->context, facts->slots);
    json_write_text(body, chat_template, sizeof chat_template - 1);
    buffer_add_text(body, ",\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"build_info\":\"b0-mock\",\"is_sleeping\":false}");
}

static void write_slots(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)request;
    for (unsigned i = 0; i < facts->slots; i++)
        buffer_printf(body, "%c{\"id\":%u,\"n_ctx\":%u,\"speculative\":false,\"is_processing\":%s}", i ? ',' : '[', i,
                      facts->context, facts->slot_busy[i] ? "true" : "false");
    buffer_add_text(body, "]");
}

static void write_models(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)request;
    buffer_printf(body, "{\"object\":\"list\",\"data\":[{\"id\":\"mock\",\"object\":\"model\",\"created\":1700000000,"
                        "\"owned_by\":\"mock\",\"max_model_len\":%u,\"meta\":{\"vocab_type\":1,\"n_vocab\":65536,"
                        "\"n_ctx\":%u,\"n_ctx_train\":%u,\"n_embd\":64,\"n_params\":171584,\"size\":686336,"
                        "\"ftype\":\"all F32\"}}]}", facts->context, facts->context, facts->context);
}

/* What routers ask to learn what stands behind them. */
static void write_server_info(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)facts, (void)request;
    buffer_add_text(body, "{\"status\":\"ok\",\"version\":\"mock\",\"model_path\":\"mock\",\"model_id\":\"mock\","
                          "\"served_model_name\":\"mock\",\"tokenizer_path\":\"mock\",\"is_generation\":true,"
                          "\"tp_size\":1,\"dp_size\":1}");
}

static void write_metrics(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)request;
    const struct {
        const char *name, *kind;
        uint64_t value;
    } series[] = {
        {"mock_frames_total", "counter", facts->frames},
        {"mock_requests_total", "counter", facts->requests},
        {"mock_aborts_total", "counter", facts->aborts},
        {"llamacpp:tokens_predicted_total", "counter", facts->frames},
        {"llamacpp:prompt_tokens_total", "counter", facts->requests * 8},
        {"llamacpp:requests_processing", "gauge", facts->busy},
        {"llamacpp:requests_deferred", "gauge", 0},
        {"vllm:num_requests_running", "gauge", facts->busy},
        {"vllm:num_requests_waiting", "gauge", 0},
    };
    for (size_t i = 0; i < sizeof series / sizeof *series; i++)
        buffer_printf(body, "# TYPE %s %s\n%s %llu\n", series[i].name, series[i].kind, series[i].name,
                      (unsigned long long)series[i].value);
}

/* The mock's tokenizer: two bytes of text are one token, and an odd last byte is one of its own.
 * It can be undone, so the knobs of a prompt also arrive when it is sent as token ids. */
static void write_tokens(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)facts;
    struct buffer text = {0};
    json_read_text(json_member(request, "content"), &text);
    buffer_add_text(body, "{\"tokens\":[");
    for (size_t i = 0; i < text.count; i += 2) {
        unsigned id = (unsigned char)text.bytes[i];
        if (i + 1 < text.count) id = id << 8 | (unsigned char)text.bytes[i + 1];
        buffer_printf(body, i ? ",%u" : "%u", id);
    }
    buffer_add_text(body, "]}");
    buffer_free(&text);
}

static void read_tokens(const char *array, struct buffer *text)
{
    for (const char *at = json_first(array); at; at = json_next(at)) {
        unsigned id = (unsigned)json_read_number(at, 0);
        char pair[2] = {(char)(id >> 8), (char)id};
        if (id > 255) buffer_add(text, pair, 2);
        else buffer_add(text, pair + 1, 1);
    }
}

static void write_detokenized(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)facts;
    struct buffer text = {0};
    read_tokens(json_member(request, "tokens"), &text);
    buffer_add_text(body, "{\"content\":");
    json_write_text(body, text.bytes, text.count);
    buffer_add_text(body, "}");
    buffer_free(&text);
}

static void write_templated(struct buffer *body, const struct engine_facts *facts, const char *request)
{
    (void)facts;
    struct buffer text = {0};
    for (const char *m = json_first(json_member(request, "messages")); m; m = json_next(m)) {
        buffer_add_text(&text, "<|im_start|>");
        json_read_text(json_member(m, "role"), &text);
        buffer_add_text(&text, "\n");
        json_read_text(json_member(m, "content"), &text);
        buffer_add_text(&text, "<|im_end|>\n");
    }
    buffer_add_text(&text, "<|im_start|>assistant\n");
    buffer_add_text(body, "{\"prompt\":");
    json_write_text(body, text.bytes, text.count);
    buffer_add_text(body, "}");
    buffer_free(&text);
}

static const struct {
    const char *method, *path, *type;
    void (*write)(struct buffer *body, const struct engine_facts *facts, const char *request);
} plain_routes[] = {
    {"GET", "/health", "application/json", write_health},
    {"GET", "/v1/health", "application/json", write_health},
    {"GET", "/props", "application/json", write_props},
    {"GET", "/slots", "application/json", write_slots},
    {"GET", "/v1/models", "application/json", write_models},
    {"GET", "/metrics", "text/plain; version=0.0.4", write_metrics},
    {"GET", "/version", "application/json", write_server_info},
    {"GET", "/get_model_info", "application/json", write_server_info},
    {"GET", "/get_server_info", "application/json", write_server_info},
    {"GET", "/server_info", "application/json", write_server_info},
    {"GET", "/model_info", "application/json", write_server_info},
    {"POST", "/tokenize", "application/json", write_tokens},
    {"POST", "/detokenize", "application/json", write_detokenized},
    {"POST", "/apply-template", "application/json", write_templated},
};

static const struct {
    const char *path;
    enum api api;
} generation_routes[] = {
    {"/completion", API_NATIVE},
    {"/v1/chat/completions", API_CHAT},
    {"/v1/completions", API_TEXT},
};

/* ---- reading requests ---- */

/* The knobs stand in the prompt as "[bench n=200 rate=50 phase=1 delay=0]", because prompts pass through
 * every proxy unchanged. Without them max_tokens (n_predict) counts and nothing is paced. */
static void read_knobs(const char *text, struct order *order)
{
    const char *at = strstr(text, "[bench ");
    if (!at) return;
    for (at += strlen("[bench "); *at && *at != ']'; at += strcspn(at, " ]"), at += strspn(at, " ")) {
        double value = strtod(at + strcspn(at, "= ]") + (at[strcspn(at, "= ]")] == '='), NULL);
        if (strncmp(at, "n=", 2) == 0) order->tokens = (unsigned)value;
        else if (strncmp(at, "rate=", 5) == 0) order->rate = value;
        else if (strncmp(at, "phase=", 6) == 0) order->in_phase = value != 0;
        else if (strncmp(at, "delay=", 6) == 0) order->delay_ms = value;
    }
}

static void read_order(const char *body, enum api api, struct order *order)
{
    struct buffer decoded = {0};
    const char *limit = json_member(body, api == API_NATIVE ? "n_predict" : "max_tokens");
    const char *prompt = json_member(body, "prompt");
    double tokens = json_read_number(limit, 16);
    *order = (struct order){.api = api, .slot = -1, .stream = json_read_bool(json_member(body, "stream"), false)};
    if (api == API_NATIVE) {
        order->slot = (int)json_read_number(json_member(body, "id_slot"), -1);
        order->tell_progress = json_read_bool(json_member(body, "return_progress"), false);
        order->short_end = json_first(json_member(body, "response_fields")) != NULL;
    }
    order->tokens = tokens > 0 ? (unsigned)tokens : 16;
    if (prompt && *prompt == '[') {
        read_tokens(prompt, &decoded);
        read_knobs(decoded.count ? decoded.bytes : "", order);
    } else {
        read_knobs(body, order);
    }
    order->prompt_tokens = (unsigned)(strlen(body) / 4);
    if (order->tokens < 1) order->tokens = 1;
    if (order->tokens > 10000000) order->tokens = 10000000;
    buffer_free(&decoded);
}

/* True when the request line asks for this path, with or without a query. */
static bool asks_for(const char *target, const char *path)
{
    size_t length = strlen(path);
    return strncmp(target, path, length) == 0 && strchr(" ?", target[length]);
}

bool api_read(const struct http_reader *request, const char *body, const struct engine_facts *facts,
              struct order *order, struct buffer *reply)
{
    bool is_post = strncmp(request->head, "POST ", 5) == 0;
    const char *target = request->head + strcspn(request->head, " ") + 1;
    for (size_t i = 0; is_post && i < sizeof generation_routes / sizeof *generation_routes; i++) {
        if (!asks_for(target, generation_routes[i].path)) continue;
        if (*body != '{') {
            reply_error(reply, "400 Bad Request", "invalid_request_error", "the body is no JSON object");
            return false;
        }
        read_order(body, generation_routes[i].api, order);
        return true;
    }
    for (size_t i = 0; i < sizeof plain_routes / sizeof *plain_routes; i++) {
        if (is_post != (plain_routes[i].method[0] == 'P') || !asks_for(target, plain_routes[i].path)) continue;
        struct buffer answer = {0};
        plain_routes[i].write(&answer, facts, body);
        reply_with(reply, "200 OK", plain_routes[i].type, &answer);
        buffer_free(&answer);
        return false;
    }
    reply_error(reply, "404 Not Found", "not_found_error", "the mock engine has no such route");
    return false;
}

/* ---- generation ---- */

/* Puts the chunk's size line before the `count` bytes at `out + CHUNK_LINE`, and its line end behind them;
 * returns the size of the chunk, which begins at `out`. */
enum { CHUNK_LINE = 5 };

static size_t close_chunk(char *out, size_t count)
{
    char line[CHUNK_LINE + 1];
    int digits = snprintf(line, sizeof line, "%zx\r\n", count);
    if (digits < CHUNK_LINE) memmove(out + digits, out + CHUNK_LINE, count);
    memcpy(out, line, (size_t)digits);
    memcpy(out + digits + count, "\r\n", 2);
    return (size_t)digits + count + 2;
}

size_t api_frame(char *out, const struct order *order, unsigned place, int64_t now_ns)
{
    char text[STAMP_BYTES + 1];
    *stamp_write(text, now_ns, place) = 0;
    char *body = out + CHUNK_LINE;
    size_t room = FRAME_ROOM - CHUNK_LINE - 2;
    int count = 0;
    switch (order->api) {
    case API_NATIVE:
        count = snprintf(body, room, "data: {\"index\":0,\"content\":\"%s\",\"tokens\":[%u],\"stop\":false,"
                                     "\"id_slot\":-1,\"tokens_predicted\":%u,\"tokens_evaluated\":%u}\n\n",
                         text, 300 + place % 30000, place + 1, order->prompt_tokens);
        break;
    case API_CHAT:
        count = snprintf(body, room, "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\","
                                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                                     "\"delta\":{%s\"content\":\"%s\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                         place == 0 ? "\"role\":\"assistant\"," : "", text);
        break;
    case API_TEXT:
        count = snprintf(body, room, "data: {\"id\":\"cmpl-mock\",\"object\":\"text_completion\","
                                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                                     "\"text\":\"%s\",\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                         text);
        break;
    }
    return close_chunk(out, (size_t)count);
}

size_t api_progress(char *out, const struct order *order, int slot)
{
    if (!order->tell_progress) return 0;
    int count = snprintf(out + CHUNK_LINE, FRAME_ROOM - CHUNK_LINE - 2,
                         "data: {\"index\":0,\"content\":\"\",\"tokens\":[],\"stop\":false,\"id_slot\":%d,"
                         "\"tokens_predicted\":0,\"tokens_evaluated\":%u,\"prompt_progress\":{\"total\":%u,"
                         "\"cache\":0,\"processed\":%u,\"time_ms\":1}}\n\n",
                         slot, order->prompt_tokens, order->prompt_tokens, order->prompt_tokens);
    return close_chunk(out, (size_t)count);
}

/* The object that ends every native answer; `text` is empty when the answer was streamed. */
static int write_native_end(char *out, size_t room, const struct order *order, int slot, const char *text)
{
    int count = snprintf(out, room,
                         "{\"index\":0,\"content\":\"%s\",\"tokens\":[],\"id_slot\":%d,\"stop\":true,"
                         "\"tokens_predicted\":%u,\"tokens_evaluated\":%u,",
                         text, slot, order->tokens, order->prompt_tokens);
    if (!order->short_end)
        count += snprintf(out + count, room - (size_t)count,
                          "\"model\":\"mock\",\"generation_settings\":{\"seed\":42,\"max_tokens\":%u,"
                          "\"n_predict\":%u,\"stream\":%s," SAMPLING "},\"prompt\":\"\",\"has_new_line\":false,"
                          "\"stopping_word\":\"\",\"tokens_cached\":%u,",
                          order->tokens, order->tokens, order->stream ? "true" : "false",
                          order->prompt_tokens + order->tokens - 1);
    return count + snprintf(out + count, room - (size_t)count,
                            "\"truncated\":false,\"stop_type\":\"limit\",\"timings\":{\"cache_n\":0,"
                            "\"prompt_n\":%u,\"prompt_ms\":1.25,\"prompt_per_token_ms\":0.0125,"
                            "\"prompt_per_second\":80000.0,\"predicted_n\":%u,\"predicted_ms\":10.5,"
                            "\"predicted_per_token_ms\":0.105,\"predicted_per_second\":9523.809}}",
                            order->prompt_tokens, order->tokens);
}

size_t api_finish(char *out, const struct order *order, int slot)
{
    char *body = out + CHUNK_LINE;
    size_t room = FINISH_ROOM - 64;
    int count = 0;
    switch (order->api) {
    case API_NATIVE:
        memcpy(body, "data: ", 6);
        count = 6 + write_native_end(body + 6, room - 6, order, slot, "");
        memcpy(body + count, "\n\n", 2);
        count += 2;
        break;
    case API_CHAT:
        count = snprintf(body, room, "data: {\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion.chunk\","
                                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                                     "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n"
                                     "data: [DONE]\n\n");
        break;
    case API_TEXT:
        count = snprintf(body, room, "data: {\"id\":\"cmpl-mock\",\"object\":\"text_completion\","
                                     "\"created\":1700000000,\"model\":\"mock\",\"choices\":[{\"index\":0,"
                                     "\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"length\"}]}\n\n"
                                     "data: [DONE]\n\n");
        break;
    }
    size_t used = close_chunk(out, (size_t)count);
    memcpy(out + used, "0\r\n\r\n", 5);
    return used + 5;
}

void api_whole(struct buffer *reply, const struct order *order, int slot, int64_t now_ns)
{
    struct buffer text = {0}, body = {0};
    char *at = buffer_reserve(&text, (size_t)order->tokens * STAMP_BYTES);
    for (unsigned place = 0; place < order->tokens; place++)
        at = stamp_write(at, now_ns, place);
    *at = 0;
    const char *usage = ",\"logprobs\":null,\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":%u,"
                        "\"completion_tokens\":%u,\"total_tokens\":%u}}";
    switch (order->api) {
    case API_NATIVE: {
        size_t room = (size_t)order->tokens * STAMP_BYTES + FINISH_ROOM;
        body.count = (size_t)write_native_end(buffer_reserve(&body, room), room, order, slot, text.bytes);
        break;
    }
    case API_CHAT:
        buffer_printf(&body, "{\"id\":\"chatcmpl-mock\",\"object\":\"chat.completion\",\"created\":1700000000,"
                             "\"model\":\"mock\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\","
                             "\"content\":\"%s\"}", text.bytes);
        break;
    case API_TEXT:
        buffer_printf(&body, "{\"id\":\"cmpl-mock\",\"object\":\"text_completion\",\"created\":1700000000,"
                             "\"model\":\"mock\",\"choices\":[{\"index\":0,\"text\":\"%s\"", text.bytes);
        break;
    }
    if (order->api != API_NATIVE) {
        unsigned prompt = order->prompt_tokens, out = order->tokens;
        buffer_printf(&body, usage, prompt, out, prompt + out);
    }
    reply_with(reply, "200 OK", "application/json", &body);
    buffer_free(&text);
    buffer_free(&body);
}
