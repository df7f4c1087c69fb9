/*
 * What listening sockets need that is the same for clients and for HTTP: binding, flags, addresses
 * as text, failures of accept. No state, no locks.
 */
#ifndef NET_SOCKET_H
#define NET_SOCKET_H

#include "base/text.h"

#include <sys/socket.h>

/* The longest text that socket_address_text makes, with its end. */
#define SOCKET_ADDRESS_MAX 128

/* "127.0.0.1:7480", "[::1]:7480", or the path of a Unix socket; "unix" when it has none. */
void socket_address_text(const struct sockaddr *address, socklen_t length,
			 char text[SOCKET_ADDRESS_MAX]);

/* The same of a client's end, but always "unix" for a Unix socket: a path there is the client's own
 * choice, and may be any bytes. */
void socket_peer_text(const struct sockaddr *address, socklen_t length,
		      char text[SOCKET_ADDRESS_MAX]);

/* The same of where FD is bound. */
void socket_bound_text(int fd, char text[SOCKET_ADDRESS_MAX]);

/* Sets or clears O_NONBLOCK, and sets FD_CLOEXEC. False with errno set. */
bool socket_set_flags(int fd, bool nonblocking);

/*
 * Listens on ADDRESS (HOST:PORT or [IPV6]:PORT; port 0 picks one), without blocking. The
 * descriptor, or -1 with a text in ERROR that names the address.
 */
int socket_listen_tcp(const char *address, struct text *error);

/* Makes sure that the passed-in FD is a listening stream socket, without blocking. */
bool socket_adopt(int fd, struct text *error);

/* Counts a FAILURE of accept on the socket at ADDRESS, and logs it; true when it does not pass by
 * itself, so that the acceptor has to pause for SOCKET_PAUSE_MS. */
#define SOCKET_PAUSE_MS 100
bool socket_accept_failed(int failure, const char *address);

/* How many bytes that were sent on FD the peer's system has not taken yet; 0 where that cannot be
 * asked. */
size_t socket_untaken(int fd);

/* Whether a send would take something, or fail, at once. */
bool socket_is_writable(int fd);

/* A pipe that wakes a thread from poll: both ends without blocking. */
bool pipe_open(int *read_end, int *write_end);
void pipe_wake(int write_end);
void pipe_empty(int read_end);

#endif
