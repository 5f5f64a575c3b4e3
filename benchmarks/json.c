#define _GNU_SOURCE
#include "json.h"

#include <stdlib.h>
#include <string.h>

static const char *skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

/* Behind the string that opens at `at`. */
static const char *skip_text(const char *at)
{
    for (at++; *at && *at != '"'; at++)
        if (*at == '\\' && at[1]) at++;
    return *at ? at + 1 : at;
}

/* Behind any value. */
static const char *skip_value(const char *at)
{
    if (*at == '"') return skip_text(at);
    if (*at != '{' && *at != '[') return at + strcspn(at, ",]} \t\r\n");
    int depth = 0;
    while (*at) {
        if (*at == '"') {
            at = skip_text(at);
            continue;
        }
        if (*at == '{' || *at == '[') depth++;
        if ((*at == '}' || *at == ']') && --depth == 0) return at + 1;
        at++;
    }
    return at;
}

const char *json_member(const char *object, const char *key)
{
    if (!object || *(object = skip_space(object)) != '{') return NULL;
    size_t length = strlen(key);
    const char *at = skip_space(object + 1);
    while (*at == '"') {
        const char *name = at + 1;
        at = skip_space(skip_text(at));
        if (*at != ':') return NULL;
        at = skip_space(at + 1);
        if (strncmp(name, key, length) == 0 && name[length] == '"') return at;
        at = skip_space(skip_value(at));
        if (*at != ',') return NULL;
        at = skip_space(at + 1);
    }
    return NULL;
}

const char *json_first(const char *array)
{
    if (!array || *(array = skip_space(array)) != '[') return NULL;
    array = skip_space(array + 1);
    return *array && *array != ']' ? array : NULL;
}

const char *json_next(const char *element)
{
    const char *at = skip_space(skip_value(element));
    return *at == ',' ? skip_space(at + 1) : NULL;
}

static unsigned read_hex4(const char *at)
{
    char digits[5] = {0};
    strncpy(digits, at, 4);
    return (unsigned)strtoul(digits, NULL, 16);
}

static void add_utf8(struct buffer *out, unsigned code)
{
    char bytes[4];
    size_t count;
    if (code < 0x80) {
        bytes[0] = (char)code;
        count = 1;
    } else if (code < 0x800) {
        bytes[0] = (char)(0xC0 | code >> 6);
        bytes[1] = (char)(0x80 | (code & 63));
        count = 2;
    } else if (code < 0x10000) {
        bytes[0] = (char)(0xE0 | code >> 12);
        bytes[1] = (char)(0x80 | (code >> 6 & 63));
        bytes[2] = (char)(0x80 | (code & 63));
        count = 3;
    } else {
        bytes[0] = (char)(0xF0 | code >> 18);
        bytes[1] = (char)(0x80 | (code >> 12 & 63));
        bytes[2] = (char)(0x80 | (code >> 6 & 63));
        bytes[3] = (char)(0x80 | (code & 63));
        count = 4;
    }
    buffer_add(out, bytes, count);
}

/* Decodes the escape at `at` (on the backslash); returns the place behind it. */
static const char *read_escape(const char *at, struct buffer *out)
{
    static const char letters[] = "bfnrt", meanings[] = "\b\f\n\r\t";
    const char *letter = strchr(letters, at[1]);
    if (at[1] == 'u' && strnlen(at, 6) == 6) {
        unsigned code = read_hex4(at + 2);
        at += 6;
        if (code >= 0xD800 && code < 0xDC00 && at[0] == '\\' && at[1] == 'u' && strnlen(at, 6) == 6) {
            code = 0x10000 + ((code - 0xD800) << 10) + (read_hex4(at + 2) - 0xDC00);
            at += 6;
        }
        add_utf8(out, code);
        return at;
    }
    if (!at[1]) return at + 1;
    buffer_add(out, letter ? &meanings[letter - letters] : at + 1, 1);
    return at + 2;
}

bool json_read_text(const char *value, struct buffer *out)
{
    if (!value || *value != '"') return false;
    for (const char *at = value + 1; *at && *at != '"';) {
        size_t plain = strcspn(at, "\\\"");
        buffer_add(out, at, plain);
        at += plain;
        if (*at == '\\') at = read_escape(at, out);
    }
    return true;
}

double json_read_number(const char *value, double otherwise)
{
    if (!value) return otherwise;
    char *end;
    double number = strtod(value, &end);
    return end == value ? otherwise : number;
}

bool json_read_bool(const char *value, bool otherwise)
{
    if (!value) return otherwise;
    if (strncmp(value, "true", 4) == 0) return true;
    return strncmp(value, "false", 5) == 0 ? false : otherwise;
}

void json_write_text(struct buffer *out, const char *text, size_t count)
{
    buffer_add(out, "\"", 1);
    for (size_t i = 0; i < count; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') buffer_printf(out, "\\%c", c);
        else if (c < 0x20) buffer_printf(out, "\\u%04x", c);
        else buffer_add(out, text + i, 1);
    }
    buffer_add(out, "\"", 1);
}
