/*
 * What the commands of liminal(1) share. A command is a row of the table in commands.c: its name,
 * its options, the words of --help, and the function that runs it. That function returns the exit
 * status; nothing else in this room ends the process.
 */
#ifndef LIMINAL_CLI_H
#define LIMINAL_CLI_H

#include "base/base.h"

#include <jansson.h>
#include <stdio.h>

#include "client/liminal.h"

enum cli_exit {
	CLI_DONE = 0,
	CLI_FAILED = 1, /* the server refused, or something here failed */
	CLI_USAGE = 2,
	CLI_CONNECTION = 3, /* none, or lost after it stood */
	CLI_WAITED = 4,	    /* the time of -w has passed */
};

struct cli {
	const char *server; /* as for liminal_open */
	char *token;	    /* NULL: none */
	size_t token_length;
	bool json;
};

/* A row of an option table. The table ends with letter '\0' and name NULL. */
struct cli_option {
	char letter;	      /* '\0': it has only its name */
	const char *name;     /* as in "json"; NULL: it has only its letter */
	const char *argument; /* what --help calls it; NULL: it takes none */
	bool repeatable;
	const char *help;
};

struct cli_given {
	const struct cli_option *option;
	const char *value;
};

struct cli_arguments {
	const struct cli_command *command;
	struct cli_given *given;
	size_t given_count;
	char **operands; /* NULL-terminated; what stands behind "--" is among them */
	size_t operand_count;
	size_t before_dashes; /* how many operands stand in front of "--" */
	bool dashes;	      /* there is a "--" */
	bool help;	      /* --help was asked for; nothing else was looked at */
};

struct cli_command {
	const char *name;
	const char *operands;	  /* as in "CHANNEL [PAYLOAD]" */
	const char *const *first; /* words that the first one may be, ends with NULL; NULL: any */
	size_t least, most;	  /* operands, those behind "--" included */
	const char *help;
	const struct cli_option *options;
	int (*run)(struct cli *cli, const struct cli_arguments *arguments);
};

/* commands.c */
extern const struct cli_option cli_global_options[];
extern const struct cli_command cli_commands[]; /* ends with name NULL */
const struct cli_command *cli_command_find(const char *name);

/* help.c: both derive what they print from the tables. */
void cli_help(FILE *out);
void cli_help_command(const struct cli_command *command, FILE *out);
/* The script for SHELL: false when there is none. */
bool cli_completions(const char *shell, FILE *out);

/* arguments.c: these say what was wrong on standard error. */

/* Options up to the first operand; *NEXT is that operand's index. */
bool cli_parse_global(int argc, char **argv, struct cli_arguments *arguments, int *next);
bool cli_parse_command(const struct cli_command *command, int argc, char **argv,
		       struct cli_arguments *arguments);
void cli_arguments_free(struct cli_arguments *arguments);
bool cli_given(const struct cli_arguments *arguments, char letter);
/* The last value given, or NULL. */
const char *cli_value(const struct cli_arguments *arguments, char letter);
/* All of them, NULL-terminated; the caller frees the array. NULL: no memory. */
const char **cli_values(const struct cli_arguments *arguments, char letter);
/* Leave *NUMBER alone when the option was not given. False: not a number of that range. */
bool cli_value_count(const struct cli_arguments *arguments, char letter, uint64_t most,
		     uint64_t *number);
/* start.c: what --from says; false: it says nothing that is known. */
bool cli_value_start(const struct cli_arguments *arguments,
		     struct liminal_subscribe_options *options);
/* Seconds, fractions allowed, as milliseconds. */
bool cli_value_seconds(const struct cli_arguments *arguments, char letter, int *ms);

/* output.c */
void cli_error(const char *format, ...) PRINTF_LIKE(1, 2);
int cli_usage(const struct cli_command *command, const char *format, ...) PRINTF_LIKE(2, 3);
/* Says on standard error what the last call of the library failed with; the exit status for it. */
int cli_report(void);
/* Opens the connection; on failure reports it, and *STATUS is the exit status. */
struct liminal *cli_open(const struct cli *cli, int *status);
/* All of standard input, NUL-terminated; the caller frees it. NULL: reported. */
char *cli_read_input(size_t *length);
/* Adds NAME, or NAME_base64 when BYTES are not UTF-8. */
void cli_json_bytes(json_t *object, const char *name, const void *bytes, size_t length);
/* Prints OBJECT on a line and drops the reference. */
void cli_json_print(json_t *object);
/* STATUS, or CLI_FAILED when standard output could not be written. */
int cli_finish_output(int status);

/* One file each. */
int pub_run(struct cli *cli, const struct cli_arguments *arguments);
int sub_run(struct cli *cli, const struct cli_arguments *arguments);
int request_run(struct cli *cli, const struct cli_arguments *arguments);
int dead_run(struct cli *cli, const struct cli_arguments *arguments);
int queue_run(struct cli *cli, const struct cli_arguments *arguments);
int worker_run(struct cli *cli, const struct cli_arguments *arguments);
int ping_run(struct cli *cli, const struct cli_arguments *arguments);
int ctl_run(struct cli *cli, const struct cli_arguments *arguments);
int bench_run(struct cli *cli, const struct cli_arguments *arguments);
int top_run(struct cli *cli, const struct cli_arguments *arguments);

#endif
