/* --help and the shells' completions, out of the tables. */
#include "liminal/cli.h"

#include <string.h>

static void help_option(const struct cli_option *option, FILE *out)
{
	char left[64];
	const char *argument = option->argument;

	snprintf(left, sizeof(left), "%c%c%s %s%s%s%s", option->letter != '\0' ? '-' : ' ',
		 option->letter != '\0' ? option->letter : ' ', option->letter != '\0' ? "," : " ",
		 option->name != NULL ? "--" : "", option->name != NULL ? option->name : "",
		 argument != NULL ? " " : "", argument != NULL ? argument : "");
	fprintf(out, "  %-28s %s\n", left, option->help);
}

static void help_options(const struct cli_option *options, FILE *out)
{
	for (; options->letter != '\0' || options->name != NULL; options++)
		help_option(options, out);
}

void cli_help(FILE *out)
{
	fprintf(out, "usage: liminal [OPTION...] COMMAND [ARGUMENT...]\n\n"
		     "Publish to, subscribe to and ask a liminald message bus.\n\ncommands:\n");
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++) {
		char left[64];

		snprintf(left, sizeof(left), "%s %s", command->name, command->operands);
		fprintf(out, "  %-28s %s\n", left, command->help);
	}
	fprintf(out, "\noptions, in front of the command:\n");
	help_options(cli_global_options, out);
	fprintf(out, "\n\"liminal COMMAND --help\" shows the options of a command. "
		     "The manual is liminal(1).\n");
}

void cli_help_command(const struct cli_command *command, FILE *out)
{
	fprintf(out, "usage: liminal [OPTION...] %s [OPTION...]%s%s\n\n%s\n", command->name,
		*command->operands != '\0' ? " " : "", command->operands, command->help);
	fprintf(out, "\noptions, anywhere before \"--\":\n");
	help_options(command->options, out);
}

/* All names, for a list of words. */
static void help_words(const struct cli_option *options, FILE *out)
{
	const char *separator = "";

	for (; options->letter != '\0' || options->name != NULL; options++) {
		if (options->letter != '\0') {
			fprintf(out, "%s-%c", separator, options->letter);
			separator = " ";
		}
		if (options->name != NULL) {
			fprintf(out, "%s--%s", separator, options->name);
			separator = " ";
		}
	}
}

/* The options that take a value, as a pattern of alternatives: -s|--server */
static void help_valued(const struct cli_option *options, FILE *out)
{
	const char *separator = "";

	for (; options->letter != '\0' || options->name != NULL; options++) {
		if (options->argument == NULL)
			continue;
		if (options->letter != '\0') {
			fprintf(out, "%s-%c", separator, options->letter);
			separator = "|";
		}
		if (options->name != NULL) {
			fprintf(out, "%s--%s", separator, options->name);
			separator = "|";
		}
	}
}

static void help_bash(FILE *out)
{
	fprintf(out, "# bash completion for liminal(1), made by \"liminal --completions bash\"\n"
		     "_liminal()\n{\n"
		     "\tlocal word=${COMP_WORDS[COMP_CWORD]} command= i\n"
		     "\tfor ((i = 1; i < COMP_CWORD; i++)); do\n"
		     "\t\tcase ${COMP_WORDS[i]} in\n\t\t");
	help_valued(cli_global_options, out);
	fprintf(out, ")\n\t\t\t((i++)) ;;\n\t\t-*) ;;\n\t\t*)\n"
		     "\t\t\tcommand=${COMP_WORDS[i]}\n\t\t\tbreak ;;\n\t\tesac\n\tdone\n"
		     "\tcase $command in\n\t'')\n"
		     "\t\tcase ${COMP_WORDS[COMP_CWORD - 1]} in\n"
		     "\t\t-s|--server|-T|--token-file)\n"
		     "\t\t\tCOMPREPLY=($(compgen -f -- \"$word\")) ;;\n\t\t*)\n"
		     "\t\t\tCOMPREPLY=($(compgen -W '");
	help_words(cli_global_options, out);
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++)
		fprintf(out, " %s", command->name);
	fprintf(out, "' -- \"$word\")) ;;\n\t\tesac ;;\n");
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++) {
		fprintf(out, "\t%s)\n\t\tCOMPREPLY=($(compgen -W '", command->name);
		help_words(command->options, out);
		fprintf(out, " --help");
		for (const char *const *first = command->first; first != NULL && *first != NULL;
		     first++)
			fprintf(out, " %s", *first);
		fprintf(out, "' -- \"$word\")) ;;\n");
	}
	fprintf(out, "\tesac\n}\ncomplete -o default -F _liminal liminal\n");
}

static void help_zsh_options(const struct cli_option *options, const char *indent, FILE *out)
{
	for (; options->letter != '\0' || options->name != NULL; options++) {
		const char *value = options->argument != NULL ? options->argument : "";
		const char *colon = options->argument != NULL ? ":" : "";

		if (options->letter != '\0')
			fprintf(out, " \\\n%s'%s-%c[%s]%s%s%s'", indent,
				options->repeatable ? "*" : "", options->letter, options->help,
				colon, value, *colon != '\0' ? ":_files" : "");
		if (options->name != NULL)
			fprintf(out, " \\\n%s'%s--%s[%s]%s%s%s'", indent,
				options->repeatable ? "*" : "", options->name, options->help, colon,
				value, *colon != '\0' ? ":_files" : "");
	}
}

static void help_zsh(FILE *out)
{
	fprintf(out, "#compdef liminal\n"
		     "# zsh completion for liminal(1), made by \"liminal --completions zsh\"\n"
		     "local state line\n"
		     "local -a commands\n"
		     "commands=(\n");
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++)
		fprintf(out, "\t'%s:%s'\n", command->name, command->help);
	fprintf(out, ")\n_arguments -C");
	help_zsh_options(cli_global_options, "\t", out);
	fprintf(out, " \\\n\t'1:command:->command' '*::argument:->argument'\n"
		     "case $state in\ncommand)\n\t_describe command commands ;;\n"
		     "argument)\n\tcase $line[1] in\n");
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++) {
		fprintf(out, "\t%s)\n\t\t_arguments", command->name);
		help_zsh_options(command->options, "\t\t\t", out);
		if (command->first != NULL) {
			fprintf(out, " \\\n\t\t\t'1:action:(");
			for (const char *const *first = command->first; *first != NULL; first++)
				fprintf(out, "%s%s", first == command->first ? "" : " ", *first);
			fprintf(out, ")'");
		}
		fprintf(out, " ;;\n");
	}
	fprintf(out, "\tesac ;;\nesac\n");
}

static void help_fish_options(const char *condition, const struct cli_option *options, FILE *out)
{
	for (; options->letter != '\0' || options->name != NULL; options++) {
		fprintf(out, "complete -c liminal -n '%s'", condition);
		if (options->letter != '\0')
			fprintf(out, " -s %c", options->letter);
		if (options->name != NULL)
			fprintf(out, " -l %s", options->name);
		fprintf(out, "%s -d '%s'\n", options->argument != NULL ? " -r" : "", options->help);
	}
}

static void help_fish(FILE *out)
{
	char condition[64];

	fprintf(out, "# fish completion for liminal(1), made by \"liminal --completions fish\"\n");
	help_fish_options("__fish_use_subcommand", cli_global_options, out);
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++) {
		fprintf(out, "complete -c liminal -f -n __fish_use_subcommand -a %s -d '%s'\n",
			command->name, command->help);
		snprintf(condition, sizeof(condition), "__fish_seen_subcommand_from %s",
			 command->name);
		help_fish_options(condition, command->options, out);
		for (const char *const *first = command->first; first != NULL && *first != NULL;
		     first++)
			fprintf(out, "complete -c liminal -f -n '%s' -a %s\n", condition, *first);
	}
}

bool cli_completions(const char *shell, FILE *out)
{
	static const struct {
		const char *shell;
		void (*print)(FILE *out);
	} shells[] = {{"bash", help_bash}, {"zsh", help_zsh}, {"fish", help_fish}};

	for (size_t i = 0; i < ARRAY_LENGTH(shells); i++)
		if (strcmp(shells[i].shell, shell) == 0) {
			shells[i].print(out);
			return true;
		}
	return false;
}
