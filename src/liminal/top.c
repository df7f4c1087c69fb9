/*
 * liminal top: a live screen over the control socket. Each look asks for the statistics and for
 * the list of the view that is shown; rates are differences to the look before.
 */
#include "liminal/control.h"

#include <curses.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

#define TOP_WAIT_MS 5000
#define TOP_HEAD_LINES 4 /* above the table */

/* Keys ending in "_per_s" are put into the objects here. */
static const struct control_column top_connections[] = {
	{"id", "ID", CONTROL_NUMBER},
	{"peer", "PEER", CONTROL_TEXT},
	{"since_ms", "SINCE", CONTROL_SINCE},
	{"version", "PROTOCOL", CONTROL_TEXT},
	{"subscriptions", "SUBS", CONTROL_NUMBER},
	{"conversations", "CONVS", CONTROL_NUMBER},
	{"outbox_bytes", "OUTBOX", CONTROL_BYTES},
	{"outbox_frames", "FRAMES", CONTROL_NUMBER},
	{"pending_replies", "REPLIES", CONTROL_NUMBER},
	{"pending_pushes", "PUSHES", CONTROL_NUMBER},
	{"worker", "WORKER", CONTROL_TEXT},
	{.key = NULL},
};

static const struct control_column top_channels[] = {
	{"name", "CHANNEL", CONTROL_TEXT},
	{"subscriptions", "SUBS", CONTROL_NUMBER},
	{"publishes_per_s", "PUBLISHED/S", CONTROL_NUMBER},
	{"deliveries_per_s", "DELIVERED/S", CONTROL_NUMBER},
	{"publishes", "PUBLISHED", CONTROL_NUMBER},
	{"deliveries", "DELIVERED", CONTROL_NUMBER},
	{"sheds", "SHEDS", CONTROL_NUMBER},
	{"drops", "DROPS", CONTROL_NUMBER},
	{.key = NULL},
};

static const struct control_column top_workers[] = {
	{"queue", "QUEUE", CONTROL_TEXT},
	{"identity", "IDENTITY", CONTROL_TEXT},
	{"connection", "CONNECTION", CONTROL_NUMBER},
	{"outstanding", "OUTSTANDING", CONTROL_NUMBER},
	{"unanswered", "UNANSWERED", CONTROL_NUMBER},
	{"leaving", "LEAVING", CONTROL_TEXT},
	{.key = NULL},
};

struct top_view {
	const char *name, *title;
	const struct control_column *columns;
	size_t sort;	 /* the column at first */
	const char *key; /* that names a row from one look to the next; NULL: no rates */
};

static const struct top_view top_views[] = {
	{"connections", "connections", top_connections, 6, NULL},
	{"channels", "channels", top_channels, 2, "name"},
	{"workers", "workers of queues", top_workers, 0, NULL},
};

struct top_row {
	const json_t *object;
	char key[CONTROL_CELL];
	json_int_t number;
	bool numeric, reversed;
};

struct top {
	const struct cli *cli;
	struct liminal *client;
	int delay_ms;

	const struct top_view *view;
	size_t sort;
	bool reversed;
	int scroll;

	json_t *stats, *stats_before;
	json_t *rows, *rows_before;
	int64_t looked_ns, looked_before_ns;
	bool lost;
};

static json_int_t top_number(const json_t *object, const char *key)
{
	return json_integer_value(json_object_get(object, key));
}

static double top_seconds(const struct top *top)
{
	return (double)(top->looked_ns - top->looked_before_ns) / (double)NS_PER_S;
}

static json_int_t top_rate(const struct top *top, const json_t *now, const json_t *before,
			   const char *key)
{
	if (before == NULL || top_seconds(top) <= 0)
		return 0;
	return (json_int_t)((double)(top_number(now, key) - top_number(before, key)) /
				    top_seconds(top) +
			    0.5);
}

static const json_t *top_row_before(const struct top *top, const json_t *row)
{
	const char *name = json_string_value(json_object_get(row, top->view->key));
	const json_t *before;
	size_t index;

	json_array_foreach(top->rows_before, index,
			   before) if (name != NULL &&
				       strcmp(name, json_string_value(json_object_get(
							    before, top->view->key))) ==
					       0) return before;
	return NULL;
}

static void top_add_rates(struct top *top)
{
	json_t *row;
	size_t index;

	if (top->view->key == NULL)
		return;
	json_array_foreach(top->rows, index, row)
	{
		const json_t *before = top_row_before(top, row);

		json_object_set_new(row, "publishes_per_s",
				    json_integer(top_rate(top, row, before, "publishes")));
		json_object_set_new(row, "deliveries_per_s",
				    json_integer(top_rate(top, row, before, "deliveries")));
	}
}

static void top_forget(struct top *top)
{
	json_decref(top->rows);
	json_decref(top->rows_before);
	top->rows = top->rows_before = NULL;
}

/* Asks for the numbers; `lost` says whether the server can be asked at all. */
static int top_look(struct top *top)
{
	json_t *stats, *reply = NULL;
	int status = CLI_DONE;

	if (top->lost)
		top->lost = liminal_reconnect(top->client, 0) != LIMINAL_OK;
	if (top->lost)
		return CLI_DONE;
	stats = control_ask(top->client, "stats", NULL, TOP_WAIT_MS, true, &status);
	if (stats != NULL)
		reply = control_ask(top->client, top->view->name, NULL, TOP_WAIT_MS, true, &status);
	if (reply == NULL) {
		json_decref(stats);
		top->lost = liminal_last_error()->status != LIMINAL_REFUSED;
		return top->lost ? CLI_DONE : CLI_FAILED;
	}
	json_decref(top->stats_before);
	json_decref(top->rows_before);
	top->stats_before = top->stats;
	top->rows_before = top->rows;
	top->stats = stats;
	top->rows = json_incref(json_object_get(reply, top->view->name));
	json_decref(reply);
	top->looked_before_ns = top->looked_ns;
	top->looked_ns = clock_mono_ns();
	top_add_rates(top);
	return CLI_DONE;
}

/* The screen is ASCII: what a client named otherwise shows as question marks. */
static void top_cell(const json_t *object, const struct control_column *column,
		     char cell[CONTROL_CELL])
{
	control_cell(object, column, cell);
	for (char *at = cell; *at != '\0'; at++)
		if ((unsigned char)*at >= 0x7F)
			*at = '?';
}

static bool top_is_number(const struct control_column *column)
{
	return column->kind == CONTROL_NUMBER || column->kind == CONTROL_BYTES;
}

/* Numbers with the largest first, text in its order. */
static int top_compare(const void *left, const void *right)
{
	const struct top_row *a = left, *b = right;
	int order;

	if (a->numeric)
		order = a->number < b->number ? 1 : a->number > b->number ? -1 : 0;
	else
		order = strcmp(a->key, b->key);
	return a->reversed ? -order : order;
}

static struct top_row *top_sorted(const struct top *top, size_t count)
{
	const struct control_column *column = &top->view->columns[top->sort];
	struct top_row *rows = calloc(count + 1, sizeof(*rows));

	for (size_t i = 0; rows != NULL && i < count; i++) {
		rows[i].object = json_array_get(top->rows, i);
		rows[i].numeric = column->kind != CONTROL_TEXT;
		rows[i].reversed = top->reversed;
		rows[i].number = top_number(rows[i].object, column->key);
		top_cell(rows[i].object, column, rows[i].key);
	}
	if (rows != NULL)
		qsort(rows, count, sizeof(*rows), top_compare);
	return rows;
}

static void top_draw_head(const struct top *top)
{
	const json_t *stats = top->stats, *before = top->stats_before;
	const json_t *connections = json_object_get(stats, "connections");
	const struct control_column up = {"started_ms", "", CONTROL_SINCE};
	const struct control_column in = {"in", "", CONTROL_BYTES},
				    out = {"out", "", CONTROL_BYTES};
	char since[CONTROL_CELL], in_cell[CONTROL_CELL], out_cell[CONTROL_CELL];
	json_t *bytes = json_pack("{s:I, s:I}", "in", top_rate(top, stats, before, "bytes_in"),
				  "out", top_rate(top, stats, before, "bytes_out"));

	control_cell(stats, &up, since);
	control_cell(bytes, &in, in_cell);
	control_cell(bytes, &out, out_cell);
	json_decref(bytes);
	mvprintw(0, 0,
		 "liminald %s at %s, up %s, %" JSON_INTEGER_FORMAT " of %" JSON_INTEGER_FORMAT
		 " connections",
		 json_string_value(json_object_get(stats, "version")), top->cli->server, since,
		 top_number(connections, "current"), top_number(connections, "max"));
	mvprintw(1, 0,
		 "%" JSON_INTEGER_FORMAT " published/s, %" JSON_INTEGER_FORMAT
		 " delivered/s, %s/s in, %s/s out, %" JSON_INTEGER_FORMAT " replies awaited, "
		 "%" JSON_INTEGER_FORMAT " shed, %" JSON_INTEGER_FORMAT " dropped",
		 top_rate(top, stats, before, "publishes"),
		 top_rate(top, stats, before, "deliveries"), in_cell, out_cell,
		 top_number(stats, "pending_replies"), top_number(stats, "sheds"),
		 top_number(stats, "drops"));
}

static void top_draw_views(const struct top *top)
{
	move(TOP_HEAD_LINES - 2, 0);
	for (size_t i = 0; i < ARRAY_LENGTH(top_views); i++) {
		if (top->view == &top_views[i])
			attron(A_BOLD);
		printw("[%zu] %s   ", i + 1, top_views[i].title);
		attroff(A_BOLD);
	}
	if (top->lost) {
		attron(A_REVERSE);
		printw(" no connection, trying again ");
		attroff(A_REVERSE);
	}
	mvaddnstr(LINES - 1, 0,
		  "1 2 3 view   left right sort by   r reverse   up down scroll   q leave",
		  COLS - 1);
}

static void top_draw_table(struct top *top)
{
	size_t count = json_array_size(top->rows);
	struct top_row *rows = top_sorted(top, count);
	int room = LINES - TOP_HEAD_LINES - 1, x = 0;
	char cell[CONTROL_CELL];

	if (rows == NULL)
		return;
	if (top->scroll > (int)count - room)
		top->scroll = (int)count - room;
	if (top->scroll < 0)
		top->scroll = 0;
	for (size_t c = 0; top->view->columns[c].key != NULL && x < COLS; c++) {
		const struct control_column *column = &top->view->columns[c];
		size_t width = strlen(column->title);

		for (size_t i = 0; i < count; i++) {
			top_cell(rows[i].object, column, cell);
			width = size_max(width, strlen(cell));
		}
		width = size_min(width, 40);
		attron(c == top->sort ? A_REVERSE : A_BOLD);
		mvprintw(TOP_HEAD_LINES - 1, x, top_is_number(column) ? "%*s" : "%-*s", (int)width,
			 column->title);
		attroff(A_REVERSE | A_BOLD);
		for (int i = 0; i < room && (size_t)(i + top->scroll) < count; i++) {
			top_cell(rows[i + top->scroll].object, column, cell);
			mvprintw(TOP_HEAD_LINES + i, x, top_is_number(column) ? "%*.*s" : "%-*.*s",
				 (int)width, (int)width, cell);
		}
		x += (int)width + 2;
	}
	free(rows);
}

static void top_draw(struct top *top)
{
	erase();
	if (top->stats != NULL) {
		top_draw_head(top);
		top_draw_table(top);
	}
	top_draw_views(top);
	refresh();
}

static void top_show(struct top *top, size_t view)
{
	top->view = &top_views[view];
	top->sort = top->view->sort;
	top->reversed = false;
	top->scroll = 0;
	top_forget(top);
}

static size_t top_column_count(const struct top *top)
{
	size_t count = 0;

	while (top->view->columns[count].key != NULL)
		count++;
	return count;
}

/* *LOOK: the numbers are to be asked for at once. False: leave. */
static bool top_key(struct top *top, int key, bool *look)
{
	switch (key) {
	case 'q':
		return false;
	case '1':
	case '2':
	case '3':
		top_show(top, (size_t)(key - '1'));
		*look = true;
		break;
	case KEY_LEFT:
		top->sort = (top->sort + top_column_count(top) - 1) % top_column_count(top);
		break;
	case KEY_RIGHT:
		top->sort = (top->sort + 1) % top_column_count(top);
		break;
	case 'r':
		top->reversed = !top->reversed;
		break;
	case KEY_UP:
		top->scroll--;
		break;
	case KEY_DOWN:
		top->scroll++;
		break;
	case KEY_PPAGE:
		top->scroll -= LINES / 2;
		break;
	case KEY_NPAGE:
		top->scroll += LINES / 2;
		break;
	default:
		break;
	}
	return true;
}

static int top_loop(struct top *top)
{
	int64_t look_ns = 0;
	int status = CLI_DONE;

	while (status == CLI_DONE) {
		int64_t left_ms = (look_ns - clock_mono_ns()) / NS_PER_MS;
		bool look = left_ms <= 0;
		int key;

		if (look) {
			status = top_look(top);
			look_ns = clock_mono_ns() + top->delay_ms * NS_PER_MS;
			left_ms = top->delay_ms;
		}
		top_draw(top);
		timeout((int)left_ms);
		key = getch();
		look = false;
		if (key != ERR && !top_key(top, key, &look))
			break;
		if (look)
			look_ns = 0;
	}
	return status;
}

int top_run(struct cli *cli, const struct cli_arguments *arguments)
{
	struct top top = {.cli = cli, .delay_ms = 1000};
	json_t *stats;
	int status;

	if (!cli_value_seconds(arguments, 'd', &top.delay_ms))
		return CLI_USAGE;
	if (cli->json || !isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
		return cli_usage(arguments->command, "a terminal is needed; programs use ctl");
	top.delay_ms = top.delay_ms > 100 ? top.delay_ms : 100;
	top.client = cli_open(cli, &status);
	if (top.client == NULL)
		return status;
	/* Before the screen is taken over: a refusal can still be read. */
	stats = control_ask(top.client, "stats", NULL, TOP_WAIT_MS, false, &status);
	json_decref(stats);
	if (stats == NULL)
		goto out;
	if (initscr() == NULL) {
		cli_error("the terminal cannot be used");
		status = CLI_FAILED;
		goto out;
	}
	cbreak();
	noecho();
	keypad(stdscr, TRUE);
	curs_set(0);
	top_show(&top, 0);
	status = top_loop(&top);
	endwin();
out:
	top_forget(&top);
	json_decref(top.stats);
	json_decref(top.stats_before);
	liminal_close(&top.client);
	return status;
}
