/* The configuration, in the words of broker and net. */
#ifndef LIMINALD_SETTINGS_H
#define LIMINALD_SETTINGS_H

#include "broker/broker.h"
#include "config/configuration.h"
#include "net/net.h"

/* Points into CONFIGURATION; settings_free frees the array of channels. False: no memory. */
bool settings_of_broker(const struct configuration *configuration,
			struct broker_settings *settings);
void settings_free(struct broker_settings *settings);

struct net_limits settings_of_net(const struct configuration *configuration);

#endif
