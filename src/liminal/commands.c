/*
 * The table of commands and options: parser, --help and completions come from it. Its texts hold
 * no single quote, in which the completions have them.
 */
#include "liminal/cli.h"

#include <string.h>

#define OPTIONS_END                                                                                \
	{                                                                                          \
		.letter = '\0', .name = NULL                                                       \
	}

const struct cli_option cli_global_options[] = {
	{'s', "server", "SERVER", false, "HOST:PORT or the path of a socket (LIMINAL_SERVER)"},
	{'T', "token-file", "FILE", false, "the token is the content of FILE (or LIMINAL_TOKEN)"},
	{'\0', "json", NULL, false, "output for programs, one object a line"},
	{'V', "version", NULL, false, "print the version"},
	{'h', "help", NULL, false, "print this"},
	OPTIONS_END,
};

static const struct cli_option pub_options[] = {
	{'k', "key", "KEY", false, "idempotency key: a repeat is not delivered again"},
	{'l', "lines", NULL, false, "each line of standard input is a message"},
	OPTIONS_END,
};

static const struct cli_option sub_options[] = {
	{'c', "count", "N", false, "leave after N messages"},
	{'w', "wait", "SECONDS", false, "the longest wait for each message; then status 4"},
	{'0', "null", NULL, false, "end each message with a NUL instead of a newline"},
	{'f', "format", "FORMAT", false,
	 "%c channel, %p payload, %i id, %n number, %m missed, %r again"},
	{'r', "reconnect", NULL, false, "connect again when the connection is lost"},
	{'C', "consumer", "NAME", false, "durable: go on where this consumer is, and accept"},
	{'F', "from", "WHERE", false, "durable: begin with new, all, a sequence, or a time"},
	{'m', "manual", NULL, false, "answers to a consumer come from standard input"},
	OPTIONS_END,
};

static const struct cli_option request_options[] = {
	{'w', "wait", "SECONDS", false, "the longest wait for the reply; then status 4"},
	OPTIONS_END,
};

static const struct cli_option worker_options[] = {
	{'n', "namespace", "NAMESPACE", true, "serve this namespace only"},
	{'a', "activity", "ACTIVITY", true, "serve this activity only"},
	{'j', "jobs", "JOBS", false, "how many commands may run at once (1)"},
	{'i', "identity", "IDENTITY", false, "name of the worker (liminal@HOST:PID)"},
	{'m', "max-reply", "BYTES", false, "the largest reply (16777194)"},
	OPTIONS_END,
};

static const struct cli_option queue_options[] = {
	{'j', "jobs", "JOBS", false, "how many commands may run at once (1)"},
	{'C', "consumer", "NAME", false, "the consumer whose work is shared (queue)"},
	{'F', "from", "WHERE", false, "where a new consumer begins: new, all, a sequence, a time"},
	OPTIONS_END,
};

static const struct cli_option ping_options[] = {
	{'c', "count", "N", false, "leave after N pings"},
	{'i', "interval", "SECONDS", false, "time between two pings (1)"},
	{'w', "wait", "SECONDS", false, "the longest wait for each answer; then status 4"},
	OPTIONS_END,
};

static const struct cli_option bench_options[] = {
	{'t', "time", "SECONDS", false, "leave after this time (5)"},
	{'c', "count", "N", false, "leave after N messages or requests"},
	{'b', "bytes", "BYTES", false, "size of a payload (128)"},
	{'n', "number", "N", false, "how many publishers, subscribers or requesters (1)"},
	{'o', "outstanding", "N", false, "messages without an answer, or not delivered yet (256)"},
	OPTIONS_END,
};

static const struct cli_option ctl_options[] = {
	{'w', "wait", "SECONDS", false, "the longest wait for the answer; then status 4"},
	OPTIONS_END,
};

static const struct cli_option dead_options[] = {
	{'c', "count", "N", false, "no more than N messages"},
	{'F', "from", "SEQUENCE", false, "begin with this one"},
	{'p', "put-back", "SEQUENCE", false, "publish it where it came from; or all of them"},
	{'w', "wait", "SECONDS", false, "the longest wait for the answer; then status 4"},
	OPTIONS_END,
};

static const struct cli_option top_options[] = {
	{'d', "delay", "SECONDS", false, "time between two looks (1)"},
	OPTIONS_END,
};

static const char *const ctl_actions[] = {"ping",    "stats",	  "connections", "channels",
					  "workers", "consumers", "consumer-rm", "close",
					  "drain",   NULL};

static const char *const bench_cases[] = {"pub", "fan", "request", NULL};

const struct cli_command cli_commands[] = {
	{"pub", "CHANNEL [PAYLOAD]", NULL, 1, 2, "publish PAYLOAD, or standard input, to a channel",
	 pub_options, pub_run},
	{"sub", "CHANNEL...", NULL, 1, SIZE_MAX, "print the messages of channels", sub_options,
	 sub_run},
	{"request", "SUBJECT [PAYLOAD]", NULL, 1, 2,
	 "send PAYLOAD, or standard input, to a worker and print the reply", request_options,
	 request_run},
	{"worker", "QUEUE -- COMMAND...", NULL, 2, SIZE_MAX,
	 "run a command for each request: standard input in, standard output out", worker_options,
	 worker_run},
	{"queue", "CHANNEL -- COMMAND...", NULL, 2, SIZE_MAX,
	 "run a command for each message of a durable channel", queue_options, queue_run},
	{"dead", "CHANNEL", NULL, 1, 1,
	 "list the messages of a dead-letter channel, or put them back", dead_options, dead_run},
	{"ping", "", NULL, 0, 0, "measure round trips to the server", ping_options, ping_run},
	{"bench", "CASE NAME", bench_cases, 2, 2,
	 "measure rate and latency: pub CHANNEL, fan CHANNEL, request QUEUE", bench_options,
	 bench_run},
	{"ctl", "ACTION [ARGUMENT...]", ctl_actions, 1, 3,
	 "look into the server, or tell it something, over its control socket", ctl_options,
	 ctl_run},
	{"top", "", NULL, 0, 0, "watch connections, channels and queues", top_options, top_run},
	{.name = NULL},
};

const struct cli_command *cli_command_find(const char *name)
{
	for (const struct cli_command *command = cli_commands; command->name != NULL; command++)
		if (strcmp(command->name, name) == 0)
			return command;
	return NULL;
}
