/*
 * Threads with a command each, and one that waits for SIGTERM and SIGINT, which all others block.
 * The first signal leaves: nothing new, what is at hand is finished. The second ends the commands
 * and stops, the third kills them.
 */
#include "liminal/crew.h"

#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

bool crew_leaving(struct crew *crew)
{
	bool leaving;

	pthread_mutex_lock(&crew->lock);
	leaving = crew->leaving;
	pthread_mutex_unlock(&crew->lock);
	return leaving;
}

void crew_set_leaving(struct crew *crew)
{
	pthread_mutex_lock(&crew->lock);
	crew->leaving = true;
	pthread_mutex_unlock(&crew->lock);
}

/* Says once, however many threads notice it, that the connection is lost, or stands again. */
static void crew_say(struct crew *crew, bool lost)
{
	bool say;

	pthread_mutex_lock(&crew->lock);
	say = crew->lost_said != lost;
	crew->lost_said = lost;
	pthread_mutex_unlock(&crew->lock);
	if (say && lost)
		cli_error("%s; connecting again", liminal_last_error()->text);
	else if (say)
		cli_error("connected again to %s", crew->cli->server);
}

static void *crew_serve(void *argument)
{
	struct crew_slot *slot = argument;
	struct crew *crew = slot->crew;
	int status;

	for (;;) {
		status = crew->serve(slot);
		if (status == LIMINAL_LOST && !crew_leaving(crew)) {
			crew_say(crew, true);
			status = liminal_reconnect(crew->client, LIMINAL_FOREVER);
			if (status == LIMINAL_OK) {
				crew_say(crew, false);
				continue;
			}
		}
		/* Whatever ends one that leaves, there is nothing more to do. */
		if (status != LIMINAL_OK && !crew_leaving(crew)) {
			slot->status = cli_report();
			crew_set_leaving(crew);
		}
		return NULL;
	}
}

static void crew_abandon(struct crew *crew, int signal_number)
{
	liminal_stop(crew->client);
	for (size_t i = 0; i < crew->slot_count; i++)
		command_terminate(&crew->slots[i].group, signal_number);
}

static void crew_signals(sigset_t *signals)
{
	sigemptyset(signals);
	sigaddset(signals, SIGTERM);
	sigaddset(signals, SIGINT);
}

static void *crew_wait_for_signals(void *argument)
{
	struct crew *crew = argument;
	sigset_t signals;
	int number, received = 0;
	bool finished;

	crew_signals(&signals);
	for (;;) {
		sigwait(&signals, &number);
		pthread_mutex_lock(&crew->lock);
		finished = crew->finished;
		crew->leaving = true;
		pthread_mutex_unlock(&crew->lock);
		if (finished)
			return NULL;
		if (received == 0)
			crew->leave(crew);
		else
			crew_abandon(crew, received == 1 ? SIGTERM : SIGKILL);
		received = received < 2 ? received + 1 : received;
	}
}

int crew_work(struct crew *crew)
{
	pthread_t waiter;
	size_t started = 0;
	int status = CLI_DONE;

	if (pthread_create(&waiter, NULL, crew_wait_for_signals, crew) != 0) {
		cli_error("cannot start a thread");
		return CLI_FAILED;
	}
	for (size_t i = 0; i < crew->slot_count; i++, started++) {
		crew->slots[i].crew = crew;
		if (pthread_create(&crew->slots[i].thread, NULL, crew_serve, &crew->slots[i]) == 0)
			continue;
		cli_error("cannot start more than %zu threads", started);
		status = CLI_FAILED;
		liminal_stop(crew->client);
		break;
	}
	for (size_t i = 0; i < started; i++) {
		pthread_join(crew->slots[i].thread, NULL);
		if (status == CLI_DONE)
			status = crew->slots[i].status;
	}
	pthread_mutex_lock(&crew->lock);
	crew->finished = true;
	pthread_mutex_unlock(&crew->lock);
	pthread_kill(waiter, SIGTERM);
	pthread_join(waiter, NULL);
	return status;
}

static int crew_check(const struct cli_arguments *arguments)
{
	const char *name;

	if (!arguments->dashes || arguments->before_dashes != 1)
		return cli_usage(arguments->command, "give one name, then -- and the command");
	name = arguments->operands[1];
	if (command_exists(name))
		return CLI_DONE;
	cli_error("the command \"%s\" cannot be run: there is no such executable file", name);
	return CLI_USAGE;
}

int crew_init(struct crew *crew, struct cli *cli, const struct cli_arguments *arguments)
{
	struct sigaction ignore = {.sa_handler = SIG_IGN};
	uint64_t jobs = 1;
	sigset_t signals;
	int status;

	*crew = (struct crew){.cli = cli, .lock = PTHREAD_MUTEX_INITIALIZER};
	if (!cli_value_count(arguments, 'j', CREW_JOBS_MAX, &jobs))
		return CLI_USAGE;
	status = crew_check(arguments);
	if (status != CLI_DONE)
		return status;
	crew_signals(&signals);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	sigaction(SIGPIPE, &ignore, NULL); /* of a command that does not read its input */
	crew->command = arguments->operands + 1;
	crew->slot_count = (size_t)jobs;
	crew->slots = calloc(crew->slot_count, sizeof(*crew->slots));
	if (crew->slots != NULL)
		return CLI_DONE;
	cli_error("out of memory");
	return CLI_FAILED;
}

void crew_destroy(struct crew *crew)
{
	liminal_close(&crew->client);
	free(crew->slots);
	crew->slots = NULL;
}
