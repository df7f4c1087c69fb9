/* The command line of liminald. */
#ifdef HAVE_CONFIG_H
#include "config.h"
#endif

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "base/hash.h"
#include "broker/broker.h"
#include "liminald/daemon.h"
#include "liminald/process.h"
#include "store/store.h"

static const char usage[] =
	"usage: liminald [-CdhTtVv] [-c file] [-p pidfile] [-u user]\n"
	"\n"
	"  -C          check the store of durable channels, which no server may be using\n"
	"  -c file     read this configuration instead of " SYSCONFDIR "/liminald.conf\n"
	"  -d          detach: return when the daemon serves, or has failed\n"
	"  -h          print this help\n"
	"  -p pidfile  write and lock this pid file\n"
	"  -T          print the effective configuration, without secrets\n"
	"  -t          check the configuration\n"
	"  -u user     run as this user\n"
	"  -V          print the version\n"
	"  -v          log more; may be repeated\n";

static int check(const struct configuration *configuration, const char *file)
{
	uint64_t memory = configuration_worst_case_memory(configuration);

	printf("%s: sound\n", file == NULL ? "built-in defaults" : file);
	if (memory == UINT64_MAX)
		printf("worst-case memory: more than can be counted\n");
	else
		printf("worst-case memory: %" PRIu64 " MiB\n", (memory + (1 << 20) - 1) >> 20);
	return EXIT_SUCCESS;
}

/* As the user that the server would become: what that one may write, it may have led elsewhere. */
static int check_store(const struct configuration *configuration,
		       const struct daemon_options *options)
{
	const struct configuration_server *server = &configuration->server;
	const char *name = options->user != NULL ? options->user : server->user;
	struct process_user user;
	char message[512];
	struct text error = TEXT_INIT(message);

	if (server->state_dir == NULL) {
		(void)fprintf(stderr, "liminald: state_dir is not set: there is no store\n");
		return EXIT_USAGE;
	}
	if (!process_find_user(name, server->group, &user, &error) ||
	    !process_become(&user, &error)) {
		(void)fprintf(stderr, "liminald: %s\n", message);
		return EXIT_FAILURE;
	}
	return store_check(server->state_dir, broker_position_sound, stdout);
}

/*
 * glibc: one arena per thread would multiply what idle connections cost, and memory that is given
 * back to the system after each batch costs a page fault per page of the next. What is kept is
 * bounded: ARENA_KEPT per arena.
 */
#define ARENA_KEPT (16 * 1024 * 1024)
#define ARENA_MAPPED (8 * 1024 * 1024) /* from this size on memory is the system's own affair */

static void tune_allocator(void)
{
#if defined(M_ARENA_MAX) && defined(M_TRIM_THRESHOLD) && defined(M_MMAP_THRESHOLD)
	long processors = sysconf(_SC_NPROCESSORS_ONLN);

	(void)mallopt(M_ARENA_MAX, processors < 1 ? 1 : processors > 8 ? 8 : (int)processors);
	(void)mallopt(M_TRIM_THRESHOLD, ARENA_KEPT);
	(void)mallopt(M_MMAP_THRESHOLD, ARENA_MAPPED);
#endif
}

/* Relative paths count from the directory that the daemon was started in. */
static void option_path(char **path, const char *argument)
{
	free(*path);
	*path = process_absolute(argument);
	if (*path == NULL) {
		(void)fprintf(stderr, "liminald: out of memory\n");
		exit(EXIT_FAILURE);
	}
}

int main(int argc, char **argv)
{
	struct daemon_options options = {0};
	struct configuration_problems problems = {0};
	struct configuration *configuration;
	bool only_check = false, only_check_store = false, only_print = false;
	const char *file;
	int option, status = EXIT_SUCCESS;

	while ((option = getopt(argc, argv, "Cc:dhp:Ttu:Vv")) != -1) {
		switch (option) {
		case 'C':
			only_check_store = true;
			break;
		case 'c':
			option_path(&options.file, optarg);
			break;
		case 'd':
			options.detach = true;
			break;
		case 'h':
			(void)fputs(usage, stdout);
			goto done;
		case 'p':
			option_path(&options.pidfile, optarg);
			break;
		case 'T':
			only_print = true;
			break;
		case 't':
			only_check = true;
			break;
		case 'u':
			options.user = optarg;
			break;
		case 'V':
			printf("liminald %s, protocol 1.0 to 1.2\n", PACKAGE_VERSION);
			goto done;
		case 'v':
			options.verbose++;
			break;
		default:
			(void)fputs(usage, stderr);
			status = EXIT_USAGE;
			goto done;
		}
	}
	if (optind != argc) {
		(void)fprintf(stderr, "liminald: unexpected argument '%s'\n%s", argv[optind],
			      usage);
		status = EXIT_USAGE;
		goto done;
	}
	tune_allocator();
	hash_seed();
	file = daemon_configuration_file(&options);
	configuration = configuration_load(file, &problems);
	daemon_print_problems(&problems);
	configuration_problems_free(&problems);
	if (configuration == NULL)
		status = EXIT_USAGE;
	else if (only_print)
		configuration_print(configuration, stdout);
	else if (only_check_store)
		status = check_store(configuration, &options);
	else if (only_check)
		status = check(configuration, file);
	else
		status = daemon_run(&options, configuration_ref(configuration));
	configuration_unref(&configuration);
done:
	free(options.file);
	free(options.pidfile);
	return status;
}
