#include "admin_fakes.h"

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
