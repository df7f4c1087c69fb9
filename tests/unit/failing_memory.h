/*
 * Memory that cannot be had, for code that is compiled with -include of this file: allocations are
 * counted, and the one that the test names fails, alone or with all that follow.
 */
#ifndef TESTS_UNIT_FAILING_MEMORY_H
#define TESTS_UNIT_FAILING_MEMORY_H

#include "base/base.h"

#include <stdlib.h>
#include <string.h>

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
