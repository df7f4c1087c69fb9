/* liminal ping: round trips, as ping(8) shows them. */
#include "liminal/cli.h"

#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <time.h>

#include "base/clock.h"

struct ping {
	const struct cli *cli;
	struct liminal *client;
	uint64_t count;
	int interval_ms, wait_ms;
	uint64_t sent, answered;
	double least_ms, most_ms, sum_ms, sum_of_squares;
};

/* Set by SIGINT, so that the statistics are printed. */
static volatile sig_atomic_t ping_interrupted;

static void ping_on_signal(int signal_number)
{
	(void)signal_number;
	ping_interrupted = 1;
}

static void ping_note(struct ping *ping, int64_t round_trip_ns)
{
	double ms = (double)round_trip_ns / (double)NS_PER_MS;

	if (ping->answered == 0 || ms < ping->least_ms)
		ping->least_ms = ms;
	if (ping->answered == 0 || ms > ping->most_ms)
		ping->most_ms = ms;
	ping->answered++;
	ping->sum_ms += ms;
	ping->sum_of_squares += ms * ms;
	if (ping->cli->json)
		cli_json_print(
			json_pack("{s:I, s:f}", "sequence", (json_int_t)ping->sent, "time_ms", ms));
	else
		printf("pong from %s: seq=%" PRIu64 " time=%.3f ms\n", ping->cli->server,
		       ping->sent, ms);
	fflush(stdout);
}

static void ping_summary(const struct ping *ping)
{
	uint64_t lost = ping->sent - ping->answered;
	double mean, variance;

	if (ping->cli->json)
		return;
	printf("\n--- %s ping statistics ---\n", ping->cli->server);
	printf("%" PRIu64 " pings, %" PRIu64 " pongs, %.0f%% lost\n", ping->sent, ping->answered,
	       ping->sent > 0 ? 100.0 * (double)lost / (double)ping->sent : 0.0);
	if (ping->answered == 0)
		return;
	mean = ping->sum_ms / (double)ping->answered;
	variance = ping->sum_of_squares / (double)ping->answered - mean * mean;
	printf("round-trip min/avg/max/stddev = %.3f/%.3f/%.3f/%.3f ms\n", ping->least_ms, mean,
	       ping->most_ms, variance > 0 ? sqrt(variance) : 0.0);
}

static int ping_loop(struct ping *ping)
{
	struct timespec pause = {.tv_sec = ping->interval_ms / 1000,
				 .tv_nsec = (long)(ping->interval_ms % 1000) * 1000000};
	int64_t round_trip_ns;
	int status;

	while (!ping_interrupted) {
		ping->sent++;
		status = liminal_ping(ping->client, ping->wait_ms, &round_trip_ns);
		if (status == LIMINAL_TIMEOUT) {
			cli_error("no answer within the time given with -w");
			return CLI_WAITED;
		}
		if (status != LIMINAL_OK)
			return cli_report();
		ping_note(ping, round_trip_ns);
		if (ping->sent == ping->count || ferror(stdout))
			break;
		nanosleep(&pause, NULL);
	}
	return CLI_DONE;
}

int ping_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct ping ping = {.cli = cli, .interval_ms = 1000, .wait_ms = LIMINAL_FOREVER};
	struct sigaction action = {.sa_handler = ping_on_signal};
	unsigned major, minor;
	uint32_t capabilities;
	int status;

	if (!cli_value_count(arguments, 'c', UINT64_MAX, &ping.count) ||
	    !cli_value_seconds(arguments, 'i', &ping.interval_ms) ||
	    !cli_value_seconds(arguments, 'w', &ping.wait_ms))
		return CLI_USAGE;
	ping.client = cli_open(cli, &status);
	if (ping.client == NULL)
		return status;
	sigemptyset(&action.sa_mask);
	action.sa_flags = SA_RESETHAND; /* a second one ends a wait for a server that is silent */
	sigaction(SIGINT, &action, NULL);
	liminal_protocol(ping.client, &major, &minor, &capabilities);
	if (!cli->json)
		printf("ping %s, protocol %u.%u\n", cli->server, major, minor);
	status = ping_loop(&ping);
	ping_summary(&ping);
	liminal_close(&ping.client);
	return status;
}
