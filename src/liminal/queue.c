/*
 * liminal queue: runs a command for each message of a durable channel, as a consumer whose work
 * others may share; see crew.h for the threads. A message is gone only when the command says so: a
 * command that is broken must not eat the queue.
 */
#include "liminal/crew.h"

#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#define QUEUE_CONSUMER "queue"
/* How long a signal may have to wait until it is noticed that there is nothing new to be begun. */
#define QUEUE_LOOK_MS 250
#define QUEUE_CONFIRM_MS 30000

/* What the command's exit status says: the first after sysexits(3), the others are the shell's. */
#define QUEUE_EXIT_INVALID 65
#define QUEUE_EXIT_NOT_EXECUTABLE 126
#define QUEUE_EXIT_NOT_FOUND 127

struct queue {
	struct liminal_subscription *subscription;
	/* Held by the one thread that waits for a message. */
	pthread_mutex_t turn;
};

struct queue_job {
	struct queue *queue;
	uint64_t sequence;
};

static void queue_still_running(void *context)
{
	struct queue_job *job = context;

	/* When the connection is lost the message comes again; the command ends all the same. */
	(void)liminal_working(job->queue->subscription, job->sequence, 0);
}

/* Whether it is the command that is broken, and not the message. */
static bool queue_command_broken(int exit_status)
{
	return exit_status == -1 || exit_status == QUEUE_EXIT_NOT_EXECUTABLE ||
	       exit_status == QUEUE_EXIT_NOT_FOUND;
}

static int queue_answer(const struct queue_job *job, const struct command_result *result)
{
	struct liminal_subscription *subscription = job->queue->subscription;

	if (result->exit_status == 0)
		return liminal_accept(subscription, job->sequence, QUEUE_CONFIRM_MS);
	if (result->exit_status == QUEUE_EXIT_INVALID)
		return liminal_reject(subscription, job->sequence, result->words, QUEUE_CONFIRM_MS);
	return liminal_defer(subscription, job->sequence, result->words, QUEUE_CONFIRM_MS);
}

static void queue_handle(struct crew_slot *slot, const struct liminal_delivery *delivery)
{
	struct crew *crew = slot->crew;
	struct queue_job job = {crew->context, delivery->sequence};
	struct command_result result;

	command_run(crew->command, delivery->payload, delivery->length, crew->output_max,
		    &slot->group, queue_still_running, &job, &result);
	if (queue_answer(&job, &result) != LIMINAL_OK)
		cli_error("message %" PRIu64 ": what became of it could not be told: %s",
			  job.sequence, liminal_last_error()->text);
	free(result.output);
	/* Also when a second signal has ended it: then there is nothing more to be said. */
	if (!queue_command_broken(result.exit_status) || crew_leaving(crew))
		return;
	cli_error("message %" PRIu64 ": %s; the command seems to be broken", job.sequence,
		  result.words);
	slot->status = CLI_FAILED;
	crew_set_leaving(crew);
}

/* The next message; LIMINAL_TIMEOUT when there is to be none. */
static int queue_next(struct crew *crew, struct liminal_delivery **delivery)
{
	struct queue *queue = crew->context;
	int status = LIMINAL_TIMEOUT;

	*delivery = NULL;
	pthread_mutex_lock(&queue->turn);
	while (status == LIMINAL_TIMEOUT && !crew_leaving(crew))
		status = liminal_next(queue->subscription, QUEUE_LOOK_MS, delivery);
	pthread_mutex_unlock(&queue->turn);
	return status;
}

static int queue_serve(struct crew_slot *slot)
{
	struct liminal_delivery *delivery;
	int status;

	for (;;) {
		status = queue_next(slot->crew, &delivery);
		if (status != LIMINAL_OK)
			return status == LIMINAL_TIMEOUT ? LIMINAL_OK : status;
		queue_handle(slot, delivery);
		liminal_delivery_free(&delivery);
	}
}

static void queue_leave(struct crew *crew)
{
	/* It is noticed; only a reconnect must be ended. */
	if (liminal_ping(crew->client, QUEUE_CONFIRM_MS, NULL) != LIMINAL_OK)
		liminal_stop(crew->client);
}

int queue_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	struct queue queue = {.turn = PTHREAD_MUTEX_INITIALIZER};
	struct crew crew;
	int status;

	options.consumer = cli_value(arguments, 'C');
	if (options.consumer == NULL)
		options.consumer = QUEUE_CONSUMER;
	options.start = LIMINAL_START_ALL;
	if (!cli_value_start(arguments, &options))
		return CLI_USAGE;
	status = crew_init(&crew, cli, arguments);
	if (status != CLI_DONE)
		return status;
	/* No more than can be worked on: others may be free. */
	options.max_in_flight = (uint32_t)crew.slot_count;
	crew.serve = queue_serve;
	crew.leave = queue_leave;
	crew.context = &queue;
	crew.client = cli_open(cli, &status);
	if (crew.client != NULL && liminal_subscribe(crew.client, arguments->operands[0], &options,
						     &queue.subscription) != LIMINAL_OK)
		status = cli_report();
	if (status == CLI_DONE && isatty(STDERR_FILENO))
		cli_error("working on \"%s\"; interrupt to leave", arguments->operands[0]);
	if (status == CLI_DONE)
		status = crew_work(&crew);
	/* What was sent and not begun goes to others at once. */
	liminal_unsubscribe(&queue.subscription);
	crew_destroy(&crew);
	return status;
}
