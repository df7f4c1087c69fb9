/* liminal pub: one message, or one for each line of standard input. */
#include "liminal/cli.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define PUB_REFUSALS_SHOWN 10
#define PUB_PROGRESS_NS (NS_PER_S / 10)

struct pub {
	struct liminal *client;
	const char *channel;
	bool json;
	bool each; /* a line of output for each message */
	bool progress;
	int64_t progress_ns; /* when it was shown last */

	uint64_t lines; /* taken from the input */
	uint64_t answered, accepted, delivered, duplicates, refused;
};

static void pub_print(bool json, const struct liminal_receipt *receipt)
{
	if (json)
		cli_json_print(json_pack("{s:I, s:b, s:b}", "id", (json_int_t)receipt->message,
					 "delivered", receipt->delivered, "duplicate",
					 receipt->duplicate));
	else
		printf("id=%" PRIu64 " delivered=%s duplicate=%s\n", receipt->message,
		       receipt->delivered ? "yes" : "no", receipt->duplicate ? "yes" : "no");
}

static int pub_one(const struct cli *cli, struct liminal *client,
		   const struct cli_arguments *arguments)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	const char *payload = arguments->operands[1];
	struct liminal_receipt receipt;
	char *input = NULL;
	size_t length;
	int status = CLI_DONE;

	if (payload == NULL) {
		payload = input = cli_read_input(&length);
		if (payload == NULL)
			return CLI_FAILED;
	} else {
		length = strlen(payload);
	}
	options.key = cli_value(arguments, 'k');
	if (liminal_publish(client, arguments->operands[0], payload, length, &options, &receipt) ==
	    LIMINAL_OK)
		pub_print(cli->json, &receipt);
	else
		status = cli_report();
	free(input);
	return status;
}

/* Called by the library, in the order of the lines. */
static void pub_answered(void *context, int status, const struct liminal_receipt *receipt)
{
	struct pub *pub = context;

	if (status == LIMINAL_OK) {
		pub->answered++;
		pub->accepted++;
		pub->delivered += receipt->delivered;
		pub->duplicates += receipt->duplicate;
		if (pub->each)
			pub_print(pub->json, receipt);
	} else if (status == LIMINAL_REFUSED) {
		pub->answered++;
		if (pub->refused++ < PUB_REFUSALS_SHOWN)
			cli_error("line %" PRIu64 ": %s", pub->answered,
				  liminal_last_error()->text);
	}
}

static void pub_show_progress(struct pub *pub, const char *end)
{
	if (!pub->progress)
		return;
	pub->progress_ns = clock_mono_ns();
	fprintf(stderr, "\r%" PRIu64 " lines, %" PRIu64 " acknowledged%s", pub->lines,
		pub->answered, end);
}

static bool pub_line(struct pub *pub, const char *line, size_t length)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;

	options.published = pub_answered;
	options.context = pub;
	pub->lines++;
	if (liminal_publish_async(pub->client, pub->channel, line, length, &options) != LIMINAL_OK)
		return false;
	if (pub->progress && clock_mono_ns() - pub->progress_ns >= PUB_PROGRESS_NS)
		pub_show_progress(pub, "");
	return true;
}

static bool pub_input_waits(void)
{
	struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};

	return poll(&input, 1, 0) == 1;
}

/* False: the library's last error says why. Refusals are told line by line. */
static bool pub_flush(struct pub *pub)
{
	int status = liminal_flush(pub->client, LIMINAL_FOREVER, NULL);

	return status == LIMINAL_OK || status == LIMINAL_REFUSED;
}

/* What is typed is published at once; what is piped goes in large pieces. */
static bool pub_settle(struct pub *pub)
{
	if (pub_input_waits())
		return true;
	if (!pub_flush(pub))
		return false;
	pub_show_progress(pub, "");
	fflush(stdout);
	return true;
}

/* Publishes the lines in BUFFER, moves the beginning of another one to its start. */
static bool pub_take_lines(struct pub *pub, char *buffer, size_t *length)
{
	char *at = buffer, *end = buffer + *length, *newline;

	while ((newline = memchr(at, '\n', (size_t)(end - at))) != NULL) {
		if (!pub_line(pub, at, (size_t)(newline - at)))
			return false;
		at = newline + 1;
	}
	*length = (size_t)(end - at);
	memmove(buffer, at, *length);
	return true;
}

/* False: the library's last error says why. It stops, too, when nobody can read the answers. */
static bool pub_input(struct pub *pub, int *status)
{
	size_t capacity = 65536, length = 0;
	char *buffer = malloc(capacity), *larger;
	bool going = true;

	while (buffer != NULL && going && !ferror(stdout)) {
		ssize_t got = read(STDIN_FILENO, buffer + length, capacity - length);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0) {
			cli_error("cannot read standard input: %s", strerror(errno));
			*status = CLI_FAILED;
		}
		if (got <= 0) {
			if (length > 0)
				going = pub_line(pub, buffer, length);
			break;
		}
		length += (size_t)got;
		going = pub_take_lines(pub, buffer, &length) && pub_settle(pub);
		if (length < capacity)
			continue;
		larger = capacity > SIZE_MAX / 2 ? NULL : realloc(buffer, capacity * 2);
		if (larger == NULL)
			free(buffer);
		buffer = larger;
		capacity *= 2;
	}
	if (buffer == NULL) {
		cli_error("out of memory for a line");
		*status = CLI_FAILED;
	}
	free(buffer);
	return going;
}

static int pub_lines(const struct cli *cli, struct liminal *client, const char *channel)
{
	struct pub pub = {
		.client = client,
		.channel = channel,
		.json = cli->json,
		.each = cli->json || !isatty(STDOUT_FILENO),
		.progress = isatty(STDERR_FILENO) == 1,
	};
	int status = CLI_DONE;
	bool going;

	going = pub_input(&pub, &status);
	if (!going)
		status = cli_report();
	if (!pub_flush(&pub) && going) {
		status = cli_report();
		going = false;
	}
	pub_show_progress(&pub, "\n");
	if (!going) {
		cli_error("%" PRIu64 " of %" PRIu64 " lines are not acknowledged",
			  pub.lines - pub.answered, pub.lines);
	}
	if (pub.refused > 0) {
		cli_error("%" PRIu64 " of %" PRIu64 " lines were refused", pub.refused, pub.lines);
		status = status == CLI_DONE ? CLI_FAILED : status;
	}
	if (!pub.each)
		printf("accepted=%" PRIu64 " delivered=%" PRIu64 " duplicates=%" PRIu64 "\n",
		       pub.accepted, pub.delivered, pub.duplicates);
	return status;
}

int pub_run(struct cli *cli, const struct cli_arguments *arguments)
{
	bool lines = cli_given(arguments, 'l');
	struct liminal *client;
	int status;

	if (lines && arguments->operand_count > 1)
		return cli_usage(arguments->command, "with -l the payloads are on standard input");
	if (lines && cli_given(arguments, 'k'))
		return cli_usage(arguments->command, "with -l there is no one key: leave out -k");
	client = cli_open(cli, &status);
	if (client == NULL)
		return status;
	status = lines ? pub_lines(cli, client, arguments->operands[0])
		       : pub_one(cli, client, arguments);
	liminal_close(&client);
	return status;
}
