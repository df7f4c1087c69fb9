/*
 * The codec: frames as bytes, and back. Pure functions over bounded buffers: no I/O, no locks, no
 * globals, no allocation. Server, client library and fuzzers share it.
 *
 * A decoded frame points into the bytes that it was decoded from and lives as long as they do.
 */
#ifndef WIRE_WIRE_H
#define WIRE_WIRE_H

#include "base/base.h"

#include <string.h>

#include "base/text.h"

#define WIRE_HEADER_SIZE 10
#define WIRE_SCHEMA_SIZE 32

enum wire_type {
	WIRE_CONNECT = 0x01,
	WIRE_CONNECT_ACK,
	WIRE_CONNECT_ERROR,
	WIRE_DISCONNECT,
	WIRE_SUBSCRIBE,
	WIRE_SUBSCRIBE_ACK,
	WIRE_SUBSCRIBE_ERROR,
	WIRE_UNSUBSCRIBE,
	WIRE_PUBLISH,
	WIRE_PUBLISH_ACK,
	WIRE_PUBLISH_ERROR,
	WIRE_CONVERSATION_OPEN,
	WIRE_CONVERSATION_MESSAGE,
	WIRE_CONVERSATION_CLOSE,
	WIRE_CONVERSATION_ERROR,
	WIRE_ACCEPT,
	WIRE_DEFER,
	WIRE_REJECT,
	WIRE_PING,
	WIRE_PONG,
	WIRE_PUSH,
	WIRE_PUSH_REPLY,
	WIRE_WORKER_REGISTER,
	WIRE_WORKER_REGISTER_ACK,
	WIRE_DELIVER,
	WIRE_TYPE_END /* one past the last known type */
};

enum wire_flag {
	WIRE_PUBLISH_HAS_KEY = 0x02,
	WIRE_PUBLISH_ACK_DELIVERED = 0x01,
	WIRE_PUBLISH_ACK_POSITION = 0x02, /* from version 1.1 */
	WIRE_PUBLISH_ACK_DUPLICATE = 0x80,
	WIRE_MESSAGE_REPLY = 0x01,  /* asked for, or is one */
	WIRE_DELIVER_ORIGIN = 0x01, /* from version 1.2: boot and message id follow */
	WIRE_DELIVER_AGAIN = 0x80,  /* delivered before */
	WIRE_PUSH_REPLY_REFUSED = 0x01,
	WIRE_PUSH_REPLY_WORKING = 0x80,
	WIRE_REGISTER_LEAVING = 0x80, /* no more pushes */
	WIRE_SUBSCRIBE_DURABLE = 0x80,
	WIRE_ANSWER_CONFIRM = 0x80, /* Accept, Defer, Reject: asks for a confirmation, or is one */
	WIRE_ANSWER_WORKING = 0x40, /* a Defer: still working */
};

/* Capabilities of a ConnectAck. */
#define WIRE_CAPABILITY_DURABLE UINT32_C(0x00010000)

enum wire_reason {
	WIRE_REASON_INCOMPLETE_HEADER = 0x0001,
	WIRE_REASON_TRUNCATED = 0x0002,
	WIRE_REASON_UNKNOWN_TYPE = 0x0003,
	WIRE_REASON_STREAM = 0x0004,
	WIRE_REASON_STATE = 0x0005,
	WIRE_REASON_AUTHENTICATION = 0x0006,
	WIRE_REASON_VERSION = 0x0007,
	WIRE_REASON_SCHEMA = 0x0008,
	WIRE_REASON_CODEC = 0x0009,
	WIRE_REASON_WORKER_BUSY = 0x0401,
	WIRE_REASON_WORKER_INVALID = 0x0402,
	WIRE_REASON_WORKER_UNAVAILABLE = 0x0403,
	WIRE_REASON_WORKER_INTERNAL = 0x0404,
	WIRE_REASON_SERVER = 0xFFFF,
};

enum wire_verdict { WIRE_OK, WIRE_INCOMPLETE, WIRE_INVALID_STREAM, WIRE_MALFORMED };

struct wire_version {
	uint16_t major, minor;
};

#define WIRE_VERSION_1_0 ((struct wire_version){1, 0})
#define WIRE_VERSION_1_1 ((struct wire_version){1, 1})
#define WIRE_VERSION_1_2 ((struct wire_version){1, 2})

/* -1, 0 or 1 as A is below, equal to or above B. */
int wire_version_compare(struct wire_version a, struct wire_version b);

struct wire_header {
	uint8_t type, flags;
	uint32_t stream;
	uint32_t length; /* of the payload */
};

struct wire_opt_string {
	bool present;
	struct span text;
};

/* A list as it stands on the wire, checked; wire_list_next walks it. */
struct wire_list {
	uint32_t count;
	struct span bytes; /* of the items, without the count */
};

/*
 * `bytes` is the whole envelope as it stands on the wire: schema id, u32 length, causal context,
 * u32 length, payload. The others point into it.
 */
struct wire_envelope {
	struct span bytes;
	const uint8_t *schema; /* WIRE_SCHEMA_SIZE bytes */
	struct span context;   /* the causal context as encoded, without its length */
	struct wire_opt_string parent;
	bool has_clock;
	uint64_t clock;
	struct span payload;
};

struct wire_frame {
	struct wire_header header;
	union {
		struct {
			struct wire_version min, max;
			struct span token;
		} connect;
		struct {
			struct wire_version version;
			uint32_t capabilities;
		} connect_ack;
		struct { /* ConnectError, SubscribeError, PublishError */
			uint16_t code;
			struct wire_opt_string text;
		} error;
		struct {
			struct span channel;
			struct wire_list schemas; /* each WIRE_SCHEMA_SIZE bytes */
			uint32_t max_in_flight;
			bool durable; /* the three fields follow */
			struct span consumer;
			uint8_t start;
			uint64_t value;
		} subscribe;
		struct {
			uint64_t subscription;
			const uint8_t *schema;
		} subscribe_ack;
		struct {
			uint64_t subscription;
		} unsubscribe;
		struct {
			struct span channel;
			struct wire_envelope envelope;
			bool has_key;
			struct span key;
		} publish;
		struct {
			uint64_t message;
			bool has_position;
			uint64_t position;
		} publish_ack;
		struct {
			uint64_t conversation;
			struct span subject;
		} conversation_open;
		struct {
			uint64_t conversation;
			struct wire_envelope envelope;
		} conversation_message;
		struct {
			uint64_t conversation;
			bool has_code;
			uint16_t code;
			struct wire_opt_string text;
		} conversation_close;
		struct {
			uint64_t conversation;
			uint16_t code;
			struct wire_opt_string text;
		} conversation_error;
		struct { /* Accept (no reason), Defer, Reject */
			struct span message;
			struct wire_opt_string reason;
		} answer;
		struct { /* Push, PushReply */
			uint64_t correlation;
			struct span payload;
		} push;
		struct {
			struct wire_list namespaces, activities; /* of strings */
			struct span queue, identity;
			struct wire_opt_string node;
			bool has_contracts;
			struct wire_list contracts; /* three strings an item */
		} worker_register;
		struct {
			bool rejected;
			struct span reason;
		} worker_register_ack;
		struct {
			uint64_t sequence;
			struct wire_envelope envelope;
			bool has_origin;
			uint64_t boot, message;
		} deliver;
	} u;
};

/* Sets of types, a bit each; made from the table. */
enum {
#define WIRE_IS_CLIENT 0u
#define WIRE_IS_BOTH 0u
#define WIRE_IS_SERVER 1u
#define WIRE_IS_CONTROL 1u
#define WIRE_IS_OTHER 0u
#define TYPE(id, name, sender, streams, codec) | 1u << WIRE_##id
	WIRE_TYPES_KNOWN = 0u
#include "wire/types.tbl"
	,
#undef TYPE
#define TYPE(id, name, sender, streams, codec) | WIRE_IS_##sender << WIRE_##id
	WIRE_TYPES_FROM_SERVER = 0u
#include "wire/types.tbl"
	,
#undef TYPE
#define TYPE(id, name, sender, streams, codec) | WIRE_IS_##streams << WIRE_##id
	WIRE_TYPES_CONTROL = 0u
#include "wire/types.tbl"
#undef TYPE
};

static inline bool wire_type_in(uint8_t type, uint32_t set)
{
	return type < WIRE_TYPE_END && (set >> type & 1) != 0;
}

static inline bool wire_type_known(uint8_t type)
{
	return wire_type_in(type, WIRE_TYPES_KNOWN);
}

/* The name of a type ("Publish"), or NULL when it is unknown. */
const char *wire_type_name(uint8_t type);

/* True for types that only the server sends. */
static inline bool wire_type_from_server(uint8_t type)
{
	return wire_type_in(type, WIRE_TYPES_FROM_SERVER);
}

/* True when TYPE, if known, may stand on STREAM. */
static inline bool wire_stream_legal(uint8_t type, uint32_t stream)
{
	return !wire_type_known(type) || wire_type_in(type, WIRE_TYPES_CONTROL) == (stream == 0);
}

/*
 * Decodes the first frame of BYTES. VERSION is the connection's: before 1.1 PublishAck 0x02 and
 * before 1.2 Deliver 0x01 mean nothing.
 *
 * WIRE_OK: *FRAME is set, *CONSUMED is the size of the whole frame. A frame of an unknown type is
 * WIRE_OK with only its header set. WIRE_INCOMPLETE: wait for more. WIRE_INVALID_STREAM, decided
 * from the header alone, and WIRE_MALFORMED: *WHY says, in words for the peer, what was wrong ("the
 * channel runs past the end of the frame"). But for WIRE_OK only the header is set, *CONSUMED is 0.
 */
enum wire_verdict wire_decode(const uint8_t *bytes, size_t length, struct wire_version version,
			      struct wire_frame *frame, size_t *consumed, const char **why);

/* Likewise for the payload of a frame whose header is known to be legal and whose payload is all
 * there (PAYLOAD has header.length bytes): WIRE_OK or WIRE_MALFORMED. */
enum wire_verdict wire_decode_payload(struct wire_header header, const uint8_t *payload,
				      struct wire_version version, struct wire_frame *frame,
				      const char **why);

/*
 * The next item of a list, which must have been checked by wire_decode. OFFSET starts at 0.
 * False at the end.
 */
bool wire_list_next_string(const struct wire_list *list, size_t *offset, struct span *item);
bool wire_list_next_schema(const struct wire_list *list, size_t *offset, const uint8_t **item);

/*
 * Encodes FRAME: header.type, flags and stream, and the fields of its type, are taken from it;
 * header.length is computed. Presence flags must agree with header.flags. Envelopes are encoded
 * from schema, context and payload (`bytes` is not looked at). The size of the whole frame, also
 * when that is above SIZE, in which case nothing useful was written (call with 0 to measure); 0
 * when the payload would be longer than a u32 can say.
 */
size_t wire_encode(const struct wire_frame *frame, uint8_t *bytes, size_t size);

/* Big-endian integers at BYTES; here, because every frame takes a dozen of them. */
static inline uint16_t wire_get_u16(const uint8_t *bytes)
{
	return (uint16_t)(bytes[0] << 8 | bytes[1]);
}

static inline uint32_t wire_get_u32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
}

static inline uint64_t wire_get_u64(const uint8_t *bytes)
{
	return (uint64_t)wire_get_u32(bytes) << 32 | wire_get_u32(bytes + 4);
}

static inline void wire_put_u16(uint8_t *bytes, uint16_t value)
{
	bytes[0] = (uint8_t)(value >> 8);
	bytes[1] = (uint8_t)value;
}

/* Compilers make one load of four bytes that are put together, but four stores of four bytes that
 * are taken apart: so VALUE's own bytes are read as those on the wire are, and stored at once. */
static inline void wire_put_u32(uint8_t *bytes, uint32_t value)
{
	uint8_t own[4];
	uint32_t word;

	memcpy(own, &value, sizeof(own));
	word = wire_get_u32(own);
	memcpy(bytes, &word, sizeof(word));
}

static inline void wire_put_u64(uint8_t *bytes, uint64_t value)
{
	wire_put_u32(bytes, (uint32_t)(value >> 32));
	wire_put_u32(bytes + 4, (uint32_t)value);
}

/* The WIRE_HEADER_SIZE bytes at BYTES. */
static inline struct wire_header wire_get_header(const uint8_t *bytes)
{
	return (struct wire_header){
		.type = bytes[0],
		.flags = bytes[1],
		.stream = wire_get_u32(bytes + 2),
		.length = wire_get_u32(bytes + 6),
	};
}

static inline void wire_put_header(uint8_t *bytes, uint8_t type, uint8_t flags, uint32_t stream,
				   uint32_t length)
{
	bytes[0] = type;
	bytes[1] = flags;
	wire_put_u32(bytes + 2, stream);
	wire_put_u32(bytes + 6, length);
}

/*
 * Frames of the server's hot paths, written whole at BYTES. A Deliver is WIRE_DELIVER_HEAD bytes,
 * the envelope, and for origin WIRE_DELIVER_TAIL bytes: boot and message id. The flags for that and
 * for a position are set here.
 */
#define WIRE_PUBLISH_ACK_SIZE 18
#define WIRE_PUBLISH_ACK_POSITION_SIZE 26
#define WIRE_DELIVER_HEAD 22
#define WIRE_DELIVER_TAIL 16
static inline void wire_put_publish_ack(uint8_t *bytes, uint8_t flags, uint32_t stream,
					uint64_t message)
{
	wire_put_header(bytes, WIRE_PUBLISH_ACK, flags, stream, 8);
	wire_put_u64(bytes + WIRE_HEADER_SIZE, message);
}

static inline void wire_put_publish_ack_position(uint8_t *bytes, uint8_t flags, uint32_t stream,
						 uint64_t message, uint64_t position)
{
	wire_put_header(bytes, WIRE_PUBLISH_ACK, flags | WIRE_PUBLISH_ACK_POSITION, stream, 16);
	wire_put_u64(bytes + WIRE_HEADER_SIZE, message);
	wire_put_u64(bytes + WIRE_HEADER_SIZE + 8, position);
}

static inline void wire_put_deliver_head(uint8_t *bytes, uint8_t flags, uint32_t stream,
					 uint64_t sequence, uint32_t envelope_length, bool origin)
{
	uint32_t others = WIRE_DELIVER_HEAD - WIRE_HEADER_SIZE;

	if (origin) {
		others += WIRE_DELIVER_TAIL;
		flags |= WIRE_DELIVER_ORIGIN;
	}
	ASSERT(envelope_length <= UINT32_MAX - others);
	wire_put_header(bytes, WIRE_DELIVER, flags, stream, envelope_length + others);
	wire_put_u64(bytes + WIRE_HEADER_SIZE, sequence);
	wire_put_u32(bytes + WIRE_HEADER_SIZE + 8, envelope_length);
}

/* Whether the Deliver at BYTES has that stream and sequence, and giving it others. */
static inline bool wire_deliver_is(const uint8_t *bytes, uint32_t stream, uint64_t sequence)
{
	return wire_get_u32(bytes + 2) == stream &&
	       wire_get_u64(bytes + WIRE_HEADER_SIZE) == sequence;
}

static inline void wire_set_deliver(uint8_t *bytes, uint32_t stream, uint64_t sequence)
{
	wire_put_u32(bytes + 2, stream);
	wire_put_u64(bytes + WIRE_HEADER_SIZE, sequence);
}

/* The envelope around a reply's payload: schema id zero, independent causal context. */
#define WIRE_REPLY_ENVELOPE_HEAD 42
void wire_put_reply_envelope_head(uint8_t *bytes, uint32_t payload_length);

#endif
