/*
 * The client library: conversations, workers, and all the ways in which a connection ends, against
 * a server that is played.
 */
#include "client_server.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

/* --- conversations ---------------------------------------------------------------------------- */

static void script_requests(void)
{
	uint64_t id;
	uint32_t open, late;

	server_greet();
	open = expect(WIRE_CONVERSATION_OPEN)->header.stream;
	id = server.frame.u.conversation_open.conversation;
	ck_assert(span_equal(server.frame.u.conversation_open.subject, SPAN_LITERAL("jobs")));
	expect(WIRE_CONVERSATION_MESSAGE);
	ck_assert_uint_eq(server.frame.header.flags, WIRE_MESSAGE_REPLY);
	ck_assert_uint_ne(server.frame.header.stream, open);
	put_reply(server.frame.header.stream, id, "answer");
	leave();
	late = expect(WIRE_CONVERSATION_MESSAGE)->header.stream;
	expect(WIRE_CONVERSATION_MESSAGE);
	/* Of the request before this one, which its caller has given up. */
	put_reply(late, id, "too late");
	put_conversation_error(server.frame.header.stream, id, WIRE_REASON_WORKER_BUSY,
			       "come again");
	leave();
	ck_assert_uint_eq(expect(WIRE_CONVERSATION_CLOSE)->u.conversation_close.conversation, id);
	open = expect(WIRE_CONVERSATION_OPEN)->header.stream;
	id = server.frame.u.conversation_open.conversation;
	expect(WIRE_CONVERSATION_MESSAGE);
	put_conversation_error(open, id, 0xFFFF, "not-found: nobody of that name");
	put_conversation_error(server.frame.header.stream, id, 0xFFFF,
			       "conversation is not open on this connection");
	leave();
	expect(WIRE_CONVERSATION_CLOSE);
	server_expect_end();
}

START_TEST(requests)
{
	struct liminal *client = open_client(script_requests, 0);
	struct liminal_conversation *conversation;
	size_t length;
	void *reply;

	succeeds(liminal_converse(client, "jobs", &conversation));
	succeeds(liminal_request(conversation, "q", 1, LIMINAL_FOREVER, &reply, &length));
	ck_assert_uint_eq(length, 6);
	ck_assert_str_eq(reply, "answer");
	liminal_free(reply);
	fails_with(liminal_request(conversation, "q", 1, 20, &reply, &length), LIMINAL_TIMEOUT, 0,
		   "");
	ck_assert_ptr_null(reply);
	fails_with(liminal_request(conversation, "q", 1, LIMINAL_FOREVER, &reply, &length),
		   LIMINAL_REFUSED, WIRE_REASON_WORKER_BUSY, "come again");
	liminal_conversation_close(&conversation);
	ck_assert_ptr_null(conversation);
	succeeds(liminal_converse(client, "$worker/x", &conversation));
	fails_with(liminal_request(conversation, NULL, 0, LIMINAL_FOREVER, &reply, &length),
		   LIMINAL_REFUSED, 0xFFFF, "not-found: nobody");
	liminal_conversation_close(&conversation);
	end(&client);
}
END_TEST

/* --- workers ---------------------------------------------------------------------------------- */

static void handle(void *context, struct liminal_job *job)
{
	const char *payload;
	size_t length;

	payload = liminal_job_payload(job, &length);
	++*(int *)context;
	if (strcmp(payload, "reply") == 0)
		succeeds(liminal_job_reply(job, "r\0r", 3));
	else if (strcmp(payload, "refuse") == 0)
		succeeds(liminal_job_refuse(job, LIMINAL_BUSY, "say \"no\"\n\\"));
	else if (strcmp(payload, "work") == 0)
		succeeds(liminal_job_working(job));
	if (strcmp(payload, "reply") == 0)
		fails_with(liminal_job_reply(job, "again", 5), LIMINAL_INVALID, 0, "already");
}

static void expect_push_reply(uint64_t correlation, uint8_t flags, struct span payload)
{
	const struct wire_frame *frame = expect(WIRE_PUSH_REPLY);

	ck_assert_uint_eq(frame->u.push.correlation, correlation);
	ck_assert_uint_eq(frame->header.flags, flags);
	ck_assert_msg(span_equal(frame->u.push.payload, payload), "the payload is %.*s",
		      (int)frame->u.push.payload.length, frame->u.push.payload.data);
}

static void script_worker(void)
{
	size_t offset = 0;
	struct span item;

	server_greet();
	expect(WIRE_PING);
	put_push(1, "before any registration");
	leave();
	expect(WIRE_PUSH_REPLY);
	ck_assert_uint_eq(server.frame.header.flags, WIRE_PUSH_REPLY_REFUSED);
	put_empty(WIRE_PONG);
	leave();
	expect(WIRE_WORKER_REGISTER);
	ck_assert(span_equal(server.frame.u.worker_register.queue, SPAN_LITERAL("jobs")));
	ck_assert(span_equal(server.frame.u.worker_register.identity, SPAN_LITERAL("me")));
	ck_assert(!server.frame.u.worker_register.node.present);
	ck_assert_uint_eq(server.frame.u.worker_register.namespaces.count, 2);
	ck_assert(
		wire_list_next_string(&server.frame.u.worker_register.namespaces, &offset, &item));
	ck_assert(span_equal(item, SPAN_LITERAL("n1")));
	ck_assert_uint_eq(server.frame.u.worker_register.activities.count, 0);
	/* In one segment with the answer. */
	put_register_ack();
	put_push(10, "refuse");
	put_push(11, "work");
	put_push(12, "reply");
	leave();
	expect_push_reply(
		10, WIRE_PUSH_REPLY_REFUSED,
		SPAN_LITERAL("{\"code\":\"busy\",\"words\":\"say \\\"no\\\"\\u000a\\\\\"}"));
	expect_push_reply(11, WIRE_PUSH_REPLY_WORKING, SPAN_LITERAL(""));
	expect_push_reply(11, WIRE_PUSH_REPLY_REFUSED,
			  SPAN_LITERAL("{\"code\":\"internal\","
				       "\"words\":\"the worker gave no answer\"}"));
	expect_push_reply(12, 0, SPAN_LITERAL("r\0r"));
	expect(WIRE_WORKER_REGISTER);
	ck_assert_uint_eq(server.frame.header.flags, WIRE_REGISTER_LEAVING);
	/* This one was on its way. */
	put_push(13, "reply");
	put_register_ack();
	leave();
	expect_push_reply(13, 0, SPAN_LITERAL("r\0r"));
	server_expect_end();
}

static void *leave_worker(void *client)
{
	succeeds(liminal_leave(client, LIMINAL_FOREVER));
	return NULL;
}

struct worker_test {
	struct liminal *client;
	int served, leave_after;
	pthread_t leaver;
};

static void handle_and_leave(void *context, struct liminal_job *job)
{
	struct worker_test *test = context;

	handle(&test->served, job);
	if (test->served == test->leave_after)
		pthread_create(&test->leaver, NULL, leave_worker, test->client);
}

START_TEST(worker)
{
	const char *const namespaces[] = {"n1", "n2", NULL};
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;
	struct worker_test test = {.client = open_client(script_worker, 0), .leave_after = 3};

	succeeds(liminal_ping(test.client, LIMINAL_FOREVER, NULL));
	fails_with(liminal_register(test.client, &options), LIMINAL_INVALID, 0, "UTF-8");
	options.queue = "jobs";
	options.namespaces = namespaces;
	options.identity = "me";
	succeeds(liminal_register(test.client, &options));
	succeeds(liminal_serve(test.client, handle_and_leave, &test));
	ck_assert_int_eq(test.served, 4);
	pthread_join(test.leaver, NULL);
	end(&test.client);
}
END_TEST

/* --- the connection's end --------------------------------------------------------------------- */

static void script_lost(void)
{
	server_greet();
	put_deliver(expect_subscribe(1), 1, "received before");
	leave();
	expect(WIRE_CONVERSATION_OPEN);
	expect(WIRE_CONVERSATION_MESSAGE);
	tell(server.here);
	expect_publish();
	put_error(WIRE_CONNECT_ERROR, 0, WIRE_REASON_CODEC, "that was malformed");
	leave();
	server_drop();
}

struct lost_test {
	struct liminal *client;
	struct liminal_conversation *conversation;
};

static void *lose_request(void *argument)
{
	struct lost_test *test = argument;
	size_t length;
	void *reply;

	fails_with(liminal_request(test->conversation, "q", 1, LIMINAL_FOREVER, &reply, &length),
		   LIMINAL_LOST, WIRE_REASON_CODEC, "that was malformed");
	return NULL;
}

START_TEST(lost)
{
	struct lost_test test = {.client = open_client(script_lost, 0)};
	struct liminal_subscription *subscription;
	struct liminal_delivery *delivery;
	pthread_t thread;

	succeeds(liminal_subscribe(test.client, "events", NULL, &subscription));
	succeeds(liminal_converse(test.client, "jobs", &test.conversation));
	pthread_create(&thread, NULL, lose_request, &test);
	wait_for(server.here);
	fails_with(liminal_publish(test.client, "events", "", 0, NULL, NULL), LIMINAL_LOST,
		   WIRE_REASON_CODEC, "that was malformed");
	pthread_join(thread, NULL);
	takes(subscription, "received before", 0);
	fails_with(liminal_next(subscription, LIMINAL_FOREVER, &delivery), LIMINAL_LOST,
		   WIRE_REASON_CODEC, "that was malformed");
	fails_with(liminal_ping(test.client, LIMINAL_FOREVER, NULL), LIMINAL_LOST,
		   WIRE_REASON_CODEC, "");
	end(&test.client);
}
END_TEST

static void script_malformed(void)
{
	static const uint8_t deliver[] = {WIRE_DELIVER, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0};

	server_greet();
	expect(WIRE_PING);
	send_all(deliver, sizeof(deliver));
	wait_for(server.go);
	server_drop();
}

START_TEST(malformed)
{
	struct liminal *client = open_client(script_malformed, 0);

	fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_PROTOCOL, 0,
		   "not of the protocol");
	tell(server.go);
	end(&client);
}
END_TEST

static void script_stop(void)
{
	server_greet();
	expect(WIRE_PING);
	tell(server.here);
	/* The client's end, whenever it comes. */
	ck_assert_int_eq(recv(server.fd, server.payload, 1, 0), 0);
	server_drop();
}

static void *stop_client(void *client)
{
	wait_for(server.here);
	liminal_stop(client);
	return NULL;
}

START_TEST(stop)
{
	struct liminal *client = open_client(script_stop, 0);
	pthread_t thread;

	pthread_create(&thread, NULL, stop_client, client);
	fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_STOPPED, 0, "stopped");
	pthread_join(thread, NULL);
	fails_with(liminal_reconnect(client, LIMINAL_FOREVER), LIMINAL_STOPPED, 0, "stopped");
	end(&client);
}
END_TEST

static void script_take_over(void)
{
	uint32_t stream;

	server_greet();
	expect(WIRE_PING);
	tell(server.here);
	stream = expect_publish();
	put_empty(WIRE_PONG);
	leave();
	wait_for(server.go);
	put_publish_ack(stream, 1, 0);
	leave();
	server_expect_end();
}

static void *ping_only(void *client)
{
	succeeds(liminal_ping(client, LIMINAL_FOREVER, NULL));
	tell(server.go);
	return NULL;
}

/* The thread that read for both has its answer and leaves: the other one must read on. */
/* Answers publishes and pings until the client takes leave. */
static void script_busy(void)
{
	uint64_t id = 0;

	server_greet();
	for (;;) {
		switch (expect_any()->header.type) {
		case WIRE_PUBLISH:
			put_publish_ack(server.frame.header.stream, ++id, 0);
			break;
		case WIRE_PING:
			put_empty(WIRE_PONG);
			break;
		default:
			ck_assert_uint_eq(server.frame.header.type, WIRE_DISCONNECT);
			server_drop();
			return;
		}
		leave();
	}
}

#define PUBLISHERS 2
#define PUBLISHES 5000

struct publisher {
	struct liminal *client;
	pthread_t thread;
	int told;
	atomic_int *left;
};

/* By any of the publishers' threads, one at a time. */
static void note_told(void *context, int status, const struct liminal_receipt *receipt)
{
	struct publisher *publisher = context;

	ck_assert_int_eq(status, LIMINAL_OK);
	ck_assert_uint_gt(receipt->message, 0);
	publisher->told++;
}

static void *publish_and_flush(void *argument)
{
	struct liminal_publish_options options = LIMINAL_PUBLISH_OPTIONS_INIT;
	struct publisher *publisher = argument;

	options.published = note_told;
	options.context = publisher;
	for (int i = 1; i <= PUBLISHES; i++) {
		succeeds(liminal_publish_async(publisher->client, "events", "x", 1, &options));
		if (i % 10 != 0)
			continue;
		succeeds(liminal_flush(publisher->client, LIMINAL_FOREVER, NULL));
		/* What this thread has published has been told before the flush returns. */
		ck_assert_int_eq(publisher->told, i);
	}
	atomic_fetch_sub(publisher->left, 1);
	return NULL;
}

/* Several threads publish and flush, and another one reads the answers for them. */
START_TEST(publishers)
{
	struct liminal *client = open_client(script_busy, 0);
	struct publisher all[PUBLISHERS];
	atomic_int left = PUBLISHERS;

	for (int i = 0; i < PUBLISHERS; i++) {
		all[i] = (struct publisher){.client = client, .left = &left};
		pthread_create(&all[i].thread, NULL, publish_and_flush, &all[i]);
	}
	while (atomic_load(&left) > 0)
		succeeds(liminal_ping(client, LIMINAL_FOREVER, NULL));
	for (int i = 0; i < PUBLISHERS; i++)
		pthread_join(all[i].thread, NULL);
	end(&client);
}
END_TEST

START_TEST(take_over)
{
	struct liminal *client = open_client(script_take_over, 0);
	pthread_t thread;

	pthread_create(&thread, NULL, ping_only, client);
	wait_for(server.here);
	succeeds(liminal_publish(client, "events", "", 0, NULL, NULL));
	pthread_join(thread, NULL);
	end(&client);
}
END_TEST

/* --- reconnecting ----------------------------------------------------------------------------- */

static void script_reconnect(void)
{
	uint32_t kept, gone;
	uint64_t id;

	server_greet();
	kept = expect_subscribe(1);
	gone = expect_subscribe(2);
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	leave();
	expect(WIRE_CONVERSATION_OPEN);
	expect(WIRE_PING);
	put_deliver(kept, 1, "before");
	leave();
	server_drop();

	/* The first attempt meets a server that is full. */
	server_take();
	put_error(WIRE_CONNECT_ERROR, 0, 0xFFFF, "the server is at its limit of 1 connections");
	leave();
	server_drop();

	server_greet();
	for (int i = 0; i < 2; i++) {
		uint32_t stream = expect(WIRE_SUBSCRIBE)->header.stream;

		if (stream == gone)
			put_error(WIRE_SUBSCRIBE_ERROR, stream, 0xFFFF, "is gone");
		else
			put_subscribe_ack(stream, 3);
		leave();
	}
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	put_deliver(kept, 1, "after");
	leave();
	id = expect(WIRE_CONVERSATION_OPEN)->u.conversation_open.conversation;
	expect(WIRE_CONVERSATION_MESSAGE);
	put_reply(server.frame.header.stream, id, "r");
	leave();
	server_expect_end();
}

START_TEST(reconnect)
{
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;
	struct liminal *client = open_client(script_reconnect, 0);
	struct liminal_conversation *conversation;
	struct liminal_subscription *kept, *gone;
	struct liminal_delivery *delivery;
	size_t length;
	void *reply;

	succeeds(liminal_subscribe(client, "events", NULL, &kept));
	succeeds(liminal_subscribe(client, "other", NULL, &gone));
	options.queue = "jobs";
	succeeds(liminal_register(client, &options));
	succeeds(liminal_converse(client, "jobs", &conversation));
	fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_LOST, 0, "");
	succeeds(liminal_reconnect(client, LIMINAL_FOREVER));
	takes(kept, "before", 0);
	takes(kept, "after", 0);
	fails_with(liminal_next(gone, LIMINAL_FOREVER, &delivery), LIMINAL_ENDED, 0xFFFF,
		   "is gone");
	succeeds(liminal_request(conversation, "", 0, LIMINAL_FOREVER, &reply, &length));
	liminal_free(reply);
	succeeds(liminal_reconnect(client, 0));
	end(&client);
}
END_TEST

static void script_lost_jobs(void)
{
	server_greet();
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	leave();
	expect(WIRE_PING);
	put_push(1, "work");
	leave();
	server_drop();
	server_greet();
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	put_push(2, "reply");
	leave();
	expect_push_reply(2, 0, SPAN_LITERAL("r\0r"));
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	leave();
	server_expect_end();
}

/* A job whose answer nobody can take any more is not begun. */
START_TEST(lost_jobs)
{
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;
	struct worker_test test = {.client = open_client(script_lost_jobs, 0), .leave_after = 1};

	options.queue = "jobs";
	succeeds(liminal_register(test.client, &options));
	fails_with(liminal_ping(test.client, LIMINAL_FOREVER, NULL), LIMINAL_LOST, 0, "");
	succeeds(liminal_reconnect(test.client, LIMINAL_FOREVER));
	succeeds(liminal_serve(test.client, handle_and_leave, &test));
	ck_assert_int_eq(test.served, 1);
	pthread_join(test.leaver, NULL);
	end(&test.client);
}
END_TEST

static void script_drop_worker(void)
{
	server_greet();
	expect(WIRE_WORKER_REGISTER);
	put_register_ack();
	put_push(1, "x");
	leave();
	wait_for(server.go);
	server_drop();
}

/* Somebody who only sends notices the end, too. */
static void handle_dropped(void *context, struct liminal_job *job)
{
	int sent = 0, status;

	(void)context;
	tell(server.go);
	pthread_join(server.thread, NULL);
	while ((status = liminal_job_working(job)) == LIMINAL_OK && sent < 1000)
		sent++;
	fails_with(status, LIMINAL_LOST, 0, "");
	fails_with(liminal_job_reply(job, "", 0), LIMINAL_LOST, 0, "");
}

START_TEST(lost_while_working)
{
	struct liminal *client = open_client(script_drop_worker, 0);
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;

	options.queue = "jobs";
	succeeds(liminal_register(client, &options));
	fails_with(liminal_serve(client, handle_dropped, NULL), LIMINAL_LOST, 0, "");
	liminal_close(&client);
	close(server.listener);
}
END_TEST

static void script_reconnect_refused(void)
{
	server_greet();
	server_drop();
	server_take();
	put_error(WIRE_CONNECT_ERROR, 0, WIRE_REASON_AUTHENTICATION, "rejected");
	leave();
	server_drop();
}

START_TEST(reconnect_refused)
{
	struct liminal *client = open_client(script_reconnect_refused, 0);

	fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_LOST, 0, "");
	fails_with(liminal_reconnect(client, LIMINAL_FOREVER), LIMINAL_REFUSED,
		   WIRE_REASON_AUTHENTICATION, "rejected");
	server_end();
	fails_with(liminal_reconnect(client, 50), LIMINAL_UNREACHABLE, 0, "cannot connect");
	liminal_close(&client);
}
END_TEST

/* --- manners ---------------------------------------------------------------------------------- */

static void script_drop(void)
{
	server_greet();
	wait_for(server.go);
	server_drop();
}

#define BIG ((size_t)256 * 1024)

/* A write to a connection that is gone must not end a program that left SIGPIPE alone. */
START_TEST(no_signal)
{
	struct liminal *client = open_client(script_drop, 0);
	char *payload = calloc(BIG, 1);

	ck_assert(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
	tell(server.go);
	pthread_join(server.thread, NULL);
	for (int i = 0; i < 20; i++)
		liminal_publish_async(client, "events", payload, BIG, NULL);
	fails_with(liminal_ping(client, LIMINAL_FOREVER, NULL), LIMINAL_LOST, 0, "");
	liminal_close(&client);
	close(server.listener);
	free(payload);
}
END_TEST

START_TEST(nothing)
{
	struct liminal_subscription *subscription = NULL;
	struct liminal_conversation *conversation = NULL;
	struct liminal_delivery *delivery = NULL;
	struct liminal *client = NULL;

	liminal_close(&client);
	liminal_stop(client);
	liminal_unsubscribe(&subscription);
	liminal_conversation_close(&conversation);
	liminal_delivery_free(&delivery);
	liminal_free(NULL);
	fails_with(liminal_ping(NULL, 0, NULL), LIMINAL_INVALID, 0, "no handle");
	for (int status = 0; status <= LIMINAL_PROTOCOL; status++)
		ck_assert_str_ne(liminal_status_text(status), "unknown status");
	ck_assert_str_eq(liminal_status_text(-1), "unknown status");
	ck_assert_str_eq(liminal_status_text(LIMINAL_PROTOCOL + 1), "unknown status");
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("client_ends");
	TCase *played = tcase_create("played");

	tcase_set_timeout(played, 60);
	tcase_add_test(played, requests);
	tcase_add_test(played, worker);
	tcase_add_test(played, lost);
	tcase_add_test(played, malformed);
	tcase_add_test(played, stop);
	tcase_add_test(played, publishers);
	tcase_add_test(played, take_over);
	tcase_add_test(played, reconnect);
	tcase_add_test(played, lost_jobs);
	tcase_add_test(played, lost_while_working);
	tcase_add_test(played, reconnect_refused);
	tcase_add_test(played, no_signal);
	tcase_add_test(played, nothing);
	suite_add_tcase(suite, played);
	return run(suite);
}
