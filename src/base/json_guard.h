/*
 * JSON from outside, kept from two weaknesses of parsers. They recurse, and session threads have
 * small stacks: THREAD_STACK bytes would be used up by a text of brackets only. And not every
 * version of jansson survives that memory runs out while it reads a string (2.14 does not).
 */
#ifndef BASE_JSON_GUARD_H
#define BASE_JSON_GUARD_H

#include "base/text.h"

#include <jansson.h>

/*
 * True when no parser finds arrays and objects nested deeper than LIMIT in TEXT. It need not be
 * valid JSON.
 */
bool json_depth_ok(struct span text, size_t limit);

/*
 * json_loadb. False when memory was missing; otherwise *VALUE is the caller's, or NULL with *ERROR
 * set. The first call, which must come before any other value is made, gives jansson our own
 * allocation functions.
 */
bool json_read(struct span text, size_t flags, json_t **value, json_error_t *error);

#endif
