/*
 * HTTP through libmicrohttpd, in two threads.
 *
 * The acceptor is ours: it polls the listener and a pipe, hands each connection to the library,
 * and ends those that are HTTP_LIFETIME_MS old, because the library knows a timeout for inactivity
 * only, under which a client that sends a byte now and then stays for ever. At HTTP_CONNECTIONS the
 * oldest makes room for the next, so that silent clients delay nobody. The library's own acceptor
 * would spin when descriptors run out.
 *
 * Each connection has a slot from before it is handed over until the library closes it. The
 * library tells of both ends (http_notify) in its own thread, of the second before it closes the
 * descriptor. A slot between the two is `started`, and only then its descriptor is known to be the
 * connection's: it is shut down under the lock then, never closed here. Where the library has no
 * memory for a connection it closes it without telling; such a slot is given up when its time has
 * passed, or when the kernel hands out the same descriptor again.
 *
 * When no connection is open both threads wait without a timeout.
 */
#include "admin/admin.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <microhttpd.h>

#include "admin/admin_priv.h"
#include "base/clock.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"

#define HTTP_MAGIC 0x68747470u
#define HTTP_CONNECTIONS 64
#define HTTP_LIFETIME_MS 10000
#define HTTP_BACKLOG 128
#define HTTP_PAUSE_MS 100 /* after an accept that failed for want of descriptors or memory */

#if MHD_VERSION >= 0x00097002
typedef enum MHD_Result http_result;
#else
typedef int http_result;
#endif

struct http_slot {
	bool used, started, ended; /* ended: shut down by us */
	int fd;
	int64_t deadline_ns;
};

struct http {
	unsigned magic;
	struct admin *admin;
	int listener;
	char address[NI_MAXHOST + NI_MAXSERV + 4];
	int wake[2];
	struct MHD_Daemon *daemon;
	struct thread acceptor;
	bool running;

	struct mutex mutex; /* guards what follows */
	bool stopping;
	struct http_slot slots[HTTP_CONNECTIONS];
	size_t used;
};

/* --- binding -------------------------------------------------------------------------------- */

/* Splits HOST:PORT or [IPV6]:PORT into HOST, of NI_MAXHOST bytes, and the port. */
static const char *http_split_address(const char *address, char *host)
{
	const char *colon = strrchr(address, ':');
	const char *start = address, *end = colon;

	if (colon == NULL)
		return NULL;
	if (*start == '[') {
		if (end == start || end[-1] != ']')
			return NULL;
		start++;
		end--;
	}
	if (end <= start || (size_t)(end - start) >= NI_MAXHOST)
		return NULL;
	memcpy(host, start, (size_t)(end - start));
	host[end - start] = '\0';
	return colon + 1;
}

static int http_listen_on(const struct addrinfo *info)
{
	static const int on = 1;
	int fd = socket(info->ai_family, info->ai_socktype, info->ai_protocol);

	if (fd < 0)
		return -1;
#ifdef IPV6_V6ONLY
	if (info->ai_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
#endif
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
	    bind(fd, info->ai_addr, info->ai_addrlen) != 0 || listen(fd, HTTP_BACKLOG) != 0) {
		int saved = errno;

		close(fd);
		errno = saved;
		return -1;
	}
	return fd;
}

/* The text of the address that FD is bound to. */
static void http_name_listener(struct http *http, int fd)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	char host[NI_MAXHOST], port[NI_MAXSERV];
	struct text text = TEXT_INIT(http->address);

	if (getsockname(fd, (struct sockaddr *)&address, &length) != 0 ||
	    getnameinfo((struct sockaddr *)&address, length, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV) != 0) {
		text_add(&text, "descriptor %d", fd);
		return;
	}
	text_add(&text, strchr(host, ':') == NULL ? "%s:%s" : "[%s]:%s", host, port);
}

static bool http_set_flags(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags >= 0 && fcntl(fd, F_SETFL, flags | O_NONBLOCK) == 0 &&
	       fcntl(fd, F_SETFD, FD_CLOEXEC) == 0;
}

/* Takes FD over on success; 0, or an errno value. */
static int http_new(struct admin *admin, int fd)
{
	struct http *http = calloc(1, sizeof(*http));

	ASSERT(admin->http == NULL);
	if (http == NULL)
		return ENOMEM;
	if (!http_set_flags(fd) || pipe(http->wake) != 0) {
		int failure = errno;

		free(http);
		return failure;
	}
	if (!http_set_flags(http->wake[0]) || !http_set_flags(http->wake[1])) {
		int failure = errno;

		close(http->wake[0]);
		close(http->wake[1]);
		free(http);
		return failure;
	}
	http->magic = HTTP_MAGIC;
	http->admin = admin;
	http->listener = fd;
	http_name_listener(http, fd);
	mutex_init(&http->mutex, LOCK_ADMIN);
	admin->http = http;
	return 0;
}

int admin_http_bind(struct admin *admin, const char *address, struct text *error)
{
	const struct addrinfo hints = {
		.ai_family = AF_UNSPEC,
		.ai_socktype = SOCK_STREAM,
		.ai_flags = AI_PASSIVE | AI_NUMERICSERV,
	};
	struct addrinfo *found = NULL;
	char host[NI_MAXHOST];
	const char *port = http_split_address(address, host);
	int fd = -1, failure = 0;

	if (port == NULL) {
		text_add(error, "cannot listen on '%s' for HTTP: it is not HOST:PORT", address);
		return -1;
	}
	int code = getaddrinfo(host, port, &hints, &found);
	if (code != 0) {
		text_add(error, "cannot listen on '%s' for HTTP: %s", address,
			 code == EAI_SYSTEM ? strerror(errno) : gai_strerror(code));
		return -1;
	}
	for (const struct addrinfo *info = found; info != NULL && fd < 0; info = info->ai_next) {
		fd = http_listen_on(info);
		if (fd < 0)
			failure = errno;
	}
	freeaddrinfo(found);
	if (fd >= 0) {
		failure = http_new(admin, fd);
		if (failure == 0)
			return 0;
		close(fd);
	}
	text_add(error, "cannot listen on '%s' for HTTP: %s", address, strerror(failure));
	return -1;
}

int admin_http_fd(struct admin *admin, int fd, struct text *error)
{
	int type = 0, failure;
	socklen_t length = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) != 0)
		failure = errno;
	else if (type != SOCK_STREAM)
		failure = EPROTOTYPE;
	else
		failure = http_new(admin, fd);
	if (failure == 0)
		return 0;
	text_add(error, "cannot listen on descriptor %d for HTTP: %s", fd, strerror(failure));
	return -1;
}

const char *admin_http_address(const struct admin *admin)
{
	ASSERT_MAGIC(admin, ADMIN_MAGIC);
	return admin->http == NULL ? NULL : admin->http->address;
}

/* --- answers -------------------------------------------------------------------------------- */

#define HTTP_JSON "application/json"
#define HTTP_TEXT "text/plain; charset=utf-8"
#define HTTP_PROMETHEUS "text/plain; version=0.0.4; charset=utf-8"

/* Queues BODY, which is the library's afterwards when OWNED. ALLOW may be NULL. */
static http_result http_respond(struct MHD_Connection *connection, unsigned status,
				const char *type, char *body, size_t length, bool owned,
				const char *allow)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(
		length, body, owned ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
	http_result result = MHD_NO;

	if (response == NULL) {
		if (owned)
			free(body);
		return MHD_NO;
	}
	/* One request a connection: it ends long before its time does, never in an answer. */
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES &&
	    MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES &&
	    (allow == NULL ||
	     MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, allow) == MHD_YES))
		result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

static http_result http_respond_text(struct MHD_Connection *connection, unsigned status,
				     const char *type, const char *body, const char *allow)
{
	return http_respond(connection, status, type, (char *)body, strlen(body), false, allow);
}

static http_result http_health(struct http *http, struct MHD_Connection *connection)
{
	(void)http;
	return http_respond_text(connection, MHD_HTTP_OK, HTTP_JSON,
				 "{\"status\":\"healthy\",\"message\":null}", NULL);
}

/*
 * Of the conditions that a probe may meet only listener_bound can be unmet here: HTTP is answered
 * only after the configuration was loaded, and there is no store and no cluster to wait for.
 */
static http_result http_ready(struct http *http, struct MHD_Connection *connection)
{
	if (net_listening(http->admin->net))
		return http_respond_text(connection, MHD_HTTP_OK, HTTP_JSON,
					 "{\"ready\":true,\"unmet_conditions\":[]}", NULL);
	return http_respond_text(connection, MHD_HTTP_SERVICE_UNAVAILABLE, HTTP_JSON,
				 "{\"ready\":false,\"unmet_conditions\":[\"listener_bound\"]}",
				 NULL);
}

static http_result http_metrics(struct http *http, struct MHD_Connection *connection)
{
	size_t length = 0;
	char *body = metrics_render(http->admin, &length);

	if (body == NULL)
		return http_respond_text(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, HTTP_TEXT,
					 "no memory for the metrics\n", NULL);
	return http_respond(connection, MHD_HTTP_OK, HTTP_PROMETHEUS, body, length, true, NULL);
}

static const struct http_path {
	const char *path;
	http_result (*answer)(struct http *http, struct MHD_Connection *connection);
} http_paths[] = {
	{"/health", http_health},
	{"/ready", http_ready},
	{"/metrics", http_metrics},
};

static http_result http_handle(void *context, struct MHD_Connection *connection, const char *url,
			       const char *method, const char *version, const char *upload,
			       size_t *upload_length, void **state)
{
	struct http *http = context;

	(void)version;
	(void)upload;
	ASSERT_MAGIC(http, HTTP_MAGIC);

	/*
	 * Called for the header, then for each piece of a body, then at the end. The answer waits
	 * for the end: closing with a body unread would reset the connection and destroy it.
	 */
	if (*state == NULL) {
		*state = http;
		return MHD_YES;
	}
	if (*upload_length != 0) {
		*upload_length = 0;
		return MHD_YES;
	}
	for (size_t i = 0; i < ARRAY_LENGTH(http_paths); i++) {
		if (strcmp(url, http_paths[i].path) != 0)
			continue;
		if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 &&
		    strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
			return http_respond_text(connection, MHD_HTTP_METHOD_NOT_ALLOWED, HTTP_TEXT,
						 "only GET and HEAD are known here\n", "GET, HEAD");
		return http_paths[i].answer(http, connection);
	}
	return http_respond_text(connection, MHD_HTTP_NOT_FOUND, HTTP_TEXT,
				 "only /health, /ready and /metrics are here\n", NULL);
}

/* --- connections and their time ------------------------------------------------------------- */

static void http_wake(struct http *http)
{
	/* A full pipe wakes as well. */
	ssize_t written = write(http->wake[1], "", 1);

	(void)written;
}

static void http_drain_wakes(struct http *http)
{
	char bytes[64];

	while (read(http->wake[0], bytes, sizeof(bytes)) > 0)
		continue;
}

static void http_end_slot_locked(struct http_slot *slot)
{
	shutdown(slot->fd, SHUT_RDWR);
	slot->ended = true;
}

static void http_free_slot_locked(struct http *http, struct http_slot *slot)
{
	*slot = (struct http_slot){.fd = -1};
	http->used--;
}

static void http_started_locked(struct http *http, int fd, void **context)
{
	for (struct http_slot *slot = http->slots; slot < http->slots + HTTP_CONNECTIONS; slot++) {
		if (slot->used && !slot->started && slot->fd == fd) {
			slot->started = true;
			*context = slot;
			return;
		}
	}
	/* Its time had passed before the library came to it. */
	*context = NULL;
	shutdown(fd, SHUT_RDWR);
}

static void http_notify(void *argument, struct MHD_Connection *connection, void **context,
			enum MHD_ConnectionNotificationCode code)
{
	struct http *http = argument;
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);

	mutex_lock(&http->mutex);
	bool full = http->used == HTTP_CONNECTIONS;
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		http_started_locked(http, info->connect_fd, context);
	else if (*context != NULL)
		http_free_slot_locked(http, *context);
	/* The acceptor waits for room, or for a time that need not be kept any more. */
	if (full || http->used == 0)
		http_wake(http);
	mutex_unlock(&http->mutex);
}

/* Ends what has had its time; gives the next deadline. */
static int64_t http_expire_locked(struct http *http, int64_t now_ns)
{
	int64_t next_ns = DEADLINE_NEVER;

	for (struct http_slot *slot = http->slots; slot < http->slots + HTTP_CONNECTIONS; slot++) {
		if (!slot->used || slot->ended)
			continue;
		if (slot->deadline_ns > now_ns) {
			if (slot->deadline_ns < next_ns)
				next_ns = slot->deadline_ns;
		} else if (slot->started) {
			http_end_slot_locked(slot);
		} else {
			http_free_slot_locked(http, slot);
		}
	}
	return next_ns;
}

/* True when there is room; otherwise the oldest connection is made to end, if none is about to. */
static bool http_make_room_locked(struct http *http)
{
	struct http_slot *oldest = NULL;

	if (http->used < HTTP_CONNECTIONS)
		return true;
	for (struct http_slot *slot = http->slots; slot < http->slots + HTTP_CONNECTIONS; slot++) {
		if (slot->ended)
			return false;
		if (slot->started && (oldest == NULL || slot->deadline_ns < oldest->deadline_ns))
			oldest = slot;
	}
	if (oldest != NULL)
		http_end_slot_locked(oldest);
	return false;
}

static struct http_slot *http_take_slot_locked(struct http *http, int fd)
{
	struct http_slot *taken = NULL;

	for (struct http_slot *slot = http->slots; slot < http->slots + HTTP_CONNECTIONS; slot++) {
		if (slot->used && slot->fd == fd)
			http_free_slot_locked(http, slot);
		if (!slot->used)
			taken = slot;
	}
	ASSERT(taken != NULL);
	*taken = (struct http_slot){
		.used = true,
		.fd = fd,
		.deadline_ns = clock_after_ms(clock_mono_ns(), HTTP_LIFETIME_MS),
	};
	http->used++;
	return taken;
}

/* Counts it; true when it is one that does not pass by itself. */
static bool http_accept_failed(int failure)
{
	switch (failure) {
	case EAGAIN:
	case EINTR:
		return false;
	case EMFILE:
		metric_add(METRIC_ACCEPT_EMFILE, 1);
		return true;
	case ENFILE:
		metric_add(METRIC_ACCEPT_ENFILE, 1);
		return true;
	case ENOBUFS:
		metric_add(METRIC_ACCEPT_ENOBUFS, 1);
		return true;
	case ENOMEM:
		metric_add(METRIC_ACCEPT_ENOMEM, 1);
		return true;
	case ECONNABORTED:
		metric_add(METRIC_ACCEPT_ECONNABORTED, 1);
		return false;
	default:
		metric_add(METRIC_ACCEPT_OTHER, 1);
		return true;
	}
}

/* Accepts one connection; false when accepting should pause. There must be room. */
static bool http_accept(struct http *http)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int fd = accept(http->listener, (struct sockaddr *)&address, &length);

	if (fd < 0) {
		int failure = errno;

		if (!http_accept_failed(failure))
			return true;
		log_client_event(LOG_LEVEL_ERROR, "accept failed",
				 LOG_STR("address", http->address),
				 LOG_STR("reason", strerror(failure)));
		return false;
	}

	mutex_lock(&http->mutex);
	struct http_slot *slot = http_take_slot_locked(http, fd);
	mutex_unlock(&http->mutex);

	/* It owns the descriptor now, also when it refuses. */
	if (MHD_add_connection(http->daemon, fd, (struct sockaddr *)&address, length) != MHD_YES) {
		mutex_lock(&http->mutex);
		if (slot->used && !slot->started)
			http_free_slot_locked(http, slot);
		mutex_unlock(&http->mutex);
	}
	return true;
}

static int http_poll_timeout(int64_t now_ns, int64_t deadline_ns, bool pause)
{
	int64_t ms = pause ? HTTP_PAUSE_MS : INT32_MAX;

	if (deadline_ns != DEADLINE_NEVER) {
		int64_t left_ms = (deadline_ns - now_ns + NS_PER_MS - 1) / NS_PER_MS;

		if (left_ms < ms)
			ms = left_ms;
	} else if (!pause) {
		return -1;
	}
	return (int)ms;
}

static void *http_acceptor(void *argument)
{
	struct http *http = argument;
	struct pollfd polled[2] = {
		{.fd = http->wake[0], .events = POLLIN},
		{.fd = http->listener, .events = POLLIN},
	};
	bool pause = false, room = true;

	ASSERT_MAGIC(http, HTTP_MAGIC);
	for (;;) {
		int64_t now_ns = clock_mono_ns();

		mutex_lock(&http->mutex);
		bool stopping = http->stopping;
		int64_t deadline_ns = http_expire_locked(http, now_ns);
		if (!room)
			room = http_make_room_locked(http);
		mutex_unlock(&http->mutex);
		if (stopping)
			return NULL;

		polled[1].fd = pause || !room ? -1 : http->listener;
		polled[1].revents = 0;
		if (poll(polled, 2, http_poll_timeout(now_ns, deadline_ns, pause)) < 0)
			continue;
		pause = false;
		if (polled[0].revents != 0)
			http_drain_wakes(http);
		if (polled[1].revents == 0)
			continue;

		mutex_lock(&http->mutex);
		room = http_make_room_locked(http);
		mutex_unlock(&http->mutex);
		if (room)
			pause = !http_accept(http);
	}
}

/* --- start and stop ------------------------------------------------------------------------- */

bool admin_start(struct admin *admin, struct text *error)
{
	struct http *http = admin->http;
	sigset_t all, before;

	ASSERT_MAGIC(admin, ADMIN_MAGIC);
	if (http == NULL)
		return true;

	/*
	 * The library's thread inherits the mask: signals are the main thread's alone. Its limit is
	 * above ours because it counts a connection for a moment after it has told of its end.
	 */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	http->daemon = MHD_start_daemon(
		MHD_USE_AUTO_INTERNAL_THREAD | MHD_USE_ITC | MHD_USE_NO_LISTEN_SOCKET, 0, NULL,
		NULL, http_handle, http, MHD_OPTION_CONNECTION_LIMIT,
		(unsigned)(2 * HTTP_CONNECTIONS), MHD_OPTION_NOTIFY_CONNECTION, http_notify, http,
		MHD_OPTION_END);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (http->daemon == NULL) {
		text_add(error, "cannot serve HTTP on '%s': libmicrohttpd does not start",
			 http->address);
		return false;
	}
	int failure = thread_start(&http->acceptor, http_acceptor, http);
	if (failure != 0) {
		MHD_stop_daemon(http->daemon);
		http->daemon = NULL;
		text_add(error, "cannot serve HTTP on '%s': %s", http->address, strerror(failure));
		return false;
	}
	http->running = true;
	return true;
}

void admin_stop(struct admin *admin)
{
	struct http *http = admin->http;

	ASSERT_MAGIC(admin, ADMIN_MAGIC);
	if (http == NULL)
		return;
	if (http->running) {
		mutex_lock(&http->mutex);
		http->stopping = true;
		http_wake(http);
		mutex_unlock(&http->mutex);
		thread_join(&http->acceptor);
		MHD_stop_daemon(http->daemon);
	}
	close(http->listener);
	close(http->wake[0]);
	close(http->wake[1]);
	mutex_destroy(&http->mutex);
	http->magic = 0;
	free(http);
	admin->http = NULL;
}
