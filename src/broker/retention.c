/*
 * Retention: what is kept.
 *
 * A message is held while some named consumer has not acknowledged it. Publishes are judged by what
 * is held: with when_full = refuse they are refused over a bound, with discard the oldest held ones
 * are given up. What is kept beyond the bounds, and held by nobody, is removed afterwards, oldest
 * first: rows from the front at once, a part of a row by moving `first`, and rows in whose middle
 * something is held every CLEAR_MS, by writing them anew without what is done with.
 */
#include "broker/journal.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

/* Rows that one step looks at. */
#define STEP_ROWS 32

/* From the end of one walk through all of them to the next, and between its steps. */
#define CLEAR_MS 500
#define CLEAR_STEP_MS 5

static const struct ranges *consumer_done(const struct consumer *consumer)
{
	return consumer->changing ? &consumer->next : &consumer->done;
}

#define FOR_EACH_CONSUMER(consumer, journal)                                                       \
	for (struct list *node_ = (journal)->consumer_list.next;                                   \
	     node_ != &(journal)->consumer_list &&                                                 \
	     ((consumer) = LIST_ENTRY(node_, struct consumer, in_journal), true);                  \
	     node_ = node_->next)

/* The first message from SEQUENCE on that the consumer holds. One that waits for a time to come
 * holds nothing of what the batch adds before that. */
static uint64_t consumer_next_held(const struct consumer *consumer, uint64_t sequence)
{
	const struct journal *journal = consumer->journal;
	uint64_t missing = ranges_next_missing(consumer_done(consumer), sequence);

	if (missing > journal->stored.last && journal->work.time_ms < consumer->from_ms)
		return UINT64_MAX;
	return missing;
}

/* The first message from SEQUENCE on that somebody holds. */
static uint64_t journal_next_held(const struct journal *journal, uint64_t sequence)
{
	uint64_t held = journal->work.channel.last + 1;
	struct consumer *consumer;

	FOR_EACH_CONSUMER(consumer, journal)
	{
		uint64_t next = consumer_next_held(consumer, sequence);

		if (next < held)
			held = next;
	}
	return held;
}

bool retention_holds(const struct journal *journal, uint64_t sequence)
{
	struct consumer *consumer;

	FOR_EACH_CONSUMER(consumer, journal)
	{
		if (consumer_next_held(consumer, sequence) == sequence)
			return true;
	}
	return false;
}

/* The first sequence from SEQUENCE on that is in the set, or UINT64_MAX. */
static uint64_t ranges_next(const struct ranges *ranges, uint64_t sequence)
{
	if (sequence <= ranges->floor)
		return sequence;
	for (size_t low = 0, high = ranges->count;;) {
		size_t middle = low + (high - low) / 2;

		if (low == high)
			return low == ranges->count		    ? UINT64_MAX
			       : ranges->items[low].from > sequence ? ranges->items[low].from
								    : sequence;
		if (ranges->items[middle].to < sequence)
			low = middle + 1;
		else
			high = middle;
	}
}

/* The first message from SEQUENCE on that nobody holds. */
static uint64_t journal_next_done(const struct journal *journal, uint64_t sequence)
{
	struct consumer *consumer;
	uint64_t previous;

	do {
		previous = sequence;
		FOR_EACH_CONSUMER(consumer, journal)
		{
			sequence = ranges_next(consumer_done(consumer), sequence);
			if (sequence == UINT64_MAX)
				return sequence;
		}
	} while (sequence != previous);
	return sequence;
}

/* --- what a message is charged --------------------------------------------------------------- */

enum store_result retention_look(struct committer *committer, struct journal *journal,
				 uint64_t sequence)
{
	if (journal->oldest != NULL && journal->oldest->first <= sequence &&
	    sequence <= journal->oldest->last)
		return STORE_OK;
	segment_unref(&journal->oldest);
	return commit_segment(committer, journal, sequence, &journal->oldest);
}

static uint64_t segment_charge(const struct segment *segment, size_t index)
{
	struct stored stored;

	segment_get(segment, index, &stored);
	return envelope_charge(stored.envelope.length);
}

/* 0 when it is not kept. */
static enum store_result journal_charge(struct committer *committer, struct journal *journal,
					uint64_t sequence, uint64_t *charged, int64_t *time_ms)
{
	const struct journal_work *work = &journal->work;
	enum store_result result;
	size_t index;

	*charged = 0;
	*time_ms = committer->now_ms;
	if (sequence > journal->stored.last) { /* of this batch */
		index = (size_t)(sequence - journal->stored.last - 1);
		if (index < work->record_count)
			*charged = envelope_charge(work->records[index].envelope.length);
		return STORE_OK;
	}
	result = retention_look(committer, journal, sequence);
	if (result == STORE_NONE)
		return STORE_OK;
	if (result != STORE_OK)
		return result;
	index = segment_find(journal->oldest, sequence);
	if (index < journal->oldest->count &&
	    segment_sequence(journal->oldest, index) == sequence) {
		*charged = segment_charge(journal->oldest, index);
		*time_ms = journal->oldest->time_ms;
	}
	return STORE_OK;
}

/* --- held ---------------------------------------------------------------------------------- */

static void journal_let_go(struct journal *journal, uint64_t charged)
{
	struct journal_work *work = &journal->work;

	if (work->held > 0)
		work->held--;
	work->held_bytes -= charged < work->held_bytes ? charged : work->held_bytes;
}

/* A message that its last consumer has acknowledged. */
static enum store_result journal_done(struct committer *committer, struct journal *journal,
				      const struct entry *entry)
{
	const struct store_channel *channel = &journal->work.channel;
	uint64_t charged = entry->charged;
	enum store_result result;
	int64_t time_ms;

	if (entry->sequence < channel->first || entry->sequence > channel->last ||
	    retention_holds(journal, entry->sequence))
		return STORE_OK;
	if (charged == 0) {
		result = journal_charge(committer, journal, entry->sequence, &charged, &time_ms);
		if (result != STORE_OK)
			return result;
	}
	journal_let_go(journal, charged);
	return STORE_OK;
}

enum store_result retention_done(struct committer *committer, struct consumer *consumer,
				 struct entry **entries, size_t count)
{
	uint64_t *sequences = calloc(count, sizeof(*sequences));
	enum store_result result = STORE_OK;
	size_t added = 0;

	if (sequences == NULL)
		return STORE_MEMORY;
	for (size_t i = 0; i < count; i++) {
		if (entries[i]->stuck || ranges_contain(&consumer->next, entries[i]->sequence))
			continue;
		sequences[added] = entries[i]->sequence;
		entries[added++] = entries[i];
	}
	if (!ranges_add_all(&consumer->next, sequences, added))
		result = STORE_MEMORY;
	for (size_t i = 0; i < added && result == STORE_OK; i++)
		result = journal_done(committer, consumer->journal, entries[i]);
	free(sequences);
	return result;
}

/* Gives up the oldest message that is held: every consumer skips it. */
static enum store_result journal_discard(struct committer *committer, struct journal *journal,
					 uint64_t sequence)
{
	struct consumer *consumer;
	enum store_result result;
	uint64_t charged;
	int64_t time_ms;

	result = journal_charge(committer, journal, sequence, &charged, &time_ms);
	if (result != STORE_OK)
		return result;
	FOR_EACH_CONSUMER(consumer, journal)
	{
		if (consumer_next_held(consumer, sequence) != sequence)
			continue;
		result = commit_change(consumer);
		if (result != STORE_OK)
			return result;
		if (!ranges_add(&consumer->next, sequence))
			return STORE_MEMORY;
		consumer->discarding++;
	}
	journal_let_go(journal, charged);
	return STORE_OK;
}

static bool over(uint64_t value, uint64_t more, uint64_t bound)
{
	return bound > 0 && (more > bound || value > bound - more);
}

enum store_result retention_admit(struct committer *committer, struct journal *journal,
				  uint64_t charged, const char **refused)
{
	const struct broker_durable_settings *settings = &journal->work.settings;
	struct journal_work *work = &journal->work;

	*refused = NULL;
	if (charged > STORE_ROW_LIMIT / 2) {
		*refused = "over-capacity: the message is larger than the store can keep";
		return STORE_OK;
	}
	if (over(0, charged, settings->max_bytes)) {
		*refused = journal->full_text[2];
		return STORE_OK;
	}
	for (;;) {
		bool messages = over(work->held, 1, settings->max_messages);
		enum store_result result;
		uint64_t oldest;

		if (!messages && !over(work->held_bytes, charged, settings->max_bytes))
			return STORE_OK;
		oldest = journal_next_held(journal, work->channel.first);
		if (!settings->discard || oldest > work->channel.last) {
			*refused = journal->full_text[messages ? 0 : 1];
			return STORE_OK;
		}
		result = journal_discard(committer, journal, oldest);
		if (result != STORE_OK)
			return result;
	}
}

/* Where a count of charged bytes is, in the row from FIRST to LAST; none yet when LAST is 0. */
struct charge_walk {
	uint64_t first, last;
	size_t index;	 /* of its messages, the next one that is not counted */
	uint64_t before; /* charged bytes of all messages ever before that one, but for */
	uint64_t gone;	 /* what is not in the row any more */
};

/* Charged bytes of all messages ever before SEQUENCE, which rises: no row is looked at twice. */
static enum store_result walk_to(struct committer *committer, struct journal *journal,
				 struct charge_walk *walk, uint64_t sequence, uint64_t *before)
{
	struct store *store = committer->store;
	enum store_result result;

	*before = journal->stored.charged;
	if (sequence > journal->stored.last)
		return STORE_OK;
	if (sequence > walk->last) {
		struct store_row row;

		result = store->ops->row_read(store, journal->stored.number, sequence, false, &row);
		if (result != STORE_OK)
			return result == STORE_NONE ? STORE_OK : result;
		*walk = (struct charge_walk){row.first, row.last, 0, row.before, 0};
		if (row.sparse) {
			uint64_t left = row.before + row.charged, end = journal->stored.charged;

			result = store->ops->row_read(store, journal->stored.number, row.last + 1,
						      false, &row);
			if (result != STORE_OK && result != STORE_NONE)
				return result;
			walk->gone = (result == STORE_OK ? row.before : end) - left;
		}
	}
	if (sequence > walk->first) {
		const struct segment *segment;

		result = retention_look(committer, journal, sequence);
		if (result != STORE_OK)
			return result;
		segment = journal->oldest;
		for (; walk->index < segment->count &&
		       segment_sequence(segment, walk->index) < sequence;
		     walk->index++)
			walk->before += segment_charge(segment, walk->index);
	}
	*before = walk->before;
	return STORE_OK;
}

static int range_compare(const void *a, const void *b)
{
	const struct range *left = a, *right = b;

	return left->from < right->from ? -1 : left->from > right->from;
}

/* Every range that some consumer has not acknowledged, in no order, overlapping. */
static struct range *journal_missing(const struct journal *journal, size_t *count)
{
	uint64_t last = journal->stored.last;
	struct consumer *consumer;
	struct range *missing;
	size_t total = 0;

	*count = 0;
	FOR_EACH_CONSUMER(consumer, journal)
	{
		total += consumer->done.count + 1;
	}
	missing = malloc(total * sizeof(*missing) + 1);
	if (missing == NULL)
		return NULL;
	FOR_EACH_CONSUMER(consumer, journal)
	{
		uint64_t from = consumer->done.floor + 1;

		if (from < journal->stored.first)
			from = journal->stored.first;
		for (size_t i = 0; i <= consumer->done.count && from <= last; i++) {
			bool end = i == consumer->done.count;
			uint64_t to = end ? last : consumer->done.items[i].from - 1;

			if (from <= to)
				missing[(*count)++] = (struct range){from, to < last ? to : last};
			if (!end && consumer->done.items[i].to >= from)
				from = consumer->done.items[i].to + 1;
		}
	}
	return missing;
}

/*
 * The usual cases without looking at each gap: nobody holds anything; or some consumer has
 * acknowledged nothing that is kept, and so holds all of it. False: neither is so.
 */
static bool journal_recount_simply(struct journal *journal)
{
	struct journal_work *work = &journal->work;
	const struct store_channel *stored = &journal->stored;
	struct consumer *consumer;

	work->held = work->held_bytes = 0;
	if (stored->first > stored->last)
		return true;
	FOR_EACH_CONSUMER(consumer, journal)
	{
		if (consumer->done.floor < stored->first && consumer->done.count == 0) {
			work->held = stored->kept;
			work->held_bytes = stored->kept_charged;
			return true;
		}
	}
	FOR_EACH_CONSUMER(consumer, journal)
	{
		if (consumer->done.floor < stored->last)
			return false;
	}
	return true;
}

enum store_result retention_recount(struct committer *committer, struct journal *journal)
{
	enum store_result result = STORE_OK;
	uint64_t held = 0, held_bytes = 0, counted = 0;
	struct charge_walk walk = {.last = 0};
	struct range *missing;
	size_t count;

	if (journal_recount_simply(journal))
		return STORE_OK;
	missing = journal_missing(journal, &count);
	if (missing == NULL)
		return STORE_MEMORY;
	qsort(missing, count, sizeof(*missing), range_compare);
	for (size_t i = 0; i < count && result == STORE_OK; i++) {
		uint64_t from = missing[i].from > counted ? missing[i].from : counted + 1;
		uint64_t to = missing[i].to, before, after, charged;
		int64_t time_ms;

		/* One stretch out of all that touch. */
		while (i + 1 < count && missing[i + 1].from <= to + 1) {
			i++;
			if (missing[i].to > to)
				to = missing[i].to;
		}
		if (from > to)
			continue;
		result = walk_to(committer, journal, &walk, from, &before);
		/* What is gone from its first row is not in the stretch, which is kept. */
		if (to > walk.last)
			before += walk.gone;
		if (result == STORE_OK)
			result = walk_to(committer, journal, &walk, to, &after);
		if (result == STORE_OK)
			result = journal_charge(committer, journal, to, &charged, &time_ms);
		if (result != STORE_OK)
			break;
		held += to - from + 1;
		held_bytes += after + charged - before;
		counted = to;
	}
	free(missing);
	journal->work.held = held;
	journal->work.held_bytes = held_bytes;
	return result;
}

enum store_result retention_skip_holes(struct committer *committer, struct journal *journal,
				       struct ranges *done)
{
	uint64_t last = journal->stored.last, next = done->floor + 1;

	if (next < journal->stored.first)
		next = journal->stored.first;
	if (journal->stored.kept == last + 1 - journal->stored.first)
		return STORE_OK; /* there are none */
	while (next <= last) {
		enum store_result result = retention_look(committer, journal, next);
		const struct segment *segment = journal->oldest;
		uint64_t end = result == STORE_NONE ? last : segment->last;

		if (result != STORE_OK && result != STORE_NONE)
			return result;
		for (; next <= end; next++) {
			size_t index = result == STORE_NONE ? 0 : segment_find(segment, next);

			if (result == STORE_OK && index < segment->count &&
			    segment_sequence(segment, index) == next)
				continue;
			if (!ranges_add(done, next))
				return STORE_MEMORY;
		}
	}
	return STORE_OK;
}

/* --- removing ------------------------------------------------------------------------------ */

static bool journal_is_over(const struct committer *committer, const struct journal *journal,
			    int64_t time_ms)
{
	const struct broker_durable_settings *settings = &journal->work.settings;
	const struct store_channel *channel = &journal->work.channel;

	return over(channel->kept, 0, settings->max_messages) ||
	       over(channel->kept_charged, 0, settings->max_bytes) ||
	       (settings->max_age_ms > 0 && committer->now_ms - time_ms >= settings->max_age_ms);
}

static void journal_forget(struct journal *journal, uint64_t charged)
{
	struct store_channel *channel = &journal->work.channel;

	channel->kept--;
	channel->kept_charged -= charged;
}

/* Removes from the front of the first row what is over and held by nobody. *REMOVED: something
 * was. */
static enum store_result journal_trim_front(struct committer *committer, struct journal *journal,
					    bool *removed)
{
	struct store *store = committer->store;
	struct store_channel *channel = &journal->work.channel;
	enum store_result result;
	uint64_t held;
	size_t index;

	*removed = false;
	if (channel->first > journal->stored.last)
		return STORE_OK; /* what this batch adds stays for now */
	result = retention_look(committer, journal, channel->first);
	if (result != STORE_OK)
		return result == STORE_NONE ? STORE_OK : result;
	if (journal->oldest->first > channel->first)
		channel->first = journal->oldest->first;
	held = journal_next_held(journal, channel->first);
	for (index = segment_find(journal->oldest, channel->first); index < journal->oldest->count;
	     index++) {
		uint64_t sequence = segment_sequence(journal->oldest, index);

		if (sequence >= held ||
		    !journal_is_over(committer, journal, journal->oldest->time_ms))
			break;
		journal_forget(journal, segment_charge(journal->oldest, index));
		channel->first = sequence + 1;
		*removed = true;
	}
	if (index < journal->oldest->count)
		return STORE_OK;
	channel->first = journal->oldest->last + 1;
	*removed = true;
	committer->reclaim = true;
	result = store->ops->row_remove(store, channel->number, journal->oldest->first);
	segment_unref(&journal->oldest);
	return result;
}

/* Writes a row anew without what is over and held by nobody. */
static enum store_result journal_clear_row(struct committer *committer, struct journal *journal)
{
	struct store *store = committer->store;
	const struct segment *old = journal->oldest;
	struct store_row row = {
		.first = old->first, .last = old->last, .time_ms = old->time_ms, .sparse = true};
	struct charge_walk walk = {.last = 0};
	enum store_result result;
	size_t used = 0;

	result = walk_to(committer, journal, &walk, old->first, &row.before);
	if (result != STORE_OK)
		return result;
	row.data = buf_new(old->data->length + old->count * 8);
	if (row.data == NULL)
		return STORE_MEMORY;
	for (size_t i = 0; i < old->count; i++) {
		uint64_t sequence = segment_sequence(old, i), charged = segment_charge(old, i);
		const uint8_t *record = old->data->data + old->offsets[i] + (old->sparse ? 8 : 0);
		size_t length = (i + 1 < old->count ? old->offsets[i + 1] : old->data->length) -
				(size_t)(record - old->data->data);

		if (sequence < journal->work.channel.first)
			continue;
		if (journal_is_over(committer, journal, old->time_ms) &&
		    !retention_holds(journal, sequence)) {
			journal_forget(journal, charged);
			continue;
		}
		put_u64(row.data->data + used, sequence);
		memcpy(row.data->data + used + 8, record, length);
		used += 8 + length;
		row.count++;
		row.charged += charged;
	}
	row.data->length = used;
	committer->reclaim = true;
	if (row.count == 0)
		result = store->ops->row_remove(store, journal->stored.number, row.first);
	else if (row.count < old->count)
		result = store->ops->row_replace(store, journal->stored.number, &row);
	buf_unref(&row.data);
	journal->work.cut = old->last;
	segment_unref(&journal->oldest);
	return result;
}

/* What is done with behind what is held: a step, which goes on where the last one has ended, so
 * that rows of which nothing can be removed do not keep it from the others. */
static enum store_result journal_clear(struct committer *committer, struct journal *journal,
				       bool *more)
{
	uint64_t first = journal->work.channel.first, next = journal->clear_from;

	next = journal_next_done(journal, next > first ? next : first);
	journal->clear_from = 0;
	for (size_t i = 0; i < STEP_ROWS && next <= journal->stored.last; i++) {
		enum store_result result = retention_look(committer, journal, next);
		uint64_t last;

		if (result != STORE_OK)
			return result == STORE_NONE ? STORE_OK : result;
		if (!journal_is_over(committer, journal, journal->oldest->time_ms))
			return STORE_OK;
		if (journal->oldest->first > next) { /* that is gone already */
			next = journal_next_done(journal, journal->oldest->first);
			continue;
		}
		last = journal->oldest->last;
		result = journal_clear_row(committer, journal);
		if (result != STORE_OK)
			return result;
		next = journal_next_done(journal, last + 1);
	}
	*more = next <= journal->stored.last;
	if (*more)
		journal->clear_from = next;
	return STORE_OK;
}

/* With when_full = discard what is too old goes, held or not. */
static enum store_result journal_discard_old(struct committer *committer, struct journal *journal)
{
	const struct broker_durable_settings *settings = &journal->work.settings;

	if (settings->max_age_ms == 0 || !settings->discard)
		return STORE_OK;
	for (;;) {
		uint64_t oldest = journal_next_held(journal, journal->work.channel.first), charged;
		enum store_result result;
		int64_t time_ms;

		if (oldest > journal->stored.last)
			return STORE_OK;
		result = journal_charge(committer, journal, oldest, &charged, &time_ms);
		if (result != STORE_OK)
			return result;
		if (committer->now_ms - time_ms < settings->max_age_ms)
			return STORE_OK;
		result = journal_discard(committer, journal, oldest);
		if (result != STORE_OK)
			return result;
	}
}

enum store_result retention_sweep(struct committer *committer, struct journal *journal,
				  int64_t *again_ns)
{
	int64_t now_ns = clock_mono_ns();
	enum store_result result;
	bool removed = true, more = false;

	*again_ns = DEADLINE_NEVER;
	result = journal_discard_old(committer, journal);
	/* What new consumers begin with is theirs: they are asked the next time. */
	if (result == STORE_OK && journal->work.added > 0) {
		*again_ns = now_ns;
		return STORE_OK;
	}
	for (size_t i = 0; i < STEP_ROWS && removed && result == STORE_OK; i++)
		result = journal_trim_front(committer, journal, &removed);
	if (result != STORE_OK)
		return result;
	if (removed) {
		*again_ns = now_ns;
		return STORE_OK;
	}
	if (journal->consumer_count == 0)
		return STORE_OK;
	if (now_ns < journal->clear_ns) {
		*again_ns = journal->clear_ns;
		return STORE_OK;
	}
	result = journal_clear(committer, journal, &more);
	journal->clear_ns = clock_after_ms(now_ns, more ? CLEAR_STEP_MS : CLEAR_MS);
	if (more)
		*again_ns = journal->clear_ns;
	return result;
}

/* When the oldest message that can go by its age does; DEADLINE_NEVER. */
static int64_t journal_age_due_ms(struct committer *committer, struct journal *journal,
				  const struct broker_durable_settings *settings, int64_t now_ms)
{
	struct store *store = committer->store;
	uint64_t next = journal->stored.first;

	if (settings->max_age_ms == 0)
		return INT64_MAX;
	if (settings->max_age_ms != journal->aged_ms)
		journal->aged = 0;
	journal->aged_ms = settings->max_age_ms;
	if (!settings->discard)
		next = journal_next_done(journal, next > journal->aged ? next : journal->aged);
	while (next <= journal->stored.last) {
		struct store_row row;

		if (store->ops->row_read(store, journal->stored.number, next, false, &row) !=
		    STORE_OK)
			return INT64_MAX;
		/* A row with gaps that is due has been cleared; acknowledgements bring the next
		 * look at it. */
		if (!row.sparse || now_ms - row.time_ms < settings->max_age_ms)
			return row.time_ms + settings->max_age_ms;
		journal->aged = row.last + 1;
		next = journal_next_done(journal, row.last + 1);
	}
	return INT64_MAX;
}

int64_t retention_next_ns(struct committer *committer, struct journal *journal)
{
	struct broker_durable_settings settings;
	int64_t next_ms = INT64_MAX, due_ms, now_ms = clock_wall_ms();
	struct consumer *consumer;

	mutex_lock(&journal->channel->lock);
	settings = journal->settings;
	FOR_EACH_CONSUMER(consumer, journal)
	{
		int64_t idle_ms = consumer->idle_since_ms;

		if (settings.consumer_expiry_ms > 0 && idle_ms > 0 &&
		    idle_ms + settings.consumer_expiry_ms < next_ms)
			next_ms = idle_ms + settings.consumer_expiry_ms;
	}
	mutex_unlock(&journal->channel->lock);
	due_ms = journal_age_due_ms(committer, journal, &settings, now_ms);
	if (due_ms < next_ms)
		next_ms = due_ms;
	if (next_ms == INT64_MAX)
		return DEADLINE_NEVER;
	if (next_ms > now_ms)
		return clock_after_ms(clock_mono_ns(), next_ms - now_ms);
	/* What is due already waits for the next step of clearing. */
	return journal->clear_ns;
}
