/* Four FNV-1a-64 hashes, big-endian: the first of the document, each next of the one before it. */
#include "base/schema.h"

#define FNV1A64_OFFSET_BASIS UINT64_C(0xcbf29ce484222325)
#define FNV1A64_PRIME UINT64_C(0x00000100000001b3)

uint64_t fnv1a64(const uint8_t *bytes, size_t length)
{
	uint64_t hash = FNV1A64_OFFSET_BASIS;

	for (size_t i = 0; i < length; i++)
		hash = (hash ^ bytes[i]) * FNV1A64_PRIME;
	return hash;
}

static void schema_put_u64(uint8_t *bytes, uint64_t value)
{
	for (size_t i = 0; i < 8; i++)
		bytes[i] = (uint8_t)(value >> (56 - 8 * i));
}

void schema_id(const uint8_t *document, size_t length, uint8_t id[SCHEMA_ID_SIZE])
{
	schema_put_u64(id, fnv1a64(document, length));
	for (size_t i = 8; i < SCHEMA_ID_SIZE; i += 8)
		schema_put_u64(id + i, fnv1a64(id + i - 8, 8));
}
