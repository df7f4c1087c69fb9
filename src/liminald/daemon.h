/*
 * The daemon itself: its ordered start, its life on signals, its ordered stop.
 */
#ifndef LIMINALD_DAEMON_H
#define LIMINALD_DAEMON_H

#include "base/base.h"
#include "config/configuration.h"

struct daemon_options {
	char *file;	  /* -c, absolute; NULL: the default place, or built-in defaults */
	char *pidfile;	  /* -p, absolute; NULL: as configured */
	const char *user; /* -u; NULL: as configured */
	unsigned verbose; /* how often -v was given */
	bool detach;
};

/* The file that is read: the one named, the one at the default place, or NULL where there is
 * none. */
const char *daemon_configuration_file(const struct daemon_options *options);

/* Serves until it is told to stop; takes CONFIGURATION's reference over. The exit status; what
 * failed has been said. Blocks signals. */
int daemon_run(const struct daemon_options *options, struct configuration *configuration);

/* Says each problem on standard error, a line each. */
void daemon_print_problems(const struct configuration_problems *problems);

#define EXIT_USAGE 2

#endif
