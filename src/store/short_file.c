/*
 * A database that is shorter than it should be. While a checkpoint is under way that is ordinary: a
 * crash may have kept what it wrote at the end of the file, or not, and the log still has it all.
 * Otherwise somebody has cut the file, and SQLite would fill what is missing with zeros when it
 * next writes. So the log is read here, in the format that SQLite documents: a head, then frames of
 * a page each, whose checksums go on from one to the next; those up to the last that ends a
 * transaction count.
 */
#include "store/sqlite_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DATABASE_HEAD 100
#define LOG_HEAD 32
#define FRAME_HEAD 24

static uint32_t big32(const uint8_t *bytes)
{
	return (uint32_t)bytes[0] << 24 | (uint32_t)bytes[1] << 16 | (uint32_t)bytes[2] << 8 |
	       bytes[3];
}

static uint32_t little32(const uint8_t *bytes)
{
	return (uint32_t)bytes[3] << 24 | (uint32_t)bytes[2] << 16 | (uint32_t)bytes[1] << 8 |
	       bytes[0];
}

struct database_head {
	uint64_t page_size, pages; /* as it says */
	uint64_t pages_there;	   /* whole ones */
};

struct log {
	int fd;
	uint64_t page_size, pages_there; /* of the database */
	bool big_endian;		 /* words of the checksum */
	uint8_t salt[8];
	uint32_t checksum[2];
	uint8_t *frame;
	uint8_t *found; /* a bit for each page that the database lacks */
	uint64_t lacking;
};

/* Reads LENGTH bytes: 1; 0 when the file ends before; -1 with errno. */
static int read_at(int fd, uint64_t offset, void *bytes, size_t length)
{
	size_t done = 0;

	while (done < length) {
		ssize_t got =
			pread(fd, (uint8_t *)bytes + done, length - done, (off_t)(offset + done));

		if (got == 0)
			return 0;
		if (got < 0 && errno != EINTR)
			return -1;
		if (got > 0)
			done += (size_t)got;
	}
	return 1;
}

static enum file_result database_read_head(const char *path, struct database_head *head)
{
	static const char magic[] = "SQLite format 3"; /* its NUL belongs to it */
	uint8_t bytes[DATABASE_HEAD];
	struct stat status;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int got, failure;

	if (fd < 0)
		return FILE_UNREADABLE;
	got = read_at(fd, 0, bytes, sizeof(bytes));
	if (got == 1 && fstat(fd, &status) < 0)
		got = -1;
	failure = errno;
	(void)close(fd);
	errno = failure;
	if (got < 0)
		return FILE_UNREADABLE;
	if (got == 0)
		return FILE_TRUNCATED;
	if (memcmp(bytes, magic, sizeof(magic)) != 0)
		return FILE_NO_DATABASE;
	head->page_size = (uint64_t)bytes[16] << 8 | bytes[17];
	if (head->page_size == 1)
		head->page_size = 65536;
	if (head->page_size < 512 || (head->page_size & (head->page_size - 1)) != 0)
		return FILE_NO_DATABASE;
	head->pages = big32(bytes + 28);
	head->pages_there = (uint64_t)status.st_size / head->page_size;
	return FILE_COMPLETE;
}

static void log_sum(struct log *log, const uint8_t *bytes, size_t length)
{
	for (size_t i = 0; i < length; i += 8) {
		uint32_t first = log->big_endian ? big32(bytes + i) : little32(bytes + i);
		uint32_t second = log->big_endian ? big32(bytes + i + 4) : little32(bytes + i + 4);

		log->checksum[0] += first + log->checksum[1];
		log->checksum[1] += second + log->checksum[0];
	}
}

/* 1 when the log has a head that counts, for pages of the database's size. */
static int log_read_head(struct log *log)
{
	uint8_t head[LOG_HEAD];
	int got = read_at(log->fd, 0, head, sizeof(head));

	if (got != 1)
		return got;
	if ((big32(head) & ~UINT32_C(1)) != 0x377f0682 || big32(head + 8) != log->page_size)
		return 0;
	log->big_endian = (big32(head) & 1) != 0;
	memcpy(log->salt, head + 16, sizeof(log->salt));
	log_sum(log, head, 24);
	return log->checksum[0] == big32(head + 24) && log->checksum[1] == big32(head + 28);
}

/* 1 when frame NUMBER (from 0) counts; it is in log->frame then. */
static int log_read_frame(struct log *log, uint64_t number)
{
	size_t size = FRAME_HEAD + (size_t)log->page_size;
	int got = read_at(log->fd, LOG_HEAD + number * size, log->frame, size);

	if (got != 1)
		return got;
	if (memcmp(log->frame + 8, log->salt, sizeof(log->salt)) != 0 || big32(log->frame) == 0)
		return 0;
	log_sum(log, log->frame, 8);
	log_sum(log, log->frame + FRAME_HEAD, (size_t)log->page_size);
	return log->checksum[0] == big32(log->frame + 16) &&
	       log->checksum[1] == big32(log->frame + 20);
}

/* The frames up to the last transaction's end: how many, and how long the database is then. */
static int log_find_end(struct log *log, uint64_t *frames, uint64_t *pages)
{
	uint64_t number = 0;
	int got;

	while ((got = log_read_frame(log, number)) == 1) {
		number++;
		if (big32(log->frame + 4) != 0) {
			*frames = number;
			*pages = big32(log->frame + 4);
		}
	}
	return got;
}

static void log_note(struct log *log, uint64_t page)
{
	uint64_t place = page - 1 - log->pages_there;

	if (page <= log->pages_there || place >= log->lacking)
		return;
	log->found[place / 8] |= (uint8_t)(1U << place % 8);
}

/* Whether the first FRAMES frames have every page that the database lacks: 1, 0, or -1. */
static int log_completes(struct log *log, uint64_t frames)
{
	uint64_t found = 0;

	/* Without that many frames not all can be there, however much the head claims. */
	if (log->lacking > frames)
		return 0;
	log->found = calloc(1, (size_t)(log->lacking / 8 + 1));
	if (log->found == NULL)
		return -1;
	for (uint64_t number = 0; number < frames; number++) {
		uint8_t page[4];
		int got = read_at(log->fd, LOG_HEAD + number * (FRAME_HEAD + log->page_size), page,
				  sizeof(page));

		if (got != 1)
			return got;
		log_note(log, big32(page));
	}
	for (uint64_t place = 0; place < log->lacking; place++)
		found += log->found[place / 8] >> place % 8 & 1;
	return found == log->lacking;
}

/* Compares the database with what its log says: 1: it is complete, -1: errno. */
static int log_compare(struct log *log, const struct database_head *head)
{
	uint64_t frames = 0, pages = head->pages;
	int got = log->fd < 0 ? 0 : log_read_head(log);

	if (got == 1)
		got = log_find_end(log, &frames, &pages);
	if (got < 0)
		return -1;
	if (pages <= head->pages_there)
		return 1;
	log->lacking = pages - head->pages_there;
	return log_completes(log, frames);
}

enum file_result short_file(const char *database, const char *path)
{
	struct database_head head = {0};
	struct log log = {0};
	enum file_result result = database_read_head(database, &head);
	int complete, failure;

	/* The head of a database that is long enough may be old, if the log has a newer one; then
	 * SQLite finds in the log what it needs. */
	if (result != FILE_COMPLETE)
		return result;
	log.page_size = head.page_size;
	log.pages_there = head.pages_there;
	log.fd = open(path, O_RDONLY | O_CLOEXEC);
	if (log.fd < 0 && errno != ENOENT)
		return FILE_UNREADABLE;
	log.frame = malloc(FRAME_HEAD + (size_t)head.page_size);
	if (log.frame == NULL) {
		errno = ENOMEM;
		complete = -1;
	} else {
		complete = log_compare(&log, &head);
	}
	failure = errno;
	if (log.fd >= 0)
		(void)close(log.fd);
	free(log.frame);
	free(log.found);
	errno = failure;
	if (complete < 0)
		return FILE_UNREADABLE;
	return complete == 0 ? FILE_TRUNCATED : FILE_COMPLETE;
}
