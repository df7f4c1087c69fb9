/*
 * The load generator: what its files share. A *peer* is a server that is measured, with what is
 * known of its protocol; a *load* is a case of the table; a *run* is one load against one peer,
 * with a server of its own, and either gives numbers or says why it does not count.
 *
 * Everything is binary and in memory: frames are built once, stamped with their number when they
 * are sent, and checked by that number when they arrive, at the same cost for every peer.
 */
#ifndef BENCH_BENCH_H
#define BENCH_BENCH_H

#include "base/base.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>

#define NS_PER_S INT64_C(1000000000)

/* A payload starts with the number of the message and the index of its sender. */
#define PAYLOAD_DEFAULT 128

/* Whoever waits longer than this for anything has failed. */
#define PATIENCE_S 10

int64_t bench_now_ns(void);

/* --- server.c: the process under test ------------------------------------------------------ */

struct peer;

/* What the server must be configured for. */
struct demand {
	unsigned connections, channels, pending;
};

struct server {
	const struct peer *peer;
	char directory[64]; /* its own, removed at the end */
	uint16_t port;
	pid_t pid;
	clockid_t cpu;
};

/* False with a line on standard error; server_stop is to be called all the same. */
bool server_start(struct server *server, const struct peer *peer, const struct demand *demand);
void server_stop(struct server *server);

int64_t server_cpu_ns(const struct server *server);
int64_t server_resident_bytes(const struct server *server);

/* The program is in PATH. */
bool server_installed(const struct peer *peer);

/* Keeps this process, and what it starts, on one core; or lets go again. */
void bench_pin(bool one_core);

/* --- client.c: one connection -------------------------------------------------------------- */

enum role { ROLE_PUBLISHER, ROLE_SUBSCRIBER, ROLE_REQUESTER, ROLE_WORKER };

/* A unit is what is sent for one acknowledgement: COUNT frames, alike but for their number, and
 * what asks for the answer. */
struct unit {
	size_t count;
	size_t frame_size, size;
	size_t payload_at; /* of the first frame */
	size_t id_at;	   /* of a u16 packet id, from 1; 0: there is none */
};

struct client {
	const struct peer *peer;
	enum role role;
	uint32_t index;	   /* among those of its role */
	uint32_t channel;  /* the first, or only, one that it uses */
	uint32_t channels; /* that it sends to in turn */
	size_t payload;
	int fd;

	/* What a sender sends: the units of a window, side by side. */
	struct unit unit;
	uint64_t window; /* messages */
	uint8_t *units;

	/* What is to be sent: of `units`, or of `added`. */
	const uint8_t *out;
	size_t out_left;
	uint8_t *added;
	size_t added_size, added_capacity;

	uint8_t *rest; /* a frame that has not come whole */
	size_t rest_size, rest_capacity;

	uint64_t sent, acknowledged, received;
	const char *failure; /* NULL: none */

	/* When message N % LATENCY_SLOTS was sent, where that is asked for. */
	int64_t *sent_ns;
	int64_t slowest_ns; /* of a subscriber */
};

#define LATENCY_SLOTS 1024

/* Connects, and has the peer say hello. The client is closed by client_close in any case. */
bool client_open(struct client *client, uint16_t port);
void client_close(struct client *client);

/* Sends COUNT more messages, a multiple of the unit's; what was sent before must have left. */
void client_send(struct client *client, uint64_t count);

/* Goes on sending what has not left; true when all has. */
bool client_flush(struct client *client);

/* Where input arrives; clients of one thread share it, so that it stays in the cache. */
struct input {
	uint8_t *bytes;
	size_t capacity;
};

/* One read, and what it brought. WAIT: until there is something. */
void client_receive(struct client *client, struct input *input, bool wait);

void client_fail(struct client *client, const char *why);

/* For peers that say hello. False: failed, and the client says why. */
bool client_write(struct client *client, const void *bytes, size_t size);
bool client_print(struct client *client, const char *format, ...) PRINTF_LIKE(2, 3);
bool client_read(struct client *client, void *bytes, size_t size);
bool client_read_until_line(struct client *client, const char *line);

/* For peers that parse. */
static inline void client_acknowledged(struct client *client, uint64_t count)
{
	client->acknowledged += count;
}

static inline uint64_t payload_number(const uint8_t *payload)
{
	uint64_t number;

	memcpy(&number, payload, sizeof(number));
	return number;
}

static inline uint32_t payload_sender(const uint8_t *payload)
{
	uint32_t sender;

	memcpy(&sender, payload + 8, sizeof(sender));
	return sender;
}

/* A message: it must be the next one. */
static inline void client_received(struct client *client, const uint8_t *payload)
{
	if (payload_number(payload) != client->received)
		client_fail(client, "a message was lost, came twice or out of order");
	client->received++;
}

/* Room at the end of what will be sent after this read: a worker's replies. */
uint8_t *client_add(struct client *client, size_t size);

/* Channels have names of one length. */
#define CHANNEL_NAME "c%05u"
#define CHANNEL_NAME_SIZE 6

/* --- peers/: a file each ------------------------------------------------------------------- */

#define CONFIGURATION_FILE "configuration"

struct peer {
	const char *name;
	const char *program;

	/* The command line, its words parted by blanks; the process starts in its own directory,
	 * where CONFIGURATION_FILE has what `configure`, if any, writes. */
	void (*command)(const struct server *server, const struct demand *demand, char *command,
			size_t size);
	void (*configure)(const struct server *server, const struct demand *demand, FILE *file);

	/* After connecting: what must be said before messages flow, and its answers. */
	bool (*hello)(struct client *client);

	/* Describes a unit; writes one, for the channel of that number, at BYTES. */
	void (*describe)(const struct client *client, struct unit *unit);
	void (*write)(const struct client *client, unsigned channel, uint8_t *bytes);

	/* Handles the whole frames of BYTES; how many bytes that were. */
	size_t (*parse)(struct client *client, const uint8_t *bytes, size_t size);

	bool fan_is_silent;  /* publishes that reach subscribers are not acknowledged */
	bool cannot_request; /* it has no request and reply */
	bool cannot_park;    /* it does not know requests from other messages */
	bool cannot_stall;   /* one subscriber that does not read stops it */
};

extern const struct peer peer_floor, peer_liminald, peer_redis, peer_nats, peer_mosquitto;

/* --- run.c --------------------------------------------------------------------------------- */

struct load {
	const char *name;
	unsigned publishers, subscribers, stalled, requesters;
	unsigned silent; /* subscribed to a channel of their own, nothing comes */
	unsigned parked; /* requests that nobody answers */
	unsigned channels;
	uint64_t window; /* messages that a sender is ahead */
	unsigned threads;
	bool one_core;
	bool idle;	/* there is no traffic: CPU and memory are asked for */
	size_t payload; /* 0: PAYLOAD_DEFAULT */
};

struct pace {
	double warm_up_s, measured_s;
};

struct numbers {
	bool valid;
	double rate;	   /* messages per second */
	double cpu_us;	   /* of the server, per message */
	double cpu_share;  /* of the server, of one core */
	double slowest_ms; /* message, where a subscriber stalls */
	double connection_bytes;
	double open_s; /* until every client had been accepted and was ready */
};

struct numbers run(const struct load *load, const struct peer *peer, const struct pace *pace);

/* --- scale.c ------------------------------------------------------------------------------- */

/* The loads that show how cost grows; *COUNT of them. */
const struct load *scale_loads(size_t *count);

#endif
