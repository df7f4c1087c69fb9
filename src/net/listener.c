/*
 * Listening sockets and their acceptors. An acceptor polls its socket and the wake pipe, accepts
 * without blocking, admits or refuses, and never waits for a seat. When descriptors or memory run
 * out it pauses, so that it does not spin on a connection that it cannot take.
 */
#include "net/net_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/metrics.h"
#include "net/socket.h"

#define BACKLOG 1024

/* --- binding ------------------------------------------------------------------------------- */

static int net_add_listener(struct net *net, int fd, enum net_listener_kind kind, const char *path,
			    struct text *error)
{
	char text[SOCKET_ADDRESS_MAX];
	struct listener *listeners =
		realloc(net->listeners, (net->listener_count + 1) * sizeof(*listeners));
	struct listener *listener;

	if (listeners == NULL) {
		text_add(error, "out of memory for a listener");
		return -1;
	}
	net->listeners = listeners;
	listener = &listeners[net->listener_count];
	*listener = (struct listener){.net = net, .fd = fd, .kind = kind};
	socket_bound_text(fd, text);
	listener->address = strdup(path != NULL ? path : text);
	listener->path = path != NULL ? strdup(path) : NULL;
	if (listener->address == NULL || (path != NULL && listener->path == NULL)) {
		free(listener->address);
		text_add(error, "out of memory for a listener");
		return -1;
	}
	net->listener_count++;
	return 0;
}

int net_listen_fd(struct net *net, int fd, enum net_listener_kind kind, struct text *error)
{
	if (!socket_adopt(fd, error))
		return -1;
	return net_add_listener(net, fd, kind, NULL, error);
}

/* 0 when PATH is free now; otherwise an errno value, EADDRINUSE when somebody answers there. */
static int path_make_free(const struct sockaddr_un *address)
{
	struct stat status;
	int fd, result;

	if (lstat(address->sun_path, &status) < 0)
		return errno == ENOENT ? 0 : errno;
	if (!S_ISSOCK(status.st_mode))
		return EEXIST;
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0)
		return errno;
	result = connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 ? EADDRINUSE
										      : errno;
	(void)close(fd);
	if (result != ECONNREFUSED)
		return result;
	return unlink(address->sun_path) < 0 ? errno : 0;
}

static int listen_path(struct net *net, const char *path, enum net_listener_kind kind,
		       unsigned mode, struct text *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = -1, failure;
	mode_t old_mask;

	if (strlen(path) >= sizeof(address.sun_path)) {
		text_add(error, "cannot listen on '%s': the path is longer than %zu bytes", path,
			 sizeof(address.sun_path) - 1);
		return -1;
	}
	memcpy(address.sun_path, path, strlen(path) + 1);
	failure = path_make_free(&address);
	if (failure != 0) {
		text_add(error, "cannot listen on '%s': %s", path,
			 failure == EADDRINUSE ? "another server answers there"
			 : failure == EEXIST   ? "there is something that is not a socket"
					       : strerror(failure));
		return -1;
	}
	fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0)
		goto failed;
	old_mask = umask(0777 & ~(mode_t)mode); /* no other thread makes files yet */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		(void)umask(old_mask);
		goto failed;
	}
	(void)umask(old_mask);
	if (chmod(path, (mode_t)mode) == 0 && listen(fd, BACKLOG) == 0 &&
	    socket_set_flags(fd, true)) {
		if (net_add_listener(net, fd, kind, path, error) == 0)
			return 0;
		(void)unlink(path);
		(void)close(fd);
		return -1;
	}
	(void)unlink(path);
failed:
	text_add(error, "cannot listen on '%s': %s", path, strerror(errno));
	if (fd >= 0)
		(void)close(fd);
	return -1;
}

int net_listen(struct net *net, const char *address, enum net_listener_kind kind, unsigned mode,
	       struct text *error)
{
	int fd;

	if (address[0] == '/')
		return listen_path(net, address, kind, mode, error);
	fd = socket_listen_tcp(address, error);
	if (fd >= 0 && net_add_listener(net, fd, kind, NULL, error) < 0) {
		(void)close(fd);
		fd = -1;
	}
	return fd < 0 ? -1 : 0;
}

int net_chown_paths(struct net *net, unsigned user, unsigned group, const char **path)
{
	for (size_t i = 0; i < net->listener_count; i++) {
		*path = net->listeners[i].path;
		if (*path != NULL && lchown(*path, (uid_t)user, (gid_t)group) < 0)
			return errno;
	}
	*path = NULL;
	return 0;
}

void listener_close(struct listener *listener)
{
	if (listener->started)
		thread_join(&listener->acceptor);
	listener->started = false;
	if (listener->fd >= 0)
		(void)close(listener->fd);
	listener->fd = -1;
	if (listener->path != NULL)
		(void)unlink(listener->path); /* where permissions allow */
	free(listener->path);
	listener->path = NULL;
}

/* --- accepting ----------------------------------------------------------------------------- */

static void listener_refuse(struct listener *listener, int fd, const char *peer, enum metric metric,
			    const char *text)
{
	uint8_t bytes[128];
	struct wire_frame frame = {
		.header = {.type = WIRE_CONNECT_ERROR},
		.u.error = {.code = WIRE_REASON_SERVER, .text = {true, span_of(text)}},
	};
	size_t size = wire_encode(&frame, bytes, sizeof(bytes));

	metric_add(metric, 1);
	log_client_event(LOG_LEVEL_WARNING, "connection refused", LOG_STR("peer", peer),
			 LOG_STR("reason", text));
	if (size <= sizeof(bytes))
		(void)send(fd, bytes, size, MSG_DONTWAIT);
	(void)shutdown(fd, SHUT_WR);
	flusher_linger(&listener->net->flusher, fd);
}

static void listener_admit(struct listener *listener, int fd, const char *peer)
{
	struct net *net = listener->net;
	enum admission admission;
	struct conn *conn = conn_new(net, fd, peer, listener->kind, &admission);
	bool control = listener->kind == NET_LISTENER_CONTROL;
	struct flush_set set;
	char text[96];

	if (conn != NULL) {
		log_client_event(LOG_LEVEL_INFO, "connection accepted", LOG_U64("conn", conn->id),
				 LOG_STR("peer", conn->peer));
		if (pool_run(net, conn))
			return;
		/* It never had a session, but others may have found it already. */
		(void)conn_settle_reason(conn, CLOSE_MEMORY);
		flush_set_init(&set);
		broker_client_end_worker(conn->client, &set);
		broker_client_end_conversations(conn->client, &set);
		flush_set_run(&set);
		outbox_close(conn);
		conn_remove(conn);
		broker_client_free(&conn->client);
		conn_unref(&conn);
		listener_refuse(listener, fd, peer, METRIC_REFUSED_THREADS,
				"the server has no thread left for a connection");
		return;
	}
	if (admission == REFUSED_MEMORY) {
		listener_refuse(listener, fd, peer, METRIC_REFUSED_MEMORY,
				"the server has no memory left for a connection");
		return;
	}
	(void)snprintf(text, sizeof(text), "the server is at its limit of %llu %sconnections",
		       control ? NET_CONTROL_CONNECTIONS : (unsigned long long)net->max_connections,
		       control ? "control " : "");
	listener_refuse(listener, fd, peer,
			control ? METRIC_REFUSED_CONTROL_LIMIT : METRIC_REFUSED_LIMIT, text);
}

/* Takes one connection; how long to pause in ms, 0 for not at all. */
static int listener_accept(struct listener *listener)
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);
	char peer[SOCKET_ADDRESS_MAX];
	int fd;

#ifdef HAVE_ACCEPT4
	fd = accept4(listener->fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC);
#else
	fd = accept(listener->fd, (struct sockaddr *)&address, &length);
	if (fd >= 0 && !socket_set_flags(fd, false)) {
		(void)close(fd);
		return 0;
	}
#endif
	if (fd < 0)
		return socket_accept_failed(errno, listener->address) ? SOCKET_PAUSE_MS : 0;
#ifdef SO_NOSIGPIPE
	(void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &(int){1}, sizeof(int));
#endif
	socket_peer_text((struct sockaddr *)&address, length, peer);
	listener_admit(listener, fd, peer);
	return 0;
}

void *listener_accept_loop(void *argument)
{
	struct listener *listener = argument;
	int pause_ms = 0;

	for (;;) {
		struct pollfd polls[] = {{.fd = listener->net->wake_read, .events = POLLIN},
					 {.fd = listener->fd, .events = POLLIN}};

		(void)poll(polls, pause_ms > 0 ? 1 : 2, pause_ms > 0 ? pause_ms : -1);
		if (polls[0].revents != 0)
			return NULL;
		pause_ms = 0;
		if (polls[1].revents != 0)
			pause_ms = listener_accept(listener);
	}
}
