/*
 * The rows of options.tbl, and what can be done with a value by its type alone: set, compare, copy,
 * print, clear. A type is one case of each switch below.
 */
#include "config/config_priv.h"

#include <stdlib.h>
#include <string.h>

#define OPTION_OWNER_SERVER struct configuration
#define OPTION_OWNER_AUTH struct configuration
#define OPTION_OWNER_LIMITS struct configuration
#define OPTION_OWNER_CONVERSATIONS struct configuration
#define OPTION_OWNER_STORE struct configuration
#define OPTION_OWNER_CHANNEL struct configuration_channel

#define OPTION_RELOAD_RELOAD true
#define OPTION_RELOAD_RESTART false

const struct option options[OPTION_COUNT] = {
#define OPTION(section_, key_, type_, member_, default_, range_, reload_, help_)                   \
	{                                                                                          \
		.section = SECTION_##section_,                                                     \
		.key = #key_,                                                                      \
		.type = TYPE_##type_,                                                              \
		.offset = offsetof(OPTION_OWNER_##section_, member_),                              \
		.default_text = default_,                                                          \
		.range = range_,                                                                   \
		.reload = OPTION_RELOAD_##reload_,                                                 \
		.help = help_,                                                                     \
	},
#include "config/options.tbl"
#undef OPTION
};

/* The member that a row names has the size that its type writes. */
#define OPTION_SIZE_DURATION sizeof(int64_t)
#define OPTION_SIZE_SIZE sizeof(uint64_t)
#define OPTION_SIZE_COUNT sizeof(uint64_t)
#define OPTION_SIZE_SWITCH sizeof(bool)
#define OPTION_SIZE_CHOICE sizeof(unsigned)
#define OPTION_SIZE_NAME sizeof(char *)
#define OPTION_SIZE_TOKEN sizeof(char *)
#define OPTION_SIZE_PATH sizeof(char *)
#define OPTION_SIZE_SOCKET_PATH sizeof(char *)
#define OPTION_SIZE_LOG_TARGET sizeof(char *)
#define OPTION_SIZE_HTTP_ADDRESS sizeof(char *)
#define OPTION_SIZE_ADDRESSES sizeof(struct string_list)
#define OPTION_SIZE_NAMES sizeof(struct string_list)
#define OPTION_SIZE_CHANNEL_NAMES sizeof(struct string_list)
#define OPTION(section_, key_, type_, member_, default_, range_, reload_, help_)                   \
	_Static_assert(sizeof(((OPTION_OWNER_##section_ *)0)->member_) == OPTION_SIZE_##type_,     \
		       "type of " #key_);
#include "config/options.tbl"
#undef OPTION

const char *const option_section_names[SECTION_COUNT] = {
	[SECTION_SERVER] = "server", [SECTION_AUTH] = "auth",
	[SECTION_LIMITS] = "limits", [SECTION_CONVERSATIONS] = "conversations",
	[SECTION_STORE] = "store",   [SECTION_CHANNEL] = "channel",
};

static void *option_member(const struct option *option, void *owner)
{
	return (char *)owner + option->offset;
}

static const void *option_const_member(const struct option *option, const void *owner)
{
	return (const char *)owner + option->offset;
}

static unsigned option_choice(const struct option *option, const void *owner)
{
	unsigned choice;

	/* By bytes: the member is some enum. */
	memcpy(&choice, option_const_member(option, owner), sizeof(choice));
	return choice;
}

bool option_is_list(const struct option *option)
{
	return option->type == TYPE_ADDRESSES || option->type == TYPE_NAMES ||
	       option->type == TYPE_CHANNEL_NAMES;
}

bool option_is_durable(const struct option *option)
{
	return option >= &options[OPTION_max_age] && option <= &options[OPTION_consumer_expiry];
}

const struct option *option_find(enum option_section section, const char *key)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].section == section && strcmp(options[i].key, key) == 0)
			return &options[i];
	return NULL;
}

/* --- numbers and choices ---------------------------------------------------------------------- */

/* A word of the range: up to the end that the caller has found. */
#define OPTION_WORD_MAX 32

static const char *option_word(char word[OPTION_WORD_MAX], const char *text, size_t length)
{
	ASSERT(length < OPTION_WORD_MAX);
	memcpy(word, text, length);
	word[length] = '\0';
	return word;
}

/* The legal values of a number, as they stand in the table. */
struct option_range {
	bool zero; /* 0 is legal besides */
	char low[OPTION_WORD_MAX], high[OPTION_WORD_MAX];
};

static void option_get_range(const struct option *option, struct option_range *range)
{
	const char *text = option->range;
	const char *dots;

	range->zero = strncmp(text, "0|", 2) == 0;
	if (range->zero)
		text += 2;
	dots = strstr(text, "..");
	ASSERT(dots != NULL);
	option_word(range->low, text, (size_t)(dots - text));
	option_word(range->high, dots + 2, strlen(dots + 2));
}

/* A number of OPTION's type; durations are not negative. */
static bool option_number(const struct option *option, const char *text, uint64_t *number,
			  struct text *why)
{
	int64_t ms;
	bool valid;

	switch (option->type) {
	case TYPE_COUNT:
		return value_count(text, number, why);
	case TYPE_SIZE:
		return value_size(text, number, why);
	default:
		ASSERT(option->type == TYPE_DURATION);
		valid = value_duration(text, &ms, why);
		*number = (uint64_t)ms;
		return valid;
	}
}

static bool option_number_in_range(const struct option *option, const char *text, uint64_t *number,
				   struct text *why)
{
	struct option_range range;
	uint64_t low, high;

	if (!option_number(option, text, number, why))
		return false;
	option_get_range(option, &range);
	if (range.zero && *number == 0)
		return true;
	if (!option_number(option, range.low, &low, why) ||
	    !option_number(option, range.high, &high, why))
		ASSERT(!"the table has numbers as bounds");
	if (*number >= low && *number <= high)
		return true;
	text_add(why, "is out of range: %s%s to %s", range.zero ? "0, or " : "", range.low,
		 range.high);
	return false;
}

/* The words of a choice, one a call; *AT starts as the range. False at the end. */
static bool option_next_choice(const char **at, char word[OPTION_WORD_MAX])
{
	size_t length = strcspn(*at, " ");

	if (length == 0)
		return false;
	option_word(word, *at, length);
	*at += length + strspn(*at + length, " ");
	return true;
}

static void option_add_choices(const struct option *option, struct text *text)
{
	const char *at = option->range;
	char word[OPTION_WORD_MAX];

	for (bool first = true; option_next_choice(&at, word); first = false)
		text_add(text, "%s%s", first ? "" : ", ", word);
}

static void option_add_choice(const struct option *option, unsigned choice, struct text *text)
{
	const char *at = option->range;
	char word[OPTION_WORD_MAX];

	for (unsigned i = 0; option_next_choice(&at, word); i++)
		if (i == choice)
			text_add(text, "%s", word);
}

static bool option_find_choice(const struct option *option, const char *value, unsigned *choice,
			       struct text *why)
{
	const char *at = option->range;
	char words[8][OPTION_WORD_MAX];
	struct nearest nearest = {.word = value};

	for (*choice = 0; option_next_choice(&at, words[*choice]); ++*choice) {
		if (strcmp(words[*choice], value) == 0)
			return true;
		nearest_consider(&nearest, words[*choice]);
		ASSERT(*choice + 1 < ARRAY_LENGTH(words));
	}
	text_add(why, "is not one of ");
	option_add_choices(option, why);
	nearest_add(&nearest, why);
	return false;
}

/* --- texts ------------------------------------------------------------------------------------ */

/* VALUE as it is kept, to be freed; NULL with WHY, which stays empty when memory is missing. */
static char *option_text(const struct option *option, const char *value, struct text *why)
{
	if (option->type == TYPE_TOKEN) {
		if (value[0] == '\0' || strlen(value) > TOKEN_MAX) {
			text_add(why, "has not 1 to %d bytes", TOKEN_MAX);
			return NULL;
		}
		return strdup(value);
	}
	if (!value_fits_file(value, why))
		return NULL;
	switch (option->type) {
	case TYPE_PATH:
		return value_path(value, why);
	case TYPE_SOCKET_PATH:
		return value_socket_path(value, why);
	case TYPE_LOG_TARGET:
		if (strchr(value, '/') != NULL)
			return value_path(value, why);
		if (strcmp(value, "stderr") != 0 && strcmp(value, "syslog") != 0) {
			text_add(why, "is neither stderr nor syslog nor a path with a \"/\"");
			return NULL;
		}
		break;
	case TYPE_HTTP_ADDRESS:
		if (strcmp(value, "none") == 0)
			break;
#ifdef HAVE_HTTP
		if (!value_address(value, why))
			return NULL;
		break;
#else
		text_add(why, "is not none, and this build has no HTTP");
		return NULL;
#endif
	case TYPE_ADDRESSES:
		if (strchr(value, '/') != NULL)
			return value_socket_path(value, why);
		if (!value_address(value, why))
			return NULL;
		break;
	case TYPE_CHANNEL_NAMES:
		if (!value_channel_name(span_of(value), why))
			return NULL;
		break;
	default:
		ASSERT(option->type == TYPE_NAME || option->type == TYPE_NAMES);
		if (!utf8_valid((const uint8_t *)value, strlen(value))) {
			text_add(why, "is not UTF-8");
			return NULL;
		}
		break;
	}
	return strdup(value);
}

bool option_set(const struct option *option, void *owner, const char *value, struct text *why)
{
	void *member = option_member(option, owner);
	uint64_t number;
	unsigned choice;
	bool on, added;
	char *text;

	switch (option->type) {
	case TYPE_DURATION:
		if (!option_number_in_range(option, value, &number, why))
			return false;
		*(int64_t *)member = (int64_t)number;
		return true;
	case TYPE_SIZE:
	case TYPE_COUNT:
		if (!option_number_in_range(option, value, &number, why))
			return false;
		*(uint64_t *)member = number;
		return true;
	case TYPE_SWITCH:
		if (!value_switch(value, &on, why))
			return false;
		*(bool *)member = on;
		return true;
	case TYPE_CHOICE:
		if (!option_find_choice(option, value, &choice, why))
			return false;
		memcpy(member, &choice, sizeof(choice));
		return true;
	default:
		text = option_text(option, value, why);
		if (text == NULL)
			return false;
		if (option_is_list(option)) {
			added = string_list_add(member, text);
			free(text);
			return added;
		}
		free(*(char **)member);
		*(char **)member = text;
		return true;
	}
}

void option_clear(const struct option *option, void *owner)
{
	void *member = option_member(option, owner);

	switch (option->type) {
	case TYPE_DURATION:
	case TYPE_SIZE:
	case TYPE_COUNT:
	case TYPE_SWITCH:
	case TYPE_CHOICE:
		break;
	default:
		if (option_is_list(option)) {
			string_list_free(member);
		} else {
			free(*(char **)member);
			*(char **)member = NULL;
		}
		break;
	}
}

static bool option_texts_equal(const char *a, const char *b)
{
	return a == b || (a != NULL && b != NULL && strcmp(a, b) == 0);
}

bool option_equal(const struct option *option, const void *a, const void *b)
{
	const void *left = option_const_member(option, a);
	const void *right = option_const_member(option, b);
	const struct string_list *left_list, *right_list;

	switch (option->type) {
	case TYPE_DURATION:
		return *(const int64_t *)left == *(const int64_t *)right;
	case TYPE_SIZE:
	case TYPE_COUNT:
		return *(const uint64_t *)left == *(const uint64_t *)right;
	case TYPE_SWITCH:
		return *(const bool *)left == *(const bool *)right;
	case TYPE_CHOICE:
		return option_choice(option, a) == option_choice(option, b);
	default:
		if (!option_is_list(option))
			return option_texts_equal(*(char *const *)left, *(char *const *)right);
		left_list = left;
		right_list = right;
		if (left_list->count != right_list->count)
			return false;
		for (size_t i = 0; i < left_list->count; i++)
			if (strcmp(left_list->items[i], right_list->items[i]) != 0)
				return false;
		return true;
	}
}

bool option_copy(const struct option *option, void *to, const void *from)
{
	void *target = option_member(option, to);
	const void *source = option_const_member(option, from);
	const struct string_list *list;
	char *text;

	switch (option->type) {
	case TYPE_DURATION:
		*(int64_t *)target = *(const int64_t *)source;
		return true;
	case TYPE_SIZE:
	case TYPE_COUNT:
		*(uint64_t *)target = *(const uint64_t *)source;
		return true;
	case TYPE_SWITCH:
		*(bool *)target = *(const bool *)source;
		return true;
	case TYPE_CHOICE:
		memcpy(target, source, sizeof(unsigned));
		return true;
	default:
		option_clear(option, to);
		if (option_is_list(option)) {
			list = source;
			for (size_t i = 0; i < list->count; i++)
				if (!string_list_add(target, list->items[i]))
					return false;
			return true;
		}
		text = *(char *const *)source;
		if (text == NULL)
			return true;
		*(char **)target = strdup(text);
		return *(char **)target != NULL;
	}
}

/* --- what people see -------------------------------------------------------------------------- */

static void option_print_value(const struct option *option, const char *value, FILE *out)
{
	fprintf(out, "%s = %s\n", option->key, value);
}

void option_print(const struct option *option, const void *owner, FILE *out)
{
	const void *member = option_const_member(option, owner);
	char value[VALUE_MAX + 1];
	struct text text = TEXT_INIT(value);
	const struct string_list *list;

	switch (option->type) {
	case TYPE_DURATION:
		value_print_duration(&text, *(const int64_t *)member);
		break;
	case TYPE_SIZE:
		value_print_size(&text, *(const uint64_t *)member);
		break;
	case TYPE_COUNT:
		text_add(&text, "%llu", (unsigned long long)*(const uint64_t *)member);
		break;
	case TYPE_SWITCH:
		text_add(&text, "%s", *(const bool *)member ? "yes" : "no");
		break;
	case TYPE_CHOICE:
		option_add_choice(option, option_choice(option, owner), &text);
		break;
	default:
		if (option_is_list(option)) {
			list = member;
			for (size_t i = 0; i < list->count; i++)
				option_print_value(option, list->items[i], out);
		} else if (*(char *const *)member != NULL) {
			option_print_value(option, *(char *const *)member, out);
		}
		return;
	}
	option_print_value(option, value, out);
}

static const char *option_no_default(const struct option *option)
{
	/* A list of names that is empty admits every name. */
	return option->type == TYPE_NAMES ? "any" : "none";
}

void option_facts(const struct option *option, struct text *text)
{
	struct option_range range;

	text_add(text, "Default %s",
		 option->default_text != NULL ? option->default_text : option_no_default(option));
	switch (option->type) {
	case TYPE_DURATION:
	case TYPE_SIZE:
	case TYPE_COUNT:
		option_get_range(option, &range);
		text_add(text, "; range %s%s to %s", range.zero ? "0, or " : "", range.low,
			 range.high);
		break;
	case TYPE_SWITCH:
		text_add(text, "; yes or no");
		break;
	case TYPE_CHOICE:
		text_add(text, "; one of ");
		option_add_choices(option, text);
		break;
	default:
		if (option_is_list(option))
			text_add(text, "; repeatable");
		break;
	}
	text_add(text, option->reload ? "; changes with SIGHUP." : "; needs a restart.");
}

static bool option_is_of(const struct option *option, bool channel)
{
	return (option->section == SECTION_CHANNEL) == channel;
}

bool options_default(bool channel, void *owner)
{
	char reason[128];
	struct text why = TEXT_INIT(reason);

	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const char *value = options[i].default_text;

		if (!option_is_of(&options[i], channel) || value == NULL)
			continue;
#ifndef HAVE_HTTP
		if (i == OPTION_http_listen)
			value = "none";
#endif
		if (!option_set(&options[i], owner, value, &why)) {
			ASSERT(why.length == 0);
			return false;
		}
	}
	return true;
}

void options_clear(bool channel, void *owner)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (option_is_of(&options[i], channel))
			option_clear(&options[i], owner);
}
