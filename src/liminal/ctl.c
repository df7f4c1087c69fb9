/* liminal ctl: asks or tells the server over its control socket. */
#include "liminal/control.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CTL_COLUMNS_MAX 16

/* Columns as wide as their widest cell; numbers stand to the right. */
static void ctl_print_row(const struct control_list *list, const json_t *object,
			  const size_t widths[CTL_COLUMNS_MAX])
{
	char cell[CONTROL_CELL];

	for (size_t i = 0; list->columns[i].key != NULL; i++) {
		const struct control_column *column = &list->columns[i];
		bool right = column->kind == CONTROL_NUMBER || column->kind == CONTROL_BYTES;

		if (object != NULL)
			control_cell(object, column, cell);
		else
			snprintf(cell, sizeof(cell), "%s", column->title);
		if (list->columns[i + 1].key == NULL && !right)
			printf("%s", cell);
		else
			printf("%*s", right ? (int)widths[i] : -(int)widths[i], cell);
		printf("%s", list->columns[i + 1].key != NULL ? "  " : "\n");
	}
}

static void ctl_print_list(const struct control_list *list, const json_t *rows)
{
	size_t widths[CTL_COLUMNS_MAX], index;
	char cell[CONTROL_CELL];
	json_t *row;

	for (size_t i = 0; list->columns[i].key != NULL; i++) {
		widths[i] = strlen(list->columns[i].title);
		json_array_foreach(rows, index, row)
		{
			control_cell(row, &list->columns[i], cell);
			if (strlen(cell) > widths[i])
				widths[i] = strlen(cell);
		}
	}
	ctl_print_row(list, NULL, widths);
	json_array_foreach(rows, index, row) ctl_print_row(list, row, widths);
}

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
		ctl_print_list(list, json_object_get(reply, list->name));
	else if (json_is_true(json_object_get(reply, "ok")))
		printf("ok\n");
	else
		ctl_print_values("", reply);
}

/* Sets *REQUEST to what ACTION sends, NULL for nothing. */
static bool ctl_request(const struct cli_arguments *arguments, json_t **request)
{
	const char *action = arguments->operands[0], *operand = arguments->operands[1];
	bool closing = strcmp(action, "close") == 0;
	uint64_t id;
	char *end;

	*request = NULL;
	if (!closing && operand != NULL) {
		cli_usage(arguments->command, "\"%s\" takes no operand", action);
		return false;
	}
	if (!closing)
		return true;
	id = operand != NULL ? strtoull(operand, &end, 10) : 0;
	if (operand == NULL || *operand < '0' || *operand > '9' || *end != '\0' || id > INT64_MAX) {
		cli_usage(arguments->command, "\"close\" needs a connection's id, a number");
		return false;
	}
	*request = json_pack("{s:I}", "connection", (json_int_t)id);
	return true;
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
