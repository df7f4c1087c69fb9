/*
 * A net and a broker that exist only as what they would report. The functions stand in for those of
 * src/net and src/broker, whose archives the linker then leaves out.
 */
#ifndef TESTS_ADMIN_FAKES_H
#define TESTS_ADMIN_FAKES_H

#include "broker/broker.h"
#include "net/net.h"

struct fake_state {
	bool listening;
	bool no_memory; /* nothing can be copied */
	struct net_totals net;
	struct broker_totals broker;
	const struct net_connection_state *connections;
	size_t connection_count;
	const struct broker_channel_state *channels;
	size_t channel_count;
	const struct broker_worker_state *workers;
	size_t worker_count;

	const struct broker_consumer_state *consumers;
	size_t consumer_count;
	bool has_store, store_is_down;

	/* The two channels that there are: "plain" is not durable, "durable" is; and what the
	 * broker was asked about them. */
	bool asked_channel; /* broker_consumer_states: for one channel */
	enum broker_remove_result removal;
	char removed[64];
	const struct broker_dead *dead;
	size_t dead_count;
	bool dead_fails;
	uint64_t dead_from, dead_limit;

	uint64_t closable; /* the id that net_close_connection knows */
	uint64_t closed;   /* the last id it was given */
	struct broker_control control;
};

extern struct fake_state fake;

#endif
