/*
 * Loading: the file, then the environment, then what concerns several values. Problems of all three
 * are collected and handed over in the order of the file, those of the environment last.
 */
#include "config/config_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

/* --- problems --------------------------------------------------------------------------------- */

static void loader_add_problem(struct loader *loader, unsigned long line, bool warning,
			       const char *message)
{
	size_t count = loader->problem_count;
	struct problem *problem;
	size_t place;

	if (!warning)
		loader->failed = true;
	if ((count & (count - 1)) == 0) {
		size_t capacity = count == 0 ? 1 : 2 * count;

		problem = capacity > SIZE_MAX / sizeof(*problem)
				  ? NULL
				  : realloc(loader->problems, capacity * sizeof(*problem));
		if (problem == NULL) {
			loader->no_memory = true;
			return;
		}
		loader->problems = problem;
	}
	/* Most come in order: the place is found from the end. */
	place = count;
	while (place > 0 && loader->problems[place - 1].line > line)
		place--;
	problem = &loader->problems[place];
	memmove(problem + 1, problem, (count - place) * sizeof(*problem));
	*problem = (struct problem){.line = line, .warning = warning, .text = strdup(message)};
	loader->problem_count++;
	if (problem->text == NULL)
		loader->no_memory = true;
}

static void loader_problem(struct loader *loader, unsigned long line, bool warning,
			   const char *format, va_list arguments) PRINTF_LIKE(4, 0);

static void loader_problem(struct loader *loader, unsigned long line, bool warning,
			   const char *format, va_list arguments)
{
	char message[6144];
	char words[2048];
	struct text text = TEXT_INIT(message);

	vsnprintf(words, sizeof(words), format, arguments);
	if (line == LOADER_ENVIRONMENT)
		text_add(&text, "%s", words);
	else if (line == 0)
		text_add(&text, "%s: %s", loader->name, words);
	else
		text_add(&text, "%s:%lu: %s", loader->name, line, words);
	loader_add_problem(loader, line, warning, message);
}

void loader_error(struct loader *loader, unsigned long line, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	loader_problem(loader, line, false, format, arguments);
	va_end(arguments);
}

void loader_warn(struct loader *loader, unsigned long line, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	loader_problem(loader, line, true, format, arguments);
	va_end(arguments);
}

/* --- sections --------------------------------------------------------------------------------- */

static void loader_enter(struct loader *loader, enum option_section section, void *owner,
			 struct lines *lines)
{
	loader->state = LOADER_SECTION;
	loader->section = section;
	loader->owner = owner;
	loader->owner_lines = lines;
}

static void loader_check_channel_name(struct loader *loader, const char *name)
{
	const struct configuration *configuration = loader->configuration;
	char message[1024];
	struct text text = TEXT_INIT(message);
	char reason[128];
	struct text why = TEXT_INIT(reason);

	value_quote(&text, name);
	if (!value_channel_name(span_of(name), &why)) {
		loader_error(loader, loader->line, "%s %s", message, reason);
		return;
	}
	for (size_t i = 0; i < configuration->channel_count; i++) {
		if (strcmp(configuration->channels[i].name, name) != 0)
			continue;
		loader_error(loader, loader->line, "channel %s is configured already, on line %lu",
			     message, loader->channel_lines[i].section);
		return;
	}
}

/* Adds the channel whatever is wrong with its name, so that its keys are checked all the same. */
static void loader_enter_channel(struct loader *loader, const char *name)
{
	size_t count = loader->configuration->channel_count;
	struct configuration_channel *channel;
	struct lines *lines = NULL;

	loader_check_channel_name(loader, name);
	if (count < SIZE_MAX / sizeof(*lines))
		lines = realloc(loader->channel_lines, (count + 1) * sizeof(*lines));
	if (lines != NULL)
		loader->channel_lines = lines;
	channel = lines == NULL ? NULL : configuration_add_channel(loader->configuration, name);
	if (channel == NULL) {
		loader->no_memory = true;
		loader->state = LOADER_UNKNOWN_SECTION;
		return;
	}
	lines[count] = (struct lines){.section = loader->line};
	loader_enter(loader, SECTION_CHANNEL, channel, &lines[count]);
}

static void loader_unknown_section(struct loader *loader, const char *name)
{
	char first_word[TEXT_NAME_MAX];
	struct text word = TEXT_INIT(first_word);
	struct nearest nearest = {.word = first_word};
	char message[1024];
	struct text text = TEXT_INIT(message);

	text_add_bytes(&word, name, strcspn(name, " \t"));
	for (size_t i = 0; i < SECTION_COUNT; i++)
		nearest_consider(&nearest, option_section_names[i]);
	text_add(&text, "unknown section ");
	value_quote(&text, name);
	nearest_add(&nearest, &text);
	loader_error(loader, loader->line, "%s", message);
	loader->state = LOADER_UNKNOWN_SECTION;
}

void loader_section(struct loader *loader, const char *name)
{
	const char *channel = option_section_names[SECTION_CHANNEL];
	size_t length = strlen(channel);

	if (strncmp(name, channel, length) == 0 &&
	    (name[length] == '\0' || value_is_blank(name[length]))) {
		name += length;
		while (value_is_blank(*name))
			name++;
		if (*name == '\0') {
			loader_error(loader, loader->line,
				     "a channel needs a name: [channel NAME]");
			loader->state = LOADER_UNKNOWN_SECTION;
		} else {
			loader_enter_channel(loader, name);
		}
		return;
	}
	for (enum option_section section = SECTION_SERVER; section < SECTION_CHANNEL; section++) {
		if (strcmp(option_section_names[section], name) == 0) {
			loader_enter(loader, section, loader->configuration, &loader->lines);
			return;
		}
	}
	loader_unknown_section(loader, name);
}

/* --- keys and values -------------------------------------------------------------------------- */

static void loader_unknown_key(struct loader *loader, const char *key)
{
	struct nearest nearest = {.word = key};
	char message[1024];
	struct text text = TEXT_INIT(message);
	const struct option *elsewhere = NULL;

	for (size_t i = 0; i < OPTION_COUNT; i++) {
		if (options[i].section == loader->section)
			nearest_consider(&nearest, options[i].key);
		else if (strcmp(options[i].key, key) == 0)
			elsewhere = &options[i];
	}
	text_add(&text, "unknown key ");
	value_quote(&text, key);
	text_add(&text, " in [%s]", option_section_names[loader->section]);
	if (elsewhere != NULL)
		text_add(&text, "; it belongs in [%s%s]", option_section_names[elsewhere->section],
			 elsewhere->section == SECTION_CHANNEL ? " NAME" : "");
	else
		nearest_add(&nearest, &text);
	loader_error(loader, loader->line, "%s", message);
}

/* NAME, a key or a variable, does not take VALUE. */
static void loader_refuse_value(struct loader *loader, unsigned long line, const char *name,
				const struct option *option, const char *value, const char *why)
{
	char quoted[TEXT_NAME_MAX * 4 + 3];
	struct text shown = TEXT_INIT(quoted);

	if (why[0] == '\0') {
		loader->no_memory = true;
	} else if (option->type == TYPE_TOKEN || value[0] == '\0') {
		/* A token is a secret, also when it is not a good one. */
		loader_error(loader, line, "%s %s", name, why);
	} else {
		value_quote(&shown, value);
		loader_error(loader, line, "%s %s %s", name, quoted, why);
	}
}

const struct option *loader_find(struct loader *loader, const char *key, const char *value)
{
	const struct option *option;
	unsigned long *line;
	char reason[TEXT_NAME_MAX * 4 + 3];
	struct text why = TEXT_INIT(reason);

	if (loader->state == LOADER_UNKNOWN_SECTION)
		return NULL;
	if (loader->state == LOADER_NO_SECTION) {
		value_quote(&why, key);
		loader_error(loader, loader->line, "%s stands before the first [section]", reason);
		return NULL;
	}
	option = option_find(loader->section, key);
	if (option == NULL) {
		loader_unknown_key(loader, key);
		return NULL;
	}
	line = &loader->owner_lines->option[option - options];
	if (*line != 0 && !option_is_list(option)) {
		loader_error(loader, loader->line, "\"%s\" is set already, on line %lu", key,
			     *line);
		return NULL;
	}
	/* What the file lists takes the place of the default. */
	if (*line == 0 && option_is_list(option))
		option_clear(option, loader->owner);
	*line = loader->line;
	if (loader->override[option - options] != NULL)
		return NULL;
	if (!value_fits_file(value, &why)) {
		loader_refuse_value(loader, loader->line, key, option, value, reason);
		return NULL;
	}
	return option;
}

void loader_set(struct loader *loader, const struct option *option, const char *value)
{
	char reason[512];
	struct text why = TEXT_INIT(reason);

	if (!option_set(option, loader->owner, value, &why))
		loader_refuse_value(loader, loader->line, option->key, option, value, reason);
}

/* --- the environment -------------------------------------------------------------------------- */

/* A variable, and the option that it sets. LIMINAL_AUTH_TOKEN stands for token_file, too. */
static const struct override {
	const char *variable;
	enum option_id option;
} loader_overrides[] = {
	{"LIMINAL_LISTEN_ADDRESS", OPTION_listen},
	{"LIMINAL_HEALTH_LISTEN_ADDRESS", OPTION_http_listen},
	{"LIMINAL_DRAIN_TIMEOUT_MS", OPTION_drain_timeout},
	{"LIMINAL_PERSISTENCE_PATH", OPTION_state_dir},
	{"LIMINAL_AUTH_TOKEN", OPTION_token},
};

static void loader_find_overrides(struct loader *loader)
{
	for (size_t i = 0; i < ARRAY_LENGTH(loader_overrides); i++) {
		const struct override *override = &loader_overrides[i];

		if (getenv(override->variable) != NULL)
			loader->override[override->option] = override->variable;
	}
	loader->override[OPTION_token_file] = loader->override[OPTION_token];
}

static void loader_apply_overrides(struct loader *loader)
{
	for (size_t i = 0; i < ARRAY_LENGTH(loader_overrides); i++) {
		const struct override *override = &loader_overrides[i];
		const struct option *option = &options[override->option];
		const char *value = getenv(override->variable);
		char in_ms[32];
		char reason[512];
		struct text why = TEXT_INIT(reason);
		const char *text = value;
		uint64_t ms;

		if (value == NULL)
			continue;
		if (option->type == TYPE_DURATION) {
			/* The unit is in the variable's name. */
			if (value_count(value, &ms, &why)) {
				snprintf(in_ms, sizeof(in_ms), "%llums", (unsigned long long)ms);
				text = in_ms;
			} else {
				text_add(&why, " of milliseconds");
			}
		}
		if (option_is_list(option))
			option_clear(option, loader->configuration);
		if (why.length > 0 || !option_set(option, loader->configuration, text, &why))
			loader_refuse_value(loader, LOADER_ENVIRONMENT, override->variable, option,
					    value, reason);
	}
}

/* --- the whole -------------------------------------------------------------------------------- */

/* Hands the problems over, and frees what the loader holds. */
static void loader_finish(struct loader *loader, struct configuration_problems *problems)
{
	for (size_t i = 0; i < loader->problem_count; i++) {
		const struct problem *problem = &loader->problems[i];
		struct string_list *list =
			problem->warning ? &problems->warnings : &problems->errors;

		if (problem->text == NULL || !string_list_add(list, problem->text))
			loader->no_memory = true;
		free(problem->text);
	}
	/* It may be missing for this line, too: no configuration comes back all the same. */
	if (loader->no_memory)
		(void)string_list_add(&problems->errors, "out of memory");
	free(loader->problems);
	free(loader->channel_lines);
	if (loader->failed || loader->no_memory)
		configuration_unref(&loader->configuration);
}

/* IN is open, or NULL: of NAME because of ERROR, or without NAME because there is no file. */
static struct configuration *loader_run(FILE *in, const char *name, int error,
					struct configuration_problems *problems)
{
	struct loader loader = {.name = name, .configuration = configuration_new()};

	*problems = (struct configuration_problems){.errors = {.items = NULL}};
	loader_find_overrides(&loader);
	if (loader.configuration == NULL) {
		loader.no_memory = true;
	} else {
		if (in != NULL)
			parse(&loader, in);
		else if (name != NULL)
			loader_error(&loader, 0, "cannot be read: %s", strerror(error));
		else if (configuration_add_channel(loader.configuration, "events") == NULL)
			loader.no_memory = true;
		loader_apply_overrides(&loader);
		validate(&loader);
	}
	loader_finish(&loader, problems);
	return loader.configuration;
}

struct configuration *configuration_load_stream(FILE *in, const char *name,
						struct configuration_problems *problems)
{
	value_note_start();
	return loader_run(in, name, 0, problems);
}

struct configuration *configuration_load(const char *path, struct configuration_problems *problems)
{
	struct configuration *configuration;
	FILE *in = NULL;
	int error = 0;
	char *absolute;

	value_note_start();
	if (path != NULL) {
		absolute = value_absolute(path);
		in = absolute == NULL ? NULL : fopen(absolute, "r");
		error = errno;
		free(absolute);
	}
	configuration = loader_run(in, path, error, problems);
	if (in != NULL)
		fclose(in);
	return configuration;
}
