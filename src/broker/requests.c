/*
 * Requests: conversation messages that are on their way. Each is in one state (broker_priv.h), has
 * one deadline, and is ended exactly once, by whoever takes it out under EXCHANGE: a reply, its
 * deadline, the end of its worker, of its conversation or of its requester.
 *
 * A request whose answer is due has a place in its conversation from the start, and answers leave
 * in the order of the places. An answer that is held only by that order waits for nothing else.
 */
#include "broker/requests.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/metrics.h"

/* The frame around a reply's payload: header, conversation id, envelope. */
#define REPLY_OVERHEAD 64

/* An empty place counts as this many bytes. */
#define PLACE_BYTES 64

/* --- conversations as requests see them ---------------------------------------------------- */

void conversation_unref_locked(struct conversation *conversation)
{
	if (conversation->client != NULL || conversation->request_count > 0)
		return;
	ASSERT(list_empty(&conversation->places));
	registration_unref_locked(&conversation->bound);
	free(conversation);
}

static void client_maybe_quiet_locked(struct client *client)
{
	if (client->pending_replies == 0 && client->waiting_count == 0)
		cond_broadcast(&client->quiet);
}

/* --- making and ending --------------------------------------------------------------------- */

struct request *request_new_locked(struct conversation *conversation, uint32_t stream,
				   bool reply_wanted, int64_t now_ns)
{
	struct client *client = conversation->client;
	struct request *request = calloc(1, sizeof(*request));

	if (request == NULL)
		return NULL;
	request->magic = REQUEST_MAGIC;
	request->state = REQUEST_HANDLED;
	request->reply_wanted = reply_wanted;
	request->stream = stream;
	request->conversation_id = conversation->id;
	request->conversation = conversation;
	request->requester = client;
	request->started_ns = now_ns;
	list_init(&request->in_places);
	list_init(&request->in_target);
	deadline_init(&request->deadline);
	conversation->request_count++;
	list_append(&client->requests, &request->of_requester);
	if (reply_wanted) {
		list_append(&conversation->places, &request->in_places);
		conversation->place_count++;
		client->pending_replies++;
		client->broker->pending_reply_count++;
	}
	return request;
}

/* A conversation with something under way at the lost worker goes on with another one. */
static void conversation_release_locked(struct conversation *conversation)
{
	if (conversation->bound != NULL && conversation->bound->state == REGISTRATION_LOST)
		registration_unref_locked(&conversation->bound);
}

/* It waits no longer: what it was charged is given back. */
static void request_uncharge_locked(struct request *request)
{
	struct client *client = request->requester;

	request->conversation->waiting_count--;
	conversation_release_locked(request->conversation);
	client->broker->waiting_count--;
	client->waiting_count--;
	if (!request->reply_wanted)
		client->waiting_one_way--;
	client->waiting_bytes -= request->charged;
	request->charged = 0;
	client_maybe_quiet_locked(client);
}

/*
 * Takes it out of the lists of its state; its deadline stays until it is answered or freed, so that
 * the time that it waited counts. The target whose place became free, or NULL; the caller lets the
 * next one move up when it is done with its own lists.
 */
static struct client *request_detach_locked(struct broker *broker, struct request *request)
{
	struct client *freed = NULL;

	list_remove(&request->in_target);
	switch (request->state) {
	case REQUEST_WAITING_WORKER:
		request_uncharge_locked(request);
		if (request->queue != NULL)
			worker_queue_put_locked(broker, request->queue);
		request->queue = NULL;
		break;
	case REQUEST_WAITING_TURN:
		request_uncharge_locked(request);
		break;
	case REQUEST_PUSHED:
		freed = request->target;
		hash_remove(&broker->correlations, &request->by_correlation);
		freed->push_count--;
		broker->pushed_count--;
		break;
	case REQUEST_HANDLED:
	case REQUEST_HELD:
		break;
	}
	request->target = NULL;
	return freed;
}

/* It is in no list of a state any more. Its answer, if one was due, is sent or forgotten. */
static void request_free_locked(struct broker *broker, struct request *request)
{
	struct conversation *conversation = request->conversation;
	struct client *client = request->requester;

	ASSERT_MAGIC(request, REQUEST_MAGIC);
	deadlines_remove(&broker->request_deadlines, &request->deadline);
	if (request->state == REQUEST_HELD) {
		client->held_replies--;
		client->held_bytes -= request->payload.length + REPLY_OVERHEAD;
	}
	if (!list_empty(&request->in_places)) {
		list_remove(&request->in_places);
		conversation->place_count--;
		client->pending_replies--;
		broker->pending_reply_count--;
		client_maybe_quiet_locked(client);
	}
	list_remove(&request->of_requester);
	conversation->request_count--;
	conversation_unref_locked(conversation);
	buf_unref(&request->buf);
	request->magic = 0;
	free(request);
}

/* --- answers ------------------------------------------------------------------------------- */

static void request_send_locked(struct request *request, struct flush_set *set)
{
	struct sink *sink = request->requester->sink;

	if (request->answer_is_error)
		sink->ops->conversation_error(sink, request->stream, request->conversation_id,
					      request->refusal, request->payload, set);
	else
		sink->ops->reply(sink, request->stream, request->conversation_id, request->payload,
				 request->buf, set);
}

/* Sends the answers at the head of the conversation that are held by nothing any more. */
static void places_advance_locked(struct broker *broker, struct conversation *conversation,
				  struct flush_set *set)
{
	conversation->request_count++; /* it stays while its requests are freed */
	while (!list_empty(&conversation->places)) {
		struct request *head =
			LIST_ENTRY(conversation->places.next, struct request, in_places);

		if (head->state != REQUEST_HELD)
			break;
		request_send_locked(head, set);
		request_free_locked(broker, head);
	}
	conversation->request_count--;
	conversation_unref_locked(conversation);
}

/*
 * Gives the detached REQUEST its answer, in its place. PAYLOAD stays the caller's, and is copied
 * where it has to be held and no BUF holds it.
 */
static void request_answer_locked(struct request *request, bool is_error, enum refusal refusal,
				  struct span payload, struct buf *buf, struct flush_set *set)
{
	struct client *client = request->requester;
	struct conversation *conversation = request->conversation;

	deadlines_remove(&client->broker->request_deadlines, &request->deadline);
	if (buf != NULL)
		buf_ref(buf); /* before the request lets go of its own, which it may be */
	buf_unref(&request->buf);
	request->buf = buf;
	request->answer_is_error = is_error;
	request->refusal = refusal;
	request->payload = payload;
	if (conversation->places.next != &request->in_places && buf == NULL) {
		request->buf = buf_new(payload.length);
		if (request->buf == NULL) {
			request->answer_is_error = true;
			request->refusal = REFUSAL_NONE;
			request->payload = SPAN_LITERAL("the server is out of memory for a reply "
							"that has to wait for its turn");
		} else {
			if (payload.length > 0)
				memcpy(request->buf->data, payload.data, payload.length);
			request->payload.data = request->buf->data;
		}
	}
	request->state = REQUEST_HELD;
	client->held_replies++;
	client->held_bytes += request->payload.length + REPLY_OVERHEAD;
	places_advance_locked(client->broker, conversation, set);
}

void request_fail_locked(struct request *request, enum metric metric, enum refusal refusal,
			 struct span text, bool while_handled, struct flush_set *set)
{
	struct client *client = request->requester;

	metric_add(metric, client != NULL && (request->reply_wanted || while_handled) ? 1 : 0);
	if (request->reply_wanted) {
		request_answer_locked(request, true, refusal, text, NULL, set);
		return;
	}
	if (while_handled)
		client->sink->ops->conversation_error(client->sink, request->stream,
						      request->conversation_id, refusal, text, set);
	request_free_locked(request->conversation->broker, request);
}

/* Fails it for a bound, which may overtake the answers in front of it. */
static void request_over_capacity_locked(struct request *request, enum sink_result full,
					 bool while_handled, struct flush_set *set)
{
	struct client *client = request->requester;
	struct broker *broker = request->conversation->broker;
	struct conversation *conversation = request->conversation;
	struct span text =
		full == SINK_FULL_FRAMES
			? SPAN_LITERAL("over-capacity: max_outbox_frames leaves no room for this")
			: SPAN_LITERAL("over-capacity: max_outbox_bytes leaves no room for this");

	if (request->reply_wanted || while_handled) {
		metric_add(full == SINK_FULL_FRAMES ? METRIC_OVER_OUTBOX_FRAMES
						    : METRIC_OVER_OUTBOX_BYTES,
			   1);
		client->sink->ops->conversation_error(client->sink, request->stream,
						      request->conversation_id, REFUSAL_NONE, text,
						      set);
	}
	conversation->request_count++;
	request_free_locked(broker, request);
	conversation->request_count--;
	places_advance_locked(broker, conversation, set);
}

static enum sink_result client_judge_reply_locked(const struct client *client, size_t length,
						  bool offer)
{
	uint64_t empty = client->pending_replies - client->held_replies - 1;
	struct sink_load load;

	client->sink->ops->load(client->sink, offer, &load);
	if (load.empty && client->held_replies == 0)
		return SINK_OK; /* an empty outbox takes one frame of any size */
	if (load.frames + client->pending_replies > load.max_frames)
		return SINK_FULL_FRAMES;
	if (load.bytes + client->held_bytes + empty * PLACE_BYTES + length + REPLY_OVERHEAD >
	    load.max_bytes)
		return SINK_FULL_BYTES;
	return SINK_OK;
}

/* What keeps a reply of LENGTH bytes out of its requester's outbox; SINK_OK: nothing does. */
static enum sink_result client_reply_room_locked(const struct client *client, size_t length)
{
	enum sink_result room = client_judge_reply_locked(client, length, false);

	return room == SINK_OK ? SINK_OK : client_judge_reply_locked(client, length, true);
}

static enum sink_result client_judge_request_locked(const struct client *client, bool offer)
{
	uint64_t empty = client->pending_replies - client->held_replies + 1;
	struct sink_load load;

	client->sink->ops->load(client->sink, offer, &load);
	if (load.frames + client->pending_replies + 1 > load.max_frames)
		return SINK_FULL_FRAMES;
	if (load.bytes + client->held_bytes + empty * PLACE_BYTES > load.max_bytes)
		return SINK_FULL_BYTES;
	return SINK_OK;
}

enum sink_result client_request_room_locked(const struct client *client)
{
	enum sink_result room = client_judge_request_locked(client, false);

	return room == SINK_OK ? SINK_OK : client_judge_request_locked(client, true);
}

void request_reply_locked(struct request *request, struct span payload, struct buf *buf,
			  int64_t now_ns, struct flush_set *set)
{
	struct client *client = request->requester;
	enum sink_result room;

	if (!request->reply_wanted) {
		request_free_locked(request->conversation->broker, request);
		return;
	}
	room = client_reply_room_locked(client, payload.length);
	if (room != SINK_OK) {
		request_over_capacity_locked(request, room, false, set);
		return;
	}
	metric_add(METRIC_REPLIES, 1);
	metric_observe(HISTOGRAM_REQUEST_SECONDS, now_ns - request->started_ns, 1);
	request_answer_locked(request, false, REFUSAL_NONE, payload, buf, set);
}

/* --- on the way to a worker ---------------------------------------------------------------- */

static void request_arm_locked(struct broker *broker, struct request *request, int64_t when_ns)
{
	deadlines_remove(&broker->request_deadlines, &request->deadline);
	deadlines_add(&broker->request_deadlines, &request->deadline, when_ns);
	deadline_thread_poke_locked(broker);
}

/* The deadline counts from when the request was handled, wherever it is. */
static void request_start_deadline_locked(struct broker *broker, struct request *request)
{
	if (!deadline_queued(&request->deadline))
		request_arm_locked(broker, request,
				   clock_after_ms(request->started_ns, broker->reply_timeout_ms));
}

/* It waits, and what it holds counts, from now on. */
static void request_charge_locked(struct request *request)
{
	struct client *client = request->requester;

	request->charged = request->payload.length;
	client->waiting_bytes += request->charged;
	client->waiting_count++;
	request->conversation->waiting_count++;
	client->broker->waiting_count++;
	if (!request->reply_wanted)
		client->waiting_one_way++;
}

/* Ends it for a bound on what waits, told at once. */
static void request_refuse_waiting_locked(struct request *request, enum metric metric,
					  struct span text, struct flush_set *set)
{
	struct client *client = request->requester;

	metric_add(metric, 1);
	client->sink->ops->conversation_error(client->sink, request->stream,
					      request->conversation_id, REFUSAL_NONE, text, set);
	request_free_locked(client->broker, request);
}

/*
 * Makes it one that waits: its payload outlives the read buffer, and counts. False when it has
 * ended with an error instead. Bounds apply to new requests only, not to those that wait anew.
 */
static bool request_keep_locked(struct request *request, bool while_handled, struct flush_set *set)
{
	struct client *client = request->requester;
	size_t length = request->payload.length;

	if (while_handled && !request->reply_wanted &&
	    client->waiting_one_way >= client->limits.replies) {
		request_refuse_waiting_locked(
			request, METRIC_OVER_REPLIES_CONNECTION,
			SPAN_LITERAL("over-capacity: max_pending_replies_per_connection one-way "
				     "messages wait for their turn already"),
			set);
		return false;
	}
	if (while_handled && client->waiting_count > 0 &&
	    (client->waiting_bytes > client->limits.pending_bytes ||
	     length > client->limits.pending_bytes - client->waiting_bytes)) {
		request_refuse_waiting_locked(
			request, METRIC_OVER_PENDING_BYTES,
			SPAN_LITERAL("over-capacity: max_pending_bytes_per_connection leaves no "
				     "room for a request that has to wait"),
			set);
		return false;
	}
	if (request->buf == NULL) {
		request->buf = buf_new(length);
		if (request->buf == NULL) {
			request_fail_locked(
				request, METRIC_ERROR_MEMORY, REFUSAL_NONE,
				SPAN_LITERAL("the server is out of memory for a request "
					     "that has to wait"),
				while_handled, set);
			return false;
		}
		if (length > 0)
			memcpy(request->buf->data, request->payload.data, length);
		request->payload.data = request->buf->data;
	}
	request_charge_locked(request);
	metric_add(METRIC_PUSH_WAITS, 1);
	request_start_deadline_locked(client->broker, request);
	return true;
}

static bool target_is_ready_locked(const struct client *target, int64_t now_ns)
{
	return target->push_count < target->limits.pushes && now_ns >= target->settled_ns &&
	       !target->no_pushes &&
	       !atomic_load_explicit(&target->sink->dead, memory_order_relaxed);
}

/* Pushes the detached REQUEST. False when the target's socket has failed: it waits then, until
 * that connection ends. */
static bool request_push_locked(struct request *request, struct client *target, bool while_handled,
				struct flush_set *set)
{
	struct broker *broker = target->broker;
	enum sink_result result;

	request->correlation = broker->next_correlation;
	if (!hash_insert(&broker->correlations, &request->by_correlation,
			 hash_u64(request->correlation))) {
		request_fail_locked(request, METRIC_ERROR_MEMORY, REFUSAL_NONE,
				    SPAN_LITERAL("the server is out of memory for a push"),
				    while_handled, set);
		return true;
	}
	result = target->sink->ops->push(target->sink, request->correlation, request->payload,
					 request->buf, set);
	if (result != SINK_OK) {
		hash_remove(&broker->correlations, &request->by_correlation);
		if (result == SINK_DEAD)
			return false;
		request_over_capacity_locked(request, result, while_handled, set);
		return true;
	}
	broker->next_correlation++;
	request->state = REQUEST_PUSHED;
	request->target = target;
	request->payload = (struct span){0};
	buf_unref(&request->buf);
	list_append(&target->pushes, &request->in_target);
	target->push_count++;
	target->last_used = broker->next_use++;
	broker->pushed_count++;
	metric_add(METRIC_PUSHES, 1);
	request_start_deadline_locked(broker, request);
	return true;
}

/* Someone waits for a worker that has not settled: it is to be told when that is over. */
static void target_await_settling_locked(struct client *target, int64_t now_ns)
{
	if (now_ns >= target->settled_ns || deadline_queued(&target->settle))
		return;
	deadlines_add(&target->broker->settle_deadlines, &target->settle, target->settled_ns);
	deadline_thread_poke_locked(target->broker);
}

static void request_to_target_locked(struct request *request, struct client *target,
				     bool while_handled, struct flush_set *set)
{
	int64_t now_ns = target->settled_ns == 0 ? 0 : clock_mono_ns();

	if (list_empty(&target->turns) && target_is_ready_locked(target, now_ns) &&
	    request_push_locked(request, target, while_handled, set))
		return;
	if (!request_keep_locked(request, while_handled, set))
		return;
	request->state = REQUEST_WAITING_TURN;
	request->target = target;
	list_append(&target->turns, &request->in_target);
	target_await_settling_locked(target, now_ns);
}

/* Its time is up; the deadline thread comes to it next. */
static bool request_is_late_locked(const struct request *request, int64_t now_ns)
{
	return deadline_queued(&request->deadline) && request->deadline.when_ns <= now_ns;
}

/* Pushes what waits for its turn, as far as there are places. Nobody waits any more for what is
 * late: it is not the worker's to do. */
static void target_advance_locked(struct client *target, struct flush_set *set)
{
	int64_t now_ns;

	if (list_empty(&target->turns))
		return;
	now_ns = clock_mono_ns();
	while (!list_empty(&target->turns) && target_is_ready_locked(target, now_ns)) {
		struct request *request = LIST_ENTRY(target->turns.next, struct request, in_target);

		if (request_is_late_locked(request, now_ns)) {
			request_expire_locked(request, set);
			continue;
		}
		list_remove(&request->in_target);
		request_uncharge_locked(request);
		request->state = REQUEST_HANDLED;
		if (!request_push_locked(request, target, false, set)) {
			request->state = REQUEST_WAITING_TURN;
			request_charge_locked(request);
			list_insert_before(target->turns.next, &request->in_target);
			break;
		}
	}
	if (!list_empty(&target->turns))
		target_await_settling_locked(target, now_ns);
}

void client_settled_locked(struct client *client, struct flush_set *set)
{
	target_advance_locked(client, set);
}

/* --- who answers --------------------------------------------------------------------------- */

/* A connection that said "no more pushes" gets none, by no address. */
static bool client_takes_pushes(const struct client *client)
{
	return !client->no_pushes && (client->registration == NULL ||
				      client->registration->state != REGISTRATION_LEAVING);
}

static struct client *client_find_locked(struct broker *broker, uint64_t id)
{
	for (struct hash_node *node = hash_first(&broker->clients, hash_u64(id)); node != NULL;
	     node = hash_next(node)) {
		struct client *client = CONTAINER_OF(node, struct client, by_id);

		if (client->id == id)
			return client_takes_pushes(client) ? client : NULL;
	}
	return NULL;
}

bool conversation_address_exists_locked(struct broker *broker,
					const struct conversation *conversation)
{
	switch (conversation->kind) {
	case SUBJECT_CONNECTION:
		return client_find_locked(broker, conversation->number) != NULL;
	case SUBJECT_WORKER:
		return registration_exists_locked(broker, conversation->rest);
	case SUBJECT_CONTROL:
		return broker->control.known != NULL && broker->control.known(conversation->rest);
	case SUBJECT_QUEUE:
	case SUBJECT_OTHER:
		break;
	}
	return true;
}

/* The client to push to, which the conversation is bound to from now on; NULL: there is none. */
static struct client *conversation_resolve_locked(struct broker *broker,
						  struct conversation *conversation)
{
	struct registration *chosen;

	if (conversation->kind == SUBJECT_CONNECTION)
		return client_find_locked(broker, conversation->number);
	if (conversation->kind == SUBJECT_OTHER)
		return NULL;
	if (conversation->bound != NULL && conversation->bound->state == REGISTRATION_ACTIVE)
		return conversation->bound->client;
	registration_unref_locked(&conversation->bound);
	chosen = registration_choose_locked(broker, conversation);
	if (chosen == NULL)
		return NULL;
	chosen->references++;
	conversation->bound = chosen;
	return chosen->client;
}

/* QUEUE, if any, is a reference that the request takes over; LIST is one of the queue's. */
static void request_wait_in_queue_locked(struct request *request, struct worker_queue *queue,
					 struct list *list, bool while_handled,
					 struct flush_set *set)
{
	struct broker *broker = request->conversation->broker;

	if (!request_keep_locked(request, while_handled, set)) {
		if (queue != NULL)
			worker_queue_put_locked(broker, queue);
		return;
	}
	request->state = REQUEST_WAITING_WORKER;
	request->queue = queue;
	if (list != NULL)
		list_append(list, &request->in_target);
}

static void request_without_worker_locked(struct request *request, bool while_handled,
					  struct flush_set *set)
{
	struct conversation *conversation = request->conversation;
	struct broker *broker = conversation->broker;
	struct worker_queue *queue = NULL;

	if (conversation->kind == SUBJECT_CONNECTION || conversation->kind == SUBJECT_WORKER) {
		request_fail_locked(request, METRIC_ERROR_NOT_FOUND, REFUSAL_NONE,
				    SPAN_LITERAL("not-found: nobody has this address any more"),
				    while_handled, set);
		return;
	}
	switch (broker->no_worker) {
	case BROKER_NO_WORKER_ECHO:
		request_reply_locked(request, request->payload, request->buf, request->started_ns,
				     set);
		return;
	case BROKER_NO_WORKER_ERROR:
		request_fail_locked(request, METRIC_ERROR_NO_WORKER, REFUSAL_NONE,
				    SPAN_LITERAL("no-worker: no worker is registered for the "
						 "subject of this conversation"),
				    while_handled, set);
		return;
	case BROKER_NO_WORKER_WAIT:
		break;
	}
	if (conversation->kind == SUBJECT_QUEUE) {
		queue = worker_queue_get_locked(broker, conversation->queue);
		if (queue == NULL) {
			request_fail_locked(
				request, METRIC_ERROR_MEMORY, REFUSAL_NONE,
				SPAN_LITERAL("the server is out of memory for a request "
					     "that has to wait"),
				while_handled, set);
			return;
		}
	}
	request_wait_in_queue_locked(request, queue, queue != NULL ? &queue->waiting : NULL,
				     while_handled, set);
}

/* Where earlier requests of the conversation may be waiting to be resolved anew; NULL: none are. */
static struct worker_queue *conversation_waking_locked(const struct conversation *conversation)
{
	struct worker_queue *queue;

	if (conversation->waiting_count == 0 || conversation->kind != SUBJECT_QUEUE ||
	    list_empty(&conversation->broker->waking))
		return NULL;
	queue = worker_queue_find_locked(conversation->broker, conversation->queue);
	return queue == NULL || list_empty(&queue->anew) ? NULL : queue;
}

void request_route_locked(struct request *request, bool while_handled, struct flush_set *set)
{
	struct conversation *conversation = request->conversation;
	struct worker_queue *waking =
		while_handled ? conversation_waking_locked(conversation) : NULL;
	struct client *target;

	if (waking != NULL) { /* it goes behind those */
		request_wait_in_queue_locked(request, worker_queue_ref_locked(waking),
					     &waking->anew, while_handled, set);
		return;
	}
	target = conversation_resolve_locked(conversation->broker, conversation);
	if (target == NULL)
		request_without_worker_locked(request, while_handled, set);
	else
		request_to_target_locked(request, target, while_handled, set);
}

/* --- resolving anew ------------------------------------------------------------------------ */

/*
 * A registration may concern any number of requests that wait, and a client may send one in every
 * frame. So they are only put up at once, in the `anew` of a queue, and resolved in steps: who puts
 * them up does the first one, the deadline thread the others, and between two steps the lock is
 * free for many times as long as the step took. A queue has one request resolved at a time, so that
 * none has to wait for what is put up in another.
 */
#define ANEW_STEP_NS 50000
#define ANEW_PAUSE 8

/* The requests in LIST are to be resolved anew. */
static void queue_put_up_locked(struct broker *broker, struct worker_queue *queue,
				struct list *list)
{
	if (list_empty(list))
		return;
	list_append_all(&queue->anew, list);
	if (list_empty(&queue->in_waking))
		list_append(&broker->waking, &worker_queue_ref_locked(queue)->in_waking);
}

void queue_wake_locked(struct broker *broker, struct worker_queue *queue)
{
	queue_put_up_locked(broker, queue, &queue->waiting);
}

/* Takes a waiting request out of its list and resolves it anew. */
static void request_resolve_anew_locked(struct broker *broker, struct request *request,
					int64_t now_ns, struct flush_set *set)
{
	if (request_is_late_locked(request, now_ns)) {
		request_expire_locked(request, set);
		return;
	}
	request_detach_locked(broker, request);
	request->state = REQUEST_HANDLED;
	request_route_locked(request, false, set);
}

bool requests_resolve_anew_locked(struct broker *broker, struct flush_set *set)
{
	int64_t start_ns, now_ns;
	bool in_time;

	if (list_empty(&broker->waking))
		return false;
	start_ns = now_ns = clock_mono_ns();
	in_time = start_ns >= broker->anew_ns;
	if (in_time) {
		while (!list_empty(&broker->waking) && now_ns - start_ns < ANEW_STEP_NS) {
			struct worker_queue *queue =
				LIST_ENTRY(broker->waking.next, struct worker_queue, in_waking);

			list_remove(&queue->in_waking);
			if (list_empty(&queue->anew)) {
				worker_queue_put_locked(broker, queue);
				continue;
			}
			list_append(&broker->waking, &queue->in_waking);
			request_resolve_anew_locked(
				broker, LIST_ENTRY(queue->anew.next, struct request, in_target),
				now_ns, set);
			now_ns = clock_mono_ns();
		}
		broker->anew_ns = now_ns + ANEW_PAUSE * (now_ns - start_ns);
	}
	deadline_thread_poke_locked(broker);
	return in_time;
}

/* --- endings ------------------------------------------------------------------------------- */

void target_withdraw_locked(struct client *target, struct worker_queue *queue)
{
	queue_put_up_locked(target->broker, queue, &target->turns);
}

/* Only its own address led to it, which few may use, and leads nowhere now. */
static void target_lose_turns_locked(struct client *target, struct flush_set *set)
{
	while (!list_empty(&target->turns))
		request_resolve_anew_locked(
			target->broker, LIST_ENTRY(target->turns.next, struct request, in_target),
			clock_mono_ns(), set);
}

void target_lose_locked(struct client *target, struct flush_set *set)
{
	struct broker *broker = target->broker;

	target_lose_turns_locked(target, set);
	while (!list_empty(&target->pushes)) {
		struct request *request =
			LIST_ENTRY(target->pushes.next, struct request, in_target);

		request_detach_locked(broker, request);
		conversation_release_locked(request->conversation);
		metric_add(METRIC_PUSH_LOST, 1);
		request_fail_locked(request, METRIC_ERROR_WORKER_LOST, REFUSAL_NONE,
				    SPAN_LITERAL("worker-lost: the connection of the worker ended "
						 "before it replied"),
				    false, set);
	}
}

void request_expire_locked(struct request *request, struct flush_set *set)
{
	struct broker *broker = request->conversation->broker;
	struct client *freed;

	ASSERT_MAGIC(request, REQUEST_MAGIC);
	freed = request_detach_locked(broker, request);
	if (freed != NULL) {
		freed->unanswered++;
		metric_add(METRIC_PUSH_TIMED_OUT, 1);
	}
	request_fail_locked(request, METRIC_ERROR_REPLY_TIMEOUT, REFUSAL_NONE,
			    freed != NULL
				    ? SPAN_LITERAL("reply-timeout: the worker did not reply "
						   "in time")
				    : SPAN_LITERAL("reply-timeout: no worker took the request "
						   "in time"),
			    false, set);
	if (freed != NULL)
		target_advance_locked(freed, set);
}

bool request_waits_locked(const struct request *request)
{
	return request->state == REQUEST_WAITING_WORKER || request->state == REQUEST_WAITING_TURN;
}

void request_forget_locked(struct request *request, struct flush_set *set)
{
	struct broker *broker = request->conversation->broker;
	struct client *freed = request_detach_locked(broker, request);

	metric_add(METRIC_PUSH_FORGOTTEN, freed != NULL ? 1 : 0);
	request_free_locked(broker, request);
	if (freed != NULL)
		target_advance_locked(freed, set);
}

static struct request *push_find_locked(struct client *client, uint64_t correlation)
{
	struct hash *pushes = &client->broker->correlations;

	for (struct hash_node *node = hash_first(pushes, hash_u64(correlation)); node != NULL;
	     node = hash_next(node)) {
		struct request *request = CONTAINER_OF(node, struct request, by_correlation);

		if (request->correlation == correlation)
			return request->target == client ? request : NULL;
	}
	return NULL;
}

static void push_still_working_locked(struct request *request, int64_t now_ns)
{
	struct broker *broker = request->conversation->broker;
	int64_t last_ns = clock_after_ms(request->started_ns, broker->reply_timeout_max_ms);
	int64_t when_ns = clock_after_ms(now_ns, broker->reply_timeout_ms);

	metric_add(METRIC_PUSH_WORKING, 1);
	if (when_ns > last_ns)
		when_ns = last_ns;
	if (when_ns > request->deadline.when_ns)
		request_arm_locked(broker, request, when_ns);
}

void broker_push_reply(struct client *client, uint64_t correlation,
		       enum broker_push_verdict verdict, enum refusal refusal, struct span payload,
		       struct buf *buf, int64_t now_ns, struct flush_set *set)
{
	struct broker *broker = client->broker;
	struct request *request;

	mutex_lock(&broker->lock);
	request = push_find_locked(client, correlation);
	if (request == NULL) {
		metric_add(METRIC_PUSH_STRAY, 1);
	} else if (verdict == BROKER_PUSH_WORKING) {
		push_still_working_locked(request, now_ns);
	} else {
		request_detach_locked(broker, request);
		client->unanswered = 0;
		if (verdict == BROKER_PUSH_REPLY) {
			metric_add(METRIC_PUSH_REPLIED, 1);
			request_reply_locked(request, payload, buf, now_ns, set);
		} else if (refusal == REFUSAL_NONE) {
			metric_add(METRIC_PUSH_FAILED, 1);
			request_fail_locked(request, METRIC_ERROR_WORKER_FAILED, refusal, payload,
					    false, set);
		} else {
			metric_add(METRIC_PUSH_REFUSED, 1);
			request_fail_locked(request, METRIC_ERROR_WORKER_REFUSED, refusal, payload,
					    false, set);
		}
		target_advance_locked(client, set);
	}
	mutex_unlock(&broker->lock);
}
