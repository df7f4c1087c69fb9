/*
 * What an administrator asks of a running server: HTTP with /health, /ready and /metrics, and the
 * responder of the $control subjects. Both read snapshots that net and broker hand out; neither
 * walks their structures.
 *
 * The object belongs to the main thread. Its HTTP side has two threads of its own (the acceptor
 * and libmicrohttpd's), its $control side runs in the session threads that ask.
 */
#ifndef ADMIN_ADMIN_H
#define ADMIN_ADMIN_H

#include "broker/broker.h"
#include "net/net.h"

struct admin;

/*
 * Makes itself the broker's responder, so it comes before the first client. STARTED_MS is shown as
 * the server's start, in ms since 1970 UTC. NET and BROKER must outlive it. NULL: no memory.
 */
struct admin *admin_new(struct net *net, struct broker *broker, int64_t started_ms);

/*
 * Binds ADDRESS (HOST:PORT or [IPV6]:PORT; port 0 picks one) and listens; nothing is answered
 * before admin_start. At most one of this and admin_http_fd is called, once. 0, or -1 with a text
 * in ERROR that names the address.
 */
int admin_http_bind(struct admin *admin, const char *address, struct text *error);

/* Likewise with a listening socket that is passed in, and is the admin's on success. */
int admin_http_fd(struct admin *admin, int fd, struct text *error);

/* Where HTTP listens, as text ("127.0.0.1:7481"); NULL: nowhere. */
const char *admin_http_address(const struct admin *admin);

/* Starts to answer HTTP; does nothing where nothing is bound. False with a text in ERROR. */
bool admin_start(struct admin *admin, struct text *error);

/* Ends the HTTP connections and closes the listener; blocks until its threads have ended. */
void admin_stop(struct admin *admin);

/* Stopped or never started, and no client of the broker is left, which could ask it. */
void admin_free(struct admin **admin);

#endif
