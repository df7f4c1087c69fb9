/*
 * Frames for the tests of the codec. A sample is made from a layout, which is a row of the
 * protocol's table in one-letter fields, so that what each of its bytes means is known without
 * asking the codec.
 */
#ifndef TESTS_UNIT_WIRE_SAMPLES_H
#define TESTS_UNIT_WIRE_SAMPLES_H

#include "wire/wire.h"

/*
 * 1 2 4 8  an integer of so many bytes      S  a string, "sss"
 * I        a schema id                      B  bytes, "bbb"
 * 0 P      a tag: absent, present           L  the count of a list of two items, which follow
 * M        max_in_flight, 1                 ( ) a length, and what it is the length of
 * |        the frame might end here too
 */
#define INDEPENDENT "(I(00)B)"
#define DEPENDENT "(I(PSP8)B)"

struct layout {
	uint8_t type, flags;
	struct wire_version version;
	const char *fields;
};

/* A frame, and what each of its bytes is: n(umber), s(tring), b(ytes), t(ag), M, l(ength or count,
 * in the first of its four bytes), h(eader), and a space for the rest of a length. */
struct sample {
	struct wire_version version;
	uint8_t bytes[512];
	char meaning[512];
	size_t length;
	size_t may_end; /* where it might end as well, or 0 */
};

struct sample sample_make(const struct layout *layout);
struct sample sample_of(uint8_t type, uint8_t flags, struct wire_version version,
			const char *fields);

/* Adds a length or count; the header's stays what it was. */
void sample_length(struct sample *sample, uint32_t length);

/*
 * Decodes LENGTH bytes in memory of just that size, so that a checker sees what is read beyond, as
 * one frame that takes all of them.
 */
enum wire_verdict sample_decode_exact(const uint8_t *bytes, size_t length,
				      struct wire_version version, const char **why);

#endif
