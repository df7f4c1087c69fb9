#include "storage/faulty_vfs.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES 8
#define FILE_BYTES (4u * 1024 * 1024)
#define CHANGES 20000
#define OPERATIONS 20000
#define CHANGE_BYTES (16u * 1024 * 1024)

/* A write, or with bytes == NULL a truncation to OFFSET. */
struct change {
	size_t offset, length;
	uint8_t *bytes;
};

struct disk_file {
	ino_t inode; /* 0: none; names change */
	size_t stable_size;
	size_t change_count;
	struct change changes[CHANGES]; /* since it was synced, oldest first */
	uint8_t stable[FILE_BYTES];
};

/* In memory that processes share. */
struct disk {
	char folder[200];
	enum fault fault;
	unsigned at, count, operations;
	bool happened;
	bool was_sync[OPERATIONS];
	struct disk_file files[FILES];
	size_t change_bytes_used;
	uint8_t change_bytes[CHANGE_BYTES];
};

static struct disk *disk;

/* --- the disk ------------------------------------------------------------------------------ */

/* The file with INODE, or NULL. */
static struct disk_file *disk_find(ino_t inode)
{
	for (size_t i = 0; i < FILES; i++)
		if (disk->files[i].inode == inode)
			return &disk->files[i];
	return NULL;
}

static void change_apply(const struct change *change, size_t length, uint8_t *image, size_t *size)
{
	size_t end = change->offset + length;

	ASSERT(end <= FILE_BYTES);
	if (*size < end)
		memset(image + *size, 0, end - *size);
	if (change->bytes == NULL || *size < end)
		*size = end;
	if (change->bytes != NULL)
		memcpy(image + change->offset, change->bytes, length);
}

static void disk_change(struct disk_file *file, size_t offset, const void *bytes, size_t length)
{
	struct change *change = &file->changes[file->change_count];

	ASSERT(file->change_count < CHANGES);
	file->change_count++;
	*change = (struct change){.offset = offset, .length = length};
	if (bytes == NULL)
		return;
	ASSERT(length <= CHANGE_BYTES - disk->change_bytes_used);
	change->bytes = disk->change_bytes + disk->change_bytes_used;
	disk->change_bytes_used += length;
	memcpy(change->bytes, bytes, length);
}

static void disk_sync(struct disk_file *file)
{
	for (size_t i = 0; i < file->change_count; i++)
		change_apply(&file->changes[i], file->changes[i].length, file->stable,
			     &file->stable_size);
	file->change_count = 0;
}

/* How large a running system sees it. */
static size_t file_size(const struct disk_file *file)
{
	size_t size = file->stable_size;

	for (size_t i = 0; i < file->change_count; i++) {
		const struct change *change = &file->changes[i];

		if (change->bytes == NULL)
			size = change->offset;
		else
			size = size_max(size, change->offset + change->length);
	}
	return size;
}

/* The file at PATH is one of the disk's now; with what it has, when it is new here. */
static struct disk_file *disk_take(const char *path)
{
	struct disk_file *file;
	struct stat status;
	int fd;

	ASSERT(stat(path, &status) == 0);
	file = disk_find(status.st_ino);
	if (file != NULL && file_size(file) == (size_t)status.st_size)
		return file;
	/* Otherwise it is a new one that has got the inode of one that was removed. */
	if (file == NULL)
		file = disk_find(0);
	ASSERT(file != NULL && (size_t)status.st_size <= FILE_BYTES);
	file->inode = status.st_ino;
	file->change_count = 0;
	file->stable_size = (size_t)status.st_size;
	/* A descriptor of its own: closing it lets go of SQLite's locks, which nobody asks for. */
	fd = open(path, O_RDONLY);
	ASSERT(fd >= 0 && read(fd, file->stable, file->stable_size) == (ssize_t)file->stable_size);
	(void)close(fd);
	return file;
}

/* Calls EACH for every file in the folder. */
static void disk_walk(void (*each)(const char *path))
{
	DIR *folder = opendir(disk->folder);
	struct dirent *entry;
	char path[500];

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		(void)snprintf(path, sizeof(path), "%s/%s", disk->folder, entry->d_name);
		each(path);
	}
	if (folder != NULL)
		(void)closedir(folder);
}

/* --- the power ----------------------------------------------------------------------------- */

static enum power failing_power;
static uint32_t random_state;

static unsigned draw(unsigned below)
{
	random_state = random_state * 1664525 + 1013904223;
	return (random_state >> 8) % below;
}

/* Disks write whole sectors. */
#define SECTOR 512

static void file_reorder(struct disk_file *file, uint8_t *image, size_t *size)
{
	for (size_t i = file->change_count; i > 1; i--) {
		size_t other = draw((unsigned)i);
		struct change change = file->changes[i - 1];

		file->changes[i - 1] = file->changes[other];
		file->changes[other] = change;
	}
	for (size_t i = 0; i < file->change_count; i++) {
		struct change *change = &file->changes[i];
		size_t length = change->length;

		if (draw(2) == 0)
			continue;
		if (draw(4) == 0 && change->bytes != NULL)
			length = draw((unsigned)(length / SECTOR + 1)) * SECTOR;
		change_apply(change, length, image, size);
	}
}

static void power_fails_for(const char *path)
{
	struct disk_file *file = disk_take(path);
	int fd;

	if (file->change_count == 0 && failing_power == POWER_REORDERS)
		return;
	if (failing_power == POWER_REORDERS)
		file_reorder(file, file->stable, &file->stable_size);
	file->change_count = 0;
	fd = open(path, O_WRONLY | O_TRUNC);
	ASSERT(fd >= 0 && write(fd, file->stable, file->stable_size) == (ssize_t)file->stable_size);
	(void)close(fd);
}

void faulty_power(enum power power, unsigned seed)
{
	failing_power = power;
	random_state = seed;
	if (power != POWER_STAYS)
		disk_walk(power_fails_for);
}

/* --- the VFS ------------------------------------------------------------------------------- */

struct vfs_file {
	sqlite3_file base;
	struct disk_file *file; /* NULL: not one of the folder's */
	sqlite3_file *real;	/* behind this struct */
};

static struct vfs_file *file_of(sqlite3_file *file)
{
	return (struct vfs_file *)file;
}

/* Counts an operation; whether it fails. */
static bool fails(const struct vfs_file *file, bool sync)
{
	bool of_kind;

	if (file->file == NULL)
		return false;
	ASSERT(disk->operations < OPERATIONS);
	disk->was_sync[disk->operations] = sync;
	disk->operations++;
	if (disk->fault == FAULT_NONE)
		return false;
	of_kind = disk->fault == FAULT_DEATH || (disk->fault >= FAULT_SYNC_EIO) == sync;
	if (disk->operations < disk->at || disk->operations - disk->at >= disk->count)
		return false;
	/* One of a count counts when the first did. */
	if (disk->operations > disk->at && !disk->happened)
		return false;
	if (of_kind && disk->fault == FAULT_DEATH) {
		disk->happened = true;
		_exit(EXIT_DEATH);
	}
	disk->happened = disk->happened || of_kind;
	return of_kind;
}

/* As the unix VFS says it: no room is a result of its own, and all else is an I/O error whose errno
 * can be asked for. */
static int fault_code(int io_error)
{
	switch (disk->fault) {
	case FAULT_WRITE_ENOSPC:
	case FAULT_WRITE_SHORT:
		errno = ENOSPC;
		return SQLITE_FULL;
	case FAULT_WRITE_EDQUOT:
	case FAULT_SYNC_EDQUOT:
		errno = EDQUOT;
		return io_error;
	case FAULT_SYNC_ENOSPC:
		errno = ENOSPC;
		return io_error;
	default:
		errno = EIO;
		return io_error;
	}
}

static int vfs_close(sqlite3_file *file)
{
	return file_of(file)->real->pMethods->xClose(file_of(file)->real);
}

static int vfs_read(sqlite3_file *file, void *bytes, int length, sqlite3_int64 offset)
{
	return file_of(file)->real->pMethods->xRead(file_of(file)->real, bytes, length, offset);
}

static int vfs_write(sqlite3_file *base, const void *bytes, int length, sqlite3_int64 offset)
{
	struct vfs_file *file = file_of(base);
	bool failing = fails(file, false);
	int code = SQLITE_OK;

	if (failing && disk->fault == FAULT_WRITE_SHORT)
		length /= 2;
	else if (failing)
		return fault_code(SQLITE_IOERR_WRITE);
	if (length > 0)
		code = file->real->pMethods->xWrite(file->real, bytes, length, offset);
	if (code == SQLITE_OK && file->file != NULL)
		disk_change(file->file, (size_t)offset, bytes, (size_t)length);
	return failing ? fault_code(SQLITE_IOERR_WRITE) : code;
}

static int vfs_truncate(sqlite3_file *base, sqlite3_int64 size)
{
	struct vfs_file *file = file_of(base);
	int code;

	if (fails(file, false))
		return fault_code(SQLITE_IOERR_TRUNCATE);
	code = file->real->pMethods->xTruncate(file->real, size);
	if (code == SQLITE_OK && file->file != NULL)
		disk_change(file->file, (size_t)size, NULL, 0);
	return code;
}

/* The real files are not synced: this machine's power is not what fails. */
static int vfs_sync(sqlite3_file *base, int flags)
{
	struct vfs_file *file = file_of(base);

	(void)flags;
	if (fails(file, true)) {
		/* The system has marked it as written. */
		file->file->change_count = 0;
		return fault_code(SQLITE_IOERR_FSYNC);
	}
	if (file->file != NULL)
		disk_sync(file->file);
	return SQLITE_OK;
}

static int vfs_size(sqlite3_file *file, sqlite3_int64 *size)
{
	return file_of(file)->real->pMethods->xFileSize(file_of(file)->real, size);
}

static int vfs_lock(sqlite3_file *file, int lock)
{
	return file_of(file)->real->pMethods->xLock(file_of(file)->real, lock);
}

static int vfs_unlock(sqlite3_file *file, int lock)
{
	return file_of(file)->real->pMethods->xUnlock(file_of(file)->real, lock);
}

static int vfs_check_lock(sqlite3_file *file, int *locked)
{
	return file_of(file)->real->pMethods->xCheckReservedLock(file_of(file)->real, locked);
}

static int vfs_control(sqlite3_file *file, int what, void *argument)
{
	return file_of(file)->real->pMethods->xFileControl(file_of(file)->real, what, argument);
}

static int vfs_sector(sqlite3_file *file)
{
	return file_of(file)->real->pMethods->xSectorSize(file_of(file)->real);
}

static int vfs_device(sqlite3_file *file)
{
	return file_of(file)->real->pMethods->xDeviceCharacteristics(file_of(file)->real);
}

/* The first version: without memory that processes share, which the store is not to need. */
static const sqlite3_io_methods methods = {
	.iVersion = 1,
	.xClose = vfs_close,
	.xRead = vfs_read,
	.xWrite = vfs_write,
	.xTruncate = vfs_truncate,
	.xSync = vfs_sync,
	.xFileSize = vfs_size,
	.xLock = vfs_lock,
	.xUnlock = vfs_unlock,
	.xCheckReservedLock = vfs_check_lock,
	.xFileControl = vfs_control,
	.xSectorSize = vfs_sector,
	.xDeviceCharacteristics = vfs_device,
};

static sqlite3_vfs *real_vfs;

static int vfs_open(sqlite3_vfs *vfs, const char *path, sqlite3_file *base, int flags, int *out)
{
	struct vfs_file *file = file_of(base);
	int code;

	(void)vfs;
	*file = (struct vfs_file){.real = (sqlite3_file *)(file + 1)};
	code = real_vfs->xOpen(real_vfs, path, file->real, flags, out);
	if (code != SQLITE_OK)
		return code;
	file->base.pMethods = &methods;
	if (path != NULL && strncmp(path, disk->folder, strlen(disk->folder)) == 0)
		file->file = disk_take(path);
	return SQLITE_OK;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *path, int sync_folder)
{
	struct disk_file *file = NULL;
	struct stat status;
	int code;

	(void)vfs;
	(void)sync_folder;
	if (stat(path, &status) == 0)
		file = disk_find(status.st_ino);
	code = real_vfs->xDelete(real_vfs, path, 0);
	/* Another file may get its inode. */
	if (code == SQLITE_OK && file != NULL)
		file->inode = 0;
	return code;
}

void faulty_init(void)
{
	disk = mmap(NULL, sizeof(*disk), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT(disk != MAP_FAILED);
}

void faulty_use(void)
{
	static sqlite3_vfs faulty;

	real_vfs = sqlite3_vfs_find(NULL);
	ASSERT(real_vfs != NULL);
	/* The rest of it is the system's own; what it is handed is not looked at. */
	faulty = *real_vfs;
	faulty.zName = "faulty";
	faulty.pNext = NULL;
	faulty.szOsFile = (int)sizeof(struct vfs_file) + real_vfs->szOsFile;
	faulty.xOpen = vfs_open;
	faulty.xDelete = vfs_delete;
	ASSERT(sqlite3_vfs_register(&faulty, 1) == SQLITE_OK);
}

static void disk_take_quietly(const char *path)
{
	(void)disk_take(path);
}

void faulty_begin(const char *folder)
{
	for (size_t i = 0; i < FILES; i++)
		disk->files[i].inode = 0;
	disk->change_bytes_used = 0;
	(void)snprintf(disk->folder, sizeof(disk->folder), "%s", folder);
	disk_walk(disk_take_quietly);
	faulty_plan(FAULT_NONE, 0, 0);
}

void faulty_plan(enum fault fault, unsigned at, unsigned count)
{
	disk->fault = fault;
	disk->at = at;
	disk->count = count;
	disk->operations = 0;
	disk->happened = false;
}

unsigned faulty_operations(void)
{
	return disk->operations;
}

bool faulty_was_sync(unsigned operation)
{
	ASSERT(operation > 0 && operation <= disk->operations);
	return disk->was_sync[operation - 1];
}

bool faulty_happened(void)
{
	return disk->happened;
}
