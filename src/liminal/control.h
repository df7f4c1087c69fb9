/* The server's control addresses, and tables on the terminal: for `ctl` and `top`. */
#ifndef LIMINAL_CONTROL_H
#define LIMINAL_CONTROL_H

#include "liminal/cli.h"

/*
 * Asks $control/NAME. REQUEST, whose reference is taken, may be NULL. The reply, or NULL: then it
 * was reported on standard error, unless QUIET, and *STATUS is the exit status.
 */
json_t *control_ask(struct liminal *client, const char *name, json_t *request, int wait_ms,
		    bool quiet, int *status);

/* A column of a list of objects. */
struct control_column {
	const char *key; /* of the object; NULL ends the table of columns */
	const char *title;
	enum { CONTROL_TEXT, CONTROL_NUMBER, CONTROL_BYTES, CONTROL_SINCE } kind;
};

struct control_list {
	const char *name; /* of the address and of the list in its reply */
	const struct control_column *columns;
};

extern const struct control_list control_lists[]; /* ends with name NULL */
const struct control_list *control_list_find(const char *name);

/* A table of ROWS, an array of objects. */
void control_print_list(const struct control_list *list, const json_t *rows);

#define CONTROL_CELL 160

/* What COLUMN of OBJECT shows; control characters of clients' names are escaped. */
void control_cell(const json_t *object, const struct control_column *column,
		  char cell[CONTROL_CELL]);

#endif
