/* Bounded text, UTF-8, and the escaping of names. */
#include "base/text.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

struct span span_of(const char *text)
{
	if (text == NULL)
		return (struct span){.data = NULL};
	return (struct span){.data = (const uint8_t *)text, .length = strlen(text)};
}

bool span_equal(struct span a, struct span b)
{
	return a.length == b.length && (a.length == 0 || memcmp(a.data, b.data, a.length) == 0);
}

/* How long a character is that starts with LEAD; 0: none does (continuations, C0, C1, F5-FF). */
static size_t utf8_length(uint8_t lead)
{
	if (lead < 0x80)
		return 1;
	if (lead < 0xC2)
		return 0;
	if (lead < 0xE0)
		return 2;
	if (lead < 0xF0)
		return 3;
	return lead < 0xF5 ? 4 : 0;
}

static bool utf8_continues(uint8_t byte)
{
	return (byte & 0xC0) == 0x80;
}

/* The length of the character that BYTES start with; 0 when that is not one. */
static size_t utf8_first(const uint8_t *bytes, size_t length)
{
	size_t want, i;

	if (length == 0)
		return 0;
	want = utf8_length(bytes[0]);
	if (want > length)
		return 0;
	for (i = 1; i < want; i++)
		if (!utf8_continues(bytes[i]))
			return 0;
	/* The second byte tells overlong forms, surrogates and what is above U+10FFFF. */
	if ((bytes[0] == 0xE0 && bytes[1] < 0xA0) || (bytes[0] == 0xED && bytes[1] > 0x9F) ||
	    (bytes[0] == 0xF0 && bytes[1] < 0x90) || (bytes[0] == 0xF4 && bytes[1] > 0x8F))
		return 0;
	return want;
}

bool utf8_valid(const uint8_t *bytes, size_t length)
{
	size_t offset = 0;

	while (offset < length) {
		uint64_t word;
		size_t size;

		/* Most names are ASCII: eight bytes at a time. */
		if (length - offset >= sizeof(word)) {
			memcpy(&word, bytes + offset, sizeof(word));
			if ((word & UINT64_C(0x8080808080808080)) == 0) {
				offset += sizeof(word);
				continue;
			}
		}
		if (bytes[offset] < 0x80) {
			offset++;
			continue;
		}
		size = utf8_first(bytes + offset, length - offset);
		if (size == 0)
			return false;
		offset += size;
	}
	return true;
}

size_t utf8_cut(const uint8_t *bytes, size_t length, size_t limit)
{
	if (limit >= length)
		return length;
	while (limit > 0 && utf8_continues(bytes[limit]))
		limit--;
	return limit;
}

/* LENGTH without a character at the end that is only begun. */
static size_t text_complete(const char *bytes, size_t length)
{
	size_t back;

	for (back = 1; back <= 3 && back <= length; back++) {
		uint8_t byte = (uint8_t)bytes[length - back];

		if (!utf8_continues(byte))
			return utf8_length(byte) > back ? length - back : length;
	}
	return length;
}

/* Nothing is added behind a cut: text with a hole in it says something else. */
void text_add(struct text *text, const char *format, ...)
{
	size_t room = text->size - text->length;
	va_list arguments;
	int wanted;

	if (text->cut)
		return;
	va_start(arguments, format);
	wanted = vsnprintf(text->data + text->length, room, format, arguments);
	va_end(arguments);
	if (wanted >= 0 && (size_t)wanted < room) {
		text->length += (size_t)wanted;
		return;
	}
	text->cut = true;
	if (wanted >= 0)
		text->length += text_complete(text->data + text->length, room - 1);
	text->data[text->length] = '\0';
}

void text_add_bytes(struct text *text, const char *bytes, size_t length)
{
	size_t room = text->size - text->length - 1;

	if (text->cut || length == 0)
		return;
	if (length > room) {
		text->cut = true;
		length = text_complete(bytes, room);
	}
	memcpy(text->data + text->length, bytes, length);
	text->length += length;
	text->data[text->length] = '\0';
}

size_t text_escape(struct span bytes, char escaped[TEXT_ESCAPED_MAX], size_t *escaped_length)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *data = bytes.data;
	size_t size = utf8_first(data, bytes.length);
	bool control = data[0] < 0x20 || data[0] == 0x7F ||
		       (data[0] == 0xC2 && size == 2 && data[1] < 0xA0);
	size_t i, length = 0;

	*escaped_length = 0;
	if (size > 0 && !control && data[0] != '\\') {
		memcpy(escaped, data, size);
		*escaped_length = size;
		return size;
	}
	if (size == 0)
		size = 1;
	for (i = 0; i < size; i++) {
		escaped[length++] = '\\';
		escaped[length++] = 'x';
		escaped[length++] = digits[data[i] >> 4];
		escaped[length++] = digits[data[i] & 0x0F];
	}
	*escaped_length = length;
	return size;
}

struct span text_name_shown(struct span name)
{
	size_t shown = 0;

	while (shown < name.length) {
		size_t size = utf8_first(name.data + shown, name.length - shown);

		if (size_max(size, 1) > TEXT_NAME_MAX - shown)
			break;
		shown += size_max(size, 1);
	}
	return (struct span){.data = name.data, .length = shown};
}

void text_add_name(struct text *text, struct span name)
{
	struct span rest = text_name_shown(name);

	while (rest.length > 0 && !text->cut) {
		char escaped[TEXT_ESCAPED_MAX];
		size_t escaped_length;
		size_t used = text_escape(rest, escaped, &escaped_length);

		/* Half an escape would read as something else. */
		if (escaped_length > text->size - text->length - 1)
			text->cut = true;
		text_add_bytes(text, escaped, escaped_length);
		rest.data += used;
		rest.length -= used;
	}
}
