/*
 * The file, line by line: comments, sections and `key = value`.
 *
 * inih, as distributions build it, cuts lines at 200 bytes, counts none of them, takes an indented
 * line for a continuation and ":" for "=", and does not report sections. So its reader is ours: it
 * knows lines and sections, and hands inih nothing but clean pairs, to split. Even the key does not
 * fit beside the longest value; a stand-in goes in its place.
 *
 * A line ends with LF or CR LF, the last one perhaps with the file. A byte order mark at the start
 * of the file is skipped.
 */
#include "config/config_priv.h"

#include <errno.h>
#include <ini.h>
#include <string.h>
#include <sys/stat.h>

#define PARSE_LINE_MAX 1024

struct parser {
	struct loader *loader;
	FILE *in;
	const struct option *option;   /* of the pair that inih has */
	char line[PARSE_LINE_MAX + 2]; /* with a CR and a NUL */
};

/* Removes a comment at the end and the blanks around the rest. */
static char *parse_trim(char *text)
{
	char *end;

	for (char *c = text; *c != '\0'; c++) {
		if (*c == ';' && c > text && value_is_blank(c[-1])) {
			*c = '\0';
			break;
		}
	}
	while (value_is_blank(*text))
		text++;
	end = text + strlen(text);
	while (end > text && value_is_blank(end[-1]))
		end--;
	*end = '\0';
	return text;
}

/* The next line, whatever is wrong with it; false at the end. *VALID: nothing was. */
static bool parse_get_line(struct parser *parser, bool *valid)
{
	struct loader *loader = parser->loader;
	size_t length = 0;
	bool too_long = false, nul = false;
	int c;

	while ((c = getc(parser->in)) != EOF && c != '\n') {
		nul = nul || c == '\0';
		if (length < PARSE_LINE_MAX + 1)
			parser->line[length++] = (char)c;
		else
			too_long = true;
	}
	if (c == EOF && ferror(parser->in))
		loader_error(loader, 0, "cannot be read: %s", strerror(errno));
	if (c == EOF && length == 0)
		return false;
	loader->line++;
	if (length > 0 && parser->line[length - 1] == '\r')
		length--;
	parser->line[length] = '\0';
	too_long = too_long || length > PARSE_LINE_MAX;
	if (too_long)
		loader_error(loader, loader->line, "the line is longer than %d bytes",
			     PARSE_LINE_MAX);
	if (nul)
		loader_error(loader, loader->line, "the line holds a NUL byte");
	*valid = !too_long && !nul;
	return true;
}

/* TEXT begins with "[" and is trimmed. */
static void parse_section(struct parser *parser, char *text)
{
	struct loader *loader = parser->loader;
	char *end = strchr(text, ']');
	char quoted[TEXT_NAME_MAX * 4 + 3];
	struct text shown = TEXT_INIT(quoted);

	if (end == NULL) {
		value_quote(&shown, text);
		loader_error(loader, loader->line, "no \"]\" at the end of %s", quoted);
		loader->state = LOADER_UNKNOWN_SECTION;
		return;
	}
	if (end[1] != '\0') {
		value_quote(&shown, end + 1);
		loader_error(loader, loader->line, "junk after \"]\": %s", quoted);
	}
	*end = '\0';
	loader_section(loader, parse_trim(text + 1));
}

/* Splits TEXT, trimmed and not empty, at the first "="; false when it has a problem. */
static bool parse_split(struct loader *loader, char *text, char **key, char **value)
{
	char *separator = text + strcspn(text, "=:");
	char found = *separator;
	char quoted[TEXT_NAME_MAX * 4 + 3];
	struct text shown = TEXT_INIT(quoted);

	*value = found == '\0' ? separator : parse_trim(separator + 1);
	*separator = '\0';
	*key = parse_trim(text);
	if (found == '=' && **key != '\0')
		return true;
	/* What follows the first word is not shown: it may be a token. */
	(*key)[strcspn(*key, " \t")] = '\0';
	value_quote(&shown, *key);
	if (found == ':')
		loader_error(loader, loader->line, "\":\" after %s instead of \"=\"", quoted);
	else if (found == '=')
		loader_error(loader, loader->line, "no key before \"=\"");
	else
		loader_error(loader, loader->line, "no \"=\" after %s", quoted);
	return false;
}

/* inih's reader: the next pair that has no problem so far, as a line of its own. */
static char *parse_read(char *buffer, int size, void *stream)
{
	struct parser *parser = stream;
	struct loader *loader = parser->loader;
	bool valid;

	while (parse_get_line(parser, &valid)) {
		char *text = parser->line;
		char *key, *value;

		if (!valid)
			continue;
		if (loader->line == 1 && strncmp(text, "\xef\xbb\xbf", 3) == 0)
			text += 3;
		while (value_is_blank(*text))
			text++;
		if (*text == '#' || *text == ';')
			continue;
		text = parse_trim(text);
		if (*text == '\0')
			continue;
		if (*text == '[') {
			parse_section(parser, text);
			continue;
		}
		if (!parse_split(loader, text, &key, &value))
			continue;
		parser->option = loader_find(loader, key, value);
		if (parser->option == NULL)
			continue;
		if (snprintf(buffer, (size_t)size, "value=%s\n", value) < size)
			return buffer;
		loader_error(loader, loader->line,
			     "the value is longer than the library inih was built for");
	}
	return NULL;
}

static int parse_pair(void *user, const char *section, const char *name, const char *value)
{
	struct parser *parser = user;

	(void)section;
	(void)name;
	loader_set(parser->loader, parser->option, value);
	return 1;
}

void parse(struct loader *loader, FILE *in)
{
	struct parser parser = {.loader = loader, .in = in};
	struct stat status;

	loader->readable_by_others =
		fstat(fileno(in), &status) == 0 && (status.st_mode & S_IROTH) != 0;
	/* An error is not one of ours, which the handler does not report: memory is missing. */
	if (ini_parse_stream(parse_read, &parser, parse_pair, &parser) != 0)
		loader->no_memory = true;
}
