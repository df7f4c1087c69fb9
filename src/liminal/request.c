/* liminal request: one request, its reply on standard output. */
#include "liminal/cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void request_print(const struct cli *cli, const char *reply, size_t length)
{
	if (cli->json) {
		json_t *object = json_object();

		cli_json_bytes(object, "reply", reply, length);
		cli_json_print(object);
		return;
	}
	fwrite(reply, 1, length, stdout);
	/* The prompt of the shell belongs on a line of its own. */
	if (isatty(STDOUT_FILENO) && (length == 0 || reply[length - 1] != '\n'))
		putchar('\n');
}

static int request_ask(const struct cli *cli, struct liminal *client, const char *subject,
		       const char *payload, size_t length, int wait_ms)
{
	struct liminal_conversation *conversation;
	size_t reply_length;
	void *reply = NULL;
	int status;

	status = liminal_converse(client, subject, &conversation);
	if (status == LIMINAL_OK)
		status = liminal_request(conversation, payload, length, wait_ms, &reply,
					 &reply_length);
	if (status == LIMINAL_OK) {
		request_print(cli, reply, reply_length);
		status = CLI_DONE;
	} else if (status == LIMINAL_TIMEOUT) {
		cli_error("no reply within the time given with -w");
		status = CLI_WAITED;
	} else {
		status = cli_report();
	}
	liminal_free(reply);
	liminal_conversation_close(&conversation);
	return status;
}

int request_run(struct cli *cli, const struct cli_arguments *arguments)
{
	const char *payload = arguments->operands[1];
	int status, wait_ms = LIMINAL_FOREVER;
	struct liminal *client;
	char *input = NULL;
	size_t length;

	if (!cli_value_seconds(arguments, 'w', &wait_ms))
		return CLI_USAGE;
	if (payload == NULL) {
		payload = input = cli_read_input(&length);
		if (payload == NULL)
			return CLI_FAILED;
	} else {
		length = strlen(payload);
	}
	client = cli_open(cli, &status);
	if (client != NULL)
		status = request_ask(cli, client, arguments->operands[0], payload, length, wait_ms);
	liminal_close(&client);
	free(input);
	return status;
}
