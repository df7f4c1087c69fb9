/*
 * json_depth_ok follows strings and brackets, nothing else. On a text that is not JSON the count
 * goes wrong only behind the place where a parser stops: until there every string is closed as it
 * was opened, and a bracket outside of strings is one that the parser has descended into.
 *
 * json_read never lets jansson see an allocation fail. The parser is left by longjmp instead, and
 * the blocks that it had are freed: it holds nothing else, and it is called in one place. Each
 * block has a head for that, which links those of a parse that is under way.
 */
#include "base/json_guard.h"

#include <pthread.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdlib.h>

#include "base/list.h"

bool json_depth_ok(struct span text, size_t limit)
{
	size_t depth = 0;
	bool quoted = false;

	for (size_t i = 0; i < text.length; i++) {
		switch (text.data[i]) {
		case '"':
			quoted = !quoted;
			break;
		case '\\':
			if (quoted)
				i++;
			break;
		case '[':
		case '{':
			if (!quoted && depth++ >= limit)
				return false;
			break;
		case ']':
		case '}':
			if (!quoted && depth > 0)
				depth--;
			break;
		default:
			break;
		}
	}
	return true;
}

struct json_block {
	struct list in_parse; /* linked to itself outside of one */
	max_align_t bytes[];
};

struct json_parse {
	struct list blocks;
	jmp_buf no_memory;
};

static _Thread_local struct json_parse *json_under_way;

static void *json_block_new(size_t size)
{
	struct json_block *block = malloc(size_add(sizeof(*block), size));

	if (block == NULL) {
		if (json_under_way != NULL)
			longjmp(json_under_way->no_memory, 1);
		return NULL;
	}
	list_init(&block->in_parse);
	if (json_under_way != NULL)
		list_append(&json_under_way->blocks, &block->in_parse);
	return block->bytes;
}

static void json_block_free(void *bytes)
{
	struct json_block *block;

	if (bytes == NULL)
		return;
	block = CONTAINER_OF(bytes, struct json_block, bytes);
	list_remove(&block->in_parse);
	free(block);
}

static void json_use_blocks(void)
{
	json_set_alloc_funcs(json_block_new, json_block_free);
}

/* False when memory was missing. */
static bool json_parse_run(struct json_parse *parse, struct span text, size_t flags, json_t **value,
			   json_error_t *error)
{
	if (setjmp(parse->no_memory) != 0)
		return false;
	*value = json_loadb((const char *)text.data, text.length, flags, error);
	return true;
}

bool json_read(struct span text, size_t flags, json_t **value, json_error_t *error)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct json_parse parse;
	bool complete;

	*value = NULL;
	(void)pthread_once(&once, json_use_blocks);
	list_init(&parse.blocks);
	json_under_way = &parse;
	complete = json_parse_run(&parse, text, flags, value, error);
	json_under_way = NULL;
	while (!list_empty(&parse.blocks)) {
		struct json_block *block =
			LIST_ENTRY(parse.blocks.next, struct json_block, in_parse);

		if (complete)
			list_remove(&block->in_parse);
		else
			json_block_free(block->bytes);
	}
	return complete;
}
