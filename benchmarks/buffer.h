/* A growing byte buffer. Zero it to start; out of memory ends the program. */
#ifndef BENCH_BUFFER_H
#define BENCH_BUFFER_H

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct buffer {
    char *bytes;
    size_t count;
    size_t room;
};

/* Makes room for `more` bytes (and a NUL) behind what is there; returns where they go. */
static inline char *buffer_reserve(struct buffer *b, size_t more)
{
    if (b->count + more + 1 > b->room) {
        b->room = (b->count + more + 1) * 2;
        b->bytes = realloc(b->bytes, b->room);
        if (!b->bytes) {
            fputs("out of memory\n", stderr);
            abort();
        }
    }
    return b->bytes + b->count;
}

static inline void buffer_add(struct buffer *b, const char *bytes, size_t count)
{
    if (count == 0) return;
    memcpy(buffer_reserve(b, count), bytes, count);
    b->count += count;
    b->bytes[b->count] = 0;
}

static inline void buffer_add_text(struct buffer *b, const char *text)
{
    buffer_add(b, text, strlen(text));
}

__attribute__((format(printf, 2, 3)))
static inline void buffer_printf(struct buffer *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int need = vsnprintf(NULL, 0, format, args);
    va_end(args);
    char *at = buffer_reserve(b, (size_t)need);
    va_start(args, format);
    vsnprintf(at, (size_t)need + 1, format, args);
    va_end(args);
    b->count += (size_t)need;
}

/* Forgets the first `count` bytes. */
static inline void buffer_drop(struct buffer *b, size_t count)
{
    b->count -= count;
    if (b->count) memmove(b->bytes, b->bytes + count, b->count);
}

static inline void buffer_free(struct buffer *b)
{
    free(b->bytes);
    *b = (struct buffer){0};
}

#endif
