/* A binary min-heap of deadlines. The item knows its place, so that it can be moved or removed. */
#ifndef BENCH_TIMERS_H
#define BENCH_TIMERS_H

#include <stddef.h>
#include <stdint.h>

struct timer {
    int64_t due_ns;
    size_t place; /* 1-based place in the heap; 0 = not in it */
};

enum { TIMERS_MAX = 65536 };

struct timers {
    struct timer *heap[TIMERS_MAX + 1]; /* heap[1] is due first */
    size_t count;
};

static inline void timers_put(struct timers *q, size_t place, struct timer *t)
{
    q->heap[place] = t;
    t->place = place;
}

/* Restores the order around a timer whose deadline has changed. */
static inline void timers_settle(struct timers *q, struct timer *t)
{
    size_t at = t->place;
    while (at > 1 && q->heap[at / 2]->due_ns > t->due_ns) {
        timers_put(q, at, q->heap[at / 2]);
        at /= 2;
    }
    for (size_t child; (child = at * 2) <= q->count; at = child) {
        if (child < q->count && q->heap[child + 1]->due_ns < q->heap[child]->due_ns) child++;
        if (q->heap[child]->due_ns >= t->due_ns) break;
        timers_put(q, at, q->heap[child]);
    }
    timers_put(q, at, t);
}

/* Sets a timer's deadline; puts it into the heap when it is not there. */
static inline void timers_set(struct timers *q, struct timer *t, int64_t due_ns)
{
    t->due_ns = due_ns;
    if (t->place == 0) {
        if (q->count == TIMERS_MAX) return;
        timers_put(q, ++q->count, t);
    }
    timers_settle(q, t);
}

static inline void timers_remove(struct timers *q, struct timer *t)
{
    size_t hole = t->place;
    if (hole == 0) return;
    struct timer *last = q->heap[q->count--];
    t->place = 0;
    if (last == t) return;
    timers_put(q, hole, last);
    timers_settle(q, last);
}

static inline struct timer *timers_first(struct timers *q)
{
    return q->count ? q->heap[1] : NULL;
}

#endif
