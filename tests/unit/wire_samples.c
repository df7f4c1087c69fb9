/* Frames made from layouts. */
#include "wire_samples.h"

#include <check.h>
#include <stdlib.h>
#include <string.h>

static void sample_add(struct sample *sample, char meaning, uint8_t byte)
{
	ck_assert_uint_lt(sample->length, sizeof(sample->bytes));
	sample->bytes[sample->length] = byte;
	sample->meaning[sample->length++] = meaning;
}

void sample_length(struct sample *sample, uint32_t length)
{
	sample_add(sample, 'l', 0);
	for (int i = 0; i < 3; i++)
		sample_add(sample, ' ', 0);
	wire_put_u32(sample->bytes + sample->length - 4, length);
}

static void sample_field(struct sample *sample, char field)
{
	size_t count = field == 'I' ? WIRE_SCHEMA_SIZE : 3;

	switch (field) {
	case '1':
	case '2':
	case '4':
	case '8':
		count = (size_t)(field - '0');
		/* fall through */
	case 'I':
		/* No two bytes that follow each other are equal: swapped ones are seen. */
		while (count-- > 0)
			sample_add(sample, 'n', (uint8_t)(0x90 + sample->length));
		break;
	case 'S':
	case 'B':
		sample_length(sample, (uint32_t)count);
		while (count-- > 0)
			sample_add(sample, field == 'S' ? 's' : 'b', field == 'S' ? 's' : 'b');
		break;
	case '0':
	case 'P':
		sample_add(sample, 't', field == 'P');
		break;
	case 'L':
		sample_length(sample, 2);
		break;
	case 'M':
		for (uint8_t i = 0; i < 4; i++)
			sample_add(sample, 'M', i == 3);
		break;
	case '|':
		sample->may_end = sample->length;
		break;
	default:
		ck_abort_msg("'%c' is no field", field);
	}
}

struct sample sample_make(const struct layout *layout)
{
	struct sample sample = {.version = layout->version};
	size_t open[4], depth = 0;

	for (int i = 0; i < WIRE_HEADER_SIZE; i++)
		sample_add(&sample, 'h', 0);
	for (const char *field = layout->fields; *field != '\0'; field++) {
		if (*field == '(') {
			open[depth++] = sample.length;
			sample_length(&sample, 0);
		} else if (*field == ')') {
			size_t at = open[--depth];

			wire_put_u32(sample.bytes + at, (uint32_t)(sample.length - at - 4));
		} else {
			sample_field(&sample, *field);
		}
	}
	wire_put_header(sample.bytes, layout->type, layout->flags,
			wire_stream_legal(layout->type, 0) ? 0 : 7,
			(uint32_t)(sample.length - WIRE_HEADER_SIZE));
	return sample;
}

struct sample sample_of(uint8_t type, uint8_t flags, struct wire_version version,
			const char *fields)
{
	struct layout layout = {type, flags, version, fields};

	return sample_make(&layout);
}

enum wire_verdict sample_decode_exact(const uint8_t *bytes, size_t length,
				      struct wire_version version, const char **why)
{
	uint8_t *copy = malloc(length > 0 ? length : 1);
	struct wire_frame frame;
	size_t consumed;
	enum wire_verdict verdict;

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, bytes, length);
	verdict = wire_decode(copy, length, version, &frame, &consumed, why);
	ck_assert_uint_eq(consumed, verdict == WIRE_OK ? length : 0);
	free(copy);
	return verdict;
}
