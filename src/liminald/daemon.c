/*
 * Start: look up what may be missing, open the log, the pid file and the store, bind sockets, drop
 * privileges, and only then serve. Stop: drain, stop the net, then what it used; the store is
 * closed when nobody is left who could ask for anything.
 *
 * The main thread takes the signals. The end of the server is waited for by a thread of its own,
 * so that a second signal, and a reload, are still heard meanwhile.
 */
#include "liminald/daemon.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "admin/admin.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/metrics.h"
#include "base/thread.h"
#include "broker/broker.h"
#include "liminald/process.h"
#include "liminald/settings.h"
#include "liminald/supervisor.h"
#include "net/net.h"
#include "store/store.h"

/* Descriptors beside those of connections. */
#define SPARE_DESCRIPTORS 256

#define DEFAULT_FILE SYSCONFDIR "/liminald.conf"

/* Told to the thread that waits for signals when the server has stopped. */
#define SIGNAL_STOPPED SIGUSR2

struct daemon {
	const struct daemon_options *options;
	const char *file;
	struct configuration *configuration;
	struct process_user user;
	struct supervisor_sockets sockets;
	struct store *store; /* until it is the broker's; NULL: none */
	struct broker *broker;
	struct net *net;
	struct admin *admin;
	pthread_t main_thread;
	struct thread stopper;
	bool stopper_started;
	atomic_bool stopped;
	int64_t drain_timeout_ms, drain_idle_ms; /* when the stop began */
	char error_text[1024];
	struct text error;
};

const char *daemon_configuration_file(const struct daemon_options *options)
{
	if (options->file != NULL)
		return options->file;
	return access(DEFAULT_FILE, F_OK) == 0 ? DEFAULT_FILE : NULL;
}

void daemon_print_problems(const struct configuration_problems *problems)
{
	for (size_t i = 0; i < problems->warnings.count; i++)
		(void)fprintf(stderr, "liminald: warning: %s\n", problems->warnings.items[i]);
	for (size_t i = 0; i < problems->errors.count; i++)
		(void)fprintf(stderr, "liminald: %s\n", problems->errors.items[i]);
}

static void log_lines(enum log_level level, const char *event, const struct string_list *lines)
{
	for (size_t i = 0; i < lines->count; i++)
		log_event(level, event, LOG_STR("text", lines->items[i]));
}

/* --- start --------------------------------------------------------------------------------- */

static enum log_level daemon_log_level(const struct daemon *daemon,
				       const struct configuration *configuration)
{
	unsigned level = (unsigned)configuration->server.log_level + daemon->options->verbose;

	return level > LOG_LEVEL_DEBUG ? LOG_LEVEL_DEBUG : (enum log_level)level;
}

/* Standard error is nobody's when the daemon has detached. */
static const char *daemon_log_target(const struct daemon *daemon,
				     const struct configuration *configuration)
{
	if (daemon->options->detach && strcmp(configuration->server.log, "stderr") == 0)
		return "syslog";
	return configuration->server.log;
}

static bool daemon_open_log(struct daemon *daemon, const struct configuration *configuration)
{
	const char *target = daemon_log_target(daemon, configuration);
	int failure = log_open(target, configuration->server.log_format,
			       daemon_log_level(daemon, configuration));

	if (failure == 0)
		return true;
	text_add(&daemon->error, "log: cannot open '%s': %s", target, strerror(failure));
	return false;
}

/* The text of what fails next, which starts with the name of its setting. */
static struct text *daemon_about(struct daemon *daemon, const char *setting)
{
	daemon->error = (struct text)TEXT_INIT(daemon->error_text);
	text_add(&daemon->error, "%s: ", setting);
	return &daemon->error;
}

/*
 * Root makes the folder and gives it away, and does nothing in it: it is the user's, who could have
 * put links there.
 */
static bool daemon_open_store(struct daemon *daemon)
{
	const char *dir = daemon->configuration->server.state_dir;
	struct text *error;
	bool opened;

	if (dir == NULL)
		return true;
	supervisor_tell("STATUS=opening the store");
	error = daemon_about(daemon, "state_dir");
	if (daemon->user.wanted && geteuid() == 0) {
		int failure;

		if (!process_make_folder(dir, error))
			return false;
		failure = store_give(dir, daemon->user.uid, daemon->user.gid);
		if (failure != 0) {
			text_add(error, "cannot give '%s' to user '%s': %s", dir, daemon->user.name,
				 strerror(failure));
			return false;
		}
	}
	if (!process_borrow_user(&daemon->user, error))
		return false;
	opened = store_open_sqlite(dir, &daemon->store, error);
	process_return_user();
	if (opened)
		daemon->error = (struct text)TEXT_INIT(daemon->error_text);
	return opened;
}

static bool daemon_make(struct daemon *daemon)
{
	struct net_limits limits = settings_of_net(daemon->configuration);
	struct broker_settings settings;
	const char *error = "out of memory for the settings";
	int64_t started_ms = clock_wall_ms();

	if (settings_of_broker(daemon->configuration, &settings))
		daemon->broker = broker_new(&settings, (uint64_t)started_ms, daemon->store, &error);
	settings_free(&settings);
	if (daemon->broker == NULL) {
		text_add(&daemon->error, "%s", error);
		return false;
	}
	daemon->store = NULL;
	daemon->net = net_new(daemon->broker, daemon->configuration->limits.max_connections,
			      &limits, daemon->configuration->auth.token);
	daemon->admin =
		daemon->net == NULL ? NULL : admin_new(daemon->net, daemon->broker, started_ms);
	if (daemon->admin == NULL)
		text_add(&daemon->error, "out of memory for max_connections connections");
	return daemon->admin != NULL;
}

static bool daemon_adopt_sockets(struct daemon *daemon)
{
	for (size_t i = 0; i < daemon->sockets.count; i++) {
		int fd = daemon->sockets.sockets[i].fd;
		int result = 0;

		switch (daemon->sockets.sockets[i].kind) {
		case SUPERVISOR_SOCKET_CLIENTS:
			result = net_listen_fd(daemon->net, fd, NET_LISTENER_CLIENTS,
					       &daemon->error);
			break;
		case SUPERVISOR_SOCKET_CONTROL:
			result = net_listen_fd(daemon->net, fd, NET_LISTENER_CONTROL,
					       &daemon->error);
			break;
		case SUPERVISOR_SOCKET_HTTP:
			result = admin_http_fd(daemon->admin, fd, &daemon->error);
			break;
		}
		if (result < 0)
			return false;
	}
	return true;
}

static bool daemon_bind(struct daemon *daemon)
{
	const struct configuration_server *server = &daemon->configuration->server;
	const struct supervisor_sockets *passed = &daemon->sockets;
	const char *path;
	int failure;

	if (!daemon_adopt_sockets(daemon))
		return false;
	if (supervisor_socket_count(passed, SUPERVISOR_SOCKET_CLIENTS) == 0)
		for (size_t i = 0; i < server->listen.count; i++)
			if (net_listen(daemon->net, server->listen.items[i], NET_LISTENER_CLIENTS,
				       0660, daemon_about(daemon, "listen")) < 0)
				return false;
	if (supervisor_socket_count(passed, SUPERVISOR_SOCKET_CONTROL) == 0 &&
	    server->control_socket != NULL &&
	    net_listen(daemon->net, server->control_socket, NET_LISTENER_CONTROL, 0600,
		       daemon_about(daemon, "control_socket")) < 0)
		return false;
	if (supervisor_socket_count(passed, SUPERVISOR_SOCKET_HTTP) == 0 &&
	    strcmp(server->http_listen, "none") != 0 &&
	    admin_http_bind(daemon->admin, server->http_listen,
			    daemon_about(daemon, "http_listen")) < 0)
		return false;
	daemon->error = (struct text)TEXT_INIT(daemon->error_text);
	if (!daemon->user.wanted || geteuid() != 0)
		return true;
	failure = net_chown_paths(daemon->net, daemon->user.uid, daemon->user.gid, &path);
	if (failure != 0)
		text_add(&daemon->error, "cannot give '%s' to user '%s': %s", path,
			 daemon->user.name, strerror(failure));
	return failure == 0;
}

/* Everything that needs privileges, and then without them. */
static bool daemon_prepare(struct daemon *daemon)
{
	const struct configuration_server *server = &daemon->configuration->server;
	const char *user = daemon->options->user != NULL ? daemon->options->user : server->user;
	const char *pidfile =
		daemon->options->pidfile != NULL ? daemon->options->pidfile : server->pidfile;
	const char *target = daemon_log_target(daemon, daemon->configuration);
	bool made, privileged;
	int failure;

	if (!process_find_user(user, server->group, &daemon->user, &daemon->error))
		return false;
	/* The log's directory may be the user's, who must not lead root to another file. */
	privileged = daemon->user.wanted && geteuid() == 0;
	if (privileged)
		log_refuse_links();
	if (!daemon_open_log(daemon, daemon->configuration))
		return false;
	failure = privileged ? log_give(daemon->user.uid, daemon->user.gid) : 0;
	if (failure != 0) {
		text_add(&daemon->error, "log: cannot give '%s' to user '%s': %s", target,
			 daemon->user.name, strerror(failure));
		return false;
	}
	if (pidfile != NULL && !process_write_pidfile(pidfile, &daemon->error))
		return false;
	made = daemon_open_store(daemon) && daemon_make(daemon);
	return made && daemon_bind(daemon) && process_become(&daemon->user, &daemon->error);
}

/* A file that cannot be read again would only be noticed at the next reload. */
static void daemon_warn_unreadable(const struct daemon *daemon)
{
	const struct configuration *configuration = daemon->configuration;

	if (daemon->file != NULL && access(daemon->file, R_OK) < 0)
		log_event(LOG_LEVEL_WARNING, "file cannot be read at reload",
			  LOG_STR("path", daemon->file), LOG_STR("reason", strerror(errno)));
	if (configuration->auth.token_file != NULL &&
	    access(configuration->auth.token_file, R_OK) < 0)
		log_event(LOG_LEVEL_WARNING, "file cannot be read at reload",
			  LOG_STR("path", configuration->auth.token_file),
			  LOG_STR("reason", strerror(errno)));
	for (size_t i = 0; i < configuration->channel_count; i++) {
		const char *schema = configuration->channels[i].schema;

		if (schema != NULL && access(schema, R_OK) < 0)
			log_event(LOG_LEVEL_WARNING, "file cannot be read at reload",
				  LOG_STR("path", schema), LOG_STR("reason", strerror(errno)));
	}
}

static void daemon_say_hello(const struct daemon *daemon)
{
	const char *address;

	log_event(LOG_LEVEL_NOTICE, "starting", LOG_STR("version", PACKAGE_VERSION),
		  LOG_STR("configuration",
			  daemon->file == NULL ? "none found: built-in defaults, channel 'events'"
					       : daemon->file));
	if (daemon->configuration->server.state_dir != NULL)
		log_event(LOG_LEVEL_NOTICE, "store open",
			  LOG_STR("path", daemon->configuration->server.state_dir));
	for (size_t i = 0; (address = net_address(daemon->net, i)) != NULL; i++)
		log_event(LOG_LEVEL_NOTICE, "listening", LOG_STR("address", address));
	address = admin_http_address(daemon->admin);
	if (address != NULL)
		log_event(LOG_LEVEL_NOTICE, "http listening", LOG_STR("address", address));
	daemon_warn_unreadable(daemon);
}

static bool daemon_start(struct daemon *daemon)
{
	const struct configuration_server *server = &daemon->configuration->server;
	const char *const paths[] = {daemon->file == NULL ? DEFAULT_FILE : daemon->file,
				     "/dev/null",
				     "/dev/log",
				     "/tmp",
				     server->log[0] == '/' ? server->log : "/dev/null",
				     server->state_dir != NULL ? server->state_dir : "/dev/null",
				     NULL};

	return net_start(daemon->net, &daemon->error) &&
	       admin_start(daemon->admin, &daemon->error) && process_confine(paths, &daemon->error);
}

/* --- reload -------------------------------------------------------------------------------- */

static bool daemon_apply(struct daemon *daemon, struct configuration *fresh)
{
	struct net_limits limits = settings_of_net(fresh);
	struct broker_settings settings;
	bool applied = settings_of_broker(fresh, &settings) &&
		       broker_configure(daemon->broker, &settings) &&
		       net_configure(daemon->net, &limits, fresh->auth.token);

	settings_free(&settings);
	if (!applied)
		return false;
	if (!daemon_open_log(daemon, fresh)) {
		log_event(LOG_LEVEL_ERROR, "log stays where it was",
			  LOG_STR("text", daemon->error_text));
		daemon->error = (struct text)TEXT_INIT(daemon->error_text);
		log_set_level(daemon_log_level(daemon, fresh));
	}
	configuration_unref(&daemon->configuration);
	daemon->configuration = fresh;
	return true;
}

static void daemon_reload(struct daemon *daemon)
{
	struct configuration_problems problems = {0};
	struct string_list needs_restart = {0};
	struct configuration *fresh;

	supervisor_tell_reloading();
	fresh = configuration_load(daemon->file, &problems);
	log_lines(LOG_LEVEL_WARNING, "configuration warning", &problems.warnings);
	log_lines(LOG_LEVEL_ERROR, "configuration error", &problems.errors);
	if (fresh != NULL &&
	    configuration_keep_fixed(fresh, daemon->configuration, &needs_restart) &&
	    daemon_apply(daemon, fresh)) {
		log_lines(LOG_LEVEL_WARNING, "setting needs a restart", &needs_restart);
		log_event(LOG_LEVEL_NOTICE, "configuration reloaded");
		metric_add(METRIC_RELOADS, 1);
	} else {
		configuration_unref(&fresh);
		log_event(LOG_LEVEL_ERROR, "reload refused",
			  LOG_STR("text", "the configuration in force stays"));
		metric_add(METRIC_RELOADS_REFUSED, 1);
	}
	(void)log_reopen();
	string_list_free(&needs_restart);
	configuration_problems_free(&problems);
	supervisor_tell("READY=1");
}

static void daemon_reopen_log(void)
{
	int failure = log_reopen();

	if (failure != 0)
		log_event(LOG_LEVEL_ERROR, "log cannot be reopened",
			  LOG_STR("reason", strerror(failure)));
	else
		log_event(LOG_LEVEL_NOTICE, "log reopened");
}

/* --- stop ---------------------------------------------------------------------------------- */

static void *daemon_stop_thread(void *argument)
{
	struct daemon *daemon = argument;

	net_drain(daemon->net, daemon->drain_timeout_ms, daemon->drain_idle_ms);
	net_stop(daemon->net);
	atomic_store(&daemon->stopped, true);
	pthread_kill(daemon->main_thread, SIGNAL_STOPPED);
	return NULL;
}

static void daemon_begin_stop(struct daemon *daemon, int number)
{
	const struct configuration_server *server = &daemon->configuration->server;
	int failure;

	daemon->drain_timeout_ms = server->drain_timeout_ms;
	daemon->drain_idle_ms = server->drain_idle_ms;
	log_event(LOG_LEVEL_NOTICE, "draining",
		  LOG_STR("signal", number == SIGINT ? "SIGINT" : "SIGTERM"));
	supervisor_tell_stopping(server->drain_timeout_ms + server->close_timeout_ms);
	failure = thread_start(&daemon->stopper, daemon_stop_thread, daemon);
	daemon->stopper_started = failure == 0;
	if (failure == 0)
		return;
	/* Without a thread to wait in, this one does: it hears no second signal meanwhile. */
	log_event(LOG_LEVEL_WARNING, "no thread to drain in", LOG_STR("reason", strerror(failure)));
	(void)daemon_stop_thread(daemon);
}

/* Takes signals until the server has stopped. */
static void daemon_live(struct daemon *daemon, const sigset_t *signals)
{
	bool stopping = false;

	while (!atomic_load(&daemon->stopped)) {
		int number = 0;

		if (sigwait(signals, &number) != 0)
			continue;
		switch (number) {
		case SIGHUP:
			daemon_reload(daemon);
			break;
		case SIGUSR1:
			daemon_reopen_log();
			break;
		case SIGINT:
		case SIGTERM:
			if (stopping) {
				log_event(LOG_LEVEL_NOTICE, "stopping now");
				net_hurry(daemon->net);
			} else {
				stopping = true;
				daemon_begin_stop(daemon, number);
			}
			break;
		default: /* SIGNAL_STOPPED */
			break;
		}
	}
	if (daemon->stopper_started)
		thread_join(&daemon->stopper);
}

static void daemon_free(struct daemon *daemon)
{
	if (daemon->admin != NULL)
		admin_stop(daemon->admin);
	admin_free(&daemon->admin);
	net_free(&daemon->net);
	broker_free(&daemon->broker);
	store_close(&daemon->store);
	configuration_unref(&daemon->configuration);
}

static int daemon_fail(struct daemon *daemon, int status)
{
	(void)fprintf(stderr, "liminald: %s\n", daemon->error_text);
	if (strcmp(daemon_log_target(daemon, daemon->configuration), "stderr") != 0)
		log_event(LOG_LEVEL_ERROR, "cannot start", LOG_STR("text", daemon->error_text));
	daemon_free(daemon);
	process_remove_pidfile();
	return status;
}

int daemon_run(const struct daemon_options *options, struct configuration *configuration)
{
	struct daemon daemon = {.options = options, .configuration = configuration};
	long pid = (long)getpid();
	sigset_t signals;

	daemon.error = (struct text)TEXT_INIT(daemon.error_text);
	daemon.file = daemon_configuration_file(options);
	daemon.main_thread = pthread_self();
	atomic_init(&daemon.stopped, false);
	(void)signal(SIGPIPE, SIG_IGN);
	sigemptyset(&signals);
	sigaddset(&signals, SIGHUP);
	sigaddset(&signals, SIGINT);
	sigaddset(&signals, SIGTERM);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, SIGNAL_STOPPED);
	(void)pthread_sigmask(SIG_BLOCK, &signals, NULL);

	supervisor_receive_sockets(&daemon.sockets, pid);
	if (!process_raise_descriptors(configuration->limits.max_connections + SPARE_DESCRIPTORS,
				       &daemon.error))
		return daemon_fail(&daemon, EXIT_USAGE);
	if (options->detach && !process_detach(&daemon.error))
		return daemon_fail(&daemon, EXIT_FAILURE);
	daemon.main_thread = pthread_self();
	if (!daemon_prepare(&daemon) || !daemon_start(&daemon)) {
		if (daemon.net != NULL)
			net_stop(daemon.net);
		return daemon_fail(&daemon, EXIT_FAILURE);
	}
	daemon_say_hello(&daemon);
	process_detached();
	supervisor_tell("READY=1\nSTATUS=serving");
	daemon_live(&daemon, &signals);
	daemon_free(&daemon);
	log_event(LOG_LEVEL_NOTICE, "stopped");
	log_flush_left_out();
	process_remove_pidfile(); /* last: who waits for that finds everything done */
	return EXIT_SUCCESS;
}
