/*
 * The command line. Not getopt(3): where it stops at operands, and whether it knows long names,
 * differs between systems, and the table has to drive --help and completions as well.
 */
#include "liminal/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"

/* Where the parser is: argv[index], and inside of it behind a group of letters. */
struct cli_cursor {
	int argc, index;
	char **argv;
	const char *letters; /* the rest of "-0f"; NULL: at the start of an argument */
};

static bool cli_option_end(const struct cli_option *option)
{
	return option->letter == '\0' && option->name == NULL;
}

static const struct cli_option *cli_find_letter(const struct cli_option *options, char letter)
{
	for (; !cli_option_end(options); options++)
		if (options->letter == letter)
			return options;
	return NULL;
}

static const struct cli_option *cli_find_name(const struct cli_option *options, const char *name,
					      size_t length)
{
	for (; !cli_option_end(options); options++)
		if (options->name != NULL && strlen(options->name) == length &&
		    memcmp(options->name, name, length) == 0)
			return options;
	return NULL;
}

static bool cli_note(struct cli_arguments *arguments, const struct cli_option *option,
		     const char *value)
{
	arguments->given[arguments->given_count++] = (struct cli_given){option, value};
	return true;
}

static bool cli_parse_name(struct cli_cursor *cursor, const struct cli_option *options,
			   struct cli_arguments *arguments)
{
	const char *name = cursor->argv[cursor->index] + 2, *equals = strchr(name, '=');
	size_t length = equals != NULL ? (size_t)(equals - name) : strlen(name);
	const struct cli_option *option = cli_find_name(options, name, length);

	if (option == NULL) {
		cli_usage(arguments->command, "unknown option \"--%.*s\"", (int)length, name);
		return false;
	}
	if (option->argument == NULL && equals != NULL) {
		cli_usage(arguments->command, "option \"--%s\" takes no value", option->name);
		return false;
	}
	cursor->index++;
	if (option->argument == NULL)
		return cli_note(arguments, option, NULL);
	if (equals != NULL)
		return cli_note(arguments, option, equals + 1);
	if (cursor->index == cursor->argc) {
		cli_usage(arguments->command, "option \"--%s\" needs %s", option->name,
			  option->argument);
		return false;
	}
	return cli_note(arguments, option, cursor->argv[cursor->index++]);
}

/* One letter of "-0f FORMAT". */
static bool cli_parse_letter(struct cli_cursor *cursor, const struct cli_option *options,
			     struct cli_arguments *arguments)
{
	const char *at =
		cursor->letters != NULL ? cursor->letters : cursor->argv[cursor->index] + 1;
	const struct cli_option *option = cli_find_letter(options, *at);

	if (option == NULL) {
		cli_usage(arguments->command, "unknown option \"-%c\"", *at);
		return false;
	}
	at++;
	cursor->letters = *at != '\0' && option->argument == NULL ? at : NULL;
	if (cursor->letters == NULL)
		cursor->index++;
	if (option->argument == NULL)
		return cli_note(arguments, option, NULL);
	if (*at != '\0')
		return cli_note(arguments, option, at);
	if (cursor->index == cursor->argc) {
		cli_usage(arguments->command, "option \"-%c\" needs %s", option->letter,
			  option->argument);
		return false;
	}
	return cli_note(arguments, option, cursor->argv[cursor->index++]);
}

static bool cli_is_option(const struct cli_cursor *cursor)
{
	const char *argument = cursor->argv[cursor->index];

	return cursor->letters != NULL || (argument[0] == '-' && argument[1] != '\0');
}

static bool cli_parse_option(struct cli_cursor *cursor, const struct cli_option *options,
			     struct cli_arguments *arguments)
{
	if (cursor->letters == NULL && cursor->argv[cursor->index][1] == '-')
		return cli_parse_name(cursor, options, arguments);
	return cli_parse_letter(cursor, options, arguments);
}

/* Room for the worst case: an option for each letter. */
static bool cli_arguments_init(struct cli_arguments *arguments, int argc, char **argv)
{
	size_t letters = 0;

	for (int i = 0; i < argc; i++)
		letters += strlen(argv[i]) + 1;
	arguments->given = calloc(letters + 1, sizeof(*arguments->given));
	arguments->operands = calloc((size_t)argc + 1, sizeof(*arguments->operands));
	if (arguments->given != NULL && arguments->operands != NULL)
		return true;
	cli_arguments_free(arguments);
	cli_error("out of memory");
	return false;
}

bool cli_parse_global(int argc, char **argv, struct cli_arguments *arguments, int *next)
{
	struct cli_cursor cursor = {.argc = argc, .index = 1, .argv = argv};

	*arguments = (struct cli_arguments){.command = NULL};
	*next = argc;
	if (!cli_arguments_init(arguments, argc, argv))
		return false;
	while (cursor.index < argc && cli_is_option(&cursor)) {
		if (cursor.letters == NULL && strcmp(argv[cursor.index], "--") == 0) {
			cursor.index++;
			break;
		}
		if (!cli_parse_option(&cursor, cli_global_options, arguments))
			return false;
	}
	*next = cursor.index;
	return true;
}

/* It need not be in every command's table. */
static bool cli_asks_for_help(const char *argument)
{
	return strcmp(argument, "--help") == 0 || strcmp(argument, "-h") == 0;
}

static bool cli_check_operands(const struct cli_command *command,
			       const struct cli_arguments *arguments)
{
	char list[256];
	struct text words = TEXT_INIT(list);

	if (arguments->operand_count < command->least) {
		cli_usage(command, "%s is missing", command->operands);
		return false;
	}
	if (arguments->operand_count > command->most) {
		cli_usage(command, "\"%s\" is too much", arguments->operands[command->most]);
		return false;
	}
	if (command->first == NULL)
		return true;
	for (const char *const *first = command->first; *first != NULL; first++)
		if (strcmp(*first, arguments->operands[0]) == 0)
			return true;
	for (const char *const *first = command->first; *first != NULL; first++)
		text_add(&words, "%s%s", first == command->first ? "" : ", ", *first);
	cli_usage(command, "\"%s\" is none of %s", arguments->operands[0], list);
	return false;
}

bool cli_parse_command(const struct cli_command *command, int argc, char **argv,
		       struct cli_arguments *arguments)
{
	struct cli_cursor cursor = {.argc = argc, .index = 0, .argv = argv};

	*arguments = (struct cli_arguments){.command = command};
	if (!cli_arguments_init(arguments, argc, argv))
		return false;
	while (cursor.index < argc) {
		char *argument = argv[cursor.index];

		if (arguments->dashes || !cli_is_option(&cursor)) {
			arguments->operands[arguments->operand_count++] = argument;
			arguments->before_dashes += !arguments->dashes;
			cursor.index++;
		} else if (cursor.letters == NULL && strcmp(argument, "--") == 0) {
			arguments->dashes = true;
			cursor.index++;
		} else if (cursor.letters == NULL && cli_asks_for_help(argument)) {
			arguments->help = true;
			return true;
		} else if (!cli_parse_option(&cursor, command->options, arguments)) {
			return false;
		}
	}
	return cli_check_operands(command, arguments);
}

void cli_arguments_free(struct cli_arguments *arguments)
{
	free(arguments->given);
	free(arguments->operands);
	*arguments = (struct cli_arguments){.command = NULL};
}

bool cli_given(const struct cli_arguments *arguments, char letter)
{
	for (size_t i = 0; i < arguments->given_count; i++)
		if (arguments->given[i].option->letter == letter)
			return true;
	return false;
}

const char *cli_value(const struct cli_arguments *arguments, char letter)
{
	const char *value = NULL;

	for (size_t i = 0; i < arguments->given_count; i++)
		if (arguments->given[i].option->letter == letter)
			value = arguments->given[i].value;
	return value;
}

const char **cli_values(const struct cli_arguments *arguments, char letter)
{
	const char **values = calloc(arguments->given_count + 1, sizeof(*values));
	size_t count = 0;

	if (values == NULL)
		return NULL;
	for (size_t i = 0; i < arguments->given_count; i++)
		if (arguments->given[i].option->letter == letter)
			values[count++] = arguments->given[i].value;
	return values;
}

bool cli_value_count(const struct cli_arguments *arguments, char letter, uint64_t most,
		     uint64_t *number)
{
	const char *value = cli_value(arguments, letter);
	unsigned long long parsed;
	char *end;

	if (value == NULL)
		return true;
	errno = 0;
	parsed = strtoull(value, &end, 10);
	if (*value < '0' || *value > '9' || *end != '\0' || errno != 0 || parsed == 0 ||
	    parsed > most) {
		cli_usage(arguments->command, "\"-%c %s\": a number from 1 to %llu is needed",
			  letter, value, (unsigned long long)most);
		return false;
	}
	*number = parsed;
	return true;
}

bool cli_value_seconds(const struct cli_arguments *arguments, char letter, int *ms)
{
	const char *value = cli_value(arguments, letter);
	double seconds;
	char *end;

	if (value == NULL)
		return true;
	seconds = strtod(value, &end);
	if (end == value || *end != '\0' || !(seconds >= 0 && seconds <= 1000000)) {
		cli_usage(arguments->command,
			  "\"-%c %s\": seconds from 0 to 1000000 are needed, as in 2.5", letter,
			  value);
		return false;
	}
	*ms = (int)(seconds * 1000 + 0.5);
	return true;
}
