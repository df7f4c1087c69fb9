#include "admin_fakes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct fake_state fake;

/* A copy of ITEMS in *COPY. */
static bool fake_copy(void **copy, size_t *count, const void *items, size_t item_count, size_t size)
{
	*copy = NULL;
	*count = 0;
	if (fake.no_memory)
		return false;
	*copy = malloc(item_count * size + 1);
	if (*copy == NULL)
		return false;
	if (item_count > 0)
		memcpy(*copy, items, item_count * size);
	*count = item_count;
	return true;
}

void broker_set_control(struct broker *broker, const struct broker_control *control)
{
	(void)broker;
	fake.control = *control;
}

void broker_totals(struct broker *broker, struct broker_totals *totals)
{
	(void)broker;
	*totals = fake.broker;
}

bool broker_channel_states(struct broker *broker, struct broker_channel_state **states,
			   size_t *count)
{
	void *copy;
	bool copied = fake_copy(&copy, count, fake.channels, fake.channel_count, sizeof(**states));

	(void)broker;
	*states = copy;
	return copied;
}

bool broker_worker_states(struct broker *broker, struct broker_worker_state **states, size_t *count)
{
	void *copy;
	bool copied = fake_copy(&copy, count, fake.workers, fake.worker_count, sizeof(**states));

	(void)broker;
	*states = copy;
	return copied;
}

void broker_worker_states_free(struct broker_worker_state **states, size_t count)
{
	(void)count;
	free(*states);
	*states = NULL;
}

bool broker_consumer_states(struct broker *broker, struct channel *channel,
			    struct broker_consumer_state **states, size_t *count)
{
	void *copy;
	bool copied =
		fake_copy(&copy, count, fake.consumers, fake.consumer_count, sizeof(**states));

	(void)broker;
	fake.asked_channel = channel != NULL;
	*states = copy;
	return copied;
}

bool broker_has_store(const struct broker *broker)
{
	(void)broker;
	return fake.has_store;
}

bool broker_store_is_up(const struct broker *broker)
{
	(void)broker;
	return fake.has_store && !fake.store_is_down;
}

/* Addresses alone: what they point to is never looked at. */
static char fake_plain, fake_durable;

struct channel *broker_channel(struct broker *broker, struct span name)
{
	(void)broker;
	if (span_equal(name, span_of("plain")))
		return (struct channel *)(void *)&fake_plain;
	if (span_equal(name, span_of("durable")))
		return (struct channel *)(void *)&fake_durable;
	return NULL;
}

bool broker_channel_is_durable(const struct channel *channel)
{
	return (const void *)channel == &fake_durable;
}

enum broker_remove_result broker_consumer_remove(struct broker *broker, struct channel *channel,
						 struct span consumer)
{
	(void)broker;
	(void)channel;
	snprintf(fake.removed, sizeof(fake.removed), "%.*s", (int)consumer.length,
		 (const char *)consumer.data);
	return fake.removal;
}

bool broker_dead_read(struct broker *broker, struct channel *channel, uint64_t from, uint64_t count,
		      struct broker_dead **dead, size_t *found)
{
	void *copy;
	bool copied = fake_copy(&copy, found, fake.dead, fake.dead_count, sizeof(**dead));

	(void)broker;
	(void)channel;
	fake.dead_from = from;
	fake.dead_limit = count;
	*dead = copy;
	if (fake.dead_fails)
		broker_dead_free(dead, *found);
	return copied && !fake.dead_fails;
}

void broker_dead_free(struct broker_dead **dead, size_t count)
{
	(void)count;
	free(*dead);
	*dead = NULL;
}

bool net_listening(struct net *net)
{
	(void)net;
	return fake.listening;
}

void net_totals(struct net *net, struct net_totals *totals)
{
	(void)net;
	*totals = fake.net;
}

bool net_connection_states(struct net *net, struct net_connection_state **states, size_t *count)
{
	void *copy;
	bool copied =
		fake_copy(&copy, count, fake.connections, fake.connection_count, sizeof(**states));

	(void)net;
	*states = copy;
	return copied;
}

bool net_close_connection(struct net *net, uint64_t id)
{
	(void)net;
	fake.closed = id;
	return id == fake.closable;
}
