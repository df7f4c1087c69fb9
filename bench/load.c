/*
 * load: runs each case against each peer, the repetitions in turn, and prints what came out.
 *
 * The floor goes first and last in every round. Each of the others is compared with the first one
 * of its own round, so that a machine that slows down slows both; the last one, compared with the
 * first, says how far two equal servers are apart by chance.
 */
#include "bench/bench.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench/report.h"

static const struct peer *const all_peers[] = {
	&peer_floor, &peer_liminald, &peer_redis, &peer_nats, &peer_mosquitto, &peer_floor,
};

#define PEERS_MAX ARRAY_LENGTH(all_peers)

static const struct load loads[] = {
	{.name = "rtt", .publishers = 1, .window = 1, .threads = 1, .one_core = true},
	{.name = "pipe 1", .publishers = 1, .window = 256, .threads = 1},
	{.name = "pipe 16", .publishers = 16, .window = 256, .threads = 2},
	{.name = "fan 1", .publishers = 1, .subscribers = 1, .window = 512, .threads = 1},
	{.name = "fan 10", .publishers = 1, .subscribers = 10, .window = 512, .threads = 1},
	{.name = "fan 100", .publishers = 1, .subscribers = 100, .window = 512, .threads = 1},
	{.name = "stall",
	 .publishers = 1,
	 .subscribers = 9,
	 .stalled = 1,
	 .window = 512,
	 .threads = 1},
	{.name = "request 1", .requesters = 1, .window = 1, .threads = 1, .one_core = true},
	{.name = "request 16", .requesters = 16, .window = 1, .threads = 1, .one_core = true},
	{.name = "idle", .silent = 1000, .threads = 0, .idle = true},
};

struct options {
	const char *loads, *peers; /* comma-separated; NULL: all */
	unsigned repetitions;
	struct pace pace;
	const char *directory; /* of the results; NULL: only printed */
	bool scale;	       /* how cost grows, instead of how it compares */
};

/* --- options ------------------------------------------------------------------------------- */

static bool usage(void)
{
	(void)fprintf(stderr, "usage: load [-s] [-c CASE,...] [-p PEER,...] [-r REPETITIONS] "
			      "[-t SECONDS] [-d DIRECTORY]\n");
	return false;
}

static bool options_parse(struct options *options, int argc, char **argv)
{
	int option;

	*options = (struct options){.repetitions = 5, .pace = {.warm_up_s = 0.3, .measured_s = 1}};
	while ((option = getopt(argc, argv, "sc:p:r:t:d:")) != -1) {
		switch (option) {
		case 's':
			options->scale = true;
			break;
		case 'c':
			options->loads = optarg;
			break;
		case 'p':
			options->peers = optarg;
			break;
		case 'r':
			options->repetitions = (unsigned)atoi(optarg);
			break;
		case 't':
			options->pace.measured_s = atof(optarg);
			options->pace.warm_up_s = options->pace.measured_s / 3;
			break;
		case 'd':
			options->directory = optarg;
			break;
		default:
			return usage();
		}
	}
	return (optind == argc && options->repetitions > 0 && options->pace.measured_s > 0) ||
	       usage();
}

/* NAME is a word of LIST, whose words are parted by commas; or there is no list. */
static bool is_listed(const char *list, const char *name)
{
	size_t length = strlen(name);

	while (list != NULL && *list != '\0') {
		size_t word = strcspn(list, ",");

		if (word == length && strncmp(list, name, length) == 0)
			return true;
		list += word + (list[word] == ',');
	}
	return list == NULL;
}

/* --- all runs ------------------------------------------------------------------------------ */

static bool is_meaningful(const struct load *load, const struct peer *peer)
{
	return !(load->requesters > 0 && peer->cannot_request) &&
	       !(load->parked > 0 && peer->cannot_park) &&
	       !(load->stalled > 0 && peer->cannot_stall);
}

static void run_round(const struct report *report, size_t load, size_t repetition,
		      const struct pace *pace)
{
	for (size_t peer = 0; peer < report->peer_count; peer++) {
		if (!is_meaningful(&report->loads[load], report->peers[peer]))
			continue;
		if (isatty(STDERR_FILENO))
			(void)fprintf(stderr, "\r%s, round %zu of %zu: %-20s",
				      report->loads[load].name, repetition + 1, report->repetitions,
				      report->peers[peer]->name);
		*report_at(report, load, peer, repetition) =
			run(&report->loads[load], report->peers[peer], pace);
	}
}

static bool report_save(const struct report *report, const char *directory, const char *name,
			void (*print)(const struct report *report, FILE *file))
{
	char path[1024];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", directory, name);
	file = fopen(path, "w");
	if (file != NULL)
		print(report, file);
	if (file == NULL || fclose(file) != 0) {
		perror(path);
		return false;
	}
	return true;
}

/* The floor and those that are asked for, in their order; those that are not there are named. */
static size_t choose_peers(const struct options *options, const struct peer **peers)
{
	const char *wanted =
		options->scale && options->peers == NULL ? peer_liminald.name : options->peers;
	size_t count = 0;

	for (size_t i = 0; i < PEERS_MAX; i++) {
		if (all_peers[i] != &peer_floor && !is_listed(wanted, all_peers[i]->name))
			continue;
		if (server_installed(all_peers[i]))
			peers[count++] = all_peers[i];
		else
			(void)fprintf(stderr, "bench: %s is not installed\n",
				      all_peers[i]->program);
	}
	return count;
}

static size_t choose_loads(const struct options *options, struct load *chosen)
{
	size_t all = ARRAY_LENGTH(loads), count = 0;
	const struct load *from = options->scale ? scale_loads(&all) : loads;

	for (size_t i = 0; i < all; i++)
		if (is_listed(options->loads, from[i].name))
			chosen[count++] = from[i];
	return count;
}

/* Ten thousand connections need as many descriptors, here and in the servers, which inherit it. */
static void raise_descriptor_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
}

static bool save_all(const struct report *report, const struct options *options)
{
	if (options->scale)
		return report_save(report, options->directory, "scale.txt", report_print_growth) &&
		       report_save(report, options->directory, "scale.tsv", report_print_values);
	return report_save(report, options->directory, "bench.txt", report_print) &&
	       report_save(report, options->directory, "bench.tsv", report_print_values);
}

#define LOADS_MAX 64

int main(int argc, char **argv)
{
	const struct peer *peers[PEERS_MAX];
	struct load chosen[LOADS_MAX];
	struct report report = {.loads = chosen, .peers = peers};
	struct options options;
	bool saved = true;

	if (!options_parse(&options, argc, argv))
		return 2;
	raise_descriptor_limit();
	report.load_count = choose_loads(&options, chosen);
	report.peer_count = choose_peers(&options, peers);
	report.repetitions = options.repetitions;
	report.numbers = calloc(report.load_count * report.peer_count * report.repetitions + 1,
				sizeof(*report.numbers));
	if (report.numbers == NULL)
		return 1;
	for (size_t load = 0; load < report.load_count; load++)
		for (size_t i = 0; i < report.repetitions; i++)
			run_round(&report, load, i, &options.pace);
	if (isatty(STDERR_FILENO))
		(void)fprintf(stderr, "\r%60s\r", "");
	(options.scale ? report_print_growth : report_print)(&report, stdout);
	if (options.directory != NULL)
		saved = save_all(&report, &options);
	free(report.numbers);
	return saved ? 0 : 1;
}
