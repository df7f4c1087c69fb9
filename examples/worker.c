/* Serves a queue: replies with the request in capital letters, refuses an empty one. */
#include <ctype.h>
#include <liminal.h>
#include <stdio.h>
#include <stdlib.h>

static void handle(void *context, struct liminal_job *job)
{
	size_t length;
	const char *text = liminal_job_payload(job, &length);
	char *reply = malloc(length + 1);

	(void)context;
	for (size_t i = 0; reply != NULL && i < length; i++)
		reply[i] = (char)toupper((unsigned char)text[i]);
	if (reply == NULL || length == 0)
		liminal_job_refuse(job, LIMINAL_INVALID_REQUEST, "there is nothing to do");
	else
		liminal_job_reply(job, reply, length);
	free(reply);
}

int main(int argc, char **argv)
{
	struct liminal_worker_options worker = LIMINAL_WORKER_OPTIONS_INIT;
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal *client = NULL;

	worker.queue = argc > 1 ? argv[1] : "capitals";
	options.server = getenv("LIMINAL_SERVER"); /* without it 127.0.0.1:7480 */
	if (liminal_open(&options, &client) == LIMINAL_OK &&
	    liminal_register(client, &worker) == LIMINAL_OK)
		liminal_serve(client, handle, NULL);
	fprintf(stderr, "%s\n", liminal_last_error()->text);
	liminal_close(&client);
	return EXIT_FAILURE;
}
