/* Asks the workers of a queue: requester QUEUE TEXT. */
#include <liminal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal_conversation *conversation = NULL;
	struct liminal *client = NULL;
	size_t length;
	void *reply;
	int status;

	if (argc != 3)
		return EXIT_FAILURE;
	options.server = getenv("LIMINAL_SERVER"); /* without it 127.0.0.1:7480 */
	status = liminal_open(&options, &client);
	if (status == LIMINAL_OK)
		status = liminal_converse(client, argv[1], &conversation);
	if (status == LIMINAL_OK)
		status = liminal_request(conversation, argv[2], strlen(argv[2]), 10000, &reply,
					 &length);
	if (status == LIMINAL_OK) {
		printf("%.*s\n", (int)length, (const char *)reply);
		liminal_free(reply);
	} else {
		fprintf(stderr, "%s\n", liminal_last_error()->text);
	}
	liminal_conversation_close(&conversation);
	liminal_close(&client);
	return status == LIMINAL_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
