/*
 * Listening sockets and their acceptors. An acceptor polls its socket and the wake pipe, accepts
 * without blocking, admits or refuses, and never waits for a seat. When descriptors or memory run
 * out it pauses, so that it does not spin on a connection that it cannot take.
 */
#include "net/net_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "base/metrics.h"

#define BACKLOG 1024
#define PAUSE_MS 100

/* --- binding ------------------------------------------------------------------------------- */

static bool fd_set_flags(int fd, bool nonblocking)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return false;
	flags = nonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) == 0;
}

static void address_text(const struct sockaddr *address, socklen_t length, char *text, size_t size)
{
	char host[INET6_ADDRSTRLEN + 16], port[8];

	if (address->sa_family == AF_UNIX) {
		const struct sockaddr_un *local = (const struct sockaddr_un *)(const void *)address;
		bool named = length > offsetof(struct sockaddr_un, sun_path) &&
			     local->sun_path[0] == '/';

		(void)snprintf(text, size, "%s", named ? local->sun_path : "unix");
		return;
	}
	if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		(void)snprintf(text, size, "unknown");
	else if (strchr(host, ':') != NULL)
		(void)snprintf(text, size, "[%s]:%s", host, port);
	else
		(void)snprintf(text, size, "%s:%s", host, port);
}

static int net_add_listener(struct net *net, int fd, enum net_listener_kind kind, const char *path,
			    struct text *error)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	char text[128];
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
	if (getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
		text_add(error, "cannot tell the address of a listening socket: %s",
			 strerror(errno));
		return -1;
	}
	address_text((struct sockaddr *)&address, length, text, sizeof(text));
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
	int type = 0, accepting = 0;
	socklen_t length = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM) {
		text_add(error, "descriptor %d from LISTEN_FDS is not a stream socket", fd);
		return -1;
	}
#ifdef SO_ACCEPTCONN
	length = sizeof(int);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepting, &length) == 0 && !accepting) {
		text_add(error, "descriptor %d from LISTEN_FDS does not listen", fd);
		return -1;
	}
#else
	(void)accepting;
#endif
	if (!fd_set_flags(fd, true)) {
		text_add(error, "descriptor %d from LISTEN_FDS: %s", fd, strerror(errno));
		return -1;
	}
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
	old_mask = umask(0777 & ~(mode_t)mode); /* before other threads exist */
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		(void)umask(old_mask);
		goto failed;
	}
	(void)umask(old_mask);
	if (chmod(path, (mode_t)mode) == 0 && listen(fd, BACKLOG) == 0 && fd_set_flags(fd, true)) {
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

static int listen_tcp_one(const struct addrinfo *info)
{
	int on = 1, failure;
	int fd = socket(info->ai_family, info->ai_socktype, info->ai_protocol);

	if (fd < 0)
		return -1;
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
#ifdef IPV6_V6ONLY
	if (info->ai_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
#endif
	if (bind(fd, info->ai_addr, info->ai_addrlen) == 0 && listen(fd, BACKLOG) == 0 &&
	    fd_set_flags(fd, true))
		return fd;
	failure = errno;
	(void)close(fd);
	errno = failure;
	return -1;
}

/* Splits HOST:PORT or [IPV6]:PORT in place; the configuration has checked the form. */
static bool address_split(char *address, char **host, char **port)
{
	char *colon = strrchr(address, ':');

	if (colon == NULL)
		return false;
	*colon = '\0';
	*port = colon + 1;
	*host = address;
	if (address[0] == '[' && colon > address + 1 && colon[-1] == ']') {
		colon[-1] = '\0';
		*host = address + 1;
	}
	return true;
}

static int listen_tcp(struct net *net, const char *address, enum net_listener_kind kind,
		      struct text *error)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC,
				 .ai_socktype = SOCK_STREAM,
				 .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
	struct addrinfo *found = NULL;
	char *copy = strdup(address), *host, *port;
	int result, fd = -1;

	if (copy == NULL || !address_split(copy, &host, &port)) {
		text_add(error, "cannot listen on '%s': it is not HOST:PORT", address);
		free(copy);
		return -1;
	}
	result = getaddrinfo(host[0] == '\0' || strcmp(host, "*") == 0 ? NULL : host, port, &hints,
			     &found);
	free(copy);
	if (result != 0) {
		text_add(error, "cannot listen on '%s': %s", address, gai_strerror(result));
		return -1;
	}
	for (struct addrinfo *info = found; info != NULL && fd < 0; info = info->ai_next)
		fd = listen_tcp_one(info);
	if (fd < 0)
		text_add(error, "cannot listen on '%s': %s", address, strerror(errno));
	freeaddrinfo(found);
	if (fd < 0)
		return -1;
	if (net_add_listener(net, fd, kind, NULL, error) < 0) {
		(void)close(fd);
		return -1;
	}
	return 0;
}

int net_listen(struct net *net, const char *address, enum net_listener_kind kind, unsigned mode,
	       struct text *error)
{
	if (address[0] == '/')
		return listen_path(net, address, kind, mode, error);
	return listen_tcp(net, address, kind, error);
}

int net_chown_paths(struct net *net, unsigned user, unsigned group, const char **path)
{
	for (size_t i = 0; i < net->listener_count; i++) {
		*path = net->listeners[i].path;
		if (*path != NULL && chown(*path, (uid_t)user, (gid_t)group) < 0)
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
	char text[96];

	if (conn != NULL) {
		log_client_event(LOG_LEVEL_INFO, "connection accepted", LOG_U64("conn", conn->id),
				 LOG_STR("peer", conn->peer));
		if (pool_run(net, conn))
			return;
		/* It never had a session: nobody but the table knows it. */
		(void)conn_settle_reason(conn, CLOSE_MEMORY);
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

/* Counts a failure of accept; true when the acceptor has to pause. */
static bool listener_failed(const struct listener *listener, int failure)
{
	static const struct {
		int failure;
		enum metric metric;
		bool pause;
	} rows[] = {
		{EMFILE, METRIC_ACCEPT_EMFILE, true},
		{ENFILE, METRIC_ACCEPT_ENFILE, true},
		{ENOBUFS, METRIC_ACCEPT_ENOBUFS, true},
		{ENOMEM, METRIC_ACCEPT_ENOMEM, true},
		{ECONNABORTED, METRIC_ACCEPT_ECONNABORTED, false},
	};
	enum metric metric = METRIC_ACCEPT_OTHER;
	bool pause = true;

	if (failure == EAGAIN || failure == EWOULDBLOCK || failure == EINTR)
		return false;
	for (size_t i = 0; i < ARRAY_LENGTH(rows); i++) {
		if (rows[i].failure == failure) {
			metric = rows[i].metric;
			pause = rows[i].pause;
		}
	}
	metric_add(metric, 1);
	if (pause)
		log_client_event(LOG_LEVEL_ERROR, "accept failed",
				 LOG_STR("address", listener->address),
				 LOG_STR("reason", strerror(failure)));
	return pause;
}

/* Takes one connection; how long to pause in ms, 0 for not at all. */
static int listener_accept(struct listener *listener)
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);
	char peer[64];
	int fd;

#ifdef HAVE_ACCEPT4
	fd = accept4(listener->fd, (struct sockaddr *)&address, &length, SOCK_CLOEXEC);
#else
	fd = accept(listener->fd, (struct sockaddr *)&address, &length);
	if (fd >= 0 && !fd_set_flags(fd, false)) {
		(void)close(fd);
		return 0;
	}
#endif
	if (fd < 0)
		return listener_failed(listener, errno) ? PAUSE_MS : 0;
#ifdef SO_NOSIGPIPE
	(void)setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &(int){1}, sizeof(int));
#endif
	address_text((struct sockaddr *)&address, length, peer, sizeof(peer));
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
