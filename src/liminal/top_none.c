/* liminal top in a build without ncurses. */
#include "liminal/cli.h"

int top_run(struct cli *cli, const struct cli_arguments *arguments)
{
	(void)cli;
	(void)arguments;
	cli_error("top was not built: configure found no ncurses; \"liminal ctl stats\" shows the "
		  "same numbers");
	return CLI_FAILED;
}
