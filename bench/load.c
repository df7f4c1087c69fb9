/*
 * load: runs each case against each peer, the repetitions in turn, and prints what came out: of the
 * table, of the series in which one number grows, or of durable channels.
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

static const struct peer *const durable_peers[] = {
	&peer_store_floor, &peer_durable,   &peer_sqlite_batch, &peer_sqlite_rows,
	&peer_stream,	   &peer_jetstream, &peer_store_floor,
};

#define PEERS_MAX 8
#define COUNTED(array) (array), ARRAY_LENGTH(array)

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

#define DURABLE .durable = true, .threads = 1, .payload = DURABLE_PAYLOAD

static const struct load durable_loads[] = {
	{.name = "1 x 1", .publishers = 1, .window = 1, DURABLE},
	{.name = "16 x 256", .publishers = 16, .window = 256, DURABLE},
	{.name = "1 x 1 bounded", .publishers = 1, .window = 1, .max_messages = 10000, DURABLE},
	{.name = "16 x 256 bounded",
	 .publishers = 16,
	 .window = 256,
	 .max_messages = 10000,
	 DURABLE},
	{.name = "16 x 256 live", .publishers = 16, .subscribers = 1, .window = 256, DURABLE},
};

struct options {
	const char *loads, *peers; /* comma-separated; NULL: all */
	unsigned repetitions;
	struct pace pace;
	const char *directory; /* of the results; NULL: only printed */
	const struct plan *plan;
};

/* What is run, and what is made of it. */
struct plan {
	const char *name; /* of the results' files */
	const struct peer *const *peers;
	size_t peer_count;
	const struct load *loads;
	size_t load_count;
	const char *only; /* the peers that it is about, as with -p; NULL: all */
	void (*print)(const struct report *report, FILE *file);
};

/* The table, and what only liminald is measured for. */
static void print_durable(const struct report *report, FILE *file)
{
	report_print_durable(report, file);
	(void)fprintf(file, "\n");
	durable_print(file);
}

static const struct plan plan_table = {
	"bench", COUNTED(all_peers), COUNTED(loads), NULL, report_print,
};

static const struct plan plan_durable = {
	"durable", COUNTED(durable_peers), COUNTED(durable_loads), NULL, print_durable,
};

static const struct plan *plan_scale(void)
{
	static struct plan plan = {"scale", COUNTED(all_peers), NULL,
				   0,	    "liminald",		report_print_growth};

	plan.loads = scale_loads(&plan.load_count);
	return &plan;
}

/* --- options ------------------------------------------------------------------------------- */

static bool usage(void)
{
	(void)fprintf(stderr, "usage: load [-s | -D] [-c CASE,...] [-p PEER,...] [-r REPETITIONS] "
			      "[-t SECONDS] [-d DIRECTORY]\n");
	return false;
}

static bool options_parse(struct options *options, int argc, char **argv)
{
	int option;

	*options = (struct options){
		.repetitions = 5, .pace = {.warm_up_s = 0.3, .measured_s = 1}, .plan = &plan_table};
	while ((option = getopt(argc, argv, "sDc:p:r:t:d:")) != -1) {
		switch (option) {
		case 's':
			options->plan = plan_scale();
			break;
		case 'D':
			options->plan = &plan_durable;
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
	       !(load->stalled > 0 && peer->cannot_stall) &&
	       !(load->durable && (load->max_messages > 0 || load->subscribers > 0) &&
		 !peer->has_retention);
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

static void run_durable(const struct options *options)
{
	for (size_t i = 0; i < DURABLE_CASES; i++)
		for (unsigned j = 0; j < options->repetitions; j++)
			if (is_listed(options->loads, durable_name(i)))
				durable_run(i);
}

static void print_durable_values(const struct report *report, FILE *file)
{
	(void)report;
	durable_print_values(file);
}

static bool report_save(const struct report *report, const struct options *options,
			const char *suffix, void (*print)(const struct report *report, FILE *file))
{
	char path[1024];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s.%s", options->directory, options->plan->name,
		       suffix);
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
	const struct plan *plan = options->plan;
	const char *wanted = options->peers == NULL ? plan->only : options->peers;
	size_t count = 0;

	for (size_t i = 0; i < plan->peer_count; i++) {
		const struct peer *peer = plan->peers[i];

		if (peer != plan->peers[0] && !is_listed(wanted, peer->name))
			continue;
		if (peer->alone != NULL || server_installed(peer))
			peers[count++] = peer;
		else
			(void)fprintf(stderr, "bench: %s is not installed\n", peer->program);
	}
	return count;
}

static size_t choose_loads(const struct options *options, struct load *chosen)
{
	const struct plan *plan = options->plan;
	size_t count = 0;

	for (size_t i = 0; i < plan->load_count; i++)
		if (is_listed(options->loads, plan->loads[i].name))
			chosen[count++] = plan->loads[i];
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
	if (options.plan == &plan_durable && bench_is_memory()) {
		(void)fprintf(stderr, "bench: what is in memory is not stored; "
				      "set TMPDIR to a folder on a disk\n");
		return 2;
	}
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
	if (options.plan == &plan_durable)
		run_durable(&options);
	if (isatty(STDERR_FILENO))
		(void)fprintf(stderr, "\r%60s\r", "");
	options.plan->print(&report, stdout);
	if (options.directory != NULL)
		saved = report_save(&report, &options, "txt", options.plan->print) &&
			report_save(&report, &options, "tsv", report_print_values) &&
			(options.plan != &plan_durable ||
			 report_save(&report, &options, "more.tsv", print_durable_values));
	free(report.numbers);
	return saved ? 0 : 1;
}
