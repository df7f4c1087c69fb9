/*
 * What the floor and its client say to each other before frames flow: the client this, in the
 * byte order of the machine that both run on; the floor one byte, once it knows the client. Frames
 * and answers begin as liminald's do, with a header that has their length.
 */
#ifndef BENCH_FLOOR_H
#define BENCH_FLOOR_H

#include "base/base.h"

#define FLOOR_PUBLISHER 'P'
#define FLOOR_SUBSCRIBER 'S'
#define FLOOR_SILENT 'I'
#define FLOOR_REQUESTER 'R'
#define FLOOR_WORKER 'W'

#define FLOOR_ANSWER_SIZE 18 /* its header included */

struct floor_hello {
	uint32_t role;
	uint32_t index; /* of a requester: it stands in its frames at `sender_at` */
	uint32_t sender_at;
};

#endif
