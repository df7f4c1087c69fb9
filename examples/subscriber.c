/* Prints the messages of a channel, and connects again when the connection is lost. */
#include <liminal.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal_subscription *subscription;
	struct liminal_delivery *delivery;
	struct liminal *client = NULL;
	int status;

	options.server = getenv("LIMINAL_SERVER"); /* without it 127.0.0.1:7480 */
	status = liminal_open(&options, &client);
	if (status == LIMINAL_OK)
		status = liminal_subscribe(client, argc > 1 ? argv[1] : "events", NULL,
					   &subscription);
	while (status == LIMINAL_OK || status == LIMINAL_LOST) {
		if (status == LIMINAL_LOST) {
			status = liminal_reconnect(client, LIMINAL_FOREVER);
			continue;
		}
		status = liminal_next(subscription, LIMINAL_FOREVER, &delivery);
		if (status != LIMINAL_OK)
			continue;
		printf("%.*s\n", (int)delivery->length, (const char *)delivery->payload);
		fflush(stdout);
		liminal_delivery_free(&delivery);
	}
	fprintf(stderr, "%s\n", liminal_last_error()->text);
	liminal_close(&client);
	return EXIT_FAILURE;
}
