#include "liminald/process.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <inttypes.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* --- users --------------------------------------------------------------------------------- */

bool process_find_user(const char *user, const char *group, struct process_user *found,
		       struct text *error)
{
	struct passwd *passwd;
	struct group *entry;

	*found = (struct process_user){0};
	if (user == NULL && group == NULL)
		return true;
	found->wanted = true;
	found->uid = getuid();
	found->gid = getgid();
	if (user != NULL) {
		passwd = getpwnam(user);
		if (passwd == NULL) {
			text_add(error, "user: '%s' does not exist on this machine", user);
			return false;
		}
		found->uid = passwd->pw_uid;
		found->gid = passwd->pw_gid;
		(void)snprintf(found->name, sizeof(found->name), "%s", user);
	}
	if (group != NULL) {
		entry = getgrnam(group);
		if (entry == NULL) {
			text_add(error, "group: '%s' does not exist on this machine", group);
			return false;
		}
		found->gid = entry->gr_gid;
	}
	return true;
}

bool process_become(const struct process_user *user, struct text *error)
{
	if (!user->wanted || (user->uid == geteuid() && user->gid == getegid() && geteuid() != 0))
		return true;
	if (geteuid() != 0) {
		text_add(error,
			 "cannot become user '%s': only root can; start as root, or as that user",
			 user->name);
		return false;
	}
	/* Supplementary groups go too, whatever the group file would give the user. */
	if (setgroups(1, &user->gid) < 0 || setgid(user->gid) < 0 || setuid(user->uid) < 0) {
		text_add(error, "cannot become user '%s': %s", user->name, strerror(errno));
		return false;
	}
	if (user->uid != 0 && setuid(0) == 0) {
		text_add(error, "cannot become user '%s': privileges can be regained", user->name);
		return false;
	}
	return true;
}

/* Root's own supplementary groups, while the user's rights are borrowed. */
static gid_t *borrowed_groups;
static int borrowed_group_count;
static gid_t borrowed_gid;
static bool borrowed;

bool process_borrow_user(const struct process_user *user, struct text *error)
{
	if (!user->wanted || geteuid() != 0)
		return true;
	borrowed_gid = getegid();
	borrowed_group_count = getgroups(0, NULL);
	borrowed_groups = calloc((size_t)borrowed_group_count + 1, sizeof(*borrowed_groups));
	if (borrowed_groups != NULL)
		borrowed_group_count = getgroups(borrowed_group_count, borrowed_groups);
	borrowed = true;
	if (borrowed_groups != NULL && borrowed_group_count >= 0 && setgroups(1, &user->gid) == 0 &&
	    setegid(user->gid) == 0 && seteuid(user->uid) == 0)
		return true;
	text_add(error, "cannot become user '%s': %s", user->name, strerror(errno));
	process_return_user();
	return false;
}

void process_return_user(void)
{
	if (!borrowed)
		return;
	/* What may not be left may come back. */
	if (seteuid(0) != 0 || setegid(borrowed_gid) != 0 ||
	    (borrowed_groups != NULL && borrowed_group_count >= 0 &&
	     setgroups((size_t)borrowed_group_count, borrowed_groups) != 0))
		ASSERT(!"root's rights come back");
	free(borrowed_groups);
	borrowed_groups = NULL;
	borrowed = false;
}

/* A folder's entry for PATH is on the disk only when the folder is. */
static int process_sync_parent(const char *path)
{
	char *copy = strdup(path);
	char *slash = copy == NULL ? NULL : strrchr(copy, '/');
	int fd, failure = 0;

	if (slash == NULL) {
		free(copy);
		return copy == NULL ? ENOMEM : EINVAL;
	}
	slash[slash == copy] = '\0'; /* the root stays */
	fd = open(copy, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		failure = errno;
	if (fd >= 0)
		(void)close(fd);
	free(copy);
	return failure;
}

bool process_make_folder(const char *path, struct text *error)
{
	int failure = 0;

	if (mkdir(path, 0700) == 0) {
		/* Whatever the umask. */
		failure = chmod(path, 0700) == 0 ? process_sync_parent(path) : errno;
	} else if (errno != EEXIST) {
		failure = errno;
	}
	if (failure != 0)
		text_add(error, "cannot make '%s': %s", path, strerror(failure));
	return failure == 0;
}

/* --- descriptors --------------------------------------------------------------------------- */

bool process_raise_descriptors(uint64_t wanted, struct text *error)
{
	struct rlimit limit;
	rlim_t hard;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return true; /* the system has no such limit */
	hard = limit.rlim_max;
	if (limit.rlim_cur == RLIM_INFINITY || limit.rlim_cur >= wanted)
		return true;
	limit.rlim_cur = (rlim_t)wanted;
	if (limit.rlim_max != RLIM_INFINITY && limit.rlim_max < wanted)
		limit.rlim_max = (rlim_t)wanted; /* root may */
	if (setrlimit(RLIMIT_NOFILE, &limit) == 0)
		return true;
	text_add(error,
		 "max_connections needs %" PRIu64
		 " file descriptors, and the hard limit allows %" PRIu64
		 "; lower max_connections or raise the limit",
		 wanted, (uint64_t)hard);
	return false;
}

/* --- the pid file -------------------------------------------------------------------------- */

static int pidfile_fd = -1;
static char *pidfile_path;

static void pidfile_close(void)
{
	if (pidfile_fd >= 0)
		(void)close(pidfile_fd);
	pidfile_fd = -1;
}

bool process_write_pidfile(const char *path, struct text *error)
{
	struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
	char line[32];
	int length = snprintf(line, sizeof(line), "%ld\n", (long)getpid());

	pidfile_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
	if (pidfile_fd < 0) {
		text_add(error, "pidfile: cannot open '%s': %s", path, strerror(errno));
		return false;
	}
	if (fcntl(pidfile_fd, F_SETLK, &lock) < 0) {
		int failure = errno;

		lock.l_pid = 0;
		(void)fcntl(pidfile_fd, F_GETLK, &lock);
		if (failure == EACCES || failure == EAGAIN)
			text_add(error, "pidfile: '%s' is locked by process %ld: it runs already",
				 path, (long)lock.l_pid);
		else
			text_add(error, "pidfile: cannot lock '%s': %s", path, strerror(failure));
		pidfile_close();
		return false;
	}
	if (ftruncate(pidfile_fd, 0) < 0 || write(pidfile_fd, line, (size_t)length) != length) {
		text_add(error, "pidfile: cannot write '%s': %s", path, strerror(errno));
		pidfile_close();
		return false;
	}
	pidfile_path = process_absolute(path);
	return true;
}

void process_remove_pidfile(void)
{
	if (pidfile_path != NULL && unlink(pidfile_path) < 0 && pidfile_fd >= 0)
		(void)ftruncate(pidfile_fd, 0); /* not ours to remove: at least it names nobody */
	free(pidfile_path);
	pidfile_path = NULL;
	pidfile_close();
}

/* --- detaching ----------------------------------------------------------------------------- */

static int detach_fd = -1; /* the parent reads the other end */

/* The parent: exits with 0 once the child serves, with the child's status when it failed. */
static _Noreturn void detach_wait(int fd, pid_t child)
{
	int status;
	char byte;
	ssize_t got;

	do
		got = read(fd, &byte, 1);
	while (got < 0 && errno == EINTR);
	if (got == 1)
		_exit(EXIT_SUCCESS);
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	_exit(WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

bool process_detach(struct text *error)
{
	int ends[2];
	pid_t child;

	if (pipe(ends) < 0 || (child = fork()) < 0) {
		text_add(error, "cannot detach: %s", strerror(errno));
		return false;
	}
	if (child > 0) {
		(void)close(ends[1]);
		detach_wait(ends[0], child);
	}
	(void)close(ends[0]);
	detach_fd = ends[1];
	(void)fcntl(detach_fd, F_SETFD, FD_CLOEXEC);
	if (setsid() < 0 || chdir("/") < 0) {
		text_add(error, "cannot detach: %s", strerror(errno));
		return false;
	}
	return true;
}

void process_detached(void)
{
	int null;

	if (detach_fd < 0)
		return;
	null = open("/dev/null", O_RDWR);
	if (null >= 0) {
		(void)dup2(null, STDIN_FILENO);
		(void)dup2(null, STDOUT_FILENO);
		(void)dup2(null, STDERR_FILENO);
		if (null > STDERR_FILENO)
			(void)close(null);
	}
	(void)!write(detach_fd, "", 1);
	(void)close(detach_fd);
	detach_fd = -1;
}

char *process_absolute(const char *path)
{
	char directory[4096];
	char *absolute;
	size_t size;

	if (path[0] == '/' || getcwd(directory, sizeof(directory)) == NULL)
		return strdup(path);
	size = strlen(directory) + strlen(path) + 2;
	absolute = malloc(size);
	if (absolute != NULL)
		(void)snprintf(absolute, size, "%s/%s", directory, path);
	return absolute;
}

#if defined(HAVE_PLEDGE) && defined(HAVE_UNVEIL)
/* flock and fattr: the store makes and locks files as it goes on. */
static const char process_promises[] = "stdio rpath wpath cpath fattr flock inet unix proc";
#endif

bool process_confine(const char *const *paths, struct text *error)
{
#if defined(HAVE_PLEDGE) && defined(HAVE_UNVEIL)
	for (size_t i = 0; paths[i] != NULL; i++) {
		if (unveil(paths[i], "rwc") < 0 && errno != ENOENT) {
			text_add(error, "cannot unveil '%s': %s", paths[i], strerror(errno));
			return false;
		}
	}
	if (unveil(NULL, NULL) < 0 || pledge(process_promises, NULL) < 0) {
		text_add(error, "cannot pledge: %s", strerror(errno));
		return false;
	}
#else
	(void)paths;
	(void)error;
#endif
	return true;
}
