/* liminal: global options, then a command of the table. */
#include "liminal/cli.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#define MAIN_DEFAULT_SERVER "127.0.0.1:7480"
/* No server takes a longer one. */
#define MAIN_TOKEN_MAX 65535

/*
 * A stream that is closed would lend its number to the connection, and what is printed would go to
 * the server. In its place comes one that cannot be used, so that using it is told as a failure.
 */
static bool main_standard_streams(void)
{
	static const int modes[] = {O_WRONLY, O_RDONLY, O_RDONLY};

	for (int fd = 0; fd < 3; fd++)
		if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", modes[fd]) != fd)
			return false;
	return true;
}

/* The token is FILE's content without a newline at its end. */
static bool main_read_token(struct cli *cli, const char *path)
{
	FILE *file = fopen(path, "r");
	bool done = false;

	cli->token = malloc(MAIN_TOKEN_MAX + 1);
	if (file == NULL || cli->token == NULL) {
		cli_error("cannot open the token file \"%s\": %s", path, strerror(errno));
		goto out;
	}
	cli->token_length = fread(cli->token, 1, MAIN_TOKEN_MAX + 1, file);
	if (ferror(file)) {
		cli_error("cannot read the token file \"%s\": %s", path, strerror(errno));
		goto out;
	}
	if (cli->token_length > 0 && cli->token[cli->token_length - 1] == '\n')
		cli->token_length--;
	if (cli->token_length > MAIN_TOKEN_MAX) {
		cli_error("the token file \"%s\" has more than %d bytes", path, MAIN_TOKEN_MAX);
		goto out;
	}
	done = true;
out:
	if (file != NULL)
		fclose(file);
	return done;
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
	if (cli->token == NULL)
		cli_error("out of memory");
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

	if (!main_standard_streams())
		return CLI_FAILED;
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
