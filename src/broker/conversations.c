/*
 * Conversations: opening, messages, closing. What happens to a message after it was found to be
 * legal is in requests.c.
 */
#include "broker/requests.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

#define TEXT_NOT_OPEN "conversation is not open on this connection"
#define TEXT_ALREADY_OPEN                                                                          \
	"conversation id is already open on this connection; close it before reopening or use a "  \
	"fresh id"

static struct conversation *conversation_find_locked(struct client *client, uint64_t id)
{
	for (struct hash_node *node = hash_first(&client->conversations, hash_u64(id));
	     node != NULL; node = hash_next(node)) {
		struct conversation *conversation = CONTAINER_OF(node, struct conversation, by_id);

		if (conversation->id == id)
			return conversation;
	}
	return NULL;
}

/* One frame of the client that names a conversation, and what an error about it needs. */
struct origin {
	struct client *client;
	uint32_t stream;
	uint64_t conversation;
	struct flush_set *set;
};

static void origin_error(const struct origin *origin, enum metric metric, struct span text)
{
	struct sink *sink = origin->client->sink;

	metric_add(metric, 1);
	sink->ops->conversation_error(sink, origin->stream, origin->conversation, REFUSAL_NONE,
				      text, origin->set);
}

/* --- opening ------------------------------------------------------------------------------- */

static struct conversation *conversation_new_locked(const struct origin *origin,
						    struct span subject)
{
	struct client *client = origin->client;
	struct conversation *conversation = calloc(1, sizeof(*conversation) + subject.length);

	if (conversation == NULL)
		return NULL;
	conversation->id = origin->conversation;
	conversation->broker = client->broker;
	list_init(&conversation->places);
	conversation->subject_length = subject.length;
	if (subject.length > 0)
		memcpy(conversation->subject, subject.data, subject.length);
	subject_parse(conversation);
	return conversation;
}

static void conversation_open_locked(const struct origin *origin, struct span subject)
{
	struct client *client = origin->client;
	struct conversation *conversation;

	if (conversation_find_locked(client, origin->conversation) != NULL) {
		origin_error(origin, METRIC_ERROR_ALREADY_OPEN, SPAN_LITERAL(TEXT_ALREADY_OPEN));
		return;
	}
	if (client->conversations.count >= client->limits.conversations) {
		origin_error(origin, METRIC_OVER_CONVERSATIONS,
			     SPAN_LITERAL("over-capacity: max_conversations_per_connection "
					  "conversations are open"));
		return;
	}
	if (subject.length > 0 && subject.data[0] == '$' && !client->control) {
		origin_error(origin, METRIC_ERROR_NOT_PERMITTED,
			     SPAN_LITERAL("not-permitted: subjects that start with $ are open to "
					  "the control socket only"));
		return;
	}
	conversation = conversation_new_locked(origin, subject);
	if (conversation == NULL)
		goto no_memory;
	if (!conversation_address_exists_locked(client->broker, conversation)) {
		free(conversation);
		origin_error(origin, METRIC_ERROR_NOT_FOUND,
			     SPAN_LITERAL("not-found: nobody has this address"));
		return;
	}
	if (!hash_insert(&client->conversations, &conversation->by_id,
			 hash_u64(conversation->id))) {
		free(conversation);
		goto no_memory;
	}
	conversation->client = client;
	client->broker->conversation_count++;
	metric_add(METRIC_CONVERSATIONS_OPENED, 1);
	return;
no_memory:
	origin_error(origin, METRIC_ERROR_MEMORY,
		     SPAN_LITERAL("the server is out of memory for a conversation"));
}

void broker_conversation_open(struct client *client, uint32_t stream, uint64_t id,
			      struct span subject, struct flush_set *set)
{
	struct origin origin = {client, stream, id, set};

	if (subject.length > BROKER_SUBJECT_MAX) {
		origin_error(&origin, METRIC_ERROR_SUBJECT,
			     SPAN_LITERAL("the subject is longer than 1024 bytes"));
		return;
	}
	mutex_lock(&client->broker->lock);
	conversation_open_locked(&origin, subject);
	mutex_unlock(&client->broker->lock);
}

/* --- messages ------------------------------------------------------------------------------ */

/* Which bound a new request exceeds: the metric and text of it in *METRIC and *TEXT. */
static bool request_is_over_capacity_locked(const struct conversation *conversation,
					    enum metric *metric, struct span *text)
{
	const struct client *client = conversation->client;
	enum sink_result room;

	if (conversation->place_count >= client->limits.replies_per_conversation) {
		*metric = METRIC_OVER_REPLIES_CONVERSATION;
		*text = SPAN_LITERAL("over-capacity: max_pending_replies_per_conversation requests "
				     "of this conversation wait for their replies");
		return true;
	}
	if (client->pending_replies >= client->limits.replies) {
		*metric = METRIC_OVER_REPLIES_CONNECTION;
		*text = SPAN_LITERAL("over-capacity: max_pending_replies_per_connection requests "
				     "of this connection wait for their replies");
		return true;
	}
	room = client_request_room_locked(client);
	*metric = room == SINK_FULL_FRAMES ? METRIC_OVER_OUTBOX_FRAMES : METRIC_OVER_OUTBOX_BYTES;
	*text = room == SINK_FULL_FRAMES
			? SPAN_LITERAL("over-capacity: max_outbox_frames leaves no room for one "
				       "more reply; read those that are due")
			: SPAN_LITERAL("over-capacity: max_outbox_bytes leaves no room for one "
				       "more reply; read those that are due");
	return room != SINK_OK;
}

/*
 * The worker it was bound to is lost, no request of the conversation has been told, and none waits
 * to go to another worker. True once; an address that nobody has any more gets its own error
 * instead.
 */
static bool conversation_lost_locked(struct conversation *conversation)
{
	if (conversation->bound == NULL || conversation->bound->state != REGISTRATION_LOST)
		return false;
	registration_unref_locked(&conversation->bound);
	return conversation->waiting_count == 0 &&
	       conversation_address_exists_locked(conversation->broker, conversation);
}

/* The request of a legal message, with its place; NULL with an error sent. */
static struct request *message_request_locked(const struct origin *origin, bool reply_wanted,
					      int64_t now_ns)
{
	struct conversation *conversation =
		conversation_find_locked(origin->client, origin->conversation);
	struct request *request;
	enum metric metric;
	struct span text;

	if (conversation == NULL) {
		origin_error(origin, METRIC_ERROR_NOT_OPEN, SPAN_LITERAL(TEXT_NOT_OPEN));
		return NULL;
	}
	if (reply_wanted && request_is_over_capacity_locked(conversation, &metric, &text)) {
		origin_error(origin, metric, text);
		return NULL;
	}
	request = request_new_locked(conversation, origin->stream, reply_wanted, now_ns);
	if (request == NULL) {
		origin_error(origin, METRIC_ERROR_MEMORY,
			     SPAN_LITERAL("the server is out of memory for a request"));
		return NULL;
	}
	metric_add(reply_wanted ? METRIC_REQUESTS : METRIC_ONE_WAY, 1);
	return request;
}

/*
 * The server's own responder is asked without the lock: it looks at the broker, too. Only this
 * thread can close the conversation, whose subject NAME is a part of. The request exists once its
 * reply does, so that a reply about the server does not count the question.
 */
static void control_message(const struct origin *origin, bool reply_wanted, struct span name,
			    struct span payload, int64_t now_ns)
{
	struct broker *broker = origin->client->broker;
	struct buf *reply = broker->control.answer(broker->control.context, name, payload);
	struct request *request;

	mutex_lock(&broker->lock);
	request = message_request_locked(origin, reply_wanted, now_ns);
	if (request == NULL || !reply_wanted) {
		if (request != NULL)
			request_forget_locked(request, origin->set);
	} else if (reply == NULL) {
		request_fail_locked(request, METRIC_ERROR_MEMORY, REFUSAL_NONE,
				    SPAN_LITERAL("the server is out of memory for this reply"),
				    true, origin->set);
	} else if (reply->length > origin->client->limits.frame_bytes) {
		request_fail_locked(request, METRIC_OVER_FRAME_SIZE, REFUSAL_NONE,
				    SPAN_LITERAL("over-capacity: max_frame_size is too small for "
						 "this reply"),
				    true, origin->set);
	} else {
		request_reply_locked(request, (struct span){reply->data, reply->length}, reply,
				     now_ns, origin->set);
	}
	mutex_unlock(&broker->lock);
	buf_unref(&reply);
}

static void worker_message_locked(const struct origin *origin, bool reply_wanted,
				  struct span payload, struct buf *buf, int64_t now_ns)
{
	struct request *request = message_request_locked(origin, reply_wanted, now_ns);

	if (request == NULL)
		return;
	request->payload = payload;
	request->buf = buf == NULL ? NULL : buf_ref(buf);
	if (conversation_lost_locked(request->conversation))
		request_fail_locked(request, METRIC_ERROR_WORKER_LOST, REFUSAL_NONE,
				    SPAN_LITERAL("worker-lost: the worker of this conversation has "
						 "gone; message rejected"),
				    true, origin->set);
	else
		request_route_locked(request, true, origin->set);
}

void broker_conversation_message(struct client *client, uint32_t stream, uint64_t id,
				 bool reply_wanted, struct span payload, struct buf *buf,
				 int64_t now_ns, struct flush_set *set)
{
	struct origin origin = {client, stream, id, set};
	struct broker *broker = client->broker;
	struct conversation *conversation;
	struct span control_name = {0};
	bool control;

	mutex_lock(&broker->lock);
	conversation = conversation_find_locked(client, id);
	control = conversation != NULL && conversation->kind == SUBJECT_CONTROL;
	if (control)
		control_name = conversation->rest;
	else
		worker_message_locked(&origin, reply_wanted, payload, buf, now_ns);
	mutex_unlock(&broker->lock);
	if (control)
		control_message(&origin, reply_wanted, control_name, payload, now_ns);
}

/* --- closing ------------------------------------------------------------------------------- */

/*
 * Forgets its requests; one-way messages that were accepted go on. Those that wait go first: they
 * are not to move up into the places of the others.
 */
static void conversation_close_locked(struct conversation *conversation, struct flush_set *set)
{
	struct client *client = conversation->client;
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &conversation->places)
	{
		struct request *request = LIST_ENTRY(node, struct request, in_places);

		if (request_waits_locked(request))
			request_forget_locked(request, set);
	}
	while (!list_empty(&conversation->places))
		request_forget_locked(
			LIST_ENTRY(conversation->places.next, struct request, in_places), set);
	hash_remove(&client->conversations, &conversation->by_id);
	client->broker->conversation_count--;
	conversation->client = NULL;
	conversation_unref_locked(conversation);
}

void broker_conversation_close(struct client *client, uint64_t id, struct flush_set *set)
{
	struct conversation *conversation;

	mutex_lock(&client->broker->lock);
	conversation = conversation_find_locked(client, id);
	if (conversation != NULL)
		conversation_close_locked(conversation, set);
	mutex_unlock(&client->broker->lock);
}

/* What waits, for the reason above: of all its conversations, and one-way messages, too. */
static void client_forget_waiting_locked(struct client *client, struct flush_set *set)
{
	struct list *node, *after;

	LIST_FOR_EACH_NODE(node, after, &client->requests)
	{
		struct request *request = LIST_ENTRY(node, struct request, of_requester);

		if (request_waits_locked(request))
			request_forget_locked(request, set);
	}
}

/* Only one-way messages are left, and pushed: they stay the worker's. */
static void client_leave_pushed_locked(struct client *client)
{
	while (!list_empty(&client->requests)) {
		struct request *request =
			LIST_ENTRY(client->requests.next, struct request, of_requester);

		ASSERT(request->state == REQUEST_PUSHED && !request->reply_wanted);
		list_remove(&request->of_requester);
		request->requester = NULL;
	}
}

void broker_client_end_conversations(struct client *client, struct flush_set *set)
{
	mutex_lock(&client->broker->lock);
	/* Nothing moves up into the places of its requests to itself. */
	client->no_pushes = true;
	client_forget_waiting_locked(client, set);
	for (size_t i = 0; i < hash_slots(&client->conversations); i++)
		while (hash_slot(&client->conversations, i) != NULL)
			conversation_close_locked(CONTAINER_OF(hash_slot(&client->conversations, i),
							       struct conversation, by_id),
						  set);
	client_leave_pushed_locked(client);
	mutex_unlock(&client->broker->lock);
}
