/* The folder of a store: made, looked at, locked, synced, given away. */
#include "store/sqlite_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *folder_path(const char *dir, const char *file)
{
	size_t size = strlen(dir) + strlen(file) + 2;
	char *path = malloc(size);

	if (path != NULL)
		(void)snprintf(path, size, "%s/%s", dir, file);
	return path;
}

/* --- making and syncing --------------------------------------------------------------------- */

/* Syncs the folder PATH: 0, or an errno. Some file systems cannot sync a folder, and need not. */
static int folder_sync_path(const char *path)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int failure = 0;

	if (fd < 0)
		return errno;
#ifdef F_FULLFSYNC
	if (fcntl(fd, F_FULLFSYNC) < 0 && fsync(fd) < 0 && errno != EINVAL)
		failure = errno;
#else
	if (fsync(fd) < 0 && errno != EINVAL)
		failure = errno;
#endif
	(void)close(fd);
	return failure;
}

bool folder_sync(const char *dir, struct text *error)
{
	int failure = folder_sync_path(dir);

	if (failure != 0)
		text_add(error, "cannot sync the folder '%s': %s", dir, strerror(failure));
	return failure == 0;
}

/* The folder that DIR is in; NULL: no memory. */
static char *folder_parent(const char *dir)
{
	size_t length = strlen(dir);
	char *parent;

	while (length > 1 && dir[length - 1] == '/')
		length--;
	while (length > 0 && dir[length - 1] != '/')
		length--;
	while (length > 1 && dir[length - 1] == '/')
		length--;
	if (length == 0)
		return strdup(".");
	parent = malloc(length + 1);
	if (parent != NULL) {
		memcpy(parent, dir, length);
		parent[length] = '\0';
	}
	return parent;
}

/* Also when the folder was there: who made it may have died before it could sync. */
static bool folder_sync_both(const char *dir, bool made, struct text *error)
{
	char *parent = folder_parent(dir);
	int failure;

	if (parent == NULL) {
		text_add(error, "cannot open the store in '%s': %s", dir, strerror(ENOMEM));
		return false;
	}
	failure = folder_sync_path(parent);
	/* A parent that may not be read is not one that this process has just written to. */
	if (failure != 0 && (made || failure != EACCES)) {
		text_add(error, "cannot sync the folder '%s': %s", parent, strerror(failure));
		free(parent);
		return false;
	}
	free(parent);
	return folder_sync(dir, error);
}

bool folder_prepare(const char *dir, struct text *error)
{
	bool made = mkdir(dir, S_IRWXU) == 0;
	struct stat status;

	if (!made && errno != EEXIST) {
		text_add(error, "cannot make the folder '%s': %s", dir, strerror(errno));
		return false;
	}
	/* The umask may have taken what the owner needs. */
	if ((made && chmod(dir, S_IRWXU) < 0) || stat(dir, &status) < 0) {
		text_add(error, "cannot use the folder '%s': %s", dir, strerror(errno));
		return false;
	}
	if (!S_ISDIR(status.st_mode)) {
		text_add(error, "'%s' is not a folder", dir);
		return false;
	}
	if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
		text_add(error,
			 "the folder '%s' has mode %04o, and everybody's messages would be in it: "
			 "take all permissions of group and others away (chmod 700)",
			 dir, (unsigned)(status.st_mode & 07777));
		return false;
	}
	return folder_sync_both(dir, made, error);
}

/* --- the lock ------------------------------------------------------------------------------ */

static bool folder_lock_file(int fd, const char *dir, const char *path, bool serve,
			     struct text *error)
{
	struct flock lock = {.l_type = serve ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};
	char line[32];
	int length, failure;

	if (fcntl(fd, F_SETLK, &lock) < 0) {
		failure = errno;
		lock.l_pid = 0;
		(void)fcntl(fd, F_GETLK, &lock);
		if (failure == EACCES || failure == EAGAIN)
			text_add(error, "the store in '%s' is in use by process %ld", dir,
				 (long)lock.l_pid);
		else
			text_add(error, "cannot lock '%s': %s", path, strerror(failure));
		return false;
	}
	if (!serve)
		return true;
	length = snprintf(line, sizeof(line), "%ld\n", (long)getpid());
	if (fchmod(fd, S_IRUSR | S_IWUSR) < 0 || ftruncate(fd, 0) < 0 ||
	    pwrite(fd, line, (size_t)length, 0) != length) {
		text_add(error, "cannot write '%s': %s", path, strerror(errno));
		return false;
	}
	return true;
}

int folder_lock(const char *dir, bool serve, struct text *error)
{
	char *path = folder_path(dir, STORE_LOCK);
	int fd = -1;

	if (path == NULL) {
		text_add(error, "cannot open the store in '%s': %s", dir, strerror(ENOMEM));
		return -1;
	}
	fd = serve ? open(path, O_RDWR | O_CREAT | O_CLOEXEC, S_IRUSR | S_IWUSR)
		   : open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		if (serve || errno != ENOENT)
			text_add(error, "cannot open '%s': %s", path, strerror(errno));
	} else if (!folder_lock_file(fd, dir, path, serve, error)) {
		(void)close(fd);
		fd = -1;
	}
	free(path);
	return fd;
}

/* --- the owner ----------------------------------------------------------------------------- */

/* Gives one file of the folder away; 0, or an errno. Not through a link, and not a file that has
 * another name elsewhere: the folder may be its user's already, who may have put that there. */
static int folder_give_file(int folder, const char *name, uid_t uid, gid_t gid)
{
	int fd = openat(folder, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat status;
	int failure = 0;

	if (fd < 0)
		return errno == ENOENT ? 0 : errno;
	if (fstat(fd, &status) < 0)
		failure = errno;
	else if (!S_ISREG(status.st_mode) || status.st_nlink != 1)
		failure = EPERM;
	else if ((status.st_uid != uid || status.st_gid != gid) && fchown(fd, uid, gid) < 0)
		failure = errno;
	(void)close(fd);
	return failure;
}

int store_give(const char *dir, unsigned long uid, unsigned long gid)
{
	static const char *const names[] = {STORE_LOCK, "liminal.db", "liminal.db-wal",
					    "liminal.db-journal"};
	int folder = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct stat status;
	int failure = 0;

	if (folder < 0)
		return errno == ENOENT ? 0 : errno;
	if (fstat(folder, &status) < 0)
		failure = errno;
	else if ((status.st_mode & (S_IRWXG | S_IRWXO)) != 0)
		failure = EPERM;
	for (size_t i = 0; i < ARRAY_LENGTH(names) && failure == 0; i++)
		failure = folder_give_file(folder, names[i], (uid_t)uid, (gid_t)gid);
	if (failure == 0 && fchown(folder, (uid_t)uid, (gid_t)gid) < 0)
		failure = errno;
	(void)close(folder);
	return failure;
}
