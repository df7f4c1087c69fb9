/*
 * TARGET FILE|FOLDER...: calls a fuzz target with each file, and with each file of each folder, in
 * the order of their names. It takes libFuzzer's place where the compiler has none, and `make
 * check` replays the corpora through it. Each file is in memory of just its size, so that a checker
 * sees what is read beyond it. A file that the target crashes on ends the program; its name is the
 * last thing on standard error.
 */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "fuzz.h"

static unsigned long passed, failed;

static void replay_failed(const char *path)
{
	fprintf(stderr, "%s: %s\n", path, strerror(errno));
	failed++;
}

/* The bytes of FILE, which the caller frees; NULL with errno set. */
static uint8_t *replay_read(FILE *file, size_t *length)
{
	uint8_t *bytes = NULL, *grown;
	size_t size = 0;

	*length = 0;
	do {
		if (*length == size) {
			size = size_max(4096, 2 * size);
			grown = realloc(bytes, size);
			if (grown == NULL)
				goto fail;
			bytes = grown;
		}
		*length += fread(bytes + *length, 1, size - *length, file);
		if (ferror(file))
			goto fail;
	} while (!feof(file));
	grown = malloc(size_max(*length, 1));
	if (grown == NULL)
		goto fail;
	memcpy(grown, bytes, *length);
	free(bytes);
	return grown;
fail:
	free(bytes);
	return NULL;
}

static void replay_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	uint8_t *bytes = NULL;
	size_t length;

	if (file != NULL)
		bytes = replay_read(file, &length);
	if (bytes == NULL) {
		replay_failed(path);
	} else {
		fprintf(stderr, "%s\n", path);
		LLVMFuzzerTestOneInput(bytes, length);
		passed++;
	}
	free(bytes);
	if (file != NULL)
		fclose(file);
}

static void replay_folder(const char *path)
{
	struct dirent **entries;
	int count = scandir(path, &entries, NULL, alphasort);

	if (count < 0) {
		replay_failed(path);
		return;
	}
	for (int i = 0; i < count; i++) {
		size_t size = strlen(path) + 1 + strlen(entries[i]->d_name) + 1;
		char *file = malloc(size);

		if (file == NULL) {
			replay_failed(path);
		} else if (entries[i]->d_name[0] != '.') {
			snprintf(file, size, "%s/%s", path, entries[i]->d_name);
			replay_file(file);
		}
		free(file);
		free(entries[i]);
	}
	free(entries);
}

int main(int argument_count, char **arguments)
{
	for (int i = 1; i < argument_count; i++) {
		struct stat status;

		if (stat(arguments[i], &status) != 0)
			replay_failed(arguments[i]);
		else if (S_ISDIR(status.st_mode))
			replay_folder(arguments[i]);
		else
			replay_file(arguments[i]);
	}
	if (passed == 0 && failed == 0) {
		fputs("no file was replayed\n", stderr);
		failed++;
	}
	printf("%lu passed, %lu failed\n", passed, failed);
	return failed > 0;
}
