/*
 * The loader on any bytes as a file. Either there is a configuration, which printed and loaded
 * again is the same, or there is an error; and problems come in the order of the file.
 */
#include "config/configuration.h"

#include <stdlib.h>
#include <string.h>

#include "fuzz.h"

static struct configuration *load(const void *bytes, size_t length,
				  struct configuration_problems *problems)
{
	FILE *in = fmemopen((void *)(uintptr_t)bytes, length, "r");
	struct configuration *configuration;

	ASSERT(in != NULL);
	configuration = configuration_load_stream(in, "f", problems);
	fclose(in);
	return configuration;
}

static void print(const struct configuration *configuration, char **text, size_t *length)
{
	FILE *out = open_memstream(text, length);

	ASSERT(out != NULL);
	configuration_print(configuration, out);
	ASSERT(fclose(out) == 0);
}

/* Each problem is `f:LINE: text`, on one line, and no line is smaller than the one before. */
static void check_order(const struct string_list *list)
{
	unsigned long before = 0;

	for (size_t i = 0; i < list->count; i++) {
		const char *problem = list->items[i];
		char *end;
		unsigned long line;

		ASSERT(strncmp(problem, "f:", 2) == 0);
		line = strtoul(problem + 2, &end, 10);
		ASSERT(line >= before && strncmp(end, ": ", 2) == 0 && end[2] != '\0');
		ASSERT(strchr(problem, '\n') == NULL);
		before = line;
	}
}

static void check_printed(const struct configuration *configuration)
{
	struct configuration_problems problems;
	struct configuration *again;
	char *once, *twice;
	size_t length, length_again;

	print(configuration, &once, &length);
	again = load(once, length, &problems);
	ASSERT(again != NULL);
	print(again, &twice, &length_again);
	/* All but the line that says that a token was left out. */
	if (configuration->auth.token == NULL || configuration->auth.token_file != NULL) {
		ASSERT(length == length_again && memcmp(once, twice, length) == 0);
	}
	free(once);
	free(twice);
	configuration_unref(&again);
	configuration_problems_free(&problems);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct configuration_problems problems;
	struct configuration *configuration;

	if (size == 0)
		return 0;
	configuration = load(data, size, &problems);
	ASSERT((configuration != NULL) == (problems.errors.count == 0));
	check_order(&problems.errors);
	check_order(&problems.warnings);
	if (configuration != NULL) {
		(void)configuration_worst_case_memory(configuration);
		check_printed(configuration);
	}
	configuration_unref(&configuration);
	configuration_problems_free(&problems);
	return 0;
}
