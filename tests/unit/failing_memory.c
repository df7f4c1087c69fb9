#define FAILING_MEMORY_IS_MINE
#include "failing_memory.h"

static long countdown; /* allocations until one fails; 0: none does */
static bool lasting;   /* then all fail that follow */
static bool failed;    /* one did */
static long allocated;

void failing_begin(long which, bool all)
{
	countdown = which;
	lasting = all;
	failed = false;
}

void failing_end(void)
{
	countdown = 0;
	lasting = false;
}

bool failing_now(void)
{
	if (failed && lasting)
		return true;
	if (countdown == 0 || --countdown > 0)
		return false;
	failed = true;
	return true;
}

bool failing_failed(void)
{
	return failed;
}

long failing_allocated(void)
{
	return allocated;
}

void *failing_malloc(size_t size)
{
	void *pointer = failing_now() ? NULL : malloc(size);

	allocated += pointer != NULL;
	return pointer;
}

void *failing_calloc(size_t count, size_t size)
{
	void *pointer = failing_now() ? NULL : calloc(count, size);

	allocated += pointer != NULL;
	return pointer;
}

char *failing_strdup(const char *text)
{
	char *copy = failing_malloc(strlen(text) + 1);

	return copy == NULL ? NULL : strcpy(copy, text);
}

void failing_free(void *pointer)
{
	allocated -= pointer != NULL;
	free(pointer);
}
