/*
 * store_floor PORT FOLDER: the least that a server can do that stores what it acknowledges. Frames
 * are as floor.c's; what one round of reads has brought, from all connections, becomes rows of one
 * channel in one transaction of the store that liminald has, and each frame gets its answer with
 * its sequence when that is committed. One thread does all of it. It checks nothing, and is a
 * yardstick, not a server: loopback only.
 */
#include "bench/floor.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "store/store.h"
#include "wire/wire.h"

#define READ_SIZE (256 * 1024)
#define CLIENTS_MAX 64

/* Of a frame: what stands in front of its envelope; and of an envelope in front of its payload. */
#define FRAME_HEAD 24
#define ENVELOPE_HEAD (WIRE_SCHEMA_SIZE + 10)

struct reader {
	int fd;
	uint8_t *bytes;
	size_t kept;	/* a frame that has not come whole */
	size_t count;	/* of frames in this round */
	uint64_t first; /* their sequences begin here */
};

static struct pollfd polls[CLIENTS_MAX + 1];
static struct reader readers[CLIENTS_MAX];
static size_t reader_count;

static struct store *store;
static struct store_channel channel;
static struct buf *row;
static struct store_row pending; /* what is in `row` */
static uint8_t answers[READ_SIZE];

_Noreturn static void fail(const char *what)
{
	(void)fprintf(stderr, "store_floor: %s: %s\n", what, store != NULL ? store->reason : "");
	exit(1);
}

static void check(enum store_result result, const char *what)
{
	if (result != STORE_OK)
		fail(what);
}

static int64_t now_ms(void)
{
	struct timespec now;

	(void)clock_gettime(CLOCK_REALTIME, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void write_row(void)
{
	if (row->length == 0)
		return;
	pending.last = channel.last;
	pending.time_ms = channel.time_ms;
	pending.data = row;
	check(store->ops->row_add(store, channel.number, &pending), "a row");
	row->length = 0;
}

/* One message: its record into the row, its numbers into the channel. */
static void add_message(const uint8_t *envelope, size_t size)
{
	uint64_t charged = size - ENVELOPE_HEAD + 2 + 64;

	if (row->length + STORE_RECORD_HEAD + size > STORE_ROW_BYTES)
		write_row();
	if (row->length == 0)
		pending = (struct store_row){.first = channel.last + 1, .before = channel.charged};
	channel.last++;
	channel.kept++;
	channel.charged += charged;
	channel.kept_charged += charged;
	pending.count++;
	pending.charged += charged;
	wire_put_u64(row->data + row->length, channel.last);
	wire_put_u32(row->data + row->length + 8, (uint32_t)size);
	row->data[row->length + 12] = 0;
	memcpy(row->data + row->length + STORE_RECORD_HEAD, envelope, size);
	row->length += STORE_RECORD_HEAD + size;
}

/* Its place stays empty: poll(2) looks at no descriptor below zero. */
static void leave(struct reader *reader)
{
	(void)close(reader->fd);
	free(reader->bytes);
	*reader = (struct reader){.fd = -1};
	polls[1 + (reader - readers)].fd = -1;
}

/* The whole frames of what has come. */
static void take(struct reader *reader)
{
	ssize_t got = recv(reader->fd, reader->bytes + reader->kept, READ_SIZE - reader->kept, 0);
	size_t size, offset = 0;

	reader->count = 0;
	if (got <= 0) {
		leave(reader);
		return;
	}
	size = reader->kept + (size_t)got;
	reader->first = channel.last + 1;
	while (size - offset >= WIRE_HEADER_SIZE) {
		size_t length = WIRE_HEADER_SIZE + wire_get_header(reader->bytes + offset).length;

		if (size - offset < length)
			break;
		add_message(reader->bytes + offset + FRAME_HEAD, length - FRAME_HEAD);
		reader->count++;
		offset += length;
	}
	reader->kept = size - offset;
	memmove(reader->bytes, reader->bytes + offset, reader->kept);
}

static void answer(struct reader *reader)
{
	size_t size = reader->count * FLOOR_ANSWER_SIZE;

	for (size_t i = 0; i < reader->count; i++)
		wire_put_publish_ack(answers + i * FLOOR_ANSWER_SIZE, 0, 1, reader->first + i);
	reader->count = 0;
	for (size_t sent = 0; sent < size;) {
		ssize_t step = send(reader->fd, answers + sent, size - sent, 0);

		if (step < 0)
			return; /* it has gone, and the next read says so */
		sent += (size_t)step;
	}
}

static void accept_one(int listener)
{
	int fd = accept(listener, NULL, NULL), on = 1;

	if (fd < 0 || reader_count == CLIENTS_MAX)
		fail("too many connections");
	(void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	readers[reader_count] = (struct reader){.fd = fd, .bytes = malloc(READ_SIZE)};
	if (readers[reader_count].bytes == NULL)
		fail("no memory");
	polls[1 + reader_count++] = (struct pollfd){.fd = fd, .events = POLLIN};
}

/* Reads what there is, commits it, answers it. */
static void turn(int listener)
{
	uint64_t before = channel.last;

	(void)poll(polls, (nfds_t)(1 + reader_count), -1);
	if (polls[0].revents != 0) {
		accept_one(listener);
		return;
	}
	channel.time_ms = now_ms();
	check(store->ops->begin(store), "begin");
	for (size_t i = 0; i < reader_count; i++)
		if (polls[1 + i].revents != 0)
			take(&readers[i]);
	write_row();
	if (channel.last == before) {
		store->ops->rollback(store);
		return;
	}
	check(store->ops->channel_put(store, &channel), "the channel");
	check(store->ops->commit(store), "commit");
	for (size_t i = 0; i < reader_count; i++) {
		if (polls[1 + i].revents != 0 && readers[i].count > 0)
			answer(&readers[i]);
	}
	check(store->ops->checkpoint(store), "checkpoint");
}

static void open_store(const char *folder)
{
	char error[1024];
	struct text text = TEXT_INIT(error);

	if (!store_open_sqlite(folder, &store, &text)) {
		(void)fprintf(stderr, "store_floor: %s\n", error);
		exit(1);
	}
	check(store->ops->begin(store), "begin");
	check(store->ops->channel_open(store, SPAN_LITERAL("c00000"), &channel), "channel");
	check(store->ops->commit(store), "commit");
	row = buf_new(STORE_ROW_BYTES);
	if (row == NULL)
		fail("no memory");
	row->length = 0;
}

int main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;

	if (argc != 3) {
		(void)fprintf(stderr, "usage: store_floor PORT FOLDER\n");
		return 2;
	}
	open_store(argv[2]);
	address.sin_port = htons((uint16_t)atoi(argv[1]));
	if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) != 0 ||
	    bind(listener, (struct sockaddr *)&address, sizeof(address)) != 0 ||
	    listen(listener, 1024) != 0) {
		perror("store_floor");
		return 1;
	}
	polls[0] = (struct pollfd){.fd = listener, .events = POLLIN};
	for (;;)
		turn(listener);
}
