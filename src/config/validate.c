/*
 * What the table cannot say of one value: pairs of options, the channels and the files that the
 * configuration names, and what is legal but unwise.
 */
#include "config/config_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/schema.h"

#define VALIDATE_SCHEMA_MAX (16 * 1024 * 1024)

/* The line for a problem of OPTION. */
static unsigned long validate_line(const struct loader *loader, enum option_id option)
{
	return loader->override[option] != NULL ? LOADER_ENVIRONMENT : loader->lines.option[option];
}

/* What a problem of OPTION is named after. */
static const char *validate_name(const struct loader *loader, enum option_id option)
{
	return loader->override[option] != NULL ? loader->override[option] : options[option].key;
}

/*
 * The first LIMIT bytes of the file, to be freed, with LENGTH and MODE; NULL with WHY, which stays
 * empty when memory is missing. Only a regular file: another one could block, now or at a reload.
 */
static uint8_t *validate_read_file(const char *path, size_t limit, size_t *length, mode_t *mode,
				   struct text *why)
{
	struct stat status;
	uint8_t *bytes = NULL;
	ssize_t count = 1;
	int fd;

	*length = 0;
	*mode = 0;
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0 || fstat(fd, &status) != 0) {
		text_add(why, "cannot be read: %s", strerror(errno));
		goto out;
	}
	if (!S_ISREG(status.st_mode)) {
		text_add(why, "is not a regular file");
		goto out;
	}
	if (status.st_size >= 0 && (uintmax_t)status.st_size < limit)
		limit = (size_t)status.st_size;
	bytes = malloc(size_max(limit, 1));
	while (bytes != NULL && *length < limit && count > 0) {
		count = read(fd, bytes + *length, limit - *length);
		if (count > 0)
			*length += (size_t)count;
	}
	if (count < 0) {
		text_add(why, "cannot be read: %s", strerror(errno));
		free(bytes);
		bytes = NULL;
	}
	*mode = status.st_mode;
out:
	if (fd >= 0)
		close(fd);
	return bytes;
}

/* OPTION, whose value is a file, has a problem; with an empty WHY memory was missing. */
static void validate_refuse_file(struct loader *loader, unsigned long line, enum option_id option,
				 const char *path, const struct text *why)
{
	char quoted[TEXT_NAME_MAX * 4 + 3];
	struct text shown = TEXT_INIT(quoted);

	if (why->length == 0) {
		loader->no_memory = true;
		return;
	}
	value_quote(&shown, path);
	loader_error(loader, line, "%s %s %s", options[option].key, quoted, why->data);
}

static void validate_read_token(struct loader *loader)
{
	struct configuration_auth *auth = &loader->configuration->auth;
	unsigned long line = loader->lines.option[OPTION_token_file];
	char reason[512];
	struct text why = TEXT_INIT(reason);
	size_t length;
	mode_t mode;
	/* A CR LF, and one byte that is too many. */
	uint8_t *bytes = validate_read_file(auth->token_file, TOKEN_MAX + 3, &length, &mode, &why);
	char *token;

	if (bytes != NULL) {
		uint8_t *end = memchr(bytes, '\n', length);

		if (end != NULL)
			length = (size_t)(end - bytes);
		if (length > 0 && bytes[length - 1] == '\r')
			length--;
		if (length == 0)
			text_add(&why, "has an empty first line");
		else if (length > TOKEN_MAX)
			text_add(&why, "has a first line longer than %d bytes", TOKEN_MAX);
		else if (memchr(bytes, '\0', length) != NULL)
			text_add(&why, "has a NUL byte in its first line");
	}
	token = bytes == NULL || why.length > 0 ? NULL : malloc(length + 1);
	if (token != NULL) {
		memcpy(token, bytes, length);
		token[length] = '\0';
		auth->token = token;
		if ((mode & S_IROTH) != 0)
			loader_warn(loader, line,
				    "every user of this machine can read the token_file");
	} else {
		validate_refuse_file(loader, line, OPTION_token_file, auth->token_file, &why);
	}
	free(bytes);
}

static void validate_token(struct loader *loader)
{
	const struct configuration_auth *auth = &loader->configuration->auth;
	unsigned long token_line = loader->lines.option[OPTION_token];
	unsigned long file_line = loader->lines.option[OPTION_token_file];

	if (loader->override[OPTION_token] != NULL)
		return;
	if (token_line != 0 && file_line != 0)
		loader_error(loader, token_line > file_line ? token_line : file_line,
			     "token and token_file exclude each other");
	else if (auth->token_file != NULL)
		validate_read_token(loader);
	else if (auth->token != NULL && loader->readable_by_others)
		loader_warn(loader, token_line,
			    "every user of this machine can read the token in this file");
}

/* --- durable channels ---------------------------------------------------------------------- */

/* Whether following dead_letter from CHANNEL leads back to it. */
static bool validate_is_cycle(const struct configuration *configuration,
			      const struct configuration_channel *channel)
{
	const struct configuration_channel *at = channel;

	for (size_t i = 0; i < configuration->channel_count; i++) {
		at = at->dead_letter == NULL
			     ? NULL
			     : configuration_find_channel(configuration, at->dead_letter);
		if (at == channel)
			return true;
		/* A cycle has one error, at the line that closes it. */
		if (at == NULL || at > channel)
			return false;
	}
	return false;
}

static void validate_dead_letter(struct loader *loader, const struct configuration_channel *channel,
				 unsigned long line)
{
	const struct configuration *configuration = loader->configuration;
	const struct configuration_channel *target =
		configuration_find_channel(configuration, channel->dead_letter);
	char message[1024];
	struct text text = TEXT_INIT(message);

	text_add(&text, "dead_letter ");
	value_quote(&text, channel->dead_letter);
	if (target == channel) {
		text_add(&text, " is this channel itself; name another durable channel");
	} else if (target == NULL) {
		struct nearest nearest = {.word = channel->dead_letter};

		for (size_t i = 0; i < configuration->channel_count; i++)
			if (configuration->channels[i].durable &&
			    &configuration->channels[i] != channel)
				nearest_consider(&nearest, configuration->channels[i].name);
		text_add(&text, " is not configured; add [channel ");
		text_add_name(&text, span_of(channel->dead_letter));
		text_add(&text, "] with durable = yes");
		nearest_add(&nearest, &text);
	} else if (!target->durable) {
		text_add(&text, " is not durable; set durable = yes in [channel ");
		text_add_name(&text, span_of(target->name));
		text_add(&text, "]");
	} else if (validate_is_cycle(configuration, channel)) {
		text_add(&text, " leads back to this channel; end the circle with a channel "
				"that has no dead_letter");
	} else {
		return;
	}
	loader_error(loader, line, "%s", message);
}

static void validate_durable(struct loader *loader, const struct configuration_channel *channel,
			     const struct lines *lines)
{
	bool state_dir = loader->lines.option[OPTION_state_dir] != 0 ||
			 loader->override[OPTION_state_dir] != NULL;

	if (lines == NULL)
		return;
	if (channel->durable && !state_dir)
		loader_error(loader, lines->option[OPTION_durable],
			     "durable = yes needs state_dir in [server], the folder in which "
			     "messages are kept");
	for (size_t i = 0; !channel->durable && i < OPTION_COUNT; i++)
		if (option_is_durable(&options[i]) && lines->option[i] != 0)
			loader_error(loader, lines->option[i],
				     "%s is for durable channels; set durable = yes here as well, "
				     "or leave it out",
				     options[i].key);
	if (channel->durable && channel->dead_letter != NULL)
		validate_dead_letter(loader, channel, lines->option[OPTION_dead_letter]);
}

static void validate_channel(struct loader *loader, struct configuration_channel *channel,
			     const struct lines *lines)
{
	char reason[512];
	struct text why = TEXT_INIT(reason);
	uint8_t *document;
	size_t length;
	mode_t mode;

	validate_durable(loader, channel, lines);
	if (channel->schema == NULL)
		return;
	document =
		validate_read_file(channel->schema, VALIDATE_SCHEMA_MAX + 1, &length, &mode, &why);
	if (document != NULL && length > VALIDATE_SCHEMA_MAX)
		text_add(&why, "is larger than 16M");
	if (document == NULL || why.length > 0)
		validate_refuse_file(loader, lines->option[OPTION_schema], OPTION_schema,
				     channel->schema, &why);
	else
		schema_id(document, length, channel->schema_id);
	free(document);
}

/* --- what is legal but unwise ------------------------------------------------------------------
 */

static unsigned long validate_later_line(const struct loader *loader, enum option_id a,
					 enum option_id b)
{
	unsigned long line_a = loader->lines.option[a], line_b = loader->lines.option[b];

	return line_a > line_b ? line_a : line_b;
}

static void validate_warn_open(struct loader *loader)
{
	const struct string_list *listen = &loader->configuration->server.listen;

	if (loader->configuration->auth.token != NULL)
		return;
	for (size_t i = 0; i < listen->count; i++) {
		if (value_address_is_local(listen->items[i]))
			continue;
		loader_warn(loader, validate_line(loader, OPTION_listen),
			    "%s \"%s\" is open to whoever can reach it: there is no token",
			    validate_name(loader, OPTION_listen), listen->items[i]);
	}
}

static void validate_warn_durable(struct loader *loader)
{
	const struct configuration *configuration = loader->configuration;
	const struct configuration_store *store = &configuration->store;

	if (store->max_commit_bytes_per_connection > store->max_commit_bytes)
		loader_warn(loader,
			    validate_later_line(loader, OPTION_max_commit_bytes,
						OPTION_max_commit_bytes_per_connection),
			    "max_commit_bytes_per_connection is more than max_commit_bytes: one "
			    "connection can make all others wait");
	for (size_t i = 0; loader->channel_lines != NULL && i < configuration->channel_count; i++) {
		const struct configuration_channel *channel = &configuration->channels[i];
		const unsigned long *lines = loader->channel_lines[i].option;
		unsigned long first = lines[OPTION_redelivery_delay];
		unsigned long longest = lines[OPTION_redelivery_delay_max];

		if (channel->redelivery_delay_max_ms < channel->redelivery_delay_ms)
			loader_warn(loader, first > longest ? first : longest,
				    "redelivery_delay_max is less than redelivery_delay: every "
				    "delay is redelivery_delay_max");
	}
}

static void validate_warn(struct loader *loader)
{
	const struct configuration_limits *limits = &loader->configuration->limits;
	const struct configuration_conversations *conversations =
		&loader->configuration->conversations;

	validate_warn_open(loader);
	if (limits->max_outbox_bytes / 2 < limits->max_frame_size)
		loader_warn(
			loader,
			validate_later_line(loader, OPTION_max_outbox_bytes, OPTION_max_frame_size),
			"max_outbox_bytes is less than twice max_frame_size: a subscription "
			"whose connection has not taken one large message misses the next");
	if (conversations->reply_timeout_ms >= 5000)
		loader_warn(loader, loader->lines.option[OPTION_reply_timeout],
			    "reply_timeout is not below 5s: many clients give up before they hear "
			    "why there is no reply");
	if (conversations->reply_timeout_max_ms < conversations->reply_timeout_ms)
		loader_warn(
			loader,
			validate_later_line(loader, OPTION_reply_timeout, OPTION_reply_timeout_max),
			"reply_timeout_max is less than reply_timeout: no worker can ask for "
			"more time");
	validate_warn_durable(loader);
}

void validate(struct loader *loader)
{
	struct configuration *configuration = loader->configuration;

	validate_token(loader);
	for (size_t i = 0; i < configuration->channel_count; i++)
		validate_channel(loader, &configuration->channels[i],
				 loader->channel_lines == NULL ? NULL : &loader->channel_lines[i]);
	/* Beside errors, warnings would be about values that are not the user's. */
	if (!loader->failed)
		validate_warn(loader);
}
