/*
 * The durable log: what stays when the process, the operating system or the power dies.
 *
 * One thread at a time uses a store (the committer, once the server runs). Everything between
 * store_begin and store_commit is one transaction, on stable storage when store_commit has
 * returned STORE_OK and not there at all when it has returned STORE_FULL. Reads may be done inside
 * and outside of a transaction; inside they see what it has written.
 *
 * Messages stand in rows: a row holds consecutive messages of one channel, committed together, as
 * records back to back (STORE_RECORD_HEAD and the envelope). A row is never read but as a whole,
 * so the writer keeps it to STORE_ROW_BYTES unless a single message is larger.
 *
 * A call that has failed with STORE_FULL or STORE_MEMORY in a transaction has failed the whole of
 * it: each later call returns the same, until store_rollback. After STORE_DOWN every call that can
 * fail returns STORE_DOWN, until the process ends: nothing is retried after a failed fsync, nor
 * after a write that failed for another reason than room.
 */
#ifndef STORE_STORE_H
#define STORE_STORE_H

#include "base/base.h"
#include "base/buf.h"
#include "base/text.h"

#include <stdio.h>

struct store;

enum store_result {
	STORE_OK,
	STORE_NONE,   /* there is no such row, key, consumer */
	STORE_FULL,   /* no space (ENOSPC, EDQUOT): roll back; later transactions may succeed */
	STORE_MEMORY, /* this call had no memory: roll back */
	STORE_DOWN,
};

/* A record: u64 message id, u32 length of the envelope, u8 flags, all big-endian; then the
 * envelope as it is delivered. Its sequence is the row's first one plus its place in the row,
 * unless STORE_ROW_SPARSE is set for the row: then a u64 sequence stands in front of each. */
#define STORE_RECORD_HEAD 13
#define STORE_RECORD_FOREIGN 0x01 /* the envelope keeps its schema id: a dead letter */
#define STORE_ROW_BYTES (256 * 1024)

/* The most that a row may hold: a single message with its record head that is larger than this
 * cannot be stored. */
#define STORE_ROW_LIMIT ((size_t)999 * 1000 * 1000)

struct store_row {
	uint64_t first, last; /* sequences; of what was written, also when some are gone */
	uint64_t count;	      /* messages that are in it */
	uint64_t charged;     /* by max_bytes, of those messages */
	uint64_t before;      /* charged bytes of all messages ever before FIRST */
	int64_t time_ms;      /* of the commit */
	bool sparse;
	struct buf *data; /* the records; NULL where only the head was asked for */
};

struct store_channel {
	uint64_t number;	     /* in the store, for the calls below */
	uint64_t last;		     /* the last sequence that was used, 0: none */
	uint64_t charged;	     /* bytes of all messages ever */
	int64_t time_ms;	     /* of the last commit */
	uint64_t first;		     /* the oldest message kept; last + 1: none */
	uint64_t kept, kept_charged; /* messages and charged bytes that are kept */
	uint64_t keys;		     /* idempotency keys that are remembered */
};

struct store_consumer {
	uint64_t number; /* in the store */
	struct span name;
	int64_t idle_since_ms; /* wall clock; 0: it has live subscriptions, or had at a crash */
	struct span state;     /* the broker's, opaque */
};

struct store_dead {
	uint64_t sequence;  /* in the dead-letter channel */
	struct span origin; /* "CHANNEL/SEQUENCE" */
	struct span consumer;
	bool rejected; /* otherwise its attempts were used up */
	uint64_t attempts;
	struct span text; /* of the Reject, may be empty */
};

struct store_ops {
	void (*close)(struct store *store);

	enum store_result (*begin)(struct store *store);
	/* Unless it returns STORE_OK the transaction has been rolled back. */
	enum store_result (*commit)(struct store *store);
	void (*rollback)(struct store *store); /* also when there is nothing to roll back */

	/* Finds the channel NAME, or makes it, in a transaction. */
	enum store_result (*channel_open)(struct store *store, struct span name,
					  struct store_channel *channel);
	/* Writes all fields but `number`. */
	enum store_result (*channel_put)(struct store *store, const struct store_channel *channel);

	enum store_result (*row_add)(struct store *store, uint64_t channel,
				     const struct store_row *row);
	/* The row that holds SEQUENCE, or else the next one after it. `data` with one reference
	 * that is the caller's when WITH_DATA. */
	enum store_result (*row_read)(struct store *store, uint64_t channel, uint64_t sequence,
				      bool with_data, struct store_row *row);
	/* Replaces the row that begins at row->first, or removes it, with the dead-letter facts
	 * from its first message to its last. STORE_NONE: there is no such row. A replaced row
	 * keeps the facts of messages that are not in it any more. */
	enum store_result (*row_replace)(struct store *store, uint64_t channel,
					 const struct store_row *row);
	enum store_result (*row_remove)(struct store *store, uint64_t channel, uint64_t first);

	/* Idempotency keys, each with the sequence of its message. Times are the wall clock. What
	 * is found is the newest with that key; STORE_NONE also when that is older than
	 * NOT_BEFORE_MS. A key that was found too old may be added again. */
	enum store_result (*key_find)(struct store *store, uint64_t channel, struct span key,
				      int64_t not_before_ms, uint64_t *id, uint64_t *sequence);
	enum store_result (*key_add)(struct store *store, uint64_t channel, struct span key,
				     int64_t time_ms, uint64_t id, uint64_t sequence);
	/* Removes the EXCESS oldest keys, and further ones that are older than BEFORE_MS, at most
	 * LIMIT in all. *REMOVED: how many that were. */
	enum store_result (*keys_trim)(struct store *store, uint64_t channel, int64_t before_ms,
				       uint64_t excess, uint64_t limit, uint64_t *removed);

	/* Calls EACH for every consumer of the channel; false from it ends the walk with
	 * STORE_MEMORY. Spans live during the call. */
	enum store_result (*consumers)(struct store *store, uint64_t channel,
				       bool (*each)(void *context,
						    const struct store_consumer *consumer),
				       void *context);
	/* Makes it; *NUMBER is its number then. `put` and `remove`: STORE_NONE when there is none.
	 */
	enum store_result (*consumer_add)(struct store *store, uint64_t channel,
					  const struct store_consumer *consumer, uint64_t *number);
	enum store_result (*consumer_put)(struct store *store, uint64_t number,
					  int64_t idle_since_ms, struct span state);
	enum store_result (*consumer_remove)(struct store *store, uint64_t number);

	/* Facts about a message of a dead-letter channel. */
	enum store_result (*dead_add)(struct store *store, uint64_t channel,
				      const struct store_dead *dead);
	/* From sequence FROM on, COUNT at most; EACH as above. */
	enum store_result (*dead_read)(struct store *store, uint64_t channel, uint64_t from,
				       uint64_t count,
				       bool (*each)(void *context, const struct store_dead *dead),
				       void *context);

	/* The next message id that a restart begins with: reserved at open, given back at a clean
	 * stop. Not in a transaction of the caller's: it commits by itself. */
	enum store_result (*ids_put)(struct store *store, uint64_t next);

	/*
	 * To be called after each commit, outside of a transaction, when what waits for the commit
	 * has been told: every so often the log is brought into the database, a bounded step that
	 * lasts as long as a few commits. STORE_DOWN: that has failed, and what was committed is as
	 * safe as it was. That there is no room for it is no failure: it is tried again later.
	 */
	enum store_result (*checkpoint)(struct store *store);

	/* Outside of a transaction: room that messages have left goes back to the file system, if
	 * it is so much that new ones will not soon need it. A bounded step; *MORE: call again. */
	enum store_result (*reclaim)(struct store *store, bool *more);

	/* On the disk; from any thread, without a lock. */
	uint64_t (*bytes)(struct store *store);
};

struct store {
	const struct store_ops *ops;
	uint64_t created_ms; /* `boot` of messages */
	uint64_t next_id;    /* message ids begin here; 2^40 of them are reserved */

	/* Why a call has returned STORE_FULL or STORE_DOWN last: a sentence that names the file. */
	char reason[512];
};

/* How many ids a start reserves. */
#define STORE_IDS_RESERVED ((uint64_t)1 << 40)

/*
 * Opens, or makes, the store in the folder DIR (0700, made when missing, refused when group or
 * others may do anything to it; every file in it 0600), locks it for this process, and brings what
 * an earlier process has left onto stable storage before it returns: only then may anything in it
 * be promised to anybody. False with a whole sentence in ERROR that names the file, why, and what
 * to do; a database that was there has not been modified then. The lock is this process's alone:
 * neither a fork before nor one after shares the store.
 */
bool store_open_sqlite(const char *dir, struct store **store, struct text *error);

/* Gives DIR and its files to a user, while no process has them open; 0, or an errno. That there is
 * no DIR is no error. EPERM also when group or others may do anything to DIR, or when one of the
 * files is none of its own: something else than a file, or one that has another name elsewhere. */
int store_give(const char *dir, unsigned long uid, unsigned long gid);

/* The same promises, but for the process's life only: for tests, and not in liminald. */
bool store_open_memory(struct store **store, struct text *error);

/* The next commit of a store in memory fails with RESULT. */
void store_memory_fail(struct store *store, enum store_result result);

/* What another process would find after a crash of this one, as a store of its own. */
bool store_memory_copy(struct store *store, struct store **copy, struct text *error);

/* Whether STATE is a consumer's, in a channel whose last sequence is LAST. */
typedef bool store_position(struct span state, uint64_t last);

/*
 * Checks the store in DIR, which no process may be using, and says on OUT what it found: integrity,
 * sequences, positions of consumers, and each channel with what it holds. Repairs nothing, modifies
 * nothing. 0: sound; 1: damaged, in use, or not to be read.
 */
int store_check(const char *dir, store_position *position, FILE *out);

static inline void store_close(struct store **store)
{
	if (*store != NULL)
		(*store)->ops->close(*store);
	*store = NULL;
}

#endif
