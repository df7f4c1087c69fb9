/*
 * The HTTP side over real sockets. The clock is the test's own: it runs, but can be put forward, so
 * that no test waits for a connection's time to pass.
 */
#include "admin/admin.h"

#include <check.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "admin_fakes.h"
#include "base/clock.h"

/* --- the clock, in place of base/clock.c ---------------------------------------------------- */

static atomic_llong clock_ahead_ns;

int64_t clock_mono_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * NS_PER_S + now.tv_nsec + atomic_load(&clock_ahead_ns);
}

int64_t clock_wall_ms(void)
{
	return clock_mono_ns() / NS_PER_MS;
}

int64_t clock_after_ms(int64_t now_ns, int64_t ms)
{
	return now_ns + ms * NS_PER_MS;
}

#ifdef HAVE_HTTP

#define PATIENCE_S 30
#define CONNECTIONS 64

static struct admin *admin;
static char error_bytes[512];
static struct text error;
static struct sockaddr_in address;

static void find_port(void)
{
	const char *text = admin_http_address(admin);

	ck_assert_ptr_nonnull(text);
	ck_assert_msg(strncmp(text, "127.0.0.1:", 10) == 0, "it is %s", text);
	address = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_port = htons((uint16_t)atoi(text + 10)),
		.sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
	};
	ck_assert_int_ne(address.sin_port, 0);
}

static void setup(void)
{
	signal(SIGPIPE, SIG_IGN);
	fake = (struct fake_state){.listening = true};
	error = (struct text)TEXT_INIT(error_bytes);
	admin = admin_new(NULL, NULL, 1000);
	ck_assert_ptr_nonnull(admin);
}

static void setup_serving(void)
{
	setup();
	ck_assert_int_eq(admin_http_bind(admin, "127.0.0.1:0", &error), 0);
	ck_assert(admin_start(admin, &error));
	ck_assert_str_eq(error_bytes, "");
	find_port();
}

static void teardown(void)
{
	admin_stop(admin);
	admin_free(&admin);
}

static int dial(void)
{
	const struct timeval patience = {.tv_sec = PATIENCE_S};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience)), 0);
	ck_assert_int_eq(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

static void say(int fd, const char *text)
{
	ck_assert_int_eq(send(fd, text, strlen(text), 0), (ssize_t)strlen(text));
}

/* All that comes until the end of the stream; valid until the next call. */
static const char *hear(int fd)
{
	static char answer[64 * 1024];
	size_t length = 0;
	ssize_t got;

	while ((got = recv(fd, answer + length, sizeof(answer) - 1 - length, 0)) > 0)
		length += (size_t)got;
	ck_assert_msg(got == 0, "no end of stream: %s", strerror(errno));
	answer[length] = '\0';
	close(fd);
	return answer;
}

/* It was ended by the server without a word, by a reset where it had sent more than was read. */
static void expect_ended(int fd)
{
	char byte;
	ssize_t got = recv(fd, &byte, 1, 0);

	ck_assert_msg(got == 0 || (got < 0 && errno == ECONNRESET), "not ended: %s",
		      got > 0 ? "an answer" : strerror(errno));
	close(fd);
}

static const char *ask(const char *request)
{
	int fd = dial();

	say(fd, request);
	return hear(fd);
}

static void expect_status(const char *answer, const char *status)
{
	ck_assert_msg(strncmp(answer, "HTTP/1.", 7) == 0 && strncmp(answer + 9, status, 3) == 0,
		      "expected %s, got: %s", status, answer);
}

static void expect_body(const char *answer, const char *body)
{
	const char *end = strstr(answer, "\r\n\r\n");

	ck_assert_ptr_nonnull(end);
	ck_assert_str_eq(end + 4, body);
}

static void expect_header(const char *answer, const char *header)
{
	ck_assert_msg(strstr(answer, header) != NULL, "no %s in: %s", header, answer);
}

START_TEST(health)
{
	const char *answer = ask("GET /health HTTP/1.0\r\n\r\n");

	expect_status(answer, "200");
	expect_header(answer, "Content-Type: application/json\r\n");
	expect_body(answer, "{\"status\":\"healthy\",\"message\":null}");
	expect_status(ask("GET /health?verbose=1 HTTP/1.1\r\nHost: x\r\n\r\n"), "200");
}
END_TEST

START_TEST(ready)
{
	const char *answer = ask("GET /ready HTTP/1.0\r\n\r\n");

	expect_status(answer, "200");
	expect_header(answer, "Content-Type: application/json\r\n");
	expect_body(answer, "{\"ready\":true,\"unmet_conditions\":[]}");
}
END_TEST

START_TEST(not_ready)
{
	fake.listening = false;
	ck_assert_int_eq(admin_http_bind(admin, "127.0.0.1:0", &error), 0);
	ck_assert(admin_start(admin, &error));
	find_port();
	const char *answer = ask("GET /ready HTTP/1.0\r\n\r\n");
	expect_status(answer, "503");
	expect_body(answer, "{\"ready\":false,\"unmet_conditions\":[\"listener_bound\"]}");
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
}
END_TEST

START_TEST(store_not_ready)
{
	const char *answer;

	fake.has_store = true;
	expect_status(ask("GET /ready HTTP/1.0\r\n\r\n"), "200");
	fake.store_is_down = true;
	answer = ask("GET /ready HTTP/1.0\r\n\r\n");
	expect_status(answer, "503");
	expect_body(answer, "{\"ready\":false,\"unmet_conditions\":[\"store_ready\"]}");
	fake.listening = false;
	answer = ask("GET /ready HTTP/1.0\r\n\r\n");
	expect_status(answer, "503");
	expect_body(answer, "{\"ready\":false,"
			    "\"unmet_conditions\":[\"listener_bound\",\"store_ready\"]}");
}
END_TEST

START_TEST(metrics)
{
	const char *answer = ask("GET /metrics HTTP/1.0\r\n\r\n");

	expect_status(answer, "200");
	expect_header(answer, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n");
	expect_header(answer, "\nprocess_start_time_seconds 1\n");
}
END_TEST

START_TEST(metrics_without_memory)
{
	fake.no_memory = true;
	ck_assert_int_eq(admin_http_bind(admin, "127.0.0.1:0", &error), 0);
	ck_assert(admin_start(admin, &error));
	find_port();
	expect_status(ask("GET /metrics HTTP/1.0\r\n\r\n"), "500");
}
END_TEST

START_TEST(head)
{
	const char *answer = ask("HEAD /health HTTP/1.0\r\n\r\n");

	expect_status(answer, "200");
	expect_header(answer, "Content-Length: 35\r\n");
	expect_body(answer, "");
}
END_TEST

START_TEST(other_paths)
{
	expect_status(ask("GET / HTTP/1.0\r\n\r\n"), "404");
	expect_status(ask("GET /health/ HTTP/1.0\r\n\r\n"), "404");
	expect_status(ask("GET /healthy HTTP/1.0\r\n\r\n"), "404");
	expect_status(ask("POST /nothing HTTP/1.0\r\n\r\n"), "404");
}
END_TEST

START_TEST(other_methods)
{
	static const char *const methods[] = {"POST", "PUT", "DELETE", "OPTIONS", "get", "BREW"};
	static const char *const paths[] = {"/health", "/ready", "/metrics"};

	for (size_t i = 0; i < ARRAY_LENGTH(methods); i++) {
		char request[64];

		snprintf(request, sizeof(request), "%s %s HTTP/1.0\r\n\r\n", methods[i],
			 paths[i % ARRAY_LENGTH(paths)]);
		const char *answer = ask(request);
		expect_status(answer, "405");
		expect_header(answer, "Allow: GET, HEAD\r\n");
	}
}
END_TEST

/* A body is read to its end: to close before that would reset the connection, answer and all. */
START_TEST(body)
{
	static char piece[64 * 1024];
	int fd = dial();

	say(fd, "POST /ready HTTP/1.1\r\nHost: x\r\nContent-Length: 16777216\r\n\r\n");
	memset(piece, 'x', sizeof(piece) - 1);
	for (size_t left = 16777216; left > 0; left -= strlen(piece)) {
		piece[size_min(left, sizeof(piece) - 1)] = '\0';
		say(fd, piece);
	}
	expect_status(hear(fd), "405");
}
END_TEST

/* The bound is reached by silent clients, and still the next one is answered. */
START_TEST(silent_clients)
{
	int silent[CONNECTIONS];

	for (size_t i = 0; i < CONNECTIONS; i++)
		silent[i] = dial();
	for (int i = 0; i < 3; i++)
		expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");

	/* The oldest made room, at most one for each; the others are there. */
	expect_ended(silent[0]);
	say(silent[3], "GET /health HTTP/1.0\r\n\r\n");
	expect_status(hear(silent[3]), "200");
	say(silent[CONNECTIONS - 1], "GET /health HTTP/1.0\r\n\r\n");
	expect_status(hear(silent[CONNECTIONS - 1]), "200");
}
END_TEST

START_TEST(many_at_once)
{
	int clients[4 * CONNECTIONS];

	for (size_t i = 0; i < ARRAY_LENGTH(clients); i++)
		clients[i] = dial();
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
	for (size_t i = 0; i <= 3 * CONNECTIONS; i++)
		expect_ended(clients[i]);
	say(clients[4 * CONNECTIONS - 1], "GET /health HTTP/1.0\r\n\r\n");
	expect_status(hear(clients[4 * CONNECTIONS - 1]), "200");
}
END_TEST

/* Ten seconds in all, however busy the client keeps its connection. */
START_TEST(lifetime)
{
	int slow = dial(), later;

	say(slow, "GET /heal");
	/* When this is answered the slow one has been taken, too. */
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
	atomic_fetch_add(&clock_ahead_ns, 9 * NS_PER_S);
	say(slow, "t");
	later = dial();
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
	atomic_fetch_add(&clock_ahead_ns, 1 * NS_PER_S);
	say(slow, "h");
	/* Any connection makes the server look at the time. */
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
	expect_ended(slow);
	say(later, "GET /health HTTP/1.0\r\n\r\n");
	expect_status(hear(later), "200");
}
END_TEST

START_TEST(stop_ends_connections)
{
	int silent = dial();

	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
	admin_stop(admin);
	expect_ended(silent);
	ck_assert_ptr_null(admin_http_address(admin));
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	ck_assert_int_ne(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	close(fd);
}
END_TEST

START_TEST(passed_socket)
{
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	ck_assert_int_ge(fd, 0);
	address = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
	};
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, length), 0);
	ck_assert_int_eq(listen(fd, 5), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	in_port_t port = address.sin_port;

	ck_assert_int_eq(admin_http_fd(admin, fd, &error), 0);
	find_port();
	ck_assert_int_eq(address.sin_port, port);
	ck_assert(admin_start(admin, &error));
	expect_status(ask("GET /health HTTP/1.0\r\n\r\n"), "200");
}
END_TEST

static void refuses(const char *where, const char *why)
{
	ck_assert_int_eq(admin_http_bind(admin, where, &error), -1);
	ck_assert_msg(strstr(error_bytes, where) != NULL && strstr(error_bytes, why) != NULL,
		      "the text is: %s", error_bytes);
	ck_assert_ptr_null(admin_http_address(admin));
	error = (struct text)TEXT_INIT(error_bytes);
}

START_TEST(passed_other)
{
	int fd = socket(AF_INET, SOCK_DGRAM, 0);

	ck_assert_int_eq(admin_http_fd(admin, fd, &error), -1);
	ck_assert_ptr_nonnull(strstr(error_bytes, "not a stream socket"));
	close(fd);
	ck_assert_int_eq(admin_http_fd(admin, fd, &error), -1);
	ck_assert_ptr_nonnull(strstr(error_bytes, "not a stream socket"));
	ck_assert_ptr_null(admin_http_address(admin));
}
END_TEST

START_TEST(bind_errors)
{
	char taken[64];
	socklen_t length = sizeof(address);
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	address = (struct sockaddr_in){
		.sin_family = AF_INET,
		.sin_addr = {.s_addr = htonl(INADDR_LOOPBACK)},
	};
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, length), 0);
	ck_assert_int_eq(listen(fd, 5), 0);
	ck_assert_int_eq(getsockname(fd, (struct sockaddr *)&address, &length), 0);
	snprintf(taken, sizeof(taken), "127.0.0.1:%u", ntohs(address.sin_port));
	refuses(taken, strerror(EADDRINUSE));
	close(fd);

	refuses("7481", "HOST:PORT");
	refuses(":7481", "HOST:PORT");
	refuses("[::1:7481", "HOST:PORT");
	refuses("127.0.0.1:http", "");
	refuses("192.0.2.1:0", strerror(EADDRNOTAVAIL));
}
END_TEST

START_TEST(nothing_bound)
{
	ck_assert_ptr_null(admin_http_address(admin));
	ck_assert(admin_start(admin, &error));
	ck_assert_str_eq(error_bytes, "");
}
END_TEST

static Suite *admin_http_suite(void)
{
	Suite *suite = suite_create("admin_http");
	TCase *serving = tcase_create("serving");
	TCase *binding = tcase_create("binding");

	tcase_set_timeout(serving, 2 * PATIENCE_S);
	tcase_add_checked_fixture(serving, setup_serving, teardown);
	tcase_add_test(serving, health);
	tcase_add_test(serving, ready);
	tcase_add_test(serving, store_not_ready);
	tcase_add_test(serving, metrics);
	tcase_add_test(serving, head);
	tcase_add_test(serving, other_paths);
	tcase_add_test(serving, other_methods);
	tcase_add_test(serving, body);
	tcase_add_test(serving, silent_clients);
	tcase_add_test(serving, many_at_once);
	tcase_add_test(serving, lifetime);
	tcase_add_test(serving, stop_ends_connections);
	suite_add_tcase(suite, serving);

	tcase_set_timeout(binding, 2 * PATIENCE_S);
	tcase_add_checked_fixture(binding, setup, teardown);
	tcase_add_test(binding, not_ready);
	tcase_add_test(binding, metrics_without_memory);
	tcase_add_test(binding, passed_socket);
	tcase_add_test(binding, passed_other);
	tcase_add_test(binding, bind_errors);
	tcase_add_test(binding, nothing_bound);
	suite_add_tcase(suite, binding);
	return suite;
}

#else

START_TEST(refused)
{
	char bytes[256];
	struct text error = TEXT_INIT(bytes);
	struct admin *admin = admin_new(NULL, NULL, 1000);

	ck_assert_int_eq(admin_http_bind(admin, "127.0.0.1:0", &error), -1);
	ck_assert_ptr_nonnull(strstr(bytes, "127.0.0.1:0"));
	ck_assert_ptr_null(admin_http_address(admin));
	ck_assert(admin_start(admin, &error));
	admin_stop(admin);
	admin_free(&admin);
}
END_TEST

static Suite *admin_http_suite(void)
{
	Suite *suite = suite_create("admin_http");
	TCase *none = tcase_create("none");

	tcase_add_test(none, refused);
	suite_add_tcase(suite, none);
	return suite;
}

#endif

int main(void)
{
	SRunner *runner = srunner_create(admin_http_suite());
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
