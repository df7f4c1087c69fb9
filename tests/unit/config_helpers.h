/*
 * What the tests of the configuration share: loading a text as the file `x.conf`, the problems as
 * one text, the printed configuration as one text, and files in a folder of the test's own.
 */
#ifndef TESTS_UNIT_CONFIG_HELPERS_H
#define TESTS_UNIT_CONFIG_HELPERS_H

#include "config/configuration.h"

#include <check.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Loads LENGTH bytes. */
static inline struct configuration *load_bytes(const char *bytes, size_t length,
					       struct configuration_problems *problems)
{
	struct configuration *configuration;
	/* fmemopen need not take an empty buffer: a comment stands for it. */
	FILE *in = length == 0 ? fmemopen((void *)(uintptr_t) "#", 1, "r")
			       : fmemopen((void *)(uintptr_t)bytes, length, "r");

	ck_assert_ptr_nonnull(in);
	configuration = configuration_load_stream(in, "x.conf", problems);
	fclose(in);
	return configuration;
}

/* The lines of LIST, each with its line break; to be freed, like all texts here. */
static inline char *join(const struct string_list *list)
{
	size_t length = 0;
	char *text;

	for (size_t i = 0; i < list->count; i++)
		length += strlen(list->items[i]) + 1;
	text = malloc(length + 1);
	ck_assert_ptr_nonnull(text);
	text[0] = '\0';
	for (size_t i = 0; i < list->count; i++) {
		strcat(text, list->items[i]);
		strcat(text, "\n");
	}
	return text;
}

/* Loads TEXT, which has no error; warnings are not looked at. */
static inline struct configuration *load(const char *text)
{
	struct configuration_problems problems;
	struct configuration *configuration = load_bytes(text, strlen(text), &problems);
	char *errors = join(&problems.errors);

	ck_assert_str_eq(errors, "");
	ck_assert_ptr_nonnull(configuration);
	free(errors);
	configuration_problems_free(&problems);
	return configuration;
}

/* TEXT has exactly these errors, a line each, and no configuration comes of it. */
static inline void expect_errors(const char *text, const char *expected)
{
	struct configuration_problems problems;
	struct configuration *configuration = load_bytes(text, strlen(text), &problems);
	char *errors = join(&problems.errors);

	ck_assert_str_eq(errors, expected);
	ck_assert_ptr_null(configuration);
	free(errors);
	configuration_problems_free(&problems);
}

/* TEXT is valid and has exactly these warnings. */
static inline void expect_warnings(const char *text, const char *expected)
{
	struct configuration_problems problems;
	struct configuration *configuration = load_bytes(text, strlen(text), &problems);
	char *errors = join(&problems.errors), *warnings = join(&problems.warnings);

	ck_assert_str_eq(errors, "");
	ck_assert_str_eq(warnings, expected);
	ck_assert_ptr_nonnull(configuration);
	free(errors);
	free(warnings);
	configuration_unref(&configuration);
	configuration_problems_free(&problems);
}

/* What `liminald -T` prints. */
static inline char *printed(const struct configuration *configuration)
{
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	ck_assert_ptr_nonnull(out);
	configuration_print(configuration, out);
	ck_assert_int_eq(fclose(out), 0);
	return text;
}

static inline char *format(const char *words, ...) PRINTF_LIKE(1, 2);

static inline char *format(const char *words, ...)
{
	va_list arguments;
	char *text = NULL;
	size_t length;
	FILE *out = open_memstream(&text, &length);

	ck_assert_ptr_nonnull(out);
	va_start(arguments, words);
	vfprintf(out, words, arguments);
	va_end(arguments);
	ck_assert_int_eq(fclose(out), 0);
	return text;
}

/* LENGTH times C. */
static inline char *repeated(char c, size_t length)
{
	char *text = malloc(length + 1);

	ck_assert_ptr_nonnull(text);
	memset(text, c, length);
	text[length] = '\0';
	return text;
}

/* --- the fixture: no variable of ours in the environment, and a current folder of our own ------
 */

static char folder[4096];

static inline void folder_setup(void)
{
	static const char *const variables[] = {
		"LIMINAL_LISTEN_ADDRESS",   "LIMINAL_HEALTH_LISTEN_ADDRESS",
		"LIMINAL_DRAIN_TIMEOUT_MS", "LIMINAL_PERSISTENCE_PATH",
		"LIMINAL_AUTH_TOKEN",
	};
	const char *parent = getenv("TMPDIR");

	for (size_t i = 0; i < ARRAY_LENGTH(variables); i++)
		unsetenv(variables[i]);
	snprintf(folder, sizeof(folder), "%s/liminal-config-XXXXXX",
		 parent != NULL ? parent : "/tmp");
	ck_assert_ptr_nonnull(mkdtemp(folder));
	ck_assert_int_eq(chdir(folder), 0);
	/* As the program sees it, which links on the way do not change. */
	ck_assert_ptr_nonnull(getcwd(folder, sizeof(folder)));
}

/* A file of the fixture's folder, which the fixture removes. */
static const char *const folder_files[] = {"token", "schema", "x.conf", "pipe", "folder"};

static inline void folder_teardown(void)
{
	ck_assert_int_eq(chdir(folder), 0);
	for (size_t i = 0; i < ARRAY_LENGTH(folder_files); i++)
		(void)remove(folder_files[i]);
	ck_assert_int_eq(chdir("/"), 0);
	ck_assert_int_eq(rmdir(folder), 0);
}

static inline void write_file(const char *name, const char *bytes, size_t length)
{
	FILE *out = fopen(name, "w");

	ck_assert_ptr_nonnull(out);
	ck_assert_uint_eq(fwrite(bytes, 1, length, out), length);
	ck_assert_int_eq(fclose(out), 0);
}

#endif
