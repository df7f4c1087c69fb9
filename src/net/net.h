/*
 * Connections: listeners with an acceptor thread each, a bounded pool of session threads that do
 * blocking reads, an outbox per connection, and the flusher that finishes what a socket did not
 * take at once.
 *
 * A connection is owned by its session thread. Others hold references (a flush set, the flusher)
 * or find it in the table under the NET lock; they may append to its outbox, flush it, mark it for
 * closing and read its numbers.
 */
#ifndef NET_NET_H
#define NET_NET_H

#include "broker/broker.h"

struct net;

/* Limits and times of a connection; it keeps those that it was accepted under. */
struct net_limits {
	uint64_t max_frame_size;
	uint64_t max_outbox_bytes, max_outbox_frames;
	int64_t handshake_timeout_ms;
	int64_t idle_timeout_ms; /* 0: none */
	int64_t close_timeout_ms;
	struct broker_client_limits client;
};

/* LISTENER_CONTROL: may address `$` subjects, needs no token, has slots of its own. */
enum net_listener_kind { NET_LISTENER_CLIENTS, NET_LISTENER_CONTROL };

#define NET_CONTROL_CONNECTIONS 4

/*
 * MAX_CONNECTIONS is fixed for the life of the net. TOKEN NULL: the server is open. Both LIMITS
 * and TOKEN are copied.
 */
struct net *net_new(struct broker *broker, uint64_t max_connections,
		    const struct net_limits *limits, const char *token);

/* Limits and token for connections accepted from now on. False: no memory, nothing changed. */
bool net_configure(struct net *net, const struct net_limits *limits, const char *token);

/*
 * Binds ADDRESS (HOST:PORT, [IPV6]:PORT or /PATH) and listens; nothing is accepted before
 * net_start. A socket path gets MODE, and is replaced when nobody answers on it. 0, or -1 with a
 * text in ERROR that names the address.
 */
int net_listen(struct net *net, const char *address, enum net_listener_kind kind, unsigned mode,
	       struct text *error);

/* Likewise with a listening socket that is passed in; it is not unlinked at the end. */
int net_listen_fd(struct net *net, int fd, enum net_listener_kind kind, struct text *error);

/* Gives the socket paths to a user, while the process may. 0 or an errno value with its PATH. */
int net_chown_paths(struct net *net, unsigned user, unsigned group, const char **path);

/* Starts the flusher and the acceptors. False with a text in ERROR. */
bool net_start(struct net *net, struct text *error);

/* True between net_start and net_drain. */
bool net_listening(struct net *net);

/*
 * Closes the listeners and unlinks their paths, sends a Disconnect to each connection that holds
 * a subscription, and waits, at most TIMEOUT_MS or until net_hurry, until all have gone;
 * connections idle for IDLE_MS are closed meanwhile.
 */
void net_drain(struct net *net, int64_t timeout_ms, int64_t idle_ms);

/* Ends the wait of net_drain; any thread. */
void net_hurry(struct net *net);

/* Closes every connection and waits for its end; then stops the flusher. */
void net_stop(struct net *net);
void net_free(struct net **net);

/* Marks a connection for closing, as $control/close. False when there is none with this id. */
bool net_close_connection(struct net *net, uint64_t id);

/* --- what others may know ------------------------------------------------------------------ */

struct net_connection_state {
	uint64_t id;
	char peer[64];
	uint16_t version_major, version_minor;
	int64_t since_ms;
	uint64_t outbox_bytes, outbox_frames;
	struct broker_client_state client;
};

/* Copies the state of each connection into *STATES, which the caller frees; false: no memory. */
bool net_connection_states(struct net *net, struct net_connection_state **states, size_t *count);

struct net_totals {
	uint64_t current, control, accepted, max; /* connections */
	uint64_t outbox_bytes, outbox_frames;
	uint64_t threads, lingering;
};
void net_totals(struct net *net, struct net_totals *totals);

/* Where it listens, as text ("127.0.0.1:7480"), in order; NULL past the end. */
const char *net_address(struct net *net, size_t index);

#endif
