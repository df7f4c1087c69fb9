/*
 * The server's own responder, $control/NAME: JSON in, JSON out. It runs in the session thread of
 * the client that asks, without locks. Requests come over the control socket, so from somebody who
 * may stop the server anyway; they are bounded all the same, because the parser recurses on a small
 * stack. Fields that a request has too much are ignored: a newer client may send them.
 *
 * A responder gives a new reference to its reply; NULL is out of memory everywhere here, since
 * every text that goes in is UTF-8 by then.
 */
#include "admin/admin.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include <jansson.h>

#include "admin/admin_priv.h"
#include "base/json_guard.h"
#include "base/metrics.h"

#define CONTROL_REQUEST_MAX (64 * 1024)
#define CONTROL_DEPTH_MAX 8

static json_t *control_error(const char *token, const char *text)
{
	return json_pack("{s:o}", "error", json_sprintf("%s: %s", token, text));
}

static json_t *control_ok(void)
{
	return json_pack("{s:b}", "ok", 1);
}

/* U+0000 may stand in it. */
static json_t *control_string(struct span text)
{
	return json_stringn((const char *)text.data, text.length);
}

/* JSON numbers are signed here; no counter of ours comes near the end. */
static json_int_t control_number(uint64_t number)
{
	return number > INT64_MAX ? INT64_MAX : (json_int_t)number;
}

static json_t *control_ping(struct admin *admin, const json_t *request)
{
	(void)admin;
	(void)request;
	return control_ok();
}

static json_t *control_stats(struct admin *admin, const json_t *request)
{
	struct broker_channel_state *channels = NULL;
	struct broker_totals broker;
	struct net_totals net;
	size_t count = 0;
	uint64_t sheds = 0, drops = 0;

	(void)request;
	if (!broker_channel_states(admin->broker, &channels, &count))
		return NULL;
	for (size_t i = 0; i < count; i++) {
		sheds += channels[i].sheds;
		drops += channels[i].drops;
	}
	free(channels);
	broker_totals(admin->broker, &broker);
	net_totals(admin->net, &net);
	return json_pack("{s:s, s:I, s:{s:I, s:I, s:I}, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			 "version", PACKAGE_VERSION, "started_ms", (json_int_t)admin->started_ms,
			 "connections", "current", control_number(net.current), "total",
			 control_number(net.accepted), "max", control_number(net.max), "publishes",
			 control_number(metric_read(METRIC_PUBLISHES)), "deliveries",
			 control_number(metric_read(METRIC_DELIVERIES)), "sheds",
			 control_number(sheds), "drops", control_number(drops), "pending_replies",
			 control_number(broker.pending_replies), "bytes_in",
			 control_number(metric_read(METRIC_BYTES_IN)), "bytes_out",
			 control_number(metric_read(METRIC_BYTES_OUT)));
}

static json_t *control_connection(const struct net_connection_state *state)
{
	const struct broker_client_state *client = &state->client;
	json_t *version = json_sprintf("%u.%u", state->version_major, state->version_minor);
	json_t *worker =
		client->worker ? json_stringn(client->queue, client->queue_length) : json_null();

	return json_pack("{s:I, s:s, s:o, s:I, s:I, s:I, s:o, s:I, s:I, s:I, s:I}", "id",
			 control_number(state->id), "peer", state->peer, "version", version,
			 "since_ms", (json_int_t)state->since_ms, "subscriptions",
			 control_number(client->subscriptions), "conversations",
			 control_number(client->conversations), "worker", worker, "outbox_bytes",
			 control_number(state->outbox_bytes), "outbox_frames",
			 control_number(state->outbox_frames), "pending_replies",
			 control_number(client->pending_replies), "pending_pushes",
			 control_number(client->pending_pushes));
}

/* Adds ITEM, which may be NULL, to LIST, which may be NULL; on failure *LIST becomes NULL. */
static void control_add(json_t **list, json_t *item)
{
	if (json_array_append_new(*list, item) != 0) {
		json_decref(*list);
		*list = NULL;
	}
}

static json_t *control_connections(struct admin *admin, const json_t *request)
{
	struct net_connection_state *states = NULL;
	size_t count = 0;

	(void)request;
	if (!net_connection_states(admin->net, &states, &count))
		return NULL;
	json_t *list = json_array();
	for (size_t i = 0; i < count && list != NULL; i++)
		control_add(&list, control_connection(&states[i]));
	free(states);
	return json_pack("{s:o}", "connections", list);
}

static json_t *control_channel(const struct broker_channel_state *state)
{
	return json_pack("{s:o, s:b, s:I, s:I, s:I, s:I, s:I, s:I}", "name",
			 control_string(state->name), "durable", (int)state->durable,
			 "subscriptions", control_number(state->subscriptions), "publishes",
			 control_number(state->publishes), "deliveries",
			 control_number(state->deliveries), "sheds", control_number(state->sheds),
			 "drops", control_number(state->drops), "dedup_keys",
			 control_number(state->dedup_keys));
}

static json_t *control_channels(struct admin *admin, const json_t *request)
{
	struct broker_channel_state *states = NULL;
	size_t count = 0;

	(void)request;
	if (!broker_channel_states(admin->broker, &states, &count))
		return NULL;
	json_t *list = json_array();
	for (size_t i = 0; i < count && list != NULL; i++)
		control_add(&list, control_channel(&states[i]));
	free(states);
	return json_pack("{s:o}", "channels", list);
}

/* The names as they stand on the wire, whose lengths were checked when they arrived. */
static json_t *control_names(const struct broker_names *names)
{
	const uint8_t *at = names->bytes.data;
	json_t *list = json_array();

	for (uint32_t i = 0; i < names->count && list != NULL; i++) {
		size_t length = (size_t)at[0] << 24 | (size_t)at[1] << 16 | (size_t)at[2] << 8 |
				(size_t)at[3];

		control_add(&list, control_string((struct span){at + 4, length}));
		at += 4 + length;
	}
	return list;
}

static json_t *control_worker(const struct broker_worker_state *state)
{
	json_t *node = state->node.data == NULL ? json_null() : control_string(state->node);

	return json_pack("{s:I, s:o, s:o, s:o, s:o, s:o, s:I, s:I, s:b, s:I, s:I}", "connection",
			 control_number(state->connection), "queue", control_string(state->queue),
			 "namespaces", control_names(&state->namespaces), "activities",
			 control_names(&state->activities), "node", node, "identity",
			 control_string(state->identity), "outstanding",
			 control_number(state->outstanding), "unanswered",
			 control_number(state->unanswered), "leaving", (int)state->leaving,
			 "namespaces_left_out", control_number(state->namespaces_left_out),
			 "activities_left_out", control_number(state->activities_left_out));
}

static json_t *control_workers(struct admin *admin, const json_t *request)
{
	struct broker_worker_state *states = NULL;
	size_t count = 0;

	(void)request;
	if (!broker_worker_states(admin->broker, &states, &count))
		return NULL;
	json_t *list = json_array();
	for (size_t i = 0; i < count && list != NULL; i++)
		control_add(&list, control_worker(&states[i]));
	broker_worker_states_free(&states, count);
	return json_pack("{s:o}", "workers", list);
}

/* --- durable channels ----------------------------------------------------------------------- */

/* A refusal whose text names something: BEFORE 'NAME' AFTER. */
static json_t *control_error_about(const char *token, const char *before, struct span name,
				   const char *after)
{
	char text[TEXT_NAME_MAX * 4 + 128];
	struct text words = TEXT_INIT(text);

	text_add(&words, "%s '", before);
	text_add_name(&words, name);
	text_add(&words, "'%s", after);
	return control_error(token, text);
}

static struct span control_span(const json_t *string)
{
	return (struct span){(const uint8_t *)json_string_value(string),
			     json_string_length(string)};
}

/*
 * The durable channel that the request names in *CHANNEL, or NULL with the refusal in *REFUSED,
 * which is NULL when memory is missing.
 */
static struct channel *control_durable_channel(struct admin *admin, const json_t *request,
					       json_t **refused)
{
	const json_t *value = json_object_get(request, "channel");
	struct channel *channel;

	*refused = NULL;
	if (!json_is_string(value)) {
		*refused = control_error("invalid", "'channel' must be the name of a channel");
		return NULL;
	}
	channel = broker_channel(admin->broker, control_span(value));
	if (channel != NULL && broker_channel_is_durable(channel))
		return channel;
	*refused = channel == NULL ? control_error_about("not-found", "channel",
							 control_span(value), " is not configured")
				   : control_error_about("invalid", "channel", control_span(value),
							 " is not durable");
	return NULL;
}

static json_t *control_store_error(struct admin *admin)
{
	if (!broker_store_is_up(admin->broker))
		return control_error("store-down",
				     "writing to state_dir has failed; restart the server");
	return control_error("store-full", "there is no room in state_dir");
}

static json_t *control_consumer(const struct broker_consumer_state *state)
{
	return json_pack(
		"{s:o, s:s, s:I, s:I, s:I, s:I, s:o}", "channel",
		json_stringn((const char *)state->channel.data, state->channel.length), "consumer",
		state->name, "subscriptions", control_number(state->subscriptions), "lag",
		control_number(state->lag), "outstanding", control_number(state->outstanding),
		"deferred", control_number(state->deferred), "idle_since_ms",
		state->idle_since_ms == 0 ? json_null()
					  : json_integer((json_int_t)state->idle_since_ms));
}

static json_t *control_consumers(struct admin *admin, const json_t *request)
{
	struct broker_consumer_state *states = NULL;
	struct channel *channel = NULL;
	json_t *refused;
	size_t count = 0;

	if (json_object_get(request, "channel") != NULL) {
		channel = control_durable_channel(admin, request, &refused);
		if (channel == NULL)
			return refused;
	}
	if (!broker_consumer_states(admin->broker, channel, &states, &count))
		return NULL;
	json_t *list = json_array();
	for (size_t i = 0; i < count && list != NULL; i++)
		control_add(&list, control_consumer(&states[i]));
	free(states);
	return json_pack("{s:o}", "consumers", list);
}

static json_t *control_consumer_rm(struct admin *admin, const json_t *request)
{
	const json_t *value = json_object_get(request, "consumer");
	struct channel *channel;
	json_t *refused;

	channel = control_durable_channel(admin, request, &refused);
	if (channel == NULL)
		return refused;
	if (!json_is_string(value))
		return control_error("invalid", "'consumer' must be the name of a consumer");
	switch (broker_consumer_remove(admin->broker, channel, control_span(value))) {
	case BROKER_REMOVED:
		return control_ok();
	case BROKER_REMOVE_NONE:
		return control_error_about("not-found", "the channel has no consumer",
					   control_span(value), "");
	default:
		return control_store_error(admin);
	}
}

static json_t *control_dead_letter(const struct broker_dead *dead)
{
	return json_pack("{s:I, s:s, s:s, s:s, s:I, s:s%}", "sequence",
			 control_number(dead->sequence), "origin", dead->origin, "consumer",
			 dead->consumer, "reason", dead->rejected ? "rejected" : "attempts",
			 "attempts", control_number(dead->attempts), "text",
			 dead->text == NULL ? "" : dead->text, dead->text_length);
}

/* A member of the request that is a number from MIN on, or is not there and DEFAULT then. */
static bool control_get_number(const json_t *request, const char *name, uint64_t min,
			       uint64_t default_number, uint64_t *number)
{
	const json_t *value = json_object_get(request, name);

	*number = default_number;
	if (value == NULL)
		return true;
	if (!json_is_integer(value) || json_integer_value(value) < 0)
		return false;
	*number = (uint64_t)json_integer_value(value);
	return *number >= min;
}

static json_t *control_dead(struct admin *admin, const json_t *request)
{
	struct broker_dead *dead = NULL;
	uint64_t from, count;
	struct channel *channel;
	json_t *refused, *list;
	size_t found = 0;

	channel = control_durable_channel(admin, request, &refused);
	if (channel == NULL)
		return refused;
	if (!control_get_number(request, "from", 0, 1, &from))
		return control_error("invalid", "'from' must be the sequence of a message");
	if (!control_get_number(request, "count", 1, 100, &count))
		return control_error("invalid", "'count' must be a number from 1 on");
	if (!broker_dead_read(admin->broker, channel, from, count, &dead, &found))
		return broker_store_is_up(admin->broker) ? NULL : control_store_error(admin);
	list = json_array();
	for (size_t i = 0; i < found && list != NULL; i++)
		control_add(&list, control_dead_letter(&dead[i]));
	broker_dead_free(&dead, found);
	return json_pack("{s:o}", "dead", list);
}

/* --- orders --------------------------------------------------------------------------------- */

static json_t *control_close(struct admin *admin, const json_t *request)
{
	const json_t *id = json_object_get(request, "connection");
	char text[64];

	if (!json_is_integer(id) || json_integer_value(id) < 0)
		return control_error("invalid", "'connection' must be the id of a connection");
	if (net_close_connection(admin->net, (uint64_t)json_integer_value(id)))
		return control_ok();
	snprintf(text, sizeof(text), "no connection has the id %" JSON_INTEGER_FORMAT,
		 json_integer_value(id));
	return control_error("not-found", text);
}

/* The reply leaves all the same: to drain ends no connection that has something to come. */
static json_t *control_drain(struct admin *admin, const json_t *request)
{
	(void)admin;
	(void)request;
	kill(getpid(), SIGTERM);
	return control_ok();
}

static const struct control_command {
	const char *name;
	json_t *(*answer)(struct admin *admin, const json_t *request);
} control_commands[] = {
	{"ping", control_ping},
	{"stats", control_stats},
	{"connections", control_connections},
	{"channels", control_channels},
	{"workers", control_workers},
	{"close", control_close},
	{"drain", control_drain},
	{"consumers", control_consumers},
	{"consumer-rm", control_consumer_rm},
	{"dead", control_dead},
};

static const struct control_command *control_find(struct span name)
{
	for (size_t i = 0; i < ARRAY_LENGTH(control_commands); i++) {
		if (span_equal(name, span_of(control_commands[i].name)))
			return &control_commands[i];
	}
	return NULL;
}

bool control_known(struct span name)
{
	return control_find(name) != NULL;
}

/* The request as an object; NULL when it is none, with a text in ERROR, which stays empty when
 * memory is missing. */
static json_t *control_parse(struct span request, struct text *error)
{
	json_error_t failure;
	json_t *object;

	if (request.length == 0)
		request = SPAN_LITERAL("{}");
	if (request.length > CONTROL_REQUEST_MAX) {
		text_add(error, "the request has more than %d bytes", CONTROL_REQUEST_MAX);
		return NULL;
	}
	if (!json_depth_ok(request, CONTROL_DEPTH_MAX)) {
		text_add(error, "the request is nested deeper than %d", CONTROL_DEPTH_MAX);
		return NULL;
	}
	if (!json_read(request, JSON_REJECT_DUPLICATES, &object, &failure))
		return NULL;
	if (object == NULL)
		text_add(error, "the request is not JSON: %s", failure.text);
	else if (!json_is_object(object))
		text_add(error, "the request is not a JSON object");
	else
		return object;
	json_decref(object);
	return NULL;
}

/* JSON in a buffer, taking the reference; NULL: no memory. */
static struct buf *control_dump(json_t *reply)
{
	size_t size = json_dumpb(reply, NULL, 0, JSON_COMPACT);
	struct buf *buf = size == 0 ? NULL : buf_new(size);

	if (buf != NULL && json_dumpb(reply, (char *)buf->data, size, JSON_COMPACT) != size)
		buf_unref(&buf);
	json_decref(reply);
	return buf;
}

struct buf *control_answer(void *context, struct span name, struct span request)
{
	struct admin *admin = context;
	const struct control_command *command = control_find(name);
	char text[256];
	struct text error = TEXT_INIT(text);
	json_t *reply;

	ASSERT_MAGIC(admin, ADMIN_MAGIC);
	ASSERT(command != NULL);
	json_t *object = control_parse(request, &error);
	if (object == NULL) {
		reply = text[0] == '\0' ? NULL : control_error("invalid", text);
	} else {
		reply = command->answer(admin, object);
		json_decref(object);
	}
	return control_dump(reply);
}
