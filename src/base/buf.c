/* The reference-counted buffer. */
#include "base/buf.h"

#include <limits.h>
#include <stdlib.h>

struct buf *buf_new(size_t length)
{
	struct buf *buf;

	if (length > PTRDIFF_MAX - sizeof(*buf))
		return NULL;
	buf = malloc(sizeof(*buf) + length);
	if (buf == NULL)
		return NULL;
	atomic_init(&buf->references, 1);
	buf->length = length;
	return buf;
}

struct buf *buf_ref(struct buf *buf)
{
	/* Relaxed: the caller's own reference already orders what it sees of the buffer. */
	unsigned before = atomic_fetch_add_explicit(&buf->references, 1, memory_order_relaxed);

	ASSERT(before > 0 && before < UINT_MAX);
	return buf;
}

void buf_unref(struct buf **buf)
{
	struct buf *gone = *buf;
	unsigned before;

	*buf = NULL;
	if (gone == NULL)
		return;
	/* Release and acquire: whoever frees comes after every other owner's last look. */
	before = atomic_fetch_sub_explicit(&gone->references, 1, memory_order_acq_rel);
	ASSERT(before > 0);
	if (before == 1)
		free(gone);
}
