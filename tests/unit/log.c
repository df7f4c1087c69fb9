/* The log, as an administrator finds it in the file: every line, in both formats. */
#include "base/log.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/lock.h"
#include "base/metrics.h"
#include "base/thread.h"

#define LINE_MAX_BYTES 4096

static char folder[] = "/tmp/liminal-log-XXXXXX";
static char log_path[sizeof(folder) + 16], rotated_path[sizeof(folder) + 16];

/* Once, in the process from which every test is forked. */
static void folder_make(void)
{
	ck_assert_ptr_nonnull(mkdtemp(folder));
	snprintf(log_path, sizeof(log_path), "%s/log", folder);
	snprintf(rotated_path, sizeof(rotated_path), "%s/log.1", folder);
}

static void folder_remove(void)
{
	unlink(log_path);
	unlink(rotated_path);
	rmdir(folder);
}

static void files_remove(void)
{
	unlink(log_path);
	rmdir(log_path);
	unlink(rotated_path);
}

static void open_log(enum log_format format, enum log_level level)
{
	files_remove();
	ck_assert_int_eq(log_open(log_path, format, level), 0);
}

/* All of PATH, NUL-terminated; the caller frees it. */
static char *contents(const char *path)
{
	FILE *file = fopen(path, "r");
	char *text;
	long size;

	ck_assert_ptr_nonnull(file);
	ck_assert_int_eq(fseek(file, 0, SEEK_END), 0);
	size = ftell(file);
	rewind(file);
	text = malloc((size_t)size + 1);
	ck_assert_ptr_nonnull(text);
	ck_assert_uint_eq(fread(text, 1, (size_t)size, file), (size_t)size);
	text[size] = '\0';
	ck_assert_uint_eq(strlen(text), (size_t)size);
	fclose(file);
	return text;
}

static size_t count_of(const char *text, const char *part)
{
	size_t count = 0;

	for (; (text = strstr(text, part)) != NULL; text++)
		count++;
	return count;
}

/* What a text line says behind its time, which must be one. */
static const char *after_time(const char *line)
{
	int year, month, day, hour, minute, second, ms, used = 0;

	ck_assert_msg(sscanf(line, "time=%4d-%2d-%2dT%2d:%2d:%2d.%3dZ %n", &year, &month, &day,
			     &hour, &minute, &second, &ms, &used) == 7 &&
			      used == (int)strlen("time=2026-01-01T00:00:00.000Z "),
		      "no time: %s", line);
	return line + used;
}

/* The one line of the log, which is in the text format, behind its time. */
static const char *only_line(void)
{
	static char line[LINE_MAX_BYTES + 1];
	char *text = contents(log_path);

	ck_assert_uint_eq(count_of(text, "\n"), 1);
	ck_assert_uint_le(strlen(text), LINE_MAX_BYTES);
	strcpy(line, text);
	free(text);
	ck_assert_int_eq(line[strlen(line) - 1], '\n');
	line[strlen(line) - 1] = '\0';
	return after_time(line);
}

static json_t *parse(const char *line, size_t length)
{
	json_error_t error;
	json_t *object = json_loadb(line, length, JSON_REJECT_DUPLICATES, &error);

	ck_assert_msg(json_is_object(object), "%s in %.*s", error.text, (int)length, line);
	return object;
}

static json_t *only_object(void)
{
	char *text = contents(log_path);
	json_t *object;

	ck_assert_uint_eq(count_of(text, "\n"), 1);
	ck_assert_uint_le(strlen(text), LINE_MAX_BYTES);
	object = parse(text, strlen(text));
	free(text);
	return object;
}

START_TEST(text_line_is_as_documented)
{
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "connection closed", LOG_U64("conn", 7),
		  LOG_STR("reason", "reset"));
	ck_assert_str_eq(only_line(), "level=info event=\"connection closed\" conn=7 reason=reset");
}
END_TEST

START_TEST(time_in_the_log_is_utc)
{
	int64_t before = clock_wall_ms(), after;
	struct tm utc = {.tm_isdst = 0};
	char *text, earliest[32], latest[32];
	time_t seconds;

	/* Five hours off, whatever the machine's zone is. */
	setenv("TZ", "EST5", 1);
	tzset();
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 1));
	after = clock_wall_ms();
	text = contents(log_path);
	seconds = (time_t)(before / 1000);
	gmtime_r(&seconds, &utc);
	strftime(earliest, sizeof(earliest), "time=%Y-%m-%dT%H:%M:%S", &utc);
	seconds = (time_t)(after / 1000);
	gmtime_r(&seconds, &utc);
	strftime(latest, sizeof(latest), "time=%Y-%m-%dT%H:%M:%S", &utc);
	ck_assert_msg(strncmp(text, earliest, strlen(earliest)) >= 0 &&
			      strncmp(text, latest, strlen(latest)) <= 0,
		      "%s is not between %s and %s", text, earliest, latest);
	free(text);
}
END_TEST

static const struct {
	const char *value, *shown;
} text_values[] = {
	{"plain", "plain"},
	{NULL, "-"},
	{"", "\"\""},
	{"two words", "\"two words\""},
	{"a=b", "\"a=b\""},
	{"say \"hi\"", "\"say \\\"hi\\\"\""},
	{"\"", "\"\\\"\""},
	{"a\nlevel=error", "\"a\\x0alevel=error\""},
	{"a\tb", "a\\x09b"},
	{"a\\nb", "a\\x5cnb"},
	{"a \\\"", "\"a \\x5c\\\"\""},
	{"\xC3\xA9", "\xC3\xA9"},
	{"\xC3", "\\xc3"},
	{"\xC2\x85", "\\xc2\\x85"},
	{"\x7F", "\\x7f"},
};

START_TEST(text_value_cannot_be_taken_for_anything_else)
{
	char expected[100];

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "x", LOG_STR("key", text_values[_i].value), LOG_U64("n", 1));
	snprintf(expected, sizeof(expected), "level=info event=\"x\" key=%s n=1",
		 text_values[_i].shown);
	ck_assert_str_eq(only_line(), expected);
}
END_TEST

START_TEST(numbers_are_shown_whole)
{
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("a", UINT64_MAX), LOG_I64("b", INT64_MIN),
		  LOG_I64("c", -1), LOG_U64("d", 0));
	ck_assert_str_eq(only_line(), "level=info event=\"x\" a=18446744073709551615 "
				      "b=-9223372036854775808 c=-1 d=0");
}
END_TEST

START_TEST(name_is_cut_and_our_own_text_is_not)
{
	char name[301], expected[600];

	memset(name, 'n', 300);
	name[300] = '\0';
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "x", LOG_NAME("channel", span_of(name)), LOG_STR("path", name),
		  LOG_NAME("empty", span_of(NULL)));
	snprintf(expected, sizeof(expected),
		 "level=info event=\"x\" channel=%.128s path=%s empty=\"\"", name, name);
	ck_assert_str_eq(only_line(), expected);
}
END_TEST

START_TEST(json_line_is_an_object)
{
	json_t *object;
	const char *when;

	open_log(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_WARNING, "it \"happened\"", LOG_U64("conn", 7), LOG_I64("delta", -3),
		  LOG_STR("none", NULL), LOG_STR("text", "a \"b\" \\ \n\xC3\xA9"),
		  LOG_NAME("name", SPAN_LITERAL("\0\xFF\xED\xA0\x80\xF4\x90\x80\x80\xC3")));
	object = only_object();
	ck_assert_uint_eq(json_object_size(object), 8);
	when = json_string_value(json_object_get(object, "time"));
	ck_assert_uint_eq(strlen(when), strlen("2026-01-01T00:00:00.000Z"));
	ck_assert_str_eq(json_string_value(json_object_get(object, "level")), "warning");
	ck_assert_str_eq(json_string_value(json_object_get(object, "event")), "it \"happened\"");
	ck_assert_int_eq(json_integer_value(json_object_get(object, "conn")), 7);
	ck_assert_int_eq(json_integer_value(json_object_get(object, "delta")), -3);
	ck_assert_str_eq(json_string_value(json_object_get(object, "none")), "-");
	ck_assert_str_eq(json_string_value(json_object_get(object, "text")),
			 "a \"b\" \\x5c \\x0a\xC3\xA9");
	ck_assert_str_eq(json_string_value(json_object_get(object, "name")),
			 "\\x00\\xff\\xed\\xa0\\x80\\xf4\\x90\\x80\\x80\\xc3");
	json_decref(object);
}
END_TEST

static const char *const long_units[] = {"a", "\"", "\\", "\n", "\xC3\xA9", "\xF0\x9F\x90\x91",
					 " "};

/* UNIT again and again behind as many letters as make it straddle every place near the end. */
START_TEST(long_line_is_cut_and_still_whole)
{
	const char *unit = long_units[_i];
	char value[LINE_MAX_BYTES + 100];
	enum log_format format;
	size_t letters, length, lines;

	for (format = LOG_FORMAT_TEXT; format <= LOG_FORMAT_JSON; format++) {
		char *text, *line, *end;

		open_log(format, LOG_LEVEL_INFO);
		lines = 0;
		for (letters = LINE_MAX_BYTES - 160; letters < LINE_MAX_BYTES - 20; letters++) {
			memset(value, 'b', letters);
			for (length = letters; length < LINE_MAX_BYTES; length += strlen(unit))
				strcpy(value + length, unit);
			log_event(LOG_LEVEL_INFO, "x", LOG_STR("value", value), LOG_U64("n", 1));
			lines++;
		}
		text = contents(log_path);
		ck_assert_uint_eq(count_of(text, "\n"), lines);
		ck_assert(utf8_valid((const uint8_t *)text, strlen(text)));
		for (line = text; *line != '\0'; line = end + 1) {
			end = strchr(line, '\n');
			ck_assert_int_le(end + 1 - line, LINE_MAX_BYTES);
			ck_assert_int_ge(end + 1 - line, LINE_MAX_BYTES - 10);
			if (format == LOG_FORMAT_JSON)
				json_decref(parse(line, (size_t)(end - line)));
			else
				after_time(line);
		}
		free(text);
	}
}
END_TEST

/* In a nearly full line every field is there whole, or not at all, or is the cut one. */
START_TEST(fields_that_do_not_fit_are_left_out)
{
	char value[LINE_MAX_BYTES];
	bool numbers = false, strings = false;
	size_t length;

	for (length = LINE_MAX_BYTES - 160; length < LINE_MAX_BYTES - 60; length++) {
		json_t *object, *number, *string;

		memset(value, 'b', length);
		value[length] = '\0';
		open_log(LOG_FORMAT_JSON, LOG_LEVEL_INFO);
		log_event(LOG_LEVEL_INFO, "x", LOG_STR("value", value), LOG_U64("n", 1234567890),
			  LOG_STR("s", "abc"), LOG_U64("last", 5));
		object = only_object();
		ck_assert(json_object_get(object, "value") != NULL);
		number = json_object_get(object, "n");
		string = json_object_get(object, "s");
		if (number != NULL)
			ck_assert_int_eq(json_integer_value(number), 1234567890);
		if (string != NULL)
			ck_assert_int_eq(strncmp("abc", json_string_value(string),
						 json_string_length(string)),
					 0);
		if (json_object_get(object, "last") != NULL)
			ck_assert(number != NULL && string != NULL);
		numbers = numbers || number == NULL;
		strings = strings || (string != NULL && json_string_length(string) < 3);
		json_decref(object);
	}
	ck_assert_msg(numbers && strings, "no line was cut where this test wants to look");
}
END_TEST

START_TEST(lines_below_the_level_are_not_written)
{
	enum log_level level, limit;
	char *text;

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_ERROR);
	for (limit = LOG_LEVEL_ERROR; limit <= LOG_LEVEL_DEBUG; limit++) {
		log_set_level(limit);
		for (level = LOG_LEVEL_ERROR; level <= LOG_LEVEL_DEBUG; level++) {
			ck_assert(log_enabled(level) == (level <= limit));
			log_event(level, "x", LOG_U64("n", 1));
			log_client_event(level, "y", LOG_U64("n", 1));
		}
	}
	text = contents(log_path);
	ck_assert_uint_eq(count_of(text, "level=error event=\"x\""), 5);
	ck_assert_uint_eq(count_of(text, "level=warning event=\"x\""), 4);
	ck_assert_uint_eq(count_of(text, "level=notice event=\"y\""), 3);
	ck_assert_uint_eq(count_of(text, "level=info event=\"x\""), 2);
	ck_assert_uint_eq(count_of(text, "level=debug event=\"y\""), 1);
	free(text);
}
END_TEST

START_TEST(standard_error_is_the_first_target)
{
	int descriptor;

	files_remove();
	descriptor = open(log_path, O_WRONLY | O_CREAT, 0600);
	ck_assert_int_ge(descriptor, 0);
	ck_assert_int_eq(dup2(descriptor, STDERR_FILENO), STDERR_FILENO);
	log_event(LOG_LEVEL_DEBUG, "x", LOG_U64("n", 1));
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 2));
	ck_assert_str_eq(only_line(), "level=info event=\"x\" n=2");

	/* It is not the log's to close. */
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	ck_assert_int_ne(fcntl(STDERR_FILENO, F_GETFD), -1);
}
END_TEST

START_TEST(target_that_cannot_be_opened_changes_nothing)
{
	char path[sizeof(log_path) + 16];

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_NOTICE);
	snprintf(path, sizeof(path), "%s.d/log", log_path);
	ck_assert_int_eq(log_open(path, LOG_FORMAT_JSON, LOG_LEVEL_DEBUG), ENOENT);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 1));
	log_event(LOG_LEVEL_NOTICE, "x", LOG_U64("n", 2));
	ck_assert_str_eq(only_line(), "level=notice event=\"x\" n=2");
}
END_TEST

START_TEST(other_target_takes_over)
{
	char *text;

	files_remove();
	ck_assert_int_eq(log_open(rotated_path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO), 0);
	ck_assert_int_eq(log_open("syslog", LOG_FORMAT_TEXT, LOG_LEVEL_INFO), 0);
	log_event(LOG_LEVEL_INFO, "liminald unit test", LOG_U64("n", 1));
	ck_assert_int_eq(log_reopen(), 0);
	ck_assert_int_eq(log_open(log_path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO), 0);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 2));
	ck_assert_str_eq(only_line(), "level=info event=\"x\" n=2");
	text = contents(rotated_path);
	ck_assert_str_eq(text, "");
	free(text);
}
END_TEST

START_TEST(file_is_appended_to_and_not_for_everyone)
{
	struct stat status;
	char *text;

	umask(0);
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 1));
	ck_assert_int_eq(log_open(log_path, LOG_FORMAT_TEXT, LOG_LEVEL_INFO), 0);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 2));
	ck_assert_int_eq(stat(log_path, &status), 0);
	ck_assert_int_eq(status.st_mode & 07777, 0640);
	text = contents(log_path);
	ck_assert_uint_eq(count_of(text, "\n"), 2);
	free(text);
}
END_TEST

START_TEST(rotated_file_is_left_when_told)
{
	int turn, next;
	char *text;

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	ck_assert_int_eq(rename(log_path, rotated_path), 0);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 1));
	ck_assert_int_eq(mkdir(log_path, 0700), 0);
	ck_assert_int_eq(log_reopen(), EISDIR);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 2));
	ck_assert_int_eq(rmdir(log_path), 0);
	ck_assert_int_eq(log_reopen(), 0);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 3));
	for (turn = 0; turn < 100; turn++)
		ck_assert_int_eq(log_reopen(), 0);
	next = dup(STDERR_FILENO);
	ck_assert_msg(next < 100, "rotation leaks descriptors");
	close(next);
	text = contents(rotated_path);
	ck_assert_uint_eq(count_of(text, "n=1\n"), 1);
	ck_assert_uint_eq(count_of(text, "n=2\n"), 1);
	ck_assert_uint_eq(count_of(text, "\n"), 2);
	free(text);
	ck_assert_str_eq(only_line(), "level=info event=\"x\" n=3");
}
END_TEST

static void *write_lines(void *argument)
{
	int i;

	for (i = 0; i < 500; i++)
		log_event(LOG_LEVEL_INFO, "x", LOG_STR("who", argument), LOG_I64("n", i));
	return NULL;
}

START_TEST(lines_of_threads_do_not_mix_nor_get_lost_at_rotation)
{
	static char names[4][400];
	struct thread threads[4];
	char *text[2], *line, *end;
	size_t i, lines = 0;

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (i = 0; i < ARRAY_LENGTH(threads); i++) {
		memset(names[i], 'a' + (int)i, sizeof(names[i]) - 1);
		ck_assert_int_eq(thread_start(&threads[i], write_lines, names[i]), 0);
	}
	ck_assert_int_eq(rename(log_path, rotated_path), 0);
	ck_assert_int_eq(log_reopen(), 0);
	for (i = 0; i < ARRAY_LENGTH(threads); i++)
		thread_join(&threads[i]);
	text[0] = contents(log_path);
	text[1] = contents(rotated_path);
	for (i = 0; i < 2; i++) {
		for (line = text[i]; *line != '\0'; line = end + 1) {
			const char *who = after_time(line) + strlen("level=info event=\"x\" who=");

			end = strchr(line, '\n');
			ck_assert_ptr_nonnull(end);
			ck_assert_int_eq(memcmp(who, names[who[0] - 'a'], sizeof(names[0]) - 1), 0);
			ck_assert_int_eq(memcmp(who + sizeof(names[0]) - 1, " n=", 3), 0);
			lines++;
		}
		free(text[i]);
	}
	ck_assert_uint_eq(lines, 2000);
}
END_TEST

/* The sum of what the lines say that count lines left out. */
static unsigned long left_out_in(const char *text)
{
	static const char event[] = "level=warning event=\"log lines left out\" count=";
	unsigned long sum = 0;

	for (; (text = strstr(text, event)) != NULL; text += sizeof(event) - 1)
		sum += strtoul(text + sizeof(event) - 1, NULL, 10);
	return sum;
}

START_TEST(clients_cannot_flood_the_log)
{
	int64_t start = clock_mono_ns(), seconds;
	size_t written;
	char *text;
	int i;

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	for (i = 0; i < 5000; i++)
		log_client_event(LOG_LEVEL_INFO, "flood", LOG_I64("n", i));
	log_event(LOG_LEVEL_INFO, "ours", LOG_U64("n", 1));
	log_flush_left_out();
	log_flush_left_out();
	seconds = (clock_mono_ns() - start) / NS_PER_S + 1;
	text = contents(log_path);
	written = count_of(text, "event=\"flood\"");
	ck_assert_uint_ge(written, LOG_CLIENT_LINES_PER_SECOND);
	ck_assert_uint_le(written, (size_t)seconds * LOG_CLIENT_LINES_PER_SECOND);
	ck_assert_uint_eq(left_out_in(text) + written, 5000);
	ck_assert_uint_eq(metric_read(METRIC_LOG_LINES_LOST) + written, 5000);
	ck_assert_uint_eq(count_of(text, "event=\"ours\""), 1);
	free(text);
}
END_TEST

/* Waits for the end of a second, which is what it is about. */
START_TEST(what_was_left_out_is_told_before_the_next_line)
{
	const struct timespec pause = {.tv_nsec = 10 * NS_PER_MS};
	char *text, *told;
	int64_t until;
	int i;

	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_ERROR);
	for (i = 0; i < 2 * LOG_CLIENT_LINES_PER_SECOND; i++)
		log_client_event(LOG_LEVEL_ERROR, "flood", LOG_I64("n", i));
	until = clock_mono_ns() + NS_PER_S;
	while (clock_mono_ns() < until)
		nanosleep(&pause, NULL);
	log_event(LOG_LEVEL_ERROR, "next", LOG_U64("n", 1));
	log_client_event(LOG_LEVEL_ERROR, "flood", LOG_STR("n", "again"));
	text = contents(log_path);
	told = strstr(text, "event=\"log lines left out\"");
	ck_assert_ptr_nonnull(told);
	ck_assert_ptr_nonnull(strstr(told, "event=\"next\""));
	ck_assert_ptr_nonnull(strstr(told, "n=again\n"));
	ck_assert_uint_eq(left_out_in(text) + count_of(text, "event=\"flood\""),
			  2 * LOG_CLIENT_LINES_PER_SECOND + 1);
	free(text);
}
END_TEST

/* Somebody has stopped to read standard error: that costs lines, and nobody waits. */
START_TEST(full_pipe_costs_lines_only)
{
	char text[LINE_MAX_BYTES + 1] = "";
	int ends[2], flags;
	ssize_t got;

	ck_assert_int_eq(pipe(ends), 0);
	ck_assert_int_eq(dup2(ends[1], STDERR_FILENO), STDERR_FILENO);
	flags = fcntl(ends[1], F_GETFL);
	ck_assert_int_eq(fcntl(ends[1], F_SETFL, flags | O_NONBLOCK), 0);
	while (write(ends[1], text, LINE_MAX_BYTES) > 0)
		;
	ck_assert_int_eq(fcntl(ends[1], F_SETFL, flags), 0);
	ck_assert_int_eq(log_open("stderr", LOG_FORMAT_TEXT, LOG_LEVEL_INFO), 0);
	for (int i = 0; i < 3; i++)
		log_event(LOG_LEVEL_INFO, "lost", LOG_I64("n", i));
	ck_assert_uint_ge(metric_read(METRIC_LOG_LINES_LOST), 3);
	ck_assert_int_eq(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
	while (read(ends[0], text, LINE_MAX_BYTES) > 0)
		;
	log_event(LOG_LEVEL_INFO, "told", LOG_I64("n", 4));
	got = read(ends[0], text, LINE_MAX_BYTES);
	ck_assert_int_gt(got, 0);
	text[got] = '\0';
	ck_assert_uint_eq(left_out_in(text), 3);
	ck_assert_uint_eq(count_of(text, "event=\"told\""), 1);
	ck_assert_uint_eq(count_of(text, "event=\"lost\""), 0);
}
END_TEST

/* True when the text line LINE says EXPECTED behind its time. */
static bool says(const char *line, const char *expected)
{
	return strncmp(after_time(line), expected, strlen(expected)) == 0;
}

/* For a while the file may not grow: the second line breaks off, the third is not written at all.
 */
START_TEST(full_disk_costs_lines_but_not_the_next_ones)
{
	struct rlimit before, small;
	char *text, *lines[5], *next;
	size_t i;

	signal(SIGXFSZ, SIG_IGN);
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	log_event(LOG_LEVEL_INFO, "first", LOG_U64("n", 1));
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &before), 0);
	small = before;
	small.rlim_cur = 100;
	/* check(3) notes each of its assertions in a file, so there is none here. */
	setrlimit(RLIMIT_FSIZE, &small);
	log_event(LOG_LEVEL_INFO, "second", LOG_U64("n", 2));
	log_event(LOG_LEVEL_INFO, "third", LOG_U64("n", 3));
	setrlimit(RLIMIT_FSIZE, &before);
	log_event(LOG_LEVEL_INFO, "fourth", LOG_U64("n", 4));
	log_event(LOG_LEVEL_INFO, "fifth", LOG_U64("n", 5));

	next = text = contents(log_path);
	ck_assert_uint_eq(count_of(text, "\n"), ARRAY_LENGTH(lines));
	for (i = 0; i < ARRAY_LENGTH(lines); i++) {
		lines[i] = next;
		next = strchr(next, '\n') + 1;
	}
	ck_assert(says(lines[0], "level=info event=\"first\" n=1\n"));
	ck_assert_int_eq(lines[2] - text, 100 + 1);
	ck_assert(says(lines[2], "level=warning event=\"log lines left out\" count=2\n"));
	ck_assert(says(lines[3], "level=info event=\"fourth\" n=4\n"));
	ck_assert(says(lines[4], "level=info event=\"fifth\" n=5\n"));
	ck_assert_uint_eq(metric_read(METRIC_LOG_LINES_LOST), 2);
	free(text);
}
END_TEST

#ifdef LOCK_CHECKS

START_TEST(logging_under_a_lock_aborts)
{
	static struct mutex mutex;
	struct rlimit no_core = {0, 0};

	setrlimit(RLIMIT_CORE, &no_core);
	ck_assert_ptr_nonnull(freopen("/dev/null", "w", stderr));
	mutex_init(&mutex, LOCK_CHANNEL);
	open_log(LOG_FORMAT_TEXT, LOG_LEVEL_INFO);
	mutex_lock(&mutex);
	log_event(LOG_LEVEL_INFO, "x", LOG_U64("n", 1));
}
END_TEST

#endif

static Suite *log_suite(void)
{
	Suite *suite = suite_create("log");
	TCase *tests = tcase_create("log");

	tcase_set_timeout(tests, 60);
	tcase_add_unchecked_fixture(tests, folder_make, folder_remove);
	tcase_add_test(tests, text_line_is_as_documented);
	tcase_add_test(tests, time_in_the_log_is_utc);
	tcase_add_loop_test(tests, text_value_cannot_be_taken_for_anything_else, 0,
			    ARRAY_LENGTH(text_values));
	tcase_add_test(tests, numbers_are_shown_whole);
	tcase_add_test(tests, name_is_cut_and_our_own_text_is_not);
	tcase_add_test(tests, json_line_is_an_object);
	tcase_add_loop_test(tests, long_line_is_cut_and_still_whole, 0, ARRAY_LENGTH(long_units));
	tcase_add_test(tests, fields_that_do_not_fit_are_left_out);
	tcase_add_test(tests, lines_below_the_level_are_not_written);
	tcase_add_test(tests, standard_error_is_the_first_target);
	tcase_add_test(tests, target_that_cannot_be_opened_changes_nothing);
	tcase_add_test(tests, other_target_takes_over);
	tcase_add_test(tests, file_is_appended_to_and_not_for_everyone);
	tcase_add_test(tests, rotated_file_is_left_when_told);
	tcase_add_test(tests, lines_of_threads_do_not_mix_nor_get_lost_at_rotation);
	tcase_add_test(tests, clients_cannot_flood_the_log);
	tcase_add_test(tests, what_was_left_out_is_told_before_the_next_line);
	tcase_add_test(tests, full_pipe_costs_lines_only);
	tcase_add_test(tests, full_disk_costs_lines_but_not_the_next_ones);
#ifdef LOCK_CHECKS
	tcase_add_test_raise_signal(tests, logging_under_a_lock_aborts, SIGABRT);
#endif
	suite_add_tcase(suite, tests);
	return suite;
}

int main(void)
{
	SRunner *runner = srunner_create(log_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
