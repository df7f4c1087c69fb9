/*
 * A reference-counted buffer: the bytes of one large message, shared by every outbox that it is
 * queued in. Whoever creates it may write to it until it is shared; from then on it is immutable.
 * Any thread may take or drop a reference that it can prove to exist.
 */
#ifndef BASE_BUF_H
#define BASE_BUF_H

#include "base/base.h"

#include <stdatomic.h>

struct buf {
	atomic_uint references;
	size_t length;
	uint8_t data[];
};

/* A buffer of LENGTH bytes, not cleared, with one reference; NULL when memory cannot be had. */
struct buf *buf_new(size_t length);
struct buf *buf_ref(struct buf *buf);

/* Drops the reference in *BUF (NULL is allowed) and sets it to NULL; the last one frees. */
void buf_unref(struct buf **buf);

#endif
