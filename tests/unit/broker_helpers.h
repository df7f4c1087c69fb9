/*
 * For tests of the broker with fake connections and fake time: a broker, and what is said to whom.
 */
#ifndef TESTS_UNIT_BROKER_HELPERS_H
#define TESTS_UNIT_BROKER_HELPERS_H

#include "fake_sink.h"
#include "fake_time.h"

#include <check.h>

#define BOOT_MS 1234567890123u

/* Of settings: in ms. */
#define REPLY_TIMEOUT 1000
#define REPLY_TIMEOUT_MAX 2500
#define SETTLE 20
#define DEDUP_WINDOW 10000
#define DEDUP_KEYS 3

/*
 * What start() makes a broker of; each test may change it before that. Channels: "news" sheds,
 * "ticks" drops, "quiet" is listed in unanswered_channels. worker_settle is 0.
 */
extern struct broker_settings settings;
extern struct broker *broker;

/* Of the connections that join() makes. */
extern struct broker_client_limits limits;

void start(void);

/* The part of start() that is done before the broker is made, for tests that make it themselves. */
void prepare(void);

/* Applies what was changed in settings since. */
void reload(void);

/* Connections get the ids 1, 2, 3 ... */
void join(struct fake_client *client);
void join_control(struct fake_client *client);

/* Every connection must have gone, and with them everything else. */
void stop(void);

/* CLIENT was told this since the last call, and nothing else. */
#define says(client, text) ck_assert_str_eq(fake_said(client), text)

void pass_ms(int64_t ms);

/* The state of the broker as others see it. */
struct broker_client_state state_of(struct fake_client *client);
struct broker_totals totals(void);

/* Where the tests of a program go, and running them: what main returns. */
TCase *suite_begin(const char *name);
int suite_run(void);

#endif
