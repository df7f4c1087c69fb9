/*
 * liminal sub: prints the messages of channels. As a consumer it accepts what has been printed, or
 * (--manual) a second thread reads its answers from standard input.
 */
#include "liminal/cli.h"

#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Accepted together, once they are written. */
#define SUB_PRINTED_MAX 256
#define SUB_CONFIRM_MS 30000
/* How soon the end of standard input is noticed. */
#define SUB_LOOK_MS 100
#define SUB_ANSWER_MAX 4096

struct sub_printed {
	struct liminal_subscription *subscription;
	uint64_t sequence;
};

struct sub {
	const struct cli *cli;
	struct liminal *client;
	const char *format; /* NULL: the payload */
	int end;	    /* what stands behind each message */
	uint64_t count;	    /* leave after so many */
	int wait_ms;
	bool reconnect;
	bool durable, consumer;

	struct sub_printed printed[SUB_PRINTED_MAX]; /* and not accepted yet */
	size_t printed_count;

	bool manual;
	pthread_t answers;
	struct liminal_subscription *subscription; /* the one that they are about */
	atomic_bool answers_ended, over;
	atomic_int answers_status;
};

static void sub_print_json(const struct sub *sub, const struct liminal_delivery *delivery)
{
	json_t *object = json_object();

	json_object_set_new(object, "channel", json_string(delivery->channel));
	if (sub->durable) {
		json_object_set_new(object, "sequence",
				    json_integer((json_int_t)delivery->sequence));
		json_object_set_new(object, "redelivered", json_boolean(delivery->redelivered));
	}
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
	case 'r':
		fputs(delivery->redelivered ? "yes" : "no", stdout);
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
		if (*format == '%' &&
		    (format[1] == '\0' || strchr("cpinmlr%", format[1]) == NULL)) {
			cli_usage(arguments->command,
				  "\"-f\": \"%.2s\" is none of %%c %%p %%i %%n %%m %%l %%r %%%%",
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
		sub_print_json(sub, delivery);
		return;
	}
	if (sub->format != NULL)
		sub_print_format(sub->format, delivery);
	else
		fwrite(delivery->payload, 1, delivery->length, stdout);
	putchar(sub->end);
}

/*
 * Accepts what has been printed; never what could not be written. At the END it waits until that is
 * stored, which the last one's confirmation says for all. A connection that is lost is noticed by
 * the next wait.
 */
static int sub_accept(struct sub *sub, bool end)
{
	int status = LIMINAL_OK;

	if (fflush(stdout) != 0 || ferror(stdout))
		return LIMINAL_OK;
	for (size_t i = 0; i < sub->printed_count; i++)
		status = liminal_accept(sub->printed[i].subscription, sub->printed[i].sequence,
					end && i + 1 == sub->printed_count ? SUB_CONFIRM_MS : 0);
	sub->printed_count = 0;
	return status;
}

static void sub_note(struct sub *sub, struct liminal_subscription *subscription, uint64_t sequence)
{
	if (!sub->consumer || sub->manual)
		return;
	sub->printed[sub->printed_count++] = (struct sub_printed){subscription, sequence};
	if (sub->printed_count == SUB_PRINTED_MAX)
		(void)sub_accept(sub, false);
}

/* While answers are read the wait ends with them, too, as LIMINAL_STOPPED. */
static int sub_wait(const struct sub *sub, struct liminal_subscription **subscription,
		    struct liminal_delivery **delivery)
{
	int left_ms = sub->wait_ms, status;

	if (!sub->manual)
		return liminal_next_any(sub->client, sub->wait_ms, subscription, delivery);
	for (;;) {
		int part_ms = left_ms < 0 || left_ms > SUB_LOOK_MS ? SUB_LOOK_MS : left_ms;

		status = liminal_next_any(sub->client, part_ms, subscription, delivery);
		if (status != LIMINAL_TIMEOUT)
			return status;
		if (atomic_load(&sub->answers_ended))
			return LIMINAL_STOPPED;
		left_ms -= left_ms < 0 ? 0 : part_ms;
		if (left_ms == 0)
			return LIMINAL_TIMEOUT;
	}
}

/* The next message; what was printed is flushed before a wait, not after each message. */
static int sub_next(struct sub *sub, struct liminal_subscription **subscription,
		    struct liminal_delivery **delivery)
{
	int status = liminal_next_any(sub->client, 0, subscription, delivery);

	if (status != LIMINAL_TIMEOUT)
		return status;
	(void)sub_accept(sub, false);
	if (ferror(stdout))
		return LIMINAL_STOPPED; /* cli_finish_output says so */
	return sub_wait(sub, subscription, delivery);
}

/* --- answers, line by line ---------------------------------------------------------------------
 */

static bool sub_is(const char *line, const char *verb)
{
	size_t length = strlen(verb);

	return strncmp(line, verb, length) == 0 && line[length] == ' ';
}

/* VERB SEQUENCE [REASON]: LIMINAL_OK, or the error that stands; *KNOWN: whether it is a line. */
static int sub_answer(struct liminal_subscription *subscription, const char *line, bool *known)
{
	const char *number = strchr(line, ' '), *reason;
	unsigned long long sequence;
	char *end;

	*known = number != NULL && number[1] >= '0' && number[1] <= '9';
	if (!*known)
		return LIMINAL_INVALID;
	sequence = strtoull(number, &end, 10);
	reason = *end == ' ' ? end + 1 : NULL;
	if (*end != ' ' && *end != '\0')
		*known = false;
	else if (sub_is(line, "accept"))
		return liminal_accept(subscription, sequence, SUB_CONFIRM_MS);
	else if (sub_is(line, "accept-up-to"))
		return liminal_accept_up_to(subscription, sequence, SUB_CONFIRM_MS);
	else if (sub_is(line, "defer"))
		return liminal_defer(subscription, sequence, reason, SUB_CONFIRM_MS);
	else if (sub_is(line, "working"))
		return liminal_working(subscription, sequence, SUB_CONFIRM_MS);
	else if (sub_is(line, "reject"))
		return liminal_reject(subscription, sequence, reason, SUB_CONFIRM_MS);
	else
		*known = false;
	return LIMINAL_INVALID;
}

static void sub_take_answer(struct sub *sub, char *line)
{
	bool known;

	if (sub_answer(sub->subscription, line, &known) == LIMINAL_OK)
		return;
	if (known)
		cli_error("\"%s\": %s", line, liminal_last_error()->text);
	else
		cli_error("\"%s\" is no answer: accept, accept-up-to, defer, working or reject, "
			  "then a number and perhaps a reason",
			  line);
	atomic_store(&sub->answers_status, CLI_FAILED);
}

/* The whole lines of BUFFER; the beginning of another one is moved to its start. */
static void sub_take_answers(struct sub *sub, char *buffer, size_t *length)
{
	char *at = buffer, *end = buffer + *length, *newline;

	while ((newline = memchr(at, '\n', (size_t)(end - at))) != NULL) {
		*newline = '\0';
		sub_take_answer(sub, at);
		at = newline + 1;
	}
	*length = (size_t)(end - at);
	memmove(buffer, at, *length);
}

/* Looks up now and then, so that it can be joined though nobody writes. */
static void *sub_read_answers(void *argument)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
	struct sub *sub = argument;
	char buffer[SUB_ANSWER_MAX];
	size_t length = 0;
	ssize_t got = 1;

	while (got > 0 && !atomic_load(&sub->over)) {
		if (poll(&input, 1, SUB_LOOK_MS) != 1)
			continue;
		/* An answer that is too long is two, none of which is known. */
		got = read(STDIN_FILENO, buffer + length, sizeof(buffer) - 1 - length);
		length += got > 0 ? (size_t)got : 0;
		if (length > 0 && (got == 0 || length == sizeof(buffer) - 1))
			buffer[length++] = '\n';
		sub_take_answers(sub, buffer, &length);
	}
	atomic_store(&sub->answers_ended, true);
	return NULL;
}

/* --- the loop ----------------------------------------------------------------------------------
 */

static int sub_reconnect(struct sub *sub)
{
	fflush(stdout);
	sub->printed_count = 0; /* they come again */
	cli_error("%s; connecting again", liminal_last_error()->text);
	if (liminal_reconnect(sub->client, LIMINAL_FOREVER) != LIMINAL_OK)
		return cli_report();
	cli_error("connected again to %s", sub->cli->server);
	return CLI_DONE;
}

static int sub_loop(struct sub *sub)
{
	struct liminal_subscription *subscription;
	struct liminal_delivery *delivery;
	uint64_t printed = 0;
	int status;

	while (printed < sub->count) {
		status = sub_next(sub, &subscription, &delivery);
		if (status == LIMINAL_OK) {
			sub_print(sub, delivery);
			sub_note(sub, subscription, delivery->sequence);
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
		} else if (status == LIMINAL_STOPPED) {
			return CLI_DONE;
		} else {
			return cli_report();
		}
	}
	return sub_accept(sub, true) == LIMINAL_OK ? CLI_DONE : cli_report();
}

/* What the options for durable channels say. */
static bool sub_durable(struct sub *sub, const struct cli_arguments *arguments,
			struct liminal_subscribe_options *options)
{
	options->consumer = cli_value(arguments, 'C');
	if (options->consumer != NULL)
		options->start = LIMINAL_START_NEW;
	if (!cli_value_start(arguments, options))
		return false;
	sub->durable = options->start != LIMINAL_START_LIVE;
	sub->consumer = options->consumer != NULL;
	sub->manual = cli_given(arguments, 'm');
	/* Others may be waiting for what is not going to be printed here. */
	options->max_in_flight =
		sub->consumer && sub->count < SUB_PRINTED_MAX ? (uint32_t)sub->count : 0;
	if (sub->manual && (!sub->consumer || arguments->operand_count != 1)) {
		cli_usage(arguments->command, "--manual needs --consumer and one channel");
		return false;
	}
	if (sub->manual && sub->format == NULL)
		sub->format = "%n %p";
	return true;
}

/* Prints until there is enough; the exit status. */
static int sub_print_all(struct sub *sub)
{
	int status;

	if (sub->manual && pthread_create(&sub->answers, NULL, sub_read_answers, sub) != 0) {
		cli_error("cannot start a thread");
		return CLI_FAILED;
	}
	status = sub_loop(sub);
	fflush(stdout);
	if (!sub->manual)
		return status;
	/* Answers to what has been printed may still come, up to the end of the input. */
	if (status != CLI_DONE)
		atomic_store(&sub->over, true);
	pthread_join(sub->answers, NULL);
	return status != CLI_DONE ? status : atomic_load(&sub->answers_status);
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
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	int status;

	atomic_init(&sub.answers_ended, false);
	atomic_init(&sub.over, false);
	atomic_init(&sub.answers_status, CLI_DONE);
	if (!cli_value_count(arguments, 'c', UINT64_MAX - 1, &sub.count) ||
	    !cli_value_seconds(arguments, 'w', &sub.wait_ms) ||
	    (sub.format != NULL && !sub_format_valid(arguments, sub.format)))
		return CLI_USAGE;
	if (!sub_durable(&sub, arguments, &options))
		return CLI_USAGE;
	if (cli->json && (cli_given(arguments, 'f') || sub.end == '\0'))
		return cli_usage(arguments->command, "--json goes with neither -f nor -0");
	sub.client = cli_open(cli, &status);
	if (sub.client == NULL)
		return status;
	for (size_t i = 0; i < arguments->operand_count && status == CLI_DONE; i++)
		if (liminal_subscribe(sub.client, arguments->operands[i], &options,
				      &sub.subscription) != LIMINAL_OK)
			status = cli_report();
	if (status == CLI_DONE && isatty(STDERR_FILENO))
		cli_error("subscribed; interrupt to leave");
	if (status == CLI_DONE)
		status = sub_print_all(&sub);
	status = cli_finish_output(status);
	liminal_close(&sub.client);
	return status;
}
