/*
 * What the files of this room share: the rows of options.tbl, the values of each type, the
 * suggestion of a name, and the loader, which collects a configuration and its problems.
 */
#ifndef CONFIG_CONFIG_PRIV_H
#define CONFIG_CONFIG_PRIV_H

#include "base/text.h"
#include "config/configuration.h"

/* A value in the file; longer tokens go into a file, whose line may be longer. */
#define VALUE_MAX 180
#define TOKEN_MAX 4096
#define CHANNEL_NAME_MAX 255

/* --- values.c: one value as text. WHY says in words what is wrong with it. -------------------- */

/* Numbers too large for 64 bits count as the largest; the bounds of the option refuse them. */
bool value_count(const char *text, uint64_t *count, struct text *why);
bool value_size(const char *text, uint64_t *bytes, struct text *why);
bool value_duration(const char *text, int64_t *ms, struct text *why);
void value_print_size(struct text *text, uint64_t bytes);
void value_print_duration(struct text *text, int64_t ms);

bool value_switch(const char *text, bool *on, struct text *why);

/* HOST:PORT or [IPV6]:PORT. */
bool value_address(const char *text, struct text *why);

/* True when only this machine can connect to TEXT, a valid address or path. */
bool value_address_is_local(const char *text);
bool value_channel_name(struct span name, struct text *why);

/*
 * Relative paths count from where the program was started: the current directory at the first call
 * of value_note_start. A daemon has changed to / when it reads its configuration again.
 */
void value_note_start(void);

/* PATH made absolute, to be freed; NULL with errno: ENOENT or ENOMEM. */
char *value_absolute(const char *path);

/*
 * The same for a path of the configuration, which must fit the file also when it is absolute; NULL
 * with WHY, which stays empty when memory is missing.
 */
char *value_path(const char *text, struct text *why);

/* Likewise for the path of a socket, whose length the system bounds. */
char *value_socket_path(const char *text, struct text *why);

/* True when TEXT can stand in the file as a value and comes back the same. */
bool value_fits_file(const char *text, struct text *why);

/* What may stand around a key and a value; the same bytes as for inih. */
bool value_is_blank(char c);

/* TEXT in quotes, escaped and cut. */
void value_quote(struct text *text, const char *value);

/* --- nearest.c: the name that was probably meant ---------------------------------------------- */

struct nearest {
	const char *word, *best;
	size_t distance;
};

/* BEST becomes CANDIDATE when that resembles WORD, and more so than BEST. */
void nearest_consider(struct nearest *nearest, const char *candidate);

/* Adds `; did you mean "BEST"?`, or nothing. */
void nearest_add(const struct nearest *nearest, struct text *text);

/* --- options.c: the table --------------------------------------------------------------------- */

enum option_section {
	SECTION_SERVER,
	SECTION_AUTH,
	SECTION_LIMITS,
	SECTION_CONVERSATIONS,
	SECTION_STORE,
	SECTION_CHANNEL,
	SECTION_COUNT
};

/* As in the file, without brackets; "channel" for SECTION_CHANNEL. */
extern const char *const option_section_names[SECTION_COUNT];

enum option_id {
#define OPTION(section, key, type, member, default, range, reload, help) OPTION_##key,
#include "config/options.tbl"
#undef OPTION
	OPTION_COUNT
};

enum option_type {
	TYPE_DURATION,	    /* int64_t, ms */
	TYPE_SIZE,	    /* uint64_t, bytes */
	TYPE_COUNT,	    /* uint64_t */
	TYPE_SWITCH,	    /* bool */
	TYPE_CHOICE,	    /* an enum, whose values are 0, 1, ... */
	TYPE_NAME,	    /* char *, NULL: none; so are all below that are no list */
	TYPE_TOKEN,	    /* any bytes but NUL; never shown */
	TYPE_PATH,	    /* made absolute */
	TYPE_SOCKET_PATH,   /* likewise */
	TYPE_LOG_TARGET,    /* stderr, syslog or a path */
	TYPE_HTTP_ADDRESS,  /* HOST:PORT or none */
	TYPE_ADDRESSES,	    /* struct string_list, of HOST:PORT or paths */
	TYPE_NAMES,	    /* struct string_list */
	TYPE_CHANNEL_NAMES, /* struct string_list */
};

struct option {
	enum option_section section;
	const char *key;
	enum option_type type;
	size_t offset; /* of the member in its owner */
	const char *default_text, *range;
	bool reload;
	const char *help;
};

extern const struct option options[OPTION_COUNT];

/* The owner of an option is a struct configuration_channel for SECTION_CHANNEL, otherwise the
 * struct configuration. */

bool option_is_list(const struct option *option);

/* A key that only a durable channel may set. */
bool option_is_durable(const struct option *option);

/* NULL when the section has no such key. */
const struct option *option_find(enum option_section section, const char *key);

/*
 * Checks VALUE and stores it in OWNER, in place of the old value; a list is appended to. False
 * with WHY and nothing changed; with WHY empty when memory is missing.
 */
bool option_set(const struct option *option, void *owner, const char *value, struct text *why);

/* Takes the value back: an empty list, no text. Of the types that own memory only. */
void option_clear(const struct option *option, void *owner);
bool option_equal(const struct option *option, const void *a, const void *b);

/* Gives TO the value of FROM; false when memory is missing. */
bool option_copy(const struct option *option, void *to, const void *from);

/* Prints `key = value`, once for each item of a list, nothing where there is no value. */
void option_print(const struct option *option, const void *owner, FILE *out);

/* The facts, as in the sample file and the manual: "Default 30s; range 0 to 1h; changes ...". */
void option_facts(const struct option *option, struct text *text);

/*
 * For every option of a channel, or every other: the default into a cleared OWNER (false: memory is
 * missing, and something may be set); option_clear.
 */
bool options_default(bool channel, void *owner);
void options_clear(bool channel, void *owner);

/* --- channels of a configuration (configuration.c) -------------------------------------------- */

/* A channel with the defaults, added at the end; NULL when memory is missing. */
struct configuration_channel *configuration_add_channel(struct configuration *configuration,
							const char *name);
struct configuration *configuration_new(void);

/* Takes the channel out, and frees what it holds. */
void configuration_remove_channel(struct configuration *configuration,
				  struct configuration_channel *channel);

/* --- load.c: the loader ----------------------------------------------------------------------- */

/* Lines on which the keys of one owner were set; 0: not set. */
struct lines {
	unsigned long section;
	unsigned long option[OPTION_COUNT];
};

struct problem {
	unsigned long line;
	bool warning;
	char *text;
};

struct loader {
	const char *name; /* of the file, for messages; NULL: there is none */
	struct configuration *configuration;
	struct lines lines;	     /* of the configuration */
	struct lines *channel_lines; /* of each channel */

	/* The variable of the environment that overrides an option; NULL: none is set. */
	const char *override[OPTION_COUNT];

	struct problem *problems; /* in the order of their lines */
	size_t problem_count;
	bool failed;		 /* there is an error among them */
	bool no_memory;		 /* something was left out */
	bool readable_by_others; /* the file */

	/* Where the parser stands. */
	unsigned long line;
	enum { LOADER_NO_SECTION, LOADER_UNKNOWN_SECTION, LOADER_SECTION } state;
	enum option_section section;
	void *owner;
	struct lines *owner_lines;
};

/* After the last line: problems of the environment. */
#define LOADER_ENVIRONMENT ((unsigned long)-1)

/*
 * Adds a problem, in its place in the order of lines, those of one line in the order in which they
 * were added. Line 0: of the file as a whole; LOADER_ENVIRONMENT: of no file.
 */
void loader_error(struct loader *loader, unsigned long line, const char *format, ...)
	PRINTF_LIKE(3, 4);
void loader_warn(struct loader *loader, unsigned long line, const char *format, ...)
	PRINTF_LIKE(3, 4);

/* The parser has found the section NAME. */
void loader_section(struct loader *loader, const char *name);

/*
 * The parser has found KEY with VALUE in the section that it stands in. The option to set; NULL
 * when the key has a problem, or the value, or the environment overrides it.
 */
const struct option *loader_find(struct loader *loader, const char *key, const char *value);

/* Sets what loader_find has found, in the same section. */
void loader_set(struct loader *loader, const struct option *option, const char *value);

/* --- parse.c ---------------------------------------------------------------------------------- */

/* Reads IN to its end; problems go to the loader. */
void parse(struct loader *loader, FILE *in);

/* --- validate.c ------------------------------------------------------------------------------- */

/* What concerns more than one value, and the files that are named: token_file, schema. */
void validate(struct loader *loader);

#endif
