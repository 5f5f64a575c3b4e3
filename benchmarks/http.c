#define _GNU_SOURCE
#include "http.h"

#include <stdlib.h>
#include <string.h>

#include "stamp.h" /* hex_digit */

void http_reset(struct http_reader *r, bool is_response, http_body_fn *on_body, void *owner)
{
    r->phase = HTTP_HEAD;
    r->is_response = is_response;
    r->close_after = false;
    r->status = 0;
    r->left = 0;
    r->line = 0;
    r->head_count = 0;
    r->on_body = on_body;
    r->owner = owner;
}

const char *http_header(const struct http_reader *r, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = strstr(r->head, "\r\n"); at; at = strstr(at, "\r\n")) {
        at += 2;
        if (strncasecmp(at, name, length) == 0 && at[length] == ':')
            return at + length + 1 + strspn(at + length + 1, " \t");
    }
    return NULL;
}

/* True when a header's value contains the word, in any case. */
static bool header_says(const struct http_reader *r, const char *name, const char *word)
{
    const char *value = http_header(r, name);
    if (!value) return false;
    const char *found = strcasestr(value, word);
    return found && found < value + strcspn(value, "\r");
}

/* Decides from the complete head how the body is delimited (RFC 9112, section 6.3). */
static void begin_body(struct http_reader *r)
{
    if (r->is_response) {
        const char *space = strchr(r->head, ' ');
        r->status = space ? atoi(space) : 0;
        if (r->status >= 100 && r->status < 200) { /* an interim answer: the real head follows */
            r->head_count = 0;
            r->phase = HTTP_HEAD;
            return;
        }
    }
    r->close_after = header_says(r, "connection", "close");
    const char *length = http_header(r, "content-length");
    if (header_says(r, "transfer-encoding", "chunked")) {
        r->phase = HTTP_CHUNK_SIZE;
    } else if (length) {
        r->left = atoll(length);
        r->phase = r->left > 0 ? HTTP_LENGTH : HTTP_DONE;
    } else if (r->is_response && r->status != 204 && r->status != 304) {
        r->phase = HTTP_TO_CLOSE;
    } else {
        r->phase = HTTP_DONE;
    }
}

static size_t read_head(struct http_reader *r, const char *bytes, size_t count)
{
    size_t before = r->head_count;
    size_t room = sizeof r->head - 1 - before;
    size_t taken = count < room ? count : room;
    memcpy(r->head + before, bytes, taken);
    r->head_count += taken;
    size_t search_from = before > 3 ? before - 3 : 0;
    char *end = memmem(r->head + search_from, r->head_count - search_from, "\r\n\r\n", 4);
    if (!end) {
        if (taken == room) r->phase = HTTP_BROKEN;
        return taken;
    }
    r->head_count = (size_t)(end - r->head) + 4;
    r->head[r->head_count] = 0;
    size_t used = r->head_count - before;
    begin_body(r);
    return used;
}

static size_t read_body(struct http_reader *r, const char *bytes, size_t count, enum http_phase then)
{
    size_t taken = (int64_t)count < r->left ? count : (size_t)r->left;
    r->on_body(r->owner, bytes, taken);
    r->left -= (int64_t)taken;
    if (r->left == 0) r->phase = then;
    return taken;
}

/* One character of a line that frames the chunks. */
static void read_chunk_line(struct http_reader *r, char c)
{
    if (c == '\r') return;
    if (r->phase == HTTP_CHUNK_SIZE) {
        if (c == '\n') {
            r->phase = r->left > 0 ? HTTP_CHUNK : HTTP_TRAILER;
            r->line = 0;
            return;
        }
        int digit = hex_digit(c);
        if (digit >= 0 && r->line < 15) r->left = r->left << 4 | digit;
        else if (r->line == 0) r->phase = HTTP_BROKEN;
        else r->line = 15; /* an extension: the rest of the line says nothing about the size */
        r->line++;
    } else if (r->phase == HTTP_CHUNK_END) {
        r->phase = c == '\n' ? HTTP_CHUNK_SIZE : HTTP_BROKEN;
        r->line = 0;
    } else if (c == '\n') { /* trailer: an empty line ends the message */
        if (r->line == 0) r->phase = HTTP_DONE;
        r->line = 0;
    } else {
        r->line++;
    }
}

size_t http_read(struct http_reader *r, const char *bytes, size_t count)
{
    size_t used = 0;
    while (used < count && r->phase != HTTP_DONE && r->phase != HTTP_BROKEN) {
        switch (r->phase) {
        case HTTP_HEAD:
            used += read_head(r, bytes + used, count - used);
            break;
        case HTTP_LENGTH:
            used += read_body(r, bytes + used, count - used, HTTP_DONE);
            break;
        case HTTP_CHUNK:
            used += read_body(r, bytes + used, count - used, HTTP_CHUNK_END);
            break;
        case HTTP_TO_CLOSE:
            r->on_body(r->owner, bytes + used, count - used);
            used = count;
            break;
        default:
            read_chunk_line(r, bytes[used++]);
        }
    }
    return used;
}
