/*
 * What consumers answer: Accept, Defer, Reject, and the confirmations that were asked for, which
 * keep the order of their requests on each subscription.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

#include "base/metrics.h"

/* Bytes of a Reject's reason that are kept. */
#define REASON_MAX 1024

/* --- confirmations ------------------------------------------------------------------------- */

void attachment_confirm_locked(struct attachment *attachment, struct flush_set *set)
{
	while (!list_empty(&attachment->owed)) {
		struct owed *owed = LIST_ENTRY(attachment->owed.next, struct owed, in_attachment);
		struct client *client = attachment->client;

		if (!owed->ready)
			return;
		client->sink->ops->confirm(client->sink, &owed->confirmation, true, set);
		list_remove(&owed->in_attachment);
		list_remove(&owed->in_batch);
		attachment_unref(&owed->attachment);
		free(owed);
		committer_settle(client, 0);
	}
}

/* An answer on its way, as the wire has it. */
struct answer {
	struct attachment *attachment;
	enum answer_kind kind;
	struct span id;
	bool working, confirm;
};

/* A confirmation behind those that are owed; NULL: no memory. */
static struct owed *answer_owe_locked(const struct answer *answer, const char *refused, bool ready)
{
	struct attachment *attachment = answer->attachment;
	struct sink *sink = attachment->client->sink;
	struct owed *owed = calloc(1, sizeof(*owed) + answer->id.length);

	if (owed == NULL)
		return NULL;
	list_init(&owed->in_batch);
	owed->attachment = attachment_ref(attachment);
	owed->ready = ready;
	if (answer->id.length > 0)
		memcpy(owed->id, answer->id.data, answer->id.length);
	owed->confirmation.id = (struct span){owed->id, answer->id.length};
	owed->confirmation.stream = attachment->stream;
	owed->confirmation.kind = answer->kind;
	owed->confirmation.working = answer->working;
	owed->confirmation.refused = refused;
	list_append(&attachment->owed, &owed->in_attachment);
	sink->ops->owe_confirmation(sink, answer->id.length);
	committer_owe(attachment->client);
	return owed;
}

/* The answer's fate is known: REFUSED, or NULL. */
static void answer_settle_locked(const struct answer *answer, const char *refused,
				 struct flush_set *set)
{
	struct attachment *attachment = answer->attachment;
	struct sink *sink = attachment->client->sink;

	if (!answer->confirm)
		return;
	if (!list_empty(&attachment->owed) && answer_owe_locked(answer, refused, true) != NULL)
		return;
	sink->ops->confirm(sink,
			   &(struct confirmation){.stream = attachment->stream,
						  .kind = answer->kind,
						  .working = answer->working,
						  .id = answer->id,
						  .refused = refused},
			   false, set);
}

/* --- answers ------------------------------------------------------------------------------- */

/* The number in decimal, without sign or leading zeros. */
static bool parse_sequence(struct span text, uint64_t *sequence)
{
	uint64_t value = 0;

	*sequence = 0;
	if (text.length == 0 || text.data[0] == '0')
		return false;
	for (size_t i = 0; i < text.length; i++) {
		unsigned digit = (unsigned)text.data[i] - '0';

		if (digit > 9 || value > (UINT64_MAX - digit) / 10)
			return false;
		value = value * 10 + digit;
	}
	*sequence = value;
	return true;
}

#define STALE_NOT_OUTSTANDING "stale: no such delivery is outstanding on this subscription"

static void answer_stale_locked(const struct answer *answer, struct flush_set *set)
{
	answer->attachment->journal->stale_answers++;
	answer_settle_locked(answer, STALE_NOT_OUTSTANDING, set);
}

/* Accept ..N: every outstanding delivery up to N; false: there is none. */
static bool answer_accept_up_to_locked(struct attachment *attachment, uint64_t sequence)
{
	int64_t limit = sequence > INT64_MAX ? INT64_MAX : (int64_t)sequence;
	struct deadline *taken;
	bool any = false;

	while ((taken = deadlines_take_due(&attachment->outstanding, limit)) != NULL) {
		entry_answer_locked(CONTAINER_OF(taken, struct entry, by_attachment),
				    ENTRY_ANSWERED);
		any = true;
	}
	return any;
}

/* What a commit decides is owed a confirmation then. */
static bool answer_await_locked(const struct answer *answer, struct owed **owed,
				struct flush_set *set)
{
	*owed = NULL;
	if (!answer->confirm)
		return true;
	*owed = answer_owe_locked(answer, NULL, false);
	if (*owed == NULL) {
		answer_settle_locked(answer, "over-capacity: the server is out of memory", set);
		return false;
	}
	list_append(&answer->attachment->journal->owed, &(*owed)->in_batch);
	return true;
}

static struct entry *answer_entry_locked(const struct answer *answer, uint64_t sequence)
{
	struct entry *entry = consumer_entry_locked(answer->attachment->consumer, sequence);

	return entry != NULL && entry->state == ENTRY_OUTSTANDING &&
			       entry->attachment == answer->attachment
		       ? entry
		       : NULL;
}

static struct buf *copy_reason(struct span text)
{
	size_t length = utf8_cut(text.data, text.length, REASON_MAX);
	struct buf *copy = length == 0 ? NULL : buf_new(length);

	if (copy != NULL)
		memcpy(copy->data, text.data, length);
	return copy;
}

static void answer_apply_locked(const struct answer *answer, struct span text,
				struct flush_set *set)
{
	struct attachment *attachment = answer->attachment;
	bool up_to = answer->kind == ANSWER_ACCEPT && answer->id.length > 2 &&
		     answer->id.data[0] == '.' && answer->id.data[1] == '.';
	struct span digits = {answer->id.data + (up_to ? 2 : 0),
			      answer->id.length - (up_to ? 2 : 0)};
	struct entry *entry = NULL;
	struct deadline *first;
	struct owed *owed;
	uint64_t sequence;

	if (!attachment->live || attachment->consumer == NULL ||
	    !parse_sequence(digits, &sequence)) {
		answer_stale_locked(answer, set);
		return;
	}
	if (up_to) {
		first = attachment->outstanding.root; /* the lowest one */
		if (first == NULL || (uint64_t)first->when_ns > sequence)
			answer_stale_locked(answer, set);
		else if (answer_await_locked(answer, &owed, set))
			(void)answer_accept_up_to_locked(attachment, sequence);
		return;
	}
	entry = answer_entry_locked(answer, sequence);
	if (entry == NULL) {
		answer_stale_locked(answer, set);
		return;
	}
	switch (answer->kind) {
	case ANSWER_ACCEPT:
		if (answer_await_locked(answer, &owed, set))
			entry_answer_locked(entry, ENTRY_ANSWERED);
		break;
	case ANSWER_DEFER:
		if (answer->working) {
			entry_set_timer_locked(entry, attachment->journal->settings.ack_wait_ms);
		} else {
			entry_take_off_locked(entry);
			entry_defer_locked(entry);
		}
		answer_settle_locked(answer, NULL, set);
		break;
	case ANSWER_REJECT:
		if (!answer_await_locked(answer, &owed, set))
			break;
		entry->rejected = true;
		entry->owed = owed;
		entry->text = copy_reason(text);
		entry_answer_locked(entry, ENTRY_REJECTED);
		break;
	}
}

void broker_answer(struct client *client, uint32_t stream, enum answer_kind kind, struct span id,
		   bool working, bool confirm, struct span text, struct flush_set *set)
{
	struct subscription *subscription = client_durable_subscription(client, stream);
	struct answer answer = {
		.kind = kind,
		.id = id,
		.working = working && kind == ANSWER_DEFER,
		.confirm = confirm,
	};
	struct channel *channel;

	if (subscription == NULL) {
		metric_add(METRIC_FRAMES_SKIPPED, 1);
		if (confirm)
			client->sink->ops->confirm(
				client->sink,
				&(struct confirmation){.stream = stream,
						       .kind = kind,
						       .working = answer.working,
						       .id = id,
						       .refused = "stale: no durable subscription "
								  "is on this stream"},
				false, set);
		return;
	}
	answer.attachment = subscription->attachment;
	channel = answer.attachment->journal->channel;
	mutex_lock(&channel->lock);
	answer_apply_locked(&answer, text, set);
	if (answer.attachment->live)
		attachment_pump_locked(answer.attachment, set);
	mutex_unlock(&channel->lock);
}
