/* The payload of a PushReply by which a worker refuses a request. */
#ifndef NET_REFUSAL_H
#define NET_REFUSAL_H

#include "broker/broker.h"

/* Longer payloads are no refusals: the words, every byte escaped, take a tenth of this. */
#define REFUSAL_PAYLOAD_MAX (64 * 1024)

/*
 * Reads a JSON object of exactly `code` (busy, invalid, unavailable, internal) and `words` (a
 * string of at most BROKER_REFUSAL_WORDS_MAX bytes of UTF-8, in which U+0000 may stand). True with
 * *REFUSAL and *WORDS, a span of BUFFER, set. False for any other payload, and when memory is
 * missing.
 */
bool refusal_parse(struct span payload, enum refusal *refusal, struct span *words,
		   uint8_t buffer[BROKER_REFUSAL_WORDS_MAX]);

#endif
