/* The effective configuration as a file (liminald -T), and the sample file. */
#include "config/config_priv.h"

static void print_section(enum option_section section, const void *owner, FILE *out)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].section == section && options[i].type != TYPE_TOKEN)
			option_print(&options[i], owner, out);
}

void configuration_print(const struct configuration *configuration, FILE *out)
{
	const struct configuration_auth *auth = &configuration->auth;

	for (enum option_section section = SECTION_SERVER; section < SECTION_CHANNEL; section++) {
		fprintf(out, "[%s]\n", option_section_names[section]);
		if (section == SECTION_AUTH && auth->token != NULL && auth->token_file == NULL)
			fprintf(out, "# A token is set; it is left out here.\n");
		print_section(section, configuration, out);
		fprintf(out, "\n");
	}
	for (size_t i = 0; i < configuration->channel_count; i++) {
		const struct configuration_channel *channel = &configuration->channels[i];

		fprintf(out, "[%s %s]\n", option_section_names[SECTION_CHANNEL], channel->name);
		for (size_t j = 0; j < OPTION_COUNT; j++)
			if (options[j].section == SECTION_CHANNEL &&
			    (channel->durable || !option_is_durable(&options[j])))
				option_print(&options[j], channel, out);
		fprintf(out, "\n");
	}
}

static void print_sample_option(const struct option *option, FILE *out)
{
	char facts[256];
	struct text text = TEXT_INIT(facts);

	option_facts(option, &text);
	fprintf(out, "\n# %s.\n# %s\n# %s = %s\n", option->help, facts, option->key,
		option->default_text != NULL ? option->default_text : option->range);
}

void configuration_print_sample(FILE *out)
{
	fprintf(out, "%s",
		"# The configuration of liminald; liminald.conf(5) says more.\n"
		"# As it stands here this file changes nothing: each key shows its default, or an\n"
		"# example where there is none. `liminald -t` checks a file, `liminald -T` prints\n"
		"# what follows from it.\n");
	for (enum option_section section = SECTION_SERVER; section < SECTION_COUNT; section++) {
		if (section == SECTION_CHANNEL)
			fprintf(out, "%s",
				"\n# One section for each channel; the name alone is enough. No "
				"channel "
				"exists\n# that is not listed.\n\n[channel events]\n");
		else
			fprintf(out, "\n[%s]\n", option_section_names[section]);
		for (size_t i = 0; i < OPTION_COUNT; i++)
			if (options[i].section == section)
				print_sample_option(&options[i], out);
	}
}
