/* The token texts that the mock engine sends and the load generator reads back.
 *
 * A text is "#<16 hex digits>.<6 hex digits> ": when it was sent (CLOCK_MONOTONIC, ns) and which
 * token of its answer it is, from 0. Because both travel inside the text they survive every proxy,
 * whatever it does to the JSON around them, and latency, loss and order can be told at the far end.
 */
#ifndef BENCH_STAMP_H
#define BENCH_STAMP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

enum { STAMP_TIME_DIGITS = 16, STAMP_PLACE_DIGITS = 6, STAMP_BYTES = 1 + 16 + 1 + 6 + 1 };

static inline int64_t monotonic_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline char *stamp_put_hex(char *out, uint64_t value, int digits)
{
    for (int i = digits - 1; i >= 0; i--, value >>= 4)
        out[i] = "0123456789abcdef"[value & 15];
    return out + digits;
}

/* Writes exactly STAMP_BYTES, without a NUL; returns the end. */
static inline char *stamp_write(char *out, int64_t sent_ns, unsigned place)
{
    *out++ = '#';
    out = stamp_put_hex(out, (uint64_t)sent_ns, STAMP_TIME_DIGITS);
    *out++ = '.';
    out = stamp_put_hex(out, place, STAMP_PLACE_DIGITS);
    *out++ = ' ';
    return out;
}

/* Finds stamps in a byte stream that may be cut anywhere. Zero it before each answer. */
struct stamp_scanner {
    int seen;          /* digits of the running stamp, counted over both numbers; 0 = look for '#' */
    int64_t sent_ns;
    unsigned place;
};

static inline int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    if (c >= 'A' && c <= 'F') return c - 'A' + 10;
    return -1;
}

/* Reads on from *at; returns 1 when a whole stamp stands in the scanner (call again for the next
 * one), 0 when the bytes are used up. */
static inline int stamp_next(struct stamp_scanner *s, const char **at, const char *end)
{
    enum { OPEN = 1, DOT = OPEN + STAMP_TIME_DIGITS, LAST = DOT + 1 + STAMP_PLACE_DIGITS };
    while (*at < end) {
        if (s->seen == 0) {
            const char *hash = memchr(*at, '#', (size_t)(end - *at));
            if (!hash) break;
            *at = hash + 1;
            *s = (struct stamp_scanner){.seen = OPEN};
            continue;
        }
        char c = **at;
        int digit = hex_digit(c);
        if (s->seen == DOT ? c != '.' : digit < 0) {
            s->seen = 0; /* not a stamp after all; c itself may open the next one */
            continue;
        }
        ++*at;
        if (s->seen < DOT) s->sent_ns = s->sent_ns << 4 | digit;
        else if (s->seen > DOT) s->place = s->place << 4 | (unsigned)digit;
        if (++s->seen == LAST) {
            s->seen = 0;
            return 1;
        }
    }
    *at = end;
    return 0;
}

#endif
