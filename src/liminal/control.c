/* Asking $control addresses, and what their replies look like to a person. */
#include "liminal/control.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/text.h"

#define CONTROL_COLUMNS_MAX 16

static const struct control_column control_connections[] = {
	{"id", "ID", CONTROL_NUMBER},
	{"peer", "PEER", CONTROL_TEXT},
	{"version", "PROTOCOL", CONTROL_TEXT},
	{"since_ms", "SINCE", CONTROL_SINCE},
	{"subscriptions", "SUBS", CONTROL_NUMBER},
	{"conversations", "CONVS", CONTROL_NUMBER},
	{"worker", "WORKER", CONTROL_TEXT},
	{"outbox_bytes", "OUTBOX", CONTROL_BYTES},
	{"outbox_frames", "FRAMES", CONTROL_NUMBER},
	{"pending_replies", "REPLIES", CONTROL_NUMBER},
	{"pending_pushes", "PUSHES", CONTROL_NUMBER},
	{.key = NULL},
};

static const struct control_column control_channels[] = {
	{"name", "CHANNEL", CONTROL_TEXT},
	{"durable", "DURABLE", CONTROL_TEXT},
	{"subscriptions", "SUBS", CONTROL_NUMBER},
	{"publishes", "PUBLISHES", CONTROL_NUMBER},
	{"deliveries", "DELIVERIES", CONTROL_NUMBER},
	{"sheds", "SHEDS", CONTROL_NUMBER},
	{"drops", "DROPS", CONTROL_NUMBER},
	{"dedup_keys", "KEYS", CONTROL_NUMBER},
	{.key = NULL},
};

static const struct control_column control_workers[] = {
	{"queue", "QUEUE", CONTROL_TEXT},
	{"connection", "CONNECTION", CONTROL_NUMBER},
	{"identity", "IDENTITY", CONTROL_TEXT},
	{"node", "NODE", CONTROL_TEXT},
	{"namespaces", "NAMESPACES", CONTROL_TEXT},
	{"activities", "ACTIVITIES", CONTROL_TEXT},
	{"outstanding", "OUTSTANDING", CONTROL_NUMBER},
	{"unanswered", "UNANSWERED", CONTROL_NUMBER},
	{"leaving", "LEAVING", CONTROL_TEXT},
	{.key = NULL},
};

static const struct control_column control_consumers[] = {
	{"channel", "CHANNEL", CONTROL_TEXT},		{"consumer", "CONSUMER", CONTROL_TEXT},
	{"subscriptions", "SUBS", CONTROL_NUMBER},	{"lag", "LAG", CONTROL_NUMBER},
	{"outstanding", "OUTSTANDING", CONTROL_NUMBER}, {"deferred", "DEFERRED", CONTROL_NUMBER},
	{"idle_since_ms", "IDLE", CONTROL_SINCE},	{.key = NULL},
};

static const struct control_column control_dead[] = {
	{"sequence", "SEQUENCE", CONTROL_NUMBER},
	{"origin", "ORIGIN", CONTROL_TEXT},
	{"consumer", "CONSUMER", CONTROL_TEXT},
	{"reason", "REASON", CONTROL_TEXT},
	{"attempts", "ATTEMPTS", CONTROL_NUMBER},
	{"text", "TEXT", CONTROL_TEXT},
	{.key = NULL},
};

const struct control_list control_lists[] = {
	{"connections", control_connections},
	{"channels", control_channels},
	{"workers", control_workers},
	{"consumers", control_consumers},
	{"dead", control_dead},
	{.name = NULL},
};

const struct control_list *control_list_find(const char *name)
{
	for (const struct control_list *list = control_lists; list->name != NULL; list++)
		if (strcmp(list->name, name) == 0)
			return list;
	return NULL;
}

static json_t *control_failed(bool quiet, int *status)
{
	if (liminal_last_error()->status == LIMINAL_TIMEOUT) {
		*status = CLI_WAITED;
		if (!quiet)
			cli_error("no answer within the time given with -w");
		return NULL;
	}
	*status = quiet ? CLI_CONNECTION : cli_report();
	if (!quiet && strncmp(liminal_last_error()->text, "not-permitted:", 14) == 0)
		cli_error("give the path of the server's control_socket with -s, "
			  "see liminald.conf(5)");
	return NULL;
}

static json_t *control_decode(const char *bytes, size_t length, bool quiet, int *status)
{
	json_t *reply = json_loadb(bytes, length, JSON_ALLOW_NUL, NULL);
	const char *error = json_string_value(json_object_get(reply, "error"));

	if (reply != NULL && error == NULL)
		return reply;
	*status = CLI_FAILED;
	if (!quiet)
		cli_error("%s", error != NULL ? error : "the server's reply is not JSON");
	json_decref(reply);
	return NULL;
}

json_t *control_ask(struct liminal *client, const char *name, json_t *request, int wait_ms,
		    bool quiet, int *status)
{
	struct liminal_conversation *conversation = NULL;
	char subject[64], *text = NULL;
	void *bytes = NULL;
	size_t length;
	json_t *reply = NULL;

	*status = CLI_DONE;
	snprintf(subject, sizeof(subject), "$control/%s", name);
	if (request != NULL)
		text = json_dumps(request, JSON_COMPACT);
	json_decref(request);
	if (liminal_converse(client, subject, &conversation) == LIMINAL_OK &&
	    liminal_request(conversation, text, text != NULL ? strlen(text) : 0, wait_ms, &bytes,
			    &length) == LIMINAL_OK)
		reply = control_decode(bytes, length, quiet, status);
	else
		reply = control_failed(quiet, status);
	liminal_free(bytes);
	free(text);
	liminal_conversation_close(&conversation);
	return reply;
}

static void control_add_value(struct text *text, const json_t *value)
{
	size_t index;
	json_t *item;

	switch (json_typeof(value)) {
	case JSON_STRING:
		text_add_name(text, (struct span){(const uint8_t *)json_string_value(value),
						  json_string_length(value)});
		return;
	case JSON_INTEGER:
		text_add(text, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
		return;
	case JSON_TRUE:
		text_add(text, "yes");
		return;
	case JSON_FALSE:
		text_add(text, "no");
		return;
	case JSON_ARRAY:
		json_array_foreach(value, index, item)
		{
			if (index > 0)
				text_add(text, ",");
			control_add_value(text, item);
		}
		return;
	default:
		return;
	}
}

static void control_add_bytes(struct text *text, json_int_t bytes)
{
	static const char units[] = "BKMGTP";
	double value = (double)bytes;
	size_t unit = 0;

	while (value >= 1024 && unit + 2 < sizeof(units)) {
		value /= 1024;
		unit++;
	}
	text_add(text, unit == 0 ? "%.0f%c" : "%.1f%c", value, units[unit]);
}

/* How long ago, in the largest unit that says something. */
static void control_add_since(struct text *text, json_int_t since_ms)
{
	int64_t seconds = (clock_wall_ms() - since_ms) / 1000;

	seconds = seconds < 0 ? 0 : seconds;
	if (seconds < 60)
		text_add(text, "%" PRId64 "s", seconds);
	else if (seconds < 3600)
		text_add(text, "%" PRId64 "m%02" PRId64 "s", seconds / 60, seconds % 60);
	else if (seconds < 86400)
		text_add(text, "%" PRId64 "h%02" PRId64 "m", seconds / 3600, seconds / 60 % 60);
	else
		text_add(text, "%" PRId64 "d%02" PRId64 "h", seconds / 86400, seconds / 3600 % 24);
}

void control_cell(const json_t *object, const struct control_column *column,
		  char cell[CONTROL_CELL])
{
	const json_t *value = json_object_get(object, column->key);
	struct text text = {.data = cell, .size = CONTROL_CELL};

	cell[0] = '\0';
	if (value != NULL && column->kind == CONTROL_BYTES)
		control_add_bytes(&text, json_integer_value(value));
	else if (json_is_integer(value) && column->kind == CONTROL_SINCE)
		control_add_since(&text, json_integer_value(value));
	else if (value != NULL)
		control_add_value(&text, value);
	if (text.length == 0)
		text_add(&text, "-");
}

/* Columns as wide as their widest cell; numbers stand to the right. */
static void control_print_row(const struct control_list *list, const json_t *object,
			      const size_t widths[CONTROL_COLUMNS_MAX])
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

void control_print_list(const struct control_list *list, const json_t *rows)
{
	size_t widths[CONTROL_COLUMNS_MAX], index;
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
	control_print_row(list, NULL, widths);
	json_array_foreach(rows, index, row) control_print_row(list, row, widths);
}
