/* Where a durable subscription begins: the words of --from. */
#include "liminal/cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"

/* Days since 1970-01-01 in the calendar that has always been Gregorian. */
static int64_t start_days(int year, int month, int day)
{
	int64_t y = month <= 2 ? year - 1 : year, m = month <= 2 ? month + 9 : month - 3;
	int64_t era = y / 400, of_era = y - era * 400;

	return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 + (153 * m + 2) / 5 + day -
	       1 - 719468;
}

/* "2026-11-25", with "T14:30", ":15", and "Z" for UTC. */
static bool start_date(const char *text, uint64_t *ms)
{
	struct tm parts = {.tm_isdst = -1};
	int year, month, day, hour = 0, minute = 0, second = 0, end = 0, more = 0;
	int64_t seconds;

	if (sscanf(text, "%4d-%2d-%2d%n", &year, &month, &day, &end) != 3)
		return false;
	text += end;
	if (*text == 'T' || *text == ' ') {
		if (sscanf(text + 1, "%2d:%2d%n", &hour, &minute, &more) != 2)
			return false;
		text += 1 + more;
		if (*text == ':') {
			if (sscanf(text + 1, "%2d%n", &second, &more) != 1)
				return false;
			text += 1 + more;
		}
	}
	if (year < 1970 || month < 1 || month > 12 || day < 1 || day > 31 || hour < 0 ||
	    hour > 23 || minute < 0 || minute > 59 || second < 0 || second > 60)
		return false;
	if (strcmp(text, "Z") == 0) {
		seconds = start_days(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
	} else if (*text == '\0') {
		parts.tm_year = year - 1900;
		parts.tm_mon = month - 1;
		parts.tm_mday = day;
		parts.tm_hour = hour;
		parts.tm_min = minute;
		parts.tm_sec = second;
		seconds = (int64_t)mktime(&parts);
	} else {
		return false;
	}
	*ms = seconds > 0 ? (uint64_t)seconds * 1000 : 0;
	return seconds >= 0;
}

/* "10m": so long ago. */
static bool start_ago(const char *text, uint64_t *ms)
{
	static const struct {
		char unit;
		int64_t ms;
	} units[] = {{'s', 1000}, {'m', 60000}, {'h', 3600000}, {'d', 86400000}};
	int64_t now_ms = clock_wall_ms();
	long number;
	char *end;

	number = strtol(text, &end, 10);
	if (*text < '0' || *text > '9' || end[0] == '\0' || end[1] != '\0' || number > 1000000)
		return false;
	for (size_t i = 0; i < ARRAY_LENGTH(units); i++)
		if (units[i].unit == *end) {
			int64_t ago_ms = number * units[i].ms;

			*ms = ago_ms < now_ms ? (uint64_t)(now_ms - ago_ms) : 0;
			return true;
		}
	return false;
}

static bool start_sequence(const char *text, uint64_t *sequence)
{
	unsigned long long number;
	char *end;

	errno = 0;
	number = strtoull(text, &end, 10);
	*sequence = number;
	return *text >= '0' && *text <= '9' && *end == '\0' && errno == 0;
}

bool cli_value_start(const struct cli_arguments *arguments,
		     struct liminal_subscribe_options *options)
{
	const char *value = cli_value(arguments, 'F');

	if (value == NULL)
		return true;
	if (strcmp(value, "new") == 0)
		options->start = LIMINAL_START_NEW;
	else if (strcmp(value, "all") == 0)
		options->start = LIMINAL_START_ALL;
	else if (start_sequence(value, &options->value))
		options->start = LIMINAL_START_SEQUENCE;
	else if (start_ago(value, &options->value) || start_date(value, &options->value))
		options->start = LIMINAL_START_TIME;
	else {
		cli_usage(arguments->command,
			  "\"--from %s\": new, all, a sequence, a time as in 2026-11-25T14:30 "
			  "(local) "
			  "or 2026-11-25T14:30:00Z, or how long ago, as in 10m, are needed",
			  value);
		return false;
	}
	return true;
}
