/* What a reload cannot change stays as it was. */
#include "config/config_priv.h"

#include <string.h>

/* Options of SECTION that need a restart; WHERE stands in the lines for them. */
static bool reload_keep_options(enum option_section section, const char *where, void *new_owner,
				const void *old_owner, struct string_list *needs_restart)
{
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct option *option = &options[i];
		char line[CHANNEL_NAME_MAX + 128];
		struct text text = TEXT_INIT(line);

		if (option->section != section || option->reload ||
		    option_equal(option, new_owner, old_owner))
			continue;
		text_add(&text, "%s in [%s] has changed", option->key, where);
		if (!option_copy(option, new_owner, old_owner) ||
		    !string_list_add(needs_restart, line))
			return false;
	}
	return true;
}

/* A channel that is no longer configured lives on as it was. */
static bool reload_keep_removed(struct configuration *new, const struct configuration_channel *old,
				struct string_list *needs_restart)
{
	struct configuration_channel *channel = configuration_add_channel(new, old->name);
	char line[CHANNEL_NAME_MAX + 128];
	struct text text = TEXT_INIT(line);

	if (channel == NULL)
		return false;
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].section == SECTION_CHANNEL &&
		    !option_copy(&options[i], channel, old))
			return false;
	memcpy(channel->schema_id, old->schema_id, sizeof(channel->schema_id));
	text_add(&text, "[channel %s] is gone", old->name);
	return string_list_add(needs_restart, line);
}

static bool reload_keep_channel(struct configuration_channel *new,
				const struct configuration_channel *old,
				struct string_list *needs_restart)
{
	char where[CHANNEL_NAME_MAX + 16];
	struct text text = TEXT_INIT(where);
	char line[CHANNEL_NAME_MAX + 128];
	struct text changed = TEXT_INIT(line);
	bool same_document = option_equal(&options[OPTION_schema], new, old) &&
			     memcmp(new->schema_id, old->schema_id, sizeof(new->schema_id)) != 0;

	text_add(&text, "channel %s", old->name);
	if (same_document) {
		text_add(&changed, "the file of schema in [%s] has changed", where);
		if (!string_list_add(needs_restart, line))
			return false;
	}
	memcpy(new->schema_id, old->schema_id, sizeof(new->schema_id));
	/* What a channel may set follows from what it is. */
	for (size_t i = 0; new->durable != old->durable &&i < OPTION_COUNT; i++)
		if (option_is_durable(&options[i]) && !option_copy(&options[i], new, old))
			return false;
	return reload_keep_options(SECTION_CHANNEL, where, new, old, needs_restart);
}

/* Why CHANNEL, which is new, cannot be made now; NULL: it can. */
static const char *reload_refuse_channel(const struct configuration *new,
					 const struct configuration_channel *channel)
{
	const struct configuration_channel *dead_letter;

	if (!channel->durable)
		return NULL;
	if (new->server.state_dir == NULL)
		return "durable, and the server has no state_dir yet";
	if (channel->dead_letter == NULL)
		return NULL;
	dead_letter = configuration_find_channel(new, channel->dead_letter);
	return dead_letter != NULL && dead_letter->durable
		       ? NULL
		       : "new, and its dead_letter is not a durable channel yet";
}

/*
 * The new file is sound by itself, but what was kept of OLD may be in the way of new channels:
 * these wait for the restart, too, and so do those that name them.
 */
static bool reload_leave_out(struct configuration *new, const struct configuration *old,
			     struct string_list *needs_restart)
{
	bool again = true;

	while (again) {
		again = false;
		for (size_t i = 0; i < new->channel_count; i++) {
			struct configuration_channel *channel = &new->channels[i];
			const char *why = reload_refuse_channel(new, channel);
			char line[CHANNEL_NAME_MAX + 128];
			struct text text = TEXT_INIT(line);

			if (why == NULL || configuration_find_channel(old, channel->name) != NULL)
				continue;
			text_add(&text, "[channel %s] is %s", channel->name, why);
			if (!string_list_add(needs_restart, line))
				return false;
			configuration_remove_channel(new, channel);
			again = true;
			break;
		}
	}
	return true;
}

bool configuration_keep_fixed(struct configuration *new, const struct configuration *old,
			      struct string_list *needs_restart)
{
	*needs_restart = (struct string_list){.items = NULL};
	for (enum option_section section = SECTION_SERVER; section < SECTION_CHANNEL; section++)
		if (!reload_keep_options(section, option_section_names[section], new, old,
					 needs_restart))
			return false;
	for (size_t i = 0; i < old->channel_count; i++) {
		const struct configuration_channel *channel = &old->channels[i];
		struct configuration_channel *kept = configuration_find_channel(new, channel->name);

		if (kept == NULL ? !reload_keep_removed(new, channel, needs_restart)
				 : !reload_keep_channel(kept, channel, needs_restart))
			return false;
	}
	return reload_leave_out(new, old, needs_restart);
}
