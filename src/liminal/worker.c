/* liminal worker: runs a command for each request of a queue; see crew.h for the threads. */
#include "liminal/crew.h"

#include <stdlib.h>
#include <unistd.h>

#define WORKER_LEAVE_MS 10000
/*
 * What fits into the largest frame of a server that has the default of max_frame_size. A server
 * ends the connection at a larger one, with all that is worked on.
 */
#define WORKER_OUTPUT_MAX (16 * 1024 * 1024 - 22)
#define WORKER_OUTPUT_MOST (1024 * 1024 * 1024)

/* What the command's exit status says, after sysexits(3). */
#define WORKER_EXIT_BUSY 75
#define WORKER_EXIT_INVALID 65
#define WORKER_EXIT_UNAVAILABLE 69

static enum liminal_refusal worker_refusal(int exit_status)
{
	switch (exit_status) {
	case WORKER_EXIT_BUSY:
		return LIMINAL_BUSY;
	case WORKER_EXIT_INVALID:
		return LIMINAL_INVALID_REQUEST;
	case WORKER_EXIT_UNAVAILABLE:
		return LIMINAL_UNAVAILABLE;
	default:
		return LIMINAL_INTERNAL;
	}
}

static void worker_still_running(void *context)
{
	/* When the connection is lost nobody waits for the result; the command ends all the same.
	 */
	(void)liminal_job_working(context);
}

static void worker_handle(void *context, struct liminal_job *job)
{
	struct crew_slot *slot = context;
	struct command_result result;
	const void *payload;
	size_t length;
	int status;

	payload = liminal_job_payload(job, &length);
	worker_still_running(job); /* its time starts now, not when it was put in the queue */
	command_run(slot->crew->command, payload, length, slot->crew->output_max, &slot->group,
		    worker_still_running, job, &result);
	if (result.exit_status == 0)
		status = liminal_job_reply(job, result.output, result.output_length);
	else
		status = liminal_job_refuse(job, worker_refusal(result.exit_status), result.words);
	if (status != LIMINAL_OK)
		cli_error("a result was lost: %s", liminal_last_error()->text);
	free(result.output);
}

static int worker_serve(struct crew_slot *slot)
{
	return liminal_serve(slot->crew->client, worker_handle, slot);
}

static void worker_leave(struct crew *crew)
{
	/* Without a connection there is no work to be lost, but perhaps a reconnect going on. */
	if (liminal_leave(crew->client, WORKER_LEAVE_MS) != LIMINAL_OK)
		liminal_stop(crew->client);
}

static int worker_register(const struct cli_arguments *arguments, struct liminal *client)
{
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;
	const char **namespaces = cli_values(arguments, 'n');
	const char **activities = cli_values(arguments, 'a');
	char host[256] = "", identity[300];
	int status = CLI_DONE;

	gethostname(host, sizeof(host) - 1);
	snprintf(identity, sizeof(identity), "liminal@%s:%ld", host, (long)getpid());
	options.queue = arguments->operands[0];
	options.namespaces = namespaces;
	options.activities = activities;
	options.identity = cli_value(arguments, 'i');
	if (options.identity == NULL)
		options.identity = identity;
	if (namespaces == NULL || activities == NULL) {
		cli_error("out of memory");
		status = CLI_FAILED;
	} else if (liminal_register(client, &options) != LIMINAL_OK) {
		status = cli_report();
	}
	free(namespaces);
	free(activities);
	return status;
}

int worker_run(struct cli *cli, const struct cli_arguments *arguments)
{
	uint64_t output_max = WORKER_OUTPUT_MAX;
	struct crew crew;
	int status;

	if (!cli_value_count(arguments, 'm', WORKER_OUTPUT_MOST, &output_max))
		return CLI_USAGE;
	status = crew_init(&crew, cli, arguments);
	if (status != CLI_DONE)
		return status;
	crew.output_max = (size_t)output_max;
	crew.serve = worker_serve;
	crew.leave = worker_leave;
	crew.client = cli_open(cli, &status);
	if (crew.client != NULL)
		status = worker_register(arguments, crew.client);
	if (status == CLI_DONE && isatty(STDERR_FILENO))
		cli_error("serving \"%s\"; interrupt to leave", arguments->operands[0]);
	if (status == CLI_DONE)
		status = crew_work(&crew);
	crew_destroy(&crew);
	return status;
}
