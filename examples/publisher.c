/* Publishes each argument behind the first to the channel that the first one names. */
#include <liminal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal_receipt receipt;
	struct liminal *client = NULL;
	int status;

	options.server = getenv("LIMINAL_SERVER"); /* without it 127.0.0.1:7480 */
	status = liminal_open(&options, &client);
	for (int i = 2; status == LIMINAL_OK && i < argc; i++) {
		status = liminal_publish(client, argv[1], argv[i], strlen(argv[i]), NULL, &receipt);
		if (status == LIMINAL_OK)
			printf("message %llu %s\n", (unsigned long long)receipt.message,
			       receipt.delivered ? "was delivered" : "found nobody");
	}
	if (status != LIMINAL_OK)
		fprintf(stderr, "%s\n", liminal_last_error()->text);
	liminal_close(&client);
	return status == LIMINAL_OK ? EXIT_SUCCESS : EXIT_FAILURE;
}
