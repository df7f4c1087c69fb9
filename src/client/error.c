/*
 * The one error space. What a thread failed with last is kept per thread, so that two threads with
 * one handle do not see each other's failures.
 */
#include "client/client_priv.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Thread_local struct liminal_error client_last_error;

const struct liminal_error *liminal_last_error(void)
{
	return &client_last_error;
}

const char *liminal_status_text(int status)
{
	static const char *const texts[] = {
		[LIMINAL_OK] = "success",
		[LIMINAL_REFUSED] = "the server refused",
		[LIMINAL_TIMEOUT] = "no answer in time",
		[LIMINAL_UNREACHABLE] = "no connection",
		[LIMINAL_LOST] = "the connection is lost",
		[LIMINAL_ENDED] = "the subscription has ended",
		[LIMINAL_STOPPED] = "stopped",
		[LIMINAL_INVALID] = "an argument cannot be used",
		[LIMINAL_MEMORY] = "out of memory",
		[LIMINAL_PROTOCOL] = "the peer does not speak the protocol",
	};

	if (status < 0 || (size_t)status >= ARRAY_LENGTH(texts))
		return "unknown status";
	return texts[status];
}

static struct text client_error_begin(int status, unsigned code)
{
	client_last_error.status = status;
	client_last_error.code = code;
	return TEXT_INIT(client_last_error.text);
}

int client_fail(int status, const char *format, ...)
{
	struct text text = client_error_begin(status, 0);
	char line[2 * sizeof(client_last_error.text)]; /* so that text_add does the cutting */
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	text_add(&text, "%s", line);
	return status;
}

int client_fail_with(const struct client_fault *fault)
{
	struct text text = client_error_begin(fault->status, fault->code);

	text_add(&text, "%s",
		 fault->text != NULL ? fault->text : liminal_status_text(fault->status));
	return fault->status;
}

int client_fail_memory(void)
{
	return client_fail(LIMINAL_MEMORY, "out of memory");
}

void client_fault_set(struct client_fault *fault, int status, unsigned code, struct span text)
{
	free(fault->text);
	*fault = (struct client_fault){.status = status, .code = code};
	if (text.length == 0)
		return;
	fault->text = malloc(text.length + 1);
	if (fault->text == NULL)
		return; /* the status's own words have to do */
	memcpy(fault->text, text.data, text.length);
	fault->text[text.length] = '\0';
}

void client_fault_clear(struct client_fault *fault)
{
	free(fault->text);
	*fault = (struct client_fault){.status = LIMINAL_OK};
}

void client_fault_move(struct client_fault *to, struct client_fault *from)
{
	if (to == from)
		return;
	free(to->text);
	*to = *from;
	*from = (struct client_fault){.status = LIMINAL_OK};
}

void liminal_free(void *memory)
{
	free(memory);
}

const char *liminal_library_version(void)
{
	return PACKAGE_VERSION;
}
