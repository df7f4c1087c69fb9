#include "broker/sink.h"

#include <stdlib.h>
#include <string.h>

#include "base/lock.h"

void flush_set_init(struct flush_set *set)
{
	set->sinks = set->inline_sinks;
	set->count = 0;
	set->capacity = FLUSH_SET_INLINE;
}

static bool flush_set_grow(struct flush_set *set)
{
	size_t capacity = set->capacity * 4;
	struct sink **sinks = malloc(capacity * sizeof(*sinks));

	if (sinks == NULL)
		return false;
	memcpy(sinks, set->sinks, set->count * sizeof(*sinks));
	if (set->sinks != set->inline_sinks)
		free(set->sinks);
	set->sinks = sinks;
	set->capacity = capacity;
	return true;
}

bool flush_set_add(struct flush_set *set, struct sink *sink)
{
	if (set->count == set->capacity && !flush_set_grow(set)) {
		sink->ops->flush_later(sink);
		return false;
	}
	sink->ops->hold(sink);
	set->sinks[set->count++] = sink;
	return true;
}

void flush_set_run_some(struct flush_set *set, size_t max)
{
	lock_assert_none_held();
	for (size_t i = 0; i < set->count; i++) {
		struct sink *sink = set->sinks[i];

		if (i < max)
			sink->ops->flush(sink, set);
		else
			sink->ops->flush_elsewhere(sink, set);
		sink->ops->release(sink);
	}
	if (set->sinks != set->inline_sinks)
		free(set->sinks);
	flush_set_init(set);
}

void flush_set_run(struct flush_set *set)
{
	flush_set_run_some(set, SIZE_MAX);
}
