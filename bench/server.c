/*
 * The process under test: on loopback, on a port that was free, in a directory of its own. It is
 * ended by its process id, and never outlives its run.
 */
#include "bench/bench.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/magic.h>
#include <sys/vfs.h>
#endif

#define OUTPUT_FILE "output"
#define WORDS_MAX 32

static void pause_ms(long ms)
{
	struct timespec pause = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	(void)nanosleep(&pause, NULL);
}

static bool server_complain(const struct server *server, const char *what)
{
	(void)fprintf(stderr, "bench: %s: %s: %s\n", server->peer->name, what, strerror(errno));
	return false;
}

bool server_installed(const struct peer *peer)
{
	const char *path = getenv("PATH");

	while (path != NULL && *path != '\0') {
		size_t length = strcspn(path, ":");
		char file[1024];

		(void)snprintf(file, sizeof(file), "%.*s/%s", (int)length, path, peer->program);
		if (access(file, X_OK) == 0)
			return true;
		path += length + (path[length] == ':');
	}
	return false;
}

/* --- folders ------------------------------------------------------------------------------- */

static const char *bench_folder(void)
{
	const char *folder = getenv("TMPDIR");

	return folder != NULL && strlen(folder) < DIRECTORY_SIZE - 32 ? folder : "/tmp";
}

bool bench_make_directory(char directory[DIRECTORY_SIZE])
{
	(void)snprintf(directory, DIRECTORY_SIZE, "%s/liminal-bench.XXXXXX", bench_folder());
	if (mkdtemp(directory) != NULL)
		return true;
	(void)fprintf(stderr, "bench: cannot make %s: %s\n", directory, strerror(errno));
	directory[0] = '\0';
	return false;
}

static int remove_entry(const char *path, const struct stat *status, int type, struct FTW *place)
{
	(void)status;
	(void)type;
	(void)place;
	return remove(path);
}

void bench_remove_directory(const char *directory)
{
	if (directory[0] != '\0')
		(void)nftw(directory, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

bool bench_is_memory(void)
{
#ifdef __linux__
	struct statfs system;

	return statfs(bench_folder(), &system) == 0 && system.f_type == TMPFS_MAGIC;
#else
	return false;
#endif
}

/* --- starting ------------------------------------------------------------------------------ */

static struct sockaddr_in loopback(uint16_t port)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_port = htons(port),
				    .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
}

/* One that the system has just given out: nobody else gets it soon. 0: failed. */
static uint16_t free_port(void)
{
	struct sockaddr_in address = loopback(0);
	socklen_t size = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	uint16_t port = 0;

	if (fd < 0)
		return 0;
	if (bind(fd, (struct sockaddr *)&address, size) == 0 &&
	    getsockname(fd, (struct sockaddr *)&address, &size) == 0)
		port = ntohs(address.sin_port);
	(void)close(fd);
	return port;
}

static bool server_configure(const struct server *server, const struct demand *demand)
{
	char path[DIRECTORY_SIZE + 32];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", server->directory, CONFIGURATION_FILE);
	file = fopen(path, "w");
	if (file == NULL)
		return false;
	if (server->peer->configure != NULL)
		server->peer->configure(server, demand, file);
	return fclose(file) == 0;
}

/* The child: a directory of its own, output to a file, no descriptor of ours. */
_Noreturn static void server_execute(const struct server *server, char *command)
{
	char *words[WORDS_MAX + 1], *place = NULL;
	size_t count = 0;
	int output;

	for (char *word = strtok_r(command, " ", &place); word != NULL && count < WORDS_MAX;
	     word = strtok_r(NULL, " ", &place))
		words[count++] = word;
	words[count] = NULL;
	if (chdir(server->directory) != 0)
		_exit(127);
	output = open(OUTPUT_FILE, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	if (output < 0 || dup2(output, 1) < 0 || dup2(output, 2) < 0)
		_exit(127);
	(void)execvp(words[0], words);
	_exit(127);
}

static bool server_accepts(const struct server *server)
{
	struct sockaddr_in address = loopback(server->port);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	bool accepts = fd >= 0 && connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;

	if (fd >= 0)
		(void)close(fd);
	return accepts;
}

static void server_show_output(const struct server *server)
{
	char path[DIRECTORY_SIZE + 32], line[256];
	FILE *file;

	(void)snprintf(path, sizeof(path), "%s/%s", server->directory, OUTPUT_FILE);
	file = fopen(path, "r");
	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		(void)fprintf(stderr, "bench: %s: %s", server->peer->name, line);
	if (file != NULL)
		(void)fclose(file);
}

static bool server_wait_ready(struct server *server)
{
	int64_t until_ns = bench_now_ns() + PATIENCE_S * NS_PER_S;

	while (!server_accepts(server)) {
		if (waitpid(server->pid, NULL, WNOHANG) == server->pid ||
		    bench_now_ns() > until_ns) {
			(void)fprintf(stderr, "bench: %s does not start\n", server->peer->name);
			server_show_output(server);
			return false;
		}
		pause_ms(2);
	}
	return true;
}

bool server_start(struct server *server, const struct peer *peer, const struct demand *demand)
{
	char command[512];
	int64_t began_ns;

	*server = (struct server){.peer = peer, .pid = -1};
	if (!bench_make_directory(server->directory))
		return false;
	server->port = free_port();
	if (server->port == 0 || !server_configure(server, demand))
		return server_complain(server, "cannot prepare");
	peer->command(server, demand, command, sizeof(command));
	began_ns = bench_now_ns();
	server->pid = fork();
	if (server->pid < 0)
		return server_complain(server, "cannot fork");
	if (server->pid == 0)
		server_execute(server, command);
	if (!server_wait_ready(server)) {
		server->pid = -1;
		return false;
	}
	server->start_s = (double)(bench_now_ns() - began_ns) / 1e9;
	errno = clock_getcpuclockid(server->pid, &server->cpu);
	return errno == 0 || server_complain(server, "has no CPU clock");
}

/* --- stopping ------------------------------------------------------------------------------ */

static void server_end(const struct server *server)
{
	int64_t until_ns = bench_now_ns() + PATIENCE_S * NS_PER_S;

	(void)kill(server->pid, SIGTERM);
	while (waitpid(server->pid, NULL, WNOHANG) == 0) {
		if (bench_now_ns() > until_ns) {
			(void)kill(server->pid, SIGKILL);
			(void)waitpid(server->pid, NULL, 0);
			return;
		}
		pause_ms(1);
	}
}

void server_stop(struct server *server)
{
	if (server->pid > 0)
		server_end(server);
	server->pid = -1;
	if (server->directory[0] == '\0')
		return;
	bench_remove_directory(server->directory);
}

/* --- what it uses -------------------------------------------------------------------------- */

int64_t server_cpu_ns(const struct server *server)
{
	struct timespec used = {0};

	(void)clock_gettime(server->cpu, &used);
	return used.tv_sec * NS_PER_S + used.tv_nsec;
}

int64_t server_resident_bytes(const struct server *server)
{
	char command[64];
	long kilobytes = 0;
	FILE *ps;

	(void)snprintf(command, sizeof(command), "ps -o rss= -p %ld", (long)server->pid);
	ps = popen(command, "r");
	if (ps == NULL)
		return 0;
	if (fscanf(ps, "%ld", &kilobytes) != 1)
		kilobytes = 0;
	(void)pclose(ps);
	return (int64_t)kilobytes * 1024;
}

/* --- the machine --------------------------------------------------------------------------- */

/* Only Linux is known to do this; elsewhere the cases for one core get two. */
void bench_pin(bool one_core)
{
#ifdef __linux__
	static cpu_set_t all;
	cpu_set_t one;

	if (CPU_COUNT(&all) == 0)
		(void)sched_getaffinity(0, sizeof(all), &all);
	if (!one_core) {
		(void)sched_setaffinity(0, sizeof(all), &all);
		return;
	}
	CPU_ZERO(&one);
	for (int i = CPU_SETSIZE - 1; i >= 0; i--) {
		if (CPU_ISSET(i, &all)) {
			CPU_SET(i, &one);
			break;
		}
	}
	(void)sched_setaffinity(0, sizeof(one), &one);
#else
	(void)one_core;
#endif
}
