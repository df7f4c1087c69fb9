#include "fake_broker.h"

#include <inttypes.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/log.h"

#define BOOT_MS 1234

struct channel {
	const char *name;
	bool durable, quiet;
};

static struct channel channels[] = {
	{"plain", false, false}, {"durable", true, false}, {"quiet", true, true}};
static const uint8_t schema[WIRE_SCHEMA_SIZE];

/* What waits for the committer. */
struct item {
	struct item *next;
	struct client *client;
	struct sink_place *place; /* NULL: a confirmation */
	bool subscribe;
	uint32_t stream;
	struct message run[16];
	size_t count;
	struct confirmation confirmation;
	char id[32];
};

struct client {
	struct sink *sink;
	size_t uncommitted;
	bool interrupted, waits_commit, waits_share;
};

struct fake fake;
struct net *net;

static struct mutex lock;
static struct cond changed;
static struct item *first, **last = &first;
static struct client *only; /* the client of the only connection */
static uint64_t next_message;
static char log_array[8192];
static struct conn *served;

static void note_locked(const char *format, ...)
{
	size_t length = strlen(log_array);
	va_list arguments;

	if (sizeof(log_array) - length < 256)
		return; /* no test looks at so long a log */
	va_start(arguments, format);
	if (length > 0)
		length += (size_t)snprintf(log_array + length, sizeof(log_array) - length, ", ");
	(void)vsnprintf(log_array + length, sizeof(log_array) - length, format, arguments);
	va_end(arguments);
	cond_broadcast(&changed);
}

static void note(const char *format, const char *word)
{
	mutex_lock(&lock);
	note_locked(format, word);
	mutex_unlock(&lock);
}

const char *fake_log(void)
{
	static char copy[sizeof(log_array)];

	mutex_lock(&lock);
	memcpy(copy, log_array, sizeof(copy));
	mutex_unlock(&lock);
	return copy;
}

/* --- the broker, as the net sees it ---------------------------------------------------------- */

struct client *broker_client_new(struct broker *broker, struct sink *sink, uint64_t id,
				 bool control, const struct broker_client_limits *limits)
{
	(void)broker;
	(void)id;
	(void)control;
	(void)limits;
	only = calloc(1, sizeof(*only));
	ck_assert_ptr_nonnull(only);
	only->sink = sink;
	return only;
}

void broker_client_free(struct client **client)
{
	mutex_lock(&lock);
	ck_assert_uint_eq((*client)->uncommitted, 0);
	free(*client);
	*client = only = NULL;
	cond_broadcast(&changed);
	mutex_unlock(&lock);
}

void broker_client_end_subscriptions(struct client *client)
{
	(void)client;
	note("%s", "end subscriptions");
}

void broker_client_end_after_answers(struct client *client)
{
	(void)client;
	note("%s", "end after answers");
}

void broker_client_end_worker(struct client *client, struct flush_set *set)
{
	(void)client;
	(void)set;
}

void broker_client_end_conversations(struct client *client, struct flush_set *set)
{
	(void)client;
	(void)set;
}

bool broker_client_wait_quiet(struct client *client)
{
	(void)client;
	return true;
}

void broker_client_interrupt(struct client *client)
{
	mutex_lock(&lock);
	client->interrupted = true;
	cond_broadcast(&changed);
	mutex_unlock(&lock);
}

void broker_client_wait_committed(struct client *client)
{
	mutex_lock(&lock);
	client->waits_commit = true;
	cond_broadcast(&changed);
	while (client->uncommitted > 0)
		cond_wait(&changed, &lock);
	client->waits_commit = false;
	mutex_unlock(&lock);
}

bool broker_client_wait_share(struct client *client)
{
	bool room;

	mutex_lock(&lock);
	client->waits_share = true;
	cond_broadcast(&changed);
	while (fake.share == 0 && !client->interrupted)
		cond_wait(&changed, &lock);
	client->waits_share = false;
	room = !client->interrupted;
	mutex_unlock(&lock);
	return room;
}

struct channel *broker_channel(struct broker *broker, struct span name)
{
	(void)broker;
	for (size_t i = 0; i < ARRAY_LENGTH(channels); i++)
		if (span_equal(name, span_of(channels[i].name)))
			return &channels[i];
	return NULL;
}

const uint8_t *broker_channel_schema(const struct channel *channel)
{
	(void)channel;
	return schema;
}

struct span broker_channel_name(const struct channel *channel)
{
	return span_of(channel->name);
}

bool broker_channel_is_durable(const struct channel *channel)
{
	return channel->durable;
}

bool broker_has_store(const struct broker *broker)
{
	(void)broker;
	return !fake.no_store;
}

bool broker_client_unanswered(const struct client *client, const struct channel *channel)
{
	(void)client;
	return channel->quiet;
}

bool broker_client_unanswered_name(const struct client *client, struct span channel)
{
	(void)client;
	(void)channel;
	return false;
}

bool broker_publish(struct client *client, struct channel *channel, struct message *run,
		    size_t count, struct flush_set *set)
{
	(void)client;
	(void)channel;
	(void)set;
	mutex_lock(&lock);
	for (size_t i = 0; i < count; i++)
		run[i].id = ++next_message;
	note_locked("publish plain %zu", count);
	mutex_unlock(&lock);
	return false;
}

static struct item *item_queue_locked(struct client *client)
{
	struct item *item = calloc(1, sizeof(*item));

	ck_assert_ptr_nonnull(item);
	item->client = client;
	client->uncommitted++;
	*last = item;
	last = &item->next;
	cond_broadcast(&changed);
	return item;
}

size_t broker_publish_durable(struct client *client, struct channel *channel, struct message *run,
			      size_t count)
{
	struct item *item;

	mutex_lock(&lock);
	count = size_min(size_min(count, fake.share), fake.batch);
	fake.share -= count;
	if (count > 0) {
		item = item_queue_locked(client);
		item->count = count;
		memcpy(item->run, run, count * sizeof(*run));
		item->place = client->sink->ops->place(client->sink, channel->quiet ? 0 : count);
		ck_assert_ptr_nonnull(item->place);
	}
	mutex_unlock(&lock);
	return count;
}

const char *broker_subscribe_durable(struct client *client, struct channel *channel,
				     const struct broker_durable_subscribe *subscribe)
{
	struct item *item;

	(void)channel;
	mutex_lock(&lock);
	note_locked("subscribe durable %.*s %u %" PRIu64, (int)subscribe->consumer.length,
		    (const char *)subscribe->consumer.data, subscribe->start, subscribe->value);
	item = item_queue_locked(client);
	item->subscribe = true;
	item->stream = subscribe->stream;
	item->place = client->sink->ops->place(client->sink, 1);
	ck_assert_ptr_nonnull(item->place);
	mutex_unlock(&lock);
	return NULL;
}

bool broker_client_durable_stream(struct client *client, uint32_t stream)
{
	(void)client;
	return stream == 99;
}

void broker_answer(struct client *client, uint32_t stream, enum answer_kind kind, struct span id,
		   bool working, bool confirm, struct span text, struct flush_set *set)
{
	static const char *const kinds[] = {"accept", "defer", "reject"};
	struct confirmation confirmation = {
		.stream = stream, .kind = kind, .working = working, .id = id};
	struct item *item;

	mutex_lock(&lock);
	note_locked("%s %.*s%s%s%s%.*s", kinds[kind], (int)id.length, (const char *)id.data,
		    working ? " working" : "", confirm ? " confirm" : "",
		    text.length > 0 ? " " : "", (int)text.length, (const char *)text.data);
	if (confirm && fake.owe) {
		client->sink->ops->owe_confirmation(client->sink, id.length);
		item = item_queue_locked(client);
		ck_assert_uint_le(id.length, sizeof(item->id));
		memcpy(item->id, id.data, id.length);
		item->confirmation = confirmation;
		item->confirmation.id.data = (const uint8_t *)item->id;
	} else if (confirm) {
		confirmation.refused = "stale: there is no such delivery";
		client->sink->ops->confirm(client->sink, &confirmation, false, set);
	}
	mutex_unlock(&lock);
}

static void deliver_locked(struct client *client, struct flush_set *set)
{
	struct stored messages[64];
	size_t count;

	do {
		size_t left = (size_t)(fake.stored - fake.taken);
		static uint8_t payload[65536];

		count = size_min(left, ARRAY_LENGTH(messages));
		for (size_t i = 0; i < count; i++) {
			uint64_t sequence = fake.taken + i + 1;

			wire_put_reply_envelope_head(
				payload, (uint32_t)(fake.stored_bytes - WIRE_REPLY_ENVELOPE_HEAD));
			messages[i] = (struct stored){
				.envelope = {payload, fake.stored_bytes},
				.buf = fake.stored_buf,
				.id = 1000 + sequence,
				.sequence = sequence,
				.again = sequence % 3 == 0,
			};
			if (fake.stored_buf != NULL) {
				memcpy(fake.stored_buf->data, payload, WIRE_REPLY_ENVELOPE_HEAD);
				messages[i].envelope.data = fake.stored_buf->data;
			}
		}
		left = client->sink->ops->deliver_stored(client->sink, 5, BOOT_MS, messages, count,
							 set);
		fake.taken += left;
		count = left == count ? count : 0;
	} while (count > 0);
}

void broker_client_room(struct client *client, struct flush_set *set)
{
	mutex_lock(&lock);
	fake.rooms++;
	deliver_locked(client, set);
	cond_broadcast(&changed);
	mutex_unlock(&lock);
}

enum broker_subscribe_result broker_subscribe(struct client *client, struct channel *channel,
					      uint32_t stream, uint32_t max_in_flight,
					      struct flush_set *set)
{
	(void)max_in_flight;
	note("subscribe %s", channel->name);
	client->sink->ops->subscribed(client->sink, stream, 1, schema, set);
	return BROKER_SUBSCRIBED;
}

void broker_unsubscribe(struct client *client, uint64_t subscription)
{
	(void)client;
	(void)subscription;
}

void broker_conversation_open(struct client *client, uint32_t stream, uint64_t conversation,
			      struct span subject, struct flush_set *set)
{
	(void)client;
	(void)stream;
	(void)conversation;
	(void)subject;
	(void)set;
}

void broker_conversation_message(struct client *client, uint32_t stream, uint64_t conversation,
				 bool reply_wanted, struct span payload, struct buf *buf,
				 int64_t now_ns, struct flush_set *set)
{
	(void)reply_wanted;
	(void)now_ns;
	client->sink->ops->reply(client->sink, stream, conversation, payload, buf, set);
}

void broker_conversation_close(struct client *client, uint64_t conversation, struct flush_set *set)
{
	(void)client;
	(void)conversation;
	(void)set;
}

const char *broker_worker_register(struct client *client,
				   const struct broker_registration *registration,
				   struct flush_set *set)
{
	(void)registration;
	note("%s", "register");
	client->sink->ops->registered(client->sink, set);
	return NULL;
}

void broker_push_reply(struct client *client, uint64_t correlation,
		       enum broker_push_verdict verdict, enum refusal refusal, struct span payload,
		       struct buf *buf, int64_t now_ns, struct flush_set *set)
{
	(void)client;
	(void)correlation;
	(void)verdict;
	(void)refusal;
	(void)payload;
	(void)buf;
	(void)now_ns;
	(void)set;
}

void broker_client_state(struct client *client, struct broker_client_state *state)
{
	(void)client;
	mutex_lock(&lock);
	*state = (struct broker_client_state){.outstanding_deliveries = fake.outstanding};
	mutex_unlock(&lock);
}

bool broker_conversations_elsewhere(struct broker *broker, const struct client *except)
{
	(void)broker;
	(void)except;
	return false;
}

/* --- the committer --------------------------------------------------------------------------- */

static void item_fill_locked(struct item *item, struct flush_set *set)
{
	struct sink *sink = item->client->sink;

	if (item->place == NULL) {
		sink->ops->confirm(sink, &item->confirmation, true, set);
		return;
	}
	if (item->subscribe) {
		sink->ops->fill_subscribe(sink, item->place, item->stream, 1, schema, NULL, set);
		return;
	}
	for (size_t i = 0; i < item->count; i++) {
		struct message *message = &item->run[i];

		message->id = ++next_message;
		message->sequence = 100 + message->id;
		/* What became of it is the stream's number: 3 was known, 4 is refused. */
		message->duplicate = message->stream == 3;
		message->refused = message->stream == 4 ? "store-full: no space" : NULL;
	}
	sink->ops->fill_publishes(sink, item->place, item->run, item->count, set);
}

void fake_commit(size_t count)
{
	struct flush_set set;

	flush_set_init(&set);
	mutex_lock(&lock);
	for (size_t i = 0; i < count; i++) {
		struct item *item;

		while (first == NULL)
			cond_wait(&changed, &lock);
		item = first;
		first = item->next;
		if (first == NULL)
			last = &first;
		item_fill_locked(item, &set);
		note_locked("committed");
		item->client->uncommitted--;
		free(item);
	}
	cond_broadcast(&changed);
	mutex_unlock(&lock);
	flush_set_run(&set);
}

void fake_await_commit_wait(void)
{
	mutex_lock(&lock);
	while (!only->waits_commit)
		cond_wait(&changed, &lock);
	mutex_unlock(&lock);
}

void fake_await_share_wait(void)
{
	mutex_lock(&lock);
	while (!only->waits_share)
		cond_wait(&changed, &lock);
	mutex_unlock(&lock);
}

void fake_await_full(struct conn *conn)
{
	bool waited = false;

	while (!waited) {
		(void)sched_yield();
		mutex_lock(&conn->outbox.lock);
		waited = conn->outbox.waited;
		mutex_unlock(&conn->outbox.lock);
	}
}

size_t fake_uncommitted(void)
{
	size_t count;

	mutex_lock(&lock);
	count = only->uncommitted;
	mutex_unlock(&lock);
	return count;
}

void fake_set_share(size_t share)
{
	mutex_lock(&lock);
	fake.share = share;
	cond_broadcast(&changed);
	mutex_unlock(&lock);
}

void fake_set_outstanding(uint64_t outstanding)
{
	mutex_lock(&lock);
	fake.outstanding = outstanding;
	mutex_unlock(&lock);
}

void fake_deliver(struct conn *conn)
{
	struct flush_set set;

	flush_set_init(&set);
	mutex_lock(&lock);
	deliver_locked(conn->client, &set);
	mutex_unlock(&lock);
	flush_set_run(&set);
}

void fake_await_rooms(unsigned rooms)
{
	mutex_lock(&lock);
	while (fake.rooms < rooms)
		cond_wait(&changed, &lock);
	mutex_unlock(&lock);
}

unsigned fake_rooms(void)
{
	unsigned rooms;

	mutex_lock(&lock);
	rooms = fake.rooms;
	mutex_unlock(&lock);
	return rooms;
}

uint64_t fake_taken(void)
{
	uint64_t taken;

	mutex_lock(&lock);
	taken = fake.taken;
	mutex_unlock(&lock);
	return taken;
}

/* --- connections ----------------------------------------------------------------------------- */

void fake_begin(void)
{
	static struct broker *const none; /* it is never looked at */
	char array[256];
	struct text error = TEXT_INIT(array);

	log_set_level(LOG_LEVEL_ERROR);
	mutex_init(&lock, LOCK_EXCHANGE);
	cond_init(&changed);
	fake = (struct fake){
		.batch = ARRAY_LENGTH(((struct item *)NULL)->run),
		.share = SIZE_MAX,
		.limits = {.max_frame_size = 1 << 24,
			   .max_outbox_bytes = 1 << 24,
			   .max_outbox_frames = 65536,
			   .handshake_timeout_ms = 60000,
			   .close_timeout_ms = 60000},
	};
	net = net_new(none, 10, &fake.limits, NULL);
	ck_assert_ptr_nonnull(net);
	ck_assert_msg(net_start(net, &error), "%s", array);
}

void fake_end(void)
{
	net_stop(net);
	conn_unref(&served);
	net_free(&net);
	buf_unref(&fake.stored_buf);
	cond_destroy(&changed);
	mutex_destroy(&lock);
}

struct conn *fake_connect(int *peer)
{
	enum admission admission;
	struct conn *conn;
	int ends[2];

	ck_assert(net_configure(net, &fake.limits, fake.token));
	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
	conn = conn_new(net, ends[0], "unix", NET_LISTENER_CLIENTS, &admission);
	ck_assert_int_eq(admission, ADMITTED);
	*peer = ends[1];
	return conn;
}

void fake_disconnect(struct conn *conn)
{
	outbox_close(conn);
	(void)conn_settle_reason(conn, CLOSE_DISCONNECT);
	conn_remove(conn);
	broker_client_free(&conn->client);
	(void)close(conn->fd);
	conn_unref(&conn);
}

struct conn *fake_serve(int *peer)
{
	struct conn *conn = fake_connect(peer);

	served = conn_ref(conn);
	ck_assert(pool_run(net, conn));
	return served;
}

void fake_await_end(void)
{
	mutex_lock(&net->lock);
	while (!list_empty(&net->conns))
		cond_wait(&net->changed, &net->lock);
	mutex_unlock(&net->lock);
	mutex_lock(&lock);
	while (only != NULL)
		cond_wait(&changed, &lock);
	mutex_unlock(&lock);
}

/* --- the peer -------------------------------------------------------------------------------- */

void input_frame(struct input *input, const struct wire_frame *frame)
{
	size_t left = sizeof(input->bytes) - input->length;
	size_t size = wire_encode(frame, input->bytes + input->length, left);

	ck_assert(size > 0 && size <= left);
	input->length += size;
}

void input_connect(struct input *input, struct wire_version version)
{
	input_frame(input, &(struct wire_frame){.header = {.type = WIRE_CONNECT},
						.u.connect = {.min = WIRE_VERSION_1_0,
							      .max = version,
							      .token = SPAN_LITERAL("secret")}});
}

void input_ping(struct input *input)
{
	input_frame(input, &(struct wire_frame){.header = {.type = WIRE_PING}});
}

static struct wire_envelope envelope(void)
{
	static const uint8_t independent[2];

	return (struct wire_envelope){
		.schema = schema, .context = {independent, 2}, .payload = SPAN_LITERAL("hello")};
}

void input_publish(struct input *input, uint32_t stream, const char *channel)
{
	input_frame(input, &(struct wire_frame){.header = {.type = WIRE_PUBLISH, .stream = stream},
						.u.publish = {.channel = span_of(channel),
							      .envelope = envelope()}});
}

void input_subscribe(struct input *input, uint32_t stream, const char *channel)
{
	input_frame(input,
		    &(struct wire_frame){
			    .header = {.type = WIRE_SUBSCRIBE, .stream = stream},
			    .u.subscribe = {.channel = span_of(channel), .max_in_flight = 1}});
}

void input_request(struct input *input, uint32_t stream)
{
	input_frame(input,
		    &(struct wire_frame){
			    .header = {.type = WIRE_CONVERSATION_MESSAGE,
				       .flags = WIRE_MESSAGE_REPLY,
				       .stream = stream},
			    .u.conversation_message = {.conversation = 7, .envelope = envelope()}});
}

void input_answer(struct input *input, uint8_t type, uint8_t flags, const char *id)
{
	struct wire_frame frame = {.header = {.type = type, .flags = flags, .stream = 5},
				   .u.answer = {.message = span_of(id)}};

	if (type == WIRE_REJECT)
		frame.u.answer.reason = (struct wire_opt_string){true, SPAN_LITERAL("bad")};
	input_frame(input, &frame);
}

void input_send(struct input *input, int peer)
{
	ck_assert_int_eq(send(peer, input->bytes, input->length, 0), (ssize_t)input->length);
	input->length = 0;
}

static void show(struct text *text, const struct wire_frame *frame)
{
	const struct wire_opt_string *reason = &frame->u.answer.reason;
	struct span id = frame->u.answer.message;
	struct span why = frame->u.error.text.text;

	text_add(text, "%s", wire_type_name(frame->header.type));
	if (frame->header.stream > 0)
		text_add(text, " %u", frame->header.stream);
	if (frame->header.flags != 0)
		text_add(text, " %02x", frame->header.flags);
	switch (frame->header.type) {
	case WIRE_CONNECT_ACK:
		text_add(text, " %08x", frame->u.connect_ack.capabilities);
		break;
	case WIRE_PUBLISH_ACK:
		text_add(text, " m%" PRIu64, frame->u.publish_ack.message);
		if (frame->u.publish_ack.has_position)
			text_add(text, " p%" PRIu64, frame->u.publish_ack.position);
		break;
	case WIRE_CONNECT_ERROR:
	case WIRE_PUBLISH_ERROR:
	case WIRE_SUBSCRIBE_ERROR:
		text_add(text, " %.*s", (int)why.length, (const char *)why.data);
		break;
	case WIRE_ACCEPT:
	case WIRE_DEFER:
	case WIRE_REJECT:
		text_add(text, " '%.*s'", (int)id.length, (const char *)id.data);
		if (reason->present)
			text_add(text, " %.*s", (int)reason->text.length,
				 (const char *)reason->text.data);
		break;
	case WIRE_DELIVER:
		text_add(text, " #%" PRIu64, frame->u.deliver.sequence);
		if (frame->u.deliver.has_origin)
			text_add(text, " %" PRIu64 "/m%" PRIu64, frame->u.deliver.boot,
				 frame->u.deliver.message);
		break;
	default:
		break;
	}
}

const char *received(int peer, size_t count, struct wire_version version)
{
	static char array[65536];
	struct text text = TEXT_INIT(array);
	static uint8_t bytes[1 << 20];

	array[0] = '\0';
	for (size_t i = 0; i < count; i++) {
		size_t length = 0, wanted = WIRE_HEADER_SIZE, consumed;
		struct wire_frame frame;
		const char *why;

		if (i > 0)
			text_add(&text, ", ");
		while (length < wanted) {
			ssize_t got = recv(peer, bytes + length, wanted - length, 0);

			if (got <= 0) {
				ck_assert_uint_eq(length, 0);
				text_add(&text, "end");
				return array;
			}
			length += (size_t)got;
			if (length == WIRE_HEADER_SIZE)
				wanted += wire_get_header(bytes).length;
			ck_assert_uint_le(wanted, sizeof(bytes));
		}
		ck_assert_int_eq(wire_decode(bytes, length, version, &frame, &consumed, &why),
				 WIRE_OK);
		show(&text, &frame);
	}
	return array;
}
