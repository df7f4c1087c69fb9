/*
 * Children of `liminal worker`. Several threads run one each; a lock keeps a pipe of one from
 * being inherited by the child of another, which would keep it open: pipes are made, and children
 * started, one at a time.
 */
#include "liminal/command.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"

#define COMMAND_TICK_NS (NS_PER_S / 4)
/* More than a pipe of any system holds. */
#define COMMAND_PIPE_MAX ((size_t)256 * 1024)
/* How often the end of a command is looked for that has closed its output. */
#define COMMAND_LOOK_MS 20

extern char **environ;

static pthread_mutex_t command_lock = PTHREAD_MUTEX_INITIALIZER;

/* A running child. A descriptor is -1 when that side is closed. */
struct command {
	pid_t pid;
	int input, output, error;
	const char *at; /* what is still to be written */
	size_t left;
	size_t capacity; /* of the output */
	size_t output_max;
	char line[COMMAND_WORDS]; /* of standard error, which has not ended yet */
	size_t line_length;
	bool too_large;
	struct command_result *result;
};

static void command_close(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

static void command_pipes_close(int pipes[3][2])
{
	for (int i = 0; i < 3; i++) {
		command_close(&pipes[i][0]);
		command_close(&pipes[i][1]);
	}
}

/* Side [1] of a pipe is for writing: ours of the first one, the child's of the others. */
static int command_pipes(int pipes[3][2], bool output)
{
	for (int i = 0; i < 3; i++)
		pipes[i][0] = pipes[i][1] = -1;
	for (int i = 0; i < 3; i++) {
		int ours = i == 0 ? 1 : 0;

		if (i == 1 && !output)
			continue;
		if (pipe(pipes[i]) == -1 || fcntl(pipes[i][0], F_SETFD, FD_CLOEXEC) == -1 ||
		    fcntl(pipes[i][1], F_SETFD, FD_CLOEXEC) == -1 ||
		    fcntl(pipes[i][ours], F_SETFL, O_NONBLOCK) == -1) {
			int error = errno;

			command_pipes_close(pipes);
			return error;
		}
	}
	return 0;
}

/* 0 or an errno value. */
static int command_spawn_with(char *const *argv, int pipes[3][2], pid_t *pid)
{
	posix_spawn_file_actions_t actions;
	posix_spawnattr_t attributes;
	sigset_t none, defaults;
	int error;

	error = posix_spawn_file_actions_init(&actions);
	if (error != 0)
		return error;
	error = posix_spawnattr_init(&attributes);
	if (error != 0) {
		posix_spawn_file_actions_destroy(&actions);
		return error;
	}
	sigemptyset(&none);
	sigemptyset(&defaults);
	sigaddset(&defaults, SIGPIPE);
	posix_spawnattr_setsigmask(&attributes, &none);
	posix_spawnattr_setsigdefault(&attributes, &defaults);
	/* A group of its own: an interrupt typed at the terminal is for us; the work goes on. */
	posix_spawnattr_setpgroup(&attributes, 0);
	posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF |
						      POSIX_SPAWN_SETPGROUP);
	error = posix_spawn_file_actions_adddup2(&actions, pipes[0][0], STDIN_FILENO);
	if (error == 0 && pipes[1][1] != -1)
		error = posix_spawn_file_actions_adddup2(&actions, pipes[1][1], STDOUT_FILENO);
	if (error == 0)
		error = posix_spawn_file_actions_adddup2(&actions, pipes[2][1], STDERR_FILENO);
	if (error == 0)
		error = posix_spawnp(pid, argv[0], &actions, &attributes, argv, environ);
	posix_spawnattr_destroy(&attributes);
	posix_spawn_file_actions_destroy(&actions);
	return error;
}

static int command_spawn(struct command *command, char *const *argv, pid_t *group)
{
	int pipes[3][2], error;

	pthread_mutex_lock(&command_lock);
	error = command_pipes(pipes, command->output_max > 0);
	if (error == 0) {
		error = command_spawn_with(argv, pipes, &command->pid);
		if (error == 0) {
			command->input = pipes[0][1];
			command->output = pipes[1][0];
			command->error = pipes[2][0];
			pipes[0][1] = pipes[1][0] = pipes[2][0] = -1;
			*group = command->pid;
		}
		command_pipes_close(pipes);
	}
	pthread_mutex_unlock(&command_lock);
	return error;
}

/* The bytes as UTF-8: what is none becomes a question mark. */
static void command_set_words(struct command_result *result, const char *line, size_t length)
{
	char *at = result->words;

	while (length > 0) {
		size_t size = 1;

		while (size < 4 && size < length && !utf8_valid((const uint8_t *)line, size))
			size++;
		if (!utf8_valid((const uint8_t *)line, size)) {
			size = 1;
			*at++ = '?';
		} else {
			memcpy(at, line, size);
			at += size;
		}
		line += size;
		length -= size;
	}
	*at = '\0';
}

/* Keeps the last line that is not empty; of a long one its beginning. */
static void command_note_words(struct command *command, const char *bytes, size_t length)
{
	for (size_t i = 0; i < length; i++) {
		if (bytes[i] != '\n') {
			if (command->line_length < sizeof(command->line))
				command->line[command->line_length++] = bytes[i];
			continue;
		}
		if (command->line_length > 0)
			command_set_words(command->result, command->line, command->line_length);
		command->line_length = 0;
	}
}

static void command_write(struct command *command)
{
	ssize_t written = write(command->input, command->at, command->left);

	if (written > 0) {
		command->at += written;
		command->left -= (size_t)written;
	}
	/* A command need not read its input. */
	if (command->left == 0 || (written == -1 && errno != EAGAIN && errno != EINTR))
		command_close(&command->input);
}

/* How many bytes came; both close the pipe at its end. */
static size_t command_read_error(struct command *command)
{
	char bytes[4096];
	ssize_t got = read(command->error, bytes, sizeof(bytes));

	if (got > 0) {
		fwrite(bytes, 1, (size_t)got, stderr);
		command_note_words(command, bytes, (size_t)got);
		return (size_t)got;
	}
	if (got == 0 || (errno != EAGAIN && errno != EINTR))
		command_close(&command->error);
	return 0;
}

static size_t command_read_output(struct command *command)
{
	struct command_result *result = command->result;
	ssize_t got;

	if (command->capacity - result->output_length < 4096) {
		size_t capacity = command->capacity == 0 ? 8192 : command->capacity * 2;
		char *larger = result->output_length > command->output_max
				       ? NULL
				       : realloc(result->output, capacity);

		if (larger == NULL) {
			/* It finds its pipe closed. */
			command->too_large = true;
			command_close(&command->output);
			return 0;
		}
		result->output = larger;
		command->capacity = capacity;
	}
	got = read(command->output, result->output + result->output_length,
		   command->capacity - result->output_length);
	if (got > 0) {
		result->output_length += (size_t)got;
		return (size_t)got;
	}
	if (got == 0 || (errno != EAGAIN && errno != EINTR))
		command_close(&command->output);
	return 0;
}

/* Waits until DEADLINE_NS at most for one of the pipes, and serves those that are ready. */
static void command_poll(struct command *command, int64_t deadline_ns)
{
	struct pollfd fds[3] = {{.fd = command->input, .events = POLLOUT},
				{.fd = command->output, .events = POLLIN},
				{.fd = command->error, .events = POLLIN}};
	int64_t left_ms = (deadline_ns - clock_mono_ns()) / NS_PER_MS + 1;

	/* With all of them closed only its end is waited for: look at it often. */
	if (command->output == -1 && command->error == -1)
		left_ms = COMMAND_LOOK_MS;
	if (poll(fds, 3, left_ms > 0 ? (int)left_ms : 0) <= 0)
		return;
	if (fds[0].revents != 0)
		command_write(command);
	if (fds[1].revents != 0)
		command_read_output(command);
	if (fds[2].revents != 0)
		command_read_error(command);
}

/*
 * What the command has left in the pipes. Those that it has started and left behind may have them
 * open, and may write for ever: no more is taken than the command itself can have written.
 */
static void command_read_rest(struct command *command)
{
	size_t output = 0, error = 0;

	for (;;) {
		struct pollfd fds[2] = {
			{.fd = output < COMMAND_PIPE_MAX ? command->output : -1, .events = POLLIN},
			{.fd = error < COMMAND_PIPE_MAX ? command->error : -1, .events = POLLIN}};

		if (poll(fds, 2, 0) <= 0)
			return;
		if (fds[0].revents != 0)
			output += command_read_output(command);
		if (fds[1].revents != 0)
			error += command_read_error(command);
	}
}

static int command_wait(struct command *command, command_still_running *still_running,
			void *context)
{
	int64_t tick_ns = clock_mono_ns() + COMMAND_TICK_NS;
	int status = 0;
	pid_t ended;

	for (;;) {
		command_poll(command, tick_ns);
		ended = waitpid(command->pid, &status, WNOHANG);
		if (ended == command->pid || (ended == -1 && errno != EINTR))
			return status;
		if (clock_mono_ns() < tick_ns)
			continue;
		still_running(context);
		tick_ns = clock_mono_ns() + COMMAND_TICK_NS;
	}
}

static void command_conclude(struct command *command, const char *name, int status)
{
	struct command_result *result = command->result;

	command_note_words(command, "\n", 1);
	result->exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
	if (command->too_large || result->output_length > command->output_max) {
		result->exit_status = -1;
		snprintf(result->words, sizeof(result->words),
			 "the output of %.200s is larger than %zu bytes", name,
			 command->output_max);
	} else if (WIFSIGNALED(status) && result->words[0] == '\0') {
		snprintf(result->words, sizeof(result->words), "%.200s was ended by signal %d",
			 name, WTERMSIG(status));
	} else if (result->exit_status != 0 && result->words[0] == '\0') {
		snprintf(result->words, sizeof(result->words), "%.200s exited with status %d", name,
			 result->exit_status);
	}
}

void command_run(char *const *argv, const void *input, size_t length, size_t output_max,
		 pid_t *group, command_still_running *still_running, void *context,
		 struct command_result *result)
{
	struct command command = {
		.at = input, .left = length, .output_max = output_max, .result = result};
	int error, status;

	*result = (struct command_result){.exit_status = -1};
	error = command_spawn(&command, argv, group);
	if (error != 0) {
		snprintf(result->words, sizeof(result->words), "%.200s cannot be run: %s", argv[0],
			 strerror(error));
		return;
	}
	if (length == 0)
		command_close(&command.input);
	status = command_wait(&command, still_running, context);
	pthread_mutex_lock(&command_lock);
	*group = 0;
	pthread_mutex_unlock(&command_lock);
	command_read_rest(&command);
	command_close(&command.input);
	command_close(&command.output);
	command_close(&command.error);
	command_conclude(&command, argv[0], status);
}

void command_terminate(const pid_t *group, int signal_number)
{
	pthread_mutex_lock(&command_lock);
	if (*group > 0)
		kill(-*group, signal_number);
	pthread_mutex_unlock(&command_lock);
}

static bool command_executable(const char *path)
{
	struct stat status;

	return stat(path, &status) == 0 && S_ISREG(status.st_mode) && access(path, X_OK) == 0;
}

bool command_exists(const char *name)
{
	const char *path = getenv("PATH");
	char candidate[4096];

	if (strchr(name, '/') != NULL)
		return command_executable(name);
	for (path = path != NULL ? path : "/usr/bin:/bin"; *name != '\0';) {
		size_t length = strcspn(path, ":");

		/* An empty part is the current directory. */
		snprintf(candidate, sizeof(candidate), "%.*s/%s", length > 0 ? (int)length : 1,
			 length > 0 ? path : ".", name);
		if (command_executable(candidate))
			return true;
		if (path[length] == '\0')
			return false;
		path += length + 1;
	}
	return false;
}
