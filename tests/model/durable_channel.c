#include "durable_channel.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void pump_channel(struct d_model *model, int channel);

void d_say(struct d_said *said, const char *format, ...)
{
	size_t room = sizeof(said->text) - said->length;
	va_list arguments;
	int length;

	va_start(arguments, format);
	length = vsnprintf(said->text + said->length, room, format, arguments);
	va_end(arguments);
	ASSERT(length >= 0 && (size_t)length < room);
	said->length += (size_t)length;
}

/* --- looking --------------------------------------------------------------------------------- */

int d_subscription_on(const struct d_model *model, int client, uint32_t stream)
{
	for (int i = model->subscription_count - 1; i >= 0; i--)
		if (model->subscriptions[i].client == client &&
		    model->subscriptions[i].stream == stream && !model->subscriptions[i].ended)
			return i;
	return -1;
}

int d_live_of(const struct d_model *model, int channel, int consumer)
{
	int count = 0;

	for (int i = 0; i < model->subscription_count; i++)
		count += model->subscriptions[i].live &&
			 model->subscriptions[i].channel == channel &&
			 model->subscriptions[i].consumer == consumer;
	return count;
}

bool d_done(const struct d_channel *channel, const struct d_consumer *consumer, uint64_t sequence)
{
	(void)channel;
	return sequence < consumer->start || consumer->done[sequence];
}

bool d_done_by_all(const struct d_channel *channel, uint64_t sequence)
{
	for (int i = 0; i < D_NAMES; i++)
		if (channel->consumers[i].exists &&
		    !d_done(channel, &channel->consumers[i], sequence))
			return false;
	return true;
}

static uint64_t outstanding_on(const struct d_model *model, int subscription)
{
	const struct d_subscription *on = &model->subscriptions[subscription];
	const struct d_channel *channel = &model->channels[on->channel];
	uint64_t count = 0;

	for (uint64_t i = 1; i <= channel->last; i++) {
		const struct d_entry *entry = &channel->consumers[on->consumer].entries[i];

		count += entry->state == D_OUTSTANDING && entry->subscription == subscription;
	}
	return count;
}

/* Answers that wait for their commit give credit back, but no more than max_in_flight of them. */
static uint64_t credit_of(const struct d_model *model, int subscription)
{
	const struct d_subscription *on = &model->subscriptions[subscription];
	uint64_t used = outstanding_on(model, subscription);

	if (on->answering > on->max_in_flight)
		used += on->answering - on->max_in_flight;
	return used < on->max_in_flight ? on->max_in_flight - used : 0;
}

/* --- what waits for a commit ----------------------------------------------------------------- */

static void set_dirty(struct d_model *model, int channel)
{
	if (!model->channels[channel].dirty)
		model->dirty_order[model->dirty_count++] = channel;
	model->channels[channel].dirty = true;
}

static void hand_over(struct d_model *model, int channel, int consumer, uint64_t sequence,
		      enum d_state state)
{
	struct d_channel *of = &model->channels[channel];
	struct d_entry *entry = &of->consumers[consumer].entries[sequence];

	entry->state = state;
	entry->moment = model->moment;
	of->answered[of->answered_count].consumer = consumer;
	of->answered[of->answered_count].settled = false;
	of->answered[of->answered_count++].sequence = sequence;
	set_dirty(model, channel);
}

/* A delivery has ended, and the message is not done with. */
static void give_back(struct d_model *model, int channel, int consumer, uint64_t sequence,
		      bool defer)
{
	const struct broker_durable_settings *settings = &model->channels[channel].settings.stored;
	struct d_consumer *of = &model->channels[channel].consumers[consumer];
	struct d_entry *entry = &of->entries[sequence];
	int64_t delay_ms = settings->redelivery_delay_ms;

	entry->tried = of->dirty = true;
	entry->subscription = -1;
	set_dirty(model, channel);
	if (settings->max_attempts > 0 && entry->attempts >= settings->max_attempts) {
		hand_over(model, channel, consumer, sequence, D_DYING);
		return;
	}
	entry->state = defer ? D_DEFERRED : D_DUE;
	for (uint64_t i = 1; i < entry->attempts && delay_ms < settings->redelivery_delay_max_ms;
	     i++)
		delay_ms *= 2;
	if (delay_ms > settings->redelivery_delay_max_ms)
		delay_ms = settings->redelivery_delay_max_ms;
	entry->due_ms = model->now_ms + delay_ms;
}

/* --- confirmations --------------------------------------------------------------------------- */

static void confirm_ready(struct d_model *model, struct d_subscription *on)
{
	size_t gone = 0;

	for (; gone < on->owed_count && on->owed[gone].ready; gone++)
		d_say(&model->clients[on->client].ends[on->stream], "%s%s, ",
		      on->owed[gone].refused == NULL ? on->owed[gone].text : on->owed[gone].refusal,
		      on->owed[gone].refused == NULL ? "" : on->owed[gone].refused);
	memmove(on->owed, on->owed + gone, (on->owed_count - gone) * sizeof(on->owed[0]));
	on->owed_count -= gone;
}

/* WAITS: for a commit; otherwise its fate is known, and only what is in front of it holds it up. */
static void confirm(struct d_model *model, struct d_subscription *on, enum answer_kind kind,
		    const char *id, bool working, const char *refused, bool waits)
{
	static const char *const words[] = {"accept", "defer", "reject"};
	struct d_owed *owed = &on->owed[on->owed_count++];

	ASSERT(on->owed_count <= D_OWED);
	snprintf(owed->text, sizeof(owed->text), "%s %s%s", words[kind], id,
		 working ? " working" : "");
	snprintf(owed->refusal, sizeof(owed->refusal), "reject %s ", id);
	owed->refused = refused;
	owed->ready = !waits;
	owed->waits = waits;
	confirm_ready(model, on);
}

/* Of the channel: those that wait for the commit are decided. */
static void settle_channel(struct d_model *model, int channel, const char *refused)
{
	for (int i = 0; i < model->subscription_count; i++) {
		struct d_subscription *on = &model->subscriptions[i];

		if (on->channel != channel)
			continue;
		for (size_t j = 0; j < on->owed_count; j++) {
			if (!on->owed[j].waits)
				continue;
			on->owed[j].waits = false;
			on->owed[j].ready = true;
			if (refused != NULL)
				on->owed[j].refused = refused;
		}
		confirm_ready(model, on);
	}
}

/* --- giving out ------------------------------------------------------------------------------ */

static struct d_delivery *next_seen(struct d_model *model, int channel, int consumer)
{
	for (size_t i = 0; i < model->seen->count; i++) {
		struct d_delivery *seen = &model->seen->deliveries[i];
		int on = d_subscription_on(model, seen->client, seen->stream);

		if (!seen->used && on >= 0 && model->subscriptions[on].channel == channel &&
		    model->subscriptions[on].consumer == consumer)
			return seen;
	}
	return NULL;
}

static void check_delivery(struct d_model *model, int channel, struct d_delivery *seen, bool again)
{
	const struct d_message *message = &model->channels[channel].messages[seen->sequence];

	if (seen->again != again)
		disagree("#%" PRIu64 " of channel %d is delivered with the flag %d", seen->sequence,
			 channel, seen->again);
	if (seen->id != message->id)
		disagree("#%" PRIu64 " of channel %d is delivered with another id", seen->sequence,
			 channel);
	if (seen->tag != message->tag)
		disagree("#%" PRIu64 " of channel %d has another payload", seen->sequence, channel);
	if (message->publisher < 0 ? seen->origin != message->origin ||
					     seen->origin_sequence != message->origin_sequence ||
					     seen->schema != message->origin
				   : seen->origin >= 0 || seen->schema != channel)
		disagree("#%" PRIu64 " of channel %d has another origin or schema", seen->sequence,
			 channel);
	if (message->publisher == seen->client && !seen->acked)
		disagree("#%" PRIu64 " of channel %d is delivered before its PublishAck",
			 seen->sequence, channel);
	seen->used = true;
}

/* The next one that nobody has had; 0: none, or not now. */
static uint64_t next_new(const struct d_channel *channel, const struct d_consumer *consumer)
{
	const struct broker_durable_settings *settings = &channel->settings.stored;
	uint64_t next = 0, deferred = 0, entries = 0;

	for (uint64_t i = channel->last; i > 0; i--) {
		enum d_state state = consumer->entries[i].state;

		if (state == D_NONE && !d_done(channel, consumer, i) && channel->messages[i].kept)
			next = i;
		entries += state != D_NONE;
		deferred += state == D_DEFERRED || state == D_STUCK;
	}
	if ((settings->ordered && entries > 0) || deferred >= settings->max_deferred)
		return 0;
	return next;
}

static uint64_t count_due(const struct d_channel *channel, const struct d_consumer *consumer)
{
	uint64_t count = 0;

	for (uint64_t i = 1; i <= channel->last; i++)
		count += consumer->entries[i].state == D_DUE;
	return count;
}

/* But that of the client EXCEPT. */
static uint64_t most_credit(const struct d_model *model, int channel, int consumer, int except)
{
	uint64_t most = 0;

	for (int i = 0; i < model->subscription_count; i++) {
		const struct d_subscription *on = &model->subscriptions[i];

		if (on->live && on->channel == channel && on->consumer == consumer &&
		    on->client != except && credit_of(model, i) > most)
			most = credit_of(model, i);
	}
	return most;
}

static void pump_consumer(struct d_model *model, int channel, int consumer)
{
	struct d_channel *of = &model->channels[channel];
	struct d_consumer *to = &of->consumers[consumer];
	uint64_t most;

	while (to->exists && (most = most_credit(model, channel, consumer, -1)) > 0) {
		uint64_t due = count_due(of, to),
			 fresh = due > 0 && !model->mixed ? 0 : next_new(of, to);
		struct d_delivery *seen;
		struct d_entry *entry;
		int on;

		if (due == 0 && fresh == 0)
			return;
		seen = next_seen(model, channel, consumer);
		if (seen == NULL && model->ending >= 0)
			return;
		if (seen == NULL)
			disagree("consumer %d of channel %d should be given a message (%" PRIu64
				 " are due again, the next new one is #%" PRIu64 ")",
				 consumer, channel, due, fresh);
		on = d_subscription_on(model, seen->client, seen->stream);
		if (model->mixed)
			most = credit_of(model, on);
		if (model->ending >= 0)
			most = most_credit(model, channel, consumer, model->ending);
		if (model->ending >= 0 ? credit_of(model, on) < most : credit_of(model, on) != most)
			disagree("#%" PRIu64 " of channel %d went to a subscription with credit "
				 "%" PRIu64 ", another one has %" PRIu64,
				 seen->sequence, channel, credit_of(model, on), most);
		if (credit_of(model, on) == 0 || seen->sequence == 0 || seen->sequence > of->last ||
		    (to->entries[seen->sequence].state != D_DUE && seen->sequence != fresh))
			disagree("consumer %d of channel %d was given #%" PRIu64 " (%d, %" PRIu64
				 " are due again, the next new one is #%" PRIu64 ")",
				 consumer, channel, seen->sequence,
				 (int)to->entries[seen->sequence].state, due, fresh);
		entry = &to->entries[seen->sequence];
		check_delivery(model, channel, seen, entry->attempts > 0);
		to->redeliveries += entry->attempts > 0;
		entry->attempts++;
		entry->state = D_OUTSTANDING;
		entry->subscription = on;
		entry->due_ms = model->now_ms + of->settings.stored.ack_wait_ms;
	}
}

static struct d_delivery *next_seen_on(struct d_model *model, int subscription)
{
	for (size_t i = 0; i < model->seen->count; i++) {
		struct d_delivery *seen = &model->seen->deliveries[i];

		if (!seen->used &&
		    d_subscription_on(model, seen->client, seen->stream) == subscription)
			return seen;
	}
	return NULL;
}

/* Everything that is kept, in order; what is about to be removed may come or not. */
static void pump_reader(struct d_model *model, int subscription)
{
	struct d_subscription *on = &model->subscriptions[subscription];
	const struct d_channel *channel = &model->channels[on->channel];

	for (; on->live && on->next <= channel->last; on->next++) {
		const struct d_message *message = &channel->messages[on->next];
		struct d_delivery *seen;

		if (message->time_ms < on->from_ms)
			continue;
		seen = next_seen_on(model, subscription);
		if (seen != NULL && seen->sequence == on->next)
			check_delivery(model, on->channel, seen, false);
		else if (message->kept)
			disagree("a reader of channel %d should be given #%" PRIu64, on->channel,
				 on->next);
	}
}

static void pump_channel(struct d_model *model, int channel)
{
	for (int i = 0; i < D_NAMES; i++)
		pump_consumer(model, channel, i);
	for (int i = 0; i < model->subscription_count; i++)
		if (model->subscriptions[i].channel == channel &&
		    model->subscriptions[i].consumer == D_READER)
			pump_reader(model, i);
}

/* --- operations ------------------------------------------------------------------------------ */

static struct d_item *add_item(struct d_model *model, enum d_kind kind)
{
	struct d_item *item = &model->items[model->item_count++];

	ASSERT(model->item_count <= D_ITEMS);
	*item = (struct d_item){.kind = kind};
	return item;
}

void d_publish(struct d_model *model, const struct d_item *item)
{
	*add_item(model, D_PUBLISH) = *item;
}

int d_subscribe(struct d_model *model, int client, int channel, uint32_t stream,
		uint64_t max_in_flight, int consumer, uint8_t start, uint64_t value)
{
	struct d_item *item = add_item(model, D_SUBSCRIBE);
	struct d_subscription *on = &model->subscriptions[model->subscription_count];

	ASSERT(model->subscription_count < D_SUBSCRIPTIONS);
	*on = (struct d_subscription){.client = client,
				      .channel = channel,
				      .stream = stream,
				      .consumer = consumer,
				      .max_in_flight = max_in_flight};
	item->client = client;
	item->channel = channel;
	item->consumer = consumer;
	item->subscription = model->subscription_count;
	item->start = start;
	item->value = value;
	return model->subscription_count++;
}

void d_remove(struct d_model *model, int channel, int consumer)
{
	struct d_item *item = add_item(model, D_REMOVE);

	item->channel = channel;
	item->consumer = consumer;
}

void d_unsubscribe(struct d_model *model, int subscription)
{
	struct d_subscription *on = &model->subscriptions[subscription];
	struct d_channel *channel = &model->channels[on->channel];
	struct d_consumer *consumer;
	bool was_live = on->live;

	on->ended = true;
	on->live = false;
	if (!was_live || on->consumer == D_READER)
		return;
	consumer = &channel->consumers[on->consumer];
	model->moment++;
	for (uint64_t i = 1; i <= channel->last; i++)
		if (consumer->entries[i].state == D_OUTSTANDING &&
		    consumer->entries[i].subscription == subscription)
			give_back(model, on->channel, on->consumer, i, false);
	if (d_live_of(model, on->channel, on->consumer) == 0) {
		consumer->idle_since_ms = model->now_ms;
		consumer->dirty = true;
		set_dirty(model, on->channel);
	}
	pump_consumer(model, on->channel, on->consumer);
}

void d_end(struct d_model *model, int client, const int *ending, size_t count)
{
	model->ending = client;
	for (size_t i = 0; i < count; i++)
		d_unsubscribe(model, ending[i]);
	model->ending = -1;
	for (int c = 0; c < D_CHANNELS; c++)
		pump_channel(model, c);
}

static void accept_one(struct d_model *model, struct d_subscription *on, uint64_t sequence)
{
	on->answering++;
	hand_over(model, on->channel, on->consumer, sequence, D_ANSWERED);
}

void d_answer(struct d_model *model, int client, uint32_t stream, enum answer_kind kind,
	      const char *id, bool working, bool confirmed)
{
	bool up_to = kind == ANSWER_ACCEPT && strncmp(id, "..", 2) == 0;
	const char *digits = id + (up_to ? 2 : 0);
	uint64_t sequence = strtoull(digits, NULL, 10);
	int subscription = d_subscription_on(model, client, stream);
	struct d_subscription *on = subscription < 0 ? NULL : &model->subscriptions[subscription];
	struct d_channel *channel;
	struct d_entry *entries;
	bool any = false;

	if (on == NULL) {
		if (confirmed)
			d_say(&model->clients[client].ends[stream], "reject %s stale, ", id);
		return;
	}
	channel = &model->channels[on->channel];
	entries = on->consumer == D_READER ? NULL : channel->consumers[on->consumer].entries;
	if (strspn(digits, "0123456789") == strlen(digits) && *digits != '0' && *digits != '\0' &&
	    strlen(digits) < 20)
		for (uint64_t i = up_to ? 1 : sequence;
		     entries != NULL && i <= sequence && i <= channel->last; i++)
			any |= entries[i].state == D_OUTSTANDING &&
			       entries[i].subscription == subscription;
	model->moment++;
	if (!any) {
		channel->stale_answers++;
		if (confirmed)
			confirm(model, on, kind, id, working, "stale", false);
		return;
	}
	if (kind == ANSWER_DEFER) {
		if (working)
			entries[sequence].due_ms =
				model->now_ms + channel->settings.stored.ack_wait_ms;
		else
			give_back(model, on->channel, on->consumer, sequence, true);
		if (confirmed)
			confirm(model, on, kind, id, working, NULL, false);
	} else {
		if (confirmed)
			confirm(model, on, kind, id, false, NULL, true);
		if (confirmed || kind == ANSWER_REJECT)
			set_dirty(model, on->channel);
	}
	if (kind == ANSWER_REJECT) {
		on->answering++;
		entries[sequence].rejected = true;
		entries[sequence].awaited = confirmed;
		hand_over(model, on->channel, on->consumer, sequence, D_REJECTED);
	}
	if (kind == ANSWER_ACCEPT)
		for (uint64_t i = up_to ? 1 : sequence; i <= sequence && i <= channel->last; i++)
			if (entries[i].state == D_OUTSTANDING &&
			    entries[i].subscription == subscription)
				accept_one(model, on, i);
	pump_consumer(model, on->channel, on->consumer);
}

/* --- time ------------------------------------------------------------------------------------ */

static bool has_timer(const struct d_entry *entry)
{
	return entry->state == D_OUTSTANDING || entry->state == D_DEFERRED ||
	       entry->state == D_STUCK;
}

int64_t d_next_timer(const struct d_model *model)
{
	int64_t next_ms = INT64_MAX;

	for (int c = 0; c < D_CHANNELS; c++)
		for (int k = 0; k < D_NAMES; k++)
			for (uint64_t i = 1; i <= model->channels[c].last; i++) {
				const struct d_entry *entry =
					&model->channels[c].consumers[k].entries[i];

				if (has_timer(entry) && entry->due_ms < next_ms)
					next_ms = entry->due_ms;
			}
	return next_ms;
}

void d_run_timers(struct d_model *model)
{
	model->moment++;
	for (int c = 0; c < D_CHANNELS; c++) {
		struct d_channel *channel = &model->channels[c];
		bool due = false;
		int last = -1;

		for (int k = 0; k < D_NAMES; k++)
			for (uint64_t i = 1; i <= channel->last; i++) {
				struct d_entry *entry = &channel->consumers[k].entries[i];

				if (!has_timer(entry) || entry->due_ms > model->now_ms)
					continue;
				due = true;
				model->mixed |= last >= 0 && last != k;
				last = k;
				if (entry->state == D_OUTSTANDING)
					give_back(model, c, k, i, false);
				else if (entry->state == D_DEFERRED)
					entry->state = D_DUE;
				else
					hand_over(model, c, k, i, D_DYING);
			}
		if (due)
			pump_channel(model, c);
		model->mixed = false;
	}
}

/* --- retention ------------------------------------------------------------------------------- */

static bool is_held(const struct d_channel *channel, uint64_t sequence)
{
	return channel->messages[sequence].kept && !d_done_by_all(channel, sequence);
}

static void discard(struct d_channel *channel, uint64_t sequence)
{
	for (int k = 0; k < D_NAMES; k++) {
		struct d_consumer *consumer = &channel->consumers[k];

		if (!consumer->exists || d_done(channel, consumer, sequence))
			continue;
		consumer->done[sequence] = consumer->changed = true;
		consumer->discarded++;
	}
}

/* NULL: a message of that charge may be added, and what has to go for it has been discarded. */
static const char *admit(struct d_channel *channel, uint64_t charge)
{
	const struct broker_durable_settings *settings = &channel->settings.stored;

	if (settings->max_bytes > 0 && charge > settings->max_bytes)
		return "over-capacity too large";
	for (;;) {
		uint64_t count = 0, bytes = 0, oldest = 0;

		for (uint64_t i = channel->last; i > 0; i--) {
			if (!is_held(channel, i))
				continue;
			count++;
			bytes += channel->messages[i].charge;
			oldest = i;
		}
		if ((settings->max_messages == 0 || count + 1 <= settings->max_messages) &&
		    (settings->max_bytes == 0 || bytes + charge <= settings->max_bytes))
			return NULL;
		if (!settings->discard || oldest == 0)
			return "over-capacity";
		discard(channel, oldest);
	}
}

static uint64_t add_message(struct d_model *model, int channel, uint64_t charge, uint64_t tag)
{
	struct d_channel *to = &model->channels[channel];
	uint64_t sequence = ++to->last;

	ASSERT(sequence < D_SEQUENCES);
	if (model->now_ms > to->time_ms)
		to->time_ms = model->now_ms;
	to->messages[sequence] = (struct d_message){.kept = true,
						    .charge = charge,
						    .tag = tag,
						    .time_ms = to->time_ms,
						    .publisher = -1};
	/* Those who wait for a time to come did not begin with it. */
	for (int k = 0; k < D_NAMES; k++) {
		struct d_consumer *consumer = &to->consumers[k];

		if (!consumer->exists || consumer->from_ms == 0)
			continue;
		consumer->changed = true;
		consumer->done[sequence] = to->time_ms < consumer->from_ms;
	}
	return sequence;
}

/* --- a commit: preparing --------------------------------------------------------------------- */

static void touch(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];

	if (!of->touched)
		of->first_new = of->last + 1;
	of->touched = true;
}

/* The charge of a dead letter: its causal context names where it comes from. */
static uint64_t dead_charge(const struct d_message *message, uint64_t sequence)
{
	char origin[64]; /* channels have names of one letter */

	return message->charge - 2 +
	       (uint64_t)(6 + snprintf(origin, sizeof(origin), "a/%" PRIu64, sequence));
}

/* False: the dead letters have no room for it. */
static bool move(struct d_model *model, int channel, uint64_t sequence)
{
	struct d_channel *of = &model->channels[channel];
	struct d_channel *dead = &model->channels[of->dead_letter];
	struct d_message *message = &of->messages[sequence], *moved;
	uint64_t charge = dead_charge(message, sequence), to;
	const char *refused;

	touch(model, of->dead_letter);
	refused = admit(dead, charge);
	if (refused != NULL)
		return strcmp(refused, "over-capacity too large") == 0;
	to = add_message(model, of->dead_letter, charge, message->tag);
	moved = &dead->messages[to];
	moved->id = message->id;
	moved->origin = channel;
	moved->origin_sequence = sequence;
	return true;
}

/* Those of one batch may have gone in any order. */
static void sort_answered(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];

	const struct d_channel *dead;
	uint64_t first;

	if (of->dead_letter < 0)
		return;
	dead = &model->channels[of->dead_letter];
	first = dead->touched ? dead->first_new : dead->last + 1;
	for (size_t i = 0; i < of->answered_count; i++)
		for (size_t j = i + 1; j < of->answered_count; j++) {
			int ki = of->answered[i].consumer, kj = of->answered[j].consumer;
			uint64_t si = of->answered[i].sequence, sj = of->answered[j].sequence;
			uint64_t at_i, at_j;

			at_i = model->seen->dead(of->dead_letter, channel, si, ki);
			at_j = model->seen->dead(of->dead_letter, channel, sj, kj);
			if (at_j >= first && (at_i < first || at_j < at_i)) {
				of->answered[i].consumer = kj;
				of->answered[i].sequence = sj;
				of->answered[j].consumer = ki;
				of->answered[j].sequence = si;
			}
		}
}

static void prepare_answers(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];

	touch(model, channel);
	sort_answered(model, channel);
	for (size_t i = 0; i < of->answered_count; i++) {
		int k = of->answered[i].consumer;
		uint64_t sequence = of->answered[i].sequence;
		struct d_consumer *consumer = &of->consumers[k];
		struct d_entry *entry = &consumer->entries[sequence];

		consumer->changed = true;
		if (entry->state != D_ANSWERED && of->dead_letter >= 0 &&
		    !move(model, channel, sequence))
			continue;
		consumer->done[sequence] = of->answered[i].settled = true;
	}
	for (int k = 0; k < D_NAMES; k++) {
		of->consumers[k].changed |= of->consumers[k].dirty;
		of->consumers[k].dirty = false;
	}
}

static void prepare_publish(struct d_model *model, struct d_item *item)
{
	struct d_channel *channel = &model->channels[item->channel];
	const struct broker_channel_settings *settings = &channel->settings;

	for (size_t i = 0; i < item->count; i++) {
		const struct d_key *known = NULL;
		size_t gone = 0;

		for (size_t j = 0; j < channel->key_count && item->run[i].key != 0; j++)
			if (channel->keys[j].key == item->run[i].key)
				known = &channel->keys[j];
		if (known != NULL && model->now_ms - known->time_ms < settings->dedup_window_ms) {
			item->run[i].duplicate = true;
			item->run[i].sequence = known->sequence;
			item->run[i].id = known->id;
			continue;
		}
		item->run[i].refused = admit(channel, item->run[i].charge);
		if (item->run[i].refused != NULL)
			continue;
		item->run[i].sequence =
			add_message(model, item->channel, item->run[i].charge, item->run[i].tag);
		item->run[i].id = model->seen->id_of(item->run[i].stream);
		if (item->run[i].id <= model->last_id)
			disagree("message id %" PRIu64 " after %" PRIu64, item->run[i].id,
				 model->last_id);
		model->last_id = item->run[i].id;
		channel->messages[item->run[i].sequence].id = item->run[i].id;
		channel->messages[item->run[i].sequence].publisher = item->client;
		if (item->run[i].key == 0)
			continue;
		channel->keys[channel->key_count++] = (struct d_key){
			item->run[i].key, item->run[i].id, item->run[i].sequence, model->now_ms};
		/* At most four of the old ones are forgotten for each new one. */
		while (gone < 4 && gone < channel->key_count &&
		       (channel->key_count - gone > settings->dedup_max_keys ||
			model->now_ms - channel->keys[gone].time_ms > settings->dedup_window_ms))
			gone++;
		channel->key_count -= gone;
		memmove(channel->keys, channel->keys + gone,
			channel->key_count * sizeof(channel->keys[0]));
	}
}

/* Where it begins. */
static void prepare_start(struct d_channel *channel, struct d_item *item)
{
	uint64_t oldest = 1;

	while (oldest < channel->first_new && !channel->messages[oldest].kept)
		oldest++;
	item->next = oldest;
	if (item->start == 0)
		item->next = channel->last + 1;
	if (item->start == 2 && item->value > oldest)
		item->next = item->value;
	if (item->start != 3)
		return;
	while (item->next < channel->first_new &&
	       channel->messages[item->next].time_ms < (int64_t)item->value)
		item->next++;
	if (item->next == channel->first_new)
		item->from_ms = (int64_t)item->value;
}

static void prepare_subscribe(struct d_model *model, struct d_item *item)
{
	struct d_channel *channel = &model->channels[item->channel];
	uint64_t count = 0;

	if (item->consumer != D_READER) {
		if (channel->consumers[item->consumer].exists) {
			channel->consumers[item->consumer].changed = true;
			return;
		}
		for (size_t i = 0; &model->items[i] != item; i++)
			if (model->items[i].kind == D_SUBSCRIBE && model->items[i].added &&
			    model->items[i].channel == item->channel) {
				if (model->items[i].consumer == item->consumer)
					return;
				count++;
			}
	}
	prepare_start(channel, item);
	if (item->consumer == D_READER)
		return;
	for (int k = 0; k < D_NAMES; k++)
		count += channel->consumers[k].exists;
	if (count >= channel->settings.stored.max_consumers)
		item->refused = "over-capacity";
	else
		item->added = true;
}

/* Somebody subscribes in this batch. */
static bool is_joined(const struct d_model *model, int channel, int consumer)
{
	for (size_t i = 0; i < model->item_count; i++)
		if (model->items[i].kind == D_SUBSCRIBE && model->items[i].channel == channel &&
		    model->items[i].consumer == consumer)
			return true;
	return false;
}

static void prepare_remove(struct d_model *model, struct d_item *item)
{
	struct d_consumer *consumer = &model->channels[item->channel].consumers[item->consumer];

	item->removed = consumer->exists &&
			!(item->expired && is_joined(model, item->channel, item->consumer));
}

/* Consumers that nobody has used for too long. */
static void add_expired(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];
	int64_t expiry_ms = of->settings.stored.consumer_expiry_ms;

	for (int k = 0; k < D_NAMES && expiry_ms > 0; k++) {
		if (!of->consumers[k].exists || d_live_of(model, channel, k) > 0 ||
		    model->now_ms - of->consumers[k].idle_since_ms < expiry_ms)
			continue;
		d_remove(model, channel, k);
		model->items[model->item_count - 1].expired = true;
	}
}

static void discard_old(struct d_model *model, struct d_channel *channel)
{
	const struct broker_durable_settings *settings = &channel->settings.stored;

	if (settings->max_age_ms == 0 || !settings->discard)
		return;
	for (uint64_t i = 1; i < channel->first_new; i++)
		if (is_held(channel, i) &&
		    model->now_ms - channel->messages[i].time_ms >= settings->max_age_ms)
			discard(channel, i);
}

/* What a restart would find of the consumer. */
static void store_consumer(struct d_model *model, int channel, int k)
{
	struct d_channel *of = &model->channels[channel];
	struct d_consumer *consumer = &of->consumers[k];
	struct d_stored *stored = &consumer->stored;

	consumer->changed = false;
	stored->exists = true;
	stored->start = consumer->start;
	stored->from_ms = consumer->from_ms;
	stored->idle_since_ms = d_live_of(model, channel, k) > 0 || is_joined(model, channel, k)
					? 0
					: consumer->idle_since_ms;
	memcpy(stored->done, consumer->done, sizeof(stored->done));
	for (uint64_t i = 1; i <= of->last; i++) {
		const struct d_entry *entry = &consumer->entries[i];
		bool open = entry->state == D_OUTSTANDING || entry->state == D_ANSWERED ||
			    entry->state == D_REJECTED;

		stored->states[i] = D_NONE;
		if (entry->state == D_NONE || !entry->tried || consumer->done[i])
			continue;
		stored->states[i] =
			entry->state == D_DYING || entry->state == D_STUCK ? D_DYING : D_DUE;
		stored->attempts[i] = entry->attempts - (open && entry->attempts > 0);
		stored->rejected[i] = entry->rejected;
	}
}

static void prepare(struct d_model *model, bool sweep)
{
	if (sweep)
		for (int c = 0; c < D_CHANNELS; c++) {
			set_dirty(model, c);
			add_expired(model, c);
		}
	for (size_t i = 0; i < model->dirty_count; i++)
		prepare_answers(model, model->dirty_order[i]);
	for (size_t i = 0; i < model->item_count; i++) {
		struct d_item *item = &model->items[i];

		touch(model, item->channel);
		if (item->kind == D_PUBLISH)
			prepare_publish(model, item);
		else if (item->kind == D_SUBSCRIBE)
			prepare_subscribe(model, item);
		else
			prepare_remove(model, item);
	}
	for (int c = 0; c < D_CHANNELS; c++) {
		if (!model->channels[c].touched)
			continue;
		discard_old(model, &model->channels[c]);
		for (int k = 0; k < D_NAMES; k++)
			if (model->channels[c].consumers[k].exists &&
			    model->channels[c].consumers[k].changed)
				store_consumer(model, c, k);
	}
}

/* --- a commit: what follows ------------------------------------------------------------------ */

static void forget_entry(struct d_entry *entry)
{
	*entry = (struct d_entry){.subscription = -1};
}

/* They are handed over no more, whatever comes of them. */
static void end_answering(struct d_model *model, struct d_channel *channel)
{
	for (size_t i = 0; i < channel->answered_count; i++) {
		struct d_entry *entry = &channel->consumers[channel->answered[i].consumer]
						 .entries[channel->answered[i].sequence];

		if (entry->state == D_ANSWERED || entry->state == D_REJECTED)
			model->subscriptions[entry->subscription].answering--;
	}
}

static void apply_answers(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];

	end_answering(model, of);
	for (size_t i = 0; i < of->answered_count; i++) {
		int k = of->answered[i].consumer;
		uint64_t sequence = of->answered[i].sequence;
		struct d_consumer *consumer = &of->consumers[k];
		struct d_entry *entry = &consumer->entries[sequence];

		if (entry->state != D_ANSWERED && of->answered[i].settled) {
			consumer->dead_rejected += entry->rejected;
			consumer->dead_attempts += !entry->rejected;
		}
		if (of->answered[i].settled) {
			forget_entry(entry);
			continue;
		}
		/* The dead letters had no room. Its own confirmation is refused. */
		for (size_t j = 0; entry->awaited && entry->state == D_REJECTED &&
				   j < model->subscriptions[entry->subscription].owed_count;
		     j++) {
			struct d_owed *owed = &model->subscriptions[entry->subscription].owed[j];
			char text[64];

			snprintf(text, sizeof(text), "reject %" PRIu64, sequence);
			if (owed->waits && strcmp(owed->text, text) == 0)
				owed->refused = "over-capacity";
		}
		entry->state = D_STUCK;
		entry->tried = consumer->dirty = true;
		entry->awaited = false;
		entry->subscription = -1;
		entry->due_ms = model->now_ms + of->settings.stored.redelivery_delay_max_ms;
		set_dirty(model, channel);
	}
	of->answered_count = 0;
	/* What retention has discarded is nobody's any more. */
	for (int k = 0; k < D_NAMES; k++)
		for (uint64_t i = 1; i <= of->last; i++)
			if (of->consumers[k].done[i] && of->consumers[k].entries[i].state != D_NONE)
				forget_entry(&of->consumers[k].entries[i]);
	for (int k = 0; k < D_NAMES; k++)
		if (of->time_ms >= of->consumers[k].from_ms && of->first_new <= of->last)
			of->consumers[k].from_ms = 0;
	settle_channel(model, channel, NULL);
}

static void apply_publish(struct d_model *model, struct d_item *item)
{
	bool delivered = false;

	for (int k = 0; k < D_NAMES; k++)
		delivered |= d_live_of(model, item->channel, k) > 0;
	for (size_t i = 0; i < item->count; i++) {
		if (item->run[i].refused != NULL)
			d_say(&model->clients[item->client].answers, "ack %u %s, ",
			      item->run[i].stream, item->run[i].refused);
		else
			d_say(&model->clients[item->client].answers,
			      "ack %u #%" PRIu64 " m%" PRIu64 "%s, ", item->run[i].stream,
			      item->run[i].sequence, item->run[i].id,
			      item->run[i].duplicate ? " duplicate"
			      : delivered	     ? " delivered"
						     : "");
	}
}

static void apply_subscribe(struct d_model *model, struct d_item *item)
{
	struct d_subscription *on = &model->subscriptions[item->subscription];
	struct d_channel *channel = &model->channels[item->channel];
	struct d_consumer *consumer =
		item->consumer == D_READER ? NULL : &channel->consumers[item->consumer];

	d_say(&model->clients[item->client].answers, "subscribed %u %s, ", on->stream,
	      item->refused == NULL ? "ok" : item->refused);
	if (item->refused != NULL) {
		on->ended = true;
		return;
	}
	if (item->added) {
		memset(consumer, 0, sizeof(*consumer));
		consumer->exists = true;
		consumer->start = item->next;
		consumer->from_ms = item->from_ms;
		for (uint64_t i = 1; i <= channel->last; i++) {
			forget_entry(&consumer->entries[i]);
			consumer->done[i] = !channel->messages[i].kept ||
					    channel->messages[i].time_ms < item->from_ms;
		}
		store_consumer(model, item->channel, item->consumer);
		consumer->stored.idle_since_ms = 0;
		if (channel->time_ms >= consumer->from_ms && channel->first_new <= channel->last)
			consumer->from_ms = 0;
	}
	on->next = item->next;
	on->from_ms = item->from_ms;
	on->live = !on->ended;
	if (consumer == NULL)
		return;
	if (on->live)
		consumer->idle_since_ms = 0;
	else if (d_live_of(model, item->channel, item->consumer) == 0) {
		consumer->idle_since_ms = model->now_ms;
		consumer->dirty = true;
		set_dirty(model, item->channel);
	}
}

static void apply_remove(struct d_model *model, struct d_item *item)
{
	struct d_consumer *consumer = &model->channels[item->channel].consumers[item->consumer];

	if (!item->removed)
		return;
	for (int i = 0; i < model->subscription_count; i++) {
		struct d_subscription *on = &model->subscriptions[i];

		if (!on->live || on->channel != item->channel || on->consumer != item->consumer)
			continue;
		on->live = false;
		on->ended = true;
		d_say(&model->clients[on->client].ends[on->stream], "ended consumer removed, ");
	}
	memset(consumer, 0, sizeof(*consumer));
}

/* Removing what is over the bounds and done with has its time; what is removed must be that. */
static void check_removed(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];
	const struct broker_durable_settings *settings = &of->settings.stored;
	uint64_t count = 0, bytes = 0, youngest = 0;

	for (uint64_t i = 1; i <= of->last; i++) {
		struct d_message *message = &of->messages[i];
		bool kept = model->seen->kept(channel, i), was = message->kept;

		if (kept && !was)
			disagree("#%" PRIu64 " of channel %d is back", i, channel);
		message->kept = kept;
		count += kept;
		bytes += kept ? message->charge : 0;
		if (kept || !was)
			continue;
		if (!d_done_by_all(of, i))
			disagree("#%" PRIu64 " of channel %d is gone, and not acknowledged", i,
				 channel);
		if (settings->max_age_ms == 0 ||
		    model->now_ms - message->time_ms < settings->max_age_ms)
			youngest = i;
	}
	if (youngest > 0 && (settings->max_messages == 0 || count + 1 <= settings->max_messages) &&
	    (settings->max_bytes == 0 ||
	     bytes + of->messages[youngest].charge <= settings->max_bytes))
		disagree("#%" PRIu64 " of channel %d is gone, and no bound was exceeded", youngest,
			 channel);
}

static void apply(struct d_model *model)
{
	for (int c = 0; c < D_CHANNELS; c++)
		if (model->channels[c].touched)
			apply_answers(model, c);
	for (size_t i = 0; i < model->item_count; i++) {
		if (model->items[i].kind == D_PUBLISH)
			apply_publish(model, &model->items[i]);
		else if (model->items[i].kind == D_SUBSCRIBE)
			apply_subscribe(model, &model->items[i]);
		else
			apply_remove(model, &model->items[i]);
	}
	for (int c = 0; c < D_CHANNELS; c++) {
		check_removed(model, c);
		pump_channel(model, c);
	}
}

/* --- a commit: its failure ------------------------------------------------------------------- */

static void fail_answers(struct d_model *model, int channel)
{
	struct d_channel *of = &model->channels[channel];
	struct d_answered answered[D_SEQUENCES];
	size_t count = of->answered_count;

	end_answering(model, of);
	memcpy(answered, of->answered, sizeof(answered));
	of->answered_count = 0;
	for (size_t i = 0; i < count; i++) {
		int k = answered[i].consumer;
		uint64_t sequence = answered[i].sequence;
		struct d_entry *entry = &of->consumers[k].entries[sequence];

		entry->awaited = false;
		if (entry->state == D_DYING) {
			entry->state = D_STUCK;
			entry->tried = of->consumers[k].dirty = true;
			set_dirty(model, channel);
			entry->due_ms = model->now_ms + of->settings.stored.redelivery_delay_max_ms;
			continue;
		}
		entry->rejected = false;
		if (model->subscriptions[entry->subscription].live) {
			entry->state = D_OUTSTANDING;
			entry->due_ms = model->now_ms + of->settings.stored.ack_wait_ms;
		} else {
			give_back(model, channel, k, sequence, false);
		}
	}
	settle_channel(model, channel, "store-full");
}

static void fail(struct d_model *model, bool sweep)
{
	int order[D_CHANNELS];
	size_t count = 0;

	model->unsure = true;
	if (sweep)
		for (int c = 0; c < D_CHANNELS; c++)
			set_dirty(model, c);
	count = model->dirty_count;
	memcpy(order, model->dirty_order, sizeof(order));
	model->dirty_count = 0;
	for (int c = 0; c < D_CHANNELS; c++)
		model->channels[c].dirty = false;
	model->moment++;
	for (size_t i = 0; i < count; i++)
		fail_answers(model, order[i]);
	for (size_t i = 0; i < model->item_count; i++) {
		struct d_item *item = &model->items[i];

		for (size_t j = 0; item->kind == D_PUBLISH && j < item->count; j++)
			d_say(&model->clients[item->client].answers, "ack %u store-full, ",
			      item->run[j].stream);
		if (item->kind == D_SUBSCRIBE) {
			d_say(&model->clients[item->client].answers, "subscribed %u store-full, ",
			      model->subscriptions[item->subscription].stream);
			model->subscriptions[item->subscription].ended = true;
		}
	}
	for (int c = 0; c < D_CHANNELS; c++)
		pump_channel(model, c);
}

void d_commit(struct d_model *model, enum store_result result, bool sweep)
{
	if (result == STORE_OK) {
		prepare(model, sweep);
		model->dirty_count = 0;
		for (int c = 0; c < D_CHANNELS; c++)
			model->channels[c].dirty = false;
		apply(model);
		if (sweep)
			model->unsure = false;
	} else {
		fail(model, sweep);
	}
	for (int c = 0; c < D_CHANNELS; c++)
		model->channels[c].touched = false;
	model->item_count = 0;
}

/* --- a restart ------------------------------------------------------------------------------- */

static void load_consumer(struct d_model *model, int channel, int k)
{
	struct d_channel *of = &model->channels[channel];
	struct d_consumer *consumer = &of->consumers[k];
	struct d_stored stored = consumer->stored;

	memset(consumer, 0, sizeof(*consumer));
	consumer->stored = stored;
	if (!stored.exists)
		return;
	consumer->exists = true;
	consumer->start = stored.start;
	consumer->from_ms = stored.from_ms;
	consumer->idle_since_ms = stored.idle_since_ms == 0 ? model->now_ms : stored.idle_since_ms;
	if (stored.idle_since_ms == 0) {
		consumer->dirty = true;
		set_dirty(model, channel);
	}
	memcpy(consumer->done, stored.done, sizeof(consumer->done));
	for (uint64_t i = 1; i < D_SEQUENCES; i++) {
		struct d_entry *entry = &consumer->entries[i];

		forget_entry(entry);
		if (stored.states[i] == D_NONE)
			continue;
		entry->attempts = stored.attempts[i];
		entry->tried = true;
		entry->rejected = stored.rejected[i];
		if (stored.states[i] == D_DYING)
			hand_over(model, channel, k, i, D_DYING);
		else
			entry->state = D_DUE;
	}
}

void d_restart(struct d_model *model)
{
	model->moment++;
	model->dirty_count = model->item_count = 0;
	for (int c = 0; c < D_CHANNELS; c++) {
		struct d_channel *channel = &model->channels[c];

		channel->dirty = false;
		channel->answered_count = 0;
		channel->stale_answers = 0;
		for (int k = 0; k < D_NAMES; k++)
			load_consumer(model, c, k);
	}
}
