#include "fake_sink.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

const struct broker_client_limits fake_limits = {
	.subscriptions = 1000,
	.conversations = 1000,
	.replies_per_conversation = 1000,
	.replies = 1000,
	.pushes = 1000,
	.pending_bytes = 1000000000,
	.frame_bytes = 1000000000,
};

/* --- what is written down ---------------------------------------------------------------- */

static void fake_add(struct fake_sink *fake, const char *bytes, size_t length)
{
	while (fake->capacity - fake->length <= length) {
		fake->capacity = fake->capacity == 0 ? 256 : 2 * fake->capacity;
		fake->said = realloc(fake->said, fake->capacity);
		ASSERT(fake->said != NULL);
	}
	memcpy(fake->said + fake->length, bytes, length);
	fake->length += length;
	fake->said[fake->length] = '\0';
}

static void fake_say(struct fake_sink *fake, const char *format, ...) PRINTF_LIKE(2, 3);

static void fake_say(struct fake_sink *fake, const char *format, ...)
{
	char text[256];
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	ASSERT(length >= 0 && (size_t)length < sizeof(text));
	fake_add(fake, text, (size_t)length);
}

char *fake_shown(struct span payload)
{
	size_t shown = payload.length, size;
	char *text, count[32] = "";

	while (shown > 1 && payload.data[shown - 1] == payload.data[shown - 2])
		shown--;
	if (payload.length - shown < 8)
		shown = payload.length;
	else
		snprintf(count, sizeof(count), "*%zu", payload.length - shown + 1);
	size = shown + strlen(count) + 3;
	text = malloc(size);
	ASSERT(text != NULL);
	snprintf(text, size, "'%.*s%s'", (int)shown, (const char *)payload.data, count);
	return text;
}

static void fake_say_payload(struct fake_sink *fake, struct span payload)
{
	char *text = fake_shown(payload);

	fake_say(fake, " ");
	fake_add(fake, text, strlen(text));
	free(text);
}

static void fake_say_error(struct fake_sink *fake, struct span text)
{
	const uint8_t *colon = memchr(text.data, ':', text.length);
	size_t length = colon == NULL ? text.length : (size_t)(colon - text.data);

	if (colon != NULL &&
	    span_equal((struct span){text.data, length}, SPAN_LITERAL("over-capacity"))) {
		length += 2;
		while (length < text.length && text.data[length] != ' ')
			length++;
	}
	fake_say(fake, " ");
	fake_add(fake, (const char *)text.data, length);
}

/* An event begins: it is one frame more, of BYTES, and waits to be flushed with SET. */
static void fake_begin(struct fake_sink *fake, size_t bytes, struct flush_set *set)
{
	mutex_assert_held(&fake->lock);
	fake->frames++;
	fake->bytes += bytes;
	if (fake->length > 0)
		fake_say(fake, ", ");
	if (set != NULL && fake->in_set != set) {
		ASSERT(fake->in_set == NULL);
		fake->in_set = set;
		flush_set_add(set, &fake->sink);
	}
}

/* --- what the broker calls --------------------------------------------------------------- */

static struct fake_sink *fake_of(struct sink *sink)
{
	return CONTAINER_OF(sink, struct fake_sink, sink);
}

static bool fake_is_dead(struct fake_sink *fake)
{
	return atomic_load(&fake->sink.dead);
}

static enum sink_result fake_fits(const struct fake_sink *fake, size_t bytes)
{
	if (atomic_load(&fake->sink.dead))
		return SINK_DEAD;
	if (fake->frames == 0)
		return SINK_OK;
	if (fake->frames >= fake->max_frames)
		return SINK_FULL_FRAMES;
	return fake->bytes + bytes > fake->max_bytes ? SINK_FULL_BYTES : SINK_OK;
}

static void fake_answer_publish(struct fake_sink *fake, const struct message *message,
				struct flush_set *set)
{
	if (fake_is_dead(fake))
		return;
	fake_begin(fake, 0, set);
	if (message->refused) {
		ASSERT(message->id == 0);
		fake_say(fake, "ack %u refused", message->stream);
		return;
	}
	fake_say(fake, "ack %u m%llu%s%s", message->stream, (unsigned long long)message->id,
		 message->delivered && !message->duplicate ? " delivered" : "",
		 message->duplicate ? " duplicate" : "");
}

static void fake_deliver_one(struct fake_sink *fake, struct delivery *delivery,
			     struct message *message, struct flush_set *set)
{
	bool due =
		!message->refused && !message->duplicate && (delivery->drop || !delivery->overflow);
	enum sink_result result = fake_fits(fake, message->envelope.length);

	if (due && (result == SINK_FULL_FRAMES || result == SINK_FULL_BYTES)) {
		delivery->overflow = true;
		if (delivery->drop) {
			delivery->sequence++;
			delivery->dropped++;
		}
	}
	message->delivered |= due && result == SINK_OK;
	if (delivery->answer && !delivery->quiet)
		fake_answer_publish(fake, message, set);
	if (!due || result != SINK_OK)
		return;
	fake_begin(fake, message->envelope.length, set);
	fake_say(fake, "deliver %u #%llu m%llu", delivery->stream,
		 (unsigned long long)delivery->sequence, (unsigned long long)message->id);
	fake_say_payload(fake, message->envelope);
	delivery->sequence++;
	delivery->accepted++;
}

/* What it says about the run is true. */
static void fake_check_delivery(const struct delivery *delivery, const struct message *run,
				size_t count)
{
	size_t bytes = 0;

	for (size_t i = 0; i < count; i++) {
		bytes += run[i].envelope.length;
		ASSERT(!delivery->plain ||
		       (run[i].buf == NULL && !run[i].duplicate && !run[i].refused));
	}
	ASSERT(delivery->envelope_bytes == bytes);
	ASSERT(delivery->channel != NULL);
}

static void fake_deliver(struct sink *sink, struct delivery *delivery, struct message *run,
			 size_t count, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	fake_check_delivery(delivery, run, count);
	mutex_lock(&fake->lock);
	fake->boot = delivery->boot;
	for (size_t i = 0; i < count; i++)
		fake_deliver_one(fake, delivery, &run[i], set);
	mutex_unlock(&fake->lock);
}

static void fake_subscribed(struct sink *sink, uint32_t stream, uint64_t subscription,
			    const uint8_t *schema_id, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	mutex_lock(&fake->lock);
	memcpy(fake->schema, schema_id, sizeof(fake->schema));
	if (!fake_is_dead(fake)) {
		fake_begin(fake, 0, set);
		fake_say(fake, "subscribed %u s%llu", stream, (unsigned long long)subscription);
	}
	mutex_unlock(&fake->lock);
}

static void fake_shed(struct sink *sink, uint32_t stream, const char *text, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	ASSERT(strncmp(text, "subscription shed: ", 19) == 0);
	mutex_lock(&fake->lock);
	if (!fake_is_dead(fake)) {
		fake_begin(fake, 0, set);
		fake_say(fake, "shed %u", stream);
	}
	mutex_unlock(&fake->lock);
}

static void fake_registered(struct sink *sink, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	mutex_lock(&fake->lock);
	if (!fake_is_dead(fake)) {
		fake_begin(fake, 0, set);
		fake_say(fake, "registered");
	}
	mutex_unlock(&fake->lock);
}

static void fake_conversation_error(struct sink *sink, uint32_t stream, uint64_t conversation,
				    enum refusal refusal, struct span text, struct flush_set *set)
{
	static const char *const words[] = {"", "busy", "invalid", "unavailable", "internal"};
	struct fake_sink *fake = fake_of(sink);

	mutex_lock(&fake->lock);
	if (!fake_is_dead(fake)) {
		fake_begin(fake, 0, set);
		fake_say(fake, "%s %u c%llu%s%s", refusal == REFUSAL_NONE ? "error" : "refused",
			 stream, (unsigned long long)conversation,
			 refusal == REFUSAL_NONE ? "" : " ", words[refusal]);
		if (refusal == REFUSAL_NONE)
			fake_say_error(fake, text);
		else
			fake_say_payload(fake, text);
	}
	mutex_unlock(&fake->lock);
}

static void fake_conversation_reply(struct sink *sink, uint32_t stream, uint64_t conversation,
				    struct span payload, struct buf *buf, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	ASSERT(buf == NULL || (payload.data >= buf->data &&
			       payload.data + payload.length <= buf->data + buf->length));
	mutex_lock(&fake->lock);
	if (!fake_is_dead(fake)) {
		fake_begin(fake, payload.length + FAKE_REPLY_BYTES, set);
		fake_say(fake, "reply %u c%llu", stream, (unsigned long long)conversation);
		fake_say_payload(fake, payload);
	}
	mutex_unlock(&fake->lock);
}

static enum sink_result fake_push(struct sink *sink, uint64_t correlation, struct span payload,
				  struct buf *buf, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);
	enum sink_result result;

	ASSERT(buf == NULL || (payload.data >= buf->data &&
			       payload.data + payload.length <= buf->data + buf->length));
	mutex_lock(&fake->lock);
	if (fake->dies_at_push)
		atomic_store(&fake->sink.dead, true);
	result = fake_fits(fake, payload.length);
	if (result == SINK_OK) {
		fake_begin(fake, payload.length, set);
		fake_say(fake, "push p%llu", (unsigned long long)correlation);
		fake_say_payload(fake, payload);
	}
	mutex_unlock(&fake->lock);
	return result;
}

static void fake_load(struct sink *sink, bool offer, struct sink_load *load)
{
	struct fake_sink *fake = fake_of(sink);

	mutex_lock(&fake->lock);
	if (offer && fake->takes)
		fake->frames = fake->bytes = 0;
	*load = (struct sink_load){.frames = fake->frames,
				   .bytes = fake->bytes,
				   .max_frames = fake->max_frames,
				   .max_bytes = fake->max_bytes,
				   .empty = fake->frames == 0};
	mutex_unlock(&fake->lock);
}

static void fake_hold(struct sink *sink)
{
	fake_of(sink)->held++;
}

static void fake_release(struct sink *sink)
{
	ASSERT(fake_of(sink)->held-- > 0);
}

static void fake_flush(struct sink *sink, struct flush_set *set)
{
	struct fake_sink *fake = fake_of(sink);

	lock_assert_none_held();
	ASSERT(fake->in_set == set);
	fake->in_set = NULL;
}

static void fake_flush_later(struct sink *sink)
{
	fake_of(sink)->in_set = NULL;
}

static const struct sink_ops fake_ops = {
	.deliver = fake_deliver,
	.subscribed = fake_subscribed,
	.shed = fake_shed,
	.registered = fake_registered,
	.conversation_error = fake_conversation_error,
	.reply = fake_conversation_reply,
	.push = fake_push,
	.load = fake_load,
	.hold = fake_hold,
	.release = fake_release,
	.flush = fake_flush,
	.flush_later = fake_flush_later,
};

void fake_sink_init(struct fake_sink *fake)
{
	*fake = (struct fake_sink){
		.sink.ops = &fake_ops, .max_frames = FAKE_MAX_FRAMES, .max_bytes = FAKE_MAX_BYTES};
	atomic_init(&fake->sink.dead, false);
	mutex_init(&fake->lock, LOCK_OUTBOX);
}

void fake_sink_free(struct fake_sink *fake)
{
	ASSERT(fake->held == 0 && fake->in_set == NULL);
	mutex_destroy(&fake->lock);
	free(fake->said);
}

/* --- connections ------------------------------------------------------------------------- */

bool fake_try_connect(struct fake_client *fake, struct broker *broker, uint64_t id, bool control,
		      const struct broker_client_limits *limits)
{
	fake_sink_init(&fake->out);
	fake->broker = broker;
	fake->client = broker_client_new(broker, &fake->out.sink, id, control, limits);
	if (fake->client == NULL)
		fake_sink_free(&fake->out);
	return fake->client != NULL;
}

void fake_connect(struct fake_client *fake, struct broker *broker, uint64_t id, bool control,
		  const struct broker_client_limits *limits)
{
	ASSERT(fake_try_connect(fake, broker, id, control, limits));
}

void fake_end_receiving(struct fake_client *fake)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_client_end_subscriptions(fake->client);
	broker_client_end_worker(fake->client, &set);
	flush_set_run(&set);
}

void fake_end_conversations(struct fake_client *fake)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_client_end_conversations(fake->client, &set);
	flush_set_run(&set);
}

void fake_gone(struct fake_client *fake)
{
	broker_client_free(&fake->client);
	fake_sink_free(&fake->out);
}

void fake_disconnect(struct fake_client *fake)
{
	fake_end_conversations(fake);
	fake_end_receiving(fake);
	fake_gone(fake);
}

const char *fake_said(struct fake_client *fake)
{
	ASSERT(fake->out.in_set == NULL && fake->out.held == 0);
	if (fake->out.length == 0)
		return "";
	fake->out.length = 0;
	return fake->out.said;
}

void fake_written(struct fake_client *fake)
{
	fake->out.frames = fake->out.bytes = 0;
}

void fake_die(struct fake_client *fake)
{
	atomic_store(&fake->out.sink.dead, true);
	fake_written(fake);
}

/* --- what a session does ----------------------------------------------------------------- */

/* A copy of TEXT in memory of just its size; the caller frees it after it was overwritten. */
static uint8_t *bytes_of(const char *text, struct span *span)
{
	uint8_t *bytes;

	*span = (struct span){.length = strlen(text)};
	bytes = malloc(span->length + 1);
	ASSERT(bytes != NULL);
	memcpy(bytes, text, span->length);
	span->data = bytes;
	return bytes;
}

static void bytes_drop(uint8_t *bytes, struct span span)
{
	memset(bytes, '?', span.length);
	free(bytes);
}

#define RUN_MAX 8

void fake_publish_run(struct fake_client *fake, const char *channel_name,
		      const struct fake_message *messages, size_t count)
{
	struct channel *channel = broker_channel(fake->broker, span_of(channel_name));
	struct message run[RUN_MAX];
	uint8_t *payloads[RUN_MAX], *keys[RUN_MAX];
	struct flush_set set;

	ASSERT(channel != NULL && count <= RUN_MAX);
	flush_set_init(&set);
	for (size_t i = 0; i < count; i++) {
		run[i] = (struct message){.stream = messages[i].stream,
					  .has_key = messages[i].key != NULL};
		payloads[i] = bytes_of(messages[i].payload, &run[i].envelope);
		keys[i] = bytes_of(run[i].has_key ? messages[i].key : "", &run[i].key);
	}
	if (!broker_publish(fake->client, channel, run, count, &set) &&
	    !broker_client_unanswered(fake->client, channel)) {
		mutex_lock(&fake->out.lock);
		for (size_t i = 0; i < count; i++)
			fake_answer_publish(&fake->out, &run[i], NULL);
		mutex_unlock(&fake->out.lock);
	}
	flush_set_run(&set);
	for (size_t i = 0; i < count; i++) {
		bytes_drop(payloads[i], run[i].envelope);
		bytes_drop(keys[i], run[i].key);
	}
}

void fake_publish_key(struct fake_client *fake, uint32_t stream, const char *channel,
		      const char *payload, const char *key)
{
	fake_publish_run(fake, channel, &(struct fake_message){stream, payload, key}, 1);
}

void fake_publish(struct fake_client *fake, uint32_t stream, const char *channel,
		  const char *payload)
{
	fake_publish_key(fake, stream, channel, payload, NULL);
}

enum broker_subscribe_result fake_subscribe(struct fake_client *fake, uint32_t stream,
					    const char *channel_name, uint32_t max_in_flight)
{
	struct channel *channel = broker_channel(fake->broker, span_of(channel_name));
	enum broker_subscribe_result result;
	struct flush_set set;

	ASSERT(channel != NULL);
	flush_set_init(&set);
	result = broker_subscribe(fake->client, channel, stream, max_in_flight, &set);
	flush_set_run(&set);
	return result;
}

void fake_unsubscribe(struct fake_client *fake, uint64_t subscription)
{
	broker_unsubscribe(fake->client, subscription);
}

void fake_open(struct fake_client *fake, uint32_t stream, uint64_t conversation,
	       const char *subject)
{
	struct flush_set set;
	struct span span;
	uint8_t *bytes = bytes_of(subject, &span);

	flush_set_init(&set);
	broker_conversation_open(fake->client, stream, conversation, span, &set);
	flush_set_run(&set);
	bytes_drop(bytes, span);
}

static void fake_message(struct fake_client *fake, uint32_t stream, uint64_t conversation,
			 bool reply_wanted, const char *payload)
{
	struct flush_set set;
	struct span span;
	uint8_t *bytes = bytes_of(payload, &span);

	flush_set_init(&set);
	broker_conversation_message(fake->client, stream, conversation, reply_wanted, span, NULL,
				    clock_mono_ns(), &set);
	flush_set_run(&set);
	bytes_drop(bytes, span);
}

void fake_request(struct fake_client *fake, uint32_t stream, uint64_t conversation,
		  const char *payload)
{
	fake_message(fake, stream, conversation, true, payload);
}

void fake_one_way(struct fake_client *fake, uint32_t stream, uint64_t conversation,
		  const char *payload)
{
	fake_message(fake, stream, conversation, false, payload);
}

void fake_close(struct fake_client *fake, uint64_t conversation)
{
	struct flush_set set;

	flush_set_init(&set);
	broker_conversation_close(fake->client, conversation, &set);
	flush_set_run(&set);
}

/* The names of a registration of the tests have so many bytes, with their lengths. */
#define NAMES_MAX 4096

/* The names of TEXT, as they stand on the wire, in BYTES. */
static struct broker_names names_of(const char *text, uint8_t bytes[NAMES_MAX])
{
	struct broker_names names = {.bytes.data = bytes};

	while (text != NULL && *text != '\0') {
		size_t length = strcspn(text, " ");
		uint8_t *item = bytes + names.bytes.length;

		ASSERT(names.bytes.length + 4 + length <= NAMES_MAX);
		memset(item, 0, 4);
		item[3] = (uint8_t)length;
		memcpy(item + 4, text, length);
		names.bytes.length += 4 + length;
		names.count++;
		text += length + (text[length] == ' ');
	}
	return names;
}

static struct span optional(const char *text)
{
	return span_of(text == NULL ? "" : text);
}

const char *fake_register(struct fake_client *fake, struct fake_worker worker)
{
	uint8_t namespaces[NAMES_MAX], activities[NAMES_MAX];
	struct broker_registration registration = {
		.queue = optional(worker.queue),
		.identity = optional(worker.identity),
		.has_node = worker.node != NULL,
		.node = optional(worker.node),
		.namespaces = names_of(worker.namespaces, namespaces),
		.activities = names_of(worker.activities, activities),
		.leaving = worker.leaving,
	};
	const char *rejected;
	struct flush_set set;

	flush_set_init(&set);
	rejected = broker_worker_register(fake->client, &registration, &set);
	flush_set_run(&set);
	return rejected;
}

static void fake_push_reply(struct fake_client *fake, uint64_t correlation,
			    enum broker_push_verdict verdict, enum refusal refusal,
			    const char *payload)
{
	struct flush_set set;
	struct span span;
	uint8_t *bytes = bytes_of(payload, &span);

	flush_set_init(&set);
	broker_push_reply(fake->client, correlation, verdict, refusal, span, NULL, clock_mono_ns(),
			  &set);
	flush_set_run(&set);
	bytes_drop(bytes, span);
}

void fake_reply(struct fake_client *fake, uint64_t correlation, const char *payload)
{
	fake_push_reply(fake, correlation, BROKER_PUSH_REPLY, REFUSAL_NONE, payload);
}

void fake_refuse(struct fake_client *fake, uint64_t correlation, enum refusal refusal,
		 const char *words)
{
	fake_push_reply(fake, correlation, BROKER_PUSH_REFUSED, refusal, words);
}

void fake_still_working(struct fake_client *fake, uint64_t correlation)
{
	fake_push_reply(fake, correlation, BROKER_PUSH_WORKING, REFUSAL_NONE, "");
}
