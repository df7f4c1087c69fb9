/*
 * Sockets of the client: addresses, connecting with a deadline, and bytes without signals. Every
 * descriptor made here does not block and is closed on exec.
 */
#include "client/client_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define CLIENT_DEFAULT_PORT "7480"

#ifdef SOCK_CLOEXEC
#define CLIENT_SOCKET_FLAGS (SOCK_CLOEXEC | SOCK_NONBLOCK)
#else
#define CLIENT_SOCKET_FLAGS 0
#endif

#ifdef MSG_NOSIGNAL
#define CLIENT_SEND_FLAGS MSG_NOSIGNAL
#else
#define CLIENT_SEND_FLAGS 0
#endif

/* What could not be asked for when FD was made. */
static bool client_socket_prepare(int fd)
{
#ifndef SOCK_CLOEXEC
	int flags = fcntl(fd, F_GETFL);

	if (flags == -1 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) == -1 ||
	    fcntl(fd, F_SETFD, FD_CLOEXEC) == -1)
		return false;
#endif
#ifndef MSG_NOSIGNAL
	int on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof(on)) == -1)
		return false;
#endif
	return fd >= 0;
}

int client_socket_pair(int fds[2])
{
	fds[0] = fds[1] = -1;
	if (socketpair(AF_UNIX, SOCK_STREAM | CLIENT_SOCKET_FLAGS, 0, fds) == -1)
		return client_fail(LIMINAL_MEMORY, "cannot make a socket pair: %s",
				   strerror(errno));
	if (client_socket_prepare(fds[0]) && client_socket_prepare(fds[1]))
		return LIMINAL_OK;
	close(fds[0]);
	close(fds[1]);
	fds[0] = fds[1] = -1;
	return client_fail(LIMINAL_MEMORY, "cannot prepare a socket pair: %s", strerror(errno));
}

ssize_t client_socket_send(int fd, const void *bytes, size_t length)
{
	return send(fd, bytes, length, CLIENT_SEND_FLAGS);
}

ssize_t client_socket_receive(int fd, void *bytes, size_t size)
{
	return recv(fd, bytes, size, 0);
}

int client_socket_poll(struct pollfd *fds, unsigned count, int64_t deadline_ns)
{
	int timeout_ms = -1, ready;

	if (deadline_ns != DEADLINE_NEVER) {
		int64_t left_ms = (deadline_ns - clock_mono_ns() + NS_PER_MS - 1) / NS_PER_MS;

		timeout_ms = left_ms <= 0 ? 0 : left_ms > 1000000 ? 1000000 : (int)left_ms;
	}
	ready = poll(fds, count, timeout_ms);
	if (ready <= 0)
		for (unsigned i = 0; i < count; i++)
			fds[i].revents = 0;
	return ready < 0 ? 0 : ready;
}

/*
 * A quiet connection with a dead peer would otherwise be waited on for ever. Where an option is
 * missing or refused the connection works all the same.
 */
static void client_socket_tune(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
#if defined(TCP_KEEPIDLE) && defined(TCP_KEEPINTVL) && defined(TCP_KEEPCNT)
	int idle_s = 60, interval_s = 10, probes = 6;

	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof(probes));
#endif
}

/* 0 or an errno value. */
static int client_socket_finish(int fd, int64_t deadline_ns)
{
	struct pollfd wanted = {.fd = fd, .events = POLLOUT};
	int error = 0;
	socklen_t length = sizeof(error);

	while (client_socket_poll(&wanted, 1, deadline_ns) == 0)
		if (clock_mono_ns() >= deadline_ns)
			return ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) == -1)
		return errno;
	return error;
}

/* 0 with *FD set, or an errno value. */
static int client_socket_try(const struct sockaddr *address, socklen_t length, int64_t deadline_ns,
			     int *fd)
{
	const struct timespec pause = {.tv_nsec = 10 * NS_PER_MS};
	int error;

	*fd = socket(address->sa_family, SOCK_STREAM | CLIENT_SOCKET_FLAGS, 0);
	if (*fd == -1)
		return errno;
	error = client_socket_prepare(*fd) ? 0 : errno;
	while (error == 0) {
		if (connect(*fd, address, length) == 0)
			return 0;
		error = errno;
		/* A local listener's queue is full: Linux does not wait for room in it. */
		if (error == EAGAIN && clock_mono_ns() < deadline_ns) {
			nanosleep(&pause, NULL);
			error = 0;
			continue;
		}
		if (error == EINPROGRESS || error == EINTR)
			error = client_socket_finish(*fd, deadline_ns);
		if (error == 0)
			return 0;
	}
	close(*fd);
	*fd = -1;
	return error;
}

static int client_connect_path(const char *path, int64_t deadline_ns, int *fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int error;

	if (strlen(path) >= sizeof(address.sun_path))
		return client_fail(LIMINAL_INVALID, "the socket path \"%s\" is too long", path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	error = client_socket_try((const struct sockaddr *)&address, sizeof(address), deadline_ns,
				  fd);
	if (error != 0)
		return client_fail(LIMINAL_UNREACHABLE, "cannot connect to \"%s\": %s", path,
				   strerror(error));
	return LIMINAL_OK;
}

/* Splits HOST:PORT, [IPV6]:PORT or HOST. */
static int client_split(const char *server, char host[256], const char **port)
{
	const char *end, *start = server;

	*port = CLIENT_DEFAULT_PORT;
	if (*server == '[') {
		start = server + 1;
		end = strchr(start, ']');
		if (end == NULL || (end[1] != '\0' && end[1] != ':'))
			goto invalid;
		if (end[1] == ':')
			*port = end + 2;
	} else {
		end = strchr(server, ':');
		if (end == NULL)
			end = server + strlen(server);
		else if (strchr(end + 1, ':') == NULL)
			*port = end + 1;
		else
			end = server + strlen(server); /* a bare IPv6 address */
	}
	if (end == start || (size_t)(end - start) > 255 || **port == '\0')
		goto invalid;
	memcpy(host, start, (size_t)(end - start));
	host[end - start] = '\0';
	return LIMINAL_OK;
invalid:
	return client_fail(
		LIMINAL_INVALID,
		"\"%s\" is no server: give HOST:PORT, [IPV6]:PORT or a path with a slash", server);
}

int client_socket_connect(const char *server, int64_t deadline_ns, int *fd)
{
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	struct addrinfo *addresses = NULL;
	char host[256];
	const char *port;
	int status, error, left = 0;

	*fd = -1;
	if (strchr(server, '/') != NULL)
		return client_connect_path(server, deadline_ns, fd);
	status = client_split(server, host, &port);
	if (status != LIMINAL_OK)
		return status;
	error = getaddrinfo(host, port, &hints, &addresses);
	if (error != 0)
		return client_fail(LIMINAL_UNREACHABLE, "cannot find \"%s\": %s", server,
				   error == EAI_SYSTEM ? strerror(errno) : gai_strerror(error));
	error = ETIMEDOUT;
	for (const struct addrinfo *at = addresses; at != NULL; at = at->ai_next)
		left++;
	/* Each has its share of the time: one that is silent must not use up that of the next. */
	for (const struct addrinfo *at = addresses; at != NULL && *fd == -1; at = at->ai_next) {
		int64_t now_ns = clock_mono_ns();

		error = client_socket_try(at->ai_addr, at->ai_addrlen,
					  now_ns + (deadline_ns - now_ns) / left--, fd);
	}
	freeaddrinfo(addresses);
	if (*fd == -1)
		return client_fail(LIMINAL_UNREACHABLE, "cannot connect to \"%s\": %s", server,
				   strerror(error));
	client_socket_tune(*fd);
	return LIMINAL_OK;
}
