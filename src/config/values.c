/* One value as text: numbers with their units, switches, addresses, names and paths, both ways. */
#include "config/config_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

struct unit {
	const char *name;
	uint64_t factor;
};

/* Rising. */
static const struct unit value_size_units[] = {
	{"K", UINT64_C(1) << 10},
	{"M", UINT64_C(1) << 20},
	{"G", UINT64_C(1) << 30},
	{"T", UINT64_C(1) << 40},
};
static const struct unit value_duration_units[] = {
	{"ms", 1}, {"s", 1000}, {"m", 60 * 1000}, {"h", 60 * 60 * 1000}, {"d", 24 * 60 * 60 * 1000},
};

bool value_is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '\v' || c == '\f';
}

void value_quote(struct text *text, const char *value)
{
	text_add(text, "\"");
	text_add_name(text, span_of(value));
	text_add(text, "\"");
}

/* Digits at *TEXT, which is moved behind them. */
static bool value_digits(const char **text, uint64_t *number, struct text *why)
{
	const char *at = *text;

	*number = 0;
	if (*at < '0' || *at > '9') {
		text_add(why, "is not a whole number");
		return false;
	}
	for (; *at >= '0' && *at <= '9'; at++) {
		uint64_t digit = (uint64_t)(*at - '0');

		if (*number > (UINT64_MAX - digit) / 10)
			*number = UINT64_MAX;
		else
			*number = *number * 10 + digit;
	}
	*text = at;
	return true;
}

bool value_count(const char *text, uint64_t *count, struct text *why)
{
	uint64_t number;

	*count = 0;
	if (!value_digits(&text, &number, why))
		return false;
	if (*text != '\0') {
		text_add(why, "is not a whole number");
		return false;
	}
	*count = number;
	return true;
}

static void value_add_units(struct text *text, const struct unit *units, size_t count)
{
	for (size_t i = 0; i < count; i++)
		text_add(text, "%s%s", i == 0 ? "" : i + 1 < count ? ", " : " or ", units[i].name);
}

/* A number with a unit, or 0 without one. */
static bool value_scaled(const char *text, const struct unit *units, size_t unit_count,
			 uint64_t *value, struct text *why)
{
	uint64_t number;

	*value = 0;
	if (!value_digits(&text, &number, why))
		return false;
	if (*text == '\0' && number == 0)
		return true;
	for (size_t i = 0; i < unit_count; i++) {
		if (strcmp(text, units[i].name) != 0)
			continue;
		*value = number > UINT64_MAX / units[i].factor ? UINT64_MAX
							       : number * units[i].factor;
		return true;
	}
	if (*text == '\0') {
		text_add(why, "needs a unit: ");
	} else {
		text_add(why, "has the unit ");
		value_quote(why, text);
		text_add(why, " instead of ");
	}
	value_add_units(why, units, unit_count);
	return false;
}

bool value_size(const char *text, uint64_t *bytes, struct text *why)
{
	return value_scaled(text, value_size_units, ARRAY_LENGTH(value_size_units), bytes, why);
}

bool value_duration(const char *text, int64_t *ms, struct text *why)
{
	uint64_t value;
	bool valid = value_scaled(text, value_duration_units, ARRAY_LENGTH(value_duration_units),
				  &value, why);

	*ms = value > INT64_MAX ? INT64_MAX : (int64_t)value;
	return valid;
}

/* With the largest unit that leaves no rest. */
static void value_print_scaled(struct text *text, const struct unit *units, size_t unit_count,
			       uint64_t value)
{
	if (value == 0) {
		text_add(text, "0");
		return;
	}
	for (size_t i = unit_count; i > 0; i--) {
		if (value % units[i - 1].factor == 0) {
			text_add(text, "%llu%s", (unsigned long long)(value / units[i - 1].factor),
				 units[i - 1].name);
			return;
		}
	}
	/* A size can be set in units only, so that none is left over. */
	ASSERT(false);
}

void value_print_size(struct text *text, uint64_t bytes)
{
	value_print_scaled(text, value_size_units, ARRAY_LENGTH(value_size_units), bytes);
}

void value_print_duration(struct text *text, int64_t ms)
{
	ASSERT(ms >= 0);
	value_print_scaled(text, value_duration_units, ARRAY_LENGTH(value_duration_units),
			   (uint64_t)ms);
}

bool value_switch(const char *text, bool *on, struct text *why)
{
	*on = strcmp(text, "yes") == 0;
	if (*on || strcmp(text, "no") == 0)
		return true;
	text_add(why, "is neither yes nor no");
	return false;
}

static bool value_host_character(char c)
{
	return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') ||
	       c == '.' || c == '-' || c == '_';
}

/* Without its scope, as in fe80::1%eth0, which only the interface list can judge. */
static bool value_is_ipv6(const char *text, size_t length)
{
	char address[INET6_ADDRSTRLEN];
	struct in6_addr parsed;
	const char *scope = memchr(text, '%', length);

	if (scope != NULL) {
		if (scope + 1 == text + length)
			return false;
		for (const char *c = scope + 1; c < text + length; c++)
			if (!value_host_character(*c))
				return false;
		length = (size_t)(scope - text);
	}
	if (length >= sizeof(address))
		return false;
	memcpy(address, text, length);
	address[length] = '\0';
	return inet_pton(AF_INET6, address, &parsed) == 1;
}

static bool value_is_host(const char *text, size_t length)
{
	if (length == 0 || length > 255)
		return false;
	for (size_t i = 0; i < length; i++)
		if (!value_host_character(text[i]))
			return false;
	return true;
}

bool value_address(const char *text, struct text *why)
{
	const char *colon = strrchr(text, ':');
	size_t length = colon != NULL ? (size_t)(colon - text) : 0;
	const char *digits;

	if (colon == NULL) {
		text_add(why, "has no port: HOST:PORT");
		return false;
	}
	if (text[0] == '[') {
		if (length < 2 || text[length - 1] != ']' || !value_is_ipv6(text + 1, length - 2)) {
			text_add(why, "is not [IPV6]:PORT");
			return false;
		}
	} else if (memchr(text, ':', length) != NULL) {
		text_add(why, "is not HOST:PORT; an IPv6 address stands in brackets: [IPV6]:PORT");
		return false;
	} else if (length == 0) {
		text_add(why, "has no host; every address of this machine is 0.0.0.0 or [::]");
		return false;
	} else if (!value_is_host(text, length)) {
		text_add(why, "is not HOST:PORT: the host is neither a name nor an address");
		return false;
	}
	digits = colon + 1;
	if (digits[0] == '\0' || strlen(digits) > 5 ||
	    digits[strspn(digits, "0123456789")] != '\0' || strtol(digits, NULL, 10) > 65535) {
		text_add(why, "has no port from 0 to 65535");
		return false;
	}
	return true;
}

bool value_address_is_local(const char *text)
{
	return text[0] == '/' || strncmp(text, "127.", 4) == 0 ||
	       strncmp(text, "localhost:", 10) == 0 || strncmp(text, "[::1]:", 6) == 0;
}

bool value_channel_name(struct span name, struct text *why)
{
	if (name.length == 0 || name.length > CHANNEL_NAME_MAX) {
		text_add(why, "is not a channel name, which has 1 to %d bytes", CHANNEL_NAME_MAX);
		return false;
	}
	for (size_t i = 0; i < name.length; i++) {
		char c = (char)name.data[i];

		if (!value_host_character(c) && c != '/' && c != ':') {
			text_add(why,
				 "is not a channel name, which consists of A-Z a-z 0-9 . _ - / :");
			return false;
		}
	}
	return true;
}

/* NULL before value_note_start, and when the system does not tell. */
static char *value_start_directory;

void value_note_start(void)
{
	if (value_start_directory == NULL)
		value_start_directory = realpath(".", NULL);
}

bool value_fits_file(const char *text, struct text *why)
{
	size_t length = strlen(text);
	bool blank = false;

	if (length == 0) {
		text_add(why, "is empty");
		return false;
	}
	if (length > VALUE_MAX) {
		text_add(why, "is longer than %d bytes", VALUE_MAX);
		return false;
	}
	if (text[0] == ';') {
		text_add(why, "begins with \";\", which starts a comment");
		return false;
	}
	if (value_is_blank(text[0]) || value_is_blank(text[length - 1])) {
		text_add(why, "begins or ends with a blank");
		return false;
	}
	for (size_t i = 0; i < length; i++) {
		if (text[i] == '\n') {
			text_add(why, "holds a line break");
			return false;
		}
		if (blank && text[i] == ';') {
			text_add(why, "holds \" ;\", which starts a comment");
			return false;
		}
		blank = value_is_blank(text[i]);
	}
	return true;
}

char *value_absolute(const char *path)
{
	size_t size;
	char *absolute;

	if (path[0] == '/')
		return strdup(path);
	if (value_start_directory == NULL) {
		errno = ENOENT;
		return NULL;
	}
	size = strlen(value_start_directory) + 1 + strlen(path) + 1;
	absolute = malloc(size);
	if (absolute != NULL)
		snprintf(absolute, size, "%s/%s", value_start_directory, path);
	return absolute;
}

char *value_path(const char *text, struct text *why)
{
	char *path = value_absolute(text);

	if (path == NULL && errno == ENOENT)
		text_add(why, "is relative, and the current directory is not known");
	/* It must survive being printed and loaded, too. */
	if (path != NULL && !value_fits_file(path, why)) {
		free(path);
		path = NULL;
	}
	return path;
}

char *value_socket_path(const char *text, struct text *why)
{
	const size_t max = sizeof(((struct sockaddr_un *)0)->sun_path) - 1;
	char *path = value_path(text, why);

	if (path != NULL && strlen(path) > max) {
		text_add(why, "is longer than the %zu bytes that a socket's path may have", max);
		free(path);
		path = NULL;
	}
	return path;
}
