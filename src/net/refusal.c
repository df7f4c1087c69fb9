#include "net/refusal.h"

#include <string.h>

#include <jansson.h>

#include "base/json_guard.h"

static const struct refusal_code {
	const char *code;
	enum refusal refusal;
} refusal_codes[] = {
	{"busy", REFUSAL_BUSY},
	{"invalid", REFUSAL_INVALID},
	{"unavailable", REFUSAL_UNAVAILABLE},
	{"internal", REFUSAL_INTERNAL},
};

static struct span refusal_string(const json_t *value)
{
	return (struct span){(const uint8_t *)json_string_value(value), json_string_length(value)};
}

/* REFUSAL_NONE when CODE, which may be missing, is none of them. */
static enum refusal refusal_of_code(const json_t *code)
{
	if (!json_is_string(code))
		return REFUSAL_NONE;
	for (size_t i = 0; i < ARRAY_LENGTH(refusal_codes); i++) {
		if (span_equal(refusal_string(code), span_of(refusal_codes[i].code)))
			return refusal_codes[i].refusal;
	}
	return REFUSAL_NONE;
}

bool refusal_parse(struct span payload, enum refusal *refusal, struct span *words,
		   uint8_t buffer[BROKER_REFUSAL_WORDS_MAX])
{
	json_error_t error;
	json_t *object;
	bool parsed = false;

	*refusal = REFUSAL_NONE;
	*words = (struct span){.data = buffer};
	if (payload.length == 0 || payload.length > REFUSAL_PAYLOAD_MAX ||
	    !json_depth_ok(payload, 1) ||
	    !json_read(payload, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, &object, &error))
		return false;

	const json_t *text = json_object_get(object, "words");
	enum refusal code = refusal_of_code(json_object_get(object, "code"));

	if (code != REFUSAL_NONE && json_is_string(text) && json_object_size(object) == 2 &&
	    json_string_length(text) <= BROKER_REFUSAL_WORDS_MAX) {
		words->length = json_string_length(text);
		memcpy(buffer, json_string_value(text), words->length);
		*refusal = code;
		parsed = true;
	}
	json_decref(object);
	return parsed;
}
