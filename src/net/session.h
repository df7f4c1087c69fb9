/*
 * A session: one connection's thread at work. It reads a batch, handles its frames in order, and
 * flushes what they caused once, at the end of the batch.
 */
#ifndef NET_SESSION_H
#define NET_SESSION_H

#include "net/net_priv.h"

/* What a waiting session reads into; traffic brings a buffer from the heap. */
#define READ_SMALL 512
#define READ_FIRST 4096
#define READ_MAX (256 * 1024)

/* Consecutive publishes to one channel that are handled as one. */
#define RUN_SMALL 4
#define RUN_MAX 256

/*
 * What stood in front of the payload of the last Publish without a key that was decoded, from the
 * length in its header on. A frame that is equal there has the same size and the same fields but
 * for stream and payload: it is as sound, and for the same channel.
 */
#define HEAD_MAX 96

struct publish_head {
	size_t size; /* of the bytes; 0: there is none */
	size_t frame_size, envelope_at;
	struct channel *channel;
	uint8_t flags;
	uint8_t bytes[HEAD_MAX];
};

struct session {
	struct conn *conn;
	struct flush_set set;
	enum close_reason end; /* why no further frame is handled; CLOSE_NONE: go on */
	int64_t read_ns;       /* when the batch was read */
	uint64_t frames;       /* of the batch, not counted in the metrics yet */
	uint64_t answered;     /* publishes, the same */
	size_t room;	       /* for so many answers before the outbox is looked at again */
	bool authenticated;    /* or nobody asks for it */
	bool interrupted;      /* publishes were left out: nothing more is handled or answered */
	bool said_hello;       /* a first frame was complete, or a Connect where one is needed */
	int64_t hello_ns;      /* until then at most */

	/* The bytes [start, filled) of `data` are read and not handled. */
	uint8_t *data;
	size_t start, filled, capacity;
	bool timed;    /* reads give up after a moment, so that the buffer can be given back */
	uint64_t skip; /* bytes of a frame that is thrown away */

	/* A frame that is too large for the buffer: its payload arrives here. */
	struct buf *large;
	size_t large_filled;
	struct wire_header large_header;

	/* Publishes that are not handed to the broker yet. */
	struct channel *run_channel;
	struct message *run;
	size_t run_count, run_capacity;
	struct publish_head head;

	struct message small_run[RUN_SMALL];
	uint8_t small[READ_SMALL];
};

/* --- dispatch.c ---------------------------------------------------------------------------- */

/* Handles one whole frame; BUF, if any, holds its payload. Sets session->end where it is the last
 * one. PAYLOAD may be written to. */
void session_dispatch(struct session *session, struct wire_header header, const uint8_t *payload,
		      struct buf *buf);

/*
 * Handles the next few frames, as long as they are Publishes that differ from the last one that was
 * decoded in stream and payload only, without checking again what was checked then. Their size, of
 * the AVAILABLE bytes, which may be written to; 0: the next frame is not one, or not all there.
 */
size_t session_publish_again(struct session *session, const uint8_t *bytes, size_t available);

/* Sends the error frame of HEADER's family and ends the session. The payload's first AVAILABLE
 * bytes have been read. */
void session_malformed(struct session *session, struct wire_header header, const uint8_t *payload,
		       size_t available, uint16_t code, const char *why, enum close_reason reason);

/* What is not allowed before a Connect where a token is asked for. */
bool session_may_skip_hello(uint8_t type);
void session_unauthenticated(struct session *session);

/* A frame above a bound that does not end the connection: its answer. True when it could be given
 * with the AVAILABLE bytes of the payload, false when more of them are needed. */
bool session_refuse_large(struct session *session, struct wire_header header,
			  const uint8_t *payload, size_t available);

/*
 * Hands the collected publishes to the broker and queues their answers, or has places for them. To
 * be called before anything else is answered. False when the connection is to be closed before all
 * of them could be taken: an answer to anything else would be taken for theirs.
 */
bool session_end_run(struct session *session);

/* Flushes what has been queued: the connection's own first, then what it caused for others. */
void session_flush(struct session *session);

#endif
