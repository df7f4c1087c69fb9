/* The configuration as an object: creation with defaults, references, lists of strings. */
#include "config/config_priv.h"

#include <stdlib.h>
#include <string.h>

#include "base/schema.h"

bool string_list_add(struct string_list *list, const char *text)
{
	char *copy;

	/* Full at each power of two: the capacity needs no field. */
	if ((list->count & (list->count - 1)) == 0) {
		size_t capacity = list->count == 0 ? 1 : 2 * list->count;
		char **items;

		if (capacity > SIZE_MAX / sizeof(*items))
			return false;
		items = realloc(list->items, capacity * sizeof(*items));
		if (items == NULL)
			return false;
		list->items = items;
	}
	copy = strdup(text);
	if (copy == NULL)
		return false;
	list->items[list->count++] = copy;
	return true;
}

void string_list_free(struct string_list *list)
{
	for (size_t i = 0; i < list->count; i++)
		free(list->items[i]);
	free(list->items);
	*list = (struct string_list){.items = NULL};
}

void configuration_problems_free(struct configuration_problems *problems)
{
	string_list_free(&problems->errors);
	string_list_free(&problems->warnings);
}

struct configuration *configuration_new(void)
{
	struct configuration *configuration = calloc(1, sizeof(*configuration));

	if (configuration == NULL)
		return NULL;
	atomic_init(&configuration->references, 1);
	if (!options_default(false, configuration))
		configuration_unref(&configuration);
	return configuration;
}

struct configuration_channel *configuration_add_channel(struct configuration *configuration,
							const char *name)
{
	size_t count = configuration->channel_count;
	struct configuration_channel *channel;

	if ((count & (count - 1)) == 0) {
		size_t capacity = count == 0 ? 1 : 2 * count;

		if (capacity > SIZE_MAX / sizeof(*channel))
			return NULL;
		channel = realloc(configuration->channels, capacity * sizeof(*channel));
		if (channel == NULL)
			return NULL;
		configuration->channels = channel;
	}
	channel = &configuration->channels[count];
	*channel = (struct configuration_channel){.name = strdup(name)};
	if (channel->name == NULL || !options_default(true, channel)) {
		options_clear(true, channel);
		free(channel->name);
		return NULL;
	}
	schema_id((const uint8_t *)"{}", 2, channel->schema_id);
	configuration->channel_count++;
	return channel;
}

struct configuration_channel *configuration_find_channel(const struct configuration *configuration,
							 const char *name)
{
	for (size_t i = 0; i < configuration->channel_count; i++)
		if (strcmp(configuration->channels[i].name, name) == 0)
			return &configuration->channels[i];
	return NULL;
}

static void configuration_free_channel(struct configuration_channel *channel)
{
	options_clear(true, channel);
	free(channel->name);
}

void configuration_remove_channel(struct configuration *configuration,
				  struct configuration_channel *channel)
{
	size_t index = (size_t)(channel - configuration->channels);

	ASSERT(index < configuration->channel_count);
	configuration_free_channel(channel);
	configuration->channel_count--;
	memmove(channel, channel + 1, (configuration->channel_count - index) * sizeof(*channel));
}

struct configuration *configuration_ref(struct configuration *configuration)
{
	unsigned before =
		atomic_fetch_add_explicit(&configuration->references, 1, memory_order_relaxed);

	ASSERT(before > 0);
	return configuration;
}

void configuration_unref(struct configuration **configuration)
{
	struct configuration *dropped = *configuration;
	unsigned before;

	*configuration = NULL;
	if (dropped == NULL)
		return;
	before = atomic_fetch_sub_explicit(&dropped->references, 1, memory_order_acq_rel);
	ASSERT(before > 0);
	if (before > 1)
		return;
	options_clear(false, dropped);
	for (size_t i = 0; i < dropped->channel_count; i++)
		configuration_free_channel(&dropped->channels[i]);
	free(dropped->channels);
	free(dropped);
}
