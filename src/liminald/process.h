/*
 * What the daemon does to its process: detaching, descriptors, the pid file, privileges. Everything
 * here runs in the main thread before others are started. Functions that fail leave a text that
 * names the setting in ERROR and return false.
 */
#ifndef LIMINALD_PROCESS_H
#define LIMINALD_PROCESS_H

#include "base/base.h"

#include <sys/types.h>

#include "base/text.h"

/* The user to become, looked up before the root directory or anything else changes. */
struct process_user {
	bool wanted;
	uid_t uid;
	gid_t gid;
	char name[64];
};

/* USER and GROUP as configured, NULL: none. GROUP defaults to the user's own. */
bool process_find_user(const char *user, const char *group, struct process_user *found,
		       struct text *error);

/* Drops every privilege, supplementary groups included; nothing where no user is wanted. */
bool process_become(const struct process_user *user, struct text *error);

/*
 * Between these two the process has the user's rights and no others, and what it makes belongs to
 * the user: for what lies in folders of the user, who must not lead root elsewhere. Nothing where
 * no user is wanted, or root does not start it.
 */
bool process_borrow_user(const struct process_user *user, struct text *error);
void process_return_user(void);

/* Makes the folder PATH, mode 0700, unless there is one, and syncs its parent. */
bool process_make_folder(const char *path, struct text *error);

/* Makes room for WANTED descriptors. */
bool process_raise_descriptors(uint64_t wanted, struct text *error);

/* Opens, locks and writes the pid file, which stays root's where root starts: other programs trust
 * what it says. process_remove_pidfile removes it, or empties it where it may not. */
bool process_write_pidfile(const char *path, struct text *error);
void process_remove_pidfile(void);

/*
 * Detaches: the parent does not return from process_detach, it waits until the child says that it
 * serves or exits, and exits with its status. process_detached, in the child, ends that wait and
 * leaves the terminal.
 */
bool process_detach(struct text *error);
void process_detached(void);

/* The absolute form of PATH, allocated; NULL: no memory. */
char *process_absolute(const char *path);

/* On OpenBSD: gives up what a serving daemon does not need. PATHS end with NULL. */
bool process_confine(const char *const *paths, struct text *error);

#endif
