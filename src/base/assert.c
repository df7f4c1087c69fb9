/*
 * The end of a program that found a bug in itself. Nothing is allocated and no lock is taken: the
 * heap or the log may be what is broken.
 */
#include "base/base.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void assert_failed(const char *condition, const char *file, int line, const char *function)
{
	char message[512];

	snprintf(message, sizeof(message), "%s:%d: %s: assertion failed: %s\n", file, line,
		 function, condition);
	/* Cut or not, the message is the last thing that this process says. */
	if (write(STDERR_FILENO, message, strlen(message)) < 0)
		abort();
	abort();
}
