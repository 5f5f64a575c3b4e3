/* What the mock engine says: which requests it knows and the bytes of its answers. No sockets, no time. */
#ifndef BENCH_ENGINE_API_H
#define BENCH_ENGINE_API_H

#include <stdbool.h>
#include <stdint.h>

#include "buffer.h"
#include "http.h"

enum api { API_NATIVE, API_CHAT, API_TEXT };

/* What one generation request asks for. */
struct order {
    enum api api;
    bool stream;
    bool in_phase;          /* frames at the ticks of one clock that all such streams share */
    bool tell_progress;     /* native: a frame about the prompt comes before the first token */
    bool short_end;         /* native: the last frame leaves out the settings ("response_fields" was sent) */
    int slot;               /* native: the slot that it shall run on; -1 = any */
    unsigned tokens;
    unsigned prompt_tokens;
    double rate;            /* tokens per second; 0 = as fast as the reader takes them */
    double delay_ms;        /* before the first token */
};

/* What the engine knows about itself, for the routes that tell it. */
struct engine_facts {
    unsigned slots;
    unsigned context;       /* tokens per slot */
    bool *slot_busy;
    unsigned busy;
    uint64_t frames;        /* token frames sent, or tokens of answers that were not streamed */
    uint64_t requests;      /* generation requests */
    uint64_t aborts;        /* streams that the client left before their end */
};

/* Room that one frame and one finish take at most, chunk framing included. */
enum { FRAME_ROOM = 1024, FINISH_ROOM = 4096 };

/* The head of every streamed answer. */
extern const char stream_head[];

/* Reads a complete request. True: it asks for tokens, and `order` says which. False: `reply` holds
 * the complete answer. `body` is NUL-terminated. */
bool api_read(const struct http_reader *request, const char *body, const struct engine_facts *facts,
              struct order *order, struct buffer *reply);

/* Writes one token's frame as one HTTP chunk; returns its size. */
size_t api_frame(char *out, const struct order *order, unsigned place, int64_t now_ns);

/* Writes the frame about the prompt, if the order wants one; returns its size, or 0. */
size_t api_progress(char *out, const struct order *order, int slot);

/* Writes what ends a stream, the last chunk included; returns its size. */
size_t api_finish(char *out, const struct order *order, int slot);

/* Writes a whole answer that is not streamed. */
void api_whole(struct buffer *reply, const struct order *order, int slot, int64_t now_ns);

/* Writes the refusal of a request that finds no free slot. */
void api_no_slot(struct buffer *reply);

#endif
