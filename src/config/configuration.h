/*
 * The configuration: one table of options (options.tbl) from which come the parser, the defaults,
 * the bounds, `liminald -T`, the sample file and the check that the manual documents each key.
 *
 * A struct configuration is immutable once loaded and reference-counted: a connection keeps the
 * limits that it was accepted under. Durations are milliseconds, sizes bytes.
 */
#ifndef CONFIG_CONFIGURATION_H
#define CONFIG_CONFIGURATION_H

#include "base/base.h"

#include <stdatomic.h>
#include <stdio.h>

#include "base/log.h"

enum no_worker { NO_WORKER_ECHO, NO_WORKER_ERROR, NO_WORKER_WAIT };
enum slow_consumer { SLOW_CONSUMER_SHED, SLOW_CONSUMER_DROP };
enum when_full { WHEN_FULL_REFUSE, WHEN_FULL_DISCARD };

struct string_list {
	char **items;
	size_t count;
};

struct configuration_server {
	struct string_list listen; /* HOST:PORT, [IPV6]:PORT or /PATH */
	char *http_listen;	   /* HOST:PORT or "none" */
	char *control_socket;	   /* NULL: none */
	char *state_dir;	   /* NULL: none */
	int64_t drain_timeout_ms, drain_idle_ms, close_timeout_ms;
	char *user, *group, *pidfile; /* NULL: none */
	char *log;		      /* "stderr", "syslog" or a path */
	enum log_level log_level;
	enum log_format log_format;
};

struct configuration_auth {
	char *token;	  /* effective token, also when it came from token_file; NULL: open */
	char *token_file; /* NULL: none */
};

struct configuration_limits {
	uint64_t max_connections;
	uint64_t max_frame_size;
	uint64_t max_outbox_bytes, max_outbox_frames;
	uint64_t max_subscriptions_per_connection;
	uint64_t max_conversations_per_connection;
	uint64_t max_pending_replies_per_conversation, max_pending_replies_per_connection;
	uint64_t max_pending_pushes_per_connection;
	uint64_t max_pending_bytes_per_connection;
	int64_t handshake_timeout_ms;
	int64_t idle_timeout_ms; /* 0: none */
};

struct configuration_conversations {
	int64_t reply_timeout_ms, reply_timeout_max_ms;
	enum no_worker no_worker;
	int64_t worker_settle_ms;
	struct string_list worker_queues; /* empty: any */
	struct string_list unanswered_channels;
};

struct configuration_store {
	uint64_t max_commit_bytes, max_commit_bytes_per_connection;
	uint64_t cache_bytes; /* per durable channel */
};

struct configuration_channel {
	char *name;
	bool durable;
	enum slow_consumer slow_consumer;
	int64_t dedup_window_ms;
	uint64_t dedup_max_keys;
	char *schema; /* path, NULL: none */
	uint8_t schema_id[32];

	/* Of durable channels; the defaults in others. */
	int64_t max_age_ms;		  /* 0: no bound */
	uint64_t max_messages, max_bytes; /* 0: no bound */
	enum when_full when_full;
	int64_t ack_wait_ms, redelivery_delay_ms, redelivery_delay_max_ms;
	uint64_t max_attempts; /* 0: no bound */
	char *dead_letter;     /* another durable channel, NULL: none */
	bool ordered;
	uint64_t max_deferred, max_consumers;
	int64_t consumer_expiry_ms; /* 0: never */
};

struct configuration {
	atomic_uint references;
	struct configuration_server server;
	struct configuration_auth auth;
	struct configuration_limits limits;
	struct configuration_conversations conversations;
	struct configuration_store store;
	struct configuration_channel *channels;
	size_t channel_count;
};

/*
 * Errors and warnings, in the order of the file, each a whole line such as
 *     /etc/liminald.conf:12: unknown key "listn" in [server]; did you mean "listen"?
 */
struct configuration_problems {
	struct string_list errors;
	struct string_list warnings;
};

void configuration_problems_free(struct configuration_problems *problems);

/*
 * Reads PATH (NULL: the built-in defaults with one channel, `events`), applies the environment
 * (LIMINAL_LISTEN_ADDRESS and the others of behaviour), reads the files that it names and
 * validates. The configuration with one reference, or NULL with at least one error in PROBLEMS
 * (unless memory is missing for that, too). Warnings may come with either.
 *
 * Blocks on the disk. One thread at a time. Relative paths, PATH included, count from the current
 * directory at the first call, also after a chdir.
 */
struct configuration *configuration_load(const char *path, struct configuration_problems *problems);

/* Likewise from IN, which is read to its end and stays open; NAME stands in messages. */
struct configuration *configuration_load_stream(FILE *in, const char *name,
						struct configuration_problems *problems);

struct configuration *configuration_ref(struct configuration *configuration);
void configuration_unref(struct configuration **configuration);

/* Writes the effective configuration as a valid file; tokens are left out, and what a channel that
 * is not durable may not set. */
void configuration_print(const struct configuration *configuration, FILE *out);

/* Writes the sample file: every option, commented out, with its help and its default. */
void configuration_print_sample(FILE *out);

/* The worst-case memory that follows from the limits, in bytes; UINT64_MAX when it does not fit. */
uint64_t configuration_worst_case_memory(const struct configuration *configuration);

/*
 * What a reload would not apply: for each difference between OLD and NEW that needs a restart, a
 * line such as "listen in [server] has changed" or "[channel c] is gone" comes into NEEDS_RESTART,
 * whose old contents are not looked at, and NEW is given OLD's value. Channels of OLD that NEW
 * lacks are kept likewise, and those of NEW that cannot be durable yet are left out. False when
 * memory is missing: NEW is of no use then.
 */
bool configuration_keep_fixed(struct configuration *new, const struct configuration *old,
			      struct string_list *needs_restart);

/* NULL when no channel has that name. */
struct configuration_channel *configuration_find_channel(const struct configuration *configuration,
							 const char *name);

bool string_list_add(struct string_list *list, const char *text);
void string_list_free(struct string_list *list);

#endif
