#include "net/socket.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <unistd.h>
#ifdef HAVE_LINUX_SOCKIOS_H
#include <linux/sockios.h>
#endif
#ifdef HAVE_SYS_FILIO_H
#include <sys/filio.h>
#endif

#include "base/log.h"
#include "base/metrics.h"

#define BACKLOG 1024

/* --- addresses ----------------------------------------------------------------------------- */

void socket_address_text(const struct sockaddr *address, socklen_t length,
			 char array[SOCKET_ADDRESS_MAX])
{
	struct text text = {.data = array, .size = SOCKET_ADDRESS_MAX};
	char host[64], port[8];

	array[0] = '\0';
	if (address->sa_family == AF_UNIX) {
		const struct sockaddr_un *local = (const struct sockaddr_un *)(const void *)address;
		bool named = length > offsetof(struct sockaddr_un, sun_path) &&
			     local->sun_path[0] == '/';

		text_add(&text, "%s", named ? local->sun_path : "unix");
		return;
	}
	if (getnameinfo(address, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0)
		text_add(&text, "unknown");
	else
		text_add(&text, strchr(host, ':') == NULL ? "%s:%s" : "[%s]:%s", host, port);
}

void socket_peer_text(const struct sockaddr *address, socklen_t length,
		      char text[SOCKET_ADDRESS_MAX])
{
	/* What is shorter than its path has none. */
	socket_address_text(address, address->sa_family == AF_UNIX ? 0 : length, text);
}

void socket_bound_text(int fd, char text[SOCKET_ADDRESS_MAX])
{
	struct sockaddr_storage address = {0};
	socklen_t length = sizeof(address);

	(void)getsockname(fd, (struct sockaddr *)&address, &length);
	socket_address_text((struct sockaddr *)&address, length, text);
}

/* Splits HOST:PORT or [IPV6]:PORT in place. */
static bool address_split(char *address, char **host, char **port)
{
	char *colon = strrchr(address, ':');

	if (colon == NULL)
		return false;
	*colon = '\0';
	*port = colon + 1;
	*host = address;
	if (address[0] == '\0')
		return false;
	if (address[0] == '[') {
		if (colon == address + 1 || colon[-1] != ']')
			return false;
		colon[-1] = '\0';
		*host = address + 1;
	}
	return true;
}

/* --- listening ----------------------------------------------------------------------------- */

bool socket_set_flags(int fd, bool nonblocking)
{
	int flags = fcntl(fd, F_GETFL);

	if (flags < 0 || fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return false;
	flags = nonblocking ? flags | O_NONBLOCK : flags & ~O_NONBLOCK;
	return fcntl(fd, F_SETFL, flags) == 0;
}

static int listen_on(const struct addrinfo *info)
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
	    socket_set_flags(fd, true))
		return fd;
	failure = errno;
	(void)close(fd);
	errno = failure;
	return -1;
}

int socket_listen_tcp(const char *address, struct text *error)
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
	result = getaddrinfo(host, port, &hints, &found);
	free(copy);
	if (result != 0) {
		text_add(error, "cannot listen on '%s': %s", address,
			 result == EAI_SYSTEM ? strerror(errno) : gai_strerror(result));
		return -1;
	}
	for (struct addrinfo *info = found; info != NULL && fd < 0; info = info->ai_next)
		fd = listen_on(info);
	if (fd < 0)
		text_add(error, "cannot listen on '%s': %s", address, strerror(errno));
	freeaddrinfo(found);
	return fd;
}

bool socket_adopt(int fd, struct text *error)
{
	int type = 0;
	socklen_t length = sizeof(int);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0 || type != SOCK_STREAM) {
		text_add(error, "descriptor %d from LISTEN_FDS is not a stream socket", fd);
		return false;
	}
#ifdef SO_ACCEPTCONN
	int accepting = 0;

	length = sizeof(int);
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepting, &length) == 0 && !accepting) {
		text_add(error, "descriptor %d from LISTEN_FDS does not listen", fd);
		return false;
	}
#endif
	if (!socket_set_flags(fd, true)) {
		text_add(error, "descriptor %d from LISTEN_FDS: %s", fd, strerror(errno));
		return false;
	}
	return true;
}

/* --- accepting ----------------------------------------------------------------------------- */

bool socket_accept_failed(int failure, const char *address)
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
		log_client_event(LOG_LEVEL_ERROR, "accept failed", LOG_STR("address", address),
				 LOG_STR("reason", strerror(failure)));
	return pause;
}

/* --- connected sockets --------------------------------------------------------------------- */

size_t socket_untaken(int fd)
{
	int bytes = 0;

#if defined(SIOCOUTQ)
	if (ioctl(fd, SIOCOUTQ, &bytes) != 0)
		return 0;
#elif defined(FIONWRITE)
	if (ioctl(fd, FIONWRITE, &bytes) != 0)
		return 0;
#elif defined(SO_NWRITE)
	socklen_t size = sizeof(bytes);

	if (getsockopt(fd, SOL_SOCKET, SO_NWRITE, &bytes, &size) != 0)
		return 0;
#else
	(void)fd;
#endif
	return bytes > 0 ? (size_t)bytes : 0;
}

bool socket_is_writable(int fd)
{
	struct pollfd wait = {.fd = fd, .events = POLLOUT};

	return poll(&wait, 1, 0) > 0;
}

/* --- pipes --------------------------------------------------------------------------------- */

bool pipe_open(int *read_end, int *write_end)
{
	int ends[2];

	if (pipe(ends) < 0)
		return false;
	if (!socket_set_flags(ends[0], true) || !socket_set_flags(ends[1], true)) {
		(void)close(ends[0]);
		(void)close(ends[1]);
		return false;
	}
	*read_end = ends[0];
	*write_end = ends[1];
	return true;
}

void pipe_wake(int write_end)
{
	/* A full pipe wakes as well. */
	while (write(write_end, "", 1) < 0 && errno == EINTR)
		;
}

void pipe_empty(int read_end)
{
	char bytes[64];

	while (read(read_end, bytes, sizeof(bytes)) == sizeof(bytes))
		;
}
