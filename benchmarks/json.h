/* Just enough JSON to read requests: walk a document in place, decode the strings that matter.
 *
 * A position is a pointer to the first character of a value; NULL means "not there". Documents are
 * NUL-terminated. Malformed input ends a walk early; it never reads past the NUL.
 */
#ifndef BENCH_JSON_H
#define BENCH_JSON_H

#include <stdbool.h>

#include "buffer.h"

/* The value of a member of the object at `object`. */
const char *json_member(const char *object, const char *key);

/* The first element of the array at `array`, and the one behind `element`. */
const char *json_first(const char *array);
const char *json_next(const char *element);

/* Appends the decoded text of the string at `value`; false when it is no string. */
bool json_read_text(const char *value, struct buffer *out);

/* Numbers and booleans, or the given default. */
double json_read_number(const char *value, double otherwise);
bool json_read_bool(const char *value, bool otherwise);

/* Appends text as a JSON string, quotes included. */
void json_write_text(struct buffer *out, const char *text, size_t count);

#endif
