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
#define DURABLE_PAYLOAD 256

/* Whoever waits longer than this for anything has failed. */
#define PATIENCE_S 10

int64_t bench_now_ns(void);

/* --- server.c: the process under test ------------------------------------------------------ */

struct peer;

#define DIRECTORY_SIZE 512

/* What the server must be configured for. */
struct demand {
	unsigned connections, channels, pending;
	uint64_t kept;	       /* durable messages that it finds when it starts */
	uint64_t max_messages; /* that a durable channel keeps; 0: all */
};

struct server {
	const struct peer *peer;
	char directory[DIRECTORY_SIZE]; /* its own, removed at the end */
	uint16_t port;
	pid_t pid;
	clockid_t cpu;
	double start_s; /* until it accepted a connection */
};

/* A new folder in $TMPDIR, or /tmp; false with a line on standard error, and an empty name. The
 * removal takes all that is in it. */
bool bench_make_directory(char directory[DIRECTORY_SIZE]);
void bench_remove_directory(const char *directory);

/* Files in those folders are in memory: what is synced there costs nothing. */
bool bench_is_memory(void);

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

/* A durable subscription, or work for a consumer that has a name. */
struct position {
	const char *consumer; /* NULL: a reader */
	uint64_t from;	      /* 0: what is new; 1: all; otherwise this sequence */
	uint32_t credit;
};

struct client {
	const struct peer *peer;
	enum role role;
	struct position position;
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
	uint64_t last;	     /* of the numbers that the server gave: acknowledged, or delivered */
	uint64_t confirmed;  /* the last answer that was */
	bool *taken;	     /* by any consumer, by sequence; or NULL */
	const char *failure; /* NULL: none */

	/* When message N % LATENCY_SLOTS was sent, and how long the acknowledged ones took, where
	 * that is asked for. */
	int64_t *sent_ns;
	struct latencies *latencies;
	int64_t slowest_ns; /* of a subscriber */
};

#define LATENCY_SLOTS 1024

/* In classes that are a sixteenth of their time wide. */
#define LATENCY_CLASSES 640
struct latencies {
	uint64_t counts[LATENCY_CLASSES];
};

void latencies_add(struct latencies *latencies, int64_t ns);
void latencies_merge(struct latencies *into, const struct latencies *from);

/* What SHARE of them did not exceed; 0 when there are none. */
double latencies_ms(const struct latencies *latencies, double share);

/* Connects, and has the peer say hello. The client is closed by client_close in any case. */
bool client_open(struct client *client, uint16_t port);
void client_close(struct client *client);

/* Sends COUNT more messages, a multiple of the unit's; what was sent before must have left. */
void client_send(struct client *client, uint64_t count);

/* Goes on sending what has not left; true when all has. */
bool client_flush(struct client *client);

#define INPUT_SIZE (256 * 1024)

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

/* One more, to which the server gave this number: they rise on a connection. */
static inline void client_acknowledged_as(struct client *client, uint64_t number)
{
	if (number <= client->last)
		client_fail(client, "a publish was acknowledged out of order");
	client->last = number;
	client->acknowledged++;
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

struct load;
struct pace;

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
	bool has_retention;  /* and removes what is too much, and has durable subscriptions */

	/* No server: the library by itself, in this process. */
	struct numbers (*alone)(const struct load *load, const struct pace *pace);
};

extern const struct peer peer_floor, peer_liminald, peer_redis, peer_nats, peer_mosquitto;

/* Those that store what they acknowledge. */
extern const struct peer peer_store_floor, peer_durable, peer_stream, peer_jetstream,
	peer_sqlite_rows, peer_sqlite_batch;

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

	/* Publishers wait for their acknowledgements only, and these are timed. */
	bool durable;
	uint64_t max_messages; /* that the channel keeps; 0: all */
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
	double open_s;	       /* until every client had been accepted and was ready */
	double delivered;      /* messages per second, to the slowest subscriber */
	double p50_ms, p99_ms; /* until the acknowledgement */
};

struct numbers run(const struct load *load, const struct peer *peer, const struct pace *pace);

/* --- crew.c: clients on a thread of their own ---------------------------------------------- */

struct pollfd;

struct crew {
	struct client **clients;
	size_t count;
	struct pollfd *polls;
	struct input input;
	pthread_t thread;
	bool started;

	/* A fan: its publisher waits for the slowest of its subscribers. */
	bool fan;
	const struct client *timed; /* the publisher, where latency is asked for; or NULL */

	bool failed; /* a client of it has */

	/* Messages done, and delivered to the slowest subscriber, for the main thread. */
	atomic_uint_fast64_t progress, delivered;
	atomic_bool *stop; /* send no more, and end when everything has come back */
};

/* Room for COUNT clients. CREW must be zero, and crew_end must follow in any case. */
bool crew_prepare(struct crew *crew, size_t count, atomic_bool *stop);
void crew_start(struct crew *crew);

/* Waits for it; *STOP must be set. */
void crew_end(struct crew *crew);

/* --- fill.c -------------------------------------------------------------------------------- */

/* Makes a store in the folder, with so many messages in the first channel. */
bool fill_store(const char *folder, uint64_t count, size_t payload);

/* --- durable.c: what only liminald is measured for ----------------------------------------- */

#define DURABLE_CASES 3

const char *durable_name(size_t number);
void durable_run(size_t number);

/* Medians of the runs that counted: for people, and a line for each value. */
void durable_print(FILE *file);
void durable_print_values(FILE *file);

/* --- scale.c ------------------------------------------------------------------------------- */

/* The loads that show how cost grows; *COUNT of them. */
const struct load *scale_loads(size_t *count);

#endif
