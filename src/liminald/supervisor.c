#include "liminald/supervisor.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"

#define FIRST_SOCKET 3
#define STOP_MARGIN_MS 10000 /* what a stop may take beside what it waits for */

static bool parse_number(const char *text, long *number)
{
	char *end;

	if (text == NULL || text[0] < '0' || text[0] > '9')
		return false;
	*number = strtol(text, &end, 10);
	return *end == '\0';
}

/* The kind that the name at *NAMES, up to a colon, stands for; moves on to the next. */
static enum supervisor_socket_kind take_kind(const char **names)
{
	size_t length = strcspn(*names, ":");
	enum supervisor_socket_kind kind = SUPERVISOR_SOCKET_CLIENTS;

	if (length == strlen("http") && strncmp(*names, "http", length) == 0)
		kind = SUPERVISOR_SOCKET_HTTP;
	else if (length == strlen("control") && strncmp(*names, "control", length) == 0)
		kind = SUPERVISOR_SOCKET_CONTROL;
	*names += length;
	if (**names == ':')
		++*names;
	return kind;
}

void supervisor_receive_sockets(struct supervisor_sockets *sockets, long pid)
{
	const char *names = getenv("LISTEN_FDNAMES");
	long for_pid, count;

	sockets->count = 0;
	if (parse_number(getenv("LISTEN_PID"), &for_pid) && for_pid == pid &&
	    parse_number(getenv("LISTEN_FDS"), &count)) {
		if (names == NULL)
			names = "";
		for (long i = 0; i < count && i < SUPERVISOR_SOCKETS_MAX; i++) {
			sockets->sockets[i].fd = FIRST_SOCKET + (int)i;
			sockets->sockets[i].kind = take_kind(&names);
			sockets->count++;
		}
	}
	(void)unsetenv("LISTEN_PID");
	(void)unsetenv("LISTEN_FDS");
	(void)unsetenv("LISTEN_FDNAMES");
}

size_t supervisor_socket_count(const struct supervisor_sockets *sockets,
			       enum supervisor_socket_kind kind)
{
	size_t count = 0;

	for (size_t i = 0; i < sockets->count; i++)
		count += sockets->sockets[i].kind == kind;
	return count;
}

void supervisor_tell(const char *state)
{
	const char *path = getenv("NOTIFY_SOCKET");
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	size_t length = path == NULL ? 0 : strlen(path);
	int fd;

	if (length < 2 || length >= sizeof(address.sun_path) || (path[0] != '/' && path[0] != '@'))
		return;
	memcpy(address.sun_path, path, length);
	if (path[0] == '@') /* a name that is in no directory */
		address.sun_path[0] = '\0';
	fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	if (fd < 0)
		return;
	(void)sendto(fd, state, strlen(state), 0, (struct sockaddr *)&address,
		     (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
	(void)close(fd);
}

void supervisor_tell_stopping(int64_t wait_ms)
{
	char state[96];

	(void)snprintf(state, sizeof(state),
		       "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=%" PRId64,
		       (wait_ms + STOP_MARGIN_MS) * 1000);
	supervisor_tell(state);
}

void supervisor_tell_reloading(void)
{
	char state[96];

	(void)snprintf(state, sizeof(state), "RELOADING=1\nMONOTONIC_USEC=%" PRId64,
		       clock_mono_ns() / 1000);
	supervisor_tell(state);
}
