#include "liminald/settings.h"

#include <stdlib.h>
#include <string.h>

static struct broker_durable_settings
settings_of_durable(const struct configuration_channel *channel)
{
	return (struct broker_durable_settings){
		.max_age_ms = channel->max_age_ms,
		.max_messages = channel->max_messages,
		.max_bytes = channel->max_bytes,
		.discard = channel->when_full == WHEN_FULL_DISCARD,
		.ack_wait_ms = channel->ack_wait_ms,
		.redelivery_delay_ms = channel->redelivery_delay_ms,
		.redelivery_delay_max_ms = channel->redelivery_delay_max_ms,
		.max_attempts = channel->max_attempts,
		.dead_letter = channel->dead_letter,
		.ordered = channel->ordered,
		.max_deferred = channel->max_deferred,
		.max_consumers = channel->max_consumers,
		.consumer_expiry_ms = channel->consumer_expiry_ms,
	};
}

bool settings_of_broker(const struct configuration *configuration, struct broker_settings *settings)
{
	static const enum broker_no_worker no_worker[] = {
		[NO_WORKER_ECHO] = BROKER_NO_WORKER_ECHO,
		[NO_WORKER_ERROR] = BROKER_NO_WORKER_ERROR,
		[NO_WORKER_WAIT] = BROKER_NO_WORKER_WAIT,
	};
	const struct configuration_conversations *conversations = &configuration->conversations;
	struct broker_channel_settings *channels =
		calloc(configuration->channel_count + 1, sizeof(*channels));

	*settings = (struct broker_settings){
		.reply_timeout_ms = conversations->reply_timeout_ms,
		.reply_timeout_max_ms = conversations->reply_timeout_max_ms,
		.no_worker = no_worker[conversations->no_worker],
		.worker_settle_ms = conversations->worker_settle_ms,
		.worker_queues = conversations->worker_queues.items,
		.worker_queue_count = conversations->worker_queues.count,
		.unanswered_channels = conversations->unanswered_channels.items,
		.unanswered_channel_count = conversations->unanswered_channels.count,
		.channels = channels,
		.channel_count = configuration->channel_count,
		.max_commit_bytes = configuration->store.max_commit_bytes,
		.max_commit_bytes_per_connection =
			configuration->store.max_commit_bytes_per_connection,
		.cache_bytes = configuration->store.cache_bytes,
	};
	if (channels == NULL)
		return false;
	for (size_t i = 0; i < configuration->channel_count; i++) {
		const struct configuration_channel *channel = &configuration->channels[i];

		channels[i].name = channel->name;
		memcpy(channels[i].schema_id, channel->schema_id, sizeof(channels[i].schema_id));
		channels[i].drop = channel->slow_consumer == SLOW_CONSUMER_DROP;
		channels[i].dedup_window_ms = channel->dedup_window_ms;
		channels[i].dedup_max_keys = channel->dedup_max_keys;
		channels[i].durable = channel->durable;
		channels[i].stored = settings_of_durable(channel);
	}
	return true;
}

void settings_free(struct broker_settings *settings)
{
	free((void *)(uintptr_t)settings->channels);
	settings->channels = NULL;
}

struct net_limits settings_of_net(const struct configuration *configuration)
{
	const struct configuration_limits *limits = &configuration->limits;

	return (struct net_limits){
		.max_frame_size = limits->max_frame_size,
		.max_outbox_bytes = limits->max_outbox_bytes,
		.max_outbox_frames = limits->max_outbox_frames,
		.handshake_timeout_ms = limits->handshake_timeout_ms,
		.idle_timeout_ms = limits->idle_timeout_ms,
		.close_timeout_ms = configuration->server.close_timeout_ms,
		.client =
			{
				.subscriptions = limits->max_subscriptions_per_connection,
				.conversations = limits->max_conversations_per_connection,
				.replies_per_conversation =
					limits->max_pending_replies_per_conversation,
				.replies = limits->max_pending_replies_per_connection,
				.pushes = limits->max_pending_pushes_per_connection,
				.pending_bytes = limits->max_pending_bytes_per_connection,
				.frame_bytes = limits->max_frame_size,
			},
	};
}
