/* What is known of a frame before its payload is looked at: its type and its header. */
#include "wire/wire.h"

static const char *const type_names[] = {
#define TYPE(id, name, sender, streams, codec) [WIRE_##id] = name,
#include "wire/types.tbl"
#undef TYPE
};

_Static_assert(ARRAY_LENGTH(type_names) == WIRE_TYPE_END, "types.tbl lacks a type of wire.h");
_Static_assert(WIRE_TYPE_END <= 32, "a set of types no longer fits into 32 bits");

const char *wire_type_name(uint8_t type)
{
	return type < WIRE_TYPE_END ? type_names[type] : NULL;
}

int wire_version_compare(struct wire_version a, struct wire_version b)
{
	if (a.major != b.major)
		return a.major < b.major ? -1 : 1;
	if (a.minor != b.minor)
		return a.minor < b.minor ? -1 : 1;
	return 0;
}
