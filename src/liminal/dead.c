/*
 * liminal dead: the messages that consumers have given up, from the control socket, and how they
 * are put back. That is a publish to the channel that a message came from, under a key of its own:
 * as long as that channel remembers the key, the same one is not put back twice.
 */
#include "liminal/control.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define DEAD_PAGE 100
#define DEAD_WAIT_MS 10000

struct dead {
	const struct cli *cli;
	struct liminal *client;
	const char *channel;
	uint64_t from, count;
	int wait_ms;
};

static uint64_t dead_sequence(const json_t *row)
{
	return (uint64_t)json_integer_value(json_object_get(row, "sequence"));
}

/* All that are asked for; NULL: reported. */
static json_t *dead_list(const struct dead *dead, int *status)
{
	json_t *all = json_array(), *reply, *rows;
	uint64_t from = dead->from;
	size_t size;

	do {
		uint64_t left = dead->count - json_array_size(all);

		reply = control_ask(dead->client, "dead",
				    json_pack("{s:s, s:I, s:I}", "channel", dead->channel, "from",
					      (json_int_t)from, "count",
					      (json_int_t)(left < DEAD_PAGE ? left : DEAD_PAGE)),
				    dead->wait_ms, false, status);
		if (reply == NULL) {
			json_decref(all);
			return NULL;
		}
		rows = json_object_get(reply, "dead");
		size = json_array_size(rows);
		if (size > 0)
			from = dead_sequence(json_array_get(rows, size - 1)) + 1;
		json_array_extend(all, rows);
		json_decref(reply);
	} while (size > 0 && json_array_size(all) < dead->count);
	return all;
}

static int dead_print(const struct dead *dead)
{
	int status;
	json_t *all = dead_list(dead, &status);

	if (all == NULL)
		return status;
	if (dead->cli->json)
		cli_json_print(json_pack("{s:O}", "dead", all));
	else
		control_print_list(control_list_find("dead"), all);
	json_decref(all);
	return CLI_DONE;
}

/* The origin is CHANNEL/SEQUENCE, and a channel's name may have a slash. */
static int dead_put_back_one(const struct dead *dead, const struct liminal_delivery *delivery)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	char channel[512], key[600], *slash;
	struct liminal_receipt receipt;

	if (delivery->parent == NULL || delivery->parent_length >= sizeof(channel)) {
		cli_error("message %" PRIu64 " does not say where it came from",
			  delivery->sequence);
		return CLI_FAILED;
	}
	memcpy(channel, delivery->parent, delivery->parent_length + 1);
	slash = strrchr(channel, '/');
	if (slash == NULL) {
		cli_error("message %" PRIu64 " comes from \"%s\", which is no message of a channel",
			  delivery->sequence, channel);
		return CLI_FAILED;
	}
	*slash = '\0';
	snprintf(key, sizeof(key), "dead:%s/%" PRIu64, dead->channel, delivery->sequence);
	options.key = key;
	if (liminal_publish(dead->client, channel, delivery->payload, delivery->length, &options,
			    &receipt) != LIMINAL_OK)
		return cli_report();
	*slash = '/';
	if (dead->cli->json)
		cli_json_print(json_pack("{s:I, s:s, s:I, s:b}", "sequence",
					 (json_int_t)delivery->sequence, "origin", channel, "id",
					 (json_int_t)receipt.message, "duplicate",
					 receipt.duplicate));
	else
		printf("sequence=%" PRIu64 " origin=%s id=%" PRIu64 " duplicate=%s\n",
		       delivery->sequence, channel, receipt.message,
		       receipt.duplicate ? "yes" : "no");
	return CLI_DONE;
}

/* Reads the channel, and puts back what is listed. */
static int dead_put_back(const struct dead *dead, json_t *all)
{
	struct liminal_subscribe_options options = LIMINAL_SUBSCRIBE_OPTIONS_INIT;
	struct liminal_subscription *subscription;
	struct liminal_delivery *delivery;
	size_t count = json_array_size(all), done = 0;
	int status = CLI_DONE;

	if (count == 0)
		return CLI_DONE;
	options.start = LIMINAL_START_SEQUENCE;
	options.value = dead_sequence(json_array_get(all, 0));
	if (liminal_subscribe(dead->client, dead->channel, &options, &subscription) != LIMINAL_OK)
		return cli_report();
	while (done < count && status == CLI_DONE) {
		if (liminal_next(subscription, DEAD_WAIT_MS, &delivery) != LIMINAL_OK) {
			status = cli_report();
			break;
		}
		/* Retention may have removed some that were listed. */
		while (done < count &&
		       dead_sequence(json_array_get(all, done)) < delivery->sequence)
			done++;
		if (done < count &&
		    dead_sequence(json_array_get(all, done)) == delivery->sequence) {
			status = dead_put_back_one(dead, delivery);
			done++;
		}
		liminal_delivery_free(&delivery);
	}
	liminal_unsubscribe(&subscription);
	return status;
}

static int dead_run_with(struct dead *dead, const char *put_back)
{
	int status;
	json_t *all;

	if (put_back == NULL)
		return dead_print(dead);
	all = dead_list(dead, &status);
	if (all == NULL)
		return status;
	if (strcmp(put_back, "all") != 0 &&
	    (json_array_size(all) != 1 || dead_sequence(json_array_get(all, 0)) != dead->from)) {
		cli_error("there is no message %" PRIu64 " in \"%s\"", dead->from, dead->channel);
		status = CLI_FAILED;
	} else {
		status = dead_put_back(dead, all);
	}
	json_decref(all);
	return status;
}

int dead_run(struct cli *cli, const struct cli_arguments *arguments)
{
	const char *put_back = cli_value(arguments, 'p');
	struct dead dead = {.cli = cli,
			    .channel = arguments->operands[0],
			    .from = 1,
			    .count = INT64_MAX,
			    .wait_ms = LIMINAL_FOREVER};
	int status;

	if (!cli_value_count(arguments, 'c', INT64_MAX, &dead.count) ||
	    !cli_value_count(arguments, 'F', INT64_MAX, &dead.from) ||
	    !cli_value_seconds(arguments, 'w', &dead.wait_ms))
		return CLI_USAGE;
	if (put_back != NULL && strcmp(put_back, "all") != 0) {
		if (!cli_value_count(arguments, 'p', INT64_MAX, &dead.from))
			return CLI_USAGE;
		dead.count = 1;
	}
	dead.client = cli_open(cli, &status);
	if (dead.client != NULL)
		status = dead_run_with(&dead, put_back);
	liminal_close(&dead.client);
	return status;
}
