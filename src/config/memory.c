/* The worst case of memory, when every connection uses every limit to the full. */
#include "config/config_priv.h"

#include "base/thread.h"

/* What the program itself takes: code, HTTP, logs, the allocator's slack. */
#define MEMORY_BASE (UINT64_C(64) << 20)

/* What the database keeps in memory. */
#define MEMORY_STORE (UINT64_C(16) << 20)

/* Slots of the control socket, which count nowhere else. */
#define MEMORY_CONTROL_CONNECTIONS 4

/* Beside the texts that they hold: entries of tables, with what the allocator adds. */
#define MEMORY_ENTRY 256
#define MEMORY_NAME 1024    /* the longest subject, idempotency key and error text */
#define MEMORY_DEFERRED 320 /* a message of a consumer that waits for its redelivery */
#define MEMORY_READ_BUFFER (UINT64_C(256) << 10)
#define MEMORY_REGISTRATION (UINT64_C(192) << 10) /* names, and a hash of each */

static uint64_t memory_add(uint64_t a, uint64_t b)
{
	return b > UINT64_MAX - a ? UINT64_MAX : a + b;
}

static uint64_t memory_multiply(uint64_t a, uint64_t b)
{
	return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b;
}

static uint64_t memory_max(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static uint64_t memory_of_connection(const struct configuration_limits *limits)
{
	uint64_t sum = THREAD_STACK + MEMORY_READ_BUFFER + MEMORY_REGISTRATION;

	/* The frame that is being received. */
	sum = memory_add(sum, limits->max_frame_size);
	/* An empty outbox takes one frame of any size. */
	sum = memory_add(sum, memory_max(limits->max_outbox_bytes, limits->max_frame_size));
	/* Of requests that wait for a worker, one of any size fits. */
	sum = memory_add(
		sum, memory_max(limits->max_pending_bytes_per_connection, limits->max_frame_size));
	/* Each may be shed, beyond the bound of the outbox. */
	sum = memory_add(sum, memory_multiply(limits->max_subscriptions_per_connection,
					      MEMORY_ENTRY + MEMORY_NAME));
	sum = memory_add(sum, memory_multiply(limits->max_conversations_per_connection,
					      MEMORY_ENTRY + MEMORY_NAME));
	sum = memory_add(sum,
			 memory_multiply(limits->max_pending_replies_per_connection, MEMORY_ENTRY));
	return sum;
}

/* What is stored is not in memory, but for the newest messages and what consumers are about. */
static uint64_t memory_of_durable(const struct configuration *configuration,
				  const struct configuration_channel *channel)
{
	uint64_t consumer = memory_add(MEMORY_ENTRY + MEMORY_NAME,
				       memory_multiply(channel->max_deferred, MEMORY_DEFERRED));

	return memory_add(configuration->store.cache_bytes,
			  memory_multiply(channel->max_consumers, consumer));
}

uint64_t configuration_worst_case_memory(const struct configuration *configuration)
{
	const struct configuration_limits *limits = &configuration->limits;
	uint64_t sum = MEMORY_BASE;
	uint64_t connections = memory_add(limits->max_connections, MEMORY_CONTROL_CONNECTIONS);

	sum = memory_add(sum, memory_multiply(connections, memory_of_connection(limits)));
	for (size_t i = 0; i < configuration->channel_count; i++) {
		const struct configuration_channel *channel = &configuration->channels[i];

		if (channel->durable)
			sum = memory_add(sum, memory_of_durable(configuration, channel));
		else
			sum = memory_add(sum, memory_multiply(channel->dedup_max_keys,
							      MEMORY_ENTRY + MEMORY_NAME));
	}
	/* What waits for the disk, one frame beyond its bound, with what the store keeps in memory.
	 */
	if (configuration->server.state_dir != NULL) {
		sum = memory_add(sum, configuration->store.max_commit_bytes);
		sum = memory_add(sum, memory_add(limits->max_frame_size, MEMORY_STORE));
	}
	return sum;
}
