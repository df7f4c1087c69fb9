/* The name that was probably meant: the one with the smallest edit distance, if it is small. */
#include "config/config_priv.h"

#include <string.h>

/* Longer names than ours: no word that is as long resembles one of them. */
#define NEAREST_MAX 64

/* Insertions, deletions and replacements that make B out of A; both at most NEAREST_MAX long. */
static size_t nearest_distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
	size_t row[NEAREST_MAX + 1]; /* from the first i characters of A to each start of B */

	for (size_t j = 0; j <= b_length; j++)
		row[j] = j;
	for (size_t i = 1; i <= a_length; i++) {
		size_t diagonal = row[0];

		row[0] = i;
		for (size_t j = 1; j <= b_length; j++) {
			size_t replaced = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			row[j] = size_min(replaced, 1 + size_min(row[j], row[j - 1]));
		}
	}
	return row[b_length];
}

void nearest_consider(struct nearest *nearest, const char *candidate)
{
	size_t word_length = strlen(nearest->word);
	size_t length = strlen(candidate);
	size_t distance;

	if (word_length > NEAREST_MAX || length > NEAREST_MAX)
		return;
	distance = nearest_distance(nearest->word, word_length, candidate, length);
	/* Two of five characters may differ; beyond that a suggestion is a guess. */
	if (5 * distance > 2 * size_max(word_length, length))
		return;
	if (nearest->best == NULL || distance < nearest->distance) {
		nearest->best = candidate;
		nearest->distance = distance;
	}
}

void nearest_add(const struct nearest *nearest, struct text *text)
{
	if (nearest->best != NULL)
		text_add(text, "; did you mean \"%s\"?", nearest->best);
}
