/*
 * The service manager's two protocols, by hand: sockets that it passes in (LISTEN_FDS) and what it
 * is told (sd_notify). Both do nothing where there is no such manager.
 */
#ifndef LIMINALD_SUPERVISOR_H
#define LIMINALD_SUPERVISOR_H

#include "base/base.h"

enum supervisor_socket_kind {
	SUPERVISOR_SOCKET_CLIENTS,
	SUPERVISOR_SOCKET_HTTP,	   /* named "http" */
	SUPERVISOR_SOCKET_CONTROL, /* named "control" */
};

#define SUPERVISOR_SOCKETS_MAX 64

struct supervisor_sockets {
	struct {
		int fd;
		enum supervisor_socket_kind kind;
	} sockets[SUPERVISOR_SOCKETS_MAX];
	size_t count;
};

/* Reads and unsets LISTEN_PID, LISTEN_FDS and LISTEN_FDNAMES. PID: of the process that they were
 * meant for, before it detached. */
void supervisor_receive_sockets(struct supervisor_sockets *sockets, long pid);

/* The number of passed sockets of KIND. */
size_t supervisor_socket_count(const struct supervisor_sockets *sockets,
			       enum supervisor_socket_kind kind);

/* Tells STATE, lines such as "READY=1"; what cannot be told is not. */
void supervisor_tell(const char *state);

/* STOPPING=1, and that this may take WAIT_MS and a bit: the manager would kill us before that. */
void supervisor_tell_stopping(int64_t wait_ms);

/* RELOADING=1 with the time that it needs beside it. */
void supervisor_tell_reloading(void);

#endif
