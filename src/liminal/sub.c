/* liminal sub: prints the messages of channels. */
#include "liminal/cli.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct sub {
	const struct cli *cli;
	struct liminal *client;
	const char *format; /* NULL: the payload */
	int end;	    /* what stands behind each message */
	uint64_t count;	    /* leave after so many */
	int wait_ms;
	bool reconnect;
};

static void sub_print_json(const struct liminal_delivery *delivery)
{
	json_t *object = json_object();

	json_object_set_new(object, "channel", json_string(delivery->channel));
	cli_json_bytes(object, "payload", delivery->payload, delivery->length);
	cli_json_print(object);
}

/* One letter behind a % or a backslash; false: there is no such thing. */
static bool sub_print_field(char letter, const struct liminal_delivery *delivery)
{
	switch (letter) {
	case 'c':
		fputs(delivery->channel, stdout);
		return true;
	case 'p':
		fwrite(delivery->payload, 1, delivery->length, stdout);
		return true;
	case 'i':
		printf("%" PRIu64, delivery->message);
		return true;
	case 'n':
		printf("%" PRIu64, delivery->sequence);
		return true;
	case 'm':
		printf("%" PRIu64, delivery->missed);
		return true;
	case 'l':
		printf("%zu", delivery->length);
		return true;
	case '%':
		putchar('%');
		return true;
	default:
		return false;
	}
}

static const char *sub_escape(char letter)
{
	switch (letter) {
	case 'n':
		return "\n";
	case 't':
		return "\t";
	case '\\':
		return "\\";
	default:
		return NULL;
	}
}

static void sub_print_format(const char *format, const struct liminal_delivery *delivery)
{
	for (; *format != '\0'; format++)
		if (*format == '%')
			sub_print_field(*++format, delivery);
		else if (*format == '\\')
			fputs(sub_escape(*++format), stdout);
		else
			putchar(*format);
}

static bool sub_format_valid(const struct cli_arguments *arguments, const char *format)
{
	for (; *format != '\0'; format++) {
		if (*format == '%' && (format[1] == '\0' || strchr("cpinml%", format[1]) == NULL)) {
			cli_usage(arguments->command,
				  "\"-f\": \"%.2s\" is none of %%c %%p %%i %%n %%m %%l %%%%",
				  format);
			return false;
		}
		if (*format == '\\' && sub_escape(format[1]) == NULL) {
			cli_usage(arguments->command, "\"-f\": \"%.2s\" is none of \\n \\t \\\\",
				  format);
			return false;
		}
		if (*format == '%' || *format == '\\')
			format++;
	}
	return true;
}

static void sub_print(const struct sub *sub, const struct liminal_delivery *delivery)
{
	if (sub->cli->json) {
		sub_print_json(delivery);
		return;
	}
	if (sub->format != NULL)
		sub_print_format(sub->format, delivery);
	else
		fwrite(delivery->payload, 1, delivery->length, stdout);
	putchar(sub->end);
}

/* The next message; what was printed is flushed before a wait, not after each message. */
static int sub_next(const struct sub *sub, struct liminal_delivery **delivery)
{
	int status = liminal_next_any(sub->client, 0, NULL, delivery);

	if (status != LIMINAL_TIMEOUT)
		return status;
	fflush(stdout);
	return liminal_next_any(sub->client, sub->wait_ms, NULL, delivery);
}

static int sub_reconnect(const struct sub *sub)
{
	fflush(stdout);
	cli_error("%s; connecting again", liminal_last_error()->text);
	if (liminal_reconnect(sub->client, LIMINAL_FOREVER) != LIMINAL_OK)
		return cli_report();
	cli_error("connected again to %s", sub->cli->server);
	return CLI_DONE;
}

static int sub_loop(const struct sub *sub)
{
	struct liminal_delivery *delivery;
	uint64_t printed = 0;
	int status;

	while (printed < sub->count) {
		status = sub_next(sub, &delivery);
		if (status == LIMINAL_OK) {
			sub_print(sub, delivery);
			liminal_delivery_free(&delivery);
			printed++;
			if (ferror(stdout))
				return CLI_DONE; /* cli_finish_output says so */
		} else if (status == LIMINAL_LOST && sub->reconnect) {
			status = sub_reconnect(sub);
			if (status != CLI_DONE)
				return status;
		} else if (status == LIMINAL_TIMEOUT) {
			cli_error("no message within the time given with -w");
			return CLI_WAITED;
		} else {
			return cli_report();
		}
	}
	return CLI_DONE;
}

int sub_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct sub sub = {
		.cli = cli,
		.format = cli_value(arguments, 'f'),
		.end = cli_given(arguments, '0') ? '\0' : '\n',
		.count = UINT64_MAX,
		.wait_ms = LIMINAL_FOREVER,
		.reconnect = cli_given(arguments, 'r'),
	};
	struct liminal_subscription *subscription;
	int status;

	if (!cli_value_count(arguments, 'c', UINT64_MAX - 1, &sub.count) ||
	    !cli_value_seconds(arguments, 'w', &sub.wait_ms) ||
	    (sub.format != NULL && !sub_format_valid(arguments, sub.format)))
		return CLI_USAGE;
	if (cli->json && (sub.format != NULL || sub.end == '\0'))
		return cli_usage(arguments->command, "--json goes with neither -f nor -0");
	sub.client = cli_open(cli, &status);
	if (sub.client == NULL)
		return status;
	for (size_t i = 0; i < arguments->operand_count && status == CLI_DONE; i++)
		if (liminal_subscribe(sub.client, arguments->operands[i], NULL, &subscription) !=
		    LIMINAL_OK)
			status = cli_report();
	if (status == CLI_DONE && isatty(STDERR_FILENO))
		cli_error("subscribed; interrupt to leave");
	if (status == CLI_DONE)
		status = sub_loop(&sub);
	status = cli_finish_output(status);
	liminal_close(&sub.client);
	return status;
}
