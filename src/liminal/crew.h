/*
 * What `liminal worker` and `liminal queue` share: several threads that run a command each, the
 * signals that end them, and a connection that is made again.
 */
#ifndef LIMINAL_CREW_H
#define LIMINAL_CREW_H

#include "liminal/cli.h"

#include <pthread.h>

#include "liminal/command.h"

#define CREW_JOBS_MAX 1024

struct crew;

struct crew_slot {
	struct crew *crew;
	pthread_t thread;
	pid_t group; /* of the command that runs; see command.h */
	int status;  /* for the end of the program */
};

struct crew {
	const struct cli *cli;
	struct liminal *client;
	char **command;
	size_t output_max; /* as for command_run */
	struct crew_slot *slots;
	size_t slot_count;

	/* Serves until there is nothing more to do: LIMINAL_OK, or why not. */
	int (*serve)(struct crew_slot *slot);
	/* The first signal: makes the serve functions return without losing work. */
	void (*leave)(struct crew *crew);
	void *context;

	pthread_mutex_t lock;
	/* Guarded by lock. */
	bool leaving;	/* by a signal, or because a command cannot be run */
	bool lost_said; /* that the connection is lost */
	bool finished;	/* all slots have ended */
};

/* Blocks the signals, for the threads to come, and checks what stands behind "--": one operand in
 * front of it, then a command that can be run. The exit status. */
int crew_init(struct crew *crew, struct cli *cli, const struct cli_arguments *arguments);
void crew_destroy(struct crew *crew);

/* Serves until every slot has ended; the exit status. */
int crew_work(struct crew *crew);

bool crew_leaving(struct crew *crew);
/* Nothing new is begun from now on. */
void crew_set_leaving(struct crew *crew);

#endif
