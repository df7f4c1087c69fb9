/* Running a command for one request: input in, output and the last words out. */
#ifndef LIMINAL_COMMAND_H
#define LIMINAL_COMMAND_H

#include "base/base.h"

#include <sys/types.h>

#define COMMAND_WORDS 1024

struct command_result {
	char *output; /* the caller frees it */
	size_t output_length;
	int exit_status; /* -1: it was ended by a signal, or could not be run: `words` says so */
	char words[COMMAND_WORDS + 1]; /* the last line of standard error, as UTF-8; may be empty */
};

/* Called about four times a second while the command runs. */
typedef void command_still_running(void *context);

/*
 * Runs ARGV in a process group of its own, with INPUT as standard input, and waits for its end.
 * With more than OUTPUT_MAX bytes of output it has failed; with 0 its standard output is ours. Its
 * standard error is passed on to ours. *GROUP is the process group while it runs, else 0; other
 * threads look at it with command_terminate only.
 */
void command_run(char *const *argv, const void *input, size_t length, size_t output_max,
		 pid_t *group, command_still_running *still_running, void *context,
		 struct command_result *result);

/* Sends the signal to the group unless it has ended. */
void command_terminate(const pid_t *group, int signal_number);

/* Whether the shell would find NAME. */
bool command_exists(const char *name);

#endif
