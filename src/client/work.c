/*
 * Serving as a worker. Jobs are queued by whoever polls and taken by the threads in liminal_serve.
 * An answer goes to the connection that the job came from, or nowhere.
 */
#include "client/client_priv.h"

#include <stdlib.h>
#include <string.h>

#define WORK_WORDS_MAX 1024
/* Refusals of a handle that serves nothing wait for room no longer than this is not used up. */
#define WORK_OUTPUT_MAX (4 * CLIENT_OUTPUT_LIMIT)

static const char *const work_refusals[] = {
	[LIMINAL_BUSY] = "busy",
	[LIMINAL_INVALID_REQUEST] = "invalid",
	[LIMINAL_UNAVAILABLE] = "unavailable",
	[LIMINAL_INTERNAL] = "internal",
};

/* The refusal record, {"code":"...","words":"..."}: at most six bytes for one of WORDS. */
struct work_record {
	char bytes[64 + 6 * WORK_WORDS_MAX];
	size_t length;
};

static void work_record_add(struct work_record *record, const char *text)
{
	size_t length = strlen(text);

	memcpy(record->bytes + record->length, text, length);
	record->length += length;
}

static void work_record_make(struct work_record *record, enum liminal_refusal refusal,
			     const char *words)
{
	static const char hex[] = "0123456789abcdef";
	size_t length = utf8_cut((const uint8_t *)words, strlen(words), WORK_WORDS_MAX);

	record->length = 0;
	work_record_add(record, "{\"code\":\"");
	work_record_add(record, work_refusals[refusal]);
	work_record_add(record, "\",\"words\":\"");
	for (size_t i = 0; i < length; i++) {
		unsigned char byte = (unsigned char)words[i];

		if (byte == '"' || byte == '\\')
			record->bytes[record->length++] = '\\';
		if (byte >= 0x20) {
			record->bytes[record->length++] = (char)byte;
			continue;
		}
		work_record_add(record, "\\u00");
		record->bytes[record->length++] = hex[byte >> 4];
		record->bytes[record->length++] = hex[byte & 15];
	}
	work_record_add(record, "\"}");
}

static struct wire_frame work_reply_frame(uint64_t correlation, uint8_t flags, struct span payload)
{
	return (struct wire_frame){
		.header = {.type = WIRE_PUSH_REPLY, .flags = flags, .stream = 1},
		.u.push = {.correlation = correlation, .payload = payload},
	};
}

/* By the poller, which must not wait: a refusal that finds no room is not sent. */
static void work_refuse_now(struct liminal *client, uint64_t correlation,
			    enum liminal_refusal refusal, const char *words)
{
	struct work_record record;
	struct wire_frame frame;

	if (client->output.length > WORK_OUTPUT_MAX)
		return;
	work_record_make(&record, refusal, words);
	frame = work_reply_frame(correlation, WIRE_PUSH_REPLY_REFUSED,
				 (struct span){(const uint8_t *)record.bytes, record.length});
	(void)client_put_now(client, &frame);
	client_send(client);
}

void client_job_arrived(struct liminal *client, uint64_t correlation, struct span payload)
{
	struct liminal_job *job;

	if (!client->registration.present) {
		work_refuse_now(client, correlation, LIMINAL_UNAVAILABLE,
				"this client does not serve requests");
		return;
	}
	if (client->job_count >= CLIENT_JOBS_MAX ||
	    (client->job_count > 0 &&
	     size_add(client->job_bytes, payload.length) > CLIENT_JOBS_BYTES_MAX)) {
		work_refuse_now(client, correlation, LIMINAL_BUSY, "too many requests wait here");
		return;
	}
	job = malloc(size_add(sizeof(*job), payload.length + 1));
	if (job == NULL) {
		work_refuse_now(client, correlation, LIMINAL_BUSY, "out of memory");
		return;
	}
	*job = (struct liminal_job){
		.client = client,
		.epoch = client->epoch,
		.correlation = correlation,
		.length = payload.length,
	};
	if (payload.length > 0)
		memcpy(job->payload, payload.data, payload.length);
	job->payload[payload.length] = '\0';
	list_append(&client->jobs, &job->node);
	client->job_count++;
	client->job_bytes += payload.length;
}

static struct liminal_job *work_take(struct liminal *client)
{
	struct liminal_job *job;

	if (list_empty(&client->jobs))
		return NULL;
	job = LIST_ENTRY(client->jobs.next, struct liminal_job, node);
	list_remove(&job->node);
	client->job_count--;
	client->job_bytes -= job->length;
	return job;
}

void client_jobs_drop(struct liminal *client)
{
	struct liminal_job *job;

	while ((job = work_take(client)) != NULL)
		free(job);
}

static void work_list_free(char ***list)
{
	if (*list == NULL)
		return;
	for (char **item = *list; *item != NULL; item++)
		free(*item);
	free(*list);
	*list = NULL;
}

static bool work_list_copy(char ***copy, const char *const *list)
{
	size_t count = 0;

	while (list != NULL && list[count] != NULL)
		count++;
	*copy = calloc(count + 1, sizeof(**copy));
	if (*copy == NULL)
		return false;
	for (size_t i = 0; i < count; i++)
		if (!client_copy_text(&(*copy)[i], list[i])) {
			work_list_free(copy);
			return false;
		}
	return true;
}

void client_registration_free(struct client_registration *registration)
{
	free(registration->queue);
	free(registration->node);
	free(registration->identity);
	work_list_free(&registration->namespaces);
	work_list_free(&registration->activities);
	*registration = (struct client_registration){.present = false};
}

static int work_registration_copy(struct client_registration *copy,
				  const struct liminal_worker_options *options)
{
	*copy = (struct client_registration){.present = true};
	if (client_copy_text(&copy->queue, options->queue) &&
	    client_copy_text(&copy->node, options->node) &&
	    client_copy_text(&copy->identity, options->identity != NULL ? options->identity : "") &&
	    work_list_copy(&copy->namespaces, options->namespaces) &&
	    work_list_copy(&copy->activities, options->activities))
		return LIMINAL_OK;
	client_registration_free(copy);
	return client_fail_memory();
}

/* A list of strings as it stands on the wire; the caller frees its bytes. */
static bool work_list_encode(char **list, struct wire_list *encoded)
{
	size_t size = 0;
	uint8_t *at;

	*encoded = (struct wire_list){.count = 0};
	for (char **item = list; *item != NULL; item++)
		size += 4 + strlen(*item);
	at = malloc(size + 1);
	if (at == NULL)
		return false;
	encoded->bytes = (struct span){at, size};
	for (char **item = list; *item != NULL; item++) {
		size_t length = strlen(*item);

		wire_put_u32(at, (uint32_t)length);
		memcpy(at + 4, *item, length);
		at += 4 + length;
		encoded->count++;
	}
	return true;
}

int client_registration_send(struct liminal *client, bool leaving, int64_t deadline_ns)
{
	const struct client_registration *registration = &client->registration;
	struct wire_frame frame = {
		.header = {.type = WIRE_WORKER_REGISTER,
			   .flags = leaving ? WIRE_REGISTER_LEAVING : 0},
		.u.worker_register = {.queue = span_of(registration->queue),
				      .identity = span_of(registration->identity),
				      .node = {registration->node != NULL,
					       span_of(registration->node)}},
	};
	struct wire_list *namespaces = &frame.u.worker_register.namespaces;
	struct wire_list *activities = &frame.u.worker_register.activities;
	struct client_answer *answer = client_answer_new(WIRE_WORKER_REGISTER, 0);
	int status;

	if (answer == NULL || !work_list_encode(registration->namespaces, namespaces) ||
	    !work_list_encode(registration->activities, activities)) {
		status = client_fail_memory();
		goto out;
	}
	answer->leaving = leaving;
	/* Without waiting for room: another thread could replace the registration meanwhile. */
	if (!client_put_now(client, &frame)) {
		status = client_fail_memory();
		goto out;
	}
	list_append(&client->answers, &answer->node);
	status = client_answer_wait(client, &answer, deadline_ns);
out:
	free((void *)namespaces->bytes.data);
	free((void *)activities->bytes.data);
	client_answer_free(&answer);
	return status;
}

static bool work_texts_valid(const char *const *list)
{
	for (; list != NULL && *list != NULL; list++)
		if (!client_text_valid(*list))
			return false;
	return true;
}

int liminal_register(struct liminal *client, const struct liminal_worker_options *given)
{
	struct liminal_worker_options options = LIMINAL_WORKER_OPTIONS_INIT;
	struct client_registration registration, before;
	int64_t deadline_ns;
	int status;

	if (given != NULL)
		memcpy(&options, given, size_min(given->size, sizeof(options)));
	if (!client_text_valid(options.queue) || !work_texts_valid(options.namespaces) ||
	    !work_texts_valid(options.activities) ||
	    (options.node != NULL && !client_text_valid(options.node)) ||
	    (options.identity != NULL && !client_text_valid(options.identity)))
		return client_fail(LIMINAL_INVALID, "a name of the worker is missing or not UTF-8");
	status = work_registration_copy(&registration, &options);
	if (status != LIMINAL_OK)
		return status;
	status = client_enter(client);
	if (status != LIMINAL_OK) {
		client_registration_free(&registration);
		return status;
	}
	/* In place before the answer: jobs may come right behind it. */
	before = client->registration;
	client->registration = registration;
	deadline_ns = clock_after_ms(clock_mono_ns(), client->timeout_ms);
	status = client_registration_send(client, false, deadline_ns);
	if (status != LIMINAL_REFUSED) {
		client_registration_free(&before);
	} else {
		client_registration_free(&client->registration);
		client->registration = before;
	}
	mutex_unlock(&client->lock);
	return status;
}

static bool work_has_news(const void *subject)
{
	const struct liminal *client = subject;

	return !list_empty(&client->jobs) || client->left;
}

int liminal_serve(struct liminal *client, liminal_handler *handler, void *context)
{
	struct liminal_job *job;
	int status;

	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	for (;;) {
		client_send(client);
		status = client_wait(client, work_has_news, client, DEADLINE_NEVER);
		if (status != LIMINAL_OK)
			break;
		job = work_take(client);
		if (job == NULL)
			break;
		mutex_unlock(&client->lock);
		handler(context, job);
		if (!job->answered)
			liminal_job_refuse(job, LIMINAL_INTERNAL, "the worker gave no answer");
		free(job);
		mutex_lock(&client->lock);
	}
	mutex_unlock(&client->lock);
	return status;
}

int liminal_leave(struct liminal *client, int timeout_ms)
{
	int64_t deadline_ns = client_deadline(timeout_ms);
	int status;

	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	if (client->registration.present)
		status = client_registration_send(client, true, deadline_ns);
	else
		status = client_fail(LIMINAL_INVALID, "no worker is registered");
	cond_broadcast(&client->changed);
	mutex_unlock(&client->lock);
	return status;
}

const void *liminal_job_payload(const struct liminal_job *job, size_t *length)
{
	*length = job->length;
	return job->payload;
}

static int work_answer(struct liminal_job *job, uint8_t flags, struct span payload)
{
	struct wire_frame frame = work_reply_frame(job->correlation, flags, payload);
	struct liminal *client = job->client;
	int64_t deadline_ns;
	int status;

	status = client_enter(client);
	if (status != LIMINAL_OK)
		return status;
	deadline_ns = clock_after_ms(clock_mono_ns(), client->timeout_ms);
	if (job->epoch != client->epoch)
		status = client_fail(LIMINAL_LOST, "the connection that the job came from is lost");
	if (status == LIMINAL_OK)
		status = client_put(client, &frame, deadline_ns);
	if (status == LIMINAL_OK)
		status = client_drain(client, deadline_ns);
	mutex_unlock(&client->lock);
	return status;
}

int liminal_job_reply(struct liminal_job *job, const void *payload, size_t length)
{
	if (payload == NULL && length > 0)
		return client_fail(LIMINAL_INVALID, "the payload has a length but no bytes");
	if (job->answered)
		return client_fail(LIMINAL_INVALID, "the job is answered already");
	job->answered = true;
	return work_answer(job, 0, (struct span){payload, length});
}

int liminal_job_refuse(struct liminal_job *job, enum liminal_refusal refusal, const char *words)
{
	struct work_record record;

	if ((int)refusal < 0 || (size_t)refusal >= ARRAY_LENGTH(work_refusals))
		return client_fail(LIMINAL_INVALID, "there is no such refusal");
	if (!client_text_valid(words))
		return client_fail(LIMINAL_INVALID, "the words of the refusal are not UTF-8");
	if (job->answered)
		return client_fail(LIMINAL_INVALID, "the job is answered already");
	job->answered = true;
	work_record_make(&record, refusal, words);
	return work_answer(job, WIRE_PUSH_REPLY_REFUSED,
			   (struct span){(const uint8_t *)record.bytes, record.length});
}

int liminal_job_working(struct liminal_job *job)
{
	return work_answer(job, WIRE_PUSH_REPLY_WORKING, (struct span){.data = NULL});
}
