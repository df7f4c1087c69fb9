/*
 * The log: one line an event, as key=value pairs or JSON, to standard error, syslog or a file.
 *
 *     log_event(LOG_LEVEL_INFO, "connection closed", LOG_U64("conn", id), LOG_STR("reason", why));
 *
 * gives   time=2026-01-01T00:00:00.000Z level=info event="connection closed" conn=7 reason=reset
 *
 * No call under a lock other than none at all (lock_assert_none_held). A line is cut at 4 KiB.
 * Any thread may log; a line is written with one write(2), which does not block: what a pipe or a
 * terminal has no room for is left out, and counted like lines over the limit (syslog(3) may
 * block).
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include "base/base.h"
#include "base/text.h"

enum log_level {
	LOG_LEVEL_ERROR,
	LOG_LEVEL_WARNING,
	LOG_LEVEL_NOTICE,
	LOG_LEVEL_INFO,
	LOG_LEVEL_DEBUG,
};

enum log_format { LOG_FORMAT_TEXT, LOG_FORMAT_JSON };

enum log_field_type { LOG_FIELD_U64, LOG_FIELD_I64, LOG_FIELD_STR, LOG_FIELD_SPAN };

struct log_field {
	const char *key;
	enum log_field_type type;
	uint64_t number;
	struct span text;
};

#define LOG_U64(k, n) ((struct log_field){.key = (k), .type = LOG_FIELD_U64, .number = (n)})
#define LOG_I64(k, n)                                                                              \
	((struct log_field){.key = (k), .type = LOG_FIELD_I64, .number = (uint64_t)(int64_t)(n)})
/* TEXT is ours: NUL-terminated, shown whole; NULL shows as "-". */
#define LOG_STR(k, s) ((struct log_field){.key = (k), .type = LOG_FIELD_STR, .text = span_of(s)})
/* TEXT came from a client: shown as text_add_name does. */
#define LOG_NAME(k, s) ((struct log_field){.key = (k), .type = LOG_FIELD_SPAN, .text = (s)})

/*
 * Where lines go: "stderr", "syslog", or the path of a file, which is opened for appending with
 * mode 0640 (a relative path was made absolute by the caller). 0, or an errno value with the old
 * target still in force. For the main thread only, as is log_reopen; before it, lines go to
 * standard error.
 */
int log_open(const char *target, enum log_format format, enum log_level level);

/*
 * From now on a log file must not be a symbolic link: for a process with privileges, whose log's
 * directory belongs to somebody who has none.
 */
void log_refuse_links(void);

/* Gives the open log file, if there is one, to a user. 0 or an errno value: EMLINK when it has
 * another name, EINVAL when it is no regular file. */
int log_give(unsigned user, unsigned group);

/* Opens a file target again under its name, as after rotation. 0 or an errno value. */
int log_reopen(void);
void log_set_level(enum log_level level);
bool log_enabled(enum log_level level);

void log_write(enum log_level level, const char *event, const struct log_field *fields,
	       size_t field_count);

/* Likewise for lines that clients can cause at will: at most LOG_CLIENT_LINES_PER_SECOND are
 * written in a second; what was left out is counted in a line of its own. */
#define LOG_CLIENT_LINES_PER_SECOND 100
void log_write_limited(enum log_level level, const char *event, const struct log_field *fields,
		       size_t field_count);

/* Writes the line that counts what was left out, if anything was; main calls it before it exits. */
void log_flush_left_out(void);

#define LOG_FIELDS(...)                                                                            \
	((const struct log_field[]){__VA_ARGS__}),                                                 \
		(sizeof((const struct log_field[]){__VA_ARGS__}) / sizeof(struct log_field))

#define log_event(level, event, ...)                                                               \
	do {                                                                                       \
		if (log_enabled(level))                                                            \
			log_write(level, event, LOG_FIELDS(__VA_ARGS__));                          \
	} while (0)
#define log_client_event(level, event, ...)                                                        \
	do {                                                                                       \
		if (log_enabled(level))                                                            \
			log_write_limited(level, event, LOG_FIELDS(__VA_ARGS__));                  \
	} while (0)

#endif
