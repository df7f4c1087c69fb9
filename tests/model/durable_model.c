/*
 * Random operations on durable channels, with fake connections, fake time and a store in memory,
 * each of them on the model as well (durable_channel.h). After each, every connection must have
 * been told the same by both, and the numbers that others may know must agree.
 *
 *     MODEL_RUNS=N MODEL_SEED=N tests/model/durable_model
 *
 * as for broker_model. Nothing runs beside the test: it does the committer's batches itself, when
 * chance wants it or their time has come, and reads rows for those who are behind at once.
 */
#include "durable_channel.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/fake_time.h"
#include "base/thread.h"
#include "broker/journal.h"

#define RUNS 3000
#define OPERATIONS_MAX 200

struct connection {
	struct sink sink;
	struct client *client; /* NULL: not connected */
	struct d_client said;
	const struct flush_set *in_set;
	unsigned held;
	bool deaf; /* the server is about to die */
};

static struct d_model model;
static struct broker *broker;
static struct store *store, *kept_store;
static struct connection connections[D_CLIENTS];
static uint64_t next_client, next_tag;
static uint32_t next_publish;

static const char *const channel_names[D_CHANNELS] = {"a", "b", "d"};
static const char *const consumer_names[D_NAMES] = {"x", "y", "z"};

/* --- instead of threads ---------------------------------------------------------------------- */

int thread_start(struct thread *thread, thread_function *function, void *argument)
{
	(void)thread;
	(void)function;
	(void)argument;
	return 0;
}

void thread_join(struct thread *thread)
{
	(void)thread;
}

unsigned thread_shard(void)
{
	return 0;
}

/* --- chance ---------------------------------------------------------------------------------- */

static uint64_t chance;

/* Below LIMIT. */
static unsigned draw(unsigned limit)
{
	chance = chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((chance >> 33) % limit);
}

static bool one_in(unsigned count)
{
	return draw(count) == 0;
}

#define DRAW_OF(array) ((array)[draw(ARRAY_LENGTH(array))])

/* --- what was done --------------------------------------------------------------------------- */

static char *history;
static size_t history_length;
static FILE *history_file;
static uint64_t seed;
static bool verbose;

static void note(const char *format, ...) PRINTF_LIKE(1, 2);

static void note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(history_file, format, arguments);
	va_end(arguments);
}

_Noreturn void disagree(const char *format, ...)
{
	va_list arguments;

	fclose(history_file);
	printf("seed %" PRIu64 ":\n%s", seed, history);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\nRun it alone: MODEL_RUNS=1 MODEL_SEED=%" PRIu64 "\n0 passed, 1 failed\n", seed);
	exit(1);
}

/* --- what is seen ---------------------------------------------------------------------------- */

#define SEEN_MAX 4096
#define PUBLISHES_MAX 4096

static struct d_delivery deliveries[SEEN_MAX];
static uint64_t ids[PUBLISHES_MAX]; /* of publishes, by their streams */

/* Kept messages, by what the store has. */
static bool kept[D_CHANNELS][D_SEQUENCES];

static struct dead {
	int origin, consumer;
	uint64_t origin_sequence, sequence;
} dead_letters[D_SEQUENCES];
static size_t dead_count;

static uint64_t seen_id(uint32_t publish)
{
	return ids[publish];
}

static bool seen_kept(int channel, uint64_t sequence)
{
	return kept[channel][sequence];
}

static uint64_t seen_dead(int channel, int origin, uint64_t sequence, int consumer)
{
	(void)channel;
	for (size_t i = dead_count; i > 0; i--)
		if (dead_letters[i - 1].origin == origin &&
		    dead_letters[i - 1].origin_sequence == sequence &&
		    dead_letters[i - 1].consumer == consumer)
			return dead_letters[i - 1].sequence;
	return 0;
}

static struct d_seen seen = {
	.deliveries = deliveries, .id_of = seen_id, .kept = seen_kept, .dead = seen_dead};

static struct channel *channel_of(int channel)
{
	return broker_channel(broker, span_of(channel_names[channel]));
}

static bool see_dead(void *context, const struct store_dead *found)
{
	struct dead *dead = &dead_letters[dead_count++];

	(void)context;
	ASSERT(dead_count <= ARRAY_LENGTH(dead_letters) && found->origin.length > 2);
	*dead = (struct dead){.origin = found->origin.data[0] == 'a' ? 0 : 1,
			      .sequence = found->sequence,
			      .consumer = found->consumer.data[0] - 'x'};
	for (size_t i = 2; i < found->origin.length; i++)
		dead->origin_sequence = dead->origin_sequence * 10 + found->origin.data[i] - '0';
	return true;
}

static void look_into_store(void)
{
	struct journal *journal;

	memset(kept, 0, sizeof(kept));
	for (int c = 0; c < D_CHANNELS; c++) {
		uint64_t next;
		struct store_row row;

		journal = channel_of(c)->journal;
		next = journal->stored.first;
		while (store->ops->row_read(store, journal->stored.number, next, true, &row) ==
		       STORE_OK) {
			const uint8_t *data = row.data->data;

			for (uint64_t i = 0; i < row.count; i++) {
				uint64_t sequence = row.first + i;

				if (row.sparse) {
					sequence = get_u64(data);
					data += 8;
				}
				ASSERT(sequence < D_SEQUENCES);
				kept[c][sequence] = sequence >= journal->stored.first;
				data += STORE_RECORD_HEAD + get_u32(data + 8);
			}
			next = row.last + 1;
			buf_unref(&row.data);
		}
	}
	dead_count = 0;
	journal = channel_of(D_CHANNELS - 1)->journal;
	ASSERT(store->ops->dead_read(store, journal->stored.number, 1, D_SEQUENCES, see_dead,
				     NULL) == STORE_OK);
}

/* --- a connection's outbox ------------------------------------------------------------------- */

struct sink_place {
	size_t count;
};

static struct connection *connection_of(struct sink *sink)
{
	return CONTAINER_OF(sink, struct connection, sink);
}

static int number_of(const struct connection *connection)
{
	return (int)(connection - connections);
}

static void begin(struct connection *connection, struct flush_set *set)
{
	if (connection->in_set == set)
		return;
	ASSERT(connection->in_set == NULL);
	connection->in_set = set;
	flush_set_add(set, &connection->sink);
}

/* A batch fails: what would have been refused for another reason may be told that one. */
static bool batch_fails;

/* The token in front of the colon. */
static const char *token(const char *text)
{
	static char cut[64];

	if (batch_fails && strncmp(text, "over-capacity: max_", 19) == 0)
		return "store-full";
	snprintf(cut, sizeof(cut), "%.*s%s", (int)strcspn(text, ":"), text,
		 strstr(text, "larger than max_bytes") != NULL ? " too large" : "");
	if (batch_fails && strcmp(cut, "over-capacity too large") == 0)
		return "store-full";
	return cut;
}

static struct sink_place *sink_place(struct sink *sink, size_t count)
{
	struct sink_place *place = malloc(sizeof(*place));

	(void)sink;
	ASSERT(place != NULL);
	place->count = count;
	return place;
}

static void sink_fill_publishes(struct sink *sink, struct sink_place *place,
				const struct message *run, size_t count, struct flush_set *set)
{
	struct connection *connection = connection_of(sink);
	struct d_said *said = &connection->said.answers;

	ASSERT(place->count == count);
	free(place);
	begin(connection, set);
	for (size_t i = 0; i < count; i++) {
		if (run[i].refused != NULL) {
			d_say(said, "ack %u %s, ", run[i].stream, token(run[i].refused));
			continue;
		}
		ids[run[i].stream] = run[i].id;
		d_say(said, "ack %u #%" PRIu64 " m%" PRIu64 "%s, ", run[i].stream, run[i].sequence,
		      run[i].id,
		      run[i].duplicate	 ? " duplicate"
		      : run[i].delivered ? " delivered"
					 : "");
	}
}

static void sink_fill_subscribe(struct sink *sink, struct sink_place *place, uint32_t stream,
				uint64_t subscription, const uint8_t *schema_id,
				const char *refused, struct flush_set *set)
{
	struct connection *connection = connection_of(sink);

	(void)subscription;
	(void)schema_id;
	ASSERT(place->count == 1);
	free(place);
	begin(connection, set);
	d_say(&connection->said.answers, "subscribed %u %s, ", stream,
	      refused == NULL ? "ok" : token(refused));
}

static bool id_is_known(uint64_t id)
{
	for (uint32_t i = 1; i < next_publish; i++)
		if (ids[i] == id)
			return true;
	return false;
}

static void see_envelope(struct d_delivery *delivery, struct span envelope)
{
	const uint8_t *data = envelope.data;
	size_t context = get_u32(data + 32);

	ASSERT(envelope.length >= 36 + context + 4 + 8);
	delivery->schema = data[0] - 'A';
	delivery->tag = get_u64(data + 36 + context + 4);
	delivery->origin = -1;
	if (context == 2)
		return;
	ASSERT(data[36] == 1 && get_u32(data + 37) + 6 == context);
	delivery->origin = data[41] == 'a' ? 0 : 1;
	for (size_t i = 43; i < 36 + context - 1; i++)
		delivery->origin_sequence = delivery->origin_sequence * 10 + data[i] - '0';
}

static size_t sink_deliver_stored(struct sink *sink, uint32_t stream, uint64_t boot,
				  const struct stored *messages, size_t count,
				  struct flush_set *set)
{
	struct connection *connection = connection_of(sink);

	(void)boot;
	begin(connection, set);
	for (size_t i = 0; i < count && !connection->deaf; i++) {
		struct d_delivery *delivery = &deliveries[seen.count++];

		ASSERT(seen.count <= SEEN_MAX);
		*delivery = (struct d_delivery){.client = number_of(connection),
						.stream = stream,
						.sequence = messages[i].sequence,
						.id = messages[i].id,
						.again = messages[i].again,
						.acked = id_is_known(messages[i].id)};
		see_envelope(delivery, messages[i].envelope);
		if (verbose)
			note("    %d: deliver %u #%" PRIu64 "%s\n", delivery->client, stream,
			     messages[i].sequence, messages[i].again ? " again" : "");
	}
	return count;
}

static void sink_unsubscribed(struct sink *sink, uint32_t stream, const char *text,
			      struct flush_set *set)
{
	struct connection *connection = connection_of(sink);

	begin(connection, set);
	d_say(&connection->said.ends[stream], "ended %s, ", token(text));
}

static void sink_owe_confirmation(struct sink *sink, size_t id_length)
{
	(void)sink;
	(void)id_length;
}

static void sink_confirm(struct sink *sink, const struct confirmation *confirmation, bool owed,
			 struct flush_set *set)
{
	static const char *const words[] = {"accept", "defer", "reject"};
	struct connection *connection = connection_of(sink);
	struct d_said *said = &connection->said.ends[confirmation->stream];
	int length = (int)confirmation->id.length;

	(void)owed;
	begin(connection, set);
	if (confirmation->refused != NULL)
		d_say(said, "reject %.*s %s, ", length, (const char *)confirmation->id.data,
		      token(confirmation->refused));
	else
		d_say(said, "%s %.*s%s, ", words[confirmation->kind], length,
		      (const char *)confirmation->id.data, confirmation->working ? " working" : "");
}

static void sink_hold(struct sink *sink)
{
	connection_of(sink)->held++;
}

static void sink_release(struct sink *sink)
{
	ASSERT(connection_of(sink)->held-- > 0);
}

static void sink_flush(struct sink *sink, struct flush_set *set)
{
	ASSERT(connection_of(sink)->in_set == set);
	connection_of(sink)->in_set = NULL;
}

static const struct sink_ops sink_ops = {
	.place = sink_place,
	.fill_publishes = sink_fill_publishes,
	.fill_subscribe = sink_fill_subscribe,
	.deliver_stored = sink_deliver_stored,
	.unsubscribed = sink_unsubscribed,
	.owe_confirmation = sink_owe_confirmation,
	.confirm = sink_confirm,
	.hold = sink_hold,
	.release = sink_release,
	.flush = sink_flush,
};

/* --- comparing ------------------------------------------------------------------------------- */

static void compare_said(const char *what, int client, struct d_said *is, struct d_said *expected)
{
	is->text[is->length] = expected->text[expected->length] = '\0';
	if (verbose && is->length > 0)
		note("    %d: %s\n", client, is->text);
	if (strcmp(is->text, expected->text) != 0)
		disagree("%s of %d:       %s\nthe model says  %s", what, client, is->text,
			 expected->text);
	is->length = expected->length = 0;
}

static void compare_number(const char *what, int channel, int consumer, uint64_t is,
			   uint64_t expected)
{
	if (is != expected)
		disagree("%s of channel %d, consumer %d, is %" PRIu64 ", and %" PRIu64
			 " in the model",
			 what, channel, consumer, is, expected);
}

static void compare_consumer(int c, int k, const struct broker_consumer_state *state)
{
	const struct d_channel *channel = &model.channels[c];
	const struct d_consumer *consumer = &channel->consumers[k];
	uint64_t lag = 0, outstanding = 0, deferred = 0;

	for (uint64_t i = 1; i <= channel->last; i++) {
		lag += !d_done(channel, consumer, i);
		outstanding += consumer->entries[i].state == D_OUTSTANDING;
		deferred += consumer->entries[i].state == D_DEFERRED ||
			    consumer->entries[i].state == D_STUCK;
	}
	compare_number("subscriptions", c, k, state->subscriptions,
		       (uint64_t)d_live_of(&model, c, k));
	compare_number("lag", c, k, state->lag, lag);
	compare_number("outstanding", c, k, state->outstanding, outstanding);
	compare_number("deferred", c, k, state->deferred, deferred);
	compare_number("redeliveries", c, k, state->redeliveries, consumer->redeliveries);
	compare_number("discarded", c, k, state->discarded, consumer->discarded);
	compare_number("dead_rejected", c, k, state->dead_rejected, consumer->dead_rejected);
	compare_number("dead_attempts", c, k, state->dead_attempts, consumer->dead_attempts);
	compare_number("idle_since_ms", c, k, (uint64_t)state->idle_since_ms,
		       (uint64_t)consumer->idle_since_ms);
}

static void compare_consumers(void)
{
	struct broker_consumer_state *states;
	size_t count, expected = 0;

	ASSERT(broker_consumer_states(broker, NULL, &states, &count));
	for (size_t i = 0; i < count; i++) {
		int c = states[i].channel.data[0] == 'd' ? 2 : states[i].channel.data[0] - 'a';
		int k = states[i].name[0] - 'x';

		if (!model.channels[c].consumers[k].exists)
			disagree("there is a consumer %d of channel %d", k, c);
		compare_consumer(c, k, &states[i]);
	}
	free(states);
	for (int c = 0; c < D_CHANNELS; c++)
		for (int k = 0; k < D_NAMES; k++)
			expected += model.channels[c].consumers[k].exists;
	compare_number("consumers", -1, -1, count, expected);
}

static void compare_channels(void)
{
	struct broker_channel_state *states;
	size_t count;

	ASSERT(broker_channel_states(broker, &states, &count) && count == D_CHANNELS);
	for (int c = 0; c < D_CHANNELS; c++) {
		compare_number("last_sequence", c, -1, states[c].last_sequence,
			       model.channels[c].last);
		compare_number("stale_answers", c, -1, states[c].stale_answers,
			       model.channels[c].stale_answers);
		compare_number("dedup_keys", c, -1, states[c].dedup_keys,
			       model.channels[c].key_count);
	}
	free(states);
}

/* What the broker has told and the model has said must be the same by now. */
static void compare(void)
{
	for (size_t i = 0; i < seen.count; i++)
		if (!deliveries[i].used)
			disagree("%d was given #%" PRIu64 " on stream %u, and should not be",
				 deliveries[i].client, deliveries[i].sequence,
				 deliveries[i].stream);
	seen.count = 0;
	for (int i = 0; i < D_CLIENTS; i++) {
		compare_said("answers", i, &connections[i].said.answers, &model.clients[i].answers);
		for (int j = 0; j < D_STREAMS; j++)
			compare_said("confirmations", i, &connections[i].said.ends[j],
				     &model.clients[i].ends[j]);
	}
	compare_consumers();
	compare_channels();
}

/* --- the committer --------------------------------------------------------------------------- */

/* Rows for those who are behind, until nobody is. */
static void serve_reads(void)
{
	struct committer *committer = broker->committer;

	while (!list_empty(&committer->reads)) {
		struct cursor *cursor = LIST_ENTRY(committer->reads.next, struct cursor, in_reads);

		list_remove(&cursor->in_reads);
		commit_read(committer, cursor);
	}
}

static bool committer_is_due(void)
{
	return broker->committer->timer_ns <= fake_now_ns;
}

static bool committer_has_work(void)
{
	return !list_empty(&broker->committer->items) || !list_empty(&broker->committer->dirty) ||
	       committer_is_due();
}

static void move_node(struct list *to, struct list *node)
{
	list_remove(node);
	list_append(to, node);
}

/* One batch, as the committer's thread does it; true when retention had its time, too. */
static bool run_batch(enum store_result result)
{
	struct committer *committer = broker->committer;
	bool sweep = committer_is_due();
	int order[D_CHANNELS] = {0};
	struct list items, dirty;
	size_t count = 0;

	list_init(&items);
	list_init(&dirty);
	while (!list_empty(&committer->items))
		move_node(&items, committer->items.next);
	while (!list_empty(&committer->dirty)) {
		struct journal *journal =
			LIST_ENTRY(committer->dirty.next, struct journal, in_dirty);

		list_remove(&journal->in_dirty);
		list_append(&dirty, &journal->in_batch);
		order[count++] =
			journal->channel->name[0] == 'd' ? 2 : journal->channel->name[0] - 'a';
	}
	/* Of timers that go at once, and answers to different channels, none is first. */
	if (count == model.dirty_count)
		memcpy(model.dirty_order, order, sizeof(order));
	if (sweep)
		committer->timer_ns = DEADLINE_NEVER;
	if (result != STORE_OK)
		store_memory_fail(store, result);
	batch_fails = result != STORE_OK;
	commit_batch(committer, &items, &dirty, sweep);
	batch_fails = false;
	serve_reads();
	return sweep;
}

static void commit(enum store_result result)
{
	bool sweep;

	if (!committer_has_work())
		return;
	note("commit%s%s\n", result == STORE_OK ? "" : ", full",
	     committer_is_due() ? ", sweep" : "");
	sweep = run_batch(result);
	look_into_store();
	d_commit(&model, result, sweep);
	compare();
}

/* Until nothing waits for it now. */
static void commit_all(void)
{
	for (int i = 0; committer_has_work(); i++) {
		if (i == 1000)
			disagree("the committer never comes to rest");
		commit(STORE_OK);
	}
}

/* --- time ------------------------------------------------------------------------------------ */

static int64_t now_ms(void)
{
	return fake_now_ns / NS_PER_MS;
}

/* What could have been removed for its age at the beginning of the time that has passed. */
static bool removable[D_CHANNELS][D_SEQUENCES];

static void find_removable(void)
{
	for (int c = 0; c < D_CHANNELS; c++) {
		const struct d_channel *channel = &model.channels[c];
		const struct broker_durable_settings *of = &channel->settings.stored;

		for (uint64_t i = 1; i < D_SEQUENCES; i++)
			removable[c][i] =
				i <= channel->last && of->max_age_ms > 0 &&
				model.now_ms - channel->messages[i].time_ms >= of->max_age_ms &&
				(of->discard || d_done_by_all(channel, i));
	}
}

static void check_in_time(void)
{
	for (int c = 0; c < D_CHANNELS && !model.unsure; c++) {
		const struct d_channel *channel = &model.channels[c];
		const struct broker_durable_settings *settings = &channel->settings.stored;

		for (int k = 0; k < D_NAMES; k++)
			if (channel->consumers[k].exists && settings->consumer_expiry_ms > 0 &&
			    d_live_of(&model, c, k) == 0 &&
			    model.now_ms - channel->consumers[k].idle_since_ms >
				    settings->consumer_expiry_ms)
				disagree("consumer %d of channel %d has not expired", k, c);
		for (uint64_t i = 1; i <= channel->last; i++)
			if (channel->messages[i].kept && removable[c][i])
				disagree("#%" PRIu64 " of channel %d is too old", i, c);
	}
}

static void advance(int64_t ms)
{
	int64_t until_ms = now_ms() + ms;

	if (ms >= 1000) {
		commit_all();
		find_removable();
	}
	note("%" PRId64 " ms pass\n", ms);
	while (now_ms() < until_ms) {
		int64_t next_ms = d_next_timer(&model);

		if (broker->committer->timer_ns / NS_PER_MS < next_ms)
			next_ms = broker->committer->timer_ns / NS_PER_MS;
		if (next_ms > until_ms)
			next_ms = until_ms;
		if (next_ms <= now_ms())
			next_ms = now_ms() + 1;
		fake_advance(broker, next_ms * NS_PER_MS - fake_now_ns);
		serve_reads();
		model.now_ms = now_ms();
		d_run_timers(&model);
		compare();
		for (int i = 0; committer_is_due(); i++) {
			if (i == 1000)
				disagree("retention never comes to rest");
			commit(STORE_OK);
		}
	}
	if (ms >= 1000)
		check_in_time();
}

/* --- operations ------------------------------------------------------------------------------ */

static const struct broker_client_limits limits = {.subscriptions = 1000,
						   .conversations = 1000,
						   .replies_per_conversation = 1000,
						   .replies = 1000,
						   .pushes = 1000,
						   .pending_bytes = 1000000,
						   .frame_bytes = 1000000};

static void connect_one(int number)
{
	struct connection *connection = &connections[number];

	memset(connection, 0, sizeof(*connection));
	connection->sink.ops = &sink_ops;
	atomic_init(&connection->sink.dead, false);
	connection->client =
		broker_client_new(broker, &connection->sink, ++next_client, false, &limits);
	ASSERT(connection->client != NULL);
}

static int draw_client(void)
{
	int number = (int)draw(D_CLIENTS);

	if (connections[number].client == NULL)
		connect_one(number);
	return number;
}

static int draw_channel(void)
{
	return (int)draw(8) < 6 ? 0 : 1 + (int)draw(2);
}

/* A new consumer's first commit counts messages anew: it has a batch of its own. */
static bool consumers_change(int channel)
{
	for (size_t i = 0; i < model.item_count; i++)
		if (model.items[i].kind == D_SUBSCRIBE && model.items[i].channel == channel &&
		    model.items[i].consumer != D_READER)
			return true;
	return false;
}

static size_t make_envelope(int channel, uint64_t tag, size_t payload, uint8_t *bytes)
{
	memset(bytes, 'A' + channel, 32);
	put_u32(bytes + 32, 2);
	bytes[36] = bytes[37] = 0;
	put_u32(bytes + 38, (uint32_t)payload);
	memset(bytes + 42, '.', payload);
	put_u64(bytes + 42, tag);
	return 42 + payload;
}

static void publish(void)
{
	static const size_t sizes[] = {8, 8, 8, 40, 200};
	uint8_t bytes[D_RUN][256], keys[D_RUN];
	struct message run[D_RUN] = {{.refused = NULL}};
	struct d_item item = {
		.kind = D_PUBLISH, .client = draw_client(), .channel = draw_channel()};

	if (model.channels[item.channel].last + 100 > D_SEQUENCES ||
	    model.channels[D_CHANNELS - 1].last + 200 > D_SEQUENCES)
		return;
	if (consumers_change(item.channel))
		commit(STORE_OK);
	item.count = 1 + draw(D_RUN);
	for (size_t i = 0; i < item.count; i++) {
		size_t payload = DRAW_OF(sizes);

		item.run[i].stream = run[i].stream = next_publish++;
		item.run[i].tag = ++next_tag;
		item.run[i].key = one_in(2) ? 1 + draw(6) : 0;
		run[i].envelope.data = bytes[i];
		run[i].envelope.length = make_envelope(item.channel, next_tag, payload, bytes[i]);
		item.run[i].charge = payload + 2 + 64;
		keys[i] = (uint8_t)('0' + item.run[i].key);
		run[i].has_key = item.run[i].key != 0;
		run[i].key = (struct span){&keys[i], run[i].has_key};
		note("%d publishes %u to %d, %zu bytes, key %" PRIu64 "\n", item.client,
		     run[i].stream, item.channel, payload, item.run[i].key);
	}
	ASSERT(broker_publish_durable(connections[item.client].client, channel_of(item.channel),
				      run, item.count) == item.count);
	memset(bytes, '?', sizeof(bytes));
	d_publish(&model, &item);
}

static void subscribe(void)
{
	static const uint32_t credits[] = {1, 1, 2, 3, 20, 1000};
	int client = draw_client(), channel = draw_channel();
	int consumer = one_in(5) ? D_READER : (int)draw(D_NAMES);
	struct broker_durable_subscribe wanted = {.stream = draw(D_STREAMS),
						  .max_in_flight = DRAW_OF(credits),
						  .start = (uint8_t)draw(4)};

	if (model.subscription_count == D_SUBSCRIPTIONS ||
	    d_subscription_on(&model, client, wanted.stream) >= 0)
		return;
	/* A subscription that has ended may still own what waits for the committer. */
	if (wanted.start == 2)
		wanted.value = draw((unsigned)model.channels[channel].last + 5);
	if (wanted.start == 3)
		wanted.value = (uint64_t)now_ms() + 500 - draw(3000);
	if (consumer != D_READER)
		wanted.consumer = span_of(consumer_names[consumer]);
	note("%d subscribes on %u to %d as %d, credit %u, start %u %" PRIu64 "\n", client,
	     wanted.stream, channel, consumer, wanted.max_in_flight, wanted.start, wanted.value);
	ASSERT(broker_subscribe_durable(connections[client].client, channel_of(channel), &wanted) ==
	       NULL);
	(void)d_subscribe(&model, client, channel, wanted.stream, wanted.max_in_flight, consumer,
			  wanted.start, wanted.value);
}

static void unsubscribe(void)
{
	int client = draw_client();
	uint32_t stream = draw(D_STREAMS);
	int subscription = d_subscription_on(&model, client, stream);
	struct subscription *found;

	if (subscription < 0)
		return;
	note("%d unsubscribes on %u\n", client, stream);
	found = client_durable_subscription(connections[client].client, stream);
	ASSERT(found != NULL);
	broker_unsubscribe(connections[client].client, found->id);
	serve_reads();
	d_unsubscribe(&model, subscription);
}

/* Which counter has counted an answer on a stream without a subscription is not promised. */
static void forgive_stale_answers(void)
{
	for (int c = 0; c < D_CHANNELS; c++)
		model.channels[c].stale_answers = channel_of(c)->journal->stale_answers;
}

/* Mostly of what is outstanding there. */
static void draw_id(int client, uint32_t stream, char *id, size_t size)
{
	static const char *const strange[] = {"0",  "01", "x", "", "..", "18446744073709551616",
					      "..0"};
	int on = d_subscription_on(&model, client, stream);
	uint64_t sequences[D_SEQUENCES], chosen = 1 + draw(10);
	unsigned count = 0;

	if (on >= 0 && model.subscriptions[on].consumer != D_READER) {
		const struct d_channel *channel = &model.channels[model.subscriptions[on].channel];
		const struct d_entry *entries =
			channel->consumers[model.subscriptions[on].consumer].entries;

		for (uint64_t i = 1; i <= channel->last; i++)
			if (entries[i].state == D_OUTSTANDING && entries[i].subscription == on)
				sequences[count++] = i;
	}
	if (count > 0 && !one_in(20))
		chosen = sequences[draw(count)];
	snprintf(id, size, "%" PRIu64, chosen);
	if (one_in(50))
		snprintf(id, size, "%s", DRAW_OF(strange));
}

static void answer(void)
{
	static const enum answer_kind kinds[] = {ANSWER_ACCEPT, ANSWER_ACCEPT, ANSWER_ACCEPT,
						 ANSWER_DEFER,	ANSWER_DEFER,  ANSWER_REJECT};
	int client = draw_client();
	uint32_t stream = draw(D_STREAMS);
	enum answer_kind kind = DRAW_OF(kinds);
	bool working = kind == ANSWER_DEFER && one_in(3), confirmed = one_in(2);
	int on = d_subscription_on(&model, client, stream);
	char number[32], id[40];
	struct flush_set set;

	if (on < 0 && !one_in(10))
		return;
	if (on >= 0 && model.subscriptions[on].owed_count + 2 > D_OWED)
		return;
	draw_id(client, stream, number, sizeof(number));
	snprintf(id, sizeof(id), "%s%s", one_in(kind == ANSWER_ACCEPT ? 4 : 40) ? ".." : "",
		 number);
	note("%d answers on %u: %d %s%s%s\n", client, stream, (int)kind, id,
	     working ? " working" : "", confirmed ? " confirm" : "");
	flush_set_init(&set);
	broker_answer(connections[client].client, stream, kind, span_of(id), working, confirmed,
		      span_of("a reason"), &set);
	flush_set_run(&set);
	serve_reads();
	d_answer(&model, client, stream, kind, id, working, confirmed);
	if (on < 0)
		forgive_stale_answers();
}

struct removal {
	int channel, consumer;
	enum broker_remove_result result;
};

static void *remove_thread(void *argument)
{
	struct removal *removal = argument;

	removal->result = broker_consumer_remove(broker, channel_of(removal->channel),
						 span_of(consumer_names[removal->consumer]));
	return NULL;
}

/* The one call that waits for the committer, in a thread of its own. */
static void remove_consumer(void)
{
	struct committer *committer = broker->committer;
	struct removal removal = {.channel = draw_channel(), .consumer = (int)draw(D_NAMES)};
	enum store_result result = one_in(4) ? STORE_FULL : STORE_OK;
	enum broker_remove_result expected = BROKER_REMOVE_FAILED;
	pthread_t thread;

	if (consumers_change(removal.channel))
		commit(STORE_OK);
	note("consumer %d of %d is removed\n", removal.consumer, removal.channel);
	d_remove(&model, removal.channel, removal.consumer);
	ASSERT(pthread_create(&thread, NULL, remove_thread, &removal) == 0);
	mutex_lock(&committer->lock);
	while (list_empty(&committer->items) ||
	       LIST_ENTRY(committer->items.previous, struct item, in_queue)->kind != ITEM_REMOVE) {
		committer->asleep = true;
		cond_wait(&committer->wake, &committer->lock);
	}
	mutex_unlock(&committer->lock);
	if (result == STORE_OK)
		expected = model.channels[removal.channel].consumers[removal.consumer].exists
				   ? BROKER_REMOVED
				   : BROKER_REMOVE_NONE;
	commit(result);
	ASSERT(pthread_join(thread, NULL) == 0);
	if (removal.result != expected)
		disagree("the result is %d, and %d in the model", (int)removal.result,
			 (int)expected);
}

/* Which of them ends first is not promised; the model ends them in the same order. */
static void end_subscriptions(int number)
{
	struct client *client = connections[number].client;
	int ending[D_STREAMS];
	size_t count = 0;

	for (size_t i = 0; i < hash_slots(&client->subscriptions); i++)
		for (struct hash_node *node = hash_slot(&client->subscriptions, i); node != NULL;
		     node = node->next) {
			const struct subscription *subscription =
				CONTAINER_OF(node, struct subscription, by_id);

			if (!subscription->attachment->ended)
				ending[count++] =
					d_subscription_on(&model, number, subscription->stream);
		}
	broker_client_end_subscriptions(client);
	serve_reads();
	d_end(&model, number, ending, count);
	compare();
}

/* As a session ends: what it was told must have been decided before. */
static void disconnect(int number)
{
	struct connection *connection = &connections[number];

	if (connection->client == NULL)
		return;
	note("%d disconnects\n", number);
	end_subscriptions(number);
	commit(one_in(8) ? STORE_FULL : STORE_OK);
	broker_client_wait_committed(connection->client);
	ASSERT(connection->in_set == NULL && connection->held == 0);
	broker_client_free(&connection->client);
}

/* --- a run ----------------------------------------------------------------------------------- */

static struct broker_channel_settings channel_settings[D_CHANNELS];
static struct broker_settings settings;

static void draw_settings(void)
{
	static const uint64_t messages[] = {0, 0, 1, 3, 6}, bytes[] = {0, 0, 150, 300, 800};
	static const uint64_t attempts[] = {0, 1, 2, 3}, deferred[] = {1, 2, 1000};
	static const uint64_t consumers[] = {1, 2, 256}, caches[] = {0, 500, 1000000};
	static const uint64_t keys[] = {1, 3, 1000};
	static const int64_t ages[] = {0, 0, 1000, 5000}, waits[] = {50, 300, 1000};
	static const int64_t delays[] = {20, 100}, delays_max[] = {20, 150, 1000};
	static const int64_t expiries[] = {0, 0, 800, 3000};

	for (int c = 0; c < D_CHANNELS; c++) {
		struct broker_channel_settings *of = &channel_settings[c];

		*of = (struct broker_channel_settings){
			.name = channel_names[c],
			.dedup_window_ms = 1500,
			.dedup_max_keys = DRAW_OF(keys),
			.durable = true,
			.stored =
				{
					.max_age_ms = DRAW_OF(ages),
					.max_messages = DRAW_OF(messages),
					.max_bytes = c == D_CHANNELS - 1 ? 0 : DRAW_OF(bytes),
					.discard = one_in(2),
					.ack_wait_ms = DRAW_OF(waits),
					.redelivery_delay_ms = DRAW_OF(delays),
					.redelivery_delay_max_ms = DRAW_OF(delays_max),
					.max_attempts = DRAW_OF(attempts),
					.ordered = one_in(4),
					.max_deferred = DRAW_OF(deferred),
					.max_consumers = DRAW_OF(consumers),
					.consumer_expiry_ms = DRAW_OF(expiries),
				},
		};
		memset(of->schema_id, 'A' + c, sizeof(of->schema_id));
		if (c < D_CHANNELS - 1 && !one_in(3))
			of->stored.dead_letter = channel_names[D_CHANNELS - 1];
		model.channels[c].settings = *of;
		model.channels[c].dead_letter =
			of->stored.dead_letter == NULL ? -1 : D_CHANNELS - 1;
		note("channel %d: age %" PRId64 ", messages %" PRIu64 ", bytes %" PRIu64
		     "%s, ack_wait %" PRId64 ", delay %" PRId64 "..%" PRId64 ", attempts %" PRIu64
		     "%s, deferred %" PRIu64 ", consumers %" PRIu64 ", expiry %" PRId64
		     ", keys %" PRIu64 "%s\n",
		     c, of->stored.max_age_ms, of->stored.max_messages, of->stored.max_bytes,
		     of->stored.discard ? ", discard" : "", of->stored.ack_wait_ms,
		     of->stored.redelivery_delay_ms, of->stored.redelivery_delay_max_ms,
		     of->stored.max_attempts, of->stored.ordered ? ", ordered" : "",
		     of->stored.max_deferred, of->stored.max_consumers,
		     of->stored.consumer_expiry_ms, of->dedup_max_keys,
		     of->stored.dead_letter != NULL ? ", dead letters" : "");
	}
	settings = (struct broker_settings){
		.reply_timeout_ms = 1000,
		.reply_timeout_max_ms = 1000,
		.channels = channel_settings,
		.channel_count = D_CHANNELS,
		.max_commit_bytes = 100000000,
		.max_commit_bytes_per_connection = 10000000,
		.cache_bytes = DRAW_OF(caches),
	};
}

static struct store_ops keeping_ops;
static void (*memory_close)(struct store *store);

/* A clean stop: what it leaves in the store is what the next start finds. */
static void keep_and_close(struct store *closed)
{
	char words[128];
	struct text error = TEXT_INIT(words);

	if (kept_store == NULL)
		ASSERT(store_memory_copy(closed, &kept_store, &error));
	memory_close(closed);
}

static void start(void)
{
	const char *error;

	memory_close = store->ops->close;
	keeping_ops = *store->ops;
	keeping_ops.close = keep_and_close;
	store->ops = &keeping_ops;
	broker = broker_new(&settings, 1, store, &error);
	if (broker == NULL)
		disagree("the broker does not start: %s", error);
	look_into_store();
}

/* The connections end; of a crash they are told nothing more. */
static void restart(bool crash)
{
	char words[128];
	struct text error = TEXT_INIT(words);

	if (crash && model.unsure)
		return;
	if (crash) {
		note("crash\n");
		ASSERT(store_memory_copy(store, &kept_store, &error));
		for (int i = 0; i < D_CLIENTS; i++)
			connections[i].deaf = true;
		for (int i = 0; i < D_CLIENTS; i++) {
			if (connections[i].client != NULL)
				broker_client_end_subscriptions(connections[i].client);
			serve_reads();
		}
		run_batch(STORE_OK);
		for (int i = 0; i < D_CLIENTS; i++)
			if (connections[i].client != NULL)
				broker_client_free(&connections[i].client);
		for (int i = 0; i < model.subscription_count; i++) {
			model.subscriptions[i].live = false;
			model.subscriptions[i].ended = true;
			model.subscriptions[i].owed_count = 0;
		}
		memset(connections, 0, sizeof(connections));
	} else {
		for (int i = 0; i < D_CLIENTS; i++)
			disconnect(i);
		note("restart\n");
	}
	if (!crash)
		commit_all();
	broker_free(&broker);
	store = kept_store;
	kept_store = NULL;
	start();
	d_restart(&model);
	compare();
}

static void operate(void)
{
	unsigned which = draw(100);

	if (which < 22)
		publish();
	else if (which < 34)
		subscribe();
	else if (which < 37)
		unsubscribe();
	else if (which < 64)
		answer();
	else if (which < 80)
		commit(one_in(15) ? STORE_FULL : STORE_OK);
	else if (which < 94)
		advance(DRAW_OF(((const int64_t[]){1, 10, 40, 100, 300, 1600})));
	else if (which < 96)
		remove_consumer();
	else if (which < 98)
		disconnect((int)draw(D_CLIENTS));
	else if (one_in(2))
		restart(one_in(2));
	compare();
}

static void run(void)
{
	unsigned count;
	char words[128];
	struct text error = TEXT_INIT(words);

	chance = seed;
	for (int i = 0; i < 4; i++)
		(void)draw(2);
	memset(&model, 0, sizeof(model));
	memset(connections, 0, sizeof(connections));
	memset(ids, 0, sizeof(ids));
	seen.count = 0;
	next_publish = 1;
	next_tag = 0;
	fake_now_ns = 1000 * NS_PER_S;
	model.now_ms = now_ms();
	model.seen = &seen;
	model.ending = -1;
	history_file = open_memstream(&history, &history_length);
	ASSERT(history_file != NULL);
	draw_settings();
	ASSERT(store_open_memory(&store, &error));
	start();
	count = 1 + draw(OPERATIONS_MAX);
	for (unsigned i = 0; i < count && model.item_count + 8 < D_ITEMS; i++)
		operate();
	restart(false);
	broker_free(&broker);
	store_close(&kept_store);
	fclose(history_file);
	free(history);
}

static uint64_t number_from(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value == NULL ? otherwise : strtoull(value, NULL, 10);
}

int main(void)
{
	uint64_t runs = number_from("MODEL_RUNS", RUNS), first = number_from("MODEL_SEED", 1);

	verbose = number_from("MODEL_VERBOSE", 0) != 0;
	for (uint64_t i = 0; i < runs; i++) {
		seed = first + i;
		run();
	}
	printf("%" PRIu64 " runs\n1 passed, 0 failed\n", runs);
	return 0;
}
