/*
 * Memory that cannot be had, for code that is compiled with -include of this file: allocations are
 * counted, and the one that the test names fails, alone or with all that follow.
 */
#ifndef TESTS_UNIT_FAILING_MEMORY_H
#define TESTS_UNIT_FAILING_MEMORY_H

#include "base/base.h"

#include <stdlib.h>
#include <string.h>

/* From now on number WHICH, from 1, fails; ALL: and those that follow, until failing_end. */
void failing_begin(long which, bool all);
void failing_end(void);

/* An allocation of the test's own: true when it fails. */
bool failing_now(void);

/* Whether one has failed since failing_begin; how many blocks are allocated. */
bool failing_failed(void);
long failing_allocated(void);

void *failing_malloc(size_t size);
void *failing_calloc(size_t count, size_t size);
char *failing_strdup(const char *text);
void failing_free(void *pointer);

#ifndef FAILING_MEMORY_IS_MINE
#undef strdup
#define malloc failing_malloc
#define calloc failing_calloc
#define strdup failing_strdup
#define free failing_free
#endif

#endif
