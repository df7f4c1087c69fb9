/*
 * What every room uses: assertions that are always compiled in, magic numbers for objects that
 * cross a void pointer, and a few helpers for sizes.
 *
 * A failed ASSERT is a bug in this program. It is never the answer to what a client sent, to a
 * configuration or to memory that could not be had.
 */
#ifndef BASE_BASE_H
#define BASE_BASE_H

#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ASSERT(condition)                                                                          \
	do {                                                                                       \
		if (!(condition))                                                                  \
			assert_failed(#condition, __FILE__, __LINE__, __func__);                   \
	} while (0)

/* Prints the condition and its place on standard error and aborts. */
_Noreturn void assert_failed(const char *condition, const char *file, int line,
			     const char *function);

/* Every struct that arrives as a void pointer starts with `unsigned magic`. */
#define ASSERT_MAGIC(object, number) ASSERT((object) != NULL && (object)->magic == (number))

#define ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* The struct that contains `member` at `pointer`. */
#define CONTAINER_OF(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#if defined(__GNUC__) || defined(__clang__)
#define PRINTF_LIKE(format_index, first_argument)                                                  \
	__attribute__((format(printf, format_index, first_argument)))
#else
#define PRINTF_LIKE(format_index, first_argument)
#endif

static inline size_t size_min(size_t a, size_t b)
{
	return a < b ? a : b;
}

static inline size_t size_max(size_t a, size_t b)
{
	return a > b ? a : b;
}

/* a + b, or SIZE_MAX where the sum does not fit. */
static inline size_t size_add(size_t a, size_t b)
{
	return b > SIZE_MAX - a ? SIZE_MAX : a + b;
}

#endif
