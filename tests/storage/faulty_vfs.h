/*
 * A disk under SQLite that fails, and that forgets when its power fails. It stands in front of the
 * system's own files: those always have what a running system would see, and what is remembered
 * here is how much of it is on stable storage, which is what had been written when the file was
 * last synced. What it knows is shared by all processes that main forks after faulty_init.
 *
 * What is not played: folders. That a file was made, renamed or removed counts as stable at once.
 */
#ifndef STORAGE_FAULTY_VFS_H
#define STORAGE_FAULTY_VFS_H

#include "base/base.h"

/* What happens at the chosen write, truncation or sync, all of which are counted. */
enum fault {
	FAULT_NONE,
	FAULT_WRITE_EIO,
	FAULT_WRITE_ENOSPC,
	FAULT_WRITE_SHORT, /* half of it is written, then there is no room */
	FAULT_WRITE_EDQUOT,
	FAULT_SYNC_EIO, /* what it was to sync is never stable, whatever is synced later */
	FAULT_SYNC_ENOSPC,
	FAULT_SYNC_EDQUOT,
	FAULT_DEATH /* the process ends with EXIT_DEATH, before it has done it */
};

#define EXIT_DEATH 42

/* What a power failure leaves of what was not synced. */
enum power {
	POWER_STAYS, /* it has not failed: everything */
	POWER_LOSES_ALL,
	POWER_REORDERS /* some of it, in any order, and of some a part */
};

/* For all processes, before the first fork. */
void faulty_init(void);

/* Makes it the VFS of this process, which files in FOLDER are then opened through. */
void faulty_use(void);

/* What the files in FOLDER have now is stable; nothing has been counted. */
void faulty_begin(const char *folder);

/* FAULT at the AT-th operation from now on (from 1), and at those of its kind among the COUNT - 1
 * behind it. */
void faulty_plan(enum fault fault, unsigned at, unsigned count);

/* How many operations there were since faulty_plan, which of them were syncs, and whether the
 * planned one has failed: of a write's faults, for one, it must have been a write. */
unsigned faulty_operations(void);
bool faulty_was_sync(unsigned operation);
bool faulty_happened(void);

/* Gives the files what a power failure leaves of them, which is stable then. */
void faulty_power(enum power power, unsigned seed);

#endif
