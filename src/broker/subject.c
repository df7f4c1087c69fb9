/* Subjects of conversations: which of them are addresses, and the parts of the others. */
#include "broker/broker_priv.h"

#include <string.h>

static bool subject_prefix(struct span subject, const char *prefix, struct span *rest)
{
	size_t length = strlen(prefix);

	if (subject.length < length || memcmp(subject.data, prefix, length) != 0)
		return false;
	*rest = (struct span){subject.data + length, subject.length - length};
	return true;
}

/* A connection id: decimal, no leading zero. */
static bool subject_number(struct span text, uint64_t *number)
{
	*number = 0;
	if (text.length == 0 || text.data[0] == '0')
		return false;
	for (size_t i = 0; i < text.length; i++) {
		unsigned digit = (unsigned)(text.data[i] - '0');

		if (digit > 9 || *number > (UINT64_MAX - digit) / 10)
			return false;
		*number = *number * 10 + digit;
	}
	return true;
}

static enum subject_kind subject_address(struct conversation *conversation, struct span subject)
{
	struct span rest;

	if (subject_prefix(subject, "$connection/", &rest) &&
	    subject_number(rest, &conversation->number))
		return SUBJECT_CONNECTION;
	if (subject_prefix(subject, "$worker/", &conversation->rest))
		return SUBJECT_WORKER;
	/* An unknown address is one that the server's own responder does not know. */
	if (!subject_prefix(subject, "$control/", &conversation->rest))
		conversation->rest = (struct span){0};
	return SUBJECT_CONTROL;
}

/* QUEUE, NAMESPACE/QUEUE or NAMESPACE/QUEUE/ACTIVITY; no part may be empty. */
static enum subject_kind subject_queue(struct conversation *conversation, struct span subject)
{
	struct span parts[3] = {{0}};
	size_t count = 0, start = 0;

	for (size_t i = 0; i <= subject.length; i++) {
		if (i < subject.length && subject.data[i] != '/')
			continue;
		if (i == start || count == 3)
			return SUBJECT_OTHER;
		parts[count++] = (struct span){subject.data + start, i - start};
		start = i + 1;
	}
	conversation->queue = count == 1 ? parts[0] : parts[1];
	conversation->name_space = count == 1 ? (struct span){0} : parts[0];
	conversation->activity = parts[2];
	conversation->name_space_hash =
		hash_bytes(conversation->name_space.data, conversation->name_space.length);
	conversation->activity_hash =
		hash_bytes(conversation->activity.data, conversation->activity.length);
	return SUBJECT_QUEUE;
}

void subject_parse(struct conversation *conversation)
{
	struct span subject = {conversation->subject, conversation->subject_length};

	if (subject.length > 0 && subject.data[0] == '$')
		conversation->kind = subject_address(conversation, subject);
	else
		conversation->kind = subject_queue(conversation, subject);
}
