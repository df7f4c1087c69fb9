/* What the files of this room share. */
#ifndef ADMIN_ADMIN_PRIV_H
#define ADMIN_ADMIN_PRIV_H

#include "admin/admin.h"

#define ADMIN_MAGIC 0x61646d69u

struct http;

struct admin {
	unsigned magic;
	struct net *net;
	struct broker *broker;
	int64_t started_ms;
	struct http *http; /* NULL: nothing is bound */
};

/* struct broker_control: the context is the admin. */
bool control_known(struct span name);
struct buf *control_answer(void *context, struct span name, struct span request);

/*
 * All metrics in Prometheus' text format 0.0.4; *LENGTH without the terminating NUL. The caller
 * frees it. NULL: no memory.
 */
char *metrics_render(struct admin *admin, size_t *length);

#endif
