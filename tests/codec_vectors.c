/*
 * codec_vectors FILE [LINES]: the codec against a file of vectors, whose format stands in
 * tests/vectors/README.md. Each line is one test, in both directions: the bytes are decoded and
 * every field is compared with the text, and a frame made from the text alone is encoded and
 * compared with the bytes. It is strict: a line that it does not understand whole is a failure, and
 * so is a file of fewer than LINES lines.
 */
#include "wire/wire.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLUMNS 6

enum kind {
	KIND_U16,
	KIND_U32,
	KIND_U64,
	KIND_VERSION,
	KIND_BYTES,
	KIND_SCHEMA,
	KIND_STRINGS,
	KIND_SCHEMAS,
	KIND_VERDICT, /* `accepted`, or `rejected=` and the reason */
};

#define ALWAYS SIZE_MAX

/* A field of a type, in the order of the file: its name there, and where a frame keeps it. */
struct row {
	uint8_t type;
	const char *name;
	enum kind kind;
	size_t value;
	size_t present; /* where the bool is that says whether there is one, or ALWAYS */
};

#define ROW(type, name, kind, member)                                                              \
	{                                                                                          \
		type, name, KIND_##kind, offsetof(struct wire_frame, u.member), ALWAYS             \
	}
#define OPTIONAL(type, name, kind, flag, member)                                                   \
	{                                                                                          \
		type, name, KIND_##kind, offsetof(struct wire_frame, u.member),                    \
			offsetof(struct wire_frame, u.flag)                                        \
	}
#define OPT_STRING(type, name, member) OPTIONAL(type, name, BYTES, member.present, member.text)
#define ENVELOPE(type, member)                                                                     \
	ROW(type, "schema", SCHEMA, member.schema), OPT_STRING(type, "parent", member.parent),     \
		OPTIONAL(type, "clock", U64, member.has_clock, member.clock),                      \
		ROW(type, "payload", BYTES, member.payload)

static const struct row rows[] = {
	ROW(WIRE_CONNECT, "min", VERSION, connect.min),
	ROW(WIRE_CONNECT, "max", VERSION, connect.max),
	ROW(WIRE_CONNECT, "token", BYTES, connect.token),
	ROW(WIRE_CONNECT_ACK, "version", VERSION, connect_ack.version),
	ROW(WIRE_CONNECT_ACK, "capabilities", U32, connect_ack.capabilities),
	ROW(WIRE_CONNECT_ERROR, "code", U16, error.code),
	OPT_STRING(WIRE_CONNECT_ERROR, "message", error.text),
	ROW(WIRE_SUBSCRIBE, "channel", BYTES, subscribe.channel),
	ROW(WIRE_SUBSCRIBE, "schemas", SCHEMAS, subscribe.schemas),
	ROW(WIRE_SUBSCRIBE, "max_in_flight", U32, subscribe.max_in_flight),
	ROW(WIRE_SUBSCRIBE_ACK, "subscription", U64, subscribe_ack.subscription),
	ROW(WIRE_SUBSCRIBE_ACK, "schema", SCHEMA, subscribe_ack.schema),
	ROW(WIRE_SUBSCRIBE_ERROR, "code", U16, error.code),
	OPT_STRING(WIRE_SUBSCRIBE_ERROR, "message", error.text),
	ROW(WIRE_UNSUBSCRIBE, "subscription", U64, unsubscribe.subscription),
	ROW(WIRE_PUBLISH, "channel", BYTES, publish.channel),
	ENVELOPE(WIRE_PUBLISH, publish.envelope),
	OPTIONAL(WIRE_PUBLISH, "key", BYTES, publish.has_key, publish.key),
	ROW(WIRE_PUBLISH_ACK, "message", U64, publish_ack.message),
	ROW(WIRE_PUBLISH_ERROR, "code", U16, error.code),
	OPT_STRING(WIRE_PUBLISH_ERROR, "message", error.text),
	ROW(WIRE_CONVERSATION_OPEN, "conversation", U64, conversation_open.conversation),
	ROW(WIRE_CONVERSATION_OPEN, "subject", BYTES, conversation_open.subject),
	ROW(WIRE_CONVERSATION_MESSAGE, "conversation", U64, conversation_message.conversation),
	ENVELOPE(WIRE_CONVERSATION_MESSAGE, conversation_message.envelope),
	ROW(WIRE_CONVERSATION_CLOSE, "conversation", U64, conversation_close.conversation),
	OPTIONAL(WIRE_CONVERSATION_CLOSE, "code", U16, conversation_close.has_code,
		 conversation_close.code),
	OPT_STRING(WIRE_CONVERSATION_CLOSE, "message", conversation_close.text),
	ROW(WIRE_CONVERSATION_ERROR, "conversation", U64, conversation_error.conversation),
	ROW(WIRE_CONVERSATION_ERROR, "code", U16, conversation_error.code),
	OPT_STRING(WIRE_CONVERSATION_ERROR, "message", conversation_error.text),
	ROW(WIRE_ACCEPT, "message_id", BYTES, answer.message),
	ROW(WIRE_DEFER, "message_id", BYTES, answer.message),
	OPT_STRING(WIRE_DEFER, "reason", answer.reason),
	ROW(WIRE_REJECT, "message_id", BYTES, answer.message),
	OPT_STRING(WIRE_REJECT, "reason", answer.reason),
	ROW(WIRE_PUSH, "correlation", U64, push.correlation),
	ROW(WIRE_PUSH, "payload", BYTES, push.payload),
	ROW(WIRE_PUSH_REPLY, "correlation", U64, push.correlation),
	ROW(WIRE_PUSH_REPLY, "payload", BYTES, push.payload),
	ROW(WIRE_WORKER_REGISTER, "namespaces", STRINGS, worker_register.namespaces),
	ROW(WIRE_WORKER_REGISTER, "task_queue", BYTES, worker_register.queue),
	OPT_STRING(WIRE_WORKER_REGISTER, "node", worker_register.node),
	ROW(WIRE_WORKER_REGISTER, "activity_types", STRINGS, worker_register.activities),
	ROW(WIRE_WORKER_REGISTER, "identity", BYTES, worker_register.identity),
	ROW(WIRE_WORKER_REGISTER_ACK, NULL, VERDICT, worker_register_ack),
	ROW(WIRE_DELIVER, "seq", U64, deliver.sequence),
	ENVELOPE(WIRE_DELIVER, deliver.envelope),
};

/* What a line makes of its memory: everything that its text says in hexadecimal, as bytes. */
struct arena {
	uint8_t *bytes;
	size_t size, used;
};

/* The line that is being looked at. */
struct line {
	unsigned long number;
	const char *columns[COLUMNS];
	struct arena arena;
	struct span bytes;
};

static bool line_fail(const struct line *line, const char *format, ...) PRINTF_LIKE(2, 3);

/* Says what is wrong; false, for the caller to pass on. */
static bool line_fail(const struct line *line, const char *format, ...)
{
	va_list arguments;

	printf("line %lu (%s): ", line->number, line->columns[0]);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	putchar('\n');
	return false;
}

static void *allocate(size_t size)
{
	void *memory = malloc(size_max(size, 1));

	if (memory == NULL) {
		fputs("codec_vectors: out of memory\n", stderr);
		exit(1);
	}
	return memory;
}

static char *copy_text(const char *text)
{
	size_t size = strlen(text) + 1;

	return memcpy(allocate(size), text, size);
}

/* --- the text's values ---------------------------------------------------------------------- */

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	return -1;
}

/* LENGTH characters of TEXT, added to ARENA. */
static bool parse_hex(struct arena *arena, const char *text, size_t length, struct span *bytes)
{
	*bytes = (struct span){.data = arena->bytes + arena->used, .length = length / 2};
	if (length % 2 != 0)
		return false;
	ASSERT(length / 2 <= arena->size - arena->used);
	for (size_t i = 0; i < length; i += 2) {
		int high = hex_digit(text[i]), low = hex_digit(text[i + 1]);

		if (high < 0 || low < 0)
			return false;
		arena->bytes[arena->used++] = (uint8_t)(high << 4 | low);
	}
	return true;
}

/* Decimal, without sign or needless zeros. */
static bool parse_number(const char *text, uint64_t maximum, uint64_t *number)
{
	*number = 0;
	if (*text == '\0' || (text[0] == '0' && text[1] != '\0'))
		return false;
	for (; *text != '\0'; text++) {
		unsigned digit;

		if (!isdigit((unsigned char)*text))
			return false;
		digit = (unsigned)(*text - '0');
		if (*number > (maximum - digit) / 10)
			return false;
		*number = *number * 10 + digit;
	}
	return true;
}

static bool parse_version(const char *text, struct wire_version *version)
{
	char major[8];
	const char *dot = strchr(text, '.');
	uint64_t first, second;

	if (dot == NULL || (size_t)(dot - text) >= sizeof(major))
		return false;
	memcpy(major, text, (size_t)(dot - text));
	major[dot - text] = '\0';
	if (!parse_number(major, UINT16_MAX, &first) || !parse_number(dot + 1, UINT16_MAX, &second))
		return false;
	*version = (struct wire_version){(uint16_t)first, (uint16_t)second};
	return true;
}

/* `[]` is the list without items: one of a single empty string cannot be said. */
static bool parse_list(struct arena *arena, enum kind kind, const char *text,
		       struct wire_list *list)
{
	size_t length = strlen(text);
	const char *at = text + 1, *end = text + length - 1;

	*list = (struct wire_list){.bytes.data = arena->bytes + arena->used};
	if (length < 2 || text[0] != '[' || *end != ']')
		return false;
	while (length > 2) {
		const char *comma = memchr(at, ',', (size_t)(end - at));
		size_t item = (size_t)((comma == NULL ? end : comma) - at);
		struct span bytes;

		if (kind == KIND_STRINGS) {
			ASSERT(arena->size - arena->used >= 4);
			wire_put_u32(arena->bytes + arena->used, (uint32_t)(item / 2));
			arena->used += 4;
		}
		if (!parse_hex(arena, at, item, &bytes) ||
		    (kind == KIND_SCHEMAS && bytes.length != WIRE_SCHEMA_SIZE))
			return false;
		list->count++;
		if (comma == NULL)
			break;
		at = comma + 1;
	}
	list->bytes.length = (size_t)(arena->bytes + arena->used - list->bytes.data);
	return true;
}

static bool parse_value(struct arena *arena, enum kind kind, const char *text, void *value)
{
	uint64_t number;
	struct span bytes;

	switch (kind) {
	case KIND_U16:
		if (!parse_number(text, UINT16_MAX, &number))
			return false;
		*(uint16_t *)value = (uint16_t)number;
		return true;
	case KIND_U32:
		if (!parse_number(text, UINT32_MAX, &number))
			return false;
		*(uint32_t *)value = (uint32_t)number;
		return true;
	case KIND_U64:
		return parse_number(text, UINT64_MAX, value);
	case KIND_VERSION:
		return parse_version(text, value);
	case KIND_BYTES:
		return parse_hex(arena, text, strlen(text), value);
	case KIND_SCHEMA:
		if (!parse_hex(arena, text, strlen(text), &bytes) ||
		    bytes.length != WIRE_SCHEMA_SIZE)
			return false;
		*(const uint8_t **)value = bytes.data;
		return true;
	case KIND_STRINGS:
	case KIND_SCHEMAS:
		return parse_list(arena, kind, text, value);
	case KIND_VERDICT:
		break;
	}
	return false;
}

/* NULL when TEXT does not start with PREFIX. */
static const char *after(const char *text, const char *prefix)
{
	size_t length = strlen(prefix);

	return strncmp(text, prefix, length) == 0 ? text + length : NULL;
}

/* Sets the field that TOKEN, such as `clock=some:7`, is about in FRAME. */
static bool parse_field(struct arena *arena, const struct row *row, const char *token,
			struct wire_frame *frame)
{
	char *base = (char *)frame;
	const char *text;

	if (row->kind == KIND_VERDICT) {
		if (strcmp(token, "accepted") == 0)
			return true;
		frame->u.worker_register_ack.rejected = true;
		text = after(token, "rejected=");
		return text != NULL &&
		       parse_value(arena, KIND_BYTES, text, &frame->u.worker_register_ack.reason);
	}
	text = after(token, row->name);
	if (text == NULL || *text != '=')
		return false;
	text++;
	if (row->present != ALWAYS) {
		if (strcmp(text, "none") == 0)
			return true;
		text = after(text, "some:");
		if (text == NULL)
			return false;
		*(bool *)(base + row->present) = true;
	}
	return parse_value(arena, row->kind, text, base + row->value);
}

/* --- a frame's values as text --------------------------------------------------------------- */

static void print_hex(FILE *out, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++)
		fprintf(out, "%02x", bytes[i]);
}

static void print_list(FILE *out, enum kind kind, const struct wire_list *list)
{
	size_t offset = 0;
	uint32_t count = 0;
	struct span item = {.length = WIRE_SCHEMA_SIZE};

	putc('[', out);
	while (kind == KIND_STRINGS ? wire_list_next_string(list, &offset, &item)
				    : wire_list_next_schema(list, &offset, &item.data)) {
		if (count++ > 0)
			putc(',', out);
		print_hex(out, item.data, item.length);
	}
	putc(']', out);
	if (count != list->count)
		fprintf(out, "(of %" PRIu32 ")", list->count);
}

static void print_value(FILE *out, enum kind kind, const void *value)
{
	const struct wire_version *version = value;
	const struct span *bytes = value;

	switch (kind) {
	case KIND_U16:
		fprintf(out, "%" PRIu16, *(const uint16_t *)value);
		break;
	case KIND_U32:
		fprintf(out, "%" PRIu32, *(const uint32_t *)value);
		break;
	case KIND_U64:
		fprintf(out, "%" PRIu64, *(const uint64_t *)value);
		break;
	case KIND_VERSION:
		fprintf(out, "%" PRIu16 ".%" PRIu16, version->major, version->minor);
		break;
	case KIND_BYTES:
		print_hex(out, bytes->data, bytes->length);
		break;
	case KIND_SCHEMA:
		print_hex(out, *(const uint8_t *const *)value, WIRE_SCHEMA_SIZE);
		break;
	case KIND_STRINGS:
	case KIND_SCHEMAS:
		print_list(out, kind, value);
		break;
	case KIND_VERDICT:
		break;
	}
}

static void print_field(FILE *out, const struct row *row, const struct wire_frame *frame)
{
	const char *base = (const char *)frame;

	if (row->kind == KIND_VERDICT) {
		fputs(frame->u.worker_register_ack.rejected ? "rejected=" : "accepted", out);
		print_value(out, KIND_BYTES, &frame->u.worker_register_ack.reason);
		return;
	}
	fprintf(out, "%s=", row->name);
	if (row->present != ALWAYS && !*(const bool *)(base + row->present)) {
		fputs("none", out);
		return;
	}
	if (row->present != ALWAYS)
		fputs("some:", out);
	print_value(out, row->kind, base + row->value);
}

/* The last column as FRAME has it; the caller frees it. */
static char *print_fields(const struct wire_frame *frame, const uint8_t *payload, size_t consumed)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);
	bool any = false;

	if (out == NULL) {
		perror("codec_vectors: open_memstream");
		exit(1);
	}
	fprintf(out, "flags=%u stream=%" PRIu32 " consumed=%zu ", (unsigned)frame->header.flags,
		frame->header.stream, consumed);
	if (wire_type_name(frame->header.type) == NULL) {
		fputs("payload=", out);
		print_hex(out, payload, frame->header.length);
	}
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		if (rows[i].type != frame->header.type)
			continue;
		if (any)
			putc(' ', out);
		print_field(out, &rows[i], frame);
		any = true;
	}
	if (fclose(out) != 0 || text == NULL) {
		perror("codec_vectors: open_memstream");
		exit(1);
	}
	return text;
}

/* --- the directions ------------------------------------------------------------------------- */

static const char *const verdict_names[] = {
	[WIRE_OK] = "ok",
	[WIRE_INCOMPLETE] = "incomplete",
	[WIRE_INVALID_STREAM] = "invalid_stream",
	[WIRE_MALFORMED] = "malformed",
};

/*
 * Decodes the first LENGTH of the line's bytes, in memory of exactly that size so that a checker
 * sees what is read beyond them, and demands VERDICT and, when it is WIRE_OK, the line's fields.
 * FILL more bytes, all EXTRA, stand behind them.
 */
static bool line_decode(const struct line *line, size_t length, size_t fill, uint8_t extra,
			enum wire_verdict expected)
{
	uint8_t *bytes = allocate(length + fill), *again = NULL;
	struct wire_frame frame;
	size_t consumed, size;
	const char *why;
	enum wire_verdict verdict;
	char *fields = NULL;
	bool passed = false;

	memcpy(bytes, line->bytes.data, length);
	memset(bytes + length, extra, fill);
	verdict = wire_decode(bytes, length + fill, WIRE_VERSION_1_0, &frame, &consumed, &why);
	if (verdict != expected) {
		line_fail(line, "%zu bytes and %zu of 0x%02x more: %s instead of %s (%s)", length,
			  fill, extra, verdict_names[verdict], verdict_names[expected],
			  why == NULL ? "no reason" : why);
		goto out;
	}
	if ((why != NULL) != (verdict == WIRE_MALFORMED || verdict == WIRE_INVALID_STREAM)) {
		line_fail(line, "%s with the reason \"%s\"", verdict_names[verdict],
			  why == NULL ? "" : why);
		goto out;
	}
	if (verdict != WIRE_OK) {
		passed = consumed == 0 ||
			 line_fail(line, "%s, but consumed %zu", verdict_names[verdict], consumed);
		goto out;
	}
	fields = print_fields(&frame, bytes + WIRE_HEADER_SIZE, consumed);
	if (strcmp(fields, line->columns[5]) != 0) {
		line_fail(line, "decoded as \"%s\" instead of \"%s\"", fields, line->columns[5]);
		goto out;
	}
	if (wire_type_name(frame.header.type) != NULL) {
		again = allocate(consumed);
		size = wire_encode(&frame, again, consumed);
		if (size != consumed || memcmp(again, bytes, consumed) != 0) {
			line_fail(line, "the decoded frame is encoded differently");
			goto out;
		}
	}
	passed = true;
out:
	free(again);
	free(fields);
	free(bytes);
	return passed;
}

/*
 * Splits off the next of the fields at *AT, which are separated by single spaces: NULL when there
 * is none left.
 */
static char *next_token(char **at)
{
	char *token = *at, *space;

	if (token == NULL)
		return NULL;
	space = strchr(token, ' ');
	if (space != NULL)
		*space = '\0';
	*at = space == NULL ? NULL : space + 1;
	return token;
}

/* The fields of FRAME's type from the tokens at AT, in the order of the rows, none more or less. */
static bool line_parse_fields(struct line *line, char *at, struct wire_frame *frame,
			      struct span *unknown_payload)
{
	const char *token, *text;
	bool any = false;

	if (wire_type_name(frame->header.type) == NULL) {
		token = next_token(&at);
		text = token == NULL ? NULL : after(token, "payload=");
		if (text == NULL || at != NULL ||
		    !parse_hex(&line->arena, text, strlen(text), unknown_payload))
			return line_fail(line, "an unknown type has the one field payload");
		return true;
	}
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		if (rows[i].type != frame->header.type)
			continue;
		any = true;
		token = next_token(&at);
		if (token == NULL)
			return line_fail(line, "the field %s is missing", rows[i].name);
		if (!parse_field(&line->arena, &rows[i], token, frame))
			return line_fail(line, "\"%s\" is no value of the field %s", token,
					 rows[i].name == NULL ? "accepted" : rows[i].name);
	}
	if (!any && (at == NULL || *at != '\0'))
		return line_fail(line, "a frame without fields ends in one space");
	if (any && at != NULL)
		return line_fail(line, "\"%s\" is no field of this type", at);
	return true;
}

/* The causal context of ENVELOPE as encoded, from its parent and clock. */
static void make_context(struct arena *arena, struct wire_envelope *envelope)
{
	uint8_t *start = arena->bytes + arena->used, *at = start;
	const struct span *parent = &envelope->parent.text;

	ASSERT(arena->size - arena->used >= 1 + 4 + parent->length + 1 + 8);
	*at++ = envelope->parent.present;
	if (envelope->parent.present) {
		wire_put_u32(at, (uint32_t)parent->length);
		memcpy(at + 4, parent->data, parent->length);
		at += 4 + parent->length;
	}
	*at++ = envelope->has_clock;
	if (envelope->has_clock) {
		wire_put_u64(at, envelope->clock);
		at += 8;
	}
	envelope->context = (struct span){.data = start, .length = (size_t)(at - start)};
	arena->used += envelope->context.length;
}

static struct wire_envelope *frame_envelope(struct wire_frame *frame)
{
	switch (frame->header.type) {
	case WIRE_PUBLISH:
		return &frame->u.publish.envelope;
	case WIRE_CONVERSATION_MESSAGE:
		return &frame->u.conversation_message.envelope;
	case WIRE_DELIVER:
		return &frame->u.deliver.envelope;
	default:
		return NULL;
	}
}

/* Makes a frame from the text, and nothing of the bytes but the type's number, and encodes it. */
static bool line_encode(struct line *line, size_t *consumed)
{
	static const char *const names[] = {"flags=", "stream=", "consumed="};
	static const uint64_t maxima[] = {UINT8_MAX, UINT32_MAX, SIZE_MAX};
	uint64_t numbers[ARRAY_LENGTH(names)];
	struct wire_frame frame;
	struct wire_envelope *envelope;
	struct span payload = {.length = 0};
	char *fields = copy_text(line->columns[5]), *at = fields;
	uint8_t *bytes = NULL;
	size_t size;
	bool passed = false;

	for (size_t i = 0; i < ARRAY_LENGTH(names); i++) {
		const char *token = next_token(&at);
		const char *text = token == NULL ? NULL : after(token, names[i]);

		if (text == NULL || !parse_number(text, maxima[i], &numbers[i])) {
			line_fail(line, "the field %zu is not %sNUMBER", i + 1, names[i]);
			goto out;
		}
	}
	*consumed = (size_t)numbers[2];
	if (*consumed < WIRE_HEADER_SIZE || *consumed > line->bytes.length) {
		line_fail(line, "consumed=%zu of %zu bytes", *consumed, line->bytes.length);
		goto out;
	}
	memset(&frame, 0, sizeof(frame));
	frame.header.type = line->bytes.data[0];
	frame.header.flags = (uint8_t)numbers[0];
	frame.header.stream = (uint32_t)numbers[1];
	if (!line_parse_fields(line, at, &frame, &payload))
		goto out;
	if (frame.header.type == WIRE_PUBLISH &&
	    frame.u.publish.has_key != ((frame.header.flags & WIRE_PUBLISH_HAS_KEY) != 0)) {
		line_fail(line, "the field key and the flag for it disagree");
		goto out;
	}
	envelope = frame_envelope(&frame);
	if (envelope != NULL)
		make_context(&line->arena, envelope);
	if (wire_type_name(frame.header.type) == NULL) {
		size = WIRE_HEADER_SIZE + payload.length;
		bytes = allocate(size);
		wire_put_header(bytes, frame.header.type, frame.header.flags, frame.header.stream,
				(uint32_t)payload.length);
		memcpy(bytes + WIRE_HEADER_SIZE, payload.data, payload.length);
	} else {
		size = wire_encode(&frame, NULL, 0);
		bytes = allocate(size);
		if (wire_encode(&frame, bytes, size) != size) {
			line_fail(line, "measured as %zu bytes, but encoded as another size", size);
			goto out;
		}
	}
	if (size != *consumed || memcmp(bytes, line->bytes.data, size) != 0) {
		line_fail(line, "the fields are encoded as other bytes");
		goto out;
	}
	passed = true;
out:
	free(bytes);
	free(fields);
	return passed;
}

static bool line_check_ok(struct line *line)
{
	const char *name = line->bytes.length == 0 ? NULL : wire_type_name(line->bytes.data[0]);
	size_t consumed;

	if (strcmp(line->columns[3], name == NULL ? "Unknown" : name) != 0)
		return line_fail(line, "\"%s\" is not the name of the type", line->columns[3]);
	if (strcmp(line->columns[4], "canonical") != 0)
		return line_fail(line, "\"%s\" instead of canonical", line->columns[4]);
	if (!line_encode(line, &consumed))
		return false;
	for (size_t length = 0; length < consumed; length++) {
		if (!line_decode(line, length, 0, 0, WIRE_INCOMPLETE))
			return false;
	}
	return line_decode(line, line->bytes.length, 0, 0, WIRE_OK) &&
	       line_decode(line, consumed, 0, 0, WIRE_OK) &&
	       line_decode(line, consumed, 1, 0x00, WIRE_OK) &&
	       line_decode(line, consumed, 2 * WIRE_HEADER_SIZE, 0xff, WIRE_OK);
}

static bool line_check_refused(struct line *line, enum wire_verdict verdict)
{
	unsigned reason = WIRE_REASON_CODEC;
	char code[16];

	if (verdict == WIRE_INVALID_STREAM)
		reason = WIRE_REASON_STREAM;
	else if (verdict == WIRE_INCOMPLETE)
		reason = line->bytes.length < WIRE_HEADER_SIZE ? WIRE_REASON_INCOMPLETE_HEADER
							       : WIRE_REASON_TRUNCATED;
	snprintf(code, sizeof(code), "code=%u", reason);
	if (strcmp(line->columns[3], "-") != 0)
		return line_fail(line, "\"%s\" instead of -", line->columns[3]);
	if (strcmp(line->columns[4], code) != 0)
		return line_fail(line, "\"%s\" instead of %s", line->columns[4], code);
	if (line->columns[5][0] != '\0')
		return line_fail(line, "fields, \"%s\", without a frame", line->columns[5]);
	if (!line_decode(line, line->bytes.length, 0, 0, verdict))
		return false;
	/* More bytes may complete a frame, but never mend one. */
	return verdict == WIRE_INCOMPLETE ||
	       line_decode(line, line->bytes.length, 2 * WIRE_HEADER_SIZE, 0x00, verdict);
}

/* TEXT has LENGTH bytes, the newline among them; it is cut into its columns. */
static bool line_check(struct line *line, char *text, size_t length)
{
	size_t columns = 1;

	line->columns[0] = text;
	if (length == 0 || text[length - 1] != '\n')
		return line_fail(line, "no newline at the end");
	text[--length] = '\0';
	if (strlen(text) != length)
		return line_fail(line, "a NUL in the line");
	for (char *tab = strchr(text, '\t'); tab != NULL; tab = strchr(tab + 1, '\t')) {
		*tab = '\0';
		if (columns < COLUMNS)
			line->columns[columns] = tab + 1;
		columns++;
	}
	if (columns != COLUMNS)
		return line_fail(line, "%zu columns instead of %d", columns, COLUMNS);
	if (line->columns[0][0] == '\0')
		return line_fail(line, "no name");
	if (!parse_hex(&line->arena, line->columns[2], strlen(line->columns[2]), &line->bytes))
		return line_fail(line, "the third column is not hexadecimal");
	if (strcmp(line->columns[1], verdict_names[WIRE_OK]) == 0)
		return line_check_ok(line);
	for (size_t i = WIRE_OK + 1; i < ARRAY_LENGTH(verdict_names); i++) {
		if (strcmp(line->columns[1], verdict_names[i]) == 0)
			return line_check_refused(line, (enum wire_verdict)i);
	}
	return line_fail(line, "\"%s\" is no verdict", line->columns[1]);
}

int main(int argument_count, char **arguments)
{
	FILE *file = NULL;
	char *text = NULL;
	size_t text_size = 0;
	ssize_t length;
	uint64_t expected = 1;
	unsigned long number = 0, passed = 0, failed = 0;

	if (argument_count < 2 || argument_count > 3 ||
	    (argument_count == 3 && !parse_number(arguments[2], ULONG_MAX, &expected))) {
		fputs("usage: codec_vectors FILE [LINES]\n", stderr);
		return 2;
	}
	file = fopen(arguments[1], "r");
	if (file == NULL) {
		printf("%s: %s\n", arguments[1], strerror(errno));
		failed++;
	}
	while (file != NULL && (length = getline(&text, &text_size, file)) >= 0) {
		struct line line = {.number = ++number};

		/* An item of a list takes its length of 4 bytes, and a character of the line. */
		line.arena.size = 8 * (size_t)length + 64;
		line.arena.bytes = allocate(line.arena.size);
		if (line_check(&line, text, (size_t)length))
			passed++;
		else
			failed++;
		free(line.arena.bytes);
	}
	if (file != NULL && (ferror(file) || number < expected || number == 0)) {
		printf("%s: %lu lines instead of at least %" PRIu64 "\n", arguments[1], number,
		       expected);
		failed++;
	}
	free(text);
	if (file != NULL)
		fclose(file);
	printf("%lu passed, %lu failed\n", passed, failed);
	return failed > 0;
}
