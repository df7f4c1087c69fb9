/*
 * Text that people read, built in a bounded array: it is cut, on a character boundary, rather than
 * overrun, and always ends in NUL. Also UTF-8, and the escaping of names that clients chose.
 */
#ifndef BASE_TEXT_H
#define BASE_TEXT_H

#include "base/base.h"

/* Bytes that arrive or leave; not terminated, may hold NUL. */
struct span {
	const uint8_t *data;
	size_t length;
};

#define SPAN_LITERAL(text) ((struct span){(const uint8_t *)(text), sizeof(text) - 1})

struct span span_of(const char *text);
bool span_equal(struct span a, struct span b);

struct text {
	char *data;
	size_t size; /* of the array, at least 1 */
	size_t length;
	bool cut; /* something did not fit */
};

#define TEXT_INIT(array)                                                                           \
	((struct text){.data = ((array)[0] = '\0', (array)), .size = sizeof(array)})

void text_add(struct text *text, const char *format, ...) PRINTF_LIKE(2, 3);
void text_add_bytes(struct text *text, const char *bytes, size_t length);

/* How many bytes of a client's name are shown. */
#define TEXT_NAME_MAX 128

/*
 * Adds at most TEXT_NAME_MAX bytes of NAME, cut on a character boundary; control characters
 * (C0, DEL, C1), backslashes and bytes that are not UTF-8 become \xHH.
 */
void text_add_name(struct text *text, struct span name);

/* The part of NAME that text_add_name shows. */
struct span text_name_shown(struct span name);

/*
 * The first character of BYTES (not empty), or the first byte where that is none, as text_add_name
 * shows it. Returns how many bytes of BYTES that took.
 */
#define TEXT_ESCAPED_MAX 8
size_t text_escape(struct span bytes, char escaped[TEXT_ESCAPED_MAX], size_t *escaped_length);

/* True when BYTES are UTF-8 as RFC 3629 defines it; U+0000 is allowed. */
bool utf8_valid(const uint8_t *bytes, size_t length);

/* The largest length <= LIMIT at which the valid UTF-8 text BYTES may be cut. */
size_t utf8_cut(const uint8_t *bytes, size_t length, size_t limit);

#endif
