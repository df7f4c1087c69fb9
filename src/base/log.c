/*
 * Lines are built in memory from the heap, without a lock, and written with the log's lock held, so
 * that no two lines mix and no file is closed under a writer. The buffer is not on the stack: what
 * a session's stack has once touched stays resident while its connection idles.
 *
 * Values pass through text_escape in both formats, so that they hold no control character and no
 * byte that is not UTF-8; a backslash always starts an escape: \xHH, or \" in quotes. In JSON that
 * text is then quoted as JSON wants it, which doubles its backslashes.
 */
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/metrics.h"

#define LOG_LINE_MAX 4096
/* Kept free while a line is built, for the end of its last value and of itself: "} and newline. */
#define LOG_LINE_TAIL 3
#define LOG_LINE_ROOM (LOG_LINE_MAX - LOG_LINE_TAIL)

struct log_line {
	enum log_format format;
	size_t length;
	char bytes[LOG_LINE_MAX];
};

static const struct {
	const char *name;
	int priority;
} log_levels[] = {
	[LOG_LEVEL_ERROR] = {"error", LOG_ERR},	     [LOG_LEVEL_WARNING] = {"warning", LOG_WARNING},
	[LOG_LEVEL_NOTICE] = {"notice", LOG_NOTICE}, [LOG_LEVEL_INFO] = {"info", LOG_INFO},
	[LOG_LEVEL_DEBUG] = {"debug", LOG_DEBUG},
};

static atomic_int log_threshold = LOG_LEVEL_INFO;
static atomic_int log_chosen_format = LOG_FORMAT_TEXT;

static struct mutex log_mutex = {.native = PTHREAD_MUTEX_INITIALIZER, .rank = LOCK_LOG};

/* Guarded by log_mutex; `path` changes on the main thread only, which may read it without. */
static struct {
	int descriptor; /* -1: syslog */
	char *path;	/* NULL unless the descriptor is ours to close and open again */
	bool torn;	/* the last line broke off: the next one starts with a newline */

	int64_t second_ends_ns; /* the second in which limited lines are counted */
	unsigned lines;
	uint64_t left_out; /* lines for which no line stands in the log yet */
} log_state = {.descriptor = STDERR_FILENO};

static int log_open_flags = O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOCTTY;

void log_refuse_links(void)
{
	log_open_flags |= O_NOFOLLOW;
}

int log_give(unsigned user, unsigned group)
{
	struct stat status;

	if (log_state.path == NULL)
		return 0;
	if (fstat(log_state.descriptor, &status) < 0)
		return errno;
	if (!S_ISREG(status.st_mode))
		return EINVAL;
	if (status.st_nlink != 1)
		return EMLINK;
	return fchown(log_state.descriptor, (uid_t)user, (gid_t)group) == 0 ? 0 : errno;
}

static int log_open_file(const char *path, int *descriptor)
{
	*descriptor = open(path, log_open_flags, 0640);
	return *descriptor >= 0 ? 0 : errno;
}

/* Lines go to DESCRIPTOR and PATH from now on. */
static void log_switch(int descriptor, char *path)
{
	int old_descriptor;
	char *old_path;

	mutex_lock(&log_mutex);
	old_descriptor = log_state.descriptor;
	old_path = log_state.path;
	log_state.descriptor = descriptor;
	log_state.path = path;
	log_state.torn = false;
	mutex_unlock(&log_mutex);

	if (old_path != NULL)
		close(old_descriptor);
	if (old_path != path)
		free(old_path);
}

int log_open(const char *target, enum log_format format, enum log_level level)
{
	int descriptor = STDERR_FILENO, error;
	char *path = NULL;

	if (strcmp(target, "syslog") == 0) {
		/* Connected now: later the process may have no right to. */
		openlog("liminald", LOG_PID | LOG_NDELAY, LOG_DAEMON);
		descriptor = -1;
	} else if (strcmp(target, "stderr") != 0) {
		path = strdup(target);
		if (path == NULL)
			return ENOMEM;
		error = log_open_file(path, &descriptor);
		if (error != 0) {
			free(path);
			return error;
		}
	}
	log_switch(descriptor, path);
	atomic_store_explicit(&log_chosen_format, format, memory_order_relaxed);
	log_set_level(level);
	return 0;
}

int log_reopen(void)
{
	int descriptor, error;

	if (log_state.path == NULL)
		return 0;
	error = log_open_file(log_state.path, &descriptor);
	if (error == 0)
		log_switch(descriptor, log_state.path);
	return error;
}

void log_set_level(enum log_level level)
{
	atomic_store_explicit(&log_threshold, level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
	return (int)level <= atomic_load_explicit(&log_threshold, memory_order_relaxed);
}

/* Adds all of BYTES, or nothing and returns false. */
static bool log_add(struct log_line *line, const char *bytes, size_t length)
{
	if (line->length > LOG_LINE_ROOM || length > LOG_LINE_ROOM - line->length)
		return false;
	memcpy(line->bytes + line->length, bytes, length);
	line->length += length;
	return true;
}

/* Adds what stands before a value, all of it or nothing. */
static bool log_add_key(struct log_line *line, const char *key, bool quotes)
{
	bool json = line->format == LOG_FORMAT_JSON;
	size_t start = line->length;

	if (log_add(line, json ? ",\"" : " ", json ? 2 : 1) && log_add(line, key, strlen(key)) &&
	    log_add(line, json ? "\":" : "=", json ? 2 : 1) && log_add(line, "\"", quotes ? 1 : 0))
		return true;
	line->length = start;
	return false;
}

static bool log_needs_quotes(struct span value)
{
	return value.length == 0 || memchr(value.data, ' ', value.length) != NULL ||
	       memchr(value.data, '"', value.length) != NULL ||
	       memchr(value.data, '=', value.length) != NULL;
}

/* Adds the first character of VALUE, and takes it off; false when it does not fit. */
static bool log_add_character(struct log_line *line, struct span *value)
{
	char escaped[TEXT_ESCAPED_MAX], quoted[2 * TEXT_ESCAPED_MAX];
	size_t escaped_length, i, length = 0;
	size_t used = text_escape(*value, escaped, &escaped_length);

	for (i = 0; i < escaped_length; i++) {
		if (escaped[i] == '"' || (escaped[i] == '\\' && line->format == LOG_FORMAT_JSON))
			quoted[length++] = '\\';
		quoted[length++] = escaped[i];
	}
	value->data += used;
	value->length -= used;
	return log_add(line, quoted, length);
}

/* False when the line is full; the value is cut then, and its quotes are closed all the same. */
static bool log_add_string(struct log_line *line, const char *key, struct span value, bool quotes)
{
	bool fits = true;

	if (!log_add_key(line, key, quotes))
		return false;
	while (fits && value.length > 0)
		fits = log_add_character(line, &value);
	if (quotes)
		line->bytes[line->length++] = '"'; /* in LOG_LINE_TAIL, if need be */
	return fits;
}

/* False when the line is full; a number that does not fit is left out with its key. */
static bool log_add_number(struct log_line *line, const char *key, uint64_t number, bool negative)
{
	size_t start = line->length, first;
	char digits[24];

	/* By hand, here and for the time: snprintf alone takes 2 KiB of stack. */
	first = sizeof(digits);
	do {
		digits[--first] = (char)('0' + number % 10);
		number /= 10;
	} while (number > 0);
	if (negative)
		digits[--first] = '-';
	if (log_add_key(line, key, false) && log_add(line, digits + first, sizeof(digits) - first))
		return true;
	line->length = start;
	return false;
}

static bool log_add_field(struct log_line *line, const struct log_field *field)
{
	struct span value = field->text;
	uint64_t number = field->number;
	bool negative;

	switch (field->type) {
	case LOG_FIELD_U64:
		return log_add_number(line, field->key, number, false);
	case LOG_FIELD_I64:
		negative = number > INT64_MAX;
		return log_add_number(line, field->key, negative ? 0 - number : number, negative);
	case LOG_FIELD_STR:
		if (value.data == NULL)
			value = SPAN_LITERAL("-");
		break;
	case LOG_FIELD_SPAN:
		value = text_name_shown(value);
		break;
	}
	return log_add_string(line, field->key, value,
			      line->format == LOG_FORMAT_JSON || log_needs_quotes(value));
}

/* Writes NUMBER over the WIDTH digits at AT. */
static void log_put_digits(char *at, size_t width, int number)
{
	while (width > 0) {
		at[--width] = (char)('0' + number % 10);
		number /= 10;
	}
}

static void log_add_head(struct log_line *line, enum log_level level)
{
	bool json = line->format == LOG_FORMAT_JSON;
	const char *before_time = json ? "{\"time\":\"" : "time=";
	const char *before_level = json ? "\",\"level\":\"" : " level=";
	const char *name = log_levels[level].name;
	char when[] = "0000-00-00T00:00:00.000Z";
	int64_t now_ms = clock_wall_ms();
	time_t seconds = (time_t)(now_ms / 1000);
	struct tm utc;

	ASSERT(gmtime_r(&seconds, &utc) != NULL);
	log_put_digits(when, 4, utc.tm_year + 1900);
	log_put_digits(when + 5, 2, utc.tm_mon + 1);
	log_put_digits(when + 8, 2, utc.tm_mday);
	log_put_digits(when + 11, 2, utc.tm_hour);
	log_put_digits(when + 14, 2, utc.tm_min);
	log_put_digits(when + 17, 2, utc.tm_sec);
	log_put_digits(when + 20, 3, (int)(now_ms % 1000));

	log_add(line, before_time, strlen(before_time));
	log_add(line, when, sizeof(when) - 1);
	log_add(line, before_level, strlen(before_level));
	log_add(line, name, strlen(name));
	log_add(line, "\"", json ? 1 : 0);
}

/* The line, or NULL when memory is missing. */
static struct log_line *log_line_new(enum log_level level, const char *event,
				     const struct log_field *fields, size_t field_count)
{
	struct log_line *line = malloc(sizeof(*line));
	size_t i = 0;
	bool fits;

	if (line == NULL)
		return NULL;
	line->format =
		(enum log_format)atomic_load_explicit(&log_chosen_format, memory_order_relaxed);
	line->length = 0;
	log_add_head(line, level);
	fits = log_add_string(line, "event", span_of(event), true);
	while (fits && i < field_count)
		fits = log_add_field(line, &fields[i++]);
	if (line->format == LOG_FORMAT_JSON)
		line->bytes[line->length++] = '}';
	line->bytes[line->length++] = '\n';
	return line;
}

/*
 * A pipe whose reader has stopped, or a stopped terminal, must cost lines, not hold up everybody
 * who has something to say. Where poll sees room in a pipe, a line fits (PIPE_BUF). The descriptor
 * may be shared with other programs, and is therefore not made non-blocking.
 */
static bool log_has_room(int descriptor)
{
	struct pollfd wait = {.fd = descriptor, .events = POLLOUT};

	return poll(&wait, 1, 0) != 0;
}

/* Writes all of BYTES, or as much as can be; *WRITTEN says how much. False on an error. */
static bool log_write_all(int descriptor, const char *bytes, size_t length, size_t *written)
{
	*written = 0;
	while (*written < length) {
		ssize_t count = write(descriptor, bytes + *written, length - *written);

		if (count > 0)
			*written += (size_t)count;
		else if (count == 0 || errno != EINTR)
			return false;
	}
	return true;
}

static bool log_write_locked(const struct log_line *line, enum log_level level)
{
	size_t written;

	mutex_assert_held(&log_mutex);
	if (log_state.descriptor < 0) {
		syslog(log_levels[level].priority, "%.*s", (int)line->length - 1, line->bytes);
		return true;
	}
	if (!log_has_room(log_state.descriptor))
		return false;
	if (log_state.torn) {
		if (!log_write_all(log_state.descriptor, "\n", 1, &written))
			return false;
		log_state.torn = false;
	}
	if (log_write_all(log_state.descriptor, line->bytes, line->length, &written))
		return true;
	log_state.torn = written > 0;
	return false;
}

/* False when memory is missing or the line could not be written. */
static bool log_put(enum log_level level, const char *event, const struct log_field *fields,
		    size_t field_count)
{
	struct log_line *line = log_line_new(level, event, fields, field_count);
	bool written;

	if (line == NULL)
		return false;
	mutex_lock(&log_mutex);
	written = log_write_locked(line, level);
	mutex_unlock(&log_mutex);
	free(line);
	return written;
}

/* Leaves LINES for a later line to tell of. */
static void log_leave_out(uint64_t lines)
{
	mutex_lock(&log_mutex);
	log_state.left_out += lines;
	mutex_unlock(&log_mutex);
}

/* Tells of LINES that were left out. */
static void log_put_left_out(uint64_t lines)
{
	if (lines > 0 &&
	    !log_put(LOG_LEVEL_WARNING, "log lines left out", LOG_FIELDS(LOG_U64("count", lines))))
		log_leave_out(lines);
}

/*
 * Takes one line of the second's share when LIMITED, false when that is used up. *LEFT_OUT is what
 * must be told now that the second in which it was left out is over.
 */
static bool log_admit(bool limited, uint64_t *left_out)
{
	int64_t now_ns = clock_mono_ns();
	bool admitted = true;

	*left_out = 0;
	mutex_lock(&log_mutex);
	if (now_ns >= log_state.second_ends_ns) {
		*left_out = log_state.left_out;
		log_state.left_out = 0;
	}
	if (limited) {
		if (now_ns >= log_state.second_ends_ns) {
			log_state.second_ends_ns = now_ns + NS_PER_S;
			log_state.lines = 0;
		}
		admitted = log_state.lines < LOG_CLIENT_LINES_PER_SECOND;
		if (admitted)
			log_state.lines++;
	}
	mutex_unlock(&log_mutex);
	return admitted;
}

static void log_write_checked(enum log_level level, const char *event,
			      const struct log_field *fields, size_t field_count, bool limited)
{
	uint64_t left_out;
	bool admitted;

	lock_assert_none_held();
	admitted = log_admit(limited, &left_out);
	log_put_left_out(left_out);
	if (admitted && log_put(level, event, fields, field_count))
		return;
	log_leave_out(1);
	metric_add(METRIC_LOG_LINES_LOST, 1);
}

void log_write(enum log_level level, const char *event, const struct log_field *fields,
	       size_t field_count)
{
	log_write_checked(level, event, fields, field_count, false);
}

void log_write_limited(enum log_level level, const char *event, const struct log_field *fields,
		       size_t field_count)
{
	log_write_checked(level, event, fields, field_count, true);
}

void log_flush_left_out(void)
{
	uint64_t left_out;

	lock_assert_none_held();
	mutex_lock(&log_mutex);
	left_out = log_state.left_out;
	log_state.left_out = 0;
	mutex_unlock(&log_mutex);
	log_put_left_out(left_out);
}
