/*
 * The id of a schema document, and FNV-1a-64, which it is made of and by which clients derive a
 * conversation id from a label. Pure functions.
 */
#ifndef BASE_SCHEMA_H
#define BASE_SCHEMA_H

#include "base/base.h"

#define SCHEMA_ID_SIZE 32

uint64_t fnv1a64(const uint8_t *bytes, size_t length);

/* DOCUMENT are the raw bytes; `{}` stands for a channel without a schema. */
void schema_id(const uint8_t *document, size_t length, uint8_t id[SCHEMA_ID_SIZE]);

#endif
