/*
 * Durable channels: what the files of that part share.
 *
 * A `journal` is what a durable channel has besides its subscriptions: its messages in the store,
 * the newest of them in memory (the tail), and its consumers. The committer thread owns the store
 * and is the only one that changes what is committed; sessions hand it work and take what memory
 * already has.
 *
 *   journal.c         opening, the tail, where a cursor finds its next message
 *   consumers.c       subscriptions of consumers, and who gets which message
 *   entries.c         what becomes of a message that was given out
 *   consumer_answers.c  Accept, Defer, Reject, and their confirmations
 *   consumer_state.c  a consumer's position as it is stored
 *   durable.c         what sessions call
 *   committer.c       the queue to the committer, its bounds, the thread
 *   prepare.c, prepare_answers.c  one batch, within its transaction
 *   commit.c          the transaction, and what follows from it
 *   retention.c       what is kept: judging publishes, giving room back
 *   ranges.c          a set of sequences
 *
 * Locks: CHANNEL guards a journal, its consumers and their subscriptions; COMMIT the committer's
 * queues. What is marked "committer" is touched by that thread only, and what is marked "committer
 * changes it" is changed by that thread only, under CHANNEL, so that it alone may read it without.
 */
#ifndef BROKER_JOURNAL_H
#define BROKER_JOURNAL_H

#include "broker/broker_priv.h"
#include "broker/ranges.h"
#include "store/store.h"

struct attachment;
struct committer;
struct consumer;
struct entry;
struct journal;

/* --- messages in memory --------------------------------------------------------------------- */

/* A row of the store. Immutable; it lives while the tail or a cursor refers to it. */
struct segment {
	atomic_uint references;
	uint64_t first, last;
	int64_t time_ms;
	size_t count;
	bool sparse;
	struct buf *data;
	uint32_t offsets[]; /* of the records in `data` */
};

/* Takes over row->data. NULL: no memory, or the row is damaged (*DAMAGED). */
struct segment *segment_new(const struct journal *journal, struct store_row *row, bool *damaged);
struct segment *segment_ref(struct segment *segment);
void segment_unref(struct segment **segment);

/* The place of the first message from SEQUENCE on; count when there is none. */
size_t segment_find(const struct segment *segment, uint64_t sequence);
uint64_t segment_sequence(const struct segment *segment, size_t index);
void segment_get(const struct segment *segment, size_t index, struct stored *stored);

static inline uint32_t get_u32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
}

static inline void put_u32(uint8_t *bytes, uint32_t value)
{
	bytes[0] = (uint8_t)(value >> 24);
	bytes[1] = (uint8_t)(value >> 16);
	bytes[2] = (uint8_t)(value >> 8);
	bytes[3] = (uint8_t)value;
}

static inline uint64_t get_u64(const uint8_t *bytes)
{
	return (uint64_t)get_u32(bytes) << 32 | get_u32(bytes + 4);
}

static inline void put_u64(uint8_t *bytes, uint64_t value)
{
	put_u32(bytes, (uint32_t)(value >> 32));
	put_u32(bytes + 4, (uint32_t)value);
}

/* What max_bytes is charged for an envelope: payload, causal context and 64. */
static inline uint64_t envelope_charge(size_t envelope)
{
	return envelope - 40 + 64;
}

/* CHANNEL. Where a reader or consumer is, and the row that it is reading. */
struct cursor {
	uint64_t next;		       /* sequence */
	struct segment *segment;       /* where it was found, or NULL */
	uint64_t gap_from, gap_to;     /* nothing is kept from here to there; gap_to 0: no matter */
	struct attachment *attachment; /* whose it is: a reader's, */
	struct consumer *consumer;     /* or a consumer's */

	/* COMMIT */
	struct list in_reads; /* waits for the committer to read from the store */
};

enum cursor_result { CURSOR_FOUND, CURSOR_END, CURSOR_READING };

/*
 * The first kept message from cursor->next on, if memory has it: *SEGMENT and *INDEX. CURSOR_END:
 * there is none yet. CURSOR_READING: it is being read from the store; whoever waits is pumped then.
 */
enum cursor_result cursor_find_locked(struct journal *journal, struct cursor *cursor,
				      struct segment **segment, size_t *index);
void cursor_init(struct cursor *cursor, uint64_t next);
void cursor_close_locked(struct journal *journal, struct cursor *cursor);

/* --- consumers and their subscriptions ------------------------------------------------------- */

/*
 * A durable subscription. Its references: its subscription, the committer's items, entries that
 * were answered on it, confirmations that are owed.
 */
struct attachment {
	atomic_uint references;
	struct journal *journal;
	struct client *client; /* not to be used once the client has been freed */
	uint64_t subscription; /* its id */
	uint32_t stream;
	uint64_t max_in_flight;

	/* CHANNEL */
	bool live;
	bool ended;		      /* before, or since */
	bool full;		      /* the sink has not taken all */
	struct consumer *consumer;    /* NULL: a reader */
	struct list in_owner;	      /* consumer->attachments or journal->readers */
	struct deadline by_credit;    /* in consumer->available: may take a message */
	uint64_t turn;		      /* its last one */
	struct deadlines outstanding; /* entries, by sequence */
	uint64_t outstanding_count;
	uint64_t answering; /* answered, and not committed */
	struct list owed;   /* confirmations, in order */
	struct cursor cursor;
	int64_t from_ms; /* a reader's: older messages are not for it */

	/* COMMIT */
	struct list in_client; /* while it is live */
};

/* A larger max_in_flight counts as this. */
#define MAX_IN_FLIGHT 65536

struct attachment *attachment_ref(struct attachment *attachment);
void attachment_unref(struct attachment **attachment);

/* A confirmation that stands in line. */
struct owed {
	struct list in_attachment;
	struct list in_batch; /* while a commit decides it */
	struct attachment *attachment;
	struct confirmation confirmation;
	bool ready;
	bool held_back; /* from a batch that has enough to do */
	uint8_t id[];	/* as it was given */
};

enum entry_state {
	ENTRY_READY,	   /* in consumer->ready */
	ENTRY_OUTSTANDING, /* on `attachment` */
	ENTRY_ANSWERED,	   /* accepted; the committer has, or gets, it */
	ENTRY_REJECTED,	   /* likewise */
	ENTRY_DEFERRED,	   /* until its timer */
	ENTRY_DYING,	   /* given up; the committer has, or gets, it */
	ENTRY_STUCK,	   /* given up, but it could not be moved; until its timer */
};

/* CHANNEL. A message that a consumer has been given, and has not done with. */
struct entry {
	struct hash_node by_sequence;
	enum entry_state state;
	bool in_batch; /* the committer is at it */
	struct consumer *consumer;
	uint64_t sequence;
	uint64_t attempts; /* deliveries that were begun */
	uint64_t charged;  /* by max_bytes; 0: not known */
	struct attachment *attachment;
	struct deadline by_attachment; /* when_ns is the sequence */
	struct deadline timer;
	struct list in_state; /* ready, or journal->answered, or the batch's */
	struct list in_tried;
	bool rejected;	   /* why it is given up; otherwise its attempts are used up */
	bool stuck;	   /* committer: it cannot be moved now */
	const char *fate;  /* committer: for the log, when it is given up */
	struct owed *owed; /* of its Reject */
	struct buf *text;  /* of its Reject; NULL: none */
};

struct consumer {
	struct hash_node by_name;
	struct list in_journal;
	struct journal *journal;
	uint64_t number; /* in the store */
	size_t name_length;
	char name[256];

	/* CHANNEL, committer changes it */
	struct ranges done; /* acknowledged, and committed */

	/* CHANNEL */
	struct cursor cursor, again; /* of new messages; of those that are due again */
	struct hash entries;	     /* by sequence */
	struct list ready;	     /* oldest first */
	struct list tried;	     /* a delivery of them has ended: their attempts are stored */
	struct list attachments;     /* live ones */
	struct deadlines available;  /* of those: the one whose turn it is comes first */
	uint64_t turns;		     /* that were given */
	uint64_t attachment_count;
	uint64_t outstanding, deferred; /* deferred: and stuck */
	int64_t idle_since_ms;		/* 0: it has live subscriptions */
	struct list in_dirty;		/* journal->dirty: to be stored */
	uint64_t redeliveries, discarded, dead_rejected, dead_attempts;

	/* committer */
	int64_t from_ms; /* older messages count as acknowledged; 0: no matter */
	bool joining;	 /* by the batch: somebody subscribes */
	bool removing;	 /* by the batch */
	bool changing;	 /* by the batch: */
	struct ranges next;
	uint64_t discarding;
	struct list in_changing;
};

/* --- journals -------------------------------------------------------------------------------- */

/* A message that a batch adds to a journal. */
struct record {
	struct span envelope;
	uint64_t id;
	uint8_t flags;
	struct buf *owned; /* a copy that goes with the record; NULL: the item has it */
};

/* committer: what a batch makes of a journal. */
struct journal_work {
	bool touched;
	struct broker_durable_settings settings; /* as they were when it was touched */
	struct journal *dead_letter;
	int64_t dedup_window_ms;
	uint64_t dedup_max_keys;
	struct store_channel channel;
	int64_t time_ms; /* of the messages that it adds */
	uint64_t held, held_bytes;
	struct record *records;
	size_t record_count, record_capacity;
	struct segment **segments; /* of the rows made of them */
	size_t segment_count, segment_capacity;
	struct list changing; /* consumers */
	struct list entries;  /* answered ones */
	struct list owed;
	uint64_t cut;	/* what the tail has up to here is not as it is stored */
	uint64_t added; /* consumers */
	bool recount;	/* consumers have come or gone */
	uint64_t hits;	/* keys that were known */
};

struct journal {
	struct channel *channel;

	/* committer */
	bool loaded;
	struct store_channel stored; /* as committed */
	struct journal_work work;
	struct list in_touched;
	struct segment *oldest; /* the row that was looked at last in the batch */
	int64_t clear_ns;	/* not before then are rows cleared of messages in their middle */
	uint64_t clear_from;	/* where that goes on; 0: at the front */
	uint64_t aged;		/* rows before it have gaps, and are older than */
	int64_t aged_ms;	/* this: they are due for good */

	/* CHANNEL, committer changes it */
	uint64_t last;		   /* everything up to it may be delivered */
	uint64_t first;		   /* everything before it is gone */
	uint64_t held, held_bytes; /* that some consumer has not acknowledged */
	struct list consumer_list;
	size_t consumer_count;

	/* CHANNEL */
	struct broker_durable_settings settings; /* dead_letter: see below */
	struct journal *dead_letter;
	struct segment **tail; /* oldest first, from `tail_start` on: no gap up to the newest */
	size_t tail_start, tail_count, tail_capacity;
	uint64_t tail_bytes, cache_bytes;
	struct hash consumers;
	struct list readers;
	uint64_t live_consumers; /* with live subscriptions */
	struct deadlines timers; /* of entries */
	int64_t armed_ns;	 /* the alarm goes then at the latest */
	struct list answered;	 /* entries for the committer */
	struct list owed;	 /* confirmations that wait for the next commit */
	struct list dirty;	 /* consumers to be stored */
	uint64_t stale_answers, dedup_hits;
	char full_text[3][256]; /* why a publish is refused: messages, bytes, too large */

	/* EXCHANGE */
	struct deadline alarm; /* in broker->journal_alarms */

	/* COMMIT */
	struct list in_dirty; /* of the committer */
	struct list in_batch; /* its thread only */
};

/* journal.c */
/* Makes the journal of a channel that is new. NULL: no memory. */
struct journal *journal_new(struct channel *channel);
void journal_free(struct journal **journal);
void journal_configure(struct journal *journal, const struct broker_channel_settings *settings,
		       uint64_t cache_bytes);
/* Loads what the store has of it, in a transaction; by the committer, or before it runs. */
enum store_result journal_load(struct journal *journal, struct committer *committer);
/* False: no memory; the tail begins behind the segment then. */
bool journal_add_tail_locked(struct journal *journal, struct segment *segment);
void journal_trim_tail_locked(struct journal *journal);
void journal_state_locked(const struct journal *journal, struct broker_channel_state *state);
/* Forgets what the tail has up to SEQUENCE. */
void journal_cut_tail_locked(struct journal *journal, uint64_t sequence);

/* consumers.c */
struct consumer *consumer_new(struct journal *journal, struct span name);
void consumer_free(struct consumer **consumer);
struct consumer *consumer_find_locked(const struct journal *journal, struct span name);
/* False: no memory. */
bool consumer_link_locked(struct consumer *consumer);
/* Its subscriptions end with TEXT, and it is taken out of its journal; the caller frees it. */
void consumer_end_locked(struct consumer *consumer, const char *text, struct flush_set *set);
/* Its state is to be stored. */
void consumer_dirty_locked(struct consumer *consumer);
void attachment_begin_locked(struct attachment *attachment, struct consumer *consumer,
			     uint64_t next);
void attachment_end_locked(struct attachment *attachment, struct flush_set *set);
/* Whether it may take a message may have changed. */
void attachment_update_locked(struct attachment *attachment);
/* Give out all that can be. */
void consumer_pump_locked(struct consumer *consumer, struct flush_set *set);
void attachment_pump_locked(struct attachment *attachment, struct flush_set *set);
void journal_pump_locked(struct journal *journal, struct flush_set *set);

/* consumer_answers.c */
/* What is owed on it and ready leaves, in order. */
void attachment_confirm_locked(struct attachment *attachment, struct flush_set *set);

/* entries.c */
struct entry *consumer_entry_locked(struct consumer *consumer, uint64_t sequence);
struct entry *entry_new_locked(struct consumer *consumer, uint64_t sequence);
void entry_free_locked(struct entry *entry);
/* A delivery of it has ended: its attempts are stored from now on. */
void entry_set_tried_locked(struct entry *entry);
void entry_set_timer_locked(struct entry *entry, int64_t after_ms);
/* The committer is to store what has become of it: ANSWERED, REJECTED or DYING. */
void entry_hand_over_locked(struct entry *entry, enum entry_state state);
/* A delivery has begun, or has ended; of an ended one the caller says what the entry is now. */
void entry_put_on_locked(struct entry *entry, struct attachment *attachment);
void entry_take_off_locked(struct entry *entry);
/* How it has ended: without an answer; deferred; ANSWERED or REJECTED. */
void entry_give_back_locked(struct entry *entry);
void entry_defer_locked(struct entry *entry);
void entry_answer_locked(struct entry *entry, enum entry_state state);
/* The commit of these entries has succeeded, or not (TEXT: why; STUCK: it alone). */
void entry_committed_locked(struct entry *entry);
void entry_refused_locked(struct entry *entry, const char *text, bool stuck);
/* Retention has discarded it. */
void entry_discard_locked(struct entry *entry);
/* Timers that are due. Without locks. */
void journal_run_timers(struct journal *journal);
/* The nearest timer may have come nearer. */
void journal_arm_locked(struct journal *journal);

/* durable.c */
/* What STREAM carries of the client's, live or not; by its thread. */
struct subscription *client_durable_subscription(struct client *client, uint32_t stream);
void subscription_end_durable(struct subscription *subscription);

/* consumer_state.c */
/* What is stored of it, with `done` as its positions; NULL: no memory. */
struct buf *consumer_state_encode_locked(const struct consumer *consumer,
					 const struct ranges *done);
/* False: no memory, or it is not a state. */
bool consumer_state_decode_locked(struct consumer *consumer, struct span state);

/* --- the committer --------------------------------------------------------------------------- */

enum item_kind { ITEM_PUBLISH, ITEM_SUBSCRIBE, ITEM_REMOVE, ITEM_DEAD };

/* What somebody waits for, with the committer's lock. */
struct ticket {
	bool done;
	enum store_result result;
};

struct item {
	struct list in_queue;
	enum item_kind kind;
	struct journal *journal;
	struct client *client; /* whose item it is; NULL: nobody's */
	struct sink_place *place;
	uint64_t bytes; /* as they count against the bounds; committer_admit counted them */

	/* PUBLISH */
	struct message *run;
	size_t count;
	struct buf *storage; /* of envelopes and keys */
	struct buf *large;   /* of the one envelope that is by reference */

	/* SUBSCRIBE */
	struct attachment *attachment;
	uint8_t start;
	uint64_t value;
	uint64_t next; /* where it begins */
	int64_t from_ms;
	struct consumer *added; /* made with it */
	const char *refused;

	/* SUBSCRIBE, REMOVE */
	size_t name_length;
	char name[256];
	struct consumer *removed;
	const char *reason;    /* REMOVE: for the subscriptions; NULL: it has expired */
	int64_t idle_since_ms; /* REMOVE, expired: if that is still so */

	/* REMOVE, DEAD */
	struct ticket *ticket;
	enum store_result result;
	uint64_t from, wanted;
	struct broker_dead **dead;
	size_t *found;
};

struct committer {
	struct broker *broker;
	struct store *store;
	struct thread thread;
	bool started;
	atomic_bool down; /* the store is */

	struct mutex lock; /* COMMIT, and all that follows */
	struct cond wake, done;
	struct list items;
	uint64_t bytes; /* of items, those in the batch included */
	uint64_t max_bytes, max_client_bytes;
	struct list waiters; /* clients, in turn */
	size_t waiter_count;
	struct list dirty; /* journals */
	struct list reads; /* cursors */
	int64_t timer_ns;  /* it looks at retention then */
	bool asleep, stopping;

	/* its thread only: the batch */
	struct list touched; /* journals */
	struct flush_set set;
	int64_t now_ms;
	bool reclaim; /* rows have been removed */
	bool failing; /* the last batches were refused, and that is in the log */
};

/* committer.c */
struct committer *committer_new(struct broker *broker, struct store *store);
bool committer_start(struct committer *committer);
/* Finishes what is queued; nobody may queue any more. */
void committer_stop(struct committer *committer);
void committer_free(struct committer **committer);
void committer_configure(struct committer *committer, const struct broker_settings *settings);
/*
 * How many messages of RUN the client may hand over now, and what they count: *BYTES, which are
 * the committer's from then on. 0: it has to wait (broker_client_wait_share).
 */
size_t committer_admit(struct client *client, const struct message *run, size_t count,
		       uint64_t *bytes);
void committer_give_back(struct client *client, uint64_t bytes);

/* Any lock below COMMIT may be held. */
void committer_add(struct committer *committer, struct item *item);
void committer_dirty(struct committer *committer, struct journal *journal);
void committer_read(struct committer *committer, struct cursor *cursor);
void committer_forget_read(struct committer *committer, struct cursor *cursor);
void committer_sweep_at(struct committer *committer, int64_t when_ns);
/* One more thing of the client's waits for the committer, or one less. */
void committer_owe(struct client *client);
/* The BYTES that it counted are given back with it. */
void committer_settle(struct client *client, uint64_t bytes);
void item_free(struct item **item);

/* A batch is done with: its room is others', in turn. */
void committer_release(struct committer *committer, struct list *items);
void committer_totals(struct committer *committer, struct broker_totals *totals);
/* The client waits for room no more. */
void committer_interrupt(struct client *client);

/* commit.c */
/* One batch: ITEMS, and the journals in DIRTY; both are empty afterwards. SWEEP: and whatever
 * retention has to do without traffic. */
void commit_batch(struct committer *committer, struct list *items, struct list *dirty, bool sweep);
/* Reads for one cursor. */
void commit_read(struct committer *committer, struct cursor *cursor);

/* prepare.c */
enum store_result prepare_batch(struct committer *committer, struct list *items,
				struct list *dirty);
/* The batch is about JOURNAL, too. */
enum store_result commit_touch(struct committer *committer, struct journal *journal);
/* The batch changes what CONSUMER has acknowledged: consumer->next. */
enum store_result commit_change(struct consumer *consumer);
/* Adds a message to the batch; its sequence is work.channel.last then. OWNED is taken over. */
enum store_result commit_record(struct journal *journal, struct span envelope, uint64_t id,
				uint8_t flags, struct buf *owned);
/* Reads the row that holds SEQUENCE, or the next one; STORE_NONE when there is none. */
enum store_result commit_segment(struct committer *committer, struct journal *journal,
				 uint64_t sequence, struct segment **segment);

/* prepare_answers.c */
enum store_result prepare_answers(struct committer *committer, struct journal *journal);

/* retention.c: by the committer, within a batch unless it says otherwise */
/* *REFUSED is NULL when a message may be added, whatever has to go for it is discarded then;
 * otherwise why not. */
enum store_result retention_admit(struct committer *committer, struct journal *journal,
				  uint64_t charged, const char **refused);
/* Makes journal->oldest the row that holds SEQUENCE, or the next one. */
enum store_result retention_look(struct committer *committer, struct journal *journal,
				 uint64_t sequence);
/* Whether some consumer has not acknowledged SEQUENCE. */
bool retention_holds(const struct journal *journal, uint64_t sequence);
/* CONSUMER has acknowledged all but the stuck ones of ENTRIES, whose sequences rise, and which are
 * moved about. */
enum store_result retention_done(struct committer *committer, struct consumer *consumer,
				 struct entry **entries, size_t count);
/* Removes what is over the bounds and done with, a bounded step; *AGAIN_NS: when to look again. */
enum store_result retention_sweep(struct committer *committer, struct journal *journal,
				  int64_t *again_ns);
/* Counts anew what consumers hold, into work.held; also outside of a batch. */
enum store_result retention_recount(struct committer *committer, struct journal *journal);
/* What is not kept any more above its floor counts as acknowledged by a new consumer. */
enum store_result retention_skip_holes(struct committer *committer, struct journal *journal,
				       struct ranges *done);
/* When the oldest message, or a consumer, is too old; DEADLINE_NEVER. Not within a batch. */
int64_t retention_next_ns(struct committer *committer, struct journal *journal);

#endif
