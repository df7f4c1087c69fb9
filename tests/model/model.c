#include "model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/fake_sink.h"
#include "base/clock.h"

/* --- telling ----------------------------------------------------------------------------- */

static void say(struct model *model, int client, size_t bytes, const char *format, ...)
	PRINTF_LIKE(4, 5);

/* One frame more in the outbox. */
static void say(struct model *model, int client, size_t bytes, const char *format, ...)
{
	struct model_client *told = &model->clients[client];
	size_t room = MODEL_SAID - told->said_length;
	va_list arguments;
	int length;

	if (told->dead)
		return;
	told->frames++;
	told->bytes += bytes;
	if (told->said_length > 0) {
		ASSERT(room > 2);
		memcpy(told->said + told->said_length, ", ", 3);
		told->said_length += 2;
		room -= 2;
	}
	va_start(arguments, format);
	length = vsnprintf(told->said + told->said_length, room, format, arguments);
	va_end(arguments);
	ASSERT(length >= 0 && (size_t)length < room);
	told->said_length += (size_t)length;
}

const char *model_said(struct model *model, int client)
{
	struct model_client *told = &model->clients[client];

	if (told->said_length == 0)
		told->said[0] = '\0';
	told->said_length = 0;
	return told->said;
}

/* What keeps a frame with BYTES of payload out of the outbox: NULL, or the bound. */
static const char *no_room(const struct model *model, int client, size_t bytes)
{
	const struct model_client *to = &model->clients[client];

	if (to->frames == 0) /* an empty one takes one frame of any size */
		return NULL;
	if (to->frames >= to->max_frames)
		return "max_outbox_frames";
	return to->bytes + bytes > to->max_bytes ? "max_outbox_bytes" : NULL;
}

/* --- channels ---------------------------------------------------------------------------- */

uint64_t model_subscriptions_of(const struct model *model, int client)
{
	uint64_t count = 0;

	for (int i = 0; i < model->subscription_count; i++)
		count += model->subscriptions[i].live && model->subscriptions[i].client == client;
	return count;
}

uint64_t model_subscriptions_to(const struct model *model, int channel)
{
	uint64_t count = 0;

	for (int i = 0; i < model->subscription_count; i++)
		count += model->subscriptions[i].live && model->subscriptions[i].channel == channel;
	return count;
}

static bool key_is_remembered(const struct model *model, int index)
{
	const struct model_key *key = &model->keys[index];
	const struct model_channel *channel = &model->channels[key->channel];
	uint64_t younger = 0;

	for (int i = index + 1; i < model->key_count; i++)
		younger += model->keys[i].channel == key->channel;
	return younger < channel->dedup_max_keys &&
	       model->now_ns < key->claimed_ns + channel->dedup_window_ms * NS_PER_MS;
}

uint64_t model_keys_of(const struct model *model, int channel)
{
	uint64_t count = 0;

	for (int i = 0; i < model->key_count; i++)
		count += model->keys[i].channel == channel && key_is_remembered(model, i);
	return count;
}

/* One message of a run: what became of it so far. */
struct published {
	const struct model_message *message;
	uint64_t id;
	bool duplicate, delivered;
};

static void claim(struct model *model, int channel, struct published *published)
{
	const char *key = published->message->key;

	for (int i = 0; key != NULL && i < model->key_count; i++) {
		if (model->keys[i].channel != channel || strcmp(model->keys[i].key, key) != 0 ||
		    !key_is_remembered(model, i))
			continue;
		published->duplicate = true;
		published->id = model->keys[i].message;
		model->channels[channel].dedup_hits++;
		return;
	}
	published->id = model->next_message++;
	model->channels[channel].publishes++;
	if (key != NULL) {
		struct model_key *entry = &model->keys[model->key_count++];

		ASSERT(model->key_count < MODEL_KEYS && strlen(key) < sizeof(entry->key));
		*entry = (struct model_key){
			.channel = channel, .message = published->id, .claimed_ns = model->now_ns};
		strcpy(entry->key, key);
	}
}

static void answer_publish(struct model *model, int client, const struct published *published)
{
	say(model, client, 0, "ack %u m%llu%s%s", published->message->stream,
	    (unsigned long long)published->id, published->delivered ? " delivered" : "",
	    published->duplicate ? " duplicate" : "");
}

/* ANSWER: the publisher's own subscription, in front of whose messages their answers stand. */
static void deliver(struct model *model, struct model_subscription *subscription,
		    struct published *run, size_t count, bool answer)
{
	struct model_channel *channel = &model->channels[subscription->channel];
	bool drops = channel->drop || subscription->never_shed, ended = false;
	int client = subscription->client;

	for (size_t i = 0; i < count; i++) {
		bool due = !run[i].duplicate && !ended && !model->clients[client].dead;
		size_t length = strlen(run[i].message->payload);
		bool fits = no_room(model, client, length) == NULL;

		if (due && fits)
			run[i].delivered = true;
		if (answer)
			answer_publish(model, client, &run[i]);
		if (due && fits) {
			char *shown = fake_shown(span_of(run[i].message->payload));

			say(model, client, length, "deliver %u #%llu m%llu %s",
			    subscription->stream, (unsigned long long)subscription->sequence,
			    (unsigned long long)run[i].id, shown);
			free(shown);
			channel->deliveries++;
		}
		ended |= due && !fits && !drops;
		channel->drops += due && !fits && drops;
		subscription->sequence += due && !ended;
	}
	if (ended) {
		channel->sheds++;
		subscription->live = false;
		say(model, client, 0, "shed %u", subscription->stream);
	}
}

void model_publish(struct model *model, int client, int channel,
		   const struct model_message *messages, size_t count)
{
	bool answers_due =
		!(model->clients[client].ever_registered && model->channels[channel].unanswered);
	struct published run[8] = {{0}};

	ASSERT(count <= ARRAY_LENGTH(run));
	for (size_t i = 0; i < count; i++) {
		run[i].message = &messages[i];
		claim(model, channel, &run[i]);
	}
	/* Others first: the answer says whether anybody has taken it. */
	for (int own = 0; own <= 1; own++) {
		for (int i = 0; i < model->subscription_count; i++) {
			struct model_subscription *subscription = &model->subscriptions[i];

			if (!subscription->live || subscription->channel != channel ||
			    (subscription->client == client) != (own == 1))
				continue;
			deliver(model, subscription, run, count, own == 1 && answers_due);
			if (own == 1)
				answers_due = false;
		}
	}
	for (size_t i = 0; answers_due && i < count; i++)
		answer_publish(model, client, &run[i]);
}

enum broker_subscribe_result model_subscribe(struct model *model, int client, uint32_t stream,
					     int channel, bool never_shed)
{
	struct model_subscription *subscription = &model->subscriptions[model->subscription_count];

	if (model_subscriptions_of(model, client) >= model->clients[client].limits.subscriptions)
		return BROKER_SUBSCRIBE_OVER_CAPACITY;
	ASSERT(model->subscription_count++ < MODEL_SUBSCRIPTIONS);
	*subscription = (struct model_subscription){.live = true,
						    .id = model->next_subscription++,
						    .sequence = 1,
						    .client = client,
						    .channel = channel,
						    .stream = stream,
						    .never_shed = never_shed};
	say(model, client, 0, "subscribed %u s%llu", stream, (unsigned long long)subscription->id);
	return BROKER_SUBSCRIBED;
}

void model_unsubscribe(struct model *model, int client, uint64_t id)
{
	for (int i = 0; i < model->subscription_count; i++)
		if (model->subscriptions[i].id == id && model->subscriptions[i].client == client)
			model->subscriptions[i].live = false;
}

/* --- counting requests ------------------------------------------------------------------- */

static bool is_waiting(const struct model_request *request)
{
	return request->state == MODEL_WAITS_WORKER || request->state == MODEL_WAITS_TURN;
}

uint64_t model_pending_replies_of(const struct model *model, int client)
{
	uint64_t count = 0;

	for (int i = 0; i < model->request_count; i++)
		count += model->requests[i].state != MODEL_ENDED && model->requests[i].wanted &&
			 model->requests[i].client == client;
	return count;
}

uint64_t model_waiting_of(const struct model *model, int client, bool one_way_only)
{
	uint64_t count = 0;

	for (int i = 0; i < model->request_count; i++)
		count += is_waiting(&model->requests[i]) && model->requests[i].client == client &&
			 !(one_way_only && model->requests[i].wanted);
	return count;
}

static size_t waiting_bytes_of(const struct model *model, int client)
{
	size_t bytes = 0;

	for (int i = 0; i < model->request_count; i++)
		if (is_waiting(&model->requests[i]) && model->requests[i].client == client)
			bytes += model->requests[i].length;
	return bytes;
}

uint64_t model_pushes_of(const struct model *model, int client)
{
	uint64_t count = 0;

	for (int i = 0; i < model->request_count; i++)
		count += model->requests[i].state == MODEL_PUSHED &&
			 model->requests[i].target == client;
	return count;
}

/* Answers that only the order of their conversation holds: how many, and their bytes. */
static uint64_t held_of(const struct model *model, int client, size_t *bytes)
{
	uint64_t count = 0;

	*bytes = 0;
	for (int i = 0; i < model->request_count; i++) {
		const struct model_request *request = &model->requests[i];

		if (request->state == MODEL_HELD && request->client == client) {
			count++;
			*bytes += request->answer_length + 64;
		}
	}
	return count;
}

/* --- conversations ----------------------------------------------------------------------- */

uint64_t model_conversations_of(const struct model *model, int client)
{
	uint64_t count = 0;

	for (int i = 0; i < model->conversation_count; i++)
		count += model->conversations[i].open && model->conversations[i].client == client;
	return count;
}

static int find_conversation(const struct model *model, int client, uint64_t id)
{
	for (int i = 0; i < model->conversation_count; i++)
		if (model->conversations[i].open && model->conversations[i].client == client &&
		    model->conversations[i].id == id)
			return i;
	return -1;
}

static void say_error(struct model *model, int client, uint32_t stream, uint64_t conversation,
		      const char *text)
{
	say(model, client, 0, "error %u c%llu %s", stream, (unsigned long long)conversation, text);
}

/* "$worker/" and the like: what follows PREFIX, or NULL. */
static const char *behind(const char *subject, const char *prefix)
{
	size_t length = strlen(prefix);

	return strncmp(subject, prefix, length) == 0 ? subject + length : NULL;
}

/* It has said that it wants no more pushes. */
static bool is_leaving(const struct model *model, int client)
{
	for (int i = 0; i < model->registration_count; i++)
		if (model->registrations[i].client == client &&
		    model->registrations[i].state == MODEL_LEAVING)
			return true;
	return false;
}

static int find_client(const struct model *model, const char *number)
{
	char text[24];

	for (int i = 0; i < MODEL_CLIENTS; i++) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)model->clients[i].id);
		if (model->clients[i].connected && model->clients[i].receiving &&
		    !is_leaving(model, i) && strcmp(text, number) == 0)
			return i;
	}
	return -1;
}

static bool is_registered(const struct model *model, const char *identity)
{
	for (int i = 0; i < model->registration_count; i++)
		if (model->registrations[i].state <= MODEL_LEAVING &&
		    strcmp(model->registrations[i].identity, identity) == 0)
			return true;
	return false;
}

/* True for every subject that is no address. */
static bool address_exists(const struct model *model, const char *subject)
{
	if (subject[0] != '$')
		return true;
	if (behind(subject, "$connection/") != NULL)
		return find_client(model, behind(subject, "$connection/")) >= 0;
	if (behind(subject, "$worker/") != NULL)
		return is_registered(model, behind(subject, "$worker/"));
	return strcmp(subject, "$control/" MODEL_CONTROL_NAME) == 0;
}

void model_open(struct model *model, int client, uint32_t stream, uint64_t id, const char *subject)
{
	struct model_conversation *conversation;

	if (find_conversation(model, client, id) >= 0) {
		say_error(model, client, stream, id,
			  "conversation id is already open on this connection; close it before "
			  "reopening or use a fresh id");
		return;
	}
	if (model_conversations_of(model, client) >= model->clients[client].limits.conversations) {
		say_error(model, client, stream, id,
			  "over-capacity: max_conversations_per_connection");
		return;
	}
	if (subject[0] == '$' && !model->clients[client].control) {
		say_error(model, client, stream, id, "not-permitted");
		return;
	}
	if (!address_exists(model, subject)) {
		say_error(model, client, stream, id, "not-found");
		return;
	}
	conversation = &model->conversations[model->conversation_count++];
	ASSERT(model->conversation_count < MODEL_CONVERSATIONS &&
	       strlen(subject) < sizeof(conversation->subject));
	*conversation =
		(struct model_conversation){.open = true, .client = client, .id = id, .bound = -1};
	strcpy(conversation->subject, subject);
}

/* --- answers ----------------------------------------------------------------------------- */

static uint64_t conversation_id(const struct model *model, const struct model_request *request)
{
	return model->conversations[request->conversation].id;
}

/* Sends the answers that nothing in front of them holds any more. */
static void send_answers(struct model *model, int conversation)
{
	for (int i = 0; i < model->request_count; i++) {
		struct model_request *request = &model->requests[i];

		if (request->conversation != conversation || !request->wanted ||
		    request->state == MODEL_ENDED)
			continue;
		if (request->state != MODEL_HELD)
			return;
		say(model, request->client,
		    request->answer_is_reply ? request->answer_length + 64 : 0, "%s",
		    request->answer);
		request->state = MODEL_ENDED;
	}
}

static void hold_answer(struct model *model, struct model_request *request, bool is_reply,
			size_t length)
{
	request->state = MODEL_HELD;
	request->answer_is_reply = is_reply;
	request->answer_length = length;
	send_answers(model, request->conversation);
}

/* HANDLED: while its frame is handled; only then a one-way message may get an error. */
static void fail(struct model *model, struct model_request *request, bool handled, const char *text)
{
	if (request->wanted) {
		snprintf(request->answer, sizeof(request->answer), "error %u c%llu %s",
			 request->stream, (unsigned long long)conversation_id(model, request),
			 text);
		/* The length of its text is not known here, but small: broker_model.c. */
		hold_answer(model, request, false, 0);
		return;
	}
	if (handled)
		say_error(model, request->client, request->stream, conversation_id(model, request),
			  text);
	request->state = MODEL_ENDED;
}

/* For exceeding a bound: at once, before other answers. */
static void fail_over_capacity(struct model *model, struct model_request *request, bool handled,
			       const char *bound)
{
	char text[64];

	snprintf(text, sizeof(text), "over-capacity: %s", bound);
	if (request->wanted || handled)
		say_error(model, request->client, request->stream, conversation_id(model, request),
			  text);
	request->state = MODEL_ENDED;
	send_answers(model, request->conversation);
}

static char *shown_payload(const char *payload, size_t length)
{
	uint8_t *bytes = malloc(length + 1);
	char *shown;

	ASSERT(bytes != NULL && strlen(payload) <= length);
	memset(bytes, '.', length);
	memcpy(bytes, payload, strlen(payload));
	shown = fake_shown((struct span){bytes, length});
	free(bytes);
	return shown;
}

static void reply(struct model *model, struct model_request *request, const char *payload,
		  size_t length)
{
	const struct model_client *client;
	size_t held_bytes, bytes;
	uint64_t pending, held;
	char *shown;

	if (!request->wanted) {
		request->state = MODEL_ENDED;
		return;
	}
	client = &model->clients[request->client];
	/* Pending conversations count with their places, 64 bytes for an empty one, and with what
	 * is held. */
	pending = model_pending_replies_of(model, request->client);
	held = held_of(model, request->client, &held_bytes);
	bytes = client->bytes + held_bytes + 64 * (pending - held - 1) + length + 64;
	if (client->frames > 0 || held > 0) {
		if (client->frames + pending > client->max_frames) {
			fail_over_capacity(model, request, false, "max_outbox_frames");
			return;
		}
		if (bytes > client->max_bytes) {
			fail_over_capacity(model, request, false, "max_outbox_bytes");
			return;
		}
	}
	shown = shown_payload(payload, length);
	snprintf(request->answer, sizeof(request->answer), "reply %u c%llu %s", request->stream,
		 (unsigned long long)conversation_id(model, request), shown);
	free(shown);
	hold_answer(model, request, true, length);
}

/* --- who answers ------------------------------------------------------------------------- */

int model_registration_of(const struct model *model, int client)
{
	for (int i = 0; i < model->registration_count; i++)
		if (model->registrations[i].client == client &&
		    model->registrations[i].state <= MODEL_LEAVING)
			return i;
	return -1;
}

/* An empty list contains every name. */
static bool contains(const char *names, const char *name)
{
	size_t length = strlen(name);

	if (*names == '\0' || length == 0)
		return true;
	for (const char *item = names; *item != '\0'; item += strspn(item, " ")) {
		size_t item_length = strcspn(item, " ");

		if (item_length == length && memcmp(item, name, length) == 0)
			return true;
		item += item_length;
	}
	return false;
}

/* Splits QUEUE, NAMESPACE/QUEUE or NAMESPACE/QUEUE/ACTIVITY; false for another form. */
static bool split(const char *subject, char parts[3][32])
{
	char first[32], second[32], third[32];
	int end = 0;

	memset(parts, 0, 3 * 32);
	if (subject[0] == '$')
		return false;
	if (sscanf(subject, "%31[^/]/%31[^/]/%31[^/]%n", first, second, third, &end) == 3 &&
	    subject[end] == '\0') {
		strcpy(parts[0], second);
		strcpy(parts[1], first);
		strcpy(parts[2], third);
		return true;
	}
	end = 0;
	if (sscanf(subject, "%31[^/]/%31[^/]%n", first, second, &end) == 2 &&
	    subject[end] == '\0' && end > 0) {
		strcpy(parts[0], second);
		strcpy(parts[1], first);
		return true;
	}
	end = 0;
	if (sscanf(subject, "%31[^/]%n", first, &end) == 1 && subject[end] == '\0' && end > 0) {
		strcpy(parts[0], first);
		return true;
	}
	return false;
}

static bool may_serve(const struct model *model, const struct model_registration *registration,
		      const char *subject)
{
	char parts[3][32];

	if (registration->state != MODEL_ACTIVE || model->clients[registration->client].dead)
		return false;
	if (behind(subject, "$worker/") != NULL)
		return strcmp(registration->identity, behind(subject, "$worker/")) == 0;
	return split(subject, parts) && strcmp(registration->queue, parts[0]) == 0 &&
	       contains(registration->namespaces, parts[1]) &&
	       contains(registration->activities, parts[2]);
}

static bool is_better(const struct model *model, int a, int b)
{
	bool a_subscribes = model_subscriptions_of(model, a) > 0;
	bool b_subscribes = model_subscriptions_of(model, b) > 0;
	uint64_t a_pushes = model_pushes_of(model, a) + model->clients[a].unanswered;
	uint64_t b_pushes = model_pushes_of(model, b) + model->clients[b].unanswered;

	if (a_subscribes != b_subscribes)
		return b_subscribes;
	if (a_pushes != b_pushes)
		return a_pushes < b_pushes;
	return model->clients[a].last_used < model->clients[b].last_used;
}

/* Among equals the one that registered first: our choice. */
static int choose(const struct model *model, const char *subject)
{
	int best = -1;

	for (int i = 0; i < model->registration_count; i++)
		if (may_serve(model, &model->registrations[i], subject) &&
		    (best < 0 || is_better(model, model->registrations[i].client,
					   model->registrations[best].client)))
			best = i;
	return best;
}

/* The client that the conversation's next message goes to; -1: nobody. */
static int resolve(struct model *model, struct model_conversation *conversation)
{
	if (behind(conversation->subject, "$connection/") != NULL)
		return find_client(model, behind(conversation->subject, "$connection/"));
	if (conversation->bound >= 0 &&
	    model->registrations[conversation->bound].state == MODEL_ACTIVE)
		return model->registrations[conversation->bound].client;
	conversation->bound = choose(model, conversation->subject);
	return conversation->bound < 0 ? -1 : model->registrations[conversation->bound].client;
}

/* --- on the way to a worker -------------------------------------------------------------- */

static bool somebody_waits_for(const struct model *model, int target)
{
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].state == MODEL_WAITS_TURN &&
		    model->requests[i].target == target)
			return true;
	return false;
}

static bool may_push(const struct model *model, int target)
{
	const struct model_client *client = &model->clients[target];

	return client->receiving && !client->dead && model->now_ns >= client->settled_ns &&
	       model_pushes_of(model, target) < client->limits.pushes;
}

static void start_deadline(struct model *model, struct model_request *request)
{
	if (request->deadline_ns == 0)
		request->deadline_ns = request->started_ns + model->reply_timeout_ms * NS_PER_MS;
}

static void push(struct model *model, struct model_request *request, int target, bool handled)
{
	const char *bound = no_room(model, target, request->length);
	char *shown;

	if (bound != NULL) {
		fail_over_capacity(model, request, handled, bound);
		return;
	}
	request->state = MODEL_PUSHED;
	request->target = target;
	request->correlation = model->next_correlation++;
	model->clients[target].last_used = model->next_use++;
	start_deadline(model, request);
	shown = shown_payload(request->payload, request->length);
	say(model, target, request->length, "push p%llu %s",
	    (unsigned long long)request->correlation, shown);
	free(shown);
}

/* It waits from now on, in STATE, unless it is a new one and a bound forbids that. */
static void wait_in(struct model *model, struct model_request *request, bool handled,
		    enum model_request_state state, int target)
{
	const struct broker_client_limits *limits = &model->clients[request->client].limits;

	/* One-way messages need no place for a reply; what bounds those is our choice. */
	if (handled && !request->wanted &&
	    model_waiting_of(model, request->client, true) >= limits->replies) {
		fail_over_capacity(model, request, true, "max_pending_replies_per_connection");
		return;
	}
	if (handled && model_waiting_of(model, request->client, false) > 0 &&
	    waiting_bytes_of(model, request->client) + request->length > limits->pending_bytes) {
		fail_over_capacity(model, request, true, "max_pending_bytes_per_connection");
		return;
	}
	request->state = state;
	request->target = target;
	request->turn = model->next_turn++;
	start_deadline(model, request);
}

static void route(struct model *model, struct model_request *request, bool handled)
{
	struct model_conversation *conversation = &model->conversations[request->conversation];
	int target = resolve(model, conversation);

	if (target >= 0) {
		if (!somebody_waits_for(model, target) && may_push(model, target))
			push(model, request, target, handled);
		else
			wait_in(model, request, handled, MODEL_WAITS_TURN, target);
	} else if (conversation->subject[0] == '$') {
		fail(model, request, handled, "not-found");
	} else if (model->no_worker == BROKER_NO_WORKER_ECHO) {
		reply(model, request, request->payload, request->length);
	} else if (model->no_worker == BROKER_NO_WORKER_ERROR) {
		fail(model, request, handled, "no-worker");
	} else {
		wait_in(model, request, handled, MODEL_WAITS_WORKER, -1);
	}
}

/* The one of those in STATE, for TARGET or for any (-1), that has waited longest. */
static struct model_request *first_in(struct model *model, enum model_request_state state,
				      int target)
{
	struct model_request *first = NULL;

	for (int i = 0; i < model->request_count; i++) {
		struct model_request *request = &model->requests[i];

		if (request->state == state && (target < 0 || request->target == target) &&
		    (first == NULL || request->turn < first->turn))
			first = request;
	}
	return first;
}

static void expire(struct model *model, struct model_request *request);

/* What is late already is not pushed any more. */
static void advance(struct model *model, int target)
{
	struct model_request *request;

	while (may_push(model, target) &&
	       (request = first_in(model, MODEL_WAITS_TURN, target)) != NULL) {
		if (request->deadline_ns <= model->now_ns)
			expire(model, request);
		else
			push(model, request, target, false);
	}
}

/* What waits for its turn at TARGET is resolved anew. */
static void reroute_turns(struct model *model, int target)
{
	uint64_t until = model->next_turn;
	struct model_request *request;

	while ((request = first_in(model, MODEL_WAITS_TURN, target)) != NULL &&
	       request->turn < until) {
		request->state = MODEL_HANDLED;
		route(model, request, false);
	}
}

/* --- messages ---------------------------------------------------------------------------- */

/* What keeps a new request out: the bound, or NULL. */
static const char *too_many_requests(const struct model *model, int conversation)
{
	int client = model->conversations[conversation].client;
	const struct model_client *from = &model->clients[client];
	uint64_t pending = model_pending_replies_of(model, client), in_conversation = 0, held;
	size_t held_bytes;

	for (int i = 0; i < model->request_count; i++)
		in_conversation += model->requests[i].state != MODEL_ENDED &&
				   model->requests[i].wanted &&
				   model->requests[i].conversation == conversation;
	if (in_conversation >= from->limits.replies_per_conversation)
		return "max_pending_replies_per_conversation";
	if (pending >= from->limits.replies)
		return "max_pending_replies_per_connection";
	held = held_of(model, client, &held_bytes);
	if (from->frames + pending + 1 > from->max_frames)
		return "max_outbox_frames";
	if (from->bytes + held_bytes + 64 * (pending - held + 1) > from->max_bytes)
		return "max_outbox_bytes";
	return NULL;
}

void model_message(struct model *model, int client, uint32_t stream, uint64_t id, bool wanted,
		   const char *payload, size_t length)
{
	int index = find_conversation(model, client, id);
	struct model_conversation *conversation;
	struct model_request *request;

	if (index < 0) {
		say_error(model, client, stream, id, "conversation is not open on this connection");
		return;
	}
	if (wanted && too_many_requests(model, index) != NULL) {
		char text[64];

		snprintf(text, sizeof(text), "over-capacity: %s", too_many_requests(model, index));
		say_error(model, client, stream, id, text);
		return;
	}
	ASSERT(model->request_count < MODEL_REQUESTS);
	conversation = &model->conversations[index];
	request = &model->requests[model->request_count++];
	*request = (struct model_request){.state = MODEL_HANDLED,
					  .wanted = wanted,
					  .client = client,
					  .conversation = index,
					  .stream = stream,
					  .length = length,
					  .started_ns = model->now_ns};
	ASSERT(strlen(payload) < sizeof(request->payload));
	strcpy(request->payload, payload);
	if (behind(conversation->subject, "$control/") != NULL) {
		if (wanted && length > model->clients[client].limits.frame_bytes)
			fail(model, request, true, "over-capacity: max_frame_size");
		else
			reply(model, request, payload, length);
		return;
	}
	if (conversation->bound >= 0 &&
	    model->registrations[conversation->bound].state == MODEL_LOST) {
		conversation->bound = -1;
		if (address_exists(model, conversation->subject)) {
			fail(model, request, true, "worker-lost");
			return;
		}
	}
	route(model, request, true);
}

/* --- endings ----------------------------------------------------------------------------- */

/* Frees its place, if it is a worker's. */
static void forget(struct model *model, struct model_request *request)
{
	bool pushed = request->state == MODEL_PUSHED;

	request->state = MODEL_ENDED;
	if (pushed)
		advance(model, request->target);
}

/* Those that wait first: they are not to move up into the places of the others. */
static void forget_requests(struct model *model, int conversation)
{
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].conversation == conversation && model->requests[i].wanted &&
		    is_waiting(&model->requests[i]))
			forget(model, &model->requests[i]);
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].conversation == conversation && model->requests[i].wanted &&
		    model->requests[i].state != MODEL_ENDED)
			forget(model, &model->requests[i]);
}

void model_close(struct model *model, int client, uint64_t id)
{
	int conversation = find_conversation(model, client, id);

	if (conversation < 0)
		return;
	forget_requests(model, conversation);
	model->conversations[conversation].open = false;
}

void model_register(struct model *model, int client, const char *queue, const char *namespaces,
		    const char *activities, const char *identity, bool leaving)
{
	struct model_registration *registration;
	int before = model_registration_of(model, client);
	uint64_t until = model->next_turn;

	if (before >= 0)
		model->registrations[before].state = MODEL_LEFT;
	ASSERT(model->registration_count < MODEL_REGISTRATIONS);
	registration = &model->registrations[model->registration_count++];
	*registration = (struct model_registration){.state = leaving ? MODEL_LEAVING : MODEL_ACTIVE,
						    .client = client};
	strcpy(registration->queue, queue);
	strcpy(registration->namespaces, namespaces);
	strcpy(registration->activities, activities);
	strcpy(registration->identity, identity);
	model->clients[client].ever_registered = true;
	say(model, client, 0, "registered");
	model->clients[client].settled_ns = model->now_ns + model->settle_ms * NS_PER_MS;
	reroute_turns(model, client);
	if (leaving)
		return;
	/* Those that wait for a worker of this queue are looked at again, oldest first. */
	for (uint64_t turn = 0; turn < until; turn++) {
		for (int i = 0; i < model->request_count; i++) {
			struct model_request *request = &model->requests[i];
			char parts[3][32];

			if (request->state != MODEL_WAITS_WORKER || request->turn != turn ||
			    !split(model->conversations[request->conversation].subject, parts) ||
			    strcmp(parts[0], queue) != 0)
				continue;
			request->state = MODEL_HANDLED;
			route(model, request, false);
		}
	}
}

/* A conversation that hears of the loss of its worker now needs not hear of it again. */
static void told_of_loss(struct model *model, const struct model_request *request)
{
	struct model_conversation *conversation = &model->conversations[request->conversation];

	if (conversation->bound >= 0 &&
	    model->registrations[conversation->bound].state == MODEL_LOST)
		conversation->bound = -1;
}

void model_end_receiving(struct model *model, int client)
{
	int registration = model_registration_of(model, client);

	for (int i = 0; i < model->subscription_count; i++)
		if (model->subscriptions[i].client == client)
			model->subscriptions[i].live = false;
	model->clients[client].receiving = false;
	if (registration >= 0)
		model->registrations[registration].state = MODEL_LOST;
	for (uint64_t correlation = 0; correlation < model->next_correlation; correlation++) {
		for (int i = 0; i < model->request_count; i++) {
			struct model_request *request = &model->requests[i];

			if (request->state != MODEL_PUSHED || request->target != client ||
			    request->correlation != correlation)
				continue;
			told_of_loss(model, request);
			fail(model, request, false, "worker-lost");
		}
	}
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].state == MODEL_WAITS_TURN &&
		    model->requests[i].target == client)
			told_of_loss(model, &model->requests[i]);
	reroute_turns(model, client);
}

void model_end_conversations(struct model *model, int client)
{
	model->clients[client].receiving = false;
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].client == client && is_waiting(&model->requests[i]))
			forget(model, &model->requests[i]);
	for (int i = 0; i < model->conversation_count; i++) {
		if (!model->conversations[i].open || model->conversations[i].client != client)
			continue;
		forget_requests(model, i);
		model->conversations[i].open = false;
	}
	/* One-way messages that were pushed are the worker's. */
	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].client == client)
			model->requests[i].client = -1;
}

void model_push_reply(struct model *model, int client, uint64_t correlation,
		      enum broker_push_verdict verdict, enum refusal refusal, const char *payload,
		      size_t length)
{
	static const char *const words[] = {"", "busy", "invalid", "unavailable", "internal"};
	struct model_request *request = NULL;

	for (int i = 0; i < model->request_count; i++)
		if (model->requests[i].state == MODEL_PUSHED &&
		    model->requests[i].target == client &&
		    model->requests[i].correlation == correlation)
			request = &model->requests[i];
	if (request == NULL)
		return;
	if (verdict == BROKER_PUSH_WORKING) {
		int64_t afresh = model->now_ns + model->reply_timeout_ms * NS_PER_MS;
		int64_t last = request->started_ns + model->reply_timeout_max_ms * NS_PER_MS;

		afresh = afresh < last ? afresh : last;
		if (request->deadline_ns < afresh)
			request->deadline_ns = afresh;
		return;
	}
	model->clients[client].unanswered = 0;
	request->state = MODEL_HANDLED;
	if (verdict == BROKER_PUSH_REPLY) {
		reply(model, request, payload, length);
	} else if (refusal == REFUSAL_NONE) {
		fail(model, request, false, "worker-failed");
	} else if (request->wanted) {
		snprintf(request->answer, sizeof(request->answer), "refused %u c%llu %s '%s'",
			 request->stream, (unsigned long long)conversation_id(model, request),
			 words[refusal], payload);
		hold_answer(model, request, false, strlen(payload));
	} else {
		request->state = MODEL_ENDED;
	}
	advance(model, client);
}

/* --- time -------------------------------------------------------------------------------- */

static void expire(struct model *model, struct model_request *request)
{
	bool pushed = request->state == MODEL_PUSHED;

	if (pushed)
		model->clients[request->target].unanswered++;
	request->state = MODEL_HANDLED;
	fail(model, request, false, "reply-timeout");
	if (pushed)
		advance(model, request->target);
}

static bool has_deadline(const struct model_request *request)
{
	return is_waiting(request) || request->state == MODEL_PUSHED;
}

void model_advance(struct model *model, int64_t ns)
{
	int64_t until_ns = model->now_ns + ns;

	for (;;) {
		struct model_request *due = NULL;
		int settled = -1;
		int64_t next_ns = until_ns + 1;

		for (int i = 0; i < MODEL_CLIENTS; i++) {
			const struct model_client *client = &model->clients[i];

			if (client->connected && somebody_waits_for(model, i) &&
			    client->settled_ns > model->now_ns && client->settled_ns < next_ns) {
				settled = i;
				next_ns = client->settled_ns;
			}
		}
		for (int i = 0; i < model->request_count; i++) {
			struct model_request *request = &model->requests[i];

			if (has_deadline(request) && request->deadline_ns < next_ns) {
				due = request;
				next_ns = request->deadline_ns;
			}
		}
		if (next_ns > until_ns)
			break;
		if (next_ns > model->now_ns)
			model->now_ns = next_ns;
		if (due != NULL)
			expire(model, due);
		else
			advance(model, settled);
	}
	model->now_ns = until_ns;
}

/* --- connections ------------------------------------------------------------------------- */

void model_connect(struct model *model, int client, uint64_t id, bool control,
		   const struct broker_client_limits *limits, uint64_t max_frames,
		   uint64_t max_bytes)
{
	model->clients[client] = (struct model_client){.connected = true,
						       .receiving = true,
						       .control = control,
						       .id = id,
						       .limits = *limits,
						       .max_frames = max_frames,
						       .max_bytes = max_bytes};
}

void model_gone(struct model *model, int client)
{
	model->clients[client].connected = false;
}

void model_written(struct model *model, int client)
{
	model->clients[client].frames = model->clients[client].bytes = 0;
}

void model_die(struct model *model, int client)
{
	model->clients[client].dead = true;
	model_written(model, client);
}
