/*
 * The store on a disk that fails (faulty_vfs.h), at each of its operations in turn. A run is a
 * scripted piece of work in a process of its own, with one fault; then perhaps the power fails;
 * then another process opens what is left, and a ledger, which knows only what the work was
 * answered, demands:
 *
 *   - what was committed with success is there, whole; what was refused for want of room is not;
 *     what nobody has answered is there whole, or not at all; in the order in which it was written;
 *   - a write without room is STORE_FULL, the store goes on, and the same transaction succeeds when
 *     there is room; any other failure is STORE_DOWN, for good, and nothing is written from then
 * on;
 *   - what a start has found it may promise: it survives the power's failing right behind it.
 *
 * `torn` alone runs all; `torn SCRIPT FAULT POWER OPERATION` one, which it has named before. The
 * last line is `N passed, N failed`: of scripts, each with a kind of fault.
 */
#include "storage/faulty_vfs.h"
#include "store/sqlite_priv.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* Said, and the process ends with a status that its parent takes for a failure. */
#define REQUIRE(condition)                                                                         \
	do {                                                                                       \
		if (!(condition)) {                                                                \
			(void)fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__,           \
				      #condition);                                                 \
			_exit(1);                                                                  \
		}                                                                                  \
	} while (0)

/* --- the ledger ---------------------------------------------------------------------------- */

#define TRANSACTIONS 16

enum fate {
	NOT_TRIED,
	UNANSWERED, /* begun; or the store was down: it may be there, or not */
	REFUSED,    /* no room */
	COMMITTED
};

/* In memory that processes share. */
struct ledger {
	enum fate fates[TRANSACTIONS + 1];
	uint64_t ids_begin;	  /* no start may give ids before */
	bool started;		  /* the script's store was opened */
	unsigned fulls, downs;	  /* how often that was the answer */
	unsigned operations;	  /* when it was closed, or was down */
	unsigned operations_down; /* that were done when the store was down */
	unsigned found;		  /* by the last process that looked */
};

static struct ledger *ledger;

static char folder[100], state[120];

/* --- what a transaction is ----------------------------------------------------------------- */

/* Keeps the database small, and frees room that others use again. */
#define KEPT 6

static uint64_t channel, consumer;

static size_t length_of(uint64_t number)
{
	static const size_t lengths[] = {310, 5000, 310, 20000, 310, 1};

	return lengths[number % ARRAY_LENGTH(lengths)];
}

static struct span key_of(uint64_t number, char text[24])
{
	return (struct span){.data = (const uint8_t *)text,
			     .length = (size_t)snprintf(text, 24, "key-%u", (unsigned)number)};
}

static uint8_t byte_of(uint64_t number)
{
	return (uint8_t)(number * 37 + 11);
}

static enum store_result add_row(struct store *store, uint64_t number)
{
	struct store_row row = {.first = number,
				.last = number,
				.count = 1,
				.charged = 64,
				.before = number * 64,
				.time_ms = (int64_t)number,
				.data = buf_new(length_of(number))};
	enum store_result result;

	REQUIRE(row.data != NULL);
	memset(row.data->data, byte_of(number), row.data->length);
	result = store->ops->row_add(store, channel, &row);
	buf_unref(&row.data);
	return result;
}

static enum store_result remove_old(struct store *store, uint64_t number)
{
	enum store_result result;
	uint64_t removed;

	if (number <= KEPT)
		return STORE_OK;
	result = store->ops->row_remove(store, channel, number - KEPT);
	if (result == STORE_OK)
		result = store->ops->keys_trim(store, channel, 0, 1, 1, &removed);
	REQUIRE(result != STORE_OK || removed == 1);
	return result;
}

static enum store_result change(struct store *store, uint64_t number)
{
	struct store_channel counts = {
		.number = channel,
		.last = number,
		.charged = number * 64,
		.time_ms = (int64_t)number,
		.first = number > KEPT ? number - KEPT + 1 : 1,
		.kept = number > KEPT ? KEPT : number,
		.kept_charged = (number > KEPT ? KEPT : number) * 64,
		.keys = number > KEPT ? KEPT : number,
	};
	char text[24];
	struct span key = key_of(number, text);
	enum store_result result = store->ops->channel_put(store, &counts);

	if (result == STORE_OK)
		result = add_row(store, number);
	if (result == STORE_OK)
		result = store->ops->key_add(store, channel, key, (int64_t)number, number + 1000,
					     number);
	if (result == STORE_OK)
		result = store->ops->consumer_put(store, consumer, (int64_t)number, key);
	if (result == STORE_OK)
		result = remove_old(store, number);
	return result;
}

static enum store_result transact(struct store *store, uint64_t number)
{
	enum store_result result = store->ops->begin(store);

	if (result != STORE_OK)
		return result;
	result = change(store, number);
	if (result == STORE_OK)
		return store->ops->commit(store);
	/* The first failure is the transaction's. */
	REQUIRE(store->ops->commit(store) == result);
	store->ops->rollback(store);
	return result;
}

/* --- looking ------------------------------------------------------------------------------- */

/* Whether row and key of transaction NUMBER are there, as they should be. */
static bool is_there(struct store *store, uint64_t number)
{
	struct store_row row;
	uint64_t id, sequence;
	char text[24];
	enum store_result found =
		store->ops->key_find(store, channel, key_of(number, text), 0, &id, &sequence);

	REQUIRE(found == STORE_OK || found == STORE_NONE);
	REQUIRE(found != STORE_OK || (sequence == number && id == number + 1000));
	if (store->ops->row_read(store, channel, number, true, &row) != STORE_OK ||
	    row.first != number) {
		buf_unref(&row.data);
		REQUIRE(found == STORE_NONE);
		return false;
	}
	REQUIRE(found == STORE_OK);
	REQUIRE(row.data->length == length_of(number));
	for (size_t i = 0; i < row.data->length; i++)
		REQUIRE(row.data->data[i] == byte_of(number));
	buf_unref(&row.data);
	return true;
}

static bool see_consumer(void *context, const struct store_consumer *seen)
{
	unsigned number;
	char text[24];

	consumer = seen->number;
	REQUIRE(seen->state.length < sizeof(text));
	memcpy(text, seen->state.data, seen->state.length);
	text[seen->state.length] = '\0';
	REQUIRE(sscanf(text, "key-%u", &number) == 1);
	REQUIRE(seen->idle_since_ms == (int64_t)number);
	*(uint64_t *)context = number;
	return true;
}

/* The store has transactions 1 to *LAST, and of none behind it anything. */
static void look(struct store *store, uint64_t *last)
{
	struct store_channel found;

	REQUIRE(store->ops->begin(store) == STORE_OK);
	REQUIRE(store->ops->channel_open(store, SPAN_LITERAL("c"), &found) == STORE_OK);
	store->ops->rollback(store);
	channel = found.number;
	*last = UINT64_MAX;
	REQUIRE(store->ops->consumers(store, channel, see_consumer, last) == STORE_OK);
	REQUIRE(*last == found.last && *last <= TRANSACTIONS);
	for (uint64_t number = 1; number <= TRANSACTIONS; number++)
		REQUIRE(is_there(store, number) == (number <= *last && number + KEPT > *last));
}

static void compare(uint64_t last)
{
	for (uint64_t number = 1; number <= TRANSACTIONS; number++) {
		enum fate fate = ledger->fates[number];

		REQUIRE(number <= last ? fate != NOT_TRIED && fate != REFUSED : fate != COMMITTED);
	}
}

static struct store *start(void)
{
	char message[1024];
	struct text error = TEXT_INIT(message);
	struct store *store = NULL;

	if (!store_open_sqlite(state, &store, &error)) {
		REQUIRE(store == NULL && strstr(message, state) != NULL);
		return NULL;
	}
	/* None that an earlier start may have given. */
	REQUIRE(store->next_id >= ledger->ids_begin);
	ledger->ids_begin = store->next_id + STORE_IDS_RESERVED;
	ledger->started = true;
	return store;
}

/* --- the scripts: each runs in a process of its own, with a fault -------------------------- */

/* Whatever is asked of a store that is down, it says so, and touches nothing. */
static void stay_down(struct store *store)
{
	unsigned operations = faulty_operations();
	struct store_row row;
	bool more;

	ledger->downs++;
	ledger->operations = operations;
	REQUIRE(strstr(store->reason, state) != NULL);
	store->ops->rollback(store);
	REQUIRE(store->ops->begin(store) == STORE_DOWN);
	REQUIRE(store->ops->checkpoint(store) == STORE_DOWN);
	REQUIRE(store->ops->reclaim(store, &more) == STORE_DOWN && !more);
	REQUIRE(store->ops->ids_put(store, 1) == STORE_DOWN);
	REQUIRE(store->ops->row_read(store, channel, 1, true, &row) == STORE_DOWN);
	store_close(&store);
	ledger->operations_down += faulty_operations() - operations;
}

/* The first checkpoint comes early; the next ones as often. */
#define CHECKPOINT_PAGES 30

static bool goes_on(struct store *store, uint64_t number)
{
	struct sqlite_store *sqlite = sqlite_of(store);
	enum store_result result;

	ledger->fates[number] = UNANSWERED;
	for (unsigned tries = 0;; tries++) {
		result = transact(store, number);
		if (result != STORE_FULL)
			break;
		ledger->fulls++;
		ledger->fates[number] = REFUSED;
		REQUIRE(strstr(store->reason, state) != NULL);
		REQUIRE(!is_there(store, number));
		REQUIRE(tries < 10);
		ledger->fates[number] = UNANSWERED;
	}
	if (result == STORE_OK) {
		ledger->fates[number] = COMMITTED;
		sqlite->next_checkpoint = CHECKPOINT_PAGES;
		result = store->ops->checkpoint(store);
	}
	REQUIRE(result == STORE_OK || result == STORE_DOWN);
	return result == STORE_OK;
}

/* Work: all of the transactions, and the end. */
static void script_work(void)
{
	struct store *store = start();
	uint64_t last;

	if (store == NULL)
		return;
	look(store, &last);
	compare(last);
	for (uint64_t number = last + 1; number <= TRANSACTIONS; number++) {
		if (!goes_on(store, number)) {
			stay_down(store);
			return;
		}
	}
	ledger->operations = faulty_operations();
	store_close(&store);
}

/* A start, on what a killed process has left, or on nothing. What it finds is promised from then
 * on: a repeated key would be answered. */
static void script_start(void)
{
	struct store *store = start();
	uint64_t last;

	if (store == NULL)
		return;
	look(store, &last);
	compare(last);
	for (uint64_t number = 1; number <= last; number++)
		ledger->fates[number] = COMMITTED;
	ledger->operations = faulty_operations();
	store_close(&store);
}

/* A start in a folder that has no store; its tables are all there is. */
static void script_make(void)
{
	struct store *store = start();

	if (store != NULL)
		store_close(&store);
}

/* Not a script that fails: what the others begin with. */
static void make_first(void)
{
	struct store *store = start();
	struct store_channel found;
	struct store_consumer added = {.name = SPAN_LITERAL("me"), .state = SPAN_LITERAL("key-0")};

	REQUIRE(store != NULL);
	REQUIRE(store->ops->begin(store) == STORE_OK);
	REQUIRE(store->ops->channel_open(store, SPAN_LITERAL("c"), &found) == STORE_OK);
	REQUIRE(store->ops->consumer_add(store, found.number, &added, &consumer) == STORE_OK);
	REQUIRE(store->ops->commit(store) == STORE_OK);
	store_close(&store);
}

/* What `start` begins with: half of the work, by a process that is killed. */
static void make_left(void)
{
	struct store *store = start();
	uint64_t last;

	REQUIRE(store != NULL);
	look(store, &last);
	for (uint64_t number = 1; number <= TRANSACTIONS / 2; number++)
		REQUIRE(goes_on(store, number));
}

/* What comes after each script: a start that promises what it finds, and dies without an end, which
 * would bring it all to safety. */
static void look_again(void)
{
	struct store *store = start();
	uint64_t last;

	REQUIRE(store != NULL);
	look(store, &last);
	compare(last);
	ledger->found = (unsigned)last;
}

/* --- processes and files ------------------------------------------------------------------- */

/* Runs WORK in a process of its own; its exit status. */
static int in_process(void (*work)(void))
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		faulty_use();
		work();
		_exit(0);
	}
	ASSERT(child > 0 && waitpid(child, &status, 0) == child);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* What a folder had at some time, with what the ledger knew. */
#define SAVED_FILES 4
struct saved {
	struct ledger ledger;
	size_t count;
	struct {
		char name[32];
		struct buf *bytes;
	} files[SAVED_FILES];
};

static void each_file(void (*each)(const char *name, const char *path, void *context),
		      void *context)
{
	DIR *open_folder = opendir(state);
	struct dirent *entry;
	char path[400];

	while (open_folder != NULL && (entry = readdir(open_folder)) != NULL) {
		if (entry->d_name[0] == '.')
			continue;
		(void)snprintf(path, sizeof(path), "%s/%s", state, entry->d_name);
		each(entry->d_name, path, context);
	}
	if (open_folder != NULL)
		(void)closedir(open_folder);
}

static void save_file(const char *name, const char *path, void *context)
{
	struct saved *saved = context;
	struct stat status;
	int fd = open(path, O_RDONLY);

	ASSERT(fd >= 0 && fstat(fd, &status) == 0 && saved->count < SAVED_FILES);
	(void)snprintf(saved->files[saved->count].name, sizeof(saved->files[0].name), "%s", name);
	saved->files[saved->count].bytes = buf_new((size_t)status.st_size);
	ASSERT(saved->files[saved->count].bytes != NULL);
	ASSERT(read(fd, saved->files[saved->count].bytes->data, (size_t)status.st_size) ==
	       status.st_size);
	(void)close(fd);
	saved->count++;
}

static void remove_file(const char *name, const char *path, void *context)
{
	(void)name;
	(void)context;
	ASSERT(unlink(path) == 0);
}

static void save(struct saved *saved)
{
	*saved = (struct saved){.ledger = *ledger};
	each_file(save_file, saved);
}

static void drop(struct saved *saved)
{
	for (size_t i = 0; i < saved->count; i++)
		buf_unref(&saved->files[i].bytes);
}

/* Everything is as it was when it was saved, and stable. */
static void restore(const struct saved *saved)
{
	char path[400];

	each_file(remove_file, NULL);
	for (size_t i = 0; i < saved->count; i++) {
		const struct buf *bytes = saved->files[i].bytes;
		int fd;

		(void)snprintf(path, sizeof(path), "%s/%s", state, saved->files[i].name);
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
		ASSERT(fd >= 0 && write(fd, bytes->data, bytes->length) == (ssize_t)bytes->length);
		(void)close(fd);
	}
	*ledger = saved->ledger;
	faulty_begin(state);
}

/* --- runs ---------------------------------------------------------------------------------- */

static struct saved nothing, first, left;

static const struct script {
	const char *name;
	void (*run)(void);
	const struct saved *begin;
	bool makes; /* there is nothing but tables, and perhaps not even those */
} scripts[] = {
	{"work", script_work, &first, false},
	{"start", script_start, &left, false},
	{"make", script_make, &nothing, true},
};

static const struct kind {
	const char *name;
	enum fault fault;
	unsigned count;
	bool sync, write; /* which operations it is tried at */
	enum store_result meaning;
} kinds[] = {
	{"write-eio", FAULT_WRITE_EIO, 1, false, true, STORE_DOWN},
	{"write-enospc", FAULT_WRITE_ENOSPC, 9, false, true, STORE_FULL},
	{"write-edquot", FAULT_WRITE_EDQUOT, 1, false, true, STORE_FULL},
	{"write-short", FAULT_WRITE_SHORT, 1, false, true, STORE_FULL},
	{"sync-eio", FAULT_SYNC_EIO, 1, true, false, STORE_DOWN},
	{"sync-enospc", FAULT_SYNC_ENOSPC, 1, true, false, STORE_DOWN},
	{"sync-edquot", FAULT_SYNC_EDQUOT, 1, true, false, STORE_DOWN},
	{"death", FAULT_DEATH, 1, true, true, STORE_OK},
};

#define POWERS 3
static const char *const power_names[POWERS] = {"stays", "loses-all", "reorders"};

/* What the answers were, against what the fault means. */
static bool judge(const struct script *script, const struct kind *kind, unsigned operation)
{
	if (ledger->operations_down != 0 || (kind->meaning != STORE_FULL && ledger->fulls != 0) ||
	    (kind->meaning != STORE_DOWN && ledger->downs != 0))
		return false;
	/* A start that has failed has said so; a failure in the end is nobody's but the next
	 * start's. */
	if (script->run != script_work || !ledger->started || operation > ledger->operations ||
	    !faulty_happened())
		return true;
	if (kind->meaning == STORE_DOWN)
		return ledger->downs == 1;
	return kind->meaning != STORE_FULL || ledger->fates[TRANSACTIONS] == COMMITTED;
}

/* Leaves the store in the hands of other processes, after the script's has ended. */
static bool look_at_what_is_left(const struct script *script, enum power power, unsigned seed)
{
	unsigned found;

	faulty_plan(FAULT_NONE, 0, 0);
	faulty_power(power, seed);
	if (script->makes)
		return in_process(script_make) == 0;
	if (in_process(look_again) != 0)
		return false;
	if (power != POWER_STAYS)
		return true;
	/* Who has started may have promised what it has found, as by answering a repeated key. */
	found = ledger->found;
	for (unsigned number = 1; number <= found; number++)
		ledger->fates[number] = COMMITTED;
	faulty_power(POWER_LOSES_ALL, seed);
	return in_process(look_again) == 0 && ledger->found == found;
}

static bool run(const struct script *script, const struct kind *kind, enum power power,
		unsigned operation)
{
	int status;

	restore(script->begin);
	faulty_plan(kind->fault, operation, kind->count);
	status = in_process(script->run);
	if (status != 0 && status != EXIT_DEATH)
		return false;
	return judge(script, kind, operation) && look_at_what_is_left(script, power, operation);
}

/* The operations of a script that goes well, and which are syncs. */
static bool syncs[20000];

static unsigned rehearse(const struct script *script)
{
	unsigned operations;

	restore(script->begin);
	ASSERT(in_process(script->run) == 0);
	operations = faulty_operations();
	for (unsigned i = 1; i <= operations; i++)
		syncs[i - 1] = faulty_was_sync(i);
	return operations;
}

/* How many runs there were, 0 after one that went wrong. A death with each kind of power, the other
 * faults with one kind at one operation, and the next at the next. */
static unsigned run_all(const struct script *script, const struct kind *kind, unsigned operations)
{
	unsigned runs = 0;

	for (unsigned i = 0; i < operations * POWERS; i++) {
		unsigned operation = i / POWERS;
		enum power power = (enum power)(i % POWERS);

		if (syncs[operation] ? !kind->sync : !kind->write)
			continue;
		if (kind->fault != FAULT_DEATH && operation % POWERS != power)
			continue;
		if (!run(script, kind, power, operation + 1)) {
			printf("failed: torn %s %s %s %u\n", script->name, kind->name,
			       power_names[power], operation + 1);
			return 0;
		}
		runs++;
	}
	return runs;
}

/* --- main ---------------------------------------------------------------------------------- */

static void prepare(void)
{
	/* Nothing is to survive this machine's power, so where there is no disk it goes faster. */
	(void)snprintf(folder, sizeof(folder), "%s/liminal-torn-XXXXXX",
		       access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
	ASSERT(mkdtemp(folder) != NULL);
	(void)snprintf(state, sizeof(state), "%s/state", folder);
	ASSERT(mkdir(state, 0700) == 0);
	ledger = mmap(NULL, sizeof(*ledger), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		      0);
	ASSERT(ledger != MAP_FAILED);
	ledger->ids_begin = 1;
	faulty_init();
	faulty_begin(state);
	save(&nothing);
	ASSERT(in_process(make_first) == 0);
	save(&first);
	ASSERT(in_process(make_left) == 0);
	save(&left);
}

static void clean_up(void)
{
	each_file(remove_file, NULL);
	(void)rmdir(state);
	(void)rmdir(folder);
	drop(&nothing);
	drop(&first);
	drop(&left);
}

/* One run: the names in ARGV. */
static bool run_one(char **argv)
{
	for (size_t i = 0; i < ARRAY_LENGTH(scripts) * ARRAY_LENGTH(kinds) * POWERS; i++) {
		const struct script *script = &scripts[i / POWERS / ARRAY_LENGTH(kinds)];
		const struct kind *kind = &kinds[i / POWERS % ARRAY_LENGTH(kinds)];

		if (strcmp(argv[1], script->name) == 0 && strcmp(argv[2], kind->name) == 0 &&
		    strcmp(argv[3], power_names[i % POWERS]) == 0)
			return run(script, kind, (enum power)(i % POWERS),
				   (unsigned)strtoul(argv[4], NULL, 10));
	}
	(void)fprintf(stderr, "torn: there is no such run\n");
	return false;
}

int main(int argc, char **argv)
{
	unsigned passed = 0, failed = 0, runs = 0, operations, done;

	prepare();
	if (argc == 5) {
		runs = 1;
		passed = run_one(argv);
		failed = !passed;
	}
	for (size_t i = 0; argc != 5 && i < ARRAY_LENGTH(scripts); i++) {
		operations = rehearse(&scripts[i]);
		for (size_t j = 0; j < ARRAY_LENGTH(kinds); j++) {
			done = run_all(&scripts[i], &kinds[j], operations);
			runs += done;
			passed += done > 0;
			failed += done == 0;
		}
	}
	clean_up();
	printf("%u runs\n%u passed, %u failed\n", runs, passed, failed);
	return failed > 0;
}
