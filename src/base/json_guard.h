/*
 * A look at JSON from outside before a parser sees it. Parsers recurse, and session threads have
 * small stacks: THREAD_STACK bytes would be used up by a text of brackets only.
 */
#ifndef BASE_JSON_GUARD_H
#define BASE_JSON_GUARD_H

#include "base/text.h"

/*
 * True when no parser finds arrays and objects nested deeper than LIMIT in TEXT. It need not be
 * valid JSON.
 */
bool json_depth_ok(struct span text, size_t limit);

#endif
