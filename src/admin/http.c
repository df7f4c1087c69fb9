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
#include "base/thread.h"
#include "net/socket.h"

#define HTTP_MAGIC 0x68747470u
#define HTTP_CONNECTIONS 64
#define HTTP_LIFETIME_MS 10000

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
	char address[SOCKET_ADDRESS_MAX];
	int wake_read, wake_write;
	struct MHD_Daemon *daemon;
	struct thread acceptor;
	bool running;

	struct mutex mutex; /* guards what follows */
	bool stopping;
	struct http_slot slots[HTTP_CONNECTIONS];
	size_t used;
};

/* --- binding -------------------------------------------------------------------------------- */

/* Takes FD over on success. */
static bool http_new(struct admin *admin, int fd, struct text *error)
{
	struct http *http = calloc(1, sizeof(*http));

	ASSERT(admin->http == NULL);
	if (http == NULL || !pipe_open(&http->wake_read, &http->wake_write)) {
		text_add(error, "cannot serve HTTP: %s", strerror(http == NULL ? ENOMEM : errno));
		free(http);
		return false;
	}
	http->magic = HTTP_MAGIC;
	http->admin = admin;
	http->listener = fd;
	socket_bound_text(fd, http->address);
	mutex_init(&http->mutex, LOCK_ADMIN);
	admin->http = http;
	return true;
}

int admin_http_bind(struct admin *admin, const char *address, struct text *error)
{
	int fd = socket_listen_tcp(address, error);

	if (fd < 0)
		return -1;
	if (http_new(admin, fd, error))
		return 0;
	close(fd);
	return -1;
}

int admin_http_fd(struct admin *admin, int fd, struct text *error)
{
	return socket_adopt(fd, error) && http_new(admin, fd, error) ? 0 : -1;
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
 * Of the conditions that a probe may meet only these two can be unmet: HTTP is answered only after
 * the configuration was loaded, and there is no cluster to wait for.
 */
static const char *const http_ready_bodies[2][2] = {
	/* [listening][store up] */
	{"{\"ready\":false,\"unmet_conditions\":[\"listener_bound\",\"store_ready\"]}",
	 "{\"ready\":false,\"unmet_conditions\":[\"listener_bound\"]}"},
	{"{\"ready\":false,\"unmet_conditions\":[\"store_ready\"]}",
	 "{\"ready\":true,\"unmet_conditions\":[]}"},
};

static http_result http_ready(struct http *http, struct MHD_Connection *connection)
{
	const struct admin *admin = http->admin;
	bool listening = net_listening(admin->net);
	bool store = !broker_has_store(admin->broker) || broker_store_is_up(admin->broker);

	return http_respond_text(connection,
				 listening && store ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE,
				 HTTP_JSON, http_ready_bodies[listening][store], NULL);
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
		pipe_wake(http->wake_write);
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

/* Accepts one connection; false when accepting should pause. There must be room. */
static bool http_accept(struct http *http)
{
	struct sockaddr_storage address;
	socklen_t length = sizeof(address);
	int fd = accept(http->listener, (struct sockaddr *)&address, &length);

	if (fd < 0)
		return !socket_accept_failed(errno, http->address);

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
	int64_t ms = pause ? SOCKET_PAUSE_MS : INT32_MAX;

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
		{.fd = http->wake_read, .events = POLLIN},
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
			pipe_empty(http->wake_read);
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
		pipe_wake(http->wake_write);
		mutex_unlock(&http->mutex);
		thread_join(&http->acceptor);
		MHD_stop_daemon(http->daemon);
	}
	close(http->listener);
	close(http->wake_read);
	close(http->wake_write);
	mutex_destroy(&http->mutex);
	http->magic = 0;
	free(http);
	admin->http = NULL;
}
