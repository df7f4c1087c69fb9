/* liminal ctl: asks or tells the server over its control socket. */
#include "liminal/control.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* One value a line; those of an object inside have its name in front. */
static void ctl_print_values(const char *prefix, json_t *object)
{
	char name[128], cell[CONTROL_CELL];
	const char *key;
	json_t *value;

	json_object_foreach(object, key, value)
	{
		struct control_column column = {key, key, CONTROL_TEXT};

		snprintf(name, sizeof(name), "%s%s%s", prefix, *prefix != '\0' ? "." : "", key);
		if (json_is_object(value)) {
			ctl_print_values(name, value);
			continue;
		}
		control_cell(object, &column, cell);
		printf("%-24s %s\n", name, cell);
	}
}

static void ctl_print(const char *action, json_t *reply)
{
	const struct control_list *list = control_list_find(action);

	if (list != NULL)
		control_print_list(list, json_object_get(reply, list->name));
	else if (json_is_true(json_object_get(reply, "ok")))
		printf("ok\n");
	else
		ctl_print_values("", reply);
}

/* What an action is told besides its name; those that are not here take nothing. */
static const struct ctl_operands {
	const char *action;
	size_t least, most;
	const char *what;
} ctl_operands[] = {
	{"close", 1, 1, "a connection's id, a number"},
	{"consumers", 0, 1, "at most a channel"},
	{"consumer-rm", 2, 2, "a channel and a consumer"},
	{NULL, 0, 0, "no operand"},
};

/* Sets *REQUEST to what ACTION sends, NULL for nothing. */
static bool ctl_request(const struct cli_arguments *arguments, json_t **request)
{
	const char *action = arguments->operands[0], *const *operands = NULL;
	const struct ctl_operands *allowed = ctl_operands;
	size_t count = arguments->operand_count - 1;
	bool good;
	char *end;

	*request = NULL;
	while (allowed->action != NULL && strcmp(allowed->action, action) != 0)
		allowed++;
	operands = (const char *const *)arguments->operands + 1;
	good = count >= allowed->least && count <= allowed->most;
	if (good && strcmp(action, "close") == 0) {
		unsigned long long id = strtoull(operands[0], &end, 10);

		good = operands[0][0] >= '0' && operands[0][0] <= '9' && *end == '\0' &&
		       id <= INT64_MAX;
		*request = good ? json_pack("{s:I}", "connection", (json_int_t)id) : NULL;
	} else if (good && count > 0) {
		*request = json_pack("{s:s, s:s*}", "channel", operands[0], "consumer",
				     count > 1 ? operands[1] : NULL);
		good = *request != NULL; /* jansson takes UTF-8 only */
	}
	if (!good)
		cli_usage(arguments->command, "\"%s\" takes %s", action, allowed->what);
	return good;
}

int ctl_run(struct cli *cli, const struct cli_arguments *arguments)
{
	const char *action = arguments->operands[0];
	int status, wait_ms = LIMINAL_FOREVER;
	json_t *request, *reply;
	struct liminal *client;

	if (!cli_value_seconds(arguments, 'w', &wait_ms))
		return CLI_USAGE;
	if (!ctl_request(arguments, &request))
		return CLI_USAGE;
	client = cli_open(cli, &status);
	if (client == NULL) {
		json_decref(request);
		return status;
	}
	reply = control_ask(client, action, request, wait_ms, false, &status);
	if (reply != NULL && cli->json)
		cli_json_print(json_incref(reply));
	else if (reply != NULL)
		ctl_print(action, reply);
	json_decref(reply);
	liminal_close(&client);
	return status;
}
