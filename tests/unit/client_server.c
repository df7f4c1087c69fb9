/* See client_server.h. */
#include "client_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

struct server server;

static void receive_all(int fd, uint8_t *bytes, size_t length)
{
	while (length > 0) {
		ssize_t got = recv(fd, bytes, length, 0);

		ck_assert_msg(got > 0, "the client has left");
		bytes += got;
		length -= (size_t)got;
	}
}

void send_all(const uint8_t *bytes, size_t length)
{
	while (length > 0) {
		ssize_t sent = send(server.fd, bytes, length, MSG_NOSIGNAL);

		ck_assert_int_gt(sent, 0);
		bytes += sent;
		length -= (size_t)sent;
	}
}

const struct wire_frame *expect_any(void)
{
	uint8_t head[WIRE_HEADER_SIZE];
	const char *why;
	struct wire_header header;

	receive_all(server.fd, head, sizeof(head));
	header = wire_get_header(head);
	ck_assert_uint_le(header.length, sizeof(server.payload));
	receive_all(server.fd, server.payload, header.length);
	ck_assert_int_eq(
		wire_decode_payload(header, server.payload, WIRE_VERSION_1_2, &server.frame, &why),
		WIRE_OK);
	return &server.frame;
}

const struct wire_frame *expect(uint8_t type)
{
	expect_any();
	ck_assert_msg(server.frame.header.type == type, "the client sent %s instead of %s",
		      wire_type_name(server.frame.header.type), wire_type_name(type));
	return &server.frame;
}

/* Frames are gathered, so that several can leave in one segment. */
static uint8_t outgoing[1 << 20];
static size_t outgoing_length;

void put(struct wire_frame frame)
{
	size_t size =
		wire_encode(&frame, outgoing + outgoing_length, sizeof(outgoing) - outgoing_length);

	ck_assert_uint_le(size, sizeof(outgoing) - outgoing_length);
	outgoing_length += size;
}

void leave(void)
{
	send_all(outgoing, outgoing_length);
	outgoing_length = 0;
}

void put_empty(uint8_t type)
{
	put((struct wire_frame){.header = {.type = type}});
}

void put_publish_ack(uint32_t stream, uint64_t message, uint8_t flags)
{
	put((struct wire_frame){.header = {WIRE_PUBLISH_ACK, flags, stream, 0},
				.u.publish_ack.message = message});
}

void put_error(uint8_t type, uint32_t stream, uint16_t code, const char *text)
{
	put((struct wire_frame){.header = {.type = type, .stream = stream},
				.u.error = {code, {true, span_of(text)}}});
}

static struct wire_envelope envelope(const char *payload)
{
	static const uint8_t independent[2];

	return (struct wire_envelope){.schema = (const uint8_t *)SCHEMA,
				      .context = {independent, 2},
				      .payload = span_of(payload)};
}

void put_subscribe_ack(uint32_t stream, uint64_t id)
{
	put((struct wire_frame){.header = {.type = WIRE_SUBSCRIBE_ACK, .stream = stream},
				.u.subscribe_ack = {id, (const uint8_t *)SCHEMA}});
}

void put_deliver(uint32_t stream, uint64_t sequence, const char *payload)
{
	put_deliver_with(stream, sequence, 0, payload);
}

void put_deliver_with(uint32_t stream, uint64_t sequence, uint8_t flags, const char *payload)
{
	put((struct wire_frame){
		.header = {WIRE_DELIVER, flags | WIRE_DELIVER_ORIGIN, stream, 0},
		.u.deliver = {sequence, envelope(payload), true, 77, 1000 + sequence}});
}

void put_push(uint64_t correlation, const char *payload)
{
	put((struct wire_frame){.header = {.type = WIRE_PUSH, .stream = 1},
				.u.push = {correlation, span_of(payload)}});
}

void put_register_ack(void)
{
	put((struct wire_frame){.header = {.type = WIRE_WORKER_REGISTER_ACK}});
}

void put_reply(uint32_t stream, uint64_t conversation, const char *payload)
{
	put((struct wire_frame){
		.header = {WIRE_CONVERSATION_MESSAGE, WIRE_MESSAGE_REPLY, stream, 0},
		.u.conversation_message = {conversation, envelope(payload)}});
}

void put_conversation_error(uint32_t stream, uint64_t conversation, uint16_t code, const char *text)
{
	put((struct wire_frame){
		.header = {.type = WIRE_CONVERSATION_ERROR, .stream = stream},
		.u.conversation_error = {conversation, code, {true, span_of(text)}}});
}

void server_take(void)
{
	int on = 1;

	server.fd = accept(server.listener, NULL, NULL);
	ck_assert_int_ne(server.fd, -1);
	setsockopt(server.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	expect(WIRE_CONNECT);
}

void server_greet(void)
{
	server_take();
	put((struct wire_frame){.header = {.type = WIRE_CONNECT_ACK},
				.u.connect_ack = {WIRE_VERSION_1_2, 5}});
	leave();
}

void server_drop(void)
{
	close(server.fd);
	server.fd = -1;
}

void server_expect_end(void)
{
	uint8_t byte;

	expect(WIRE_DISCONNECT);
	ck_assert_int_eq(recv(server.fd, &byte, 1, 0), 0);
	server_drop();
}

uint32_t expect_publish(void)
{
	return expect(WIRE_PUBLISH)->header.stream;
}

uint32_t expect_subscribe(uint64_t id)
{
	uint32_t stream = expect(WIRE_SUBSCRIBE)->header.stream;

	put_subscribe_ack(stream, id);
	leave();
	return stream;
}

/* Not semaphores: macOS has none without a name. */
void tell(const int event[2])
{
	ck_assert_int_eq(write(event[1], "", 1), 1);
}

void wait_for(const int event[2])
{
	char byte;

	ck_assert_int_eq(read(event[0], &byte, 1), 1);
}

static void *server_main(void *script)
{
	(void)script;
	server.script();
	return NULL;
}

void server_start(void (*script)(void))
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	socklen_t length = sizeof(address);

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	server.listener = socket(AF_INET, SOCK_STREAM, 0);
	ck_assert_int_ne(server.listener, -1);
	ck_assert_int_eq(bind(server.listener, (struct sockaddr *)&address, sizeof(address)), 0);
	ck_assert_int_eq(listen(server.listener, 8), 0);
	ck_assert_int_eq(getsockname(server.listener, (struct sockaddr *)&address, &length), 0);
	snprintf(server.address, sizeof(server.address), "127.0.0.1:%d", ntohs(address.sin_port));
	server.script = script;
	server.fd = -1;
	ck_assert_int_eq(pipe(server.go), 0);
	ck_assert_int_eq(pipe(server.here), 0);
	ck_assert_int_eq(pthread_create(&server.thread, NULL, server_main, NULL), 0);
}

void server_end(void)
{
	pthread_join(server.thread, NULL);
	close(server.listener);
}

struct liminal_options options_for(int timeout_ms)
{
	struct liminal_options options = LIMINAL_OPTIONS_INIT;

	options.server = server.address;
	options.timeout_ms = timeout_ms;
	return options;
}

struct liminal *open_client(void (*script)(void), int timeout_ms)
{
	struct liminal_options options;
	struct liminal *client;

	server_start(script);
	options = options_for(timeout_ms);
	ck_assert_int_eq(liminal_open(&options, &client), LIMINAL_OK);
	return client;
}

void end(struct liminal **client)
{
	liminal_close(client);
	ck_assert_ptr_null(*client);
	server_end();
}

void fails_with(int status, int expected, unsigned code, const char *text)
{
	ck_assert_msg(status == expected, "status %d instead of %d: %s", status, expected,
		      liminal_last_error()->text);
	ck_assert_int_eq(liminal_last_error()->status, expected);
	ck_assert_uint_eq(liminal_last_error()->code, code);
	ck_assert_msg(strstr(liminal_last_error()->text, text) != NULL, "the text is \"%s\"",
		      liminal_last_error()->text);
}

void takes(struct liminal_subscription *subscription, const char *payload, uint64_t missed)
{
	struct liminal_delivery *delivery;

	succeeds(liminal_next(subscription, LIMINAL_FOREVER, &delivery));
	ck_assert_str_eq((const char *)delivery->payload, payload);
	ck_assert_uint_eq(delivery->length, strlen(payload));
	ck_assert_uint_eq(delivery->missed, missed);
	liminal_delivery_free(&delivery);
	ck_assert_ptr_null(delivery);
}

int run(Suite *suite)
{
	SRunner *runner = srunner_create(suite);
	int failed;

	srunner_run_all(runner, CK_NORMAL);
	failed = srunner_ntests_failed(runner);
	srunner_free(runner);
	return failed == 0 ? 0 : 1;
}
