/* Requests, as conversations use them; all under EXCHANGE. */
#ifndef BROKER_REQUESTS_H
#define BROKER_REQUESTS_H

#include "base/metrics.h"
#include "broker/broker_priv.h"

/* Frees a closed conversation that no request refers to. */
void conversation_unref_locked(struct conversation *conversation);

/* True unless its subject is an address that nobody has. */
bool conversation_address_exists_locked(struct broker *broker,
					const struct conversation *conversation);

/*
 * A request of an open conversation, with its place in the order when a reply is wanted; it is in
 * no list yet. NULL when memory is missing. The caller has checked the bounds.
 */
struct request *request_new_locked(struct conversation *conversation, uint32_t stream,
				   bool reply_wanted, int64_t now_ns);

/* What keeps a new request with a reply out; SINK_OK: nothing does. */
enum sink_result client_request_room_locked(const struct client *client);

/*
 * Finds out who answers, and pushes it, answers it or lets it wait. payload and buf are set; a
 * payload without buf need only live during the call. WHILE_HANDLED: errors of one-way messages
 * are sent, and bounds apply. The request may be gone afterwards.
 */
void request_route_locked(struct request *request, bool while_handled, struct flush_set *set);

/* End a request that is in no list of a state; it may be gone afterwards. */
void request_reply_locked(struct request *request, struct span payload, struct buf *buf,
			  int64_t now_ns, struct flush_set *set);
void request_fail_locked(struct request *request, enum metric metric, enum refusal refusal,
			 struct span text, bool while_handled, struct flush_set *set);

/* True when it waits for a worker or for its turn. */
bool request_waits_locked(const struct request *request);

/* Ends a request in any state without an answer. One that waits takes nothing else with it; the
 * end of a pushed one lets others move up. */
void request_forget_locked(struct request *request, struct flush_set *set);

#endif
