/* Messages, exit statuses, JSON, and standard input and output. */
#include "liminal/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/text.h"

void cli_error(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "liminal: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "\n");
}

int cli_usage(const struct cli_command *command, const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "liminal: ");
	if (command != NULL)
		fprintf(stderr, "%s: ", command->name);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fprintf(stderr, "; try \"liminal %s%s--help\"\n", command != NULL ? command->name : "",
		command != NULL ? " " : "");
	return CLI_USAGE;
}

int cli_report(void)
{
	const struct liminal_error *error = liminal_last_error();

	cli_error("%s", error->text);
	switch (error->status) {
	case LIMINAL_UNREACHABLE:
	case LIMINAL_LOST:
	case LIMINAL_PROTOCOL:
		return CLI_CONNECTION;
	case LIMINAL_INVALID:
		return CLI_USAGE;
	default:
		return CLI_FAILED;
	}
}

struct liminal *cli_open(const struct cli *cli, int *status)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;
	struct liminal *client;

	options.server = cli->server;
	options.token = cli->token;
	options.token_length = cli->token_length;
	*status = CLI_DONE;
	if (liminal_open(&options, &client) != LIMINAL_OK)
		*status = cli_report();
	return client;
}

char *cli_read_input(size_t *length)
{
	size_t capacity = 65536;
	char *bytes = malloc(capacity), *larger;

	*length = 0;
	while (bytes != NULL) {
		ssize_t got = read(STDIN_FILENO, bytes + *length, capacity - *length - 1);

		if (got == 0) {
			bytes[*length] = '\0';
			return bytes;
		}
		if (got < 0 && errno != EINTR) {
			cli_error("cannot read standard input: %s", strerror(errno));
			free(bytes);
			return NULL;
		}
		*length += got > 0 ? (size_t)got : 0;
		if (capacity - *length > 1)
			continue;
		larger = capacity > SIZE_MAX / 2 ? NULL : realloc(bytes, capacity * 2);
		if (larger == NULL)
			free(bytes);
		bytes = larger;
		capacity *= 2;
	}
	cli_error("out of memory for standard input");
	return NULL;
}

static json_t *cli_json_base64(const uint8_t *bytes, size_t length)
{
	static const char digits[] =
		"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	char *text = malloc(length / 3 * 4 + 5), *at = text;
	json_t *string;

	if (text == NULL)
		return NULL;
	for (size_t i = 0; i < length; i += 3) {
		size_t left = length - i;
		uint32_t group = (uint32_t)bytes[i] << 16 |
				 (left > 1 ? (uint32_t)bytes[i + 1] << 8 : 0) |
				 (left > 2 ? bytes[i + 2] : 0);

		*at++ = digits[group >> 18];
		*at++ = digits[group >> 12 & 63];
		*at++ = left > 1 ? digits[group >> 6 & 63] : '=';
		*at++ = left > 2 ? digits[group & 63] : '=';
	}
	string = json_stringn_nocheck(text, (size_t)(at - text));
	free(text);
	return string;
}

void cli_json_bytes(json_t *object, const char *name, const void *bytes, size_t length)
{
	char name_base64[64];

	if (utf8_valid(bytes, length)) {
		json_object_set_new(object, name, json_stringn_nocheck(bytes, length));
		return;
	}
	snprintf(name_base64, sizeof(name_base64), "%s_base64", name);
	json_object_set_new(object, name_base64, cli_json_base64(bytes, length));
}

static int cli_json_write(const char *bytes, size_t length, void *context)
{
	(void)context;
	return fwrite(bytes, 1, length, stdout) == length ? 0 : -1;
}

void cli_json_print(json_t *object)
{
	/* Not all digits of a double: 0.1 is to be read as that. */
	json_dump_callback(object, cli_json_write, NULL, JSON_COMPACT | JSON_REAL_PRECISION(15));
	putchar('\n');
	json_decref(object);
}

int cli_finish_output(int status)
{
	if (fflush(stdout) == 0 && !ferror(stdout))
		return status;
	cli_error("cannot write to standard output: %s", strerror(errno));
	return status == CLI_DONE ? CLI_FAILED : status;
}
