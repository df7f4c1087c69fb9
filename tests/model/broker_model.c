/*
 * Random operations on the broker, with fake connections and fake time, each of them on the model
 * as well (model.h); after each, every connection must have been told the same by both, and the
 * numbers that others may know must agree.
 *
 *     MODEL_RUNS=N MODEL_SEED=N tests/model/broker_model
 *
 * A run that fails prints its seed and its operations, and ends the program. MODEL_SEED is the seed
 * of the first run; with MODEL_RUNS=1 it is the only one, and with MODEL_VERBOSE=1 what was told is
 * printed, too.
 */
#include "model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../unit/fake_sink.h"
#include "../unit/fake_time.h"

#define RUNS 2000
#define OPERATIONS_MAX 250

/*
 * Payloads are a few bytes, or whole units. Everything else that may count in an outbox stays well
 * below half a unit, and bounds lie between whole ones: so no decision depends on the lengths of
 * the error texts, which the model does not know.
 */
#define UNIT 6000

static struct model model;
static struct broker *broker;
static struct fake_client clients[MODEL_CLIENTS];
static uint64_t next_id, next_payload;

static struct broker_channel_settings channel_settings[MODEL_CHANNELS];
static char *unanswered[] = {(char *)"quiet"};
static struct broker_settings settings;

/* --- chance ------------------------------------------------------------------------------ */

static uint64_t chance;

/* Below LIMIT. */
static unsigned draw(unsigned limit)
{
	chance = chance * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (unsigned)((chance >> 33) % limit);
}

static bool one_in(unsigned count)
{
	return draw(count) == 0;
}

#define DRAW_OF(array) ((array)[draw(ARRAY_LENGTH(array))])

/* --- what was done ----------------------------------------------------------------------- */

static char *history;
static size_t history_length;
static FILE *history_file;
static uint64_t seed;
static bool verbose;

static void note(const char *format, ...) PRINTF_LIKE(1, 2);

static void note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vfprintf(history_file, format, arguments);
	va_end(arguments);
}

static _Noreturn void disagree(const char *format, ...) PRINTF_LIKE(1, 2);

static _Noreturn void disagree(const char *format, ...)
{
	va_list arguments;

	fclose(history_file);
	printf("seed %llu:\n%s", (unsigned long long)seed, history);
	va_start(arguments, format);
	vprintf(format, arguments);
	va_end(arguments);
	printf("\nRun it alone: MODEL_RUNS=1 MODEL_SEED=%llu\n0 passed, 1 failed\n",
	       (unsigned long long)seed);
	exit(1);
}

/* --- comparing --------------------------------------------------------------------------- */

static void compare_number(const char *what, int of, uint64_t is, uint64_t expected)
{
	if (is != expected)
		disagree("%s of %d is %llu, and %llu in the model", what, of,
			 (unsigned long long)is, (unsigned long long)expected);
}

static void compare_client(int client)
{
	const char *said = fake_said(&clients[client]), *expected = model_said(&model, client);
	struct broker_client_state state;
	uint64_t conversations, pending, waiting;

	if (verbose && *said != '\0')
		note("    %d: %s\n", client, said);
	if (strcmp(said, expected) != 0)
		disagree("%d was told     %s\nthe model says  %s", client, said, expected);
	broker_client_state(clients[client].client, &state);
	conversations = model_conversations_of(&model, client);
	pending = model_pending_replies_of(&model, client);
	waiting = model_waiting_of(&model, client, false);
	compare_number("subscriptions", client, state.subscriptions,
		       model_subscriptions_of(&model, client));
	compare_number("conversations", client, state.conversations, conversations);
	compare_number("pending_replies", client, state.pending_replies, pending);
	compare_number("pending_pushes", client, state.pending_pushes,
		       model_pushes_of(&model, client));
	compare_number("waiting", client, state.waiting,
		       model_waiting_of(&model, client, true) > 0);
	compare_number("worker", client, state.worker, model_registration_of(&model, client) >= 0);
	for (int i = 0; i < MODEL_CLIENTS; i++) {
		conversations -= model_conversations_of(&model, i);
		pending -= model_pending_replies_of(&model, i);
		waiting -= model_waiting_of(&model, i, false);
	}
	compare_number("conversations elsewhere", client,
		       broker_conversations_elsewhere(broker, clients[client].client),
		       conversations != 0 || pending != 0 || waiting != 0);
	if (model_pending_replies_of(&model, client) == 0 &&
	    model_waiting_of(&model, client, false) == 0)
		compare_number("quiet", client, broker_client_wait_quiet(clients[client].client),
			       true);
}

static void compare_channels(void)
{
	struct broker_channel_state *states;
	size_t count;

	ASSERT(broker_channel_states(broker, &states, &count) && count == MODEL_CHANNELS);
	for (int i = 0; i < MODEL_CHANNELS; i++) {
		const struct model_channel *channel = &model.channels[i];

		compare_number("channel subscriptions", i, states[i].subscriptions,
			       model_subscriptions_to(&model, i));
		compare_number("publishes", i, states[i].publishes, channel->publishes);
		compare_number("deliveries", i, states[i].deliveries, channel->deliveries);
		compare_number("sheds", i, states[i].sheds, channel->sheds);
		compare_number("drops", i, states[i].drops, channel->drops);
		compare_number("dedup_keys", i, states[i].dedup_keys, model_keys_of(&model, i));
		compare_number("dedup_hits", i, states[i].dedup_hits, channel->dedup_hits);
	}
	free(states);
}

static void compare_workers(void)
{
	struct broker_worker_state *states;
	size_t count, expected = 0;

	ASSERT(broker_worker_states(broker, &states, &count));
	for (size_t i = 0; i < count; i++) {
		int client = 0, registration;

		while (client < MODEL_CLIENTS &&
		       !(model.clients[client].connected &&
			 model.clients[client].id == states[i].connection))
			client++;
		ASSERT(client < MODEL_CLIENTS);
		registration = model_registration_of(&model, client);
		ASSERT(registration >= 0);
		compare_number("outstanding", client, states[i].outstanding,
			       model_pushes_of(&model, client));
		compare_number("unanswered", client, states[i].unanswered,
			       model.clients[client].unanswered);
		compare_number("leaving", client, states[i].leaving,
			       model.registrations[registration].state == MODEL_LEAVING);
		ASSERT(span_equal(states[i].queue,
				  span_of(model.registrations[registration].queue)));
	}
	for (int i = 0; i < MODEL_CLIENTS; i++)
		expected += model.clients[i].connected && model_registration_of(&model, i) >= 0;
	compare_number("workers", 0, count, expected);
	broker_worker_states_free(&states, count);
}

static void compare_totals(void)
{
	struct broker_totals is, expected = {0};

	broker_totals(broker, &is);
	for (int i = 0; i < MODEL_CLIENTS; i++) {
		if (!model.clients[i].connected)
			continue;
		expected.pending_replies += model_pending_replies_of(&model, i);
		expected.pending_pushes += model_pushes_of(&model, i);
		expected.waiting_requests += model_waiting_of(&model, i, false);
		expected.workers += model_registration_of(&model, i) >= 0;
		expected.conversations += model_conversations_of(&model, i);
		expected.subscriptions += model_subscriptions_of(&model, i);
	}
	compare_number("total pending_replies", 0, is.pending_replies, expected.pending_replies);
	compare_number("total pending_pushes", 0, is.pending_pushes, expected.pending_pushes);
	compare_number("total waiting_requests", 0, is.waiting_requests, expected.waiting_requests);
	compare_number("total workers", 0, is.workers, expected.workers);
	compare_number("total conversations", 0, is.conversations, expected.conversations);
	compare_number("total subscriptions", 0, is.subscriptions, expected.subscriptions);
}

static void compare(void)
{
	for (int i = 0; i < MODEL_CLIENTS; i++)
		if (model.clients[i].connected)
			compare_client(i);
	compare_channels();
	compare_workers();
	compare_totals();
}

/* --- operations -------------------------------------------------------------------------- */

/* A new payload of a few bytes; its whole length in *LENGTH, which may be some units. */
static void draw_payload(char text[16], size_t *length)
{
	snprintf(text, 16, "%llu", (unsigned long long)next_payload++);
	*length = one_in(4) ? (size_t)(1 + draw(3)) * UNIT : strlen(text);
}

/* TEXT, filled up with dots; the caller frees it. */
static char *whole_payload(const char *text, size_t length)
{
	char *payload = malloc(length + 1);

	ASSERT(payload != NULL);
	memset(payload, '.', length);
	payload[length] = '\0';
	memcpy(payload, text, strlen(text));
	return payload;
}

static void time_passes(int64_t ms)
{
	/* And a nanosecond, so that no two deadlines are the same. */
	int64_t ns = ms * NS_PER_MS + 1;

	fake_advance(broker, ns);
	model_advance(&model, ns);
}

static void connect_one(int client)
{
	struct broker_client_limits limits = {
		.subscriptions = 1 + draw(4),
		.conversations = 1 + draw(4),
		.replies_per_conversation = 1 + draw(3),
		.replies = 1 + draw(5),
		.pushes = 1 + draw(3),
		.pending_bytes = one_in(2) ? UNIT + UNIT / 2 : 3 * UNIT + UNIT / 2,
		.frame_bytes = 2 * UNIT + UNIT / 2,
	};
	bool control = one_in(3);
	uint64_t max_frames = one_in(2) ? 1000 : 2 + draw(10);
	uint64_t max_bytes = one_in(2) ? 1000 * UNIT : draw(6) * UNIT + UNIT / 2;

	note("%d connects%s as %llu: subscriptions %llu, conversations %llu, replies %llu and "
	     "%llu, pushes %llu, pending_bytes %llu, outbox %llu and %llu\n",
	     client, control ? " to the control socket" : "", (unsigned long long)next_id,
	     (unsigned long long)limits.subscriptions, (unsigned long long)limits.conversations,
	     (unsigned long long)limits.replies_per_conversation,
	     (unsigned long long)limits.replies, (unsigned long long)limits.pushes,
	     (unsigned long long)limits.pending_bytes, (unsigned long long)max_frames,
	     (unsigned long long)max_bytes);
	fake_connect(&clients[client], broker, next_id, control, &limits);
	clients[client].out.max_frames = max_frames;
	clients[client].out.max_bytes = max_bytes;
	model_connect(&model, client, next_id, control, &limits, max_frames, max_bytes);
	next_id++;
}

/* Whose place its requests have, if they are all of one; -2 when they are not, -1 for none. */
static int only_target(int client)
{
	int target = -1;

	for (int i = 0; i < model.request_count; i++) {
		const struct model_request *request = &model.requests[i];

		if (request->state != MODEL_PUSHED || !request->wanted || request->client != client)
			continue;
		if (target >= 0 && target != request->target)
			return -2;
		target = request->target;
	}
	return target;
}

static void end_receiving(int client)
{
	note("%d can receive nothing more\n", client);
	fake_end_receiving(&clients[client]);
	model_end_receiving(&model, client);
}

static void close_conversation(int client, uint64_t id)
{
	note("%d closes conversation %llu\n", client, (unsigned long long)id);
	fake_close(&clients[client], id);
	model_close(&model, client, id);
}

static void end_conversations(int client)
{
	/* In which order its conversations end is nobody's business, but would show in the order
	 * of the pushes to several workers. */
	if (only_target(client) == -2) {
		for (int i = 0; i < model.conversation_count; i++) {
			if (model.conversations[i].open && model.conversations[i].client == client)
				close_conversation(client, model.conversations[i].id);
			compare();
		}
	}
	note("%d has gone\n", client);
	fake_end_conversations(&clients[client]);
	model_end_conversations(&model, client);
	compare();
}

static void gone(int client)
{
	end_conversations(client);
	fake_gone(&clients[client]);
	model_gone(&model, client);
}

/* As after a Disconnect. */
static void leave(int client)
{
	end_conversations(client);
	end_receiving(client);
	fake_gone(&clients[client]);
	model_gone(&model, client);
}

static void publish(int client)
{
	static const char *const keys[] = {NULL, NULL, "", "k", "l", "m", "n"};
	struct model_message messages[4];
	struct fake_message fakes[4];
	char texts[4][16];
	char *payloads[4];
	size_t count = 1 + draw(4);
	int channel = (int)draw(MODEL_CHANNELS);

	note("%d publishes to %s:", client, model.channels[channel].name);
	for (size_t i = 0; i < count; i++) {
		size_t length;

		draw_payload(texts[i], &length);
		payloads[i] = whole_payload(texts[i], length);
		messages[i] = (struct model_message){1 + draw(9), payloads[i], DRAW_OF(keys)};
		fakes[i] = (struct fake_message){messages[i].stream, messages[i].payload,
						 messages[i].key};
		note(" %s (%zu bytes) on %u", texts[i], length, messages[i].stream);
		if (messages[i].key != NULL)
			note(" key '%s'", messages[i].key);
	}
	note("\n");
	fake_publish_run(&clients[client], model.channels[channel].name, fakes, count);
	model_publish(&model, client, channel, messages, count);
	for (size_t i = 0; i < count; i++)
		free(payloads[i]);
}

static void subscribe(int client)
{
	int channel = (int)draw(MODEL_CHANNELS);
	uint32_t stream = 1 + draw(9), max_in_flight = 1 + draw(3);

	note("%d subscribes to %s on %u, max_in_flight %u\n", client, model.channels[channel].name,
	     stream, max_in_flight);
	compare_number("result", client,
		       fake_subscribe(&clients[client], stream, model.channels[channel].name,
				      max_in_flight),
		       model_subscribe(&model, client, stream, channel, max_in_flight == 1));
}

static void unsubscribe(int client)
{
	uint64_t id = model.next_subscription == 1
			      ? 1
			      : model.next_subscription -
					draw((unsigned)size_min(10, model.next_subscription));

	note("%d unsubscribes %llu\n", client, (unsigned long long)id);
	fake_unsubscribe(&clients[client], id);
	model_unsubscribe(&model, client, id);
}

#define CONVERSATION_IDS 5

static uint64_t draw_conversation(void)
{
	return 1 + draw(CONVERSATION_IDS);
}

static bool is_open(int client, uint64_t id)
{
	for (int i = 0; i < model.conversation_count; i++)
		if (model.conversations[i].open && model.conversations[i].client == client &&
		    model.conversations[i].id == id)
			return true;
	return false;
}

/* Mostly one that is open. */
static uint64_t draw_open_conversation(int client)
{
	uint64_t id = draw_conversation();

	for (int i = 0; i < CONVERSATION_IDS && !is_open(client, id) && !one_in(12); i++)
		id = 1 + id % CONVERSATION_IDS;
	return id;
}

static void open_conversation(int client)
{
	static const char *const subjects[] = {
		"q",
		"q",
		"q",
		"q",
		"q",
		"q",
		"n/q",
		"n/q/a",
		"m/q/b",
		"r",
		"r",
		"r",
		"n/r",
		"",
		"q/",
		"n/q/a/x",
		"$worker",
		"$worker/w",
		"$worker/w",
		"$worker/v",
		"$control/same",
		"$control/x",
		"$connection/",
	};
	uint64_t id = draw_conversation();
	uint32_t stream = 1 + draw(9);
	char subject[32];

	strcpy(subject, DRAW_OF(subjects));
	if (strcmp(subject, "$connection/") == 0)
		snprintf(subject, sizeof(subject), "$connection/%llu",
			 (unsigned long long)(next_id - draw((unsigned)size_min(8, next_id))));
	note("%d opens conversation %llu with '%s' on %u\n", client, (unsigned long long)id,
	     subject, stream);
	fake_open(&clients[client], stream, id, subject);
	model_open(&model, client, stream, id, subject);
}

static void message(int client)
{
	uint64_t id = draw_open_conversation(client);
	uint32_t stream = 1 + draw(9);
	bool wanted = !one_in(4);
	char text[16], *payload;
	size_t length;

	draw_payload(text, &length);
	note("%d %s %s (%zu bytes) in conversation %llu on %u\n", client, wanted ? "asks" : "says",
	     text, length, (unsigned long long)id, stream);
	payload = whole_payload(text, length);
	if (wanted)
		fake_request(&clients[client], stream, id, payload);
	else
		fake_one_way(&clients[client], stream, id, payload);
	model_message(&model, client, stream, id, wanted, text, length);
	free(payload);
}

static void register_worker(int client)
{
	static const char *const queues[] = {"q", "q", "q", "r", ""};
	static const char *const namespaces[] = {"", "", "n", "m", "n m", "nm"};
	static const char *const activities[] = {"", "", "a", "b", "a b"};
	static const char *const identities[] = {"w", "v", ""};
	struct fake_worker worker = {.queue = DRAW_OF(queues),
				     .namespaces = DRAW_OF(namespaces),
				     .activities = DRAW_OF(activities),
				     .identity = DRAW_OF(identities),
				     .leaving = one_in(5)};

	note("%d registers for '%s', namespaces '%s', activities '%s', as '%s'%s\n", client,
	     worker.queue, worker.namespaces, worker.activities, worker.identity,
	     worker.leaving ? ", leaving" : "");
	ASSERT(fake_register(&clients[client], worker) == NULL);
	model_register(&model, client, worker.queue, worker.namespaces, worker.activities,
		       worker.identity, worker.leaving);
}

static bool may_act(int client)
{
	return model.clients[client].connected && model.clients[client].receiving;
}

/* Mostly one that is outstanding, by the one who got it. */
static uint64_t draw_push(int *client)
{
	unsigned pushed = 0;

	for (int i = 0; i < model.request_count; i++)
		pushed += model.requests[i].state == MODEL_PUSHED;
	if (pushed == 0 || one_in(12))
		return draw(30);
	pushed = draw(pushed);
	for (int i = 0;; i++) {
		if (model.requests[i].state != MODEL_PUSHED || pushed-- > 0)
			continue;
		if (!one_in(12))
			*client = model.requests[i].target;
		return model.requests[i].correlation;
	}
}

static void push_reply(int client)
{
	uint64_t correlation = draw_push(&client);
	enum refusal refusal = (enum refusal)draw(5);
	char text[16], *payload;
	size_t length;

	draw_payload(text, &length);
	switch (draw(6)) {
	case 0:
		note("%d refuses push %llu: %d, %s\n", client, (unsigned long long)correlation,
		     (int)refusal, text);
		if (refusal == REFUSAL_NONE)
			fake_refuse(&clients[client], correlation, refusal, "worker-failed: x");
		else
			fake_refuse(&clients[client], correlation, refusal, text);
		model_push_reply(&model, client, correlation, BROKER_PUSH_REFUSED, refusal, text,
				 strlen(text));
		break;
	case 1:
	case 2:
		note("%d still works on push %llu\n", client, (unsigned long long)correlation);
		fake_still_working(&clients[client], correlation);
		model_push_reply(&model, client, correlation, BROKER_PUSH_WORKING, REFUSAL_NONE, "",
				 0);
		break;
	default:
		note("%d replies %s (%zu bytes) to push %llu\n", client, text, length,
		     (unsigned long long)correlation);
		payload = whole_payload(text, length);
		fake_reply(&clients[client], correlation, payload);
		free(payload);
		model_push_reply(&model, client, correlation, BROKER_PUSH_REPLY, REFUSAL_NONE, text,
				 length);
		break;
	}
}

static void written(int client)
{
	note("%d has taken everything\n", client);
	fake_written(&clients[client]);
	model_written(&model, client);
}

static void die(int client)
{
	note("a write to %d fails\n", client);
	fake_die(&clients[client]);
	model_die(&model, client);
}

static void reload(void)
{
	settings.no_worker = (enum broker_no_worker)draw(3);
	settings.reply_timeout_ms = 50 + draw(100);
	settings.reply_timeout_max_ms = 50 + draw(300);
	for (int i = 0; i < MODEL_CHANNELS; i++)
		channel_settings[i].drop = one_in(2);
	settings.unanswered_channel_count = draw(2);
	note("reload: no_worker %d, reply_timeout %lld and %lld, unanswered %zu, drop %d %d %d\n",
	     (int)settings.no_worker, (long long)settings.reply_timeout_ms,
	     (long long)settings.reply_timeout_max_ms, settings.unanswered_channel_count,
	     channel_settings[0].drop, channel_settings[1].drop, channel_settings[2].drop);
	ASSERT(broker_configure(broker, &settings));
	model.no_worker = settings.no_worker;
	model.reply_timeout_ms = settings.reply_timeout_ms;
	model.reply_timeout_max_ms = settings.reply_timeout_max_ms;
	for (int i = 0; i < MODEL_CHANNELS; i++) {
		model.channels[i].drop = channel_settings[i].drop;
		model.channels[i].unanswered = settings.unanswered_channel_count > 0 &&
					       strcmp(model.channels[i].name, unanswered[0]) == 0;
	}
}

static const struct {
	unsigned weight;
	void (*run)(int client);
} operations[] = {
	{10, publish},	    {6, subscribe},	  {2, unsubscribe}, {10, open_conversation},
	{40, message},	    {8, register_worker}, {30, push_reply}, {8, written},
	{2, end_receiving}, {2, leave},
};

static void operate(void)
{
	int client = (int)draw(MODEL_CLIENTS);
	unsigned total = 0, drawn;

	if (!model.clients[client].connected) {
		connect_one(client);
		return;
	}
	if (!model.clients[client].receiving) {
		if (one_in(2))
			gone(client);
		else
			written(client);
		return;
	}
	if (one_in(60)) {
		reload();
		return;
	}
	if (one_in(40)) {
		uint64_t id = draw_open_conversation(client);

		close_conversation(client, id);
		return;
	}
	if (one_in(100)) {
		die(client);
		return;
	}
	for (size_t i = 0; i < ARRAY_LENGTH(operations); i++)
		total += operations[i].weight;
	drawn = draw(total);
	for (size_t i = 0; i < ARRAY_LENGTH(operations); i++) {
		if (drawn < operations[i].weight) {
			operations[i].run(client);
			return;
		}
		drawn -= operations[i].weight;
	}
}

/* --- runs -------------------------------------------------------------------------------- */

static bool control_known(struct span name)
{
	return span_equal(name, SPAN_LITERAL(MODEL_CONTROL_NAME));
}

static struct buf *control_answer(void *context, struct span name, struct span request)
{
	struct buf *answer = buf_new(request.length);

	(void)context;
	ASSERT(control_known(name) && answer != NULL);
	if (request.length > 0)
		memcpy(answer->data, request.data, request.length);
	return answer;
}

static void begin(void)
{
	static const char *const names[] = {"news", "ticks", "quiet"};
	const char *error;

	memset(&model, 0, sizeof(model));
	model.next_message = model.next_subscription = model.next_correlation = model.next_use = 1;
	next_id = next_payload = 1;
	model.now_ns = fake_now_ns;
	settings = (struct broker_settings){
		.worker_settle_ms = one_in(2) ? 0 : 20,
		.unanswered_channels = unanswered,
		.channels = channel_settings,
		.channel_count = MODEL_CHANNELS,
	};
	model.settle_ms = settings.worker_settle_ms;
	note("worker_settle %lld\n", (long long)settings.worker_settle_ms);
	for (int i = 0; i < MODEL_CHANNELS; i++) {
		channel_settings[i] =
			(struct broker_channel_settings){.name = names[i],
							 .dedup_window_ms = 100 + draw(300),
							 .dedup_max_keys = 1 + draw(4)};
		model.channels[i] = (struct model_channel){
			.name = names[i],
			.dedup_window_ms = channel_settings[i].dedup_window_ms,
			.dedup_max_keys = channel_settings[i].dedup_max_keys};
	}
	broker = broker_new(&settings, 1, NULL, &error);
	ASSERT(broker != NULL);
	broker_set_control(broker, &(struct broker_control){control_known, control_answer, NULL});
	reload();
}

static void run(void)
{
	unsigned count = 20 + draw(OPERATIONS_MAX - 20);

	begin();
	for (unsigned i = 0; i < count; i++) {
		int64_t ms = one_in(5) ? (int64_t)draw(60) : 0;

		if (ms > 0)
			note("%lld ms pass\n", (long long)ms);
		time_passes(ms);
		compare();
		operate();
		compare();
	}
	for (int i = 0; i < MODEL_CLIENTS; i++) {
		if (may_act(i))
			end_receiving(i);
		compare();
		if (model.clients[i].connected)
			gone(i);
		compare();
	}
	broker_free(&broker);
}

static uint64_t environment(const char *name, uint64_t otherwise)
{
	const char *value = getenv(name);

	return value == NULL ? otherwise : strtoull(value, NULL, 10);
}

int main(void)
{
	uint64_t first = environment("MODEL_SEED", 1), runs = environment("MODEL_RUNS", RUNS);

	verbose = environment("MODEL_VERBOSE", 0) != 0;
	for (seed = first; seed < first + runs; seed++) {
		history_file = open_memstream(&history, &history_length);
		ASSERT(history_file != NULL);
		chance = seed * UINT64_C(0x9E3779B97F4A7C15);
		run();
		fclose(history_file);
		if (verbose)
			printf("%s", history);
		free(history);
	}
	printf("%llu passed, 0 failed\n", (unsigned long long)runs);
	return 0;
}
