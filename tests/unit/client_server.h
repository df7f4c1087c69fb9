/*
 * A server of one client at a time, played frame by frame, for the tests of the client library. Its
 * script runs in a thread of its own and says what must come and what is sent.
 */
#ifndef TESTS_UNIT_CLIENT_SERVER_H
#define TESTS_UNIT_CLIENT_SERVER_H

#include "client/liminal.h"
#include "wire/wire.h"

#include <check.h>
#include <pthread.h>
#include <string.h>

#define SCHEMA "01234567890123456789012345678901"

/* A server with one client at a time; its script runs in a thread of its own. */
struct server {
	int listener, fd;
	char address[32];
	pthread_t thread;
	void (*script)(void);
	uint8_t payload[1 << 20]; /* of the frame read last */
	struct wire_frame frame;
	int go[2];   /* pipes: the test tells the script */
	int here[2]; /* the script tells the test */
};

extern struct server server;

/*
 * For the script.
 */

/* The client's next frame; expect demands that it is of TYPE. */
const struct wire_frame *expect_any(void);
const struct wire_frame *expect(uint8_t type);
uint32_t expect_publish(void); /* its stream */
/* Answers it, too; its stream. */
uint32_t expect_subscribe(uint64_t id);

/* Frames are gathered until leave(), so that several can come in one segment. */
void put(struct wire_frame frame);
void leave(void);
void put_empty(uint8_t type);
void put_publish_ack(uint32_t stream, uint64_t message, uint8_t flags);
void put_error(uint8_t type, uint32_t stream, uint16_t code, const char *text);
void put_subscribe_ack(uint32_t stream, uint64_t id);
void put_deliver(uint32_t stream, uint64_t sequence, const char *payload);
void put_deliver_with(uint32_t stream, uint64_t sequence, uint8_t flags, const char *payload);
void put_push(uint64_t correlation, const char *payload);
void put_register_ack(void);
void put_reply(uint32_t stream, uint64_t conversation, const char *payload);
void put_conversation_error(uint32_t stream, uint64_t conversation, uint16_t code,
			    const char *text);
void send_all(const uint8_t *bytes, size_t length);

/* Accepts a client and reads its Connect; server_greet answers it, too. */
void server_take(void);
void server_greet(void);
void server_drop(void);
/* The client takes leave in form. */
void server_expect_end(void);
void tell(const int event[2]);
void wait_for(const int event[2]);

/*
 * For the test.
 */

void server_start(void (*script)(void));
void server_end(void);
struct liminal_options options_for(int timeout_ms);
/* Starts SCRIPT and opens a client of it. */
struct liminal *open_client(void (*script)(void), int timeout_ms);
void end(struct liminal **client);
void fails_with(int status, int expected, unsigned code, const char *text);
void takes(struct liminal_subscription *subscription, const char *payload, uint64_t missed);

#define succeeds(call)                                                                             \
	ck_assert_msg((call) == LIMINAL_OK, "%s: %s", #call, liminal_last_error()->text)

/* Runs SUITE; what main returns. */
int run(Suite *suite);

#endif
