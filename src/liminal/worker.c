/*
 * liminal worker: runs a command for each request of a queue.
 *
 * Threads: one for each of -j, which serves; one that waits for SIGTERM and SIGINT, which all
 * others block. The first signal leaves: no new requests, those at hand are finished. The second
 * ends the commands and stops, the third kills them.
 */
#include "liminal/cli.h"

#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "liminal/command.h"

#define WORKER_JOBS_MAX 1024
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

struct worker {
	const struct cli *cli;
	struct liminal *client;
	char **command;
	struct worker_slot *slots;
	size_t slot_count;
	size_t output_max;

	pthread_mutex_t lock;
	/* Guarded by lock. */
	bool leaving;	/* by a signal */
	bool lost_said; /* that the connection is lost */
	bool finished;	/* all slots have ended */
};

struct worker_slot {
	struct worker *worker;
	pthread_t thread;
	pid_t group; /* of the command that runs; see command.h */
	int status;
};

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
	struct worker_slot *slot = context;
	struct command_result result;
	const void *payload;
	size_t length;
	int status;

	payload = liminal_job_payload(job, &length);
	worker_still_running(job); /* its time starts now, not when it was put in the queue */
	command_run(slot->worker->command, payload, length, slot->worker->output_max, &slot->group,
		    worker_still_running, job, &result);
	if (result.exit_status == 0)
		status = liminal_job_reply(job, result.output, result.output_length);
	else
		status = liminal_job_refuse(job, worker_refusal(result.exit_status), result.words);
	if (status != LIMINAL_OK)
		cli_error("a result was lost: %s", liminal_last_error()->text);
	free(result.output);
}

static bool worker_leaving(struct worker *worker)
{
	bool leaving;

	pthread_mutex_lock(&worker->lock);
	leaving = worker->leaving;
	pthread_mutex_unlock(&worker->lock);
	return leaving;
}

/* Says once, however many threads notice it, that the connection is lost, or stands again. */
static void worker_say(struct worker *worker, bool lost)
{
	bool say;

	pthread_mutex_lock(&worker->lock);
	say = worker->lost_said != lost;
	worker->lost_said = lost;
	pthread_mutex_unlock(&worker->lock);
	if (say && lost)
		cli_error("%s; connecting again", liminal_last_error()->text);
	else if (say)
		cli_error("connected again to %s", worker->cli->server);
}

static void *worker_serve(void *argument)
{
	struct worker_slot *slot = argument;
	struct worker *worker = slot->worker;
	int status;

	for (;;) {
		status = liminal_serve(worker->client, worker_handle, slot);
		if (status == LIMINAL_LOST && !worker_leaving(worker)) {
			worker_say(worker, true);
			status = liminal_reconnect(worker->client, LIMINAL_FOREVER);
			if (status == LIMINAL_OK) {
				worker_say(worker, false);
				continue;
			}
		}
		/* Whatever ends a worker that leaves, there is nothing more to do. */
		if (status != LIMINAL_OK && !worker_leaving(worker))
			slot->status = cli_report();
		return NULL;
	}
}

static void worker_leave(struct worker *worker)
{
	/* Without a connection there is no work to be lost, but perhaps a reconnect going on. */
	if (liminal_leave(worker->client, WORKER_LEAVE_MS) != LIMINAL_OK)
		liminal_stop(worker->client);
}

static void worker_abandon(struct worker *worker, int signal_number)
{
	liminal_stop(worker->client);
	for (size_t i = 0; i < worker->slot_count; i++)
		command_terminate(&worker->slots[i].group, signal_number);
}

static void worker_signals(sigset_t *signals)
{
	sigemptyset(signals);
	sigaddset(signals, SIGTERM);
	sigaddset(signals, SIGINT);
}

static void *worker_wait_for_signals(void *argument)
{
	struct worker *worker = argument;
	sigset_t signals;
	int number, received = 0;
	bool finished;

	worker_signals(&signals);
	for (;;) {
		sigwait(&signals, &number);
		pthread_mutex_lock(&worker->lock);
		finished = worker->finished;
		worker->leaving = true;
		pthread_mutex_unlock(&worker->lock);
		if (finished)
			return NULL;
		if (received == 0)
			worker_leave(worker);
		else
			worker_abandon(worker, received == 1 ? SIGTERM : SIGKILL);
		received = received < 2 ? received + 1 : received;
	}
}

/* Serves until every slot has ended; the exit status. */
static int worker_work(struct worker *worker)
{
	pthread_t waiter;
	size_t started = 0;
	int status = CLI_DONE;

	if (pthread_create(&waiter, NULL, worker_wait_for_signals, worker) != 0) {
		cli_error("cannot start a thread");
		return CLI_FAILED;
	}
	for (size_t i = 0; i < worker->slot_count; i++, started++) {
		worker->slots[i].worker = worker;
		if (pthread_create(&worker->slots[i].thread, NULL, worker_serve,
				   &worker->slots[i]) == 0)
			continue;
		cli_error("cannot start more than %zu threads", started);
		status = CLI_FAILED;
		liminal_stop(worker->client);
		break;
	}
	for (size_t i = 0; i < started; i++) {
		pthread_join(worker->slots[i].thread, NULL);
		if (status == CLI_DONE)
			status = worker->slots[i].status;
	}
	pthread_mutex_lock(&worker->lock);
	worker->finished = true;
	pthread_mutex_unlock(&worker->lock);
	pthread_kill(waiter, SIGTERM);
	pthread_join(waiter, NULL);
	return status;
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

static int worker_check(const struct cli_arguments *arguments)
{
	const char *name;

	if (!arguments->dashes || arguments->before_dashes != 1)
		return cli_usage(arguments->command, "give a QUEUE, then -- and the command");
	name = arguments->operands[1];
	if (command_exists(name))
		return CLI_DONE;
	cli_error("the command \"%s\" cannot be run: there is no such executable file", name);
	return CLI_USAGE;
}

int worker_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	struct worker worker = {.cli = cli, .lock = PTHREAD_MUTEX_INITIALIZER};
	uint64_t jobs = 1, output_max = WORKER_OUTPUT_MAX;
	sigset_t signals;
	int status;

	if (!cli_value_count(arguments, 'j', WORKER_JOBS_MAX, &jobs) ||
	    !cli_value_count(arguments, 'm', WORKER_OUTPUT_MOST, &output_max))
		return CLI_USAGE;
	status = worker_check(arguments);
	if (status != CLI_DONE)
		return status;
	worker_signals(&signals);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	sigaction(SIGPIPE, &ignore, NULL); /* of a command that does not read its input */
	worker.command = arguments->operands + 1;
	worker.slot_count = (size_t)jobs;
	worker.output_max = (size_t)output_max;
	worker.slots = calloc(worker.slot_count, sizeof(*worker.slots));
	if (worker.slots == NULL) {
		cli_error("out of memory");
		return CLI_FAILED;
	}
	worker.client = cli_open(cli, &status);
	if (worker.client != NULL) {
		status = worker_register(arguments, worker.client);
		if (status == CLI_DONE && isatty(STDERR_FILENO))
			cli_error("serving \"%s\"; interrupt to leave", arguments->operands[0]);
		if (status == CLI_DONE)
			status = worker_work(&worker);
		liminal_close(&worker.client);
	}
	free(worker.slots);
	return status;
}
