/* What is known of a frame before its payload is looked at: its type and its header. */
#include "wire/wire.h"

enum type_sender { SENDER_CLIENT, SENDER_SERVER, SENDER_BOTH };
enum type_streams { STREAMS_CONTROL, STREAMS_OTHER };

struct type_row {
	const char *name;
	enum type_sender sender;
	enum type_streams streams;
};

static const struct type_row type_rows[] = {
#define TYPE(id, name, sender, streams, codec)                                                     \
	[WIRE_##id] = {name, SENDER_##sender, STREAMS_##streams},
#include "wire/types.tbl"
#undef TYPE
};

_Static_assert(ARRAY_LENGTH(type_rows) == WIRE_TYPE_END, "types.tbl lacks a type of wire.h");

/* NULL when TYPE is unknown. */
static const struct type_row *type_find(uint8_t type)
{
	if (type >= WIRE_TYPE_END || type_rows[type].name == NULL)
		return NULL;
	return &type_rows[type];
}

const char *wire_type_name(uint8_t type)
{
	const struct type_row *row = type_find(type);

	return row == NULL ? NULL : row->name;
}

bool wire_type_from_server(uint8_t type)
{
	const struct type_row *row = type_find(type);

	return row != NULL && row->sender == SENDER_SERVER;
}

bool wire_stream_legal(uint8_t type, uint32_t stream)
{
	const struct type_row *row = type_find(type);

	return row == NULL || (row->streams == STREAMS_CONTROL) == (stream == 0);
}

int wire_version_compare(struct wire_version a, struct wire_version b)
{
	if (a.major != b.major)
		return a.major < b.major ? -1 : 1;
	if (a.minor != b.minor)
		return a.minor < b.minor ? -1 : 1;
	return 0;
}
