/* An incremental HTTP/1.1 message reader, for the engine (requests) and the load generator (responses). */
#ifndef BENCH_HTTP_H
#define BENCH_HTTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum http_phase {
    HTTP_HEAD,       /* up to the empty line */
    HTTP_LENGTH,     /* a body of known length */
    HTTP_CHUNK_SIZE, /* chunked: the line with the size */
    HTTP_CHUNK,      /* chunked: the bytes */
    HTTP_CHUNK_END,  /* chunked: the line end behind the bytes */
    HTTP_TRAILER,    /* chunked: what follows the last chunk */
    HTTP_TO_CLOSE,   /* a response without a length: until the peer closes */
    HTTP_DONE,
    HTTP_BROKEN
};

typedef void http_body_fn(void *owner, const char *bytes, size_t count);

struct http_reader {
    enum http_phase phase;
    bool is_response;
    bool close_after;    /* "Connection: close" was said */
    int status;          /* responses: the status code */
    int64_t left;        /* bytes left of the body or of the chunk */
    size_t line;         /* chunked: bytes on the running size or trailer line */
    size_t head_count;
    char head[8192];     /* NUL-terminated once it is complete */
    http_body_fn *on_body;
    void *owner;
};

/* Begins a new message. */
void http_reset(struct http_reader *r, bool is_response, http_body_fn *on_body, void *owner);

/* Reads on; returns how many of the bytes belong to this message. Stops at HTTP_DONE and HTTP_BROKEN. */
size_t http_read(struct http_reader *r, const char *bytes, size_t count);

/* The value of a header in a complete head (name in lower case), or NULL. It ends at '\r'. */
const char *http_header(const struct http_reader *r, const char *name);

#endif
