/* liminal: global options, then a command of the table. */
#include "liminal/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAIN_DEFAULT_SERVER "127.0.0.1:7480"

/* The token is FILE's content without a newline at its end. */
static bool main_read_token(struct cli *cli, const char *path)
{
	FILE *file = fopen(path, "re");
	char *line = NULL;
	size_t size = 0;
	ssize_t length;

	if (file == NULL) {
		cli_error("cannot open the token file \"%s\": %s", path, strerror(errno));
		return false;
	}
	length = getdelim(&line, &size, -1, file);
	if (length < 0 && ferror(file)) {
		cli_error("cannot read the token file \"%s\": %s", path, strerror(errno));
		free(line);
		fclose(file);
		return false;
	}
	fclose(file);
	cli->token = line;
	cli->token_length = length > 0 ? (size_t)length : 0;
	if (cli->token_length > 0 && line[cli->token_length - 1] == '\n')
		cli->token_length--;
	return true;
}

static bool main_options(struct cli *cli, const struct cli_arguments *arguments)
{
	const char *token = getenv("LIMINAL_TOKEN"), *server = getenv("LIMINAL_SERVER");

	cli->server = cli_value(arguments, 's');
	if (cli->server == NULL)
		cli->server = server != NULL && *server != '\0' ? server : MAIN_DEFAULT_SERVER;
	for (size_t i = 0; i < arguments->given_count; i++)
		cli->json |= strcmp(arguments->given[i].option->name, "json") == 0;
	if (cli_value(arguments, 'T') != NULL)
		return main_read_token(cli, cli_value(arguments, 'T'));
	if (token == NULL)
		return true;
	cli->token = strdup(token);
	cli->token_length = strlen(token);
	return cli->token != NULL;
}

static int main_command(struct cli *cli, int argc, char **argv)
{
	const struct cli_command *command = cli_command_find(argv[0]);
	struct cli_arguments arguments;
	int status = CLI_USAGE;

	if (command == NULL)
		return cli_usage(NULL, "there is no command \"%s\"", argv[0]);
	if (cli_parse_command(command, argc - 1, argv + 1, &arguments)) {
		if (arguments.help) {
			cli_help_command(command, stdout);
			status = CLI_DONE;
		} else {
			status = command->run(cli, &arguments);
		}
	}
	cli_arguments_free(&arguments);
	return status;
}

int main(int argc, char **argv)
{
	struct cli cli = {.server = NULL};
	struct cli_arguments arguments = {.command = NULL};
	int status = CLI_USAGE, next;

	/* For the build: the scripts in etc/completions. Not an option that a person needs. */
	if (argc == 3 && strcmp(argv[1], "--completions") == 0) {
		if (!cli_completions(argv[2], stdout))
			return cli_usage(NULL, "no completions for \"%s\"", argv[2]);
		return cli_finish_output(CLI_DONE);
	}
	if (!cli_parse_global(argc, argv, &arguments, &next))
		goto out;
	if (cli_given(&arguments, 'h')) {
		cli_help(stdout);
		status = CLI_DONE;
	} else if (cli_given(&arguments, 'V')) {
		printf("liminal %s\n", PACKAGE_VERSION);
		status = CLI_DONE;
	} else if (next == argc) {
		cli_help(stderr);
	} else if (main_options(&cli, &arguments)) {
		status = main_command(&cli, argc - next, argv + next);
	} else {
		status = CLI_FAILED;
	}
	status = cli_finish_output(status);
out:
	cli_arguments_free(&arguments);
	free(cli.token);
	return status;
}
